"""Read image folders, root/SPLIT/CLASS/picture, and say in what a wrong one is wrong."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from timm.utils.misc import natural_key

from ..text import some
from .decode import SUFFIXES
from .errors import DataError
from .source import read_class_map

log = logging.getLogger(__name__)

_SYNONYMS = (("train", "training"), ("validation", "val", "valid", "eval", "evaluation"))
SPLITS = frozenset({"test", "testing"}.union(*_SYNONYMS))


def names_of_split(split: str) -> tuple[str, ...]:
    """List the names under which a split is found, its own first."""
    return tuple(dict.fromkeys((split, *next((group for group in _SYNONYMS if split in group), ()))))


def find_split(root: str | Path, split: str) -> Path:
    """Find the folder of `split` under `root`: that name, else a synonym (validation, val, ...); "." is `root`.

    Raises `DataError` for a missing root or split, saying what is there.
    """
    root = Path(root)
    folders, pictures = _list_folder(root)
    for name in names_of_split(split):
        if name and (root / name).is_dir():
            return root / name
    if any(_list_folder(root / name)[1] for name in folders[:20]):
        raise DataError(
            f"{root} has no split {split!r}: its own folders ({some(folders)}) hold pictures and look like classes. "
            f"Move them into {root}/train and {root}/val, or name the split '.' to use the folder itself"
        )
    there = f"the folders {some(folders)}" if folders else f"no folders, {len(pictures)} pictures"
    tried = " or ".join(f"{name}/" for name in names_of_split(split))
    raise DataError(f"{root} has no split {split!r} ({tried}); it holds {there}")


class FolderSource:
    """Read the pictures of one split folder in timm's order, with timm's class indices.

    A picture's class is the folder it lies in; classes are numbered in natural order of their names (as
    timm's image folder reader does), or by `class_map`, a dict or a file that timm's `load_class_map` reads;
    folders that a class map does not name are left out, with a warning. Hidden files are ignored.
    """

    def __init__(self, folder: str | Path, class_map: str | Path | dict[str, int] | None = None) -> None:
        self.folder = Path(folder)
        mapping = read_class_map(class_map, self.folder) if class_map else None
        found = self._scan(mapping)
        names = sorted({label for _, label in found}, key=_natural)
        self.class_to_idx = mapping or {name: index for index, name in enumerate(names)}
        found = [item for item in found if item[1] in self.class_to_idx]
        if not found:
            raise DataError(f"{self.folder}: none of its class folders is in the class map {class_map}")
        found.sort(key=lambda item: _natural(item[0]))
        # Arrays, not lists: workers that touch a list of objects copy its pages (reference counts).
        self._files = np.array([os.fsencode(file) for file, _ in found])
        self._targets = np.array([self.class_to_idx[label] for _, label in found], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._files)

    def filename(self, index: int) -> str:
        return os.fsdecode(self._files[index].item())

    def path(self, index: int) -> str:
        return str(self.folder / self.filename(index))

    def targets(self) -> list[int]:
        return self._targets.tolist()

    def open(self, index: int) -> tuple[str, int]:
        return self.path(index), int(self._targets[index])

    def _scan(self, mapping: dict[str, int] | None) -> list[tuple[str, str]]:
        """Check the layout and list the (path below the folder, class) of every picture."""
        classes, strays = _list_folder(self.folder)
        if not classes:
            direct = f"{len(strays)} pictures lie in it directly"
            raise DataError(f"{self.folder} has no class folders ({direct}); one folder a class is expected")
        if strays:
            log.warning("%s: %d pictures outside any class folder are left out", self.folder, len(strays))
        found: list[tuple[str, str]] = []
        folder_of: dict[str, str] = {}
        empty: list[str] = []
        for name in classes:
            before = len(found)
            for folder, files in _walk(self.folder, name):
                label = Path(folder).name
                if folder_of.setdefault(label, folder) != folder:
                    twice = f"{folder_of[label]} and {folder}"
                    raise DataError(f"{self.folder}: two folders are named as class {label!r}: {twice}")
                found += [(f"{folder}/{file}", label) for file in files]
            if len(found) == before and (mapping is None or name in mapping):
                empty.append(name)
        if not found:
            raise DataError(
                f"{self.folder}: no pictures in its {len(classes)} class folders ({some(classes)}); "
                f"files ending in {' '.join(sorted(SUFFIXES))} count"
            )
        if empty:
            raise DataError(
                f"{self.folder}: empty class folder{'s' if len(empty) > 1 else ''} {some(empty)}: "
                "add pictures or remove the folder (in train and val alike)"
            )
        if mapping and (unmapped := sorted(set(folder_of) - set(mapping))):
            log.warning("%s: folders not in the class map are left out: %s", self.folder, some(unmapped))
        return found


def absent(files: Sequence[Path]) -> list[Path]:
    """Find the files that are not there, folder by folder, which is quick for a hundred thousand of them."""
    listed: dict[Path, set[str]] = {}
    for folder in dict.fromkeys(file.parent for file in files):
        listed[folder] = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    return [file for file in files if file.name not in listed[file.parent]]


def _walk(root: Path, below: str) -> Iterable[tuple[str, list[str]]]:
    """Yield (folder, picture names) of every folder with pictures at and below root/below, links followed."""
    folders, pictures = _list_folder(root / below)
    if pictures:
        yield below, pictures
    for name in folders:
        yield from _walk(root, f"{below}/{name}")


def _list_folder(folder: Path) -> tuple[list[str], list[str]]:
    """List the folders and pictures in a folder by name, hidden ones left out, folders in natural order."""
    folders, pictures = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                # A broken link is kept: it is reported as a bad picture when it is opened.
                elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and (  # noqa: PTH122 (a million of them)
                    entry.is_file() or entry.is_symlink()
                ):
                    pictures.append(entry.name)
    except FileNotFoundError as error:
        raise DataError(f"the data folder {folder} does not exist") from error
    except NotADirectoryError as error:
        raise DataError(f"{folder} is a file; a data folder with train/ and val/ is expected") from error
    except OSError as error:
        remedy = ": whoever runs this needs to read and search it" if error.errno == errno.EACCES else ""
        raise DataError(f"the folder {folder} cannot be read ({error.strerror}){remedy}") from error
    return sorted(folders, key=_natural), pictures


def _natural(name: str) -> tuple[Any, str]:
    """Give the key that sorts img2 before img10, and names that differ in case alone always alike."""
    return natural_key(name), name
