"""Measure how many images one core decodes and augments per second: ours against timm's data set and transform.

    python benchmarks/input_pipeline.py --folder DATASET_DIR/train     # images of your own
    python benchmarks/input_pipeline.py                                # JPEGs of 1500 x 1000 made for the purpose

Both sides read the same files in the same order, in one process and one thread, by turns; the time is the
processor's. Beside the speed stands how far pixels lie apart (levels of 255, before normalisation), which is what
decoding at a fraction costs. Then ours from a folder against ours from tar shards of the same files.
"""

import io
import random
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measure import RESULTS, table, write_report
from timm.data import create_dataset, create_transform

from davit.data import PictureDataset, open_dataset, train_transform
from davit.parsing import Parser, RawHelp

AUGMENTATIONS = {
    "default (RandAugment, erasing)": {"aa": "rand-m9-mstd0.5-inc1", "color_jitter": 0.4, "reprob": 0.25},
    "crop and flip": {"aa": None, "color_jitter": None, "reprob": 0.0},
}


def make_pictures(folder: Path, count: int, width: int, height: int) -> None:
    """Write JPEGs with structure at all scales and sensor noise: about 450 kB each at 1500 x 1000."""
    (folder / "train" / "made").mkdir(parents=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        total = np.zeros((height, width, 3))
        for octave in range(1, 9):
            small = Image.fromarray(rng.integers(0, 256, (2**octave, 2**octave, 3), dtype=np.uint8))
            total += np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), float) / octave
        total = (total - total.min()) / (total.max() - total.min()) * 255 + rng.normal(0, 4, (height, width, 1))
        picture = Image.fromarray(total.clip(0, 255).astype(np.uint8))
        picture.save(folder / "train" / "made" / f"{number:03d}.jpg", quality=90)


def seconds(read: Callable[[int], object], count: int, seed: int) -> float:
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
    start = time.process_time()
    for index in range(count):
        read(index)
    return time.process_time() - start


def compare_on(root: Path, split: str, limit: int, rounds: int) -> tuple[list[list[str]], list[dict[str, object]]]:
    rows, data = [], []
    for name, options in AUGMENTATIONS.items():
        ours = open_dataset(root, split, transform=train_transform(**options))  # type: ignore[arg-type]
        theirs = create_dataset("", root=str(root / split) if split != "." else str(root))
        theirs.transform = create_transform(
            224,
            is_training=True,
            auto_augment=options["aa"],
            color_jitter=options["color_jitter"],
            re_prob=options["reprob"],
            re_mode="pixel",
            interpolation="bicubic",
        )
        count = min(limit, len(ours))
        readers = {"timm": theirs.__getitem__, "ours": ours.__getitem__}
        times: dict[str, list[float]] = {key: [] for key in readers}
        for number in range(rounds + 1):
            for key, read in readers.items():
                spent = seconds(read, count, number)
                if number:  # the first fills the cache of files
                    times[key].append(spent)
        ratios = [a / b for a, b in zip(times["timm"], times["ours"], strict=True)]
        rate = {key: count / statistics.median(value) for key, value in times.items()}
        rows.append(
            [name, f"{rate['timm']:.0f}", f"{rate['ours']:.0f}", f"{statistics.median(ratios):.2f}",
             f"{min(ratios):.2f} to {max(ratios):.2f}"]
        )  # fmt: skip
        data.append({"augmentation": name, "pictures": count, "seconds": times, "ratio": statistics.median(ratios)})
    return rows, data


SHARDS = 9


def as_shards(dataset: PictureDataset, folder: Path) -> None:
    """Put the pictures of a folder into tar shards, each with its class as WebDataset has it."""
    folder.mkdir(parents=True)
    for number in range(SHARDS):
        with tarfile.open(folder / f"train-{number:06d}.tar", "w") as shard:
            for index in range(number, len(dataset), SHARDS):
                file, target = Path(dataset.source.path(index)), dataset.source.open(index)[1]
                for name, data in ((f"{index:07d}.cls", str(target).encode()), (f"{index:07d}{file.suffix}", None)):
                    data = file.read_bytes() if data is None else data
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    shard.addfile(member, io.BytesIO(data))


