"""Say what a source of images is, and number and order what a list of names and labels holds."""

from __future__ import annotations

import io
import itertools
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from timm.data.readers.class_map import load_class_map

from ..files import read_small
from ..limits import MOST_CLASSES, short
from ..text import as_line, some
from .decode import Stored
from .errors import DataError
from .label_sets import LabelSets, taken_apart
from .listing import natural_key

log = logging.getLogger(__name__)

NO_CLASS = -1  # of an image that cannot be read, and whose label cannot be either

_WHOLE = re.compile(r"(\d{1,18})(?:\.0*)?", re.ASCII)  # a table's index column may hold 3.0
_SIGNED = re.compile(r"[-+]?\d+(?:\.\d*)?", re.ASCII)
_MOST_BYTES = 1 << 26  # of a class map
_LONGEST = 4096  # characters of a path or a class name

ClassMap: TypeAlias = str | Path | dict[str, int] | None


class Source(Protocol):
    """Where images come from: a folder, a table, shards, a named data set, a list."""

    class_to_idx: dict[str, int]

    def __len__(self) -> int: ...

    def filename(self, index: int) -> str:
        """Name an image for predictions and reports: by its file below the split folder, where it has one."""

    def names(self) -> Sequence[str]:
        """List what `filename` says of all images: for a million of them in less than a second."""

    def path(self, index: int) -> str:
        """Name an image for errors and lists of bad ones."""

    def targets(self) -> Sequence[int] | None:
        """List the class indices of all images; None where only opening the images would tell.

        Also None where an image may have several: then the source has `label_sets`.
        """

    def open(self, index: int) -> tuple[Stored, int]:
        """Return an image as it is stored, and its class index; decoding is the data set's work."""


