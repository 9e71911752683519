"""The results of evaluations as a table, and as the lines that programs read."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from .files import write_atomically

Row = dict[str, Any]


def best_first(rows: Sequence[Row]) -> list[Row]:
    """By falling top1, then rows without a number, then those with an error."""

    def rank(row: Row) -> tuple[bool, float]:
        top1 = row.get("top1", math.nan)
        return "error" in row, math.inf if math.isnan(top1) else -top1

    return sorted(rows, key=rank)


def write_results(path: Path, rows: Sequence[Row], form: str | None = None) -> None:
    """Write rows as a JSON list, or as CSV with a column for every key; in one step.

    `form` is json or csv; None goes by the suffix: .json, anything else is CSV.
    """
    if (form or path.suffix.lower().lstrip(".")) == "json":
        text = json.dumps([_without_nan(row) for row in rows], indent=2, allow_nan=False) + "\n"
    else:
        stream = io.StringIO(newline="")
        columns = dict.fromkeys(key for row in rows for key in row)
        writer = csv.DictWriter(stream, fieldnames=list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        text = stream.getvalue()

    def write(stream: IO[bytes]) -> None:
        stream.write(text.encode())

    write_atomically(path, write)


def print_results(results: Row | Sequence[Row]) -> None:
    """To standard output, as timm's script ends: a line --result, and JSON (here on one line) below it."""
    plain = _without_nan(results) if isinstance(results, dict) else [_without_nan(row) for row in results]
    sys.stdout.write(f"--result\n{json.dumps(plain, allow_nan=False)}\n")
    sys.stdout.flush()


def _without_nan(row: Row) -> Row:
    """JSON has no NaN and no infinity: null instead."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()
    }
