"""Train UPerNet with DaViT_nano on CamVid from random weights, evaluate it and draw what it finds.

    python benchmarks/camvid.py CAMVID_DIR [--work-dir DIR]

CAMVID_DIR holds train/, trainannot/, val/ and valannot/. Writes README.md, log.txt and drawn predictions into
benchmarks/results/camvid/. A work folder that holds a finished run is evaluated and drawn without training again.
"""

import json
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import davit.openmmlab  # noqa: F401  before mmseg
from davit.openmmlab.config import read_config
from davit.openmmlab.predictor import draw_segments
from davit.parsing import Parser, RawHelp

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "camvid"
CONFIG = ROOT / "mmseg" / "configs" / "upernet_davit_nano_camvid.py"
DRAWN = 3


def run(tool: str, *words: object) -> None:
    subprocess.run([sys.executable, str(ROOT / "mmseg" / "tools" / tool), *map(str, words)], check=True, cwd=ROOT)


def evaluate(data: Path, weights: Path, work: Path, *words: object) -> dict[str, float]:
    shutil.rmtree(work, ignore_errors=True)
    run("test.py", CONFIG, weights, "--data-root", data, "--eval", "mIoU", "--work-dir", work, *words)
    (file,) = work.glob("*/*.json")
    found: dict[str, float] = json.loads(file.read_text())
    return found


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=RawHelp)
    parser.add_argument("data", type=Path, help="folder of CamVid")
    parser.add_argument("--work-dir", type=Path, default=ROOT / "output" / "camvid", help="folder of the run")
    args = parser.parse_args()
    data, work = args.data.resolve(), args.work_dir.resolve()
    cfg = read_config(CONFIG)
    weights = work / f"iter_{cfg.train_cfg.max_iters}.pth"
    if not weights.is_file():
        run("train.py", CONFIG, "--data-root", data, "--work-dir", work, "--seed", 0)
    log = max(work.glob("*/*.log"), key=lambda file: file.stat().st_size)
    once = evaluate(data, weights, work / "test", "--out", work / "predicted")
    augmented = evaluate(data, weights, work / "augmented", "--aug-test")
    RESULTS.mkdir(parents=True, exist_ok=True)
    lines = [line for line in log.read_text().splitlines() if re.search(r"Iter\((train|val)\).*(loss|mIoU)", line)]
    (RESULTS / "log.txt").write_text("\n".join(lines) + "\n")
    meta = cfg.val_dataloader.dataset.metainfo
    names = sorted(file.name for file in (work / "predicted").glob("*.png"))[:: max(1, 26 // DRAWN)][:DRAWN]
    for name in names:
        labels = np.asarray(Image.open(work / "predicted" / name))
        nothing = np.zeros((*labels.shape, 3), dtype=np.uint8)
        draw_segments(nothing, labels, meta.classes, meta.palette).save(RESULTS / name)
    clock = re.findall(r"time: (\d+\.\d+)  data_time", "\n".join(lines))
    minutes = cfg.train_cfg.max_iters * np.mean([float(one) for one in clock]) / 60
    pictures = len([*(data / cfg.train_dataloader.dataset.data_prefix.img_path).glob("*.png")])
    (RESULTS / "README.md").write_text(
        f"""# CamVid from scratch
UPerNet with DaViT_nano from random weights: {pictures} training pictures, {cfg.train_cfg.max_iters} iterations of
{cfg.train_dataloader.batch_size} crops at 320 x 240; evaluated at 480 x 360 on 26 pictures, one seed.

| test | mIoU | mAcc | aAcc |
|---|---|---|---|
| once | {once["mIoU"]:.2f} | {once["mAcc"]:.2f} | {once["aAcc"]:.2f} |
| `--aug-test`, 12 views | {augmented["mIoU"]:.2f} | {augmented["mAcc"]:.2f} | {augmented["aAcc"]:.2f} |

Machine: {platform.machine()}, two cores, no GPU, {minutes:.0f} minutes of training
(wall clock, with other programs running); torch {torch.__version__}, Python {platform.python_version()}.
To repeat: `python benchmarks/camvid.py CAMVID_DIR`. The losses are in [log.txt](log.txt).

The drawings show the predictions only; CamVid's pictures are under CC BY-NC 4.0 and are not copied here.

"""
        + "\n".join(f"![prediction for validation picture {name}]({name})" for name in names)
        + "\n"
    )


if __name__ == "__main__":
    main()
