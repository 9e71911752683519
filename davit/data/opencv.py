"""Resize images to the same values as OpenCV, which detectors and segmentors were trained with, without OpenCV."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_BITS = 11  # of the fixed-point weights that OpenCV gives two neighbours


def resize_bilinear(pixels: NDArray[Any], width: int, height: int) -> NDArray[Any]:
    """Resize an image (H, W) or (H, W, C) between two neighbours a direction, as ``cv2.resize`` does by default.

    Bytes are computed in OpenCV's fixed-point numbers, so they come out the same; other types in float32, and whole
    numbers among them are rounded.
    """
    old_height, old_width = pixels.shape[:2]
    if (old_height, old_width) == (height, width):
        return pixels.copy()
    if (old_height, old_width) == (2 * height, 2 * width) and pixels.dtype == np.uint8:  # means of four, as there
        four = pixels.reshape(height, 2, width, 2, *pixels.shape[2:]).astype(np.uint16).sum((1, 3), dtype=np.uint16)
        return ((four + 2) >> 2).astype(np.uint8)
    columns, right = _neighbours(old_width, width)
    rows, below = _neighbours(old_height, height)
    inside = (columns >= 0) & (columns < old_width - 1)  # beyond the outermost pixels their value continues
    right = np.where(inside, right, np.float32(0))
    columns = columns.clip(0, old_width - 1)
    last = (columns + 1).clip(max=old_width - 1)
    top, bottom = rows.clip(0, old_height - 1), (rows + 1).clip(0, old_height - 1)
    across = (1, -1) + (1,) * (pixels.ndim - 2)
    down = (-1, 1) + (1,) * (pixels.ndim - 2)
    if pixels.dtype != np.uint8:
        wide = pixels.astype(np.float32)
        right, below = right.reshape(across), below.reshape(down)
        mixed = wide[:, columns] * (1 - right) + wide[:, last] * right
        mixed = mixed[top] * (1 - below) + mixed[bottom] * below
        return mixed if pixels.dtype.kind == "f" else np.rint(mixed).astype(pixels.dtype)
    wide = pixels.astype(np.int32)
    mixed = wide[:, columns] * _fixed(1 - right).reshape(across) + wide[:, last] * _fixed(right).reshape(across)
    mixed >>= 4
    sums = (mixed[top] * _fixed(1 - below).reshape(down)) >> 16
    sums += (mixed[bottom] * _fixed(below).reshape(down)) >> 16
    return ((sums + 2) >> 2).clip(0, 255).astype(np.uint8)


def _neighbours(old: int, new: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return, of each new position, the pixel before it and its distance from there (-1 before the first)."""
    places = ((np.arange(new) + 0.5) * (1 / (new / old)) - 0.5).astype(np.float32)
    before = np.floor(places)
    return before.astype(np.int64), places - before


def _fixed(weights: NDArray[np.float32]) -> NDArray[np.int32]:
    return np.rint(weights * np.float32(1 << _BITS)).astype(np.int32)
