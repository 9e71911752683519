"""Draw a confusion matrix, how far probabilities can be trusted, and sheets of images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image, ImageDraw

from ..data.imagenet import without_id
from ..fonts import drawable, fitted, pillow_font
from ..style import GREY, MAP, ORANGE, SKY, SMALL, TEXT, TITLE, figure_style, pixels
from .calibration import Bin, ece
from .records import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WORST = 8  # images of a class

_MOST_DRAWN = 200  # classes of a matrix; of more, those with most errors
_NUMBERS = 20  # classes, up to which each cell has its number
_SHORT = 24  # characters of a class's name
_TILE, _GAP, _TEXT, _LABEL = 112, 8, 15, 200  # pixels
_LINE = 18  # pixels of a line of a class's name beside its images
_HEAD = 36  # pixels, of a sheet's title


def short_name(name: str, index: int) -> str:
    """Return the name of a class as a figure has room for it; its index where no font can draw it."""
    name = drawable(without_id(name), index)
    return name if len(name) <= _SHORT else f"{name[: _SHORT - 1]}…"


def draw_confusion(matrix: Array, names: Sequence[str], competing: Sequence[int]) -> Any:
    """Draw which share of each class (row) is taken for which (column), as matplotlib's `Figure`.

    Of more than 200 classes, the 200 with most images that are wrong or wrongly taken for them.

    Args:
        matrix: (classes, classes + 1), as `davit.engine.report.confusion`.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    chosen = np.asarray(competing)
    title = "Confusion: the share of each class that is taken for which"
    if len(chosen) > _MOST_DRAWN:
        off = matrix[:, :-1] * (1 - np.eye(len(matrix), dtype=np.int64))
        errors = off.sum(1) + off.sum(0) + matrix[:, -1]
        order = np.argsort(-errors[chosen], kind="stable")[:_MOST_DRAWN]
        title += f"; the {_MOST_DRAWN} of {len(chosen)} classes with most errors"
        chosen = np.sort(chosen[order])
    counts = matrix[np.ix_(chosen, chosen)]
    support = matrix[chosen].sum(1)
    with np.errstate(invalid="ignore"):
        percent = 100 * counts / np.where(support, support, np.nan)[:, None]
    labels = [short_name(names[index], int(index)) for index in chosen]
    rows = [f"{label} ({count})" for label, count in zip(labels, support, strict=True)]
    few = len(chosen) <= _NUMBERS
    cell, size = (0.5, TEXT) if few else (max(0.125, min(0.3, 24 / len(chosen))), SMALL - 0.5)
    side = max(2.5, cell * len(chosen))
    longest = max(map(len, rows)) * size * 0.0085  # inches
    with figure_style(labels):
        figure = Figure(figsize=(side + longest + 1.6, side + longest + 1.2), layout="compressed")
        axes = figure.add_subplot()
        image = axes.imshow(percent, cmap=MAP, norm=PowerNorm(0.5, 0, 100), interpolation="nearest")
        axes.set_xticks(range(len(chosen)), labels, rotation=90, fontsize=size)
        axes.set_yticks(range(len(chosen)), rows, fontsize=size)
        axes.tick_params(length=0 if few else 2, pad=2)
        axes.set_xlabel("taken for")
        axes.set_ylabel("class (its images)")
        figure.suptitle(title, wrap=True)
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, aspect=30, shrink=min(1, 6 / side))
        bar.set_ticks([0, 1, 5, 20, 50, 100], labels=["0", "1", "5", "20", "50", "100 %"])
        if few:
            for (row, column), value in np.ndenumerate(percent):
                if counts[row, column]:
                    said = f"{value:.3g}" if value < 99.95 else "100"
                    colour = "black" if value > 35 else "white"
                    axes.text(column, row, said, ha="center", va="center", fontsize=size, color=colour)
    return figure


def draw_reliability(bins: Mapping[str, Sequence[Bin]]) -> Any:
    """Draw how often the model is right at each confidence, for each kind of probabilities, as a `Figure`."""
    from matplotlib.figure import Figure

    with figure_style():
        figure = Figure(figsize=(5.2 * len(bins), 5.6), layout="constrained")
        grid = figure.add_gridspec(2, len(bins), height_ratios=(3, 1))
        for place, (title, rows) in enumerate(bins.items()):
            top = figure.add_subplot(grid[0, place])
            total = sum(one.count for one in rows)
            error = f"ECE {100 * ece(list(rows)):.2f} %, {total:,} images"
            top.set_title(f"{title}\n{error}" if title else f"Reliability: {error}")
            _draw_bins(top, figure.add_subplot(grid[1, place], sharex=top), _joined(rows))
    return figure


def _joined(rows: Sequence[Bin]) -> list[Bin]:
    """Put what is exactly 1 with the bin below, whose bar is drawn."""
    *others, last, one = rows
    count = last.count + one.count
    if not count:
        return [*others, last]
    held = [part for part in (last, one) if part.count]
    sure, right = (
        sum(part.count * getattr(part, name) for part in held) / count for name in ("confidence", "accuracy")
    )
    return [*others, Bin(last.low, one.high, count, sure, right)]


