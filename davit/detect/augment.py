"""Turn a decoded image with its boxes into a tensor and a target, by torchvision's transforms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxes
from torchvision.tv_tensors import Image as Pixels

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # with which DaViT's weights were trained
_LARGEST = 2  # times the side of what the model sees: larger images are shrunk before they are augmented
_LEAST = 1.0  # pixels of a side; smaller boxes are left out

NOTHING = -1.0  # the class of a target's rows that hold no object


def prepared(pixels: Tensor, side: int) -> Tensor:
    """Resize pixels (3, H, W) of 8 bits to a square, without regard to the shape, and normalise them."""
    sized = v2.functional.resize(pixels, [side, side], interpolation=v2.InterpolationMode.BILINEAR, antialias=True)
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (sized.float() / 255 - mean) / std


def pixels_of(picture: Image.Image) -> Tensor:
    """Return the pixels of an RGB image as a tensor (3, H, W) of 8 bits."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class ForEvaluation:
    """Prepare an image as the saved processor does; there is no target, as boxes are compared by COCO's rules."""

    side: int

    def __call__(self, picture: Image.Image, boxes: NDArray[Any], labels: NDArray[Any]) -> tuple[Tensor, Any]:
        return prepared(pixels_of(picture), self.side), np.zeros((0, 5), dtype=np.float32)


@dataclass(frozen=True)
class ForTraining:
    """Augment an image, and make the target (rows, 5) of its boxes: class, and centre x, y, width, height as shares.

    Colours, a smaller image on a black ground, a crop that keeps objects, flips: SSD's and YOLOX's, as RT-DETR and
    D-FINE are trained. All numbers are drawn from torch's generator.

    Attributes:
        rows: of a target; those without an object have the class `NOTHING`.
        photometric, zoom_out, iou_crop, hflip, vflip: probabilities; 0 leaves it out.
    """

    side: int
    rows: int
    photometric: float = 0.0
    zoom_out: float = 0.0
    iou_crop: float = 0.0
    hflip: float = 0.0
    vflip: float = 0.0

    def __call__(self, picture: Image.Image, boxes: NDArray[Any], labels: NDArray[Any]) -> tuple[Tensor, Any]:
        height, width = picture.height, picture.width
        found: tuple[Any, Any, Any] = (
            Pixels(pixels_of(picture)),
            BoundingBoxes(torch.from_numpy(boxes), format="XYXY", canvas_size=(height, width)),
            torch.from_numpy(labels),
        )
        for step in self._steps(max(height, width), has_objects=len(labels) > 0):
            found = step(*found)
        image, kept, classes = found
        target = np.full((self.rows, 5), NOTHING, dtype=np.float32)
        corners = kept.as_subclass(Tensor).double() / self.side
        x1, y1, x2, y2 = corners.unbind(1)
        shares = torch.stack([classes.double(), (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], 1)
        target[: len(classes)] = shares.float().numpy()
        return prepared(image.as_subclass(Tensor), self.side), target

    def _steps(self, longest: int, *, has_objects: bool) -> list[Any]:
        steps: list[Any] = []
        if longest > _LARGEST * self.side and (self.zoom_out or self.iou_crop):
            # the longest side gets this length; an image four times as large would follow
            steps.append(v2.Resize(None, max_size=_LARGEST * self.side, antialias=True))
        if self.photometric:
            steps.append(v2.RandomPhotometricDistort(p=self.photometric))
        if self.zoom_out:
            steps.append(v2.RandomZoomOut(p=self.zoom_out))
        if self.iou_crop and has_objects:  # a crop that keeps objects cannot be drawn where there are none
            steps.append(v2.RandomApply([v2.RandomIoUCrop()], p=self.iou_crop))
        if self.hflip:
            steps.append(v2.RandomHorizontalFlip(self.hflip))
        if self.vflip:
            steps.append(v2.RandomVerticalFlip(self.vflip))
        resize = v2.Resize([self.side, self.side], antialias=True)
        clean = v2.SanitizeBoundingBoxes(min_size=_LEAST, labels_getter=_labels)
        return [*steps, v2.ClampBoundingBoxes(), resize, clean]


def _labels(found: Any) -> Tensor:
    labels: Tensor = found[2]
    return labels
