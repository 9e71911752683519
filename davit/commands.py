"""Run a command-line tool: its name, errors as exit statuses, and the first signal to stop as a question.

An exception says its own status as the attribute ``exit_status``; what has none is a user's error (ValueError,
FileNotFoundError, a path that cannot be used), a full disk, or a fault of this program, which is raised.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from .text import without_controls

log = logging.getLogger(__name__)

OK = 0
SOME_FAILED = 1  # of several evaluations or images; the output says which
USER_ERROR = 2  # a flag, a file or the data: the message says what to change
NONFINITE = 3  # a loss or gradient became NaN or infinite; the batch was dumped
DISK_FULL = 4  # the last state could not be written, the disk or a limit being reached; older ones are whole
INTERRUPTED = 75  # SIGTERM or SIGINT: saved; --auto-resume continues from there (EX_TEMPFAIL)

# no more room: on the disk, by the quota, by a limit on the size of a file (ulimit -f)
_FULL_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# a path that cannot be written or read, rather than a machine that fails
_USERS_ERRNOS = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST),
        *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENODEV),
    }
)


_called_as: ContextVar[str | None] = ContextVar("_called_as", default=None)


@contextmanager
def called_as(name: str | None) -> Iterator[None]:
    """Let parsers that are made in the context call their command so in usage lines; None: as the script is called."""
    token = _called_as.set(name)
    try:
        yield
    finally:
        _called_as.reset(token)


def command_name(otherwise: str | None = None) -> str | None:
    """Return what a parser's usage line calls its command: what `called_as` says, or else as the script is called."""
    return _called_as.get() or otherwise


class Interrupted(Exception):  # noqa: N818
    """The run was told to stop, and its state has been saved."""

    exit_status = INTERRUPTED


def log_of_rank() -> None:
    """Log a job of several processes: the first one all of it, the others their errors, with their ranks."""
    rank = int(os.environ.get("RANK", 0))
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.ERROR,
        format="%(message)s" if rank == 0 else f"[rank {rank}] %(message)s",
        force=True,
    )


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether an error, or one that it came from, says that the disk, the quota or a file is full."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in _FULL_ERRNOS:
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


_MAKE_ROOM = "Make room, and run this again"
RESUME = "Older checkpoints are whole; make room and --auto-resume"


def run_cli(main: Callable[[], Sequence[object] | None], *, when_full: str = _MAKE_ROOM) -> int:
    """Run a tool's work and return its exit status; a user's error ends it with one paragraph, not a traceback.

    What the console shows of the log meanwhile, and after, cannot drive a terminal: names of files come from anyone.

    Args:
        main: returns what failed of several evaluations or images, if anything.
        when_full: what to do after the disk was full.
    """
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler and not isinstance(handler.formatter, _Harmless):
            handler.setFormatter(_Harmless(handler.formatter))
    try:
        return SOME_FAILED if main() else OK
    except Exception as error:
        status = exit_status(error)
        if status is None:
            raise
        text = "memory ran out: use smaller batches or images" if isinstance(error, MemoryError) else str(error)
        text = with_flags(_FROM_A_WORKER.sub("", text))
        if status == INTERRUPTED:
            log.warning("%s", text)
        elif status == DISK_FULL:
            full = (
                "a limit on the size of files (ulimit -f) is reached"
                if f"[Errno {errno.EFBIG}]" in text
                else "the disk is full"
            )
            log.error("%s: %s. %s.", full, text, when_full)
        elif isinstance(error, OSError) and error.errno in _USERS_ERRNOS:
            log.error("%s: check the path, and who may write there.", text)
        else:
            log.error("%s", text)
        if status == USER_ERROR and os.environ.get("DAVIT_TRACEBACK"):
            raise
        return status


# what torch writes before the message of an error that a DataLoader's worker raised
_FROM_A_WORKER = re.compile(
    r"\ACaught \w+ in DataLoader worker process \d+\.\nOriginal Traceback.*\n[\w.]+: ", re.DOTALL
)


class _Harmless(logging.Formatter):
    """Format as another formatter does, with control characters written out."""

    def __init__(self, inner: logging.Formatter | None) -> None:
        super().__init__()
        self._inner = inner or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        return without_controls(self._inner.format(record))


def with_flags(text: str) -> str:
    """Write each `name=value` in a message for Python callers as the command line's flag of the same name."""

    def flag(match: re.Match[str]) -> str:
        name, value = match[1].replace("_", "-"), match[2]
        return f"--{name}" if value == "True" else f"--{name} {value}"

    return re.sub(r"`([a-z_]+)=([^`]*)`", flag, text)


def exit_status(error: Exception) -> int | None:
    """Return the exit status of an error, None for a fault of this program."""
    status: int | None = getattr(error, "exit_status", None)
    if status is not None:
        return status
    if isinstance(error, ValueError | FileNotFoundError | MemoryError):
        return USER_ERROR
    if isinstance(error, OSError) and error.errno in _USERS_ERRNOS:
        return USER_ERROR
    return DISK_FULL if isinstance(error, OSError | RuntimeError) and is_disk_full(error) else None


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Turn the first SIGTERM or SIGINT into a question that the loop asks; a second SIGINT ends at once."""
    received: list[int] = []

    def handler(number: int, _: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for number, old in before.items():
            signal.signal(number, old)


class TookTooLong(BaseException):
    """The body of a `time_limit` was ended; no `Exception`, so that what catches those lets it through."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `TookTooLong` in the body after so many seconds, and say of any error behind it that this is why.

    Python hears the alarm between two of its operations: sleeping and waiting for data end at once, and a backward
    pass, which is one operation, ends first. Without effect on Windows, which has no alarm, and outside of the main
    thread, which alone hears signals.
    """
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return
    has_rung = False

    def ring(number: int, _: Any) -> None:
        nonlocal has_rung
        has_rung = True
        raise TookTooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except Exception:
        if has_rung:
            raise TookTooLong from None
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
