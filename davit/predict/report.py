"""Write predictions as text: a table with bars, csv, json, jsonl, and the original's topk_ids.csv."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from ..files import write_bytes
from .result import EIGHTHS, Failure, Prediction, as_table

FORMATS = ("table", "csv", "json", "jsonl")
TOPK_IDS = "topk_ids.csv"


class Writer:
    """Write results one by one to a stream; a subclass for each format."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def add(self, result: Prediction | Failure) -> None:
        """Write one result."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what is left; the stream stays open."""
        self.stream.flush()


class TableWriter(Writer):
    """Write `as_table` of each; bars of ASCII where the stream cannot take others."""

    def __init__(self, stream: TextIO, width: int) -> None:
        super().__init__(stream)
        self._width = width
        self._is_ascii = not _can_write(stream, EIGHTHS)

    def add(self, result: Prediction | Failure) -> None:
        if isinstance(result, Failure):
            text = f"{result.file}\n  not read: {result.reason}"
        else:
            text = as_table(result, self._width, self._is_ascii)
        self.stream.write(text + "\n")


class CsvWriter(Writer):
    """Write one row a picture: file, index_1, name_1, probability_1, index_2, ..., error."""

    def __init__(self, stream: TextIO, topk: int) -> None:
        super().__init__(stream)
        columns = [f"{what}_{rank}" for rank in range(1, topk + 1) for what in ("index", "name", "probability")]
        self._rows = csv.DictWriter(stream, ["file", *columns, "error"], restval="", lineterminator="\n")
        self._rows.writeheader()

    def add(self, result: Prediction | Failure) -> None:
        row: dict[str, Any] = {"file": result.file}
        if isinstance(result, Failure):
            row["error"] = result.reason
        else:
            for rank, guess in enumerate(result.guesses, start=1):
                row[f"index_{rank}"] = guess.index
                row[f"name_{rank}"] = guess.name
                row[f"probability_{rank}"] = f"{guess.probability:.6g}"
        self._rows.writerow(row)


class JsonLinesWriter(Writer):
    """Write one object a line, as soon as it is known."""

    def add(self, result: Prediction | Failure) -> None:
        self.stream.write(json.dumps(as_object(result)) + "\n")
        self.stream.flush()


class JsonWriter(Writer):
    """Write one list of objects, at the end."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._objects: list[dict[str, Any]] = []

    def add(self, result: Prediction | Failure) -> None:
        self._objects.append(as_object(result))

    def close(self) -> None:
        self.stream.write(json.dumps(self._objects, indent=2) + "\n")
        super().close()


def writer(form: str, stream: TextIO, topk: int, width: int = 80) -> Writer:
    """Make the writer of a format of `FORMATS`."""
    if form == "csv":
        return CsvWriter(stream, topk)
    if form == "table":
        return TableWriter(stream, width)
    return JsonWriter(stream) if form == "json" else JsonLinesWriter(stream)


def as_object(result: Prediction | Failure) -> dict[str, Any]:
    """Make the JSON object of a picture: its file, and either predictions or an error."""
    if isinstance(result, Failure):
        return {"file": result.file, "error": result.reason}
    guesses = [
        {"index": guess.index, "name": guess.name, "probability": round(guess.probability, 8)}
        for guess in result.guesses
    ]
    return {"file": result.file, "predictions": guesses}


def write_topk_ids(folder: Path, predictions: Sequence[Prediction]) -> Path:
    """Write the original's topk_ids.csv: no header, a row a picture, its file's own name and then the class indices.

    The most probable class comes first. Pictures that could not be read have no row.
    """
    stream = io.StringIO(newline="")
    rows = csv.writer(stream, lineterminator="\n")
    for prediction in predictions:
        rows.writerow([Path(prediction.file).name, *(guess.index for guess in prediction.guesses)])
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / TOPK_IDS, stream.getvalue().encode())
    return folder / TOPK_IDS


def _can_write(stream: TextIO, text: str) -> bool:
    try:
        text.encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True
