"""The embedded samples: scikit-learn's 1,797 handwritten digits as an image folder."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .errors import DataError

Array = NDArray[np.uint8]

TRAIN_COUNT, VAL_COUNT = 1437, 360
_SPLIT_SEED = 0
_STALE_SECONDS = 600  # a writer needs about a second; an unfinished folder this old has no writer any more


def digits_root() -> Path:
    """Where the digits live: $DAVIT_DATA_DIR/digits, else data/digits under the current folder."""
    return Path(os.environ.get("DAVIT_DATA_DIR") or "data") / "digits"


def write_digits(root: str | Path | None = None) -> Path:
    """Lays the digits out as root/{train,val}/{0..9}/NNNN.png, once, and returns the folder.

    Every picture keeps its 8x8 pixels, scaled from 0..16 to 0..255, as greyscale PNG; NNNN is its index in
    scikit-learn's data. A fifth of each class is held out as val. The folder is written beside `root` and
    renamed: a killed writer, or several at once, leave it whole or absent. An existing one is counted and
    used. Raises `DataError` if `root` holds something else.

    Source: E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits (UCI, 1998), the test part.
    """
    root = Path(root) if root is not None else digits_root()
    write_once(root, _write, _verify)
    return root


def write_once(root: Path, write: Callable[[Path], None], verify: Callable[[Path], None]) -> None:
    """Lay a made data set out in a folder, unless it is there: whole or not at all, also with several writers.

    Args:
        write: fills an empty folder that it is given.
        verify: raises `DataError` if the folder does not hold what `write` writes.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        verify(root)
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(root)
    beside = root.with_name(f".{root.name}.{uuid.uuid4().hex}.partial")
    try:
        write(beside)
        try:
            beside.rename(root)
        except OSError:  # another process was first; if it was not, verify says what is there
            if not root.exists():
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    verify(root)


def load_glyphs() -> dict[str, list[tuple[int, int, Array]]]:
    """(index, label, 8 x 8 pixels of 0 to 255) of the digits, for 'train' and 'val'; a fifth of each class is val."""
    from sklearn.datasets import load_digits  # a second of import that only the first run pays
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8)
    train, val = train_test_split(
        np.arange(len(pixels)), test_size=VAL_COUNT, random_state=_SPLIT_SEED, stratify=digits.target
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


def _verify(root: Path) -> None:
    for split, count in (("train", TRAIN_COUNT), ("val", VAL_COUNT)):
        files = [file for file in root.glob(f"{split}/[0-9]/*.png") if file.stat().st_size > 0]
        if len(files) != count:
            raise DataError(
                f"{root} is not the whole digits data set: {split} holds {len(files)} of {count} pictures. "
                "Remove the folder to have it written anew, or set DAVIT_DATA_DIR to another place."
            )


def _remove_stale(root: Path) -> None:
    for folder in root.parent.glob(f".{root.name}.*.partial"):
        try:
            stale = time.time() - folder.stat().st_mtime > _STALE_SECONDS
        except FileNotFoundError:  # its writer has just finished
            continue
        if stale:
            shutil.rmtree(folder, ignore_errors=True)
