"""Note on which classes and files a run stands, and compare them with those that it goes on with."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..data import PictureDataset
from ..text import some
from .build import Data
from .distributed import World

log = logging.getLogger(__name__)

SPLITS = ("train", "val")
_ACCEPT = "--accept-changed-data"


def facts_of(data: Data, world: World) -> dict[str, dict[str, Any]]:
    """Note the number of pictures of each split and a hash of its list of files with their classes.

    Contents, sizes and times of the files have no part in it: a copy of a data set is the same data.

    Raises:
        ValueError: the processes of the job see different lists, as where machines hold different copies.
    """
    facts = {"train": _facts_of_split(data.train), "val": _facts_of_split(data.val)}
    for rank, theirs in enumerate(world.gather(facts)):
        differing = [split for split in SPLITS if theirs[split] != facts[split]]
        if differing:
            split = differing[0]
            raise ValueError(
                f"process {rank} finds other {split} pictures than process {world.rank}: "
                f"{theirs[split]['pictures']} and {facts[split]['pictures']}, in lists that differ. All machines of a "
                "job need the same files."
            )
    return facts


def _facts_of_split(dataset: PictureDataset) -> dict[str, Any]:
    targets = dataset.source.targets()
    if targets is None:  # a source that would have to open each picture
        return {"pictures": len(dataset), "files": None}
    digest = hashlib.blake2b("\0".join(dataset.filenames()).encode(errors="surrogateescape"), digest_size=16)
    digest.update(np.asarray(targets, dtype="<i8").tobytes())
    return {"pictures": len(dataset), "files": digest.hexdigest()}


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
        remedy += f", or go on with {_ACCEPT}: each output then learns anew what its index stands for"
    else:
        remedy += ", or start a new run from the weights with --initial-checkpoint FILE, which leaves the head out"
    raise ValueError(f"the classes are not those that the state was trained on: {differs}. Either {remedy}.")


def compare_files(
    before: Mapping[str, Mapping[str, Any]] | None,
    now: Mapping[str, Mapping[str, Any]],
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
        log.info(
            "The state is of an earlier version, which did not note its files: whether they are the same is not seen."
        )
        return set()
    differing = [split for split in SPLITS if dict(before[split]) != dict(now[split])]
    if not differing:
        return set()
    what = "; ".join(
        f"{split} has {now[split]['pictures']} pictures and had {before[split]['pictures']}"
        if now[split]["pictures"] != before[split]["pictures"]
        else f"{split} has {now[split]['pictures']} pictures as before, but other names, classes or another order"
        for split in differing
    )
    follows = []
    if "train" in differing:
        follows.append(
            f"epoch {epoch} begins anew on the weights as they are: all its pictures are seen, those of its {step} "
            f"steps done (about {pictures}) once more"
            if step
            else f"from epoch {epoch} on, the order of the pictures is another"
        )
    if "val" in differing:
        follows.append("epochs kept so far were measured on other pictures and are set aside")
    if step and not accepted:
        raise ValueError(
            f"the list of files is not that of the state, which was saved within epoch {epoch}, after step {step}: "
            f"{what}. Put the data back as they were, or go on with {_ACCEPT}: {'; '.join(follows)}."
        )
    log.warning("The list of files is not that of the state: %s. What follows: %s.", what, "; ".join(follows))
    return {*differing}
