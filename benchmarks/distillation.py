"""Train DaViT_nano on 300 digits, alone and with a teacher that saw all 1,437, on several seeds.

    python benchmarks/distillation.py FOLDER --results benchmarks/results/distillation.md

The teacher is a DaViT_nano of configs/digits.yaml. Each seed draws 30 training digits of each class; top-1 is of the
last epoch, on the 360 held-out digits, which no training sees. FOLDER keeps the data, the teacher and the runs, and a
second start goes on from there. Options of the distillation are to be chosen with other seeds (--first-seed 100).
"""

import argparse
import csv
import logging
import random
import statistics
import sys
from pathlib import Path

import torch

from davit.data import write_digits
from davit.engine.train import main as train
from davit.parsing import Parser, RawHelp

PER_CLASS = 30
COMMON = ["-c", "configs/digits.yaml", "--img-size", "32", "--workers", "1", "--val-interval", "1000"]
SHORT = ["--batch-size", "32", "--epochs", "20", "--checkpoint-hist", "1"]
WAYS = {
    "alone": [],
    "logits": ["--distill", "logits", "--distill-temperature", "2", "--task-weight", "0.5"],
    "features": ["--distill", "features"],
}


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=RawHelp)
    parser.add_argument("folder", type=Path, help="folder for the data, the teacher and the runs")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=0, help="first of the seeds")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS, help="ways of training to compare")
    parser.add_argument(
        "--flags",
        nargs=argparse.REMAINDER,
        default=[],
        help="more flags of train.py for the runs with a teacher; all words after it",
    )
    parser.add_argument("--results", type=Path, help="file to write the table into")
    options = parser.parse_args()
    digits = write_digits(options.folder / "digits")
    runs = str((options.folder / "runs").absolute())
    teacher_top1 = run([str(digits), *COMMON, "--output", runs, "--experiment", "teacher"])
    print(f"teacher: {teacher_top1} %", flush=True)
    teacher = ["--teacher", f"{runs}/teacher/last.pth.tar"]
    found: dict[str, list[float]] = {way: [] for way in options.ways}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        few = few_digits(digits, options.folder / f"few-{seed}", seed)
        for way in options.ways:
            flags = [*teacher, *WAYS[way], *options.flags] if WAYS[way] else []
            name = "-".join([way, str(seed), *options.flags]).replace(" ", "")
            words = [str(few), *COMMON, *SHORT, *flags, "--seed", str(seed), "--output", runs, "--experiment", name]
            found[way].append(run(words))
            print(f"seed {seed}, {way}: {found[way][-1]} %", flush=True)
    for way, values in found.items():
        print(f"{way}: mean {statistics.mean(values):.2f} %, {values}")
    if options.results:
        options.results.write_text(table(teacher_top1, found, options.first_seed))


def few_digits(digits: Path, folder: Path, seed: int) -> Path:
    """Link so many training digits of each class, and all held-out ones."""
    for label in sorted(one.name for one in (digits / "train").iterdir()):
        files = sorted((digits / "train" / label).iterdir())
        place = folder / "train" / label
        place.mkdir(parents=True, exist_ok=True)
        for file in random.Random(f"{seed} {label}").sample(files, PER_CLASS):
            if not (place / file.name).exists():
                (place / file.name).symlink_to(file.absolute())
    if not (folder / "val").exists():
        (folder / "val").symlink_to((digits / "val").absolute())
    return folder


def run(words: list[str]) -> float:
    """Train, or go on from where it was stopped; return the last epoch's top-1, in percent."""
    before = logging.root.handlers[:]
    assert train([*words, "--auto-resume"]) == 0
    logging.root.handlers[:] = before
    folder = Path(words[words.index("--output") + 1]) / words[words.index("--experiment") + 1]
    with (folder / "summary.csv").open() as stream:
        return float(list(csv.DictReader(stream))[-1]["eval_top1"])


def table(teacher: float, found: dict[str, list[float]], first_seed: int) -> str:
    """Write the result as Markdown."""
    seeds = [f"seed {first_seed + number}" for number in range(len(next(iter(found.values()))))]
    alone = statistics.mean(found["alone"])
    lines = [
        "# Distillation on 300 digits",
        "",
        f"    python {' '.join(['benchmarks/distillation.py', *sys.argv[1:]])}",
        "",
        "DaViT_nano at 32 px on 30 training digits of each class, drawn by the seed, 20 epochs; top-1 after the last "
        "on the 360 held-out digits. The teacher, a DaViT_nano trained on all 1,437 training digits by "
        f"configs/digits.yaml in 30 epochs, has {teacher:.1f} %. CPU, float32, torch "
        f"{torch.__version__.partition('+')[0]}.",
        "",
        f"| | {' | '.join(seeds)} | mean | gain |",
        f"|---|{'---|' * (len(seeds) + 2)}",
    ]
    for way, values in found.items():
        mean = statistics.mean(values)
        flags = f"`--teacher ... {' '.join(WAYS[way])}`" if WAYS[way] else "alone"
        gain = "" if way == "alone" else f"{mean - alone:+.2f}"
        lines.append(f"| {flags} | {' | '.join(f'{value:.2f}' for value in values)} | {mean:.2f} | {gain} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
