"""Draw the random crop before an image is decoded, so that a large JPEG is decoded no larger than needed.

A JPEG is stored as frequencies of 8 x 8 blocks; its decoder can leave out the fine ones and give the image at
1/2, 1/4 or 1/8 of its size for less work, and the crop then has less to shrink. The crop, and all that follows it,
draw the same random numbers as with the whole image. Where a crop is less than twice as large as the output,
nothing changes, to the last bit; elsewhere pixels differ by about one level of 255 in the mean
(benchmarks/results/input_pipeline.md, and the test holds a bound).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import functional as F

from .decode import Pixels

# 1/factor is chosen where the crop is at least factor x margin times as large as the output: the more the decoder
# leaves out, the more must be left for the resizing to average.
MARGINS = {2: 1.0, 4: 1.5, 8: 1.5}


@dataclass
class CropFirst:
    """Transform images by timm's random resized crop, in two steps before and after decoding, and by the `rest`.

    Called with a whole image it is the transform that it was made of.
    """

    crop: RandomResizedCropAndInterpolation
    rest: Callable[[Any], Tensor]

    def __call__(self, image: Pixels) -> Tensor:
        return PendingCrop(self).finish(image)


class PendingCrop:
    """Crop one image: the crop is drawn once, when the image's size is first known."""

    def __init__(self, transform: CropFirst) -> None:
        self.transform = transform
        self.size: tuple[int, int] | None = None
        self.box: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, left, height, width

    def reduction(self, width: int, height: int, scalable: bool) -> int:
        """Draw the crop of an image of this size; return the largest of 2, 4 and 8 at 1/which it may be decoded.

        1 where the image is to be decoded whole, or its decoder cannot scale.
        """
        crop = self.transform.crop
        self.size = (width, height)
        self.box = crop.get_params(torch.empty(1, height, width, device="meta"), crop.scale, crop.ratio)
        if not scalable:
            return 1
        room = min(side / wanted for side, wanted in zip(self.box[2:], crop.size, strict=True))
        return max((factor for factor, margin in MARGINS.items() if factor * margin <= room), default=1)

    def finish(self, image: Pixels) -> Tensor:
        """Crop, resize and transform the decoded image, reduced or whole."""
        width, height = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
        if self.size is None:
            self.reduction(width, height, scalable=False)
        assert self.size is not None
        crop: Any = self.transform.crop
        choices = crop.interpolation
        interpolation = random.choice(choices) if isinstance(choices, tuple | list) else choices
        if (width, height) == self.size:
            cropped = each_band(lambda band: F.resized_crop(band, *self.box, crop.size, interpolation), image)
            return self.transform.rest(cropped)
        x, y = width / self.size[0], height / self.size[1]
        top, left, rows, columns = self.box
        box = (left * x, top * y, (left + columns) * x, (top + rows) * y)
        method = F.pil_modes_mapping[interpolation]
        return self.transform.rest(each_band(lambda band: band.resize(crop.size[::-1], method, box), image))


def each_band(change: Callable[[Image.Image], Image.Image], image: Pixels) -> Pixels:
    """Change an image, or each band of an array (H, W, C) as a greyscale image."""
    if isinstance(image, Image.Image):
        return change(image)
    bands = (Image.fromarray(np.ascontiguousarray(image[:, :, band])) for band in range(image.shape[2]))
    return np.stack([np.asarray(change(band)) for band in bands], axis=2)
