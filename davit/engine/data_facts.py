"""Note on which classes and files a run stands, and compare them with those that it continues with."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from ..data import BadImageError, DataError, PictureDataset
from ..files import open_regular
from ..text import some
from .build import Data
from .distributed import World

log = logging.getLogger(__name__)

Facts: TypeAlias = Mapping[str, Mapping[str, Any]]
"""By split, as `facts_of` notes them."""
SPLITS = ("train", "val")
_ACCEPT = "--accept-changed-data"
_MOST_CONTENTS = 128  # images of a split that are looked into: a second on a slow network disk
_BEGINNING = 1 << 16  # bytes


def facts_of(data: Data, world: World) -> dict[str, dict[str, Any]]:
    """Note of each split the number of images, a hash of its list of files with their classes, and a few contents.

    Places and times of the files have no part in it: a copy of a data set is the same data.

    Raises:
        ValueError: the processes of the job see different lists, as where machines hold different copies.
    """
    splits = {"train": data.train, "val": data.val}
    facts = {name: _list_of(split) for name, split in splits.items()}
    for rank, theirs in enumerate(world.gather(facts)):
        differing = [split for split in SPLITS if theirs[split] != facts[split]]
        if differing:
            split = differing[0]
            raise ValueError(
                f"process {rank} finds other {split} images than process {world.rank}: "
                f"{theirs[split]['pictures']} and {facts[split]['pictures']}, in lists that differ. All machines of a "
                "job need the same files."
            )
    contents = world.broadcast(
        world.on_main(lambda: {name: _contents_of(split) for name, split in splits.items()}) or {}
    )
    return {name: {**facts[name], "contents": contents[name]} for name in SPLITS}


def _list_of(dataset: PictureDataset) -> dict[str, Any]:
    sets = dataset.label_sets
    targets = dataset.source.targets() if sets is None else [*sets.flat.tolist(), *sets.ends.tolist()]
    if targets is None:  # its names may cost as much as its images
        return {"pictures": len(dataset), "classes": None, "files": None}
    classes = hashlib.blake2b(np.asarray(targets, dtype="<i8").tobytes(), digest_size=16)
    files = hashlib.blake2b("\0".join(dataset.filenames()).encode(errors="surrogateescape"), digest_size=16)
    return {"pictures": len(dataset), "classes": classes.hexdigest(), "files": files.hexdigest()}


def _looked_at(dataset: PictureDataset) -> list[int]:
    """Choose the positions whose contents are noted: all of a few, else the first of each class and some between."""
    count, targets = len(dataset), dataset.source.targets()
    if count <= _MOST_CONTENTS:
        return list(range(count))
    firsts = np.arange(0) if targets is None else np.sort(np.unique(targets, return_index=True)[1])
    half = _MOST_CONTENTS // 2
    chosen = firsts[np.linspace(0, len(firsts) - 1, half, dtype=int)] if len(firsts) > half else firsts
    between = np.linspace(0, count - 1, _MOST_CONTENTS - len(chosen), dtype=int)
    return np.union1d(chosen, between).tolist()


def _contents_of(dataset: PictureDataset) -> list[list[Any]]:
    """Note of some images the class index and a hash of length and beginning; "" for those that cannot be read."""
    return [_content(dataset, position) for position in _looked_at(dataset)]


def _content(dataset: PictureDataset, position: int) -> list[Any]:
    target = 0
    try:
        stored, target = dataset.source.open(position)
        target = 0 if dataset.label_sets is not None else target  # several: the list of classes tells them
        if isinstance(stored, Image.Image | np.ndarray):  # opened by a library
            stored = io.BytesIO(stored.tobytes())
        elif isinstance(stored, str | Path):
            stored = open_regular(stored)
        with stored:
            begin = stored.read(_BEGINNING)
            length = stored.seek(0, os.SEEK_END)
    except (OSError, BadImageError, DataError):  # whoever needs the image says what is wrong
        return [int(target), ""]
    return [int(target), hashlib.blake2b(begin + length.to_bytes(8, "little"), digest_size=8).hexdigest()]


def _list_in(facts: Facts, split: str) -> tuple[Any, ...]:
    return tuple(facts[split][fact] for fact in ("pictures", "classes", "files"))


def _is_renamed(before: Facts, now: Facts, split: str) -> bool:
    """Return whether these are the same images in the same order under other names, such as in another form."""
    same = all(before[split][fact] == now[split][fact] for fact in ("pictures", "classes"))
    contents = now[split]["contents"]
    return same and before[split].get("contents") == contents and all(content for _, content in contents)


def compare_classes(before: Sequence[str], now: Sequence[str], *, same_outputs: bool, accepted: bool) -> None:
    """Compare class names and their order with those of a state; those accepted are warned of.

    Args:
        same_outputs: the model has as many outputs as then.
        accepted: --accept-changed-data is given.

    Raises:
        ValueError: they differ, so that an output of the model would stand for another class than it has learned.
    """
    if list(before) == list(now) or not before or not now:  # a named data set may not tell its classes
        return
    gone, new = sorted({*before} - {*now}), sorted({*now} - {*before})
    moved = [(at, one, two) for at, (one, two) in enumerate(zip(before, now, strict=False)) if one != two]
    parts = [
        f"no longer there: {some(gone)}" if gone else "",
        f"new: {some(new)}" if new else "",
        "at another index: " + some(f"{at} was {one} and is {two}" for at, one, two in moved) if moved else "",
    ]
    differs = f"{len(before)} classes then, {len(now)} now; " + "; ".join(part for part in parts if part)
    if accepted and same_outputs:
        log.warning(
            "Other classes, as %s accepts: %s. Each output learns what its index stands for now.", _ACCEPT, differs
        )
        return
    remedy = "put the data back as they were"
    if not gone and not new:
        remedy += ", or give --class-map FILE with the names in their former order"
    if same_outputs:
        remedy += f", or continue with {_ACCEPT}: each output then learns again what its index stands for"
    else:
        remedy += ", or start a new run from the weights with --initial-checkpoint FILE, which leaves the head out"
    raise ValueError(f"the classes are not those that the checkpoint was trained on: {differs}. Either {remedy}.")


def compare_files(
    before: Facts | None,
    now: Facts,
    *,
    epoch: int,
    step: int,
    pictures: int,
    accepted: bool,
) -> set[str]:
    """Compare the lists of files with those of a state, and return the splits that differ, which are warned of.

    Args:
        before: as `facts_of` noted them; None for a state of an earlier version.
        step: of the epoch, 0 where no step of it is done or none is left.
        pictures: that the steps done have used.
        accepted: --accept-changed-data is given.

    Raises:
        ValueError: they differ within an epoch and are not accepted.
    """
    if before is None:
        log.info("The checkpoint is of an earlier version, which did not note its files, so they are not compared.")
        return set()
    differing = [split for split in SPLITS if _list_in(before, split) != _list_in(now, split)]
    if renamed := [split for split in differing if _is_renamed(before, now, split)]:
        log.warning(
            "Images of %s have other names than in the checkpoint. Their number, classes and order are the same, and "
            "so are the contents that were compared: they are taken for the same.",
            " and ".join(renamed),
        )
        differing = [split for split in differing if split not in renamed]
    if not differing:
        return set()
    what = "; ".join(
        f"{split} has {now[split]['pictures']} images and had {before[split]['pictures']}"
        if now[split]["pictures"] != before[split]["pictures"]
        else f"{split} has {now[split]['pictures']} images as before, but other names, classes or another order"
        for split in differing
    )
    follows = []
    if "train" in differing:
        follows.append(
            f"epoch {epoch} starts again on the weights as they are: all its images are seen, those of its {step} "
            f"steps done (about {pictures}) once more"
            if step
            else f"from epoch {epoch} on, the order of the images is another"
        )
    if "val" in differing:
        follows.append("epochs kept so far were measured on other images and are set aside")
    if step and not accepted:
        raise ValueError(
            f"the list of files is not that of the checkpoint, which was saved within epoch {epoch}, after step "
            f"{step}: {what}. Put the data back as they were, or continue with {_ACCEPT}: {'; '.join(follows)}."
        )
    log.warning("The list of files is not that of the checkpoint: %s. What follows: %s.", what, "; ".join(follows))
    return {*differing}


def compare_pairs(before: Facts | None, now: Facts, names: Sequence[str], *, accepted: bool) -> None:
    """Look whether the images of a class are those that another one had, which lists of files need not show.

    Args:
        names: of the classes.
        accepted: --accept-changed-data is given; then it is a warning.

    Raises:
        ValueError: at least half of the images of a class that were compared are those of another one.
    """
    for split in SPLITS if before is not None else ():
        assert before is not None
        classes: dict[str, set[int]] = {}
        for target, content in before[split].get("contents", []):
            classes.setdefault(content, set()).add(target)
        origins: dict[int, list[int]] = {}  # class index -> those that its images had
        for target, content in now[split]["contents"]:
            then = classes.get(content, {target}) if content else {target}
            origins.setdefault(target, []).append(target if target in then else min(then))
        exchanged = {}
        for target, had in origins.items():
            others = [one for one in had if one != target]
            if 2 * len(others) >= len(had):
                exchanged[target] = max(others, key=others.count)
        if not exchanged:
            continue
        called = dict(enumerate(names))
        text = f"images of {split} have been exchanged between classes: " + some(
            f"{called.get(target, target)} holds those of {called.get(origin, origin)}"
            for target, origin in exchanged.items()
        )
        if not accepted:
            raise ValueError(
                f"{text}. Put the data back as they were, or continue with {_ACCEPT}: each output then learns again "
                "what its class holds now."
            )
        log.warning("%s. As %s accepts, each output learns what its class holds now.", text, _ACCEPT)


def name_replaced(before: Facts | None, now: Facts, data: Data) -> None:
    """Warn of images that have another content under the same name, among those that were compared."""
    for split, dataset in zip(SPLITS, (data.train, data.val), strict=True):
        if before is None or _list_in(before, split) != _list_in(now, split):
            continue
        old, new = before[split].get("contents", []), now[split]["contents"]
        changed = [
            dataset.filename(at)
            for at, (_, one), (_, two) in zip(_looked_at(dataset), old, new, strict=False)
            if one and two and one != two
        ]
        if changed:
            log.warning(
                "%d of %d images of %s that were compared have another content under the same name: %s. The run "
                "continues with what they hold now.",
                *(len(changed), len(new), split, some(changed, 4)),
            )
