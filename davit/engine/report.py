"""Write what each class and each image of an evaluation got: tables, and the drawings of `report_figures`."""

from __future__ import annotations

import csv
import io
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..data import BadImageError, PictureDataset
from ..data.imagenet import readable_names
from ..files import write_atomically, write_bytes, write_csv
from ..parsing.results import require_writable_folder
from ..text import as_line, as_utf8, some, without_nan
from .calibration import Bin, reliability
from .records import Array, Outcomes, wilson
from .report_figures import WORST, Page, Tile, draw_confusion, draw_reliability, draw_sheet

log = logging.getLogger(__name__)

FILES = (
    "summary.json",
    "per_class.csv",
    "confusion.csv",
    "pictures.csv",
    "reliability.csv",
    "worst.csv",
    "slices.csv",
)
PICTURES = ("confusion.png", "reliability.png", "curves.png")
SHEETS = "worst_*.png"

_MOST_COLUMNS = 2000  # of a matrix; one of more classes is written as pairs
_ROWS_OF_A_SHEET = 20
_NOT_FINITE = "(not finite)"


@dataclass(frozen=True)
class Report:
    """What a report is made of.

    Attributes:
        names: of all the model's classes.
        competing: the indices of those that compete, rising.
        shown: how the tensors of the data set become images again: the mean and std of each band.
        calibrated: the outcomes at the model's temperature, where it has one.
    """

    outcomes: Outcomes
    dataset: PictureDataset
    names: Sequence[str]
    competing: Sequence[int]
    shown: tuple[Sequence[float], Sequence[float]]
    row: Mapping[str, Any]
    slices: Sequence[Mapping[str, Any]] = field(default_factory=list)
    calibrated: Outcomes | None = None


def check_folder(folder: Path, overwrite: bool) -> None:
    """Raise `ValueError` where a report cannot be written: to a file, or over an earlier one without `overwrite`."""
    require_writable_folder(folder, "--report")
    if not overwrite and (old := earlier(folder)):
        raise ValueError(
            f"--report {folder} holds an earlier report ({some(file.name for file in old)}); name another folder, or "
            "give --overwrite to replace it."
        )


def earlier(folder: Path) -> list[Path]:
    """List the files of an earlier report."""
    named = [folder / name for name in (*FILES, *PICTURES) if (folder / name).exists()]
    return [*named, *sorted(folder.glob(SHEETS))]


def write_report(folder: Path, report: Report) -> None:
    """Write a report's tables and drawings, each in one step, in place of an earlier one, which is said."""
    if old := earlier(folder):
        log.warning("%s: the %d files of an earlier report are replaced", as_line(folder), len(old))
    for file in old:
        file.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    outcomes = report.outcomes.only(report.outcomes.scored)
    matrix = confusion(outcomes, len(report.names))
    classes = per_class(outcomes, report.names, report.competing, matrix)
    write_bytes(folder / "summary.json", f"{json.dumps(without_nan(dict(report.row)), indent=2)}\n".encode())
    write_csv(folder / "per_class.csv", [{key: cell(value) for key, value in row.items()} for row in classes])
    _write_confusion(folder / "confusion.csv", matrix, report)
    write_csv(folder / "pictures.csv", [_picture_row(report, outcomes, at) for at in range(len(outcomes))])
    if report.slices:
        write_csv(folder / "slices.csv", report.slices)
    bins = {"": _bins(report.outcomes)}
    if report.calibrated is not None:
        bins = {
            "as the model gives them": bins[""],
            f"at temperature {report.row['temperature']:.4g}": _bins(report.calibrated),
        }
    write_csv(
        folder / "reliability.csv",
        [
            {"probabilities": title, **{k: cell(v) for k, v in vars(one).items()}}
            for title in bins
            for one in bins[title]
        ],
    )
    _draw(folder / "reliability.png", draw_reliability(bins))
    _draw(folder / "confusion.png", draw_confusion(matrix, readable_names(report.names), report.competing))
    _write_worst(folder, report, outcomes, classes)
    log.info("report written to %s", as_line(folder))


def confusion(outcomes: Outcomes, num_classes: int) -> Array:
    """Count the images of each class (row) by what they were taken for (column); the last column: not finite."""
    matrix = np.zeros((num_classes, num_classes + 1), dtype=np.int64)
    np.add.at(matrix, (outcomes.target, np.where(outcomes.predicted < 0, num_classes, outcomes.predicted)), 1)
    return matrix


def per_class(
    outcomes: Outcomes, names: Sequence[str], competing: Sequence[int], matrix: Array | None = None
) -> list[dict[str, Any]]:
    """Return a row for each competing class; percentages are NaN where there is nothing to divide by.

    `support` counts its images, `predicted` all that were taken for it; `taken_for` is the class that most of its
    wrong ones were taken for.
    """
    matrix = confusion(outcomes, len(names)) if matrix is None else matrix
    right = np.bincount(outcomes.target[outcomes.right], minlength=len(names))
    rows: list[dict[str, Any]] = []
    for index in competing:
        support, correct = int(matrix[index].sum()), int(right[index])
        predicted = int(matrix[:, index].sum())
        low, high = wilson(correct, support)
        wrong = matrix[index, :-1].copy()
        wrong[index] = 0
        most = int(wrong.argmax()) if wrong.any() else None
        rows.append(
            {
                "index": index,
                "class": names[index],
                "support": support,
                "correct": correct,
                "accuracy": 100 * correct / support if support else math.nan,
                "accuracy_low": 100 * low if support else math.nan,
                "accuracy_high": 100 * high if support else math.nan,
                "predicted": predicted,
                "precision": 100 * int(matrix[index, index]) / predicted if predicted else math.nan,
                "taken_for": "" if most is None else names[most],
                "taken_for_count": 0 if most is None else int(wrong[most]),
            }
        )
    return rows


