"""Train Mask R-CNN, RTMDet and D-FINE on the digit scenes one after the other; compare AP and time.

    python benchmarks/digit_detectors.py                          # all three, about 25 minutes on two cores
    python benchmarks/digit_detectors.py --heads dfine --seed 1   # one of them; the others' rows stay
    python benchmarks/digit_detectors.py --rehearse               # a step of each in a minute; keeps nothing

Each is trained from random weights on the training scenes by its own command and recipe, for about as many epochs as
fit into the time that three of Mask R-CNN take, and measured on the 100 held-out scenes of other handwriting by COCO's
average precision of boxes. Nothing else should run meanwhile. Writes benchmarks/results/digit_detectors.md and .json.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from measure import RESULTS, table

from davit.data import write_scenes
from davit.data.scenes import COUNTS
from davit.parsing import Parser, RawHelp

ROOT = Path(__file__).resolve().parents[1]
TITLES = {"mask_rcnn": "Mask R-CNN", "rtmdet": "RTMDet", "dfine": "D-FINE"}
EPOCHS = {"mask_rcnn": 3, "rtmdet": 7, "dfine": 3}
BATCH = 8

_OF_MM = {"mask_rcnn": "davit_nano_maskrcnn_digits", "rtmdet": "davit_nano_rtmdet_digits"}
_DFINE = [
    *("--head", "dfine", "--model", "DaViT_nano", "--img-size", "128", "--drop-path", "0.05", "--model-ema"),
    *("--warmup-epochs", "0", "--sched-on-updates", "--lr", "8e-4", "--clip-grad", "1", "--workers", "1"),
    *("--hflip", "0", "--zoom-out", "0", "--iou-crop", "0", "--photometric", "0"),
    *("--head-kwargs", "num_queries=50", "num_denoising=50", "d_model=128", "encoder_hidden_dim=128"),
    *("decoder_in_channels=[128,128,128]", "encoder_ffn_dim=256", "decoder_ffn_dim=256", "decoder_layers=3"),
    "hidden_expansion=0.5",
]


def commands(head: str, data: Path, run: Path, seed: int, scenes: int) -> tuple[list[str], list[str]]:
    """Return the words that train a head on so many scenes, and those that evaluate it."""
    call = [sys.executable, "-m", "davit", "det"]
    epochs = EPOCHS[head]
    if head == "dfine":
        place = ["--output", str(run.parent), "--experiment", run.name, "--overwrite"]
        words = ["--batch-size", str(BATCH), "--epochs", str(epochs), "--val-interval", str(epochs)]
        train = [*call, "train", str(data), *_DFINE, *words, *place, "--seed", str(seed)]
        return train, [*call, "test", str(run), "--workers", "1", "--output", str(run / "metrics.json")]
    steps = epochs * -(-scenes // BATCH)
    words = ["--data-root", str(data), "--seed", str(seed)]
    length = [f"train_cfg.max_epochs={epochs}", f"param_scheduler.1.end={max(steps, 51)}"]
    train = [*call, "train", _OF_MM[head], *words, "--work-dir", str(run), "--no-validate", "--cfg-options", *length]
    test = [*call, "test", _OF_MM[head], str(run / f"epoch_{epochs}.pth"), *words, "--work-dir", str(run / "test")]
    return train, [*test, "--eval", "bbox"]


def figures(head: str, run: Path) -> dict[str, float]:
    """Read what an evaluation wrote: AP, AP50 and AP75 of boxes, in percent."""
    if head == "dfine":
        found = json.loads((run / "metrics.json").read_text())
        return {name: found[name] for name in ("ap", "ap50", "ap75")}
    found = json.loads(sorted((run / "test").glob("*/*.json"))[-1].read_text())
    return {f"ap{limit}": 100 * found[f"coco/bbox_mAP{limit and '_' + limit}"] for limit in ("", "50", "75")}


def processor_seconds() -> float:
    """Sum up the time that cores have computed for processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measured(head: str, data: Path, run: Path, seed: int, threads: int, scenes: int) -> dict[str, Any]:
    """Train and evaluate one head; return its row."""
    run.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "passive",
        "PYTHONPATH": str(ROOT),
    }
    train, test = commands(head, data, run, seed, scenes)
    started, computed = time.perf_counter(), processor_seconds()
    subprocess.run(train, check=True, env=environment, cwd=ROOT)
    minutes, of_processor = (time.perf_counter() - started) / 60, (processor_seconds() - computed) / 60
    subprocess.run(test, check=True, env=environment, cwd=ROOT)
    spent = {"epochs": EPOCHS[head], "minutes": minutes, "processor_minutes": of_processor}
    spent |= {"seed": seed, "threads": threads}
    return {**figures(head, run), **spent, "torch": torch.__version__}


