"""Draw many images on one sheet: a row for each question, a line of text below each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..data import BadImageError, load_rgb
from ..files import write_atomically
from ..fonts import drawable
from ..style import ORANGE, SMALL, figure_style
from ..text import as_line

_CELL, _TEXT = 1.6, 0.42  # inches: of an image, and of the text below it
_PIXELS = 240  # of the longer side of an image as it is drawn
_LONGEST = 22  # signs of a line
_MOST_COLUMNS = 10  # of images, beside the first


@dataclass(frozen=True)
class Shown:
    """An image on a sheet.

    Attributes:
        picture: a file, or what is drawn; a file that cannot be read leaves its place empty, with the text below.
        lines: of text below it; one that is too long loses its middle.
    """

    picture: str | Path | Image.Image
    lines: Sequence[str] = ()


def draw_sheet(rows: Sequence[tuple[Shown, Sequence[Shown]]], out: str | Path, title: str = "") -> None:
    """Write a sheet to a file in the format of its suffix, in one step.

    Args:
        rows: each a first image, which stands apart, and those that go with it; more than ten fill further lines.

    Raises:
        ValueError: nothing to draw, or an unknown format.
        OSError: the file cannot be written.
    """
    form = Path(out).suffix.lstrip(".").lower() or "png"
    if not rows:
        raise ValueError(f"there is no image to draw in {out}.")
    figure = render_sheet(rows, title)
    try:
        write_atomically(out, lambda stream: figure.savefig(stream, format=form))
    except ValueError as error:
        raise ValueError(f"{out} cannot be drawn: {error}") from error


def render_sheet(rows: Sequence[tuple[Shown, Sequence[Shown]]], title: str = "") -> Any:
    """Draw the sheet, as matplotlib's `Figure`."""
    texts = [title, *(line for first, others in rows for shown in (first, *others) for line in shown.lines)]
    names = {text: _short(drawable(text, place)) for place, text in enumerate(texts)}
    names[title] = as_line(title)
    with figure_style(names.values()):
        return _render(rows, title, names)


def _render(rows: Sequence[tuple[Shown, Sequence[Shown]]], title: str, names: dict[str, str]) -> Any:
    from matplotlib.figure import Figure  # a second of import, paid when drawing

    columns = 1 + min(_MOST_COLUMNS, max(1, *(len(others) for _, others in rows), 1))
    lines = [max(1, -(-len(others) // (columns - 1))) for _, others in rows]
    size = (columns * _CELL + 0.2, sum(lines) * (_CELL + _TEXT) + (0.35 if title else 0.1))
    figure = Figure(figsize=size, layout="constrained")
    if title:
        figure.suptitle(names[title])
    grid = figure.add_gridspec(sum(lines), columns)
    for number, (first, others) in enumerate(rows):
        top = sum(lines[:number])
        _draw(figure.add_subplot(grid[top, 0]), first, names, is_first=True)
        for place, shown in enumerate(others):
            line, column = divmod(place, columns - 1)
            _draw(figure.add_subplot(grid[top + line, 1 + column]), shown, names)
    return figure


def _draw(axes: Any, shown: Shown, names: dict[str, str], is_first: bool = False) -> None:
    axes.set(xticks=[], yticks=[])
    axes.set_xlabel("\n".join(names[line] for line in shown.lines), fontsize=SMALL)
    for spine in axes.spines.values():
        spine.set(visible=is_first, color=ORANGE, linewidth=1.5)
    try:
        image = shown.picture if isinstance(shown.picture, Image.Image) else load_rgb(shown.picture)
    except BadImageError:
        axes.text(0.5, 0.5, "cannot be read", ha="center", va="center", fontsize=SMALL)
        return
    image = image.convert("RGB")
    scale = _PIXELS / max(image.size)
    sides = [max(1, round(side * scale)) for side in image.size]
    kind = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
    axes.imshow(image.resize((sides[0], sides[1]), kind), interpolation="nearest")


def _short(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST // 3]}…{text[-(_LONGEST - _LONGEST // 3 - 1) :]}"
