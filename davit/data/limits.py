"""Decide how large an image may become: the one place that bounds what every step of a pipeline makes of it.

A file of a hundred bytes may hold a strip of 20000 x 1 pixels, and resizing its shorter side to 256 makes 5 million
columns of it. What a step would make is computed from the image's size, before any pixel is decoded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.data.transforms import ResizeKeepRatio
from torchvision.transforms import Compose, Resize

from .samples import UnfitPictureError

# Pixels that a step may make of any image: 134 MB of RGB, as Pillow holds four bytes for each. A step that is asked
# for large images may make four times what is asked for.
MOST_PIXELS = 2**25
_OF_ASKED = 4


def require_room(before: tuple[int, int], after: tuple[int, int], asked: tuple[int, int]) -> None:
    """Raise an error for a resizing whose result is too large, or has no pixels.

    Args:
        before, after: width and height.
        asked: the size that the step was made for.

    Raises:
        UnfitPictureError: it names the shapes and the limit.
    """
    limit = max(MOST_PIXELS, _OF_ASKED * asked[0] * asked[1])
    shapes = f"{before[0]} x {before[1]} pixels would become {after[0]} x {after[1]}"
    if min(after) < 1:
        raise UnfitPictureError(f"too long and narrow: {shapes}")
    if after[0] * after[1] > limit:
        raise UnfitPictureError(f"too long and narrow: {shapes}, and at most {limit:,} pixels are made of one")


@dataclass
class ResizeWithin:
    """Resize as torchvision's or timm's step does, but to no more pixels than `require_room` allows."""

    step: Resize | ResizeKeepRatio

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height that an image of this size gets.

        Raises:
            UnfitPictureError: it would be too large.
        """
        size = self.step.size
        if isinstance(self.step, ResizeKeepRatio):
            step: Any = self.step
            rows, columns = step.get_params(torch.empty(1, height, width, device="meta"), size, step.longest)
            after, asked = (columns, rows), (size[1], size[0])
        elif isinstance(size, int):
            longer = int(size * max(width, height) / min(width, height))  # as torchvision rounds
            after, asked = ((longer, size) if width > height else (size, longer)), (size, size)
        else:
            after = asked = (size[1], size[0])
        require_room((width, height), after, asked)
        return after

    def __call__(self, image: Any) -> Any:
        width, height = image.size
        self.size(width, height)
        return self.step(image)


class BoundedCompose(Compose):
    """Apply steps one after another, of which those that resize are `ResizeWithin`.

    `check` is a `Reduction` of `davit.data.decode`: given to the decoder, it refuses an image before it is decoded.
    """

    def __init__(self, steps: list[Callable[[Any], Any]], sizes: list[ResizeWithin]) -> None:
        super().__init__(steps)
        self._sizes = sizes

    def check(self, width: int, height: int, scalable: bool) -> int:
        """Raise an error for an image of which a step would make too many pixels; else return 1, decode it whole.

        Raises:
            UnfitPictureError: it names the shapes and the limit.
        """
        for step in self._sizes:
            width, height = step.size(width, height)
        return 1


def bounded(steps: Compose) -> BoundedCompose:
    """Let each step of timm's that resizes a whole image refuse what becomes too large."""
    sizes: list[ResizeWithin] = []
    parts: list[Callable[[Any], Any]] = []
    for step in steps.transforms:
        if isinstance(step, Resize | ResizeKeepRatio):
            step = ResizeWithin(step)
            sizes.append(step)
        parts.append(step)
    return BoundedCompose(parts, sizes)
