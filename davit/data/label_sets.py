"""Hold the labels of images that may have any number of them, also none."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

SEPARATOR = ";"  # between the labels of an image in a table
_UNIT = "\x1f"  # between those that are kept as one text: no name holds it


def joined(labels: Iterable[str]) -> str:
    """Write the labels of an image as one text; never "", which stands for labels that cannot be read."""
    return _UNIT + _UNIT.join(dict.fromkeys(labels))


def taken_apart(text: str | None) -> tuple[str, ...]:
    """Return the labels of which `joined` made a text."""
    return tuple(filter(None, text.split(_UNIT))) if text else ()


class LabelSets:
    """Keep the class indices of each image in two arrays, as `davit.data.source.Texts` keeps texts.

    Attributes:
        flat: the indices of all images, one after the other, int64.
        ends: for each image the end of its own in `flat`.
    """

    def __init__(self, sets: Iterable[Sequence[int]]) -> None:
        each = [sorted({*one}) for one in sets]
        self.ends = np.cumsum([len(one) for one in each], dtype=np.int64)
        self.flat = np.array([index for one in each for index in one], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, picture: int) -> list[int]:
        begin = int(self.ends[picture - 1]) if picture else 0
        found: list[int] = self.flat[begin : int(self.ends[picture])].tolist()
        return found

    def row(self, picture: int, width: int) -> np.ndarray[Any, Any]:
        """Return the target of an image, (width,) float32: 1 at its classes, else 0."""
        row = np.zeros(width, dtype=np.float32)
        row[self[picture]] = 1
        return row

    @property
    def sizes(self) -> np.ndarray[Any, Any]:
        """The number of labels of each image."""
        return np.diff(self.ends, prepend=0)

    @property
    def without(self) -> int:
        """The number of images without any label."""
        return int((self.sizes == 0).sum())

    def counts(self, width: int) -> np.ndarray[Any, Any]:
        """Count the images of each class, (width,) int64."""
        return np.bincount(self.flat, minlength=width)

    def renumbered(self, new: Mapping[int, int]) -> LabelSets:
        """Return the same labels under other class indices."""
        return LabelSets([new.get(index, index) for index in self[picture]] for picture in range(len(self)))
