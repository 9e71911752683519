"""Write the embedded samples, scikit-learn's 1,797 handwritten digits, as an image folder."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import DataError

Array = NDArray[np.uint8]

_COUNTS = {"train": 1437, "val": 360}
_SPLIT_SEED = 0
_STALE_SECONDS = 600  # a writer needs about a second; an unfinished folder this old has no writer any more


def write_digits(root: str | Path | None = None) -> Path:
    """Lay the digits out as root/{train,val}/{0..9}/NNNN.png, once, and return the folder.

    Every picture keeps its 8x8 pixels, scaled from 0..16 to 0..255, as greyscale PNG; NNNN is its index in
    scikit-learn's data. A fifth of each class is held out as val. An existing folder is counted and used.
    Raises `DataError` if `root` (default: see `write_once`) holds something else.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits (UCI, 1998), the test part.
    """
    return write_once("digits", root, _write, _missing)


def write_once(
    name: str, root: str | Path | None, write: Callable[[Path], None], missing: Callable[[Path], str]
) -> Path:
    """Lay a made data set out in a folder, unless it is there, and return the folder.

    It is written beside `root` and renamed: a killed writer, or several at once, leave it whole or absent. By default
    `root` is $DAVIT_DATA_DIR/NAME, else data/NAME under the current folder. `missing` says what a folder lacks of what
    `write` writes into it, "" for nothing. Raises `DataError` if `root` holds something else.
    """
    root = Path(root) if root is not None else Path(os.environ.get("DAVIT_DATA_DIR") or "data") / name
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        root.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(root)
        beside = root.with_name(f".{root.name}.{uuid.uuid4().hex}.partial")
        try:
            write(beside)
            try:
                beside.rename(root)
            except OSError:  # another process was first
                if not root.exists():
                    raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    if lacking := missing(root):
        raise DataError(
            f"{root} is not the whole data set of {name}: {lacking}. Remove the folder to have it written anew, "
            "or set DAVIT_DATA_DIR to another place."
        )
    return root


def load_glyphs() -> dict[str, list[tuple[int, int, Array]]]:
    """Load (index, label, 8 x 8 pixels of 0 to 255) of the digits of 'train' and of 'val', a fifth of each class."""
    from sklearn.datasets import load_digits  # a second of import that only the first run pays
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8)
    train, val = train_test_split(
        np.arange(len(pixels)), test_size=_COUNTS["val"], random_state=_SPLIT_SEED, stratify=digits.target
    )
    return {
        split: [(int(i), int(digits.target[i]), pixels[i]) for i in members]
        for split, members in (("train", train), ("val", val))
    }


def _write(folder: Path) -> None:
    for split, glyphs in load_glyphs().items():
        for label in range(10):
            (folder / split / str(label)).mkdir(parents=True)
        for index, label, pixels in glyphs:
            Image.fromarray(pixels).save(folder / split / str(label) / f"{index:04d}.png")


def _missing(root: Path) -> str:
    for split, count in _COUNTS.items():
        files = [file for file in root.glob(f"{split}/[0-9]/*.png") if file.stat().st_size > 0]
        if len(files) != count:
            return f"{split} holds {len(files)} of {count} pictures"
    return ""


def _remove_stale(root: Path) -> None:
    for folder in root.parent.glob(f".{root.name}.*.partial"):
        with suppress(FileNotFoundError):  # its writer has just finished
            if time.time() - folder.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
