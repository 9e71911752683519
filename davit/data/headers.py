"""Read the headers of many images: of which kind and size each is, and which ones no reader could open."""

from __future__ import annotations

import json
import logging
import os
import stat
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from PIL import Image, UnidentifiedImageError

from ..files import cache_file, write_bytes
from ..text import some
from .decode import FILE_ERRNOS, SIDEWAYS, load_rgb, orientation_of, readable_formats, reason_of, upright_size
from .errors import BadImageError
from .listing import format_of
from .samples import read_array

log = logging.getLogger(__name__)

_ROW = (int, int, str, int, int, str, bool)  # size and time of a file, and its header
_LAYOUT = 1  # of the cached files; another number makes them all absent
_AT_ONCE = 64  # files that a thread takes in one go
_SAID_FROM = 1.0  # seconds

# Pillow's names of formats that are one kind of file.
_ALIKE = {"MPO": "JPEG", "DIB": "BMP"}

# How files begin that are often found in the place of an image.
_OTHERS = (
    (b"version https://git-lfs", "a pointer of Git LFS, not the image; `git lfs pull` fetches it"),
    (b"<", "a text with tags (a web page that a failed download left there, or an SVG), not an image"),
)


class Header(NamedTuple):
    """What the header of an image says.

    kind: Pillow's name of the format ("JPEG", "PNG", ...); empty where it is no image.
    width, height: in pixels, upright: after the turn that EXIF asks for.
    mode: Pillow's name of the pixels' layout ("RGB", "L", "I;16", ...).
    turned: the stored image lies on its side, so its stored width is the upright height.
    fault: why it cannot be read; empty where nothing is wrong.
    """

    kind: str = ""
    width: int = 0
    height: int = 0
    mode: str = ""
    turned: bool = False
    fault: str = ""


def read_headers(files: Sequence[str | Path]) -> list[Header]:
    """Read the headers of images, in the order of the files, several at a time; no error is raised for a bad file.

    A file is faulty if it is missing, empty, cut off, or no image. What was found sound is kept
    (`davit.files.cache_file`) and read again only when the size or the time of its file has changed. The log says
    how long it took when that is over a second.
    """
    if not files:
        return []
    started = time.monotonic()
    paths, folders = _absolute(files)
    root = os.path.commonpath(folders)
    known = _Known(root)
    found: dict[str, Header] = {}
    changed: list[tuple[str, int, int]] = []
    for path in dict.fromkeys(paths):
        try:
            state = os.stat(path)  # noqa: PTH116
        except OSError as error:
            found[path] = Header(fault=reason_of(error, path))
            continue
        if not stat.S_ISREG(state.st_mode):
            found[path] = Header(fault="a folder, a device or a pipe, not a file")
        elif (header := known.get(path, state.st_size, state.st_mtime_ns)) is not None:
            found[path] = header
        else:
            changed.append((path, state.st_size, state.st_mtime_ns))
    for (path, size, changed_at), header in zip(changed, _read_all([path for path, *_ in changed]), strict=True):
        found[path] = header
        if not header.fault:
            known.put(path, size, changed_at, header)
    if changed:
        known.save()
    taken = time.monotonic() - started
    if taken > _SAID_FROM:
        log.info(
            "The headers of %s images in %s were read in %.1f s (%s of them known from before).",
            f"{len(paths):,}",
            root,
            taken,
            f"{len(found) - len(changed):,}",
        )
    return [found[path] for path in paths]


def is_misnamed(file: str | Path, header: Header) -> bool:
    """Tell whether an image is of another kind than its suffix says; it can be read all the same."""
    named = Image.registered_extensions().get(os.path.splitext(file)[1].lower())  # noqa: PTH122
    return bool(header.kind and named) and _ALIKE.get(header.kind, header.kind) != _ALIKE.get(named or "", named)


def describe_misnamed(files: Sequence[str | Path], headers: Sequence[Header]) -> str:
    """Say how many images are of another kind than their suffix, and of which; empty if there are none."""
    odd = [(file, header) for file, header in zip(files, headers, strict=True) if is_misnamed(file, header)]
    if not odd:
        return ""
    shown = some((f"{Path(file).name} is {header.kind}" for file, header in odd), 3)
    return f"{len(odd):,} of {len(files):,} images are of another kind than their suffix says ({shown})"