def _draw_bins(top: Axes, below: Axes, rows: Sequence[Bin]) -> None:
    middles = [(one.low + one.high) / 2 for one in rows]
    width = 0.92 / len(rows)
    filled = [(middle, one) for middle, one in zip(middles, rows, strict=True) if one.count]
    top.bar([x for x, _ in filled], [one.accuracy for _, one in filled], width, color=SKY, label="share that is right")
    for x, one in filled:
        top.plot([x, x], [one.accuracy, one.confidence], color=ORANGE, linewidth=1.5)
    top.plot([x for x, _ in filled], [one.confidence for _, one in filled], "_", color=ORANGE, label="mean confidence")
    top.plot([0, 1], [0, 1], "--", color=GREY, linewidth=1, label="as they should agree")
    top.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that is right")
    top.legend(loc="best")
    top.grid()
    total = sum(one.count for one in rows) or 1
    below.bar(middles, [100 * one.count / total for one in rows], width, color=GREY)
    below.set(xlabel="confidence: probability of the answer", ylabel="images [%]")
    below.grid()


@dataclass(frozen=True)
class Tile:
    """One image of a sheet: (H, W, 3) of 0 to 1, None where it cannot be shown, and what it was taken for."""

    image: Array | None
    predicted: str
    index: int
    probability: float
    right: bool


Page: TypeAlias = list[tuple[str, int, str, list[Tile]]]
"""The rows of a sheet: a class's name and index, a note, and its images."""


def draw_sheet(page: Page, title: str) -> Image.Image:
    """Draw a row of images for each class; below each what it was taken for, in orange where that is wrong."""
    row_height = _TILE + 2 * _TEXT + 2 * _GAP
    width = _LABEL + WORST * (_TILE + _GAP) + _GAP
    sheet = Image.new("RGB", (width, _HEAD + row_height * len(page)), "white")
    draw = ImageDraw.Draw(sheet)
    _write(draw, (_GAP, 9), title, pixels(TITLE), "black")
    for number, (name, index, note, tiles) in enumerate(page):
        y = _HEAD + number * row_height
        lines = _wrapped(drawable(without_id(name), index), pixels(TEXT), _LABEL - 2 * _GAP)
        for line, text in enumerate(lines):
            _write(draw, (_GAP, y + line * _LINE), text, pixels(TEXT), "black")
        _write(draw, (_GAP, y + len(lines) * _LINE + 4), note, pixels(SMALL), GREY)
        for column, tile in enumerate(tiles):
            x = _LABEL + column * (_TILE + _GAP)
            if tile.image is not None:
                _paste(sheet, tile.image, x, y)
            colour = GREY if tile.right else ORANGE
            sure = "" if math.isnan(tile.probability) else f"{tile.probability:.1%}"
            name = fitted(drawable(without_id(tile.predicted), tile.index), pixels(SMALL), _TILE)
            _write(draw, (x, y + _TILE + 2), name, pixels(SMALL), colour)
            _write(draw, (x, y + _TILE + 2 + _TEXT), sure, pixels(SMALL), colour)
    return sheet


def _paste(sheet: Image.Image, shown_HWC: Array, x: int, y: int, tile: int = _TILE) -> None:
    """Paste an image as large as its place allows, its middle in the middle."""
    picture = Image.fromarray((255 * shown_HWC).round().astype(np.uint8))
    scale = tile / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    how = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    picture = picture.resize(size, how)  # type: ignore[arg-type]
    sheet.paste(picture, (x + (tile - size[0]) // 2, y + (tile - size[1]) // 2))


def _write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: str) -> None:
    draw.text(at, text, fill=colour, font=pillow_font(text, size))


def _wrapped(name: str, size: int, width: float) -> list[str]:
    """Break a name into at most two lines of so many pixels, and cut what is longer."""
    font = pillow_font(name, size)
    if font.getlength(name) <= width:
        return [name]
    most = next(at for at in range(len(name), 0, -1) if at == 1 or font.getlength(name[:at]) <= width)
    blank = name.rfind(" ", 0, most + 1)
    first, rest = (name[:blank], name[blank + 1 :]) if blank > most // 3 else (name[:most], name[most:])
    return [first, fitted(rest, size, width)]


def draw_grid(rows: Sequence[tuple[str, Sequence[Image.Image]]], titles: Sequence[str], tile: int) -> Image.Image:
    """Draw rows of images under titles, each row with its name, each image in a square of `tile` pixels."""
    label, head, gap = 150, 26, 4
    step = tile + gap
    sheet = Image.new("RGB", (label + step * len(titles), head + step * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        _write(draw, (label + column * step, 6), title, pixels(TEXT), "black")
    for number, (name, pictures) in enumerate(rows):
        y = head + number * step
        _write(draw, (_GAP, y + tile // 2 - 8), name, pixels(TEXT), "black")
        for column, picture in enumerate(pictures):
            _paste(sheet, np.asarray(picture.convert("RGB"), dtype=np.float32) / 255, label + column * step, y, tile)
    return sheet
