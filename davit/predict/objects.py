"""Hold what detectors and segmentors find in an image, drawn or as plain values."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from ..fonts import drawable, fitted, pillow_font

_STRENGTH = 0.6  # of a segment's colour over the image
_MASK_STRENGTH = 0.5  # of an object's colour over the image
_NAMED = 12  # classes that the legend has room for
_SIDE = 320  # pixels; smaller images are enlarged to this, so that names can be read
_FURTHER = 5  # times its height that a name may be away from its box, where many crowd
_LONGEST = 4 * _SIDE  # pixels; none is enlarged beyond this


@dataclass(frozen=True)
class Detections:
    """Objects of one image, best first.

    Attributes:
        picture: (H, W, 3) RGB.
        boxes: (N, 4), x1 y1 x2 y2 in pixels of the image.
        scores: (N,), 0 to 1.
        labels: (N,), numbers of `classes`.
        masks: (N, H, W), or None for a detector of boxes alone.
    """

    picture: NDArray[np.uint8] = field(repr=False)
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_] | None = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)

    @classmethod
    def of(
        cls, picture: NDArray[np.uint8], instances: Any, score_threshold: float, classes: tuple[str, ...]
    ) -> Detections:
        """Take those of a detector's ``InstanceData`` whose score is not below a threshold."""
        found = instances[instances.scores >= score_threshold]
        masks = found.masks.cpu().numpy().astype(bool) if "masks" in found else None
        boxes, scores, labels = (found[name].cpu().numpy() for name in ("bboxes", "scores", "labels"))
        return cls(picture, boxes, scores, labels, masks, classes)

    def draw(self) -> Image.Image:
        """Draw boxes, names, scores and masks over the image; a small one is enlarged."""
        times = _enlargement(*self.picture.shape[:2])
        picture = self.picture
        colours = [colour_of(int(label)) for label in self.labels]
        if len(self.boxes) and self.masks is not None:
            picture = self._with_masks(colours)
        drawn = Image.fromarray(picture.repeat(times, 0).repeat(times, 1))
        size = font_size(*drawn.size)
        padding = max(2, size // 6)
        taken: list[_Place] = []  # by labels, of which the best come first
        labels = []
        for box, score, label in zip(times * self.boxes, self.scores, self.labels, strict=True):
            name, number = drawable(self.classes[label], int(label)), f" {score:.2f}"
            room = drawn.width - 2 * padding - pillow_font(number, size).getlength(number)
            name = fitted(name, size, room) + number
            font = pillow_font(name, size)
            place = _label_place(box.tolist(), font.getbbox(name), padding, drawn.size, taken)
            taken.append(place)
            labels.append((name, font, place))
        pen = ImageDraw.Draw(drawn)
        width = max(2, round(size / 7))
        for box, colour in zip((times * self.boxes).tolist()[::-1], colours[::-1], strict=True):  # the best on top
            left, top, right, bottom = box
            pen.rectangle([left, top, max(left, right), max(top, bottom)], outline=colour, width=width)
        for (name, font, place), colour in zip(labels[::-1], colours[::-1], strict=True):
            pen.rectangle(place, fill=colour)
            ink = "black" if _lightness(colour) > 0.45 else "white"
            pen.text((place[0] + padding, place[1] + padding), name, fill=ink, font=font, anchor="lt")
        return drawn

    def _with_masks(self, colours: Sequence[tuple[int, int, int]]) -> NDArray[np.uint8]:
        """Lay the masks over the image; where several overlap, with the mean of their colours."""
        assert self.masks is not None
        counts = self.masks.sum(0)[..., None]
        means = np.zeros(self.picture.shape)
        for mask, colour in zip(self.masks, colours, strict=True):
            means[mask] += colour
        means /= np.maximum(counts, 1)
        mixed = np.where(counts > 0, _MASK_STRENGTH * means + (1 - _MASK_STRENGTH) * self.picture, self.picture)
        return mixed.round().astype(np.uint8)

    def to_json(self) -> dict[str, Any]:
        """Return plain values; masks as COCO's run-length encoding."""
        from pycocotools import mask as coco_mask

        objects: list[dict[str, Any]] = []
        for i, (box, score, label) in enumerate(zip(self.boxes, self.scores, self.labels, strict=True)):
            found = {"class": self.classes[label], "score": float(score), "box": [float(value) for value in box]}
            if self.masks is not None:
                encoded = coco_mask.encode(np.asfortranarray(self.masks[i]))
                found["mask"] = {"size": encoded["size"], "counts": encoded["counts"].decode()}
            objects.append(found)
        return {"objects": objects}


@dataclass(frozen=True)
class Segmentation:
    """The class of every pixel of one image.

    Attributes:
        picture: (H, W, 3) RGB.
        labels: (H, W), numbers of `classes`.
        palette: a colour (R, G, B) for each class.
    """

    picture: NDArray[np.uint8] = field(repr=False)
    labels: NDArray[np.int64]
    classes: tuple[str, ...] = field(repr=False)
    palette: tuple[tuple[int, int, int], ...] = field(repr=False)

    def draw(self) -> Image.Image:
        """Draw the colours of the classes over the image, and their names below it."""
        return draw_segments(self.picture, self.labels, self.classes, self.palette)

    def to_json(self) -> dict[str, Any]:
        """Return the share of the image that each class has."""
        present, counts = np.unique(self.labels, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return {"classes": {self.classes[present[i]]: float(counts[i] / self.labels.size) for i in order}}


# Colours that differ most, for eyes of any kind as far as that goes; the first seven are those of Okabe and Ito.
_COLOURS = (
    *((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)),
    *((128, 0, 200), (150, 230, 60), (160, 20, 50), (0, 235, 235), (255, 180, 190), (110, 80, 30), (20, 30, 160)),
    *((255, 0, 255), (100, 110, 110), (0, 90, 40), (255, 40, 40), (190, 180, 255), (225, 225, 200)),
)


def colour_of(number: int) -> tuple[int, int, int]:
    """Return the colour of a class: of the first twenty all differ clearly; then hues by the golden ratio."""
    if number < len(_COLOURS):
        return _COLOURS[number]
    red, green, blue = colorsys.hsv_to_rgb(number * 0.61803398875 % 1, 0.85 if number % 2 else 0.6, 1.0)
    return int(255 * red), int(255 * green), int(255 * blue)


def font_size(width: int, height: int) -> int:
    """Return the size of names on an image, in its pixels: read at 256 pixels, and where 4000 are shown as 1000."""
    return max(12, round(max(width, height) / 55))


def _lightness(colour: tuple[int, int, int]) -> float:
    """Return how light a colour looks, 0 to 1."""
    red, green, blue = (part / 255 for part in colour)
    return 0.3 * red + 0.59 * green + 0.11 * blue


_Place = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def _label_place(
    box: Sequence[float], text: Sequence[float], padding: int, size: tuple[int, int], taken: Sequence[_Place]
) -> _Place:
    """Find a place for a name within the image, where no other name is: above its box, in it, below it, or near it."""
    width, height = text[2] - text[0] + 2 * padding, text[3] - text[1] + 2 * padding
    left, top, right, bottom = box
    rows = [top - height, top, bottom, bottom - height]
    # in a crowd, further and further from the box
    rows += [y for step in range(1, _FURTHER) for y in (top - (1 + step) * height, bottom + step * height)]
    best, least = (0.0, 0.0, width, height), math.inf
    for y in rows:
        for x in (left, right - width, (left + right - width) / 2):
            x0 = min(max(0.0, x), max(0.0, size[0] - width))
            y0 = min(max(0.0, y), max(0.0, size[1] - height))
            place = (x0, y0, x0 + width, y0 + height)
            shared = sum(_shared(place, other) for other in taken)
            if shared < least:
                best, least = place, shared
        if least == 0:
            break
    return best


def _shared(one: _Place, other: _Place) -> float:
    """Return the area that two rectangles share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _enlargement(height: int, width: int) -> int:
    """Return how many times as large an image is drawn; 1 except for small ones, as a long strip is not."""
    return max(1, min(-(-_SIDE // min(height, width)), _LONGEST // max(height, width)))


def draw_segments(image: Any, labels: Any, classes: Sequence[str], palette: Sequence[Sequence[int]]) -> Image.Image:
    """Draw an image with its segments coloured, and below it the names of the largest.

    Args:
        image: (H, W, 3) RGB, uint8.
        labels: (H, W) integers; those that are no class leave the image as it is.
        palette: a colour (R, G, B) for each class.
    """
    labels = np.asarray(labels)
    known = (labels >= 0) & (labels < len(classes))
    colours = np.asarray(palette, dtype=float)[np.where(known, labels, 0)]
    mixed = np.where(known[..., None], _STRENGTH * colours + (1 - _STRENGTH) * np.asarray(image), image)
    drawn = Image.fromarray(mixed.round().astype(np.uint8))
    drawn = ImageOps.scale(drawn, _enlargement(*labels.shape), Image.Resampling.NEAREST)
    numbers, areas = np.unique(labels[known], return_counts=True)
    largest = [int(number) for number in numbers[np.argsort(-areas)][:_NAMED]]
    entries: list[tuple[str, Any]] = [
        (drawable(classes[number], number), tuple(palette[number])) for number in largest
    ]
    if len(numbers) > len(largest):
        entries.append((f"and {len(numbers) - len(largest)} smaller", None))
    return _with_legend(drawn, entries)


def _with_legend(drawn: Image.Image, entries: list[tuple[str, Any]]) -> Image.Image:
    """Put names and colours below an image, in as many lines as they need; an entry without a colour is text alone."""
    size = font_size(*drawn.size)
    line, gap = round(1.5 * size), round(0.6 * size)
    entries = [(fitted(name, size, drawn.width - line - 2 * gap), colour) for name, colour in entries]
    fonts = {name: pillow_font(name, size) for name, _ in entries}
    places: list[tuple[int, int]] = []
    x, y = gap, drawn.height + 4
    for name, _ in entries:
        width = line + int(fonts[name].getlength(name)) + gap
        if x > gap and x + width > drawn.width:
            x, y = gap, y + line
        places.append((x, y))
        x += width
    canvas = Image.new("RGB", (drawn.width, y + line if entries else drawn.height), "white")
    canvas.paste(drawn)
    pen = ImageDraw.Draw(canvas)
    for (name, colour), (left, top) in zip(entries, places, strict=True):
        if colour is not None:
            pen.rectangle([left, top + 2, left + size, top + 2 + size], fill=colour, outline="black")
        pen.text((left + (0 if colour is None else line), top), name, fill="black", font=fonts[name])
    return canvas
