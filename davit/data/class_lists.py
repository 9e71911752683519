"""Read the lists of classes that labelling tools write beside masks."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import DataError

_NAMES = ("classes.txt", "class_names.txt", "codes.txt")  # a name per line, of many tools
# Roboflow's, CamVid's of Kaggle, CVAT's, CamVid's own.
_FILES = ("_classes.csv", "class_dict.csv", "labelmap.txt", "label_colors.txt", *_NAMES)
_LARGEST = 1 << 20  # bytes


@dataclass(frozen=True)
class ClassList:
    """Classes as a file lists them.

    Attributes:
        names: in the order of the file.
        colours: (R, G, B) of each, by which masks may be coloured; empty where it has none.
        values: the value of each in the masks; empty where that is its place in the list.
    """

    file: Path
    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...] = ()
    values: tuple[int, ...] = ()


def find_class_list(folders: Iterable[Path]) -> ClassList | None:
    """Find a list of classes in one of these folders; the first that there is.

    Raises:
        DataError: it is damaged.
    """
    for file in (folder / name for folder in folders for name in _FILES):
        if file.is_file() and file.stat().st_size <= _LARGEST:
            try:
                rows = list(_rows(file))
            except (OSError, ValueError, csv.Error) as error:
                raise DataError(
                    f"{file} is no list of classes: {error}. Correct it, or take it out and name the classes with "
                    "--classes."
                ) from error
            if rows:
                values = tuple(row[2] for row in rows if row[2] is not None)
                colours = tuple(row[1] for row in rows if row[1] is not None)
                return ClassList(
                    file,
                    tuple(row[0] for row in rows),
                    colours if len(colours) == len(rows) else (),
                    values if len(values) == len(rows) and values != tuple(range(len(rows))) else (),
                )
    return None


_Row = tuple[str, tuple[int, int, int] | None, int | None]  # name, colour, value


def _rows(file: Path) -> Iterator[_Row]:
    lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if file.suffix == ".csv":  # below a heading
        for cells in csv.reader(lines[1:], skipinitialspace=True):
            if len(cells) == 2:  # Roboflow: value, name
                yield cells[1].strip(), None, int(cells[0])
            elif len(cells) > 3:
                yield cells[0].strip(), _colour(cells[1:4]), None
            else:
                raise ValueError(f"{cells} is neither a value and a name nor a name and a colour")
    elif file.name == "labelmap.txt":  # CVAT: name:r,g,b:parts:actions
        for line in lines:
            if not line.startswith("#"):
                name, _, rest = line.partition(":")
                yield name, _colour(rest.split(":")[0].split(",")), None
    elif file.name == "label_colors.txt":  # CamVid: r g b name
        for line in lines:
            *numbers, name = line.split(None, 3)
            yield name, _colour(numbers), None
    else:
        yield from ((line, None, None) for line in lines)


def _colour(values: list[str]) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in values)
    if not all(0 <= value <= 255 for value in (red, green, blue)):
        raise ValueError(f"{red}, {green}, {blue} is no colour: three numbers from 0 to 255")
    return red, green, blue
