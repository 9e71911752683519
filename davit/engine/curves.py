"""The curves of one training run, or of several over one another, as a picture."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#e377c2")
_STYLES = ("-", "--", "-.", ":")
_FEW = 25  # rows: with no more, each is a dot as well
_PANEL_WIDTH, _PANEL_HEIGHT = 6.2, 3.8  # inches
_LEGEND_COLUMNS = 4


@dataclass(frozen=True)
class _Axis:
    """One scale, and the columns on it with their names in the legend."""

    label: str
    columns: dict[str, str]
    log: bool = False  # where the values span more than a decade
    from_zero: bool = False


@dataclass(frozen=True)
class _Panel:
    title: str
    left: _Axis
    right: _Axis | None = None


_LOSSES = {"train_loss": "train", "eval_loss": "validation", "ema_loss": "validation, EMA"}
_ACCURACIES = {
    "eval_top1": "top-1, validation",
    "eval_top5": "top-5, validation",
    "ema_top1": "top-1, EMA",
    "ema_top5": "top-5, EMA",
    "train_top1": "top-1, training",
}
_PANELS = (
    _Panel("Loss", _Axis("loss", _LOSSES)),
    _Panel("Accuracy", _Axis("accuracy [%]", _ACCURACIES)),
    _Panel(
        "Learning rate and gradient",
        _Axis("learning rate", {"lr": "learning rate"}),
        _Axis("gradient norm (L2)", {"grad_norm": "gradient norm"}, log=True),
    ),
    _Panel(
        "Speed",
        _Axis("training speed [images/s]", {"images_per_second": "images/s"}, from_zero=True),
        _Axis("waiting for data [% of the time]", {"data_share": "waiting for data"}, from_zero=True),
    ),
)
_PERCENT = {"data_share"}  # kept as shares of 1


@dataclass(frozen=True)
class _Run:
    name: str
    columns: dict[str, list[float]]

    def has(self, column: str) -> bool:
        return any(math.isfinite(value) for value in self.columns.get(column, ()))


def read_summary(file: str | Path) -> list[dict[str, str]]:
    """The rows of a summary.csv as text, by column.

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
    """Draw summary.csv files of runs into one picture: loss, accuracy, learning rate, gradient norm, speed.

    The columns drawn are those of this trainer (train_loss, train_top1, eval_loss, eval_top1, eval_top5, their
    ema_ counterparts, lr, grad_norm, images_per_second, data_share); timm's summaries have the first of them. A panel
    for which no run has a number is left out. One run: a colour for each curve; several: a colour for each run,
    named by its folder, and a line style for each curve.

    Args:
        out: a picture in the format of its suffix, replaced in one step.

    Raises:
        ValueError: no file, one that is no summary, or none with anything to draw.
        OSError: a file cannot be read or the picture not written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a second of import, paid when drawing
    from matplotlib.figure import Figure

    if not csv_files:
        raise ValueError("there are no curves to draw: give at least one summary.csv.")
    runs = _read_runs([Path(file) for file in csv_files])
    panels = [panel for panel in _PANELS if _drawn(panel.left, runs) or _drawn(panel.right, runs)]
    if not panels:
        known = ", ".join(name for panel in _PANELS for name in panel.left.columns)
        raise ValueError(f"{csv_files[0]} has no column that is drawn ({known}).")
    columns = 1 if len(panels) == 1 else 2
    rows = -(-len(panels) // columns)
    legend_rows = -(-len(runs) // _LEGEND_COLUMNS)
    width, height = _PANEL_WIDTH * columns, _PANEL_HEIGHT * rows + 0.2 * (1 + legend_rows)
    figure = Figure(figsize=(width, height), dpi=110)
    FigureCanvasAgg(figure)
    for place, panel in enumerate(panels):
        # by hand: matplotlib's own layouts draw everything twice
        left = _PANEL_WIDTH * (place % columns) + 0.8
        bottom = _PANEL_HEIGHT * (rows - 1 - place // columns) + 0.55
        box = (left / width, bottom / height, (_PANEL_WIDTH - 1.6) / width, (_PANEL_HEIGHT - 0.95) / height)
        _draw_panel(figure.add_axes(box), panel, runs)
    _title(figure, runs)
    picture = io.BytesIO()
    figure.savefig(picture, format=Path(out).suffix.lstrip(".") or "png")
    write_bytes(out, picture.getvalue())


def _read_runs(files: Sequence[Path]) -> list[_Run]:
    runs = []
    for file, name in zip(files, _names(files), strict=True):
        rows = read_summary(file)
        columns = {column: [_number(row[column]) for row in rows] for column in (rows[0] if rows else {})}
        for column in _PERCENT & columns.keys():
            columns[column] = [100 * value for value in columns[column]]
        runs.append(_Run(name, columns))
    return runs


def _names(files: Sequence[Path]) -> list[str]:
    """The shortest ends of the folders' paths that tell them apart."""
    folders = [file.absolute().parent.parts for file in files]
    for length in range(1, max(len(parts) for parts in folders) + 1):
        names = ["/".join(parts[-length:]) for parts in folders]
        if len(set(names)) == len(names):
            return names
    return [str(file) for file in files]  # several files of one folder


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:  # an empty cell, or a column of text
        return math.nan


