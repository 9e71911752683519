"""Find and open the pictures to look at: files, folders, standard input, or what a program holds."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError
from timm.utils.misc import natural_key

from ..data import DataError, Decoding, load_picture
from ..data.decode import RGB, SUFFIXES, Pixels, Stored
from ..text import some

log = logging.getLogger(__name__)

# A path, a picture of Pillow's, the bytes of a file, or an array (H, W), (H, W, 3) or (H, W, 4) of uint8; where other
# than three bands are read, an array (H, W, C) of any type.
Picture: TypeAlias = str | Path | Image.Image | bytes | np.ndarray[Any, Any]


def open_picture(picture: Picture, decoding: Decoding = RGB) -> Pixels:
    """Open a picture, upright, as `decoding` says: 8-bit RGB unless it has another number of bands.

    Raises:
        BadImageError: a file or bytes that are no readable picture.
        ValueError: not a `Picture`.
    """
    name = name_of(picture)
    return load_picture(as_stored(picture, name, decoding.bands), name, decoding=decoding)


def name_of(picture: Picture) -> str:
    """Name a picture for errors."""
    return str(picture) if isinstance(picture, str | Path) else "the picture given"


def as_stored(picture: Picture, name: str, bands: int = 3) -> Stored:
    """Make of a picture what the decoder takes.

    Raises:
        ValueError: not a `Picture`, or an array that is none of so many bands.
    """
    if isinstance(picture, str | Path | Image.Image):
        return picture
    if isinstance(picture, bytes | bytearray | memoryview):
        return io.BytesIO(bytes(picture))
    if not isinstance(picture, np.ndarray):
        raise ValueError(
            f"{name} is a {type(picture).__name__}; give a path, bytes, a picture of Pillow's or an "
            "array of uint8, (H, W) or (H, W, 3)."
        )
    if bands != 3 and picture.dtype.kind in "buif":
        return picture
    has_shape = picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] in (3, 4))
    if picture.dtype != np.uint8 or not has_shape or picture.size == 0:
        raise ValueError(
            f"an array of {picture.dtype} and shape {picture.shape} is no picture: it must be uint8, (H, W), "
            "(H, W, 3) or (H, W, 4), with values of 0 to 255."
        )
    return Image.fromarray(np.ascontiguousarray(picture))


class StandardInput(bytes):
    """A picture's bytes that came by standard input."""


class PictureSource:
    """Give pictures the interface of a data set's source (`davit.data.dataset.Source`), without classes."""

    class_to_idx: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, pictures: Sequence[Picture], bands: int = 3) -> None:
        self._pictures = pictures
        self._bands = bands

    def __len__(self) -> int:
        return len(self._pictures)

    def filename(self, index: int) -> str:
        return self.path(index)

    def path(self, index: int) -> str:
        """Name the file, or which of the pictures it is, from 0."""
        picture = self._pictures[index]
        if isinstance(picture, StandardInput):
            return "-"
        return str(picture) if isinstance(picture, str | Path) else f"picture {index}"

    def targets(self) -> None:
        """Return None: pictures without classes."""

    def open(self, index: int) -> tuple[Stored, int]:
        return as_stored(self._pictures[index], self.path(index), self._bands), 0


def find_pictures(places: Sequence[str], stdin: bytes | None = None) -> list[str | bytes]:
    """List the pictures of a command line: each file as it stands, each folder with all that is below it.

    "-" is `stdin`: the bytes of a picture, or paths in UTF-8, one a line, or separated by NUL.

    Raises:
        DataError: a folder without pictures, or no picture at all.
    """
    found: list[str | bytes] = []
    for place in places:
        if place == "-":
            found += _from_stdin(stdin or b"")
        else:
            found += _below(place)
    if not found:
        raise DataError("there is no picture to look at: give files, folders, or - with paths on standard input")
    return found


def distinct_names(files: Sequence[Path]) -> dict[Path, str]:
    """Give what is drawn of each picture a name of its own, without suffix.

    That is the picture's name without its suffix, or with it where two pictures would share a name (which is logged),
    or the whole path where they still would.
    """
    several = set(files)
    for name_of in (lambda file: file.stem, lambda file: file.name, lambda file: "-".join(file.parts).lstrip("/-")):
        names = {file: name_of(file) for file in several}
        counts = Counter(names.values())
        shared = sorted(str(file) for file, name in names.items() if counts[name] > 1)
        if not shared:
            break
        log.info("%s share a name: what is drawn of the pictures has longer names.", some(shared, 4))
    return names


def _below(place: str) -> list[str]:
    """List the pictures of a folder and its subfolders in natural order, hidden ones left out; a file is itself."""
    if not Path(place).is_dir():
        return [place]  # a missing file is reported when it is opened, as a broken one is
    files = []
    for folder, below, names in os.walk(place, followlinks=True):
        below[:] = [name for name in below if not name.startswith(".")]
        files += [
            str(Path(folder, name))
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
        ]
    if not files:
        raise DataError(f"{place} holds no pictures: files ending in {' '.join(sorted(SUFFIXES))} count")
    return sorted(files, key=lambda name: (natural_key(name), name))


def _from_stdin(data: bytes) -> list[str | bytes]:
    try:
        Image.open(io.BytesIO(data)).close()
    except (UnidentifiedImageError, ValueError):
        with contextlib.suppress(UnicodeDecodeError):  # neither a picture nor text: reading it says so
            text = data.decode("utf-8")
            lines = text.split("\0") if "\0" in text else [line.strip() for line in text.splitlines()]
            return [file for line in lines if line for file in _below(line)]
    except Exception:  # a known format, damaged: reading it says so
        pass
    return [StandardInput(data)]