class _Known:
    """Keep the headers below one folder, by the size and the time of change of each file."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._start = len(root.rstrip(os.sep)) + 1
        self._file: Path | None = None
        self._rows: dict[str, Any] = {}
        self._used: set[str] = set()
        try:
            self._file = cache_file("headers", _LAYOUT, root)
            rows = json.loads(self._file.read_bytes())
        except (OSError, ValueError, RecursionError):  # no home, a new folder, or a damaged file
            return
        if isinstance(rows, dict):
            self._rows = rows

    def get(self, path: str, size: int, changed: int) -> Header | None:
        """Return a file's header; None if it is not known as it is now."""
        name = self._name(path)
        self._used.add(name)
        row = self._rows.get(name)
        if type(row) is not list or len(row) != len(_ROW) or (row[0], row[1]) != (size, changed):
            return None
        return Header(*row[2:]) if all(map(isinstance, row, _ROW)) else None

    def put(self, path: str, size: int, changed: int, header: Header) -> None:
        """Keep the header of a sound file."""
        self._rows[self._name(path)] = [size, changed, *header[:-1]]

    def save(self) -> None:
        """Write what is known of files that still exist; where that is not possible, the next run reads again."""
        if self._file is None:
            return
        kept = {name: row for name, row in self._rows.items() if name in self._used or self._exists(name)}
        try:
            write_bytes(self._file, json.dumps(kept).encode())
        except OSError as error:
            log.info("The headers of the images are not kept for the next run: %s.", error)

    def _exists(self, name: str) -> bool:
        return os.path.exists(os.path.join(self._root, name))  # noqa: PTH110, PTH118

    def _name(self, path: str) -> str:
        return path[self._start :]


def _absolute(files: Sequence[str | Path]) -> tuple[list[str], list[str]]:
    """Return the absolute paths of files, and their folders, each of which is resolved once."""
    known: dict[str, str] = {}
    paths = []
    for file in files:
        folder, name = os.path.split(file)
        if folder not in known:
            known[folder] = os.path.abspath(folder)  # noqa: PTH100
        paths.append(f"{known[folder].rstrip(os.sep)}{os.sep}{name}")
    return paths, [*known.values()]


