"""Give what a command found: a text for people or JSON for programs on standard output, and a file of either.

Every command that prints something takes ``--json``: standard output then holds one JSON document and nothing else,
while the log goes to standard error. Every command that prints a table takes ``--output FILE`` as well.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TextIO

from ..files import write_bytes, write_csv
from ..text import encodable, without_controls, without_nan

_real_stdout: ContextVar[TextIO | None] = ContextVar("_real_stdout", default=None)


def add_json(add: Callable[..., Any]) -> None:
    """Add --json."""
    add("--json", action="store_true", help="print one JSON document and nothing else; the log goes to stderr")


def add_output(add: Callable[..., Any], *aliases: str, dest: str = "output", form: str = "") -> None:
    """Add --output FILE.

    Args:
        aliases: older names of the flag.
        dest: the name of the argument.
        form: what is written, where it is not what `write_result` says.
    """
    said = form or "as JSON or csv if its name ends in .json or .csv, else as the text that is printed"
    add("--output", *aliases, dest=dest, default="", metavar="FILE", help=f"also write the results to FILE: {said}")


def require_writable(file: str, flag: str = "--output") -> None:
    """Raise `ValueError` where no file can be written; before the work, which may take hours."""
    place = Path(file).absolute()
    if file and (place.is_dir() or not os.access(place.parent, os.W_OK | os.X_OK)):
        raise ValueError(f"{flag} {place}: no file can be written there; check the folder.")


def require_writable_folder(folder: Path, flag: str) -> None:
    """Raise `ValueError` where no files can be written into a folder, which need not exist; before the work."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise ValueError(f"{flag} {folder}: {there} is a file; name a folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{flag} {folder}: nothing can be written into {there}; name another folder.")


@contextmanager
def json_alone(is_asked: bool) -> Iterator[None]:
    """Let what libraries print go to standard error meanwhile; `give` and `put` still reach standard output."""
    if not is_asked or _real_stdout.get() is not None:
        yield
        return
    token = _real_stdout.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _real_stdout.reset(token)


def standard_output() -> TextIO:
    """Return where results go, also within `json_alone`."""
    return _real_stdout.get() or sys.stdout


def give(args: argparse.Namespace, text: str, document: Any, rows: Sequence[Mapping[str, Any]] | None = None) -> None:
    """Print what a command found, as --json asks; and write the file of --output, where there is that flag.

    Args:
        text: for people.
        document: the same for programs, of what JSON has; NaN becomes null.
        rows: the same as a table, for a file whose name ends in .csv; None where it is none.

    Raises:
        ValueError: a .csv is asked for and there is no table.
    """
    if file := getattr(args, "output", ""):
        write_result(Path(file), text, document, rows)
    put(as_json(document) if args.json else text)


def put(text: str) -> None:
    """Print a text on standard output, in what its encoding has."""
    stream = standard_output()
    stream.write(without_controls(encodable(text if text.endswith("\n") else f"{text}\n", stream.encoding)))
    stream.flush()


def write_result(file: Path, text: str, document: Any, rows: Sequence[Mapping[str, Any]] | None) -> None:
    """Write a file by its suffix, in one step."""
    form = file.suffix.lower()
    if form == ".csv":
        if rows is None:
            raise ValueError(f"--output {file}: this is no table; let the name end in .json or .txt.")
        write_csv(file, list(rows))
    else:
        written = as_json(document) if form == ".json" else f"{text.rstrip()}\n"
        write_bytes(file, written.encode(errors="backslashreplace"))


def as_columns(lines: Sequence[Sequence[str]], left: int) -> str:
    """Write lines of cells, the titles first, in columns: the first ones of text, the others of numbers.

    Args:
        left: how many columns are of text.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ""
    for cells in lines:
        written = [
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        text += "  ".join(written).rstrip() + "\n"
    return text


def as_json(document: Any, indent: int | None = 2) -> str:
    """Write a JSON document, over several lines or, without indent, on one."""
    return f"{json.dumps(without_nan(document), indent=indent, allow_nan=False)}\n"
