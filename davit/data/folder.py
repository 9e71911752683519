"""Read image folders, root/SPLIT/CLASS/picture, and say in what a wrong one is wrong."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

from ..text import some
from .errors import DataError
from .listing import left_out, list_folder, readable_suffixes, walk
from .source import ClassMap, Files, read_class_map

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
    if root.is_file():
        raise DataError(f"{root} is a file; a data folder with train/ and val/ is expected")
    here = list_folder(root)
    for name in names_of_split(split):
        if name and (root / name).is_dir():
            return root / name
    if any(list_folder(root / name).pictures for name in here.folders[:20]):
        raise DataError(
            f"{root} has no split {split!r}: its own folders ({some(here.folders)}) hold pictures and look like "
            f"classes. Move them into {root}/train and {root}/val, or name the split '.' to use the folder itself"
        )
    there = f"the folders {some(here.folders)}" if here.folders else f"no folders, {len(here.pictures)} pictures"
    tried = " or ".join(f"{name}/" for name in names_of_split(split))
    raise DataError(f"{root} has no split {split!r} ({tried}); it holds {there}")


class FolderSource(Files):
    """Read the pictures of one split folder in timm's order, with timm's class indices.

    A picture's class is the folder it lies in; classes are numbered in natural order of their names (as
    timm's image folder reader does), or by `class_map`, a dict or a file that timm's `load_class_map` reads;
    folders that a class map does not name are left out, with a warning, and so are files that are no pictures
    (`davit.data.listing` tells which).
    """

    def __init__(self, folder: str | Path, class_map: ClassMap = None) -> None:
        self.folder = Path(folder)
        found = self._scan(read_class_map(class_map, self.folder) if class_map else None)
        names, labels = [name for name, _ in found], [label for _, label in found]
        super().__init__(self.folder, names, labels, class_map, indices=False)

    def _scan(self, mapping: dict[str, int] | None) -> list[tuple[str, str]]:
        """Check the layout and list the (path below the folder, class) of every picture."""
        here = list_folder(self.folder)
        classes, strays, others = here.folders, here.pictures, Counter(here.left_out)
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
            for folder, contents in walk(self.folder, name):
                others += contents.left_out
                if not contents.pictures:
                    continue
                label = Path(folder).name
                if folder_of.setdefault(label, folder) != folder:
                    twice = f"{folder_of[label]} and {folder}"
                    raise DataError(f"{self.folder}: two folders are named as class {label!r}: {twice}")
                found += [(f"{folder}/{file}", label) for file in contents.pictures]
            if len(found) == before and (mapping is None or name in mapping):
                empty.append(name)
        others_said = left_out(others)
        if not found:
            note = f". {others_said}" if others_said else ""
            raise DataError(
                f"{self.folder}: no pictures in its {len(classes)} class folders ({some(classes)}); "
                f"files ending in {' '.join(sorted(readable_suffixes()))} count{note}"
            )
        if empty:
            raise DataError(
                f"{self.folder}: empty class folder{'s' if len(empty) > 1 else ''} {some(empty)}: "
                "add pictures or remove the folder (in train and val alike)"
            )
        if others_said:
            log.warning("%s: %s", self.folder, others_said)
        return found
