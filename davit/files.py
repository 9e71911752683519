"""Write files that are whole or not there, open regular ones alone, and say where cached ones lie."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import os
import stat
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO

from .text import as_utf8

_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # some network file systems cannot


class _RawFile(io.FileIO):
    """Remember the first failed write: what is raised further up may no longer say why."""

    failure: OSError | None = None

    def write(self, data: Any) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError as error:
            self.failure = self.failure or error
            raise


def write_atomically(
    path: str | Path, write: Callable[[IO[bytes]], object], before_replacing: Callable[[], object] = lambda: None
) -> None:
    """Put what `write` writes to the stream it is given in the place of `path`, in one step.

    Guaranteed: after a return, `path` holds all of it and keeps it through a loss of power. After an
    exception (from `write`, a full disk, Ctrl-C), `path` is what it was, and nothing is left beside it. After
    kill -9 or a loss of power within, `path` is the old file or the new one, whole; a hidden `.NAME.*.partial`
    may be left beside it for the folder's owner to remove. Writers of one path may overlap: the last to finish
    wins. A symbolic link is replaced, not followed. One exception: where only the last step, the sync of the
    folder, fails, the error is raised with the new file in place.

    Args:
        before_replacing: called when the new content is safe on the disk and `path` is still the old one.

    Raises:
        OSError: the file cannot be written; errno ENOSPC or EDQUOT for a full disk, also where `write`
            turned it into something else (`torch.save` makes a RuntimeError of it).
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")
    raw = _RawFile(partial, "xb")
    try:
        try:
            with raw, io.BufferedWriter(raw, 1 << 20) as stream:
                write(stream)
                stream.flush()
                os.fsync(raw.fileno())
        except Exception as error:
            if raw.failure is None:
                raise
            raw.failure.filename = str(path)  # which a failed write does not name
            raise raw.failure from (error if error is not raw.failure else None)
        before_replacing()
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write bytes as `write_atomically` does."""
    write_atomically(path, lambda stream: stream.write(data))


def write_csv(path: str | Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows as `write_atomically` does, with a column for every key; what a row lacks is an empty cell.

    Every value is UTF-8, as `davit.text.as_utf8` writes it.
    """
    stream = io.StringIO(newline="")
    columns = dict.fromkeys(key for row in rows for key in row)
    writer = csv.DictWriter(stream, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: as_utf8(value) for key, value in row.items()} for row in rows)
    write_bytes(path, stream.getvalue().encode())


_IRREGULAR = {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file for reading if it is a regular one: a pipe could be waited for without end, a device has none.

    Raises:
        OSError: it cannot be opened; errno ENODEV for a pipe, a socket or a device, EISDIR for a folder.
    """
    _require_regular(os.stat(path), path)  # noqa: PTH116 (opening a device may do something to it)
    stream = open(path, "rb", opener=_open_at_once)  # noqa: SIM115 (Path.open takes no opener)
    try:
        _require_regular(os.fstat(stream.fileno()), path)
    except BaseException:
        stream.close()
        raise
    return stream


def _open_at_once(path: str, flags: int) -> int:
    """Open without waiting, where another process has put a pipe into the file's place meanwhile."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_small(path: str | Path, most: int) -> bytes:
    """Read a regular file that has at most `most` bytes.

    Raises:
        OSError: as `open_regular`.
        ValueError: it is larger.
    """
    with open_regular(path) as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it is larger than {most:,} bytes")
    return data


def _require_regular(state: os.stat_result, path: str | Path) -> None:
    if stat.S_ISDIR(state.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(state.st_mode):
        kind = _IRREGULAR.get(stat.S_IFMT(state.st_mode), "file of another kind")
        raise OSError(errno.ENODEV, f"a {kind}, and only regular files are read", str(path))


def cache_file(kind: str, *key: object) -> Path:
    """Return where something that can be made again is kept for the next run; the folder is made.

    The place is $DAVIT_CACHE_DIR, else davit/ in the user's cache folder, and below it `kind`. The file's name is a
    hash of `key`: what the content depends on, such as a path, a size and a time. Whoever reads such a file must take
    a damaged one for absent; whoever cannot write it continues without.
    """
    root = (
        os.environ.get("DAVIT_CACHE_DIR") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "davit"
    )
    folder = Path(root) / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder / hashlib.sha256(repr(key).encode()).hexdigest()[:32]


def _sync_folder(folder: Path) -> None:
    """Bring a rename to the disk: it is there only once its folder is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)