def _drawn(axis: _Axis | None, runs: Sequence[_Run]) -> list[str]:
    """The columns of an axis for which any run has a number."""
    return [column for column in (axis.columns if axis else ()) if any(run.has(column) for run in runs)]


def _draw_panel(axes: Axes, panel: _Panel, runs: Sequence[_Run]) -> None:
    from matplotlib.ticker import MaxNLocator

    left, right = _drawn(panel.left, runs), _drawn(panel.right, runs)
    axes.set_title(panel.title, fontsize=11)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.3)
    handles: list[Any] = []
    used = 0
    sides = [(axes, panel.left, left)] if left else []
    if right and panel.right is not None:
        sides.append((axes.twinx() if left else axes, panel.right, right))
    for side, axis, columns in sides:
        handles += _draw_axis(side, axis, columns, runs, used)
        used += len(columns)
        if len(sides) == 2 and len(runs) == 1:  # the colour says which scale a curve is read on
            side.yaxis.label.set_color(_COLOURS[used - 1])
            side.tick_params(axis="y", colors=_COLOURS[used - 1])
    if len(runs) > 1 or len(sides) == 1 or used > 2:  # else the axes' coloured labels say it
        axes.legend(handles=handles, fontsize=8, loc="best", framealpha=0.8)


def _draw_axis(axes: Axes, axis: _Axis, columns: Sequence[str], runs: Sequence[_Run], used: int) -> list[Any]:
    """Draw the columns of one scale; returns a line for each, for the legend. `used` curves are in the panel."""
    from matplotlib.lines import Line2D

    axes.set_ylabel(axis.label)
    several = len(runs) > 1
    handles = []
    values = []
    for number, column in enumerate(columns, start=used):
        style = _STYLES[number % len(_STYLES)] if several else "-"
        for place, run in enumerate(runs):
            if run.has(column):
                colour = _COLOURS[(place if several else number) % len(_COLOURS)]
                epochs, y = run.columns["epoch"], run.columns[column]
                dot = "o" if len(y) <= _FEW else ""
                axes.plot(epochs, y, color=colour, linestyle=style, marker=dot, markersize=3, linewidth=1.5)
                values += [value for value in y if math.isfinite(value)]
        colour = "0.3" if several else _COLOURS[number % len(_COLOURS)]
        handles.append(Line2D([], [], color=colour, linestyle=style, label=axis.columns[column]))
    if axis.log and min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
    else:
        axes.ticklabel_format(axis="y", scilimits=(-3, 5), useMathText=True)
    if axis.from_zero:
        axes.set_ylim(0, 1.15 * max(values) if max(values) > 0 else 1)
    return handles


def _title(figure: Any, runs: Sequence[_Run]) -> None:
    """One run by its name; several by a legend of their colours above the panels."""
    from matplotlib.lines import Line2D

    if len(runs) == 1:
        figure.text(0.5, 1 - 0.12 / figure.get_figheight(), runs[0].name, ha="center", va="top", fontsize=13)
        return
    lines = [
        Line2D([], [], color=_COLOURS[place % len(_COLOURS)], linewidth=3, label=run.name)
        for place, run in enumerate(runs)
    ]
    figure.legend(handles=lines, loc="upper center", ncols=_LEGEND_COLUMNS, frameon=False)