def _read_all(paths: Sequence[str]) -> list[Header]:
    """Read headers in threads: Pillow's parsers are short, and what they wait for is the disk."""
    parts = [paths[first : first + _AT_ONCE] for first in range(0, len(paths), _AT_ONCE)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large images, which become faults below, and of odd tags
        with ThreadPoolExecutor(2 * len(os.sched_getaffinity(0))) as pool:
            return [header for part in pool.map(lambda part: [*map(_read, part)], parts) for header in part]


def _read(path: str) -> Header:
    try:
        with Path(path).open("rb") as stream:
            return _read_open(path, stream)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's parsers raise nearly every type on damaged input
        if isinstance(error, OSError) and error.errno not in FILE_ERRNOS:
            return Header(fault=f"the machine failed to read it ({error.strerror})")
        return Header(fault=_beginning(path) if isinstance(error, UnidentifiedImageError) else reason_of(error, path))


def _read_open(path: str, stream: BinaryIO) -> Header:
    try:
        return _read_by_pillow(path, stream)
    except UnidentifiedImageError:  # .npy, or a TIFF of bands that Pillow does not know
        if (array := read_array(path, header_only=True)) is None:
            raise
        width, height, _ = array.upright_size()
        stream.seek(0)
        return Header(
            format_of(stream.read(64)) or "NPY", width, height, str(array.values.dtype), array.orientation in SIDEWAYS
        )


def _read_by_pillow(path: str, stream: BinaryIO) -> Header:
    with Image.open(stream, formats=readable_formats()) as image:
        width, height = upright_size(image)
        header = Header(str(image.format), width, height, image.mode, orientation_of(image) in SIDEWAYS)
        if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError
        is_whole = _ENDS.get(str(image.format), lambda *_: True)(image, stream)
    if not is_whole:  # to be sure, it is decoded
        try:
            load_rgb(path)
        except BadImageError as error:
            return Header(fault=error.reason)
    return header


def _beginning(path: str) -> str:
    with Path(path).open("rb") as stream:
        first = stream.read(64)
    if not first:
        return "empty file (0 bytes)"
    if not first.strip(b"\0"):
        return "only zeros, as an interrupted copy leaves them"
    if kind := format_of(first):
        return f"a {kind} file that is damaged, cut off, or of a sort that cannot be read here"
    others = (words for beginning, words in _OTHERS if first.lstrip().startswith(beginning))
    return next(others, "not an image of a known format")


# ---- does a file hold all that its header announces? False only asks for a closer look ----


def _size(stream: BinaryIO) -> int:
    return os.fstat(stream.fileno()).st_size


def _ends_with(*ends: bytes) -> Callable[[Any, BinaryIO], bool]:
    def check(image: Any, stream: BinaryIO) -> bool:
        stream.seek(-min(16, _size(stream)), os.SEEK_END)
        return stream.read().endswith(ends)

    return check


def _jpeg_ends(image: Any, stream: BinaryIO) -> bool:
    """Find the end marker, at the end or, where a camera has put more behind it, anywhere after the scan's start."""
    if _ends_with(b"\xff\xd9")(image, stream):
        return True
    stream.seek(0)
    data = stream.read()
    place = 2
    while data[place : place + 1] == b"\xff" and data[place + 1 : place + 2] != b"\xda":  # segments before the scan
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return data.find(b"\xff\xd9", place) >= 0  # which the coded pixels never hold


def _riff_ends(image: Any, stream: BinaryIO) -> bool:
    stream.seek(4)
    return 8 + int.from_bytes(stream.read(4), "little") <= _size(stream)


def _raw_ends(image: Any, stream: BinaryIO) -> bool:
    """Find whether uncompressed rows end within the file."""
    end = 0
    for name, box, offset, args in image.tile:
        if name == "raw":
            row = len(Image.new(image.mode, (max(box[2] - box[0], 1), 1)).tobytes())
            stride = args[1] if isinstance(args, tuple) and len(args) > 1 and args[1] else row
            end = max(end, offset + stride * (box[3] - box[1]))
    return end <= _size(stream)


def _tiff_ends(image: Any, stream: BinaryIO) -> bool:
    """Find whether all strips and tiles end within the file."""
    tags = image.tag_v2
    for offsets, lengths in ((273, 279), (324, 325)):  # of strips, of tiles
        pairs = zip(tags.get(offsets, ()), tags.get(lengths, ()), strict=False)
        if any(offset + length > _size(stream) for offset, length in pairs):
            return False
    return True


def _boxes_end(image: Any, stream: BinaryIO) -> bool:
    """Find whether the outermost boxes (ISO 14496-12, also of JPEG 2000) end within the file."""
    return all(end <= _size(stream) for end in _box_ends(stream))


def _box_ends(stream: BinaryIO) -> Iterator[int]:
    place, size = 0, _size(stream)
    while place < size:
        stream.seek(place)
        start = stream.read(16)
        length = int.from_bytes(start[:4], "big")
        if length == 1:
            length = int.from_bytes(start[8:], "big")
        if length == 0:  # up to the end of the file
            return
        place += max(length, 8)
        yield place


_ENDS: dict[str, Callable[[Any, BinaryIO], bool]] = {
    "JPEG": _jpeg_ends,
    "MPO": _jpeg_ends,
    "PNG": _ends_with(b"IEND\xaeB`\x82"),
    "GIF": _ends_with(b";"),
    "WEBP": _riff_ends,
    "BMP": _raw_ends,
    "DIB": _raw_ends,
    "PPM": _raw_ends,
    "TIFF": _tiff_ends,
    "JPEG2000": _ends_with(b"\xff\xd9"),
    "AVIF": _boxes_end,
    "HEIF": _boxes_end,
}
