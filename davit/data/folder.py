"""Read image folders, root/SPLIT/CLASS/picture, and say in what a wrong one is wrong."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from shlex import quote

from ..text import some
from .errors import DataError
from .listing import left_out, list_folder, readable_suffixes, walk
from .source import ClassMap, Files

log = logging.getLogger(__name__)

_SYNONYMS = (("train", "training"), ("validation", "val", "valid", "eval", "evaluation"))
SPLITS = frozenset({"test", "testing"}.union(*_SYNONYMS))


def names_of_split(split: str) -> tuple[str, ...]:
    """List the names under which a split is found, its own first."""
    return tuple(dict.fromkeys((split, *next((group for group in _SYNONYMS if split in group), ()))))


def split_folder(root: Path, split: str) -> Path | None:
    """Return the folder of a split below `root`: of its name, of a synonym, or of one of these in another case.

    Raises:
        DataError: several folders differ in case alone.
    """
    if split == ".":
        return root
    names = names_of_split(split)
    for name in names:
        if name and (root / name).is_dir():
            return root / name
    if not root.is_dir():
        return None
    folders = list_folder(root).folders
    for name in names:
        alike = [folder for folder in folders if folder.lower() == name.lower()]
        if len(alike) > 1:
            raise DataError(f"{root} has {some(alike)} for split {split!r}: keep one of them")
        if alike:
            return root / alike[0]
    return None


def find_split(root: str | Path, split: str) -> Path:
    """Find the folder of `split` under `root`: that name, else a synonym (validation, val, ...); "." is `root`.

    Raises `DataError` for a missing root or split, saying what is there.
    """
    root = Path(root)
    if root.is_file():
        raise DataError(f"{root} is a file; a data folder with train/ and val/ is expected")
    here = list_folder(root)
    if (found := split_folder(root, split)) is not None:
        return found
    if any(list_folder(root / name).pictures for name in here.folders[:20]):
        raise DataError(
            f"{root} has no split {split!r}: its own folders ({some(here.folders)}) hold images and look like "
            f"classes. `{split_command(root)}` makes a folder with train/ and val/ of links to them; the split '.' is "
            "the folder itself"
        )
    there = f"the folders {some(here.folders)}" if here.folders else f"no folders, {len(here.pictures)} images"
    tried = " or ".join(f"{name}/" for name in names_of_split(split))
    inner = [root / name for name in here.folders[:20] if split_folder(root / name, split) is not None]
    hint = f". {some(inner, 3)} has it: give that folder" if inner else ""
    if not hint and split_folder(root, "train") is not None and "val" in names_of_split(split):
        hint = f". `{split_command(root)}` takes a part of the training images for it"
    if not here.folders:
        hint = f". The images of each class belong into a folder of its name: {root / split / 'CLASS'}"
    raise DataError(f"{root} has no split {split!r} ({tried}); it holds {there}{hint}")


def split_command(root: Path) -> str:
    """Write the command that splits a folder into train and val."""
    return f"davit data split {quote(str(root))} {quote(f'{root}-split')} --val 0.2"


class FolderSource(Files):
    """Read the images of one split folder in timm's order, with timm's class indices.

    An image's class is the folder it lies in; classes are numbered in natural order of their names (as
    timm's image folder reader does), or by `class_map`, a dict or a file that timm's `load_class_map` reads;
    folders that a class map does not name are left out, with a warning, and so are files that are no images
    (`davit.data.listing` tells which).
    """

    def __init__(self, folder: str | Path, class_map: ClassMap = None) -> None:
        self.folder = Path(folder)
        found, empty = self._scan()
        names, labels = [name for name, _ in found], [label for _, label in found]
        super().__init__(self.folder, names, labels, class_map, indices=False)
        if meant := [name for name in empty if not class_map or name in self.class_to_idx]:
            raise DataError(
                f"{self.folder}: empty class folder{'s' if len(meant) > 1 else ''} {some(meant)}: "
                "add images or remove the folder (in train and val alike)"
            )

    def _scan(self) -> tuple[list[tuple[str, str]], list[str]]:
        """Check the layout; list the (path below the folder, class) of every image, and the folders without one."""
        here = list_folder(self.folder)
        classes, strays, others = here.folders, here.pictures, Counter(here.left_out)
        if not classes:
            direct = f"{len(strays)} images lie in it directly"
            raise DataError(f"{self.folder} has no class folders ({direct}); one folder a class is expected")
        if strays:
            images, are = ("image", "is") if len(strays) == 1 else ("images", "are")
            named = some(strays, 3)
            text = "%s: %d %s outside any class folder %s left out (%s)"
            log.warning(text, self.folder, len(strays), images, are, named)
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
            if len(found) == before:
                empty.append(name)
        others_said = left_out(others)
        if not found:
            note = f". {others_said}" if others_said else ""
            raise DataError(
                f"{self.folder}: no images in its {len(classes)} class folders ({some(classes)}); "
                f"files ending in {' '.join(sorted(readable_suffixes()))} count{note}"
            )
        if others_said:
            log.warning("%s: %s", self.folder, others_said)
        return found, empty
