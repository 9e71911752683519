"""Train Mask R-CNN, RTMDet and D-FINE on the digit scenes one after the other, and compare AP and time.

    python benchmarks/digit_detectors.py                        # all three, about 20 minutes on two cores
    python benchmarks/digit_detectors.py --heads dfine --seed 1 # one of them; the others' rows stay

Each is trained from random weights on the training scenes by its own command, and measured on the 100 held-out scenes
of other handwriting by COCO's average precision of boxes. Nothing else should run meanwhile. Writes
benchmarks/results/digit_detectors.md and .json.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, table

from davit.data import write_scenes
from davit.data.scenes import COUNTS

ROOT = Path(__file__).resolve().parents[1]
_OF_MM = {"mask_rcnn": "davit_nano_maskrcnn_digits", "rtmdet": "davit_nano_rtmdet_digits"}
TITLES = {"mask_rcnn": "Mask R-CNN", "rtmdet": "RTMDet", "dfine": "D-FINE"}
DFINE = [
    *("--head", "dfine", "--model", "DaViT_nano", "--img-size", "128", "--batch-size", "8", "--drop-path", "0.05"),
    *("--epochs", "3", "--val-interval", "3", "--warmup-epochs", "0", "--sched-on-updates", "--lr", "8e-4"),
    *(
        "--hflip",
        "0",
        "--zoom-out",
        "0",
        "--iou-crop",
        "0",
        "--photometric",
        "0",
        "--clip-grad",
        "1",
        "--workers",
        "1",
    ),
    *("--head-kwargs", "num_queries=50", "decoder_layers=3", "encoder_hidden_dim=128", "d_model=128"),
    *("decoder_in_channels=[128,128,128]", "encoder_ffn_dim=256", "decoder_ffn_dim=256", "num_denoising=50"),
    "hidden_expansion=0.5",
]


def commands(head: str, data: Path, run: Path, seed: int) -> tuple[list[str], list[str]]:
    """Return the words that train a head, and those that evaluate it."""
    call = [sys.executable, "-m", "davit", "det"]
    if head == "dfine":
        place = ["--output", str(run.parent), "--experiment", run.name, "--overwrite"]
        train = [*call, "train", str(data), *DFINE, *place, "--seed", str(seed)]
        return train, [*call, "test", str(run), "--workers", "1", "--output", str(run / "metrics.json")]
    words = ["--data-root", str(data), "--seed", str(seed)]
    train = [*call, "train", _OF_MM[head], *words, "--work-dir", str(run), "--no-validate"]
    test = [*call, "test", _OF_MM[head], str(run / "epoch_3.pth"), *words, "--work-dir", str(run / "test")]
    return train, [*test, "--eval", "bbox"]


def figures(head: str, run: Path) -> dict[str, float]:
    """Read what an evaluation wrote: AP, AP50 and AP75 of boxes, in percent."""
    if head == "dfine":
        found = json.loads((run / "metrics.json").read_text())
        return {name: found[name] for name in ("ap", "ap50", "ap75")}
    found = json.loads(sorted((run / "test").glob("*/*.json"))[-1].read_text())
    return {f"ap{limit}": 100 * found[f"coco/bbox_mAP{limit and '_' + limit}"] for limit in ("", "50", "75")}


def measured(head: str, data: Path, seed: int, threads: int) -> dict[str, Any]:
    """Train and evaluate one head; return its row."""
    run = ROOT / "output" / "digit_detectors" / head
    run.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
    train, test = commands(head, data, run, seed)
    started = time.perf_counter()
    subprocess.run(train, check=True, env=environment, cwd=ROOT)
    minutes = (time.perf_counter() - started) / 60
    subprocess.run(test, check=True, env=environment, cwd=ROOT)
    return {**figures(head, run), "minutes": minutes, "seed": seed, "threads": threads, "torch": torch.__version__}


def report(rows: dict[str, dict[str, Any]]) -> str:
    """Write the table of all rows there are."""
    cells = [
        [TITLES[head], *(f"{row[name]:.1f}" for name in ("ap", "ap50", "ap75", "minutes")), row["seed"]]
        for head in TITLES
        if (row := rows.get(head))
    ]
    return f"""# Three detectors on the digit scenes

DaViT_nano from random weights on {COUNTS["train"]:,} scenes of 128 px, measured on the {COUNTS["val"]} held-out
scenes of other handwriting: COCO's average precision of boxes in percent, and the minutes from the start of the
training command to its end. Two cores of an {platform.machine()} machine without a GPU, PyTorch {torch.__version__},
one run each.

{table(["", "AP", "AP50", "AP75", "minutes", "seed"], cells)}

Mask R-CNN learns masks as well. The commands are in `benchmarks/digit_detectors.py`, which wrote this file.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", nargs="+", choices=tuple(TITLES), default=[*TITLES], help="default: all")
    parser.add_argument("--seed", type=int, default=0, help="of the trainings (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="that compute at once (default %(default)s)")
    args = parser.parse_args()
    data = write_scenes(ROOT / "data" / "scenes")
    file = RESULTS / "digit_detectors.json"
    rows: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.exists() else {}
    for head in args.heads:
        rows[head] = measured(head, data, args.seed, args.threads)
        file.write_text(json.dumps(rows, indent=1) + "\n")
        file.with_suffix(".md").write_text(report(rows))
        print(report({head: rows[head]}))


if __name__ == "__main__":
    main()