def _write_confusion(file: Path, matrix: Array, report: Report) -> None:
    """Write the matrix of the competing classes, or of many classes the pairs that occur."""
    names, competing = report.names, list(report.competing)
    lost = len(report.names)  # the column of what is not finite
    labels = {**dict(enumerate(names)), lost: _NOT_FINITE}
    if len(competing) > _MOST_COLUMNS:
        pairs = [
            (labels[row], labels[column], matrix[row, column]) for row, column in zip(*matrix.nonzero(), strict=True)
        ]
        log.info("confusion.csv: of %d classes it holds the pairs that occur", len(competing))
        write_csv(file, [dict(zip(("class", "predicted", "count"), pair, strict=True)) for pair in pairs])
        return
    columns = [*competing, *([lost] if matrix[:, lost].any() else [])]
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["class", *(as_utf8(labels[column]) for column in columns)])
    writer.writerows([as_utf8(names[row]), *matrix[row, columns].tolist()] for row in competing)
    write_bytes(file, stream.getvalue().encode())


def _picture_row(report: Report, outcomes: Outcomes, at: int) -> dict[str, Any]:
    predicted = int(outcomes.predicted[at])
    return {
        "file": report.dataset.filename(int(outcomes.index[at])),
        "class": report.names[int(outcomes.target[at])],
        "predicted": report.names[predicted] if predicted >= 0 else _NOT_FINITE,
        "right": int(outcomes.right[at]),
        "probability": cell(float(outcomes.confidence[at])),
        "probability_of_class": cell(float(np.exp(-outcomes.loss[at]))),
    }


def _bins(outcomes: Outcomes) -> list[Bin]:
    kept = outcomes.only(outcomes.scored & outcomes.finite)
    return reliability(kept.confidence, kept.right)


def worst_of(outcomes: Outcomes, index: int, count: int = WORST) -> list[int]:
    """Return the places of the images of a class that are furthest from right, the worst first.

    These are the wrong ones, and behind them right ones, both by the probability of the class; equal ones in the order
    of the data set.
    """
    places = np.flatnonzero(outcomes.target == index)
    loss = np.where(np.isnan(outcomes.loss[places]), np.inf, outcomes.loss[places])
    order = np.lexsort((places, -loss, outcomes.right[places]))
    return [int(place) for place in places[order][:count]]


def _write_worst(folder: Path, report: Report, outcomes: Outcomes, classes: Sequence[Mapping[str, Any]]) -> None:
    """Write the worst images of each class: a table, and sheets with the classes of least accuracy first."""
    seen = sorted((row for row in classes if row["support"]), key=lambda row: (row["accuracy"], row["index"]))
    pages = -(-len(seen) // _ROWS_OF_A_SHEET)
    shown = readable_names(report.names)
    rows: list[dict[str, Any]] = []
    for number in range(pages):
        page: Page = []
        for row in seen[number * _ROWS_OF_A_SHEET : (number + 1) * _ROWS_OF_A_SHEET]:
            tiles = []
            for rank, place in enumerate(worst_of(outcomes, row["index"]), start=1):
                said = _picture_row(report, outcomes, place)
                rows.append({"class": row["class"], "rank": rank, **{k: v for k, v in said.items() if k != "class"}})
                tiles.append(_tile(report, outcomes, place, said["predicted"], shown))
            page.append((shown[row["index"]], row["index"], f"{row['correct']} of {row['support']} right", tiles))
        image = draw_sheet(page, f"Worst images of each class, page {number + 1} of {pages}")
        name = SHEETS.replace("*", f"{number + 1:0{len(str(pages))}d}")
        write_atomically(folder / name, partial(image.save, format="PNG"))
    write_csv(folder / "worst.csv", rows)


def _tile(report: Report, outcomes: Outcomes, place: int, name: str, names: Sequence[str]) -> Tile:
    """Read an image as the model sees it."""
    try:
        image_CHW = report.dataset[int(outcomes.index[place])][0]
    except BadImageError:  # it has changed since it was evaluated
        shown = None
    else:
        mean, std = (np.asarray(values, dtype=np.float32)[:, None, None] for values in report.shown)
        seen_CHW = np.clip(image_CHW.numpy() * std + mean, 0, 1)
        shown = (seen_CHW[:3] if len(seen_CHW) >= 3 else seen_CHW[[0, 0, 0]]).transpose(1, 2, 0)
    predicted = int(outcomes.predicted[place])
    name = names[predicted] if predicted >= 0 else name
    return Tile(shown, name, predicted, float(outcomes.confidence[place]), bool(outcomes.right[place]))


def cell(value: Any) -> Any:
    """Write a number for a csv: six digits, and nothing for NaN."""
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def _draw(file: Path, figure: Any) -> None:
    write_atomically(file, lambda stream: figure.savefig(stream, format="png"))
