"""Make rows of results, and write them as one table for a terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from ..engine.records import Array, Outcomes, interval_of_mean, interval_of_shares, wilson
from .corruptions import SEVERITIES
from .published import ALEXNET, corruption_error, mean_corruption_error

Row: TypeAlias = dict[str, Any]


def set_row(key: str, title: str, right: Array, top5: float | None, competing: int, published: float | None) -> Row:
    """Make the row of a set from whether each of its images is right; percentages."""
    count, correct = len(right), int(right.sum())
    low, high = wilson(correct, count)
    return {
        "set": key,
        "title": title,
        "count": count,
        "correct": correct,
        "top1": 100 * correct / count if count else math.nan,
        "top1_low": 100 * low,
        "top1_high": 100 * high,
        "top5": top5,
        "competing": competing,
        "published_top1": published,
    }


def corruption_rows(
    corruption: str, outcomes: Outcomes, severities: Sequence[int], clean: float, is_imagenet: bool
) -> list[Row]:
    """Make the rows of one corruption: one for each severity, and their mean.

    Args:
        outcomes: of a `CorruptedDataset` with as many images at each severity.
        clean: top-1 of the same images as they are, in percent.
        is_imagenet: the classes are ImageNet's, so that AlexNet's errors are a measure.
    """
    right = outcomes.right.reshape(len(severities), -1)
    rows = []
    for severity, one in zip(severities, right, strict=True):
        row = set_row("c", corruption, one, None, 0, None)
        rows.append(_of_corruption(row, corruption, severity, clean))
    wrong_N = 1 - right.mean(0)
    low, high = interval_of_shares(wrong_N)
    row = set_row("c", corruption, right.reshape(-1), None, 0, None)
    row |= {"count": right.shape[1], "correct": None, "top1_low": 100 - 100 * high, "top1_high": 100 - 100 * low}
    row = _of_corruption(row, corruption, "mean", clean)
    if is_imagenet and tuple(severities) == SEVERITIES:
        row["ce"] = corruption_error(corruption, (1 - right.mean(1)).tolist())
    return [*rows, row]


def _of_corruption(row: Row, corruption: str, severity: int | str, clean: float) -> Row:
    dropped = ("title", "top5", "competing", "published_top1")
    kept = {key: value for key, value in row.items() if key not in dropped}
    top1 = row["top1"]
    relative = 100 * top1 / clean if clean else math.nan
    return {
        "set": "c",
        "corruption": corruption,
        "severity": severity,
        **kept,
        "error": 100 - top1,
        "relative": relative,
    }


def mean_row(wrong: Mapping[str, Array], clean: float, severities: Sequence[int], is_imagenet: bool) -> Row:
    """Make the row over all corruptions: the mean error, and mCE where it is defined.

    Args:
        wrong: corruption -> whether each image is wrong, (severities, images).
    """
    mean_N = np.mean([one.mean(0) for one in wrong.values()], axis=0)
    low, high = interval_of_shares(mean_N)
    top1 = 100 * (1 - float(mean_N.mean()))
    bounds = {"count": len(mean_N), "top1": top1, "top1_low": 100 - 100 * high, "top1_high": 100 - 100 * low}
    row: Row = {"set": "c", "corruption": "mean", "severity": "mean", **bounds, "error": 100 - top1}
    row["relative"] = 100 * top1 / clean if clean else math.nan
    if is_imagenet and tuple(severities) == SEVERITIES and wrong.keys() == ALEXNET.keys():
        row["mce"] = mean_corruption_error({name: one.mean(1).tolist() for name, one in wrong.items()})
        errors_N = np.mean([100 * one.mean(0) / ALEXNET[name] for name, one in wrong.items()], axis=0)
        row["mce_low"], row["mce_high"] = interval_of_mean(errors_N)
    return row


def as_table(rows: Sequence[Row]) -> str:
    """Write the rows for a terminal: a line for each set, and one for each corruption."""
    sets = [row for row in rows if row["set"] != "c" and "failed" not in row]
    lines: list[Sequence[str]] = []
    if sets:
        has_published = any(row["published_top1"] is not None for row in sets)
        head = ["set", "images", "top-1", "95 % interval", "top-5", "classes"]
        lines.append([*head, *(["published (timm, crop 0.95)"] if has_published else [])])
        for row in sets:
            top5, published = row["top5"], row["published_top1"]
            cells = [row["title"], str(row["count"]), _percent(row["top1"]), _interval(row), _percent(top5)]
            cells.append(str(row["competing"]))
            lines.append([*cells, *([_percent(published)] if has_published else [])])
    text = _aligned(lines)
    corrupted = [row for row in rows if row["set"] == "c" and "corruption" in row]
    if corrupted:
        text += ("\n\n" if text else "") + _corruptions_table(corrupted)
    return text


def _corruptions_table(rows: Sequence[Row]) -> str:
    severities = list(dict.fromkeys(row["severity"] for row in rows if row["severity"] != "mean"))
    has_ce = any("ce" in row for row in rows)
    lines: list[Sequence[str]] = [
        ["top-1 by severity", *map(str, severities), "mean", "95 % interval", "of clean", *(["CE"] if has_ce else [])]
    ]
    for corruption in dict.fromkeys(row["corruption"] for row in rows):
        by_severity = {row["severity"]: row for row in rows if row["corruption"] == corruption}
        mean = by_severity["mean"]
        cells = [corruption.replace("_", " ")]
        cells += [_percent(by_severity[one]["top1"]) if one in by_severity else "" for one in severities]
        cells += [_percent(mean["top1"]), _interval(mean), _percent(mean["relative"])]
        lines.append([*cells, *([_percent(mean.get("ce", mean.get("mce")))] if has_ce else [])])
    last = rows[-1]
    said = [f"mean error {_percent(last['error'])} %"] if last["corruption"] == "mean" else []
    if "mce" in last:
        said.append(f"mCE {_percent(last['mce'])} % (95 % interval {last['mce_low']:.2f} to {last['mce_high']:.2f})")
    return "\n".join([_aligned(lines), *([", ".join(said)] if said else [])])


def _percent(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.2f}"


def _interval(row: Row) -> str:
    return "" if math.isnan(row["top1_low"]) else f"{row['top1_low']:.2f} to {row['top1_high']:.2f}"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Set columns under one another, the first one to the left."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )
