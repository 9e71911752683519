"""Check the classes of data sets: those of train, of val, of the model and of a checkpoint against one another."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..choices import MULTILABEL
from ..text import some
from .errors import DataError
from .source import NO_CLASS

if TYPE_CHECKING:
    from .dataset import PictureDataset

log = logging.getLogger(__name__)


def check_classes(
    train: PictureDataset | None,
    val: PictureDataset | None = None,
    num_classes: int | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Raise `DataError` if train and val differ in classes, or if a model of `num_classes` does not fit.

    With a class map, or labels that are indices, the splits may hold any of the classes, and the indices must be below
    `num_classes`. Named data sets that do not tell their classes are not checked.

    Args:
        names: of the model's classes, where they are known.
    """
    if train and val and train.class_to_idx and val.class_to_idx and not (train.mapped or val.mapped):
        ours, theirs = set(train.class_to_idx), set(val.class_to_idx)
        if ours != theirs:
            alone = {"train": ours - theirs, "val": theirs - ours}
            only = "; ".join(f"only in {split}: {some(sorted(names))}" for split, names in alone.items() if names)
            raise DataError(
                f"train has {len(ours)} classes and val {len(theirs)}, not the same ones ({only}); `class_map=FILE` "
                "with a name per line says that it is meant so"
            )
    for dataset in (train, val):
        if dataset is None or num_classes is None or not dataset.class_to_idx:
            continue
        needed = max(dataset.class_to_idx.values()) + 1
        if needed > num_classes or (needed < num_classes and not dataset.mapped):
            have = f"the data has {needed} classes ({some(dataset.class_names, 5)}) and the model {num_classes}"
            remedy = f"pass `num_classes={needed}`"
            if names is not None:  # these are the classes of its weights
                have, remedy = f"{have} ({some(names, 5)})", "name the folders as the model's classes"
            raise DataError(f"{have}: {remedy}, or `class_map=FILE` to give the folders the model's class indices")


def labels_numbered(dataset: PictureDataset, names: Sequence[str], said_by: str) -> PictureDataset:
    """Number the labels of a data set of several labels as `names` are; it need not have all of them.

    Args:
        said_by: who knows these names, for the message.

    Raises:
        DataError: a label is none of them.
    """
    known = {*names}
    if unknown := [name for name in dataset.class_to_idx if name not in known]:
        raise DataError(
            f"the data has the labels {some(unknown)}, which {said_by} does not know ({some(names)}): correct them, "
            "or `class_map=FILE` with a name per line says which classes there are"
        )
    return dataset if dataset.class_names == list(names) else dataset.numbered(names)


def check_labels(train: PictureDataset, val: PictureDataset) -> None:
    """Look for labels that teach nothing, once `check_classes` has found that the splits fit.

    Classes without an image in one of the splits are warned of. Named data sets that do not tell their labels are not
    checked.

    Raises:
        DataError: all training images are of one class.
    """
    ours, theirs = _occurring(train), _occurring(val)
    if train.label_sets is None and len(train.class_to_idx if ours is None else ours) == 1:
        name = some(train.class_to_idx if ours is None else [train.class_names[index] for index in ours])
        raise DataError(
            f"every training image is of the class {name!r}: a classifier of one class is always right and learns "
            f"nothing. Add a class of images without it, such as background or other; or give --task {MULTILABEL}, "
            "where images may have no label"
        )
    if ours is None or theirs is None:
        return
    names = {index: name for split in (val, train) for name, index in split.class_to_idx.items()}
    if never := sorted(set(names) - ours):
        log.warning(
            "%d of %d classes never occur in training and are not learned (%s)%s.",
            *(len(never), len(names), some(names[index] for index in never)),
            f"; {len(theirs.intersection(never))} of them occur in val" if theirs.intersection(never) else "",
        )
    if unseen := sorted(ours - theirs):
        listed = some(names[index] for index in unseen)
        log.warning("%d classes have no image in val and are not evaluated (%s).", len(unseen), listed)


def in_other_order(trained: Sequence[str] | None, names: Sequence[str]) -> str:
    """Say where the same class names stand in another order than a model was trained on; "" where they do not."""
    if not trained or sorted(trained) != sorted(names) or len({*names}) < len(names):
        return ""
    differing = [index for index, name in enumerate(names) if trained[index] != name]
    if not differing:
        return ""
    index = differing[0]
    return (
        f"{len(differing)} of {len(names)} classes, as index {index} is {trained[index]} there and {names[index]} here"
    )


def _occurring(dataset: PictureDataset) -> set[int] | None:
    """List the class indices that have images; None where the source does not tell."""
    if dataset.label_sets is not None:
        return {*dataset.label_sets.flat.tolist()}
    targets = dataset.source.targets()
    return None if targets is None else {*targets} - {NO_CLASS}
