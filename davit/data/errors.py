"""What can go wrong with data, as exceptions that name the file or folder and the remedy."""

from __future__ import annotations

from ..commands import USER_ERROR


class DataError(ValueError):
    """A data set that cannot be used as asked: a missing split, an empty class folder, too few pictures."""


class BadImageError(ValueError):
    """One file that is not a readable picture.

    `file` and `reason` say which and why. The first argument alone builds the exception, so that it
    survives pickling and `DataLoader`'s re-raise of a worker's exception.
    """

    def __init__(self, message: str, *, file: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.file = file
        self.reason = reason

    @classmethod
    def of(cls, file: str, reason: str) -> BadImageError:
        """The exception for `file`, with the remedy in its message."""
        remedy = "Repair or remove the file, or pass --skip-bad-images to go on without it."
        return cls(f"{file}: {reason}. {remedy}", file=file, reason=reason)


class LoaderError(RuntimeError):
    """A loader's worker process died or stopped answering."""

    exit_status = USER_ERROR
