"""Find and open the images to look at: files, folders, standard input, or what a program holds."""

from __future__ import annotations

import codecs
import hashlib
import io
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..data import DataError, Decoding, load_picture
from ..data.decode import RGB, Pixels, Stored
from ..data.listing import left_out, list_pictures, readable_suffixes
from ..text import as_line, some

log = logging.getLogger(__name__)

_BINARY = re.compile(rb"[\x01-\x08\x0e-\x1a\x1c-\x1f\x7f]")  # what text does not hold, not even a list of odd names
_ROOM = 200  # bytes of a name, of the 255 that file systems have

# A path, an image of Pillow's, the bytes of a file, or an array (H, W), (H, W, 3) or (H, W, 4) of uint8; where other
# than three bands are read, an array (H, W, C) of any type.
Picture: TypeAlias = str | Path | Image.Image | bytes | np.ndarray[Any, Any]


def open_picture(picture: Picture, decoding: Decoding = RGB) -> Pixels:
    """Open an image, upright, as `decoding` says: 8-bit RGB unless it has another number of bands.

    Raises:
        BadImageError: a file or bytes that are no readable image.
        ValueError: not a `Picture`.
    """
    name = name_of(picture)
    return load_picture(as_stored(picture, name, decoding.bands), name, decoding=decoding)


def name_of(picture: Picture) -> str:
    """Name an image for errors."""
    return str(picture) if isinstance(picture, str | Path) else "the image given"


def as_stored(picture: Picture, name: str, bands: int = 3) -> Stored:
    """Make of an image what the decoder takes.

    Raises:
        ValueError: not a `Picture`, or an array that is none of so many bands.
    """
    if isinstance(picture, str | Path | Image.Image):
        return picture
    if isinstance(picture, bytes | bytearray | memoryview):
        return io.BytesIO(bytes(picture))
    if not isinstance(picture, np.ndarray):
        raise ValueError(
            f"{name} is a {type(picture).__name__}; give a path, bytes, an image of Pillow's or an "
            "array of uint8, (H, W) or (H, W, 3)."
        )
    if bands != 3 and picture.dtype.kind in "buif":
        return picture
    has_shape = picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] in (3, 4))
    if picture.dtype != np.uint8 or not has_shape or picture.size == 0:
        raise ValueError(
            f"an array of {picture.dtype} and shape {picture.shape} is no image: it must be uint8, (H, W), "
            "(H, W, 3) or (H, W, 4), with values of 0 to 255."
        )
    return Image.fromarray(np.ascontiguousarray(picture))


class StandardInput(bytes):
    """An image's bytes that came by standard input."""


class PictureSource:
    """Give images the interface of a data set's source (`davit.data.source.Source`), without classes."""

    class_to_idx: dict[str, int] = {}  # noqa: RUF012

    def __init__(self, pictures: Sequence[Picture], bands: int = 3) -> None:
        self._pictures = pictures
        self._bands = bands

    def __len__(self) -> int:
        return len(self._pictures)

    def filename(self, index: int) -> str:
        return self.path(index)

    def names(self) -> list[str]:
        return list(map(self.path, range(len(self))))

    def path(self, index: int) -> str:
        """Name the file, or which of the images it is, from 0."""
        picture = self._pictures[index]
        if isinstance(picture, StandardInput):
            return "-"
        return str(picture) if isinstance(picture, str | Path) else f"image {index}"

    def targets(self) -> None:
        """Return None: images without classes."""

    def open(self, index: int) -> tuple[Stored, int]:
        return as_stored(self._pictures[index], self.path(index), self._bands), 0


def find_pictures(places: Sequence[str], stdin: bytes | None = None) -> list[str | bytes]:
    """List the images of a command line: each file as it stands, each folder with all that is below it.

    "-" is `stdin`: the bytes of an image, or a list of paths, one a line, or separated by NUL as `find -print0` does.
    Names may hold any bytes. Of a folder in such a list, images that the list names itself are not listed twice.

    Raises:
        DataError: a folder without images, or no image at all.
    """
    found: list[str | bytes] = []
    for place in places:
        if place == "-":
            found += _from_stdin(stdin or b"")
        else:
            found += _below(place)
    if not found:
        raise DataError("there is no image to look at: give files, folders, or - with paths on standard input")
    return found


