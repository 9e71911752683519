"""Choosing the random crop before a picture is decoded, so that a large JPEG is decoded no larger than needed.

A JPEG is stored as frequencies of 8 x 8 blocks; its decoder can leave out the fine ones and give the picture at
1/2, 1/4 or 1/8 of its size for less work, and the crop then has less to shrink. The crop, and all that follows it,
draw the same random numbers as with the whole picture. Where a crop is less than twice as large as the output,
nothing changes, to the last bit; elsewhere pixels differ by about one level of 255 in the mean
(benchmarks/results/input_pipeline.md, and the test holds a bound).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F  # noqa: N812

# A fraction of one over the key is taken where the crop is at least key x value times as large as the output: the more
# is left out by the decoder, the more is left for the resizing to average.
MARGINS = {2: 1.0, 4: 1.5, 8: 1.5}

_PILLOW = {
    InterpolationMode.NEAREST: Image.Resampling.NEAREST,
    InterpolationMode.BILINEAR: Image.Resampling.BILINEAR,
    InterpolationMode.BICUBIC: Image.Resampling.BICUBIC,
    InterpolationMode.LANCZOS: Image.Resampling.LANCZOS,
    InterpolationMode.BOX: Image.Resampling.BOX,
    InterpolationMode.HAMMING: Image.Resampling.HAMMING,
}


class CropFirst:
    """A transform that begins with timm's random resized crop, in two steps: before and after decoding.

    Called with a whole picture it is the transform that it was made of.
    """

    def __init__(self, crop: RandomResizedCropAndInterpolation, rest: Callable[[Image.Image], Tensor]) -> None:
        self.crop = crop
        self.rest = rest

    def sample(self) -> Sample:
        return Sample(self)

    def __call__(self, image: Image.Image) -> Tensor:
        return self.sample().finish(image)


class Sample:
    """One picture on its way: its crop is drawn once, when its size is first known."""

    def __init__(self, transform: CropFirst) -> None:
        self.transform = transform
        self._size: tuple[int, int] | None = None
        self._box: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, left, height, width

    def reduction(self, width: int, height: int, scalable: bool) -> int:
        """Draw the crop of a picture of this size; the largest fraction, of one over 1, 2, 4 or 8, that suits it."""
        crop = self.transform.crop
        self._size = (width, height)
        self._box = crop.get_params(torch.empty(1, height, width, device="meta"), crop.scale, crop.ratio)
        if not scalable:
            return 1
        room = min(side / wanted for side, wanted in zip(self._box[2:], crop.size, strict=True))
        return max((factor for factor, margin in MARGINS.items() if factor * margin <= room), default=1)

    def finish(self, image: Image.Image) -> Tensor:
        """Crop, resize and transform the decoded picture, reduced or whole."""
        if self._size is None:
            self.reduction(image.width, image.height, scalable=False)
        assert self._size is not None
        crop: Any = self.transform.crop
        choices = crop.interpolation
        interpolation = random.choice(choices) if isinstance(choices, tuple | list) else choices
        top, left, height, width = self._box
        if image.size == self._size:
            return self.transform.rest(F.resized_crop(image, *self._box, crop.size, interpolation))
        x, y = image.width / self._size[0], image.height / self._size[1]
        box = (left * x, top * y, (left + width) * x, (top + height) * y)
        return self.transform.rest(image.resize(crop.size[::-1], _PILLOW[interpolation], box))
