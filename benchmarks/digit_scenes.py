"""Record what `make demo-det` or `make demo-seg` has reached: metrics, losses and drawn scenes.

    make demo-seg && python benchmarks/digit_scenes.py segmentation
    make demo-det && python benchmarks/digit_scenes.py detection

Reads output/demo-seg or output/demo-det; writes README.md, log.txt and drawn.png into
benchmarks/results/digit_scenes_segmentation or _detection.
"""

import json
import platform
import re
from pathlib import Path

import torch
from measure import RESULTS, table
from PIL import Image

from davit.data.scenes import COUNTS
from davit.parsing import Parser, RawHelp

ROOT = Path(__file__).resolve().parents[1]
DRAWN, ACROSS = 10, 5
FOLDERS = {"detection": "demo-det", "segmentation": "demo-seg"}
TITLES = {"detection": "Mask R-CNN", "segmentation": "UPerNet"}


def newest(folder: Path, pattern: str) -> Path:
    """Find the file that sorts last: the names begin with the time.

    Raises:
        SystemExit: there is none.
    """
    files = sorted(folder.glob(pattern))
    if not files:
        raise SystemExit(f"{folder}/{pattern} is not there: run make {folder.name} first, in {ROOT}.")
    return files[-1]


def metrics(task: str, found: dict[str, float]) -> str:
    """Write a table of the metrics that the evaluation found."""
    if task == "segmentation":
        return table(["mIoU", "mAcc", "aAcc"], [[f"{found[name]:.2f}" for name in ("mIoU", "mAcc", "aAcc")]])
    rows = [
        [words, *(f"{found[f'coco/{kind}_mAP{limit}']:.3f}" for limit in ("", "_50", "_75"))]
        for words, kind in (("boxes", "bbox"), ("masks", "segm"))
    ]
    return table(["", "AP", "AP50", "AP75"], rows)


def montage(files: list[Path]) -> Image.Image:
    """Put pictures of one size side by side."""
    pictures = [Image.open(file).convert("RGB") for file in files]
    width, height = pictures[0].size
    whole = Image.new("RGB", (ACROSS * width, -(-len(pictures) // ACROSS) * height))
    for i, picture in enumerate(pictures):
        whole.paste(picture, (i % ACROSS * width, i // ACROSS * height))
    return whole


def minutes(log: str) -> float:
    """Count the minutes of training, by the clock of its log's first and last line."""
    clock = [3600 * int(h) + 60 * int(m) + int(s) for h, m, s in re.findall(r"(\d\d):(\d\d):(\d\d) - mmengine", log)]
    return (clock[-1] - clock[0]) % 86400 / 60


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=RawHelp)
    parser.add_argument("task", choices=tuple(FOLDERS), help="which demo to record")
    task = parser.parse_args().task
    run, target = ROOT / "output" / FOLDERS[task], RESULTS / f"digit_scenes_{task}"
    found = json.loads(newest(run / "test", "*/*.json").read_text())
    log = newest(run, "*/*.log").read_text()
    target.mkdir(parents=True, exist_ok=True)
    lines = [line for line in log.splitlines() if re.search(r"\((train|val)\).*loss", line)]
    (target / "log.txt").write_text("\n".join(lines) + "\n")
    montage(sorted((run / "drawn").glob("*.png"))[:DRAWN]).save(target / "drawn.png")
    (target / "README.md").write_text(
        f"""# {TITLES[task]} on scenes of handwritten digits

`make {FOLDERS[task]}`, seed 0, one run: DaViT_nano from random weights on {COUNTS["train"]:,} scenes, evaluated
on {COUNTS["val"]} held-out scenes of other handwriting. Two cores of an {platform.machine()} machine without a GPU,
PyTorch {torch.__version__}; {minutes(log):.1f} minutes of training, with other programs running at times.

{metrics(task, found)}

[log.txt](log.txt) has the losses. The first {DRAWN} held-out scenes, with what was found:

![scenes with predictions](drawn.png)

To repeat: `make {FOLDERS[task]} && python benchmarks/digit_scenes.py {task}`
"""
    )


if __name__ == "__main__":
    main()
