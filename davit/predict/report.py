"""Write predictions as text: a table with bars, csv, json, jsonl, and the original's topk_ids.csv."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from ..choices import FORMATS, TOPK_IDS
from ..data.label_sets import SEPARATOR
from ..files import write_bytes
from ..text import as_line, as_utf8, encodable, fits
from .result import EIGHTHS, Failure, Prediction, as_table


def write_results(
    results: Iterable[Prediction | Failure], form: str, stream: TextIO, topk: int | None, width: int = 80
) -> None:
    """Write results in a format of `FORMATS`, each as soon as it is known; json, which is one list, at the end.

    csv has a row per image: file, index_1, name_1, probability_1, index_2, ..., error. Without `topk`, for images of
    several classes: path, labels and probabilities between semicolons, error; train.py reads that as data. A table's
    bars are of ASCII where the stream cannot take others.

    Names may hold anything. In a table they are written by `davit.text.as_line`; in csv by `as_utf8`, or by `as_line`
    where the stream is a terminal; `davit.text.original` gives the file's name back. A json string is the name itself.
    """
    if form == "json":
        stream.write(json.dumps([as_object(result) for result in results], indent=2) + "\n")
    elif form == "csv":
        if topk is None:
            header = ["path", "labels", "probabilities", "error"]
        else:
            columns = [f"{what}_{rank}" for rank in range(1, topk + 1) for what in ("index", "name", "probability")]
            header = ["file", *columns, "error"]
        rows = csv.DictWriter(stream, header, restval="", lineterminator="\n")
        rows.writeheader()
        write = as_line if stream.isatty() else as_utf8
        for result in results:
            row = _as_row(result) if topk is not None else _as_labels(result)
            rows.writerow({key: encodable(write(value), stream.encoding) for key, value in row.items()})
    else:
        is_plain = not fits(EIGHTHS, getattr(stream, "encoding", None) or "ascii")
        for result in results:
            if form == "jsonl":
                text = json.dumps(as_object(result))
            elif isinstance(result, Failure):
                text = f"{as_line(result.file)}\n  not read: {as_line(result.reason)}"
            else:
                text = as_table(result, width, is_plain)
            stream.write(encodable(text, stream.encoding) + "\n")
            stream.flush()
    stream.flush()


def write_file(file: Path, results: Iterable[Prediction | Failure], topk: int | None) -> None:
    """Write results to a file in one step, in the format of its suffix; a table where it is none of these.

    Args:
        topk: as in `write_results`.
    """
    form = file.suffix.lower().lstrip(".")
    stream = io.StringIO(newline="")
    write_results(results, form if form in FORMATS else "table", stream, topk)
    write_bytes(file, stream.getvalue().encode(errors="backslashreplace"))


def _as_row(result: Prediction | Failure) -> dict[str, Any]:
    if isinstance(result, Failure):
        return {"file": result.file, "error": result.reason}
    row: dict[str, Any] = {"file": result.file}
    for rank, guess in enumerate(result.guesses, start=1):
        row[f"index_{rank}"] = guess.index
        row[f"name_{rank}"] = guess.name
        row[f"probability_{rank}"] = f"{guess.probability:.6g}"
    return row


def _as_labels(result: Prediction | Failure) -> dict[str, Any]:
    if isinstance(result, Failure):
        return {"path": result.file, "error": result.reason}
    labels = SEPARATOR.join(guess.name for guess in result.guesses)
    probabilities = SEPARATOR.join(f"{guess.probability:.6g}" for guess in result.guesses)
    return {"path": result.file, "labels": labels, "probabilities": probabilities}


def as_object(result: Prediction | Failure) -> dict[str, Any]:
    """Make the JSON object of an image: its file, and either predictions or an error."""
    if isinstance(result, Failure):
        return {"file": result.file, "error": result.reason}
    guesses = [{**vars(guess), "probability": round(guess.probability, 8)} for guess in result.guesses]
    return {"file": result.file, "predictions": guesses}


def write_topk_ids(folder: Path, predictions: Sequence[Prediction]) -> Path:
    """Write the original's topk_ids.csv: no header, a row per image, its file's own name and then the class indices.

    The most probable class comes first. Images that could not be read have no row.
    """
    stream = io.StringIO(newline="")
    rows = csv.writer(stream, lineterminator="\n")
    for prediction in predictions:
        rows.writerow([as_utf8(Path(prediction.file).name), *(guess.index for guess in prediction.guesses)])
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / TOPK_IDS, stream.getvalue().encode())
    return folder / TOPK_IDS
