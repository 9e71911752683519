"""Write what each class and each image of an evaluation of several labels got, as tables and a drawing."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import precision_recall_curve

from ..data import PictureDataset
from ..data.label_sets import SEPARATOR
from ..files import write_atomically, write_bytes, write_csv
from ..style import COLOURS, figure_style
from ..text import as_line, without_nan
from .multilabel import Answers, Measures
from .records import Array
from .report import cell, earlier
from .report_figures import WORST, short_name

log = logging.getLogger(__name__)

_CURVES = 10  # classes that are drawn, the worst and the best


@dataclass(frozen=True)
class LabelReport:
    """What a report is made of.

    Attributes:
        names: of all the model's classes.
        thresholds: (K,) of the probabilities.
    """

    answers: Answers
    measures: Measures
    dataset: PictureDataset
    names: Sequence[str]
    thresholds: Array
    row: Mapping[str, Any]


def write_label_report(folder: Path, report: LabelReport) -> None:
    """Write a report's tables and its drawing, each in one step, in place of an earlier one, which is said.

    per_class.csv has a row per class; pictures.csv one an image, with its labels, those found, those missed and those
    that are too many; worst.csv the answers of each class that are furthest from right; curves.png precision and
    recall of the worst and the best classes.
    """
    if old := earlier(folder):
        log.warning("%s: the %d files of an earlier report are replaced", as_line(folder), len(old))
    for file in old:
        file.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    classes = report.measures.per_class(report.names, report.thresholds)
    write_bytes(folder / "summary.json", f"{json.dumps(without_nan(dict(report.row)), indent=2)}\n".encode())
    write_csv(folder / "per_class.csv", [{key: cell(value) for key, value in row.items()} for row in classes])
    probabilities = report.answers.probabilities()
    write_csv(folder / "pictures.csv", _picture_rows(report, probabilities))
    write_csv(folder / "worst.csv", _worst_rows(report, probabilities))
    figure = _draw_curves(report)
    write_atomically(folder / "curves.png", lambda stream: figure.savefig(stream, format="png"))
    log.info("report written to %s", as_line(folder))


def _picture_rows(report: LabelReport, probabilities: Array) -> list[dict[str, Any]]:
    answers, names = report.answers, np.array(report.names, dtype=object)
    found = probabilities >= report.thresholds

    def said(mask_K: Array) -> str:
        return SEPARATOR.join(names[mask_K])

    return [
        {
            "file": report.dataset.filename(int(answers.index[at])),
            "labels": said(answers.targets[at]),
            "found": said(found[at]),
            "missed": said(answers.targets[at] & ~found[at]),
            "too_many": said(found[at] & ~answers.targets[at]),
        }
        for at in range(len(answers))
    ]


def _worst_rows(report: LabelReport, probabilities: Array) -> list[dict[str, Any]]:
    """List for each class the images that have it and are least probable, and those without it that are most."""
    answers, rows = report.answers, []
    for index, name in enumerate(report.names):
        for kind, has in (("missed", True), ("too_many", False)):
            places = np.flatnonzero(answers.targets[:, index] == has)
            values = probabilities[places, index]
            wrong = values < report.thresholds[index] if has else values >= report.thresholds[index]
            places, values = places[wrong], values[wrong]
            order = np.argsort(values if has else -values, kind="stable")[:WORST]
            for place, value in zip(places[order].tolist(), values[order].tolist(), strict=True):
                file = report.dataset.filename(int(answers.index[place]))
                rows.append({"class": name, "kind": kind, "file": file, "probability": cell(float(value))})
    return rows or [{"class": "", "kind": "", "file": "", "probability": ""}]


def _draw_curves(report: LabelReport) -> Any:
    """Draw precision over recall of the classes of least and of most average precision, as a `Figure`."""
    from cycler import cycler  # comes with matplotlib
    from matplotlib.figure import Figure

    precision = report.measures.average_precision
    order = np.argsort(np.where(np.isnan(precision), np.inf, precision), kind="stable")
    order = order[: int((~np.isnan(precision)).sum())]
    chosen = list(order) if len(order) <= _CURVES else [*order[: _CURVES // 2], *order[-(_CURVES // 2) :]]
    names = [short_name(report.names[index], int(index)) for index in chosen]
    with figure_style(names):
        figure = Figure(figsize=(7.5, 5), layout="constrained")
        axes = figure.add_subplot(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.01))
        axes.set_prop_cycle(cycler(linestyle=["-", "--"]) * cycler(color=COLOURS))
        for index, name in zip(chosen, names, strict=True):
            targets, scores = report.answers.targets[:, index], report.answers.logits[:, index]
            precisions, recalls, _ = precision_recall_curve(targets, scores)
            axes.step(recalls, precisions, where="post", label=f"{name}: AP {100 * precision[index]:.1f} %")
        title = "Precision and recall" if len(chosen) == len(order) else "Precision and recall, worst and best classes"
        axes.set_title(title)
        axes.grid()
        if chosen:
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
