"""Predictions as text: a table with bars, csv, json, jsonl, and the original's topk_ids.csv."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from ..files import write_bytes
from .result import EIGHTHS, Failure, Prediction, as_table

FORMATS = ("table", "csv", "json", "jsonl")
TOPK_IDS = "topk_ids.csv"


class Writer(Protocol):
    """Takes the results one by one."""

    def add(self, result: Prediction | Failure) -> None: ...

    def close(self) -> None: ...


class TableWriter:
    """`as_table` of each; bars of ASCII where the stream cannot take others."""

    def __init__(self, stream: TextIO, width: int) -> None:
        self._stream = stream
        self._width = width
        self._plain = not _can_write(stream, EIGHTHS)

    def add(self, result: Prediction | Failure) -> None:
        if reason := _reason(result):
            text = f"{result.file}\n  not read: {reason}"
        else:
            text = as_table(result, self._width, self._plain)  # type: ignore[arg-type]
        self._stream.write(text + "\n")

    def close(self) -> None:
        self._stream.flush()


class CsvWriter:
    """One row a picture: file, index_1, name_1, probability_1, index_2, ..., error."""

    def __init__(self, stream: TextIO, topk: int) -> None:
        columns = [f"{what}_{rank}" for rank in range(1, topk + 1) for what in ("index", "name", "probability")]
        self._stream = stream
        self._writer = csv.DictWriter(stream, ["file", *columns, "error"], restval="", lineterminator="\n")
        self._writer.writeheader()

    def add(self, result: Prediction | Failure) -> None:
        row: dict[str, Any] = {"file": result.file, "error": _reason(result)}
        for rank, guess in enumerate(getattr(result, "guesses", ()), start=1):
            row[f"index_{rank}"] = guess.index
            row[f"name_{rank}"] = guess.name
            row[f"probability_{rank}"] = f"{guess.probability:.6g}"
        self._writer.writerow(row)

    def close(self) -> None:
        self._stream.flush()


class JsonLinesWriter:
    """One object a line, written as soon as it is known."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def add(self, result: Prediction | Failure) -> None:
        self._stream.write(json.dumps(as_object(result)) + "\n")
        self._stream.flush()

    def close(self) -> None:
        self._stream.flush()


class JsonWriter:
    """One list of objects, at the end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._objects: list[dict[str, Any]] = []

    def add(self, result: Prediction | Failure) -> None:
        self._objects.append(as_object(result))

    def close(self) -> None:
        self._stream.write(json.dumps(self._objects, indent=2) + "\n")
        self._stream.flush()


def writer(form: str, stream: TextIO, topk: int, width: int = 80) -> Writer:
    """The writer of a format of `FORMATS`."""
    if form == "csv":
        return CsvWriter(stream, topk)
    if form == "json":
        return JsonWriter(stream)
    if form == "jsonl":
        return JsonLinesWriter(stream)
    return TableWriter(stream, width)


def as_object(result: Prediction | Failure) -> dict[str, Any]:
    """What the JSON formats hold of a picture: its file, and either predictions or an error."""
    if reason := _reason(result):
        return {"file": result.file, "error": reason}
    guesses = [
        {"index": guess.index, "name": guess.name, "probability": round(guess.probability, 8)}
        for guess in result.guesses  # type: ignore[union-attr]
    ]
    return {"file": result.file, "predictions": guesses}


def write_topk_ids(folder: Path, predictions: Sequence[Prediction]) -> Path:
    """The original's topk_ids.csv: no header, a row a picture, its file's own name and then the class indices.

    The most probable class comes first. Pictures that could not be read have no row.
    """
    stream = io.StringIO(newline="")
    rows = csv.writer(stream, lineterminator="\n")
    for prediction in predictions:
        rows.writerow([Path(prediction.file).name, *(guess.index for guess in prediction.guesses)])
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / TOPK_IDS, stream.getvalue().encode())
    return folder / TOPK_IDS


def _reason(result: Prediction | Failure) -> str:
    return str(getattr(result, "reason", ""))


def _can_write(stream: TextIO, text: str) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