def compare_shards(root: Path, split: str, limit: int, rounds: int) -> tuple[list[str], dict[str, object]]:
    """Compare decoding, cropping and flipping from shards with the same from a folder, the order of each by turns."""
    transform = train_transform(**AUGMENTATIONS["crop and flip"])  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as temporary:
        as_shards(open_dataset(root, split), Path(temporary, "shards"))
        sets = {"folder": open_dataset(root, split), "shards": open_dataset(Path(temporary, "shards"), "train")}
        times: dict[str, list[float]] = {key: [] for key in sets}
        for dataset in sets.values():
            dataset.transform = transform
        count = min(limit, len(sets["folder"]))
        for number in range(rounds + 1):
            for key in sorted(sets, reverse=number % 2 == 1):
                spent = seconds(sets[key].__getitem__, count, number)
                if number:
                    times[key].append(spent)
    ratios = [a / b for a, b in zip(times["folder"], times["shards"], strict=True)]
    rate = {key: count / statistics.median(value) for key, value in times.items()}
    row = [f"{rate['folder']:.0f}", f"{rate['shards']:.0f}", f"{statistics.median(ratios):.3f}",
           f"{min(ratios):.3f} to {max(ratios):.3f}", str(rounds)]  # fmt: skip
    return row, {"pictures": count, "seconds": times, "ratio": statistics.median(ratios)}


def differences(root: Path, split: str, limit: int) -> tuple[str, dict[str, float]]:
    """Compare our samples with and without decoding at a fraction, of the same crops."""
    plain = {"aa": None, "color_jitter": None, "reprob": 0.0, "hflip": 0.0, "mean": (0, 0, 0), "std": (1, 1, 1)}
    dataset = open_dataset(root, split)
    means, high, largest, changed = [], [], 0.0, 0
    count = min(limit, len(dataset))
    for index in range(count):
        pair = []
        for scaled in (True, False):
            dataset.transform = train_transform(scaled_decoding=scaled, **plain)  # type: ignore[arg-type]
            random.seed(index)
            pair.append(dataset[index][0])
        difference = 255 * (pair[0] - pair[1]).abs()
        if difference.any():
            changed += 1
            means.append(difference.mean().item())
            high.append(difference.flatten().quantile(0.99).item())
            largest = max(largest, difference.max().item())
    if not changed:
        return f"{count} pictures: every pixel equal.", {"changed": 0, "of": count}
    text = (
        f"{changed} of {count} samples were decoded at a fraction. Among them the mean difference is "
        f"{statistics.mean(means):.2f} levels of 255 (at most {max(means):.2f} in a sample), 99 of 100 pixels lie "
        f"within {max(high):.1f}, the largest is {largest:.0f}."
    )
    return text, {"changed": changed, "of": count, "mean": statistics.mean(means), "largest": largest}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=RawHelp)
    parser.add_argument("--folder", type=Path, nargs="*", default=[], help="folders with a folder for each class")
    parser.add_argument("--limit", type=int, default=200, help="images to read from each folder")
    parser.add_argument("--made", type=int, default=40, help="images of 1500 x 1000 to make and read too; 0: none")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each case, taken in turns")
    parser.add_argument("--name", default="input_pipeline", help="the results are written into NAME.json and NAME.md")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder to write the results into")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    sections: list[tuple[str, str]] = []
    data: dict[str, dict[str, object]] = {}
    shard_rows = []
    with tempfile.TemporaryDirectory() as temporary:
        places = [(folder.name, folder, ".") for folder in options.folder]
        if options.made:
            make_pictures(Path(temporary), options.made, 1500, 1000)
            places.append(("JPEGs of 1500 x 1000", Path(temporary), "train"))
        for name, root, split in places:
            rows, measured = compare_on(root, split, options.limit, options.rounds)
            text, bound = differences(root, split, options.limit)
            header = ["augmentation", "timm, images/s", "ours, images/s", "ratio", "of the rounds"]
            sections.append((name, table(header, rows) + "\n\n" + text))
            row, shards = compare_shards(root, split, options.limit, options.rounds)
            shard_rows.append([name, *row])
            data[name] = {"speed": measured, "difference": bound, "shards": shards}
    if shard_rows:
        header = ["crop and flip of", "folder, images/s", "shards, images/s", "ratio", "of the rounds", "rounds"]
        sections.append((f"{SHARDS} tar shards against the folder of the same files", table(header, shard_rows)))
    if not sections:
        parser.error("nothing to measure: give --folder or --made")
    sys.stdout.write(
        write_report(options.name, "Input pipeline, one core", sections, data, options.results).read_text()
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
