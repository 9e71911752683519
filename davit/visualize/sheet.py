"""Draw many images on one sheet: a row for each question, a line of text below each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..data import BadImageError, load_rgb
from ..files import write_atomically
from ..fonts import legible, pillow_font
from ..style import DPI, ORANGE, SMALL, TITLE, figure_style, pixels

_CELL, _GAP, _TEXT, _TITLE = 1.6, 0.08, 0.42, 0.3  # inches: an image with its gap, the text below, the title
_PIXELS = 240  # of the longer side of an image as it is drawn
_WIDEST = (_CELL - _GAP) * DPI  # pixels of a line of text
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
    names = {text: _short(legible(text)) for text in texts}
    names[title] = legible(title)
    with figure_style(names.values()):
        return _render(rows, title, names)


def _render(rows: Sequence[tuple[Shown, Sequence[Shown]]], title: str, names: dict[str, str]) -> Any:
    from matplotlib.figure import Figure  # a second of import, paid when drawing

    columns = 1 + min(_MOST_COLUMNS, max(1, *(len(others) for _, others in rows), 1))
    lines = [max(1, -(-len(others) // (columns - 1))) for _, others in rows]
    head = pillow_font(names[title], pixels(TITLE)).getlength(names[title]) / DPI
    width, height = max(columns * _CELL, head) + 0.2, sum(lines) * (_CELL + _TEXT) + (_TITLE if title else 0) + 0.1
    figure = Figure(figsize=(width, height))
    if title:
        figure.suptitle(names[title], y=1 - 0.1 / height, va="top")
    left, top = (width - columns * _CELL + _GAP) / 2, height - (_TITLE if title else 0) - 0.1
    side = _CELL - _GAP

    def place(line: int, column: int) -> Any:
        """Make axes for an image, in inches: a layout engine moves images of different aspects apart."""
        at = (left + column * _CELL, top - line * (_CELL + _TEXT) - side)
        return figure.add_axes((at[0] / width, at[1] / height, side / width, side / height), anchor="S")

    for number, (first, others) in enumerate(rows):
        above = sum(lines[:number])
        _draw(place(above, 0), first, names, is_first=True)
        for at, shown in enumerate(others):
            line, column = divmod(at, columns - 1)
            _draw(place(above + line, 1 + column), shown, names)
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
    """Leave out the middle of a line that is wider than its image: names of files differ at their ends."""
    font = pillow_font(f"{text}…", pixels(SMALL))
    shown, kept = text, len(text)
    while kept > 1 and font.getlength(shown) > _WIDEST:
        kept -= 1
        shown = f"{text[: kept // 3]}…{text[kept // 3 - kept :]}"
    return shown
