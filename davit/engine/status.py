"""Exit statuses of the command-line tools, and the one place where an error becomes one of them."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable

from ..checkpoint import CheckpointError
from ..data import DataError, LoaderError
from ..pretrained import PretrainedError

log = logging.getLogger(__name__)

OK = 0
USER_ERROR = 2  # a flag, a file or the data: the message says what to change
NONFINITE = 3  # a loss or gradient became NaN or infinite; the batch was dumped
DISK_FULL = 4  # the last state could not be written; older ones are whole
INTERRUPTED = 75  # SIGTERM or SIGINT: saved; --auto-resume goes on from there (EX_TEMPFAIL)


# a path that cannot be written or read, rather than a machine that fails
_USERS_ERRNOS = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}) | {
    errno.ENAMETOOLONG,
    errno.ELOOP,
}


class Interrupted(Exception):  # noqa: N818
    """The run was told to stop, and its state has been saved."""


class DiskFullError(OSError):
    """There was no room to write a file of the run."""


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that it came from, says that the disk or the quota is full."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def run_cli(main: Callable[[], object]) -> int:
    """Run a tool's work; a user's mistake ends it with one paragraph rather than a traceback."""
    from .nonfinite import NonFiniteError

    try:
        main()
    except Interrupted as stop:
        log.warning("%s", stop)
        return INTERRUPTED
    except NonFiniteError as error:
        log.error("%s", error)
        return NONFINITE
    except (CheckpointError, DataError, LoaderError, PretrainedError, ValueError, FileNotFoundError) as error:
        log.error("%s", error)
        if os.environ.get("DAVIT_TRACEBACK"):
            raise
        return USER_ERROR
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno in _USERS_ERRNOS:
            log.error("%s: check the path, and who may write there.", error)
            return USER_ERROR
        if not is_disk_full(error):
            raise
        log.error("the disk is full: %s. Older checkpoints are whole; free some space and --auto-resume.", error)
        return DISK_FULL
    return OK
