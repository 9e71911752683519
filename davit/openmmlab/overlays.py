"""Segments drawn over their picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

_STRENGTH = 0.6  # of a segment's colour over the picture
_NAMED = 12  # classes that the legend has room for
_SIDE = 320  # pixels; smaller pictures are enlarged to this, so that names can be read


def enlargement(height: int, width: int) -> int:
    """How many times as large a picture is drawn; 1 for all but small ones."""
    return max(1, -(-_SIDE // min(height, width)))


def draw_segments(image: Any, labels: Any, classes: Sequence[str], palette: Sequence[Sequence[int]]) -> Image.Image:
    """A picture with its segments coloured, and below it the names of the largest.

    Args:
        image: (H, W, 3) RGB, uint8.
        labels: (H, W) integers; those that are no class leave the picture as it is.
        palette: a colour (R, G, B) for each class.
    """
    labels = np.asarray(labels)
    known = (labels >= 0) & (labels < len(classes))
    colours = np.asarray(palette, dtype=float)[np.where(known, labels, 0)]
    mixed = np.where(known[..., None], _STRENGTH * colours + (1 - _STRENGTH) * np.asarray(image), image)
    drawn = Image.fromarray(mixed.round().astype(np.uint8))
    drawn = ImageOps.scale(drawn, enlargement(*labels.shape), Image.Resampling.NEAREST)
    numbers, areas = np.unique(labels[known], return_counts=True)
    largest = [int(number) for number in numbers[np.argsort(-areas)][:_NAMED]]
    return _with_legend(drawn, [(classes[number], tuple(palette[number])) for number in largest])


def _with_legend(drawn: Image.Image, entries: list[tuple[str, Any]]) -> Image.Image:
    font = ImageFont.load_default(size=13)
    line, gap = 20, 8
    places: list[tuple[int, int]] = []
    x, y = gap, drawn.height + 4
    for name, _ in entries:
        width = line + int(font.getlength(name)) + gap
        if x > gap and x + width > drawn.width:
            x, y = gap, y + line
        places.append((x, y))
        x += width
    canvas = Image.new("RGB", (drawn.width, y + line if entries else drawn.height), "white")
    canvas.paste(drawn)
    pen = ImageDraw.Draw(canvas)
    for (name, colour), (left, top) in zip(entries, places, strict=True):
        pen.rectangle([left, top + 2, left + 13, top + 15], fill=colour, outline="black")
        pen.text((left + line, top), name, fill="black", font=font)
    return canvas
