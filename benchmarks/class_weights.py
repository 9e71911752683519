"""Train on digits of which 0 to 4 are rare, with and without --class-weights auto, and compare the recall of these.

One in twenty of the training images (digits 0 to 4) is kept, or of two-digit images as many of these digits are
drawn. Each setting trains with three seeds and is evaluated on validation images in which all digits are equally
frequent.

    python benchmarks/class_weights.py [--seeds 0 1 2] [--epochs 6] [--settings plain weights]

About 8 minutes on two idle CPU cores. Writes benchmarks/results/class_weights.{json,md}.
"""

from __future__ import annotations

import csv
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from davit.data.digits import load_glyphs
from davit.engine.train import main as train
from davit.engine.validate import main as validate
from davit.parsing import Parser, RawHelp

RESULTS = Path(__file__).parent / "results"
RARE, SHARE = range(5), 1 / 20
SETTINGS = {"plain": [], "weights": ["--class-weights", "auto"], "balanced": ["--sampler", "balanced"]}
MODEL = [
    *("--model", "DaViT_nano", "--img-size", "32"),
    *("--model-kwargs", "embed_dims=[32,64]", "depths=[1,1]", "num_heads=[2,4]", "window_size=4"),
]
RECIPE = [
    *("--no-aug", "--mixup", "0", "--cutmix", "0", "--smoothing", "0", "--lr", "2e-3", "--clip-grad", "1"),
    *(
        "--warmup-epochs",
        "1",
        "--cooldown-epochs",
        "0",
        "--batch-size",
        "32",
        "--workers",
        "0",
        "--checkpoint-hist",
        "1",
    ),
]
TASKS = {"one digit": [], "two digits": ["--task", "multilabel"]}


def write_single(root: Path) -> None:
    """Lay the digits out as class folders, with one in twenty of the rare ones in train/."""
    for split, glyphs in load_glyphs().items():
        kept: dict[int, int] = {}
        for index, label, pixels in glyphs:
            kept[label] = kept.get(label, -1) + 1
            if split == "train" and label in RARE and kept[label] % round(1 / SHARE):
                continue
            folder = root / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{index:04d}.png")


def write_double(root: Path, train: int = 700, val: int = 300) -> None:
    """Draw pictures of two digits beside each other, and labels.csv; rare digits are drawn a twentieth as often."""
    draw, rows = np.random.default_rng(0), []
    for split, count in (("train", train), ("val", val)):
        (root / split).mkdir(parents=True)
        glyphs = load_glyphs()[split]
        weights = np.array([SHARE if split == "train" and label in RARE else 1.0 for _, label, _ in glyphs])
        for number in range(count):
            places = draw.choice(len(glyphs), 2, replace=False, p=weights / weights.sum())
            image = np.concatenate([glyphs[place][2] for place in places], axis=1)
            canvas = np.zeros((16, 16), np.uint8)
            canvas[4:12] = image
            Image.fromarray(canvas).save(root / split / f"{number:04d}.png")
            rows.append((f"{split}/{number:04d}.png", ";".join(sorted({str(glyphs[place][1]) for place in places}))))
    with (root / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "labels"), *rows])


def recalls(data: Path, words: Sequence[str], folder: Path) -> dict[str, float]:
    """Train and evaluate; return the mean recall of the rare digits and of the others, and the main figure: percent.

    The last epoch is taken, so that the validation pictures choose nothing.
    """
    where = ["--output", str(folder), "--experiment", "run"]
    words = [*words, "--val-interval", "1000"]  # and after the last epoch
    if train([str(data), *MODEL, *RECIPE, *words, *where]) != 0:
        raise RuntimeError(f"training with {words} failed")
    checkpoint = ["--checkpoint", str(folder / "run" / "last.pth.tar"), "--workers", "0"]
    report = folder / "report"
    if validate([str(data), *checkpoint, "--report", str(report)]) != 0:
        raise RuntimeError("the evaluation failed")
    with (report / "per_class.csv").open(newline="") as stream:
        found = {
            int(row["class"]): float(row.get("recall") or row.get("accuracy") or 0) for row in csv.DictReader(stream)
        }
    row = json.loads((report / "summary.json").read_text())
    return {
        "rare": float(np.mean([found[label] for label in RARE])),
        "frequent": float(np.mean([found[label] for label in found if label not in RARE])),
        "figure": row.get("top1", row.get("map")),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all settings and write the results."""
    parser = Parser(description=__doc__, formatter_class=RawHelp)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the trainings")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of each training")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), help="tasks to train")
    parser.add_argument(
        "--settings", nargs="+", choices=list(SETTINGS), default=["plain", "weights"], help="settings to compare"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write the results into")
    args = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for task in args.tasks:
            data = Path(temporary) / task.replace(" ", "_")
            (write_single if task == "one digit" else write_double)(data)
            for seed in args.seeds:
                for setting in args.settings:
                    words = [*TASKS[task], *SETTINGS[setting], "--seed", str(seed), "--epochs", str(args.epochs)]
                    found = recalls(data, words, Path(temporary) / f"{task}-{setting}-{seed}".replace(" ", "_"))
                    rows.append({"task": task, "setting": setting, "seed": seed, **found})
                    logging.getLogger().handlers.clear()
                    sys.stderr.write(f"{rows[-1]}\n")
    about = {"epochs": args.epochs, "torch": torch.__version__}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "class_weights.json").write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    (args.out / "class_weights.md").write_text(as_text(rows, about))
    return 0


def as_text(rows: Sequence[dict[str, Any]], about: dict[str, Any]) -> str:
    """Write the results as a table."""
    lines = [
        "# Rare classes with and without --class-weights auto",
        "",
        "Made by `benchmarks/class_weights.py`: digits 0 to 4 are a twentieth as frequent in training; "
        f"{about['epochs']} epochs, recall in percent on balanced validation pictures, PyTorch {about['torch']} "
        "on a CPU. Mean (each seed).",
        "",
        "| data | setting | recall of 0 to 4 | recall of 5 to 9 | top-1, or mAP |",
        "|---|---|---|---|---|",
    ]
    flags = {name: "`" + " ".join(words) + "`" if words else "none" for name, words in SETTINGS.items()}
    for task in dict.fromkeys(row["task"] for row in rows):
        for setting in dict.fromkeys(row["setting"] for row in rows):
            mine = [row for row in rows if (row["task"], row["setting"]) == (task, setting)]
            cells = [
                f"{np.mean([row[name] for row in mine]):.1f} ({', '.join(f'{row[name]:.1f}' for row in mine)})"
                for name in ("rare", "frequent", "figure")
            ]
            lines.append(f"| {task} | {flags[setting]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
