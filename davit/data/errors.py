"""Name what is wrong with data or an argument, and the remedy, in exceptions.

Messages write an argument as `name=value`, in backticks; the command-line tools turn that into the flag of the same
name (`davit.commands.with_flags`).
"""

from __future__ import annotations

from collections.abc import Collection

from ..commands import USER_ERROR
from ..text import as_line


class DataError(ValueError):
    """A data set that cannot be used as asked: a missing split, an empty class folder, too few images."""


class BadImageError(ValueError):
    """One file that is not a readable image.

    `file` and `reason` say which and why. The first argument alone builds the exception, so that it
    survives pickling and `DataLoader`'s re-raise of a worker's exception.
    """

    def __init__(self, message: str, *, file: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.file = file
        self.reason = reason

    @classmethod
    def of(cls, file: str, reason: str) -> BadImageError:
        """Build the exception for `file`, with the remedy in its message."""
        remedy = "Repair or remove the file, or pass `skip_bad_images=True` to continue without it."
        return cls(f"{as_line(file)}: {reason}. {remedy}", file=file, reason=reason)


class LoaderError(RuntimeError):
    """A loader's worker process died or stopped answering."""

    exit_status = USER_ERROR


def require(is_right: bool, name: str, value: object, wanted: str) -> None:
    """Raise `ValueError` for an argument whose value is not what is wanted."""
    if not is_right:
        raise ValueError(f"`{name}={value!r}` is not {wanted}")


def require_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raise `ValueError` for an argument whose value is none of the choices."""
    if value not in choices:
        raise ValueError(f"`{name}={value!r}` is unknown; choose from {', '.join(choices)}")
