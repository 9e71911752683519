"""Read images that are stored one after the other in large files: each is a range of bytes of a file."""

from __future__ import annotations

import errno
import functools
import io
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..files import write_atomically
from .decode import Stored
from .errors import BadImageError, DataError
from .source import ClassMap, Listed, Texts

_OPEN_FILES = 128  # of a process and a source; most systems allow 1,024
_LARGEST = 1 << 31  # bytes of an image
FILE_OF_ITS_OWN = -1  # as the size of an image that lies beside the table and not in it
_GONE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR)  # any other error is the machine's


@dataclass
class Ranges:
    """The images that one file holds, as its index lists them.

    Attributes:
        file: the file as the user calls it, for messages.
        stored_in: the file that holds the bytes.
        stamp: size and time of modification (ns) of `stored_in` when the index was made.
        names: of the images, within the file.
        labels: class names or indices as the data have them, "" for none.
        starts, sizes: of the ranges in bytes, int64. `FILE_OF_ITS_OWN` as size: the image's name is its path.
    """

    file: str
    stored_in: str
    stamp: tuple[int, int]
    names: Texts
    labels: Texts
    starts: np.ndarray[Any, Any]
    sizes: np.ndarray[Any, Any]


class RangeSource(Listed):
    """Open images by their ranges in files; every process has descriptors of its own, or those it was forked with.

    Reads name their place (`os.pread`), so that processes and threads may share a descriptor.
    """

    def __init__(
        self,
        place: str,
        parts: Sequence[Ranges],
        labels: Sequence[str | None],
        class_map: ClassMap = None,
        *,
        keep: Sequence[int] | None = None,
        indices: bool = True,
        class_names: Sequence[str] = (),
        several: bool = False,
    ) -> None:
        """Take the images of all parts, or those whose places among them are in `keep`.

        Args:
            labels: of the images of all parts.
            place, class_map, indices, class_names, several: as `Listed` has them.
        """
        names = [name for part in parts for name in part.names]
        kept = range(len(names)) if keep is None else keep
        listed = ([names[at] for at in kept], [labels[at] for at in kept])
        super().__init__(place, *listed, class_map, indices=indices, class_names=class_names, several=several)
        self._files = [(part.file, part.stored_in, part.stamp) for part in parts]
        places = np.asarray(kept, dtype=np.int64)[self.order]
        counts = [len(part.starts) for part in parts]
        self._file_of = np.repeat(np.arange(len(parts), dtype=np.int32), counts)[places]
        self._starts = np.concatenate([part.starts for part in parts])[places]
        self._sizes = np.concatenate([part.sizes for part in parts])[places]
        self._descriptor = functools.lru_cache(_OPEN_FILES)(self._open_file)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_descriptor"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._descriptor = functools.lru_cache(_OPEN_FILES)(self._open_file)

    def path(self, index: int) -> str:
        """Name an image by its file and its name in it."""
        return f"{self._files[self._file_of[index]][0]}/{self.filename(index)}"

    def open(self, index: int) -> tuple[Stored, int]:
        """Return the image's bytes as a stream, and its class index.

        Raises:
            BadImageError: the file ends before the image does, or is gone.
            DataError: the file has changed since its index was made.
        """
        size, start = int(self._sizes[index]), int(self._starts[index])
        if size == FILE_OF_ITS_OWN:
            return str(Path(self._files[self._file_of[index]][0]).parent / self.filename(index)), self.target(index)
        if size > _LARGEST:
            raise BadImageError.of(self.path(index), f"{size} bytes are too many for an image")
        number = int(self._file_of[index])
        try:
            descriptor = self._descriptor(number)
            data = _read(descriptor.number, start, size) if start + size <= descriptor.size else b""
        except OSError as error:
            if error.errno not in _GONE:
                raise OSError(error.errno, error.strerror, self.path(index)) from error
            raise BadImageError.of(self.path(index), f"its file cannot be opened ({error.strerror})") from error
        if len(data) < size:
            reason = (
                f"cut off: its file has {descriptor.size} bytes and it would end at {start + size}; fetch it again"
            )
            raise BadImageError.of(self.path(index), reason)
        return io.BytesIO(data), self.target(index)

    def _open_file(self, number: int) -> _Descriptor:
        name, stored_in, stamp = self._files[number]
        descriptor = _Descriptor(stored_in)
        if descriptor.stamp != stamp:
            raise DataError(f"{name} has changed while it is read: start again, and its index is made again")
        return descriptor


class _Descriptor:
    """An open file, closed with the last reference: a thread that reads keeps it while another drops it."""

    def __init__(self, file: str) -> None:
        self.number = -1
        self.number = os.open(file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        found = os.fstat(self.number)
        self.size = found.st_size
        self.stamp = (found.st_size, found.st_mtime_ns)

    def __del__(self) -> None:
        if self.number >= 0:
            os.close(self.number)


def stamp_of(file: str | Path) -> tuple[int, int]:
    """Return size and time of modification (ns) of a file. Raises `DataError` where it cannot be read."""
    try:
        with open(file, "rb") as stream:  # noqa: PTH123 (names that are not UTF-8)
            found = os.fstat(stream.fileno())
    except OSError as error:
        remedy = ": whoever runs this needs to read it" if error.errno == errno.EACCES else ""
        raise DataError(f"{file} cannot be read ({error.strerror}){remedy}") from error
    return found.st_size, found.st_mtime_ns


def _read(descriptor: int, start: int, size: int) -> bytes:
    """Read a range to its end; one call reads 2 GB at most, and some file systems less."""
    data = os.pread(descriptor, size, start)
    while len(data) < size and (more := os.pread(descriptor, size - len(data), start + len(data))):
        data += more
    return data


def save_ranges(file: Path, ranges: Ranges, about: Mapping[str, Any]) -> None:
    """Keep an index, and more about it, for `load_ranges`. Raises `OSError` where the file cannot be written."""
    noted = {**about, "stored_in": ranges.stored_in, "stamp": ranges.stamp}
    arrays: dict[str, Any] = {
        **{"names_joined": ranges.names.joined, "names_ends": ranges.names.ends},
        **{"labels_joined": ranges.labels.joined, "labels_ends": ranges.labels.ends},
        **{"starts": ranges.starts, "sizes": ranges.sizes},
        "about": np.frombuffer(json.dumps(noted).encode(), dtype=np.uint8),
    }
    write_atomically(file, lambda stream: np.savez(stream, **arrays))


def load_ranges(file: Path, name: str) -> tuple[Ranges, dict[str, Any]] | None:
    """Read the kept index of the file called `name`; None where there is none, or it is damaged or out of date."""
    try:
        with np.load(file, allow_pickle=False) as kept:
            names, labels = (Texts.of(kept[f"{text}_joined"], kept[f"{text}_ends"]) for text in ("names", "labels"))
            about = json.loads(kept["about"].tobytes())
            ranges = Ranges(
                *(name, about["stored_in"], tuple(about["stamp"])), names, labels, kept["starts"], kept["sizes"]
            )
        if stamp_of(ranges.stored_in) == ranges.stamp:
            return ranges, about
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    return None
