"""Fine-tune on few pictures, with configs/finetune.yaml and with the default flags of train.py, on several seeds.

    python benchmarks/finetuning.py CHECKPOINT IMAGENETTE_DIR --epochs 10

CHECKPOINT is that of configs/imagenette_64.yaml. Of five classes each seed draws 100 training pictures; all validation
pictures of these classes count. Prints one line a run and writes a table with --results FILE.
"""

import argparse
import itertools
import json
import logging
import random
import statistics
import tempfile
from pathlib import Path

from davit.checkpoint import read_checkpoint
from davit.engine.train import main as train

CLASSES, PICTURES = 5, 100
CONFIG = Path(__file__).resolve().parents[1] / "configs" / "finetune.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, nargs="+", default=[10])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="in addition, for the recipe")
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    noted = read_checkpoint(options.checkpoint).metadata["args"]
    model = ["--model", noted["model"], "--img-size", str(noted["img_size"]), "--initial-checkpoint"]
    kwargs = [f"{key}={value}".replace(" ", "") for key, value in noted["model_kwargs"].items()]
    common = [*model, str(options.checkpoint.absolute()), "--workers", "1", "--model-kwargs", *kwargs]
    ways = {"default": [], "finetune": ["-c", str(CONFIG), *options.flags]}  # the defaults add a cool-down
    rows = []
    for epochs, seed in itertools.product(options.epochs, range(options.seeds)):
        with tempfile.TemporaryDirectory() as folder:
            few_pictures(options.data, Path(folder) / "data", seed)
            for way, flags in ways.items():
                length = ["--epochs", str(epochs), "--seed", str(seed), "--output", folder, "--experiment", way]
                top1 = run([f"{folder}/data", *flags, *common, *length])
                rows.append({"epochs": epochs, "seed": seed, "flags": way, "top1": top1})
                print(rows[-1], flush=True)
    for epochs, way in itertools.product(options.epochs, ways):
        found = [row["top1"] for row in rows if (row["epochs"], row["flags"]) == (epochs, way)]
        print(f"--epochs {epochs}, {way}: mean {statistics.mean(found):.2f} %, {found}")
    if options.results:
        options.results.write_text(json.dumps(rows, indent=1) + "\n")


def few_pictures(source: Path, folder: Path, seed: int) -> None:
    """Link the first classes of a data set, with a drawn part of their training pictures."""
    for split in ("train", "val"):
        for label in sorted(one.name for one in (source / split).iterdir())[:CLASSES]:
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