def distinct_names(files: Iterable[Path], root: Path | None = None) -> dict[Path, str]:
    """Give what is drawn or written of each image a name of its own, without suffix.

    That is the image's name without its suffix; with it, where two images would share a name (which is logged);
    the path below the folder of all, where they still would; and a number after it as the last resort. Names that
    differ only in case, or in their Unicode form, count as shared, as some file systems take them for one.

    Args:
        root: names are paths below this folder, with / in them, for the images that lie in it.
    """
    several = sorted(set(files))
    for name_of in (_without_suffix, _with_suffix, _path_below(several)):
        names = {file: name_of(file, root) for file in several}
        counts = Counter(map(_folded, names.values()))
        shared = [str(file) for file, name in names.items() if counts[_folded(name)] > 1]
        if not shared:
            return names
        log.info("%s share a name: what is written of the images has longer names.", some(shared, 4))
    taken: set[str] = set()
    for file, name in names.items():
        tries = (name, *(f"{name}-{number}" for number in range(2, len(names) + 2)))
        names[file] = next(one for one in tries if _folded(one) not in taken)
        taken.add(_folded(names[file]))
    return names


def _without_suffix(file: Path, root: Path | None) -> str:
    return str(_placed(file, root).with_name(_fitting(file.stem)))


def _with_suffix(file: Path, root: Path | None) -> str:
    return str(_placed(file, root).with_name(_fitting(file.name)))


def _path_below(files: Sequence[Path]) -> Callable[[Path, Path | None], str]:
    try:
        common = Path(os.path.commonpath([file.parent for file in files]))
    except ValueError:  # relative paths and absolute ones, or none at all
        common = Path()

    def name(file: Path, root: Path | None) -> str:
        inside = file.relative_to(common) if file.is_relative_to(common) else file
        if root is not None and file.is_relative_to(root):
            return str(file.relative_to(root).with_name(_fitting(file.name)))
        return _fitting("-".join(part for part in inside.parts if part != "/"))

    return name


def _placed(file: Path, root: Path | None) -> Path:
    """Return the path below the root, or else the name alone."""
    return file.relative_to(root) if root is not None and file.is_relative_to(root) else Path(file.name)


def _fitting(name: str) -> str:
    """Shorten a name for which a file system has no room, once a suffix is added; the same name always alike."""
    code = os.fsencode(name)
    if len(code) <= _ROOM:
        return name
    return f"{hashlib.sha256(code).hexdigest()[:8]}-{code[-_ROOM + 9 :].decode(errors='ignore')}"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _below(place: str, may_be_empty: bool = False) -> list[str]:
    """List the images of a folder and its subfolders in natural order, hidden ones left out; a file is itself."""
    if not Path(place).is_dir():
        return [place]  # a missing file is reported when it is opened, as a broken one is
    listing = list_pictures(place)
    note = left_out(listing.left_out)
    if not listing.pictures and not may_be_empty:
        suffixes = " ".join(sorted(readable_suffixes()))
        raise DataError(f"{as_line(place)} holds no images: files ending in {suffixes} count{note and '. '}{note}")
    if note:
        log.warning("%s: %s", as_line(place), note)
    folder = str(Path(place))
    prefix = "" if folder == "." else folder if folder.endswith("/") else f"{folder}/"
    return [prefix + name for name in listing.pictures]


def _from_stdin(data: bytes) -> list[str | bytes]:
    try:
        Image.open(io.BytesIO(data)).close()
    except (UnidentifiedImageError, ValueError):
        if _is_list(data):
            return _listed(data)
    except Exception:  # a known format, damaged: reading it says so
        pass
    return [StandardInput(data)]


def _is_list(data: bytes) -> bool:
    """Tell a list of paths from other bytes: it is text, or has no control characters but text's, or names a file."""
    try:
        data.decode()
    except UnicodeDecodeError:
        first = re.split(rb"[\0\n]", data, maxsplit=1)[0]
        return not _BINARY.search(data) or (b"\0" not in first and os.path.lexists(first.rstrip(b"\r")))
    return True


def _listed(data: bytes) -> list[str | bytes]:
    """Find the images of a list: names as they stand, else without what surrounds them in a line."""
    data = data.removeprefix(codecs.BOM_UTF8)
    names = list(map(os.fsdecode, data.split(b"\0" if b"\0" in data else b"\n")))
    if b"\0" not in data:
        names = [name if os.path.lexists(name) else name.strip() for name in names]
    named = {os.path.normpath(name) for name in names if name}
    found: list[str | bytes] = []
    for name in names:
        if not name:
            continue
        if not Path(name).is_dir():
            found.append(name)
        else:  # `find` lists folders with or without images in them, and then the images
            found += [file for file in _below(name, may_be_empty=True) if os.path.normpath(file) not in named]
    return found
