"""Draw the curves of one training run, or of several over one another, as an image."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_atomically
from ..fonts import drawable
from ..style import COLOURS, figure_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (8, 2)))
_LETTER, _SAMPLE = 0.075, 0.7  # inches of a letter of the legend, and of the line and the gaps beside a name
_FEW = 25  # rows: with no more, each is a dot as well
_PANEL = (6.2, 3.8)  # inches


@dataclass(frozen=True)
class _Axis:
    """One scale of a panel, and the columns on it with their names in the legend."""

    label: str
    columns: dict[str, str]
    log: bool = False  # where the values span more than a decade
    from_zero: bool = False


_LOSSES = {"train_loss": "train", "eval_loss": "validation", "ema_loss": "validation, EMA"}
_ACCURACIES = {
    "eval_top1": "top-1, validation",
    "eval_top5": "top-5, validation",
    "ema_top1": "top-1, EMA",
    "ema_top5": "top-5, EMA",
    "train_top1": "top-1, training",
}
# title -> the axis on the left, and one on the right
_PANELS = {
    "Loss": [_Axis("loss", _LOSSES)],
    "Accuracy": [_Axis("accuracy [%]", _ACCURACIES)],
    "Average precision": [
        _Axis(
            "AP [%]",
            {
                "eval_ap": "AP, validation",
                "eval_ap50": "AP50, validation",
                "ema_ap": "AP, EMA",
                "ema_ap50": "AP50, EMA",
            },
        )
    ],
    "Learning rate and gradient": [
        _Axis("learning rate", {"lr": "learning rate"}),
        _Axis("gradient norm (L2)", {"grad_norm": "gradient norm"}, log=True),
    ],
    "Speed": [
        _Axis("training speed [images/s]", {"images_per_second": "images/s"}, from_zero=True),
        _Axis("waiting for data [% of the time]", {"data_share": "waiting for data"}, from_zero=True),
    ],
}
_TOP5 = {"eval_top5", "ema_top5"}
_PERCENT = {"data_share"}  # kept as shares of 1

_Run = dict[str, list[float]]
"""The columns of a run's summary."""


def read_summary(file: str | Path) -> list[dict[str, str]]:
    """Read the rows of a summary.csv as text, by column.

    Raises:
        ValueError: it is no CSV file with a whole number as each row's "epoch".
        OSError: it cannot be read.
    """
    file = Path(file)
    try:
        with file.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream, restval="", strict=True))
        for row in rows:
            if None in row:
                raise ValueError(f"the row of epoch {row['epoch']} has more cells than there are columns")
            int(row["epoch"])
    except (ValueError, KeyError, csv.Error) as error:  # text that is no UTF-8 is a ValueError
        raise ValueError(f"{file} is no summary of a run, a row for each epoch: {error}.") from error
    return rows


def draw_curves(csv_files: Sequence[str | Path], out: str | Path) -> None:
    """Draw summary.csv files of runs into one image: loss, accuracy, learning rate, gradient norm, speed.

    The columns drawn are those of this trainer (train_loss, train_top1, eval_loss, eval_top1, eval_top5, their
    ema_ counterparts, lr, grad_norm, images_per_second, data_share); timm's summaries have the first of them. A panel
    for which no run has a number is left out. One run: a colour for each curve; several: a colour for each run,
    named by its folder, and a line style for each curve.

    Args:
        out: an image in the format of its suffix, replaced in one step.

    Raises:
        ValueError: no file, one that is no summary, or none with anything to draw.
        OSError: a file cannot be read or the image not written.
    """
    from matplotlib.figure import Figure  # a second of import, paid when drawing
    from matplotlib.lines import Line2D

    if not csv_files:
        raise ValueError("there are no curves to draw: give at least one summary.csv.")
    files = [Path(file) for file in csv_files]
    runs = [_read_run(file) for file in files]
    panels = {title: axes for title, axes in _PANELS.items() if any(_drawn(axis, runs) for axis in axes)}
    if not panels:
        known = ", ".join(column for axes in _PANELS.values() for axis in axes for column in axis.columns)
        raise ValueError(f"{files[0]} has no column that is drawn ({known}).")
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    width = _PANEL[0] * columns
    longest = int((width - _SAMPLE) / _LETTER)
    names = [_short(drawable(name, place), longest) for place, name in enumerate(_names(files), start=1)]
    with figure_style():
        figure = Figure(figsize=(width, _PANEL[1] * rows), layout="constrained")
        for place, (title, axes) in enumerate(panels.items(), start=1):
            _draw_panel(figure.add_subplot(rows, columns, place, title=title, xlabel="epoch"), axes, runs)
    with figure_style(names):  # which are no formulas
        if len(runs) == 1:
            figure.suptitle(names[0])
        else:
            handles = [Line2D([], [], color=colour, linewidth=3) for colour in _colours(len(runs))]
            beside = max(1, int(width / (_SAMPLE + _LETTER * max(map(len, names)))))
            figure.legend(handles, names, loc="outside upper center", ncols=min(4, beside), frameon=False)
    form = Path(out).suffix.lstrip(".") or "png"
    write_atomically(out, lambda stream: figure.savefig(stream, format=form))


