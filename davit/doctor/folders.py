"""Check a data folder: its layout, its classes, its files."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from logging.handlers import BufferingHandler
from pathlib import Path

from ..data import BadImageError, DataError, PictureDataset, check_classes, load_rgb, open_dataset
from ..data.coco import examine, read_annotations
from ..text import some
from .findings import Finding, error, ok, warning

_SHOWN = 20  # bad files that get a finding each; more are counted
_UNBALANCED = 20  # from so many times as many pictures in the largest class as in the smallest


def examine_folder(root: Path, limit: int | None) -> Iterator[Finding]:
    """Find what is wrong with a data folder of classification, detection (COCO) or segmentation (ADE20K).

    Args:
        limit: open no more than so many pictures of a split, evenly spread; None opens all.
    """
    if not root.exists():
        yield error("data", f"{root} does not exist", "give the folder that holds train/ and val/")
    elif any((root / "annotations").glob("instances_*.json")):
        yield from _coco(root, limit)
    elif (root / "images" / "training").is_dir() or (root / "images" / "validation").is_dir():
        yield from _ade(root, limit)
    else:
        yield from _classes(root, limit)


# --- classification ---


def _classes(root: Path, limit: int | None) -> Iterator[Finding]:
    splits: dict[str, PictureDataset] = {}
    for split in ("train", "validation"):
        try:
            with _warnings() as messages:
                splits[split] = open_dataset(root, split)
        except DataError as fault:
            yield error(split, str(fault), "train/ and val/ are expected, each with one folder a class")
            continue
        yield from (warning(split, text, "move or remove them, if that is not meant") for text in messages)
        yield from _counts(split, splits[split])
    if len(splits) == 2:
        try:
            check_classes(splits["train"], splits["validation"])
        except DataError as fault:
            yield error("classes", str(fault), "train and val need the same class folders")
        else:
            yield ok("classes", f"the same {len(splits['train'].class_names)} in train and val")
    for split, dataset in splits.items():
        files = [dataset.source.path(index) for index in range(len(dataset))]
        yield from _readable(split, files, limit, remedy="repair or remove it, or pass --skip-bad-images")


def _counts(split: str, dataset: PictureDataset) -> Iterator[Finding]:
    targets = dataset.source.targets()
    assert targets is not None  # a folder
    count = Counter(targets)
    names = dataset.class_names
    smallest, largest = min(count, key=count.__getitem__), max(count, key=count.__getitem__)
    text = f"{len(dataset)} pictures in {len(count)} classes, {count[smallest]} to {count[largest]} a class"
    if count[largest] > _UNBALANCED * count[smallest]:
        remedy = "accuracy will say little about the small ones: add pictures to them, or look at each class"
        yield warning(split, f"{text} ({names[smallest]} has least, {names[largest]} most)", remedy)
    else:
        yield ok(split, text)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect what the data package warns of, in place of the log; the list is complete at the end."""
    logger, handler, messages = logging.getLogger("davit.data"), BufferingHandler(10_000), list[str]()
    handler.setLevel(logging.WARNING)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        messages += [record.getMessage() for record in handler.buffer]
        logger.removeHandler(handler)
        logger.propagate = propagate


# --- files ---


def _readable(subject: str, files: Sequence[str], limit: int | None, remedy: str) -> Iterator[Finding]:
    """Open pictures to the last pixel; yield a finding for each bad one."""
    chosen = files
    if limit is not None and len(files) > limit:
        chosen = [files[index * len(files) // limit] for index in range(limit)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        bad = [fault for fault in pool.map(_why_bad, chosen) if fault is not None]
    yield from (error(subject, f"{file}: {reason}", remedy) for file, reason in bad[:_SHOWN])
    if len(bad) > _SHOWN:
        yield error(subject, f"and {len(bad) - _SHOWN} more unreadable files", remedy)
    if not bad:
        share = "all" if len(chosen) == len(files) else f"{len(chosen)} of"
        yield ok(subject, f"{share} {len(files)} files were opened and can be read")


def _why_bad(file: str) -> tuple[str, str] | None:
    try:
        load_rgb(file)
    except BadImageError as fault:
        return fault.file, fault.reason
    except OSError as failure:
        return file, f"the machine failed ({failure.strerror})"
    return None


# --- detection and segmentation ---


def _coco(root: Path, limit: int | None) -> Iterator[Finding]:
    for file in sorted((root / "annotations").glob("instances_*.json")):
        split = file.stem.removeprefix("instances_")
        folder = root / split
        try:
            contents = read_annotations(file)
            found = examine(contents, file, folder, data_check=False)  # all of each picture is read below
            if not found.faults:
                yield ok(split, str(found.summary))
        except (OSError, ValueError, TypeError) as fault:
            yield error(split, str(fault), "fetch it anew")
            continue
        remedy = "unpack all of the data set there, or fetch it anew"
        yield from (error(split, f"{file}: {text}", remedy) for text in found.faults)
        yield from (warning(split, f"{file}: {text}", "look at the entry that is named") for text in found.notes)
        files = [str(folder / image["file_name"]) for image in contents["images"]]
        yield from _readable(split, [name for name in files if Path(name).is_file()], limit, remedy="fetch it anew")


def _ade(root: Path, limit: int | None) -> Iterator[Finding]:
    for split in ("training", "validation"):
        pictures = {path.stem: path for path in (root / "images" / split).glob("*.jpg")}
        masks = {path.stem: path for path in (root / "annotations" / split).glob("*.png")}
        if not pictures:
            yield error(split, f"no pictures (.jpg) in {root / 'images' / split}", "unpack ADEChallengeData2016 there")
            continue
        if unpaired := sorted(set(pictures) ^ set(masks)):
            text = f"of {len(pictures)} pictures and {len(masks)} masks {len(unpaired)} have no partner"
            remedy = f"each images/{split}/NAME.jpg needs its annotations/{split}/NAME.png"
            yield error(split, f"{text} ({some(unpaired, 3)})", remedy)
        else:
            yield ok(split, f"{len(pictures)} pictures, each with its mask")
        files = [str(path) for path in (*sorted(pictures.values()), *sorted(masks.values()))]
        yield from _readable(split, files, limit, remedy="fetch it anew")
