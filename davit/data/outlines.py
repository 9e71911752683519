"""Tell whether an object's segmentation in COCO's format can be used: polygons, or run lengths plain or compressed.

pycocotools does not survive some of what is refused here: it takes all of the memory for a NaN, or fails after the
first epoch for two points.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import mul
from typing import Any

import numpy as np

FAR = 1e9  # pixels; what is not below it is no coordinate, as are NaN and infinity
NUMBERS = frozenset({int, float})  # a bool is neither, by its type

NONE = "no segmentation"
POINTS = "polygons that are empty, of fewer than three points or of an odd count of numbers"
FLAT = "polygons without area"
OUTSIDE = "polygons outside of their image, or reaching far beyond it"
SIZE = "run lengths of another size than their image"
CODE = "run lengths that cannot be decoded"
EMPTY = "run lengths without a pixel of the object"
FORM = "a segmentation that is neither polygons nor run lengths"

_REACH = 10  # times its image's longer side: further away, a polygon costs pycocotools too much memory
_DIGITS = 7  # of 5 bits, in a compressed run length


@dataclass(frozen=True)
class Outline:
    """What is left of a segmentation.

    mask: what can be used, in COCO's format; None if nothing can.
    reason: why something of it cannot be used, one of this module's; empty where all can.
    fault: what is no number in it; then nothing can be said of the object.
    """

    mask: Any = None
    reason: str = ""
    fault: str = ""


def check_outline(segmentation: Any, width: int, height: int) -> Outline:
    """Check one object's segmentation against the size of its image in pixels, and leave out unusable polygons."""
    if isinstance(segmentation, dict):
        return _check_run_lengths(segmentation, width, height)
    if segmentation is None or segmentation == []:
        return Outline(reason=NONE)
    if not isinstance(segmentation, list):
        return Outline(fault=repr(segmentation))
    polygons = [segmentation] if type(segmentation[0]) in NUMBERS else segmentation
    kept, reason = [], ""
    for polygon in polygons:
        if not isinstance(polygon, list):
            if isinstance(polygon, dict):
                return Outline(reason=FORM)
            return Outline(fault=repr(polygon))
        if polygon and isinstance(polygon[0], list):
            return Outline(reason=FORM)
        if not NUMBERS.issuperset(map(type, polygon)):
            return Outline(fault=repr(next(value for value in polygon if type(value) not in NUMBERS)))
        if polygon and not -FAR < sum(polygon) < FAR:
            wrong = [value for value in polygon if not -FAR < value < FAR]
            return Outline(fault=repr(wrong[0])) if wrong else Outline(reason=OUTSIDE)
        if useless := _why_useless(polygon, width, height):
            reason = useless
        else:
            kept.append(polygon)
    if not kept:
        return Outline(reason=reason)
    return Outline(segmentation if len(kept) == len(segmentation) else kept, reason)


def area_of(mask: Any) -> float:
    """Compute the area in pixels of what `check_outline` found usable; polygons are not clipped or joined."""
    if isinstance(mask, dict):
        counts = mask["counts"]
        runs = (decompress(counts) if isinstance(counts, str) else counts) or []
        return float(sum(runs[1::2]))
    return sum(abs(_twice_the_area(polygon[::2], polygon[1::2])) / 2 for polygon in mask)


def _why_useless(polygon: list[float], width: int, height: int) -> str:
    """Say why a polygon [x, y, x, y, ...] is of no use; empty if it is of use."""
    if len(polygon) < 6 or len(polygon) % 2:
        return POINTS
    xs, ys = polygon[::2], polygon[1::2]
    left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
    reach = _REACH * max(width, height)
    if right <= 0 or bottom <= 0 or left >= width or top >= height or min(left, top) < -reach:
        return OUTSIDE
    if max(right, bottom) > reach:
        return OUTSIDE
    if abs(_twice_the_area(xs[:3], ys[:3])) < 1e-6 and _is_line(xs, ys):  # mostly, the first three points tell
        return FLAT
    return ""


def _twice_the_area(xs: list[float], ys: list[float]) -> float:
    return sum(map(mul, xs, ys[1:] + ys[:1])) - sum(map(mul, ys, xs[1:] + xs[:1]))


def _is_line(xs: list[float], ys: list[float]) -> bool:
    """Tell whether all points lie on one line, or are one point."""
    points = np.array([xs, ys], dtype=np.float64).T
    points -= points[0]
    far = points[np.argmax((points**2).sum(1))]
    across = points[:, 0] * far[1] - points[:, 1] * far[0]
    return bool((np.abs(across) <= 1e-9 * max(1.0, float(far @ far))).all())


def _check_run_lengths(mask: dict[str, Any], width: int, height: int) -> Outline:
    size, counts = mask.get("size"), mask.get("counts")
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(type(side) is int for side in size):
        return Outline(reason=CODE)
    if list(size) != [height, width]:
        return Outline(reason=SIZE)
    if isinstance(counts, str | bytes):
        runs = decompress(counts)
    elif isinstance(counts, list) and all(type(run) is int and run >= 0 for run in counts):
        runs = counts
    else:
        runs = None
    if runs is None or sum(runs) != width * height:
        return Outline(reason=CODE)
    if not any(runs[1::2]):
        return Outline(reason=EMPTY)
    if isinstance(counts, bytes) or not isinstance(size, list):  # as a json cannot have them
        mask = {**mask, "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts, "size": [*size]}
    return Outline(mask)


def decompress(counts: str | bytes) -> list[int] | None:
    """Decode compressed run lengths: 5 bits a letter, lowest first, as differences from the run before the last.

    The format is that of pycocotools. Returns None for what it could not have written.
    """
    try:
        data = counts.encode("ascii") if isinstance(counts, str) else counts
    except UnicodeEncodeError:
        return None
    letters = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - 48
    if not letters.size or letters.min() < 0 or letters.max() > 63 or letters[-1] & 32:
        return None
    ends = np.flatnonzero((letters & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    digits = ends - starts + 1
    if digits.max() > _DIGITS:
        return None
    place = 5 * (np.arange(letters.size) - np.repeat(starts, digits))
    values = np.add.reduceat((letters & 31) << place, starts)
    values -= np.where(letters[ends] & 16, np.int64(1) << (5 * digits), 0)
    for first in (1, 2):  # each run but the first three is stored as its difference from the run before the last
        values[first::2] = np.cumsum(values[first::2])
    return None if (values < 0).any() else values.tolist()