class Texts:
    """Keep many short texts in two arrays: a worker that touches a list of objects copies its pages.

    Unlike numpy's own arrays of texts they take no more memory where one is long. Names of files may hold any bytes.
    """

    def __init__(self, texts: Iterable[str | bytes]) -> None:
        encoded = [text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape") for text in texts]
        self.ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        self.joined = np.frombuffer(b"".join(encoded), dtype=np.uint8)

    @classmethod
    def of(cls, joined: np.ndarray[Any, Any], ends: np.ndarray[Any, Any]) -> Texts:
        """Take the two arrays of another `Texts`, as they come from a file."""
        texts = cls.__new__(cls)
        texts.joined, texts.ends = joined, ends
        return texts

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[str]:
        """Yield all, much faster than one by one: decoded at once where they are UTF-8."""
        text, ends = self._as_one()
        bounds = itertools.pairwise([0, *ends.tolist()])
        if isinstance(text, str):
            return (text[begin:end] for begin, end in bounds)
        return (text[begin:end].decode("utf-8", "surrogateescape") for begin, end in bounds)

    def _as_one(self) -> tuple[str | bytes, np.ndarray[Any, Any]]:
        """Join all to one text and return where each ends in it; bytes where that cannot be told of a text."""
        joined, ends = self.joined.tobytes(), self.ends
        if joined.isascii():
            return joined.decode("ascii"), ends
        begins = (self.joined & 0xC0) != 0x80  # bytes with which a sign of UTF-8 begins
        first = np.concatenate([[0], ends[:-1]])
        if not (first < ends).all() or not begins[first].all():  # an empty one, or the rest of a sign
            return joined, ends
        try:
            return joined.decode("utf-8"), np.cumsum(np.add.reduceat(begins, first, dtype=np.int64))
        except UnicodeDecodeError:
            return joined, ends

    def __getitem__(self, index: int) -> str:
        begin = int(self.ends[index - 1]) if index else 0
        return self.joined[begin : int(self.ends[index])].tobytes().decode("utf-8", "surrogateescape")


class Listed:
    """Hold the names, the order and the class indices of images that are listed with their labels.

    The order is the natural one of CLASS/NAME, as a folder of the same images has it, whatever the order of the list
    and however the images are spread over files. Subclasses say how an image is opened.

    Images that may have several labels are in the order of their names alone.

    Attributes:
        order: for each position, the place in the list that it was made from.
        is_indexed: the class indices are the labels themselves, or stand in the data beside the classes' names.
        label_sets: the classes of each position, where an image may have several; else None.
    """

    def __init__(
        self,
        place: str | Path,
        names: Sequence[str],
        labels: Sequence[str | None],
        class_map: ClassMap = None,
        *,
        indices: bool = True,
        class_names: Sequence[str] = (),
        several: bool = False,
    ) -> None:
        """Number the classes, leave out what a class map does not name, and sort.

        Args:
            place: the folder, table or shards, for messages.
            labels: the class of each image, by name or index; None where it cannot be read.
            class_map: names and their indices, which replace those of the data, or a file of them.
            indices: labels that are all whole numbers are class indices, not names.
            class_names: the names of the indices 0, 1, ..., where the data tell them.
            several: each text of `labels` is made of all labels of an image, by `label_sets.joined`.

        Raises:
            DataError: the labels cannot be numbered, or none is in the class map; one that is not, where there are
                several.
        """
        if not names:
            raise DataError(f"{place} lists no images")
        self.label_sets: LabelSets | None = None
        sets = [taken_apart(label) for label in labels] if several else []
        distinct = {label for one in sets for label in one} or {label for label in labels if label and not several}
        if (longest := max(map(len, itertools.chain(distinct, names)), default=0)) > _LONGEST:
            raise DataError(f"{place}: a name or a label has {longest} characters, so it is none")
        folder = Path(place) if Path(place).is_dir() else Path(place).parent
        mapping = read_class_map(class_map, folder) if class_map else None
        if several and not distinct and not class_names and mapping is None:
            raise DataError(f"{place}: none of its {len(names)} images has a label, so there is no class")
        self.class_to_idx, index_of, self.is_indexed = _number(place, distinct, mapping, indices, class_names)
        if several:
            self._keep_several(place, names, sets, index_of, class_map)
            return
        numbered = [NO_CLASS if label is None else index_of.get(label, None) for label in labels]
        if left_out := sorted(distinct.difference(index_of), key=natural_key):
            log.warning("%s: classes not in the class map are left out: %s", place, some(left_out))
        kept = [at for at, number in enumerate(numbered) if number is not None]
        if not kept:
            found: list[str] = sorted(distinct, key=natural_key)
            raise DataError(f"{place}: none of its classes ({some(found)}) is in the class map {class_map}")
        kept.sort(key=lambda at: natural_key(_below_class(names[at], labels[at])))
        self.order = np.array(kept, dtype=np.int64)
        self._names = Texts(names[at] for at in kept)
        self._targets = np.array([numbered[at] for at in kept], dtype=np.int64)

    def _keep_several(
        self,
        place: str | Path,
        names: Sequence[str],
        sets: Sequence[Sequence[str]],
        index_of: Mapping[str, int],
        class_map: ClassMap,
    ) -> None:
        """Keep images with any number of labels, by the order of their names."""
        for name, labels in zip(names, sets, strict=True):
            if unknown := [label for label in labels if label not in index_of]:
                raise DataError(
                    f"{place}: {name} has the labels {some(unknown)}, which the class map {as_line(class_map)} does "
                    "not name: add them there, or take them out of the labels"
                )
        kept = sorted(range(len(names)), key=lambda at: natural_key(names[at]))
        self.order = np.array(kept, dtype=np.int64)
        self._names = Texts(names[at] for at in kept)
        self._targets = np.full(len(kept), NO_CLASS, dtype=np.int64)
        self.label_sets = LabelSets([index_of[label] for label in sets[at]] for at in kept)

    def __len__(self) -> int:
        return len(self.order)

    def filename(self, index: int) -> str:
        return self._names[index]

    def names(self) -> list[str]:
        return list(self._names)

    def targets(self) -> list[int] | None:
        return None if self.label_sets is not None else self._targets.tolist()

    def target(self, index: int) -> int:
        """Return the class index of an image."""
        return int(self._targets[index])


class Files(Listed):
    """Hold images that are files, by their paths below a folder, or absolute ones."""

    folder: Path

    def path(self, index: int) -> str:
        return str(self.folder / self.filename(index))

    def open(self, index: int) -> tuple[str, int]:
        return self.path(index), self.target(index)


class Renumbered:
    """Show a source under other class indices: each class by its name."""

    def __init__(self, source: Source, class_to_idx: dict[str, int]) -> None:
        self.source = source
        self.class_to_idx = class_to_idx
        self._new = {index: class_to_idx[name] for name, index in source.class_to_idx.items()}
        sets: LabelSets | None = getattr(source, "label_sets", None)
        self.label_sets = None if sets is None else sets.renumbered(self._new)

    def __len__(self) -> int:
        return len(self.source)

    def filename(self, index: int) -> str:
        return self.source.filename(index)

    def names(self) -> Sequence[str]:
        return self.source.names()

    def path(self, index: int) -> str:
        return self.source.path(index)

    def targets(self) -> list[int] | None:
        targets = self.source.targets()
        return None if targets is None else [self._new.get(target, target) for target in targets]

    def open(self, index: int) -> tuple[Stored, int]:
        stored, target = self.source.open(index)
        return stored, self._new.get(target, target)


def _below_class(name: str, label: str | None) -> str:
    """Name an image as CLASS/NAME, unless it lies in a folder of its class already."""
    if label is None or name.rpartition("/")[0].rpartition("/")[2] == label:
        return name
    return f"{label}/{name}"


def _number(
    place: str | Path, labels: set[str], class_map: Mapping[str, int] | None, indices: bool, class_names: Sequence[str]
) -> tuple[dict[str, int], dict[str, int], bool]:
    """Return the indices of the classes by name and those of the labels, and whether the data fix them."""
    whole = _whole_numbers(labels) if indices or class_names else None
    if whole is not None and class_names:
        if wrong := [label for label, index in whole.items() if index >= len(class_names)]:
            raise DataError(f"{place}: the labels {some(wrong)} are not indices of its {len(class_names)} class names")
        labels_of = {label: class_names[index] for label, index in whole.items()}
    else:
        labels_of = {label: label for label in labels}
    if class_map:
        by_name = {label: class_map[name] for label, name in labels_of.items() if name in class_map}
        if not by_name and whole is not None:  # indices, and the class map is there for the names
            known = set(class_map.values())
            by_name = {label: index for label, index in whole.items() if index in known}
        return dict(class_map), by_name, True
    if whole is None:
        if indices and labels and all(_SIGNED.fullmatch(label) for label in labels):
            raise DataError(f"{place}: the labels {some(sorted(labels))} are numbers, and class indices are 0 or more")
        numbered = {name: index for index, name in enumerate(sorted(labels, key=natural_key))}
        return numbered, numbered, False
    if class_names:
        return {name: index for index, name in enumerate(class_names)}, whole, True
    highest = max(whole.values())
    if highest >= MOST_CLASSES:
        raise DataError(
            f"{place}: its labels are numbers up to {highest}, which cannot be class indices from 0 on: give "
            "`class_map=FILE` with such a label a line"
        )
    return {str(index): index for index in range(highest + 1)}, whole, True


def _whole_numbers(labels: set[str]) -> dict[str, int] | None:
    """Read labels as whole numbers of 0 or more; None unless all are."""
    matches = {label: _WHOLE.fullmatch(label) for label in labels}
    if not labels or not all(matches.values()):
        return None
    return {label: int(match[1]) for label, match in matches.items() if match}


def read_class_map(class_map: str | Path | dict[str, int], folder: Path) -> dict[str, int]:
    """Read class names and their indices from a dict or a file (.txt, a name per line; .pkl, a dict).

    A file is found by its path, else below `folder`. Blank lines have no index.

    Raises:
        DataError: it cannot be read, a name is there twice, or an index is none.
    """
    try:
        found = class_map.items() if isinstance(class_map, dict) else _read_pairs(Path(class_map), folder)
    except Exception as error:  # a damaged pickle raises its own types
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        wanted = "a .txt in UTF-8 with a name per line, or a .pkl of a dict, is needed"
        raise DataError(f"the class map {as_line(class_map)} cannot be used ({reason}): {wanted}") from error
    called = "given" if isinstance(class_map, dict) else as_line(class_map)
    mapping: dict[str, int] = {}
    for key, index in found:
        name = str(key)
        if not isinstance(key, str | int) or len(name) > _LONGEST:
            raise DataError(f"the class map {called} holds {short(key)}, which is no name of a class")
        if name in mapping:
            raise DataError(f"the class map {called} names the class {as_line(name)!r} twice; each has one line")
        if not isinstance(index, Integral) or isinstance(index, bool) or not 0 <= int(index) < MOST_CLASSES:
            raise DataError(
                f"the class map {called} must give each class an index from 0 to {MOST_CLASSES - 1}, "
                f"not {short(index)} to {as_line(name)!r}"
            )
        mapping[name] = int(index)
    if not mapping:
        raise DataError(f"the class map {called} names no class")
    return mapping


def _read_pairs(path: Path, folder: Path) -> Iterable[tuple[object, object]]:
    """Read the names and indices of a class map in the order of the file."""
    file = path if path.exists() else folder / path
    data = read_small(file, _MOST_BYTES)
    if file.suffix.lower() == ".pkl":
        return list(load_class_map(str(file)).items())  # reads nothing but built-in types
    if file.suffix.lower() != ".txt":
        raise ValueError(f"the ending {file.suffix!r} is not known")
    lines = [line.strip() for line in io.StringIO(data.decode("utf-8-sig"), newline=None)]
    while lines and not lines[-1]:
        lines.pop()
    if blank := lines.count(""):
        log.warning("%s: %d blank lines between the names are passed over, and have no index", file, blank)
    return [(name, index) for index, name in enumerate(filter(None, lines))]
