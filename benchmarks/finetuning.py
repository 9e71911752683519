"""Fine-tune on few images, with configs/finetune.yaml and with the default flags of train.py, on several seeds.

    python benchmarks/finetuning.py CHECKPOINT IMAGENETTE_DIR --epochs 3 10

CHECKPOINT is that of configs/imagenette_64.yaml. Of five classes each seed draws 100 training images; all validation
images of these classes count. Prints one line a run and writes a table with --results FILE, which is written after
each run and taken up again. Recipes are to be chosen with other classes and seeds than those that are reported:

    python benchmarks/finetuning.py CHECKPOINT IMAGENETTE_DIR --classes 5 --first-seed 100 --recipe TRIED.yaml ...
"""

import itertools
import json
import logging
import random
import statistics
import tempfile
from pathlib import Path
from typing import Any

from davit.checkpoint import read_checkpoint
from davit.engine.train import main as train
from davit.files import write_atomically
from davit.parsing import Parser, RawHelp

CLASSES, PICTURES = 5, 100
CONFIG = Path(__file__).resolve().parents[1] / "configs" / "finetune.yaml"


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=RawHelp)
    parser.add_argument("checkpoint", type=Path, help="checkpoint of configs/imagenette_64.yaml")
    parser.add_argument("data", type=Path, help="folder of Imagenette")
    parser.add_argument("--epochs", type=int, nargs="+", default=[10], help="epochs of the trainings")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=0, help="first of the seeds")
    parser.add_argument("--classes", type=int, default=0, help="number of the first of the five classes")
    parser.add_argument(
        "--recipe", type=Path, nargs="+", default=[CONFIG], help="recipes to compare with the default flags"
    )
    parser.add_argument(
        "--no-default", action="store_true", help="train only by the recipes, not by the default flags"
    )
    parser.add_argument("--results", type=Path, help="file to write the table into")
    options = parser.parse_args()
    noted = read_checkpoint(options.checkpoint).metadata["args"]
    model = ["--model", noted["model"], "--img-size", str(noted["img_size"]), "--initial-checkpoint"]
    kwargs = [f"{key}={value}".replace(" ", "") for key, value in noted["model_kwargs"].items()]
    common = [*model, str(options.checkpoint.absolute()), "--workers", "1", "--val-interval", "1000"]
    common += ["--model-kwargs", *kwargs]  # evaluated after the last epoch alone
    ways = {"default": [], **{file.stem: ["-c", str(file)] for file in options.recipe}}  # defaults add a cool-down
    if options.no_default:
        del ways["default"]
    rows: list[dict[str, Any]] = []
    if options.results and options.results.exists():
        rows = json.loads(options.results.read_text())
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    for epochs, seed in itertools.product(options.epochs, seeds):
        with tempfile.TemporaryDirectory() as folder:
            few_pictures(options.data, Path(folder) / "data", seed, options.classes)
            for way, flags in ways.items():
                facts = {"epochs": epochs, "classes": options.classes, "seed": seed, "flags": way}
                if any(row.items() >= facts.items() for row in rows):
                    continue
                length = ["--epochs", str(epochs), "--seed", str(seed), "--output", folder, "--experiment", way]
                rows.append({**facts, "top1": run([f"{folder}/data", *flags, *common, *length])})
                print(rows[-1], flush=True)
                if options.results:
                    text = json.dumps(rows, indent=1) + "\n"
                    write_atomically(options.results, lambda stream, text=text: stream.write(text.encode()))
    for epochs, way in itertools.product(options.epochs, ways):
        of_way = {row["seed"]: row["top1"] for row in rows if (row["epochs"], row["flags"]) == (epochs, way)}
        found = [of_way[seed] for seed in seeds]
        print(f"--epochs {epochs}, {way}: mean {statistics.mean(found):.2f} %, {found}")


def few_pictures(source: Path, folder: Path, seed: int, first: int = 0) -> None:
    """Link five classes of a data set, with a drawn part of their training pictures.

    Args:
        first: number of the first of the classes, by name.
    """
    for split in ("train", "val"):
        for label in sorted(one.name for one in (source / split).iterdir())[first : first + CLASSES]:
            files = sorted((source / split / label).iterdir())
            if split == "train":
                files = random.Random(f"{seed} {label}").sample(files, PICTURES)
            (folder / split / label).mkdir(parents=True)
            for file in files:
                (folder / split / label / file.name).symlink_to(file.absolute())


def run(words: list[str]) -> float:
    """Train; return the last epoch's top-1, in percent."""
    before = logging.root.handlers[:]
    assert train(words) == 0
    logging.root.handlers[:] = before
    folder = Path(words[words.index("--output") + 1]) / words[words.index("--experiment") + 1]
    header, *_, last = (folder / "summary.csv").read_text().splitlines()
    return float(dict(zip(header.split(","), last.split(","), strict=True))["eval_top1"])


if __name__ == "__main__":
    main()