def _read_run(file: Path) -> _Run:
    rows = read_summary(file)
    run = {column: [_number(row[column]) for row in rows] for column in (rows[0] if rows else {})}
    return {column: [100 * y for y in values] if column in _PERCENT else values for column, values in run.items()}


def _names(files: Sequence[Path]) -> list[str]:
    """Find the shortest ends of the folders' paths that tell them apart."""
    folders = [file.absolute().parent.parts for file in files]
    for length in range(1, max(len(parts) for parts in folders) + 1):
        names = ["/".join(parts[-length:]) for parts in folders]
        if len(set(names)) == len(names):
            return names
    return [str(file) for file in files]  # several files of one folder


def _short(name: str, length: int) -> str:
    """Leave out the middle of a name that is too long: paths differ at their ends."""
    half = (length - 1) // 2
    return name if len(name) <= length else f"{name[:half]}…{name[-half:]}"


def _colours(runs: int) -> Sequence[str]:
    """Return a colour for each run; of more than the figures have, hues that are evenly spaced."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    if runs <= len(COLOURS):
        return COLOURS[:runs]
    return [to_hex(colormaps["turbo"](0.05 + 0.9 * place / (runs - 1))) for place in range(runs)]


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:  # an empty cell, or a column of text
        return math.nan


def _finite(column: str, runs: Sequence[_Run]) -> list[float]:
    """Gather a column's numbers that can be drawn, of all runs."""
    return [value for run in runs for value in run.get(column, ()) if math.isfinite(value)]


def _drawn(axis: _Axis, runs: Sequence[_Run]) -> list[str]:
    """Find the columns of an axis for which any run has a number, without a top-5 of five classes or fewer."""
    numbers = {column: _finite(column, runs) for column in axis.columns}
    return [column for column, found in numbers.items() if found and not (column in _TOP5 and min(found) == 100)]


def _draw_panel(axes: Axes, scales: Sequence[_Axis], runs: Sequence[_Run]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.grid()
    scales = [scale for scale in scales if _drawn(scale, runs)]
    handles: list[Any] = []
    for number, scale in enumerate(scales):
        side = axes.twinx() if number else axes
        side.spines["right"].set_visible(number > 0)
        handles += _draw_axis(side, scale, runs, first=len(handles))
        if len(scales) == 2 and len(runs) == 1:  # the colour says which scale a curve is read on
            side.yaxis.label.set_color(handles[-1].get_color())
            side.tick_params(axis="y", colors=handles[-1].get_color())
    if len(runs) > 1 or len(scales) == 1:  # else the coloured labels say it
        axes.legend(handles=handles, loc="best")


def _draw_axis(axes: Axes, axis: _Axis, runs: Sequence[_Run], first: int) -> list[Any]:
    """Draw the columns of one scale; return a line for each, for the legend.

    Args:
        first: curves that are in the panel already.
    """
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_ylabel(axis.label)
    several = len(runs) > 1
    columns = _drawn(axis, runs)
    colours = _colours(len(runs)) if several else COLOURS
    handles = []
    for number, column in enumerate(columns, start=first):
        style = _STYLES[number % len(_STYLES)] if several else "-"
        colour = COLOURS[number % len(COLOURS)]
        for place, run in enumerate(runs):
            if column in run:
                # an epoch without an evaluation has no number: the line goes on to the next that has one
                points = [(x, y) for x, y in zip(run["epoch"], run[column], strict=True) if math.isfinite(y)]
                (line,) = axes.plot(*zip(*points, strict=True), linestyle=style) if points else axes.plot([], [])
                line.set(linewidth=1.5, color=colours[place] if several else colour)
                line.set_marker("o" if len(points) <= _FEW else "")
                line.set(markersize=3)
                if first and len(points) == 1:  # both scales end at their one value, and so in the same place
                    line.set(markersize=7, markerfacecolor="none")
        handles.append(Line2D([], [], color="0.3" if several else colour, linestyle=style, label=axis.columns[column]))
    values = [value for column in columns for value in _finite(column, runs)]
    if axis.log and min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
        if max(values) < 1000 * min(values):  # else powers of ten alone are enough
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.ticklabel_format(axis="y", scilimits=(-3, 5), useMathText=True)
    if axis.from_zero:
        axes.set_ylim(0, 1.15 * max(values) if max(values) > 0 else 1)
    return handles
