"""Split the accuracy by what a csv says of each image: camera, place, age, weather."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data import DataError, PictureDataset
from ..data.listing import natural_key
from ..data.tables import PICTURES, read_cells
from ..text import as_line, original, some
from .records import Outcomes, wilson

log = logging.getLogger(__name__)

EMPTY = "(no value)"
ABSENT = "(not in the csv)"

_LOGGED = 20  # values of a column, at most


@dataclass(frozen=True)
class Slices:
    """What a csv says of the images of a data set.

    Attributes:
        values: column -> a value for each image by its position; `EMPTY` for an empty cell, `ABSENT` for an image
            that has no row.
    """

    values: dict[str, list[str]]


def read_slices(file: str | Path, dataset: PictureDataset, root: str | Path | None = None) -> Slices:
    """Read a csv with a column of paths, and others that say something of each image.

    A path may be absolute, or start at the split's folder, at the data folder `root`, or at the csv's own. Images
    without a row and rows without an image are warned of by name.

    Raises:
        DataError: it is no such csv, none of its paths is an image of the data set, or one has two rows that differ.
    """
    file = Path(file)
    if not file.is_file():
        raise DataError(f"--slices {file}: there is no such file; a csv with a column path, and others, is needed")
    _, table = read_cells(file)
    header = [cell.strip() for cell in table[0][1]] if table else []
    picture = next((header.index(name) for name in _path_names(header)), None)
    columns = {at: name for at, name in enumerate(header) if at != picture and name}
    if picture is None or not columns or len(set(columns.values())) < len(columns):
        raise DataError(
            f"--slices {file}: its first row must name the columns, each once: path, and one or more others; it holds "
            f"{some(header) or 'nothing'}"
        )
    found: dict[int, tuple[str, ...]] = {}
    strays: list[str] = []
    finder = _Finder(dataset, file, root)
    for line, cells in table[1:]:
        cells = [cell.strip() for cell in cells] + [""] * (len(header) - len(cells))
        index = finder.index(cells[picture]) if cells[picture] else None
        values = tuple(cells[at] or EMPTY for at in columns)
        if index is None:
            strays.append(cells[picture] or f"line {line}, which has no path")
        elif found.setdefault(index, values) != values:
            raise DataError(f"--slices {file}, line {line}: {as_line(cells[picture])} has two rows that differ")
    if not found:
        raise DataError(
            f"--slices {file}: none of its {len(table) - 1} rows is of an image of the data; it has paths such as "
            f"{some(strays, 2)}, and the data {some((dataset.filename(i) for i in range(min(2, len(dataset)))), 2)}"
        )
    if strays:
        log.warning("%s: %d rows are of no image of the data: %s", as_line(file), len(strays), some(strays))
    if absent := [dataset.filename(index) for index in range(len(dataset)) if index not in found]:
        log.warning("%s has no row for %d of %d images: %s", as_line(file), len(absent), len(dataset), some(absent))
    nothing = (ABSENT,) * len(columns)
    rows = [found.get(index, nothing) for index in range(len(dataset))]
    return Slices({name: [row[at] for row in rows] for at, name in enumerate(columns.values())})


def _path_names(header: Sequence[str]) -> Iterator[str]:
    """Yield the columns that may hold the paths, the likeliest first, as they are written in the header."""
    for usual in PICTURES:
        yield from (name for name in header if name.lower() == usual)


class _Finder:
    """Find the position of an image by a path that starts anywhere sensible."""

    def __init__(self, dataset: PictureDataset, file: Path, root: str | Path | None) -> None:
        self._position: dict[str, int] = {}
        for index in range(len(dataset)):
            for name in (dataset.filename(index), os.path.abspath(dataset.source.path(index))):  # noqa: PTH100
                self._position.setdefault(os.path.normpath(name), index)
        self._starts = [str(start) for start in (root, file.parent, ".") if start is not None]

    def index(self, path: str) -> int | None:
        for spelled in dict.fromkeys((path, original(path), path.replace("\\", "/"))):
            if (found := self._position.get(os.path.normpath(spelled))) is not None:
                return found
            for start in self._starts:
                if (found := self._position.get(os.path.abspath(os.path.join(start, spelled)))) is not None:  # noqa: PTH100, PTH118
                    return found
        return None


def accuracy_by_slice(slices: Slices, outcomes: Outcomes) -> list[dict[str, Any]]:
    """Return a row for each value of each column: images, right ones, top-1 in percent and its 95 % interval.

    Values are in natural order, what has none at the end. Images without a label are not counted.
    """
    scored = outcomes.only(outcomes.scored)
    rows: list[dict[str, Any]] = []
    for column, values in slices.values.items():
        of_each = np.array([values[index] for index in scored.index.tolist()], dtype=object)
        distinct = sorted({*of_each}, key=lambda value: (value in (EMPTY, ABSENT), natural_key(value)))
        for value in distinct:
            right = scored.right[of_each == value]
            correct = int(right.sum())
            low, high = wilson(correct, len(right))
            counts = {"column": column, "value": value, "count": len(right), "correct": correct}
            rows.append({**counts, "top1": 100 * correct / len(right), "top1_low": 100 * low, "top1_high": 100 * high})
    return rows


def log_slices(rows: Sequence[dict[str, Any]]) -> None:
    """Log the rows, a line each; of a column with many values the worst ones."""
    for column in dict.fromkeys(row["column"] for row in rows):
        mine = [row for row in rows if row["column"] == column]
        shown = mine if len(mine) <= _LOGGED else sorted(mine, key=lambda row: row["top1_high"])[:_LOGGED]
        if len(shown) < len(mine):
            log.info("%s has %d values; those that are clearly worst:", as_line(column), len(mine))
        for row in shown:
            log.info(
                "%s = %s: top-1 %.2f %% (95 %% interval %.2f to %.2f), %d images",
                *(
                    as_line(column),
                    as_line(row["value"]),
                    row["top1"],
                    row["top1_low"],
                    row["top1_high"],
                    row["count"],
                ),
            )