def report(rows: dict[str, dict[str, Any]]) -> str:
    """Write the table of all rows there are."""
    cells = [
        [
            *(TITLES[head], f"{row['epochs'] * COUNTS['train']:,}"),
            *(f"{row['minutes']:.1f}", f"{row['processor_minutes']:.1f}"),
            *(f"{row[name]:.1f}" for name in ("ap", "ap50", "ap75")),
        ]
        for head in TITLES
        if (row := rows.get(head))
    ]
    seeds, threads = (
        ", ".join(map(str, sorted({row[name] for row in rows.values()}))) for name in ("seed", "threads")
    )
    return f"""# Three detectors on the digit scenes

DaViT_nano from random weights on {COUNTS["train"]:,} scenes of 128 px, measured on the {COUNTS["val"]} held-out scenes
of other handwriting: COCO's average precision of boxes in percent. Each learns for about as many epochs as fit into
the time that three of Mask R-CNN take, with batches of {BATCH} and a recipe of its own, none of which was searched
for long; a cosine ends with the last step. The minutes are those of the training command, from its start to its end.
Those of a core are what all its processes have computed; other programs ran beside and changed them less. Two cores
of an {platform.machine()} machine without a GPU, threads that compute: {threads}, PyTorch {torch.__version__}, one run
each (seed {seeds}).

{table(["", "scenes seen", "minutes", "of a core", "AP", "AP50", "AP75"], cells)}

Mask R-CNN learns masks in this time as well. The commands are in `benchmarks/digit_detectors.py`, which wrote this.
"""


def main(arguments: list[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=RawHelp)
    parser.add_argument("--heads", nargs="+", choices=tuple(TITLES), default=[*TITLES], help="detectors to train")
    parser.add_argument("--seed", type=int, default=0, help="seed of the trainings")
    parser.add_argument("--threads", type=int, default=2, help="threads that compute")
    parser.add_argument(
        "--rehearse", action="store_true", help="only try it: run one step of each on few scenes, and write no results"
    )
    args = parser.parse_args(arguments)
    if args.rehearse:
        fewer = mock.patch.dict(COUNTS, train=BATCH, val=BATCH)
        with tempfile.TemporaryDirectory() as folder, fewer, mock.patch.dict(EPOCHS, dict.fromkeys(EPOCHS, 1)):
            data = write_scenes(Path(folder) / "scenes")
            words = (args.seed, args.threads, BATCH)
            print(report({head: measured(head, data, Path(folder) / head, *words) for head in args.heads}))
        return 0
    data = write_scenes(ROOT / "data" / "scenes")
    file = RESULTS / "digit_detectors.json"
    for head in args.heads:
        run = ROOT / "output" / "digit_detectors" / head
        row = measured(head, data, run, args.seed, args.threads, COUNTS["train"])
        rows: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
        rows[head] = row
        file.write_text(json.dumps(rows, indent=1) + "\n")
        file.with_suffix(".md").write_text(report(rows))
        print(report({head: rows[head]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
