"""Name the classes of a model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..data import DataError, open_dataset
from ..data.imagenet import imagenet, readable_names
from ..data.source import read_class_map
from ..text import some

log = logging.getLogger(__name__)

IMAGENET_CLASSES = 1000


def class_names(
    num_classes: int, *, noted: Sequence[str] | None = None, source: str | Path | None = None
) -> tuple[str, ...]:
    """Name each class of a model.

    Args:
        noted: the names that the checkpoint's training noted; taken where there is no `source`.
        source: a class map (.txt with a name per line), or a data folder, whose class folders are the names.

    Returns:
        `num_classes` names: those of the source or of the training, ImageNet's where there are neither and 1000
        classes, else "class 0" and so on. ImageNet's ids (n02124075) are put into words.

    Raises:
        DataError: `source` cannot be read, or names other classes than the model has.
    """
    if source:
        return readable_names(names_in(Path(source), num_classes))
    if noted is not None and len(noted) == num_classes:
        return readable_names(noted)
    if noted is not None:
        log.warning("the checkpoint names %d classes and its model has %d: not used", len(noted), num_classes)
    if num_classes == IMAGENET_CLASSES:
        return readable_names(imagenet().label_names())
    return tuple(f"class {index}" for index in range(num_classes))


def names_in(source: Path, num_classes: int) -> list[str]:
    """Read the names of a model's classes from a class map or a data folder (errors as in `class_names`)."""
    if source.is_dir():
        try:
            mapping: Mapping[str, int] = open_dataset(source, "train").class_to_idx
        except DataError:
            mapping = open_dataset(source, "validation").class_to_idx
    else:
        mapping = read_class_map(source, source.parent)
    by_index = {index: name for name, index in mapping.items()}
    if max(by_index) >= num_classes or (len(by_index) < num_classes and source.is_dir()):
        raise DataError(
            f"{source} names {max(by_index) + 1} classes and the model has {num_classes}: it belongs to another model"
        )
    if missing := [index for index in range(num_classes) if index not in by_index]:
        log.warning(
            "%s names %d of the model's %d classes: index %s has no name there.",
            *(source, len(by_index), num_classes, some(missing, 5)),
        )
    return [by_index.get(index, f"class {index}") for index in range(num_classes)]
