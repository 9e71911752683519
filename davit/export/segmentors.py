"""Write a built segmentor of MMSegmentation as one module from images to a class for every pixel.

The backbone, the neck and the decode head are taken as they are. Pooling to a fixed number of cells, which ONNX has
for fixed sizes alone, becomes two products with matrices that are computed from the map's size.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .detectors import Normalised


class CellMeans(nn.Module):
    """Average a map over a grid of cells, as `nn.AdaptiveAvgPool2d` does, for maps of any size."""

    def __init__(self, size: int | tuple[int | None, int | None]):
        super().__init__()
        self.rows, self.columns = size if isinstance(size, tuple) else (size, size)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.rows is not None:
            x_BCHW = _cells(x_BCHW.shape[2], self.rows, x_BCHW) @ x_BCHW
        return x_BCHW if self.columns is None else x_BCHW @ _cells(x_BCHW.shape[3], self.columns, x_BCHW).T


def _cells(length: int, cells: int, like: Tensor) -> Tensor:
    """Return (cells, length): the share that each position has in the mean of each cell; cells may overlap by one."""
    place, one = torch.arange(length, device=like.device), torch.ones(1, dtype=torch.int64, device=like.device)
    first = torch.stack([one * (cell * length // cells) for cell in range(cells)])
    last = torch.stack([one * (((cell + 1) * length + cells - 1) // cells) for cell in range(cells)])
    return ((place >= first) & (place < last)).to(like.dtype) / (last - first).to(like.dtype)


class Segments(nn.Module):
    """From images (B, channels, H, W) to labels (B, H, W) and the head's own logits (B, C, h, w).

    The logits are those before they are enlarged: who wants labels of another size than the images that went in
    enlarges them first. Raw: the logits alone, enlarged to (B, C, H, W).
    """

    def __init__(self, segmentor: Any, images: Normalised, raw: bool):
        super().__init__()
        head = segmentor.decode_head
        self.images, self.backbone, self.raw = images, segmentor.backbone, raw
        self.neck = segmentor.neck if segmentor.with_neck else nn.Identity()
        self.head, self.align_corners = _with_cell_means(head), bool(segmentor.align_corners)
        self.threshold = float(head.threshold) if segmentor.out_channels == 1 else None
        self.dtype = torch.uint8 if segmentor.num_classes <= 256 else torch.int64

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        padded = self.images(images)
        logits = self.head(self.neck(self.backbone(padded)))
        large = F.interpolate(logits, padded.shape[2:], mode="bilinear", align_corners=self.align_corners)
        if self.images.divisor > 1:
            for axis in (2, 3):
                large = large.index_select(axis, torch.arange(images.shape[axis], device=large.device))
        if self.raw:
            return (large,)
        labels = large.argmax(1) if self.threshold is None else large[:, 0].sigmoid() > self.threshold
        return labels.to(self.dtype), logits


def segmentor_graph(segmentor: Any, images: Normalised, *, raw: bool = False) -> tuple[nn.Module, tuple[str, ...]]:
    """Write a built segmentor as a module from normalised images (B, channels, H, W), and name its outputs.

    Args:
        segmentor: an EncoderDecoder with any backbone, neck and decode head whose prediction is its forward pass.
        raw: logits in place of labels.

    Raises:
        ValueError: the segmentor, its head or its way of testing is of a kind that this module does not write.
    """
    if type(segmentor).__name__ != "EncoderDecoder":
        raise ValueError(
            f"a segmentor of type {type(segmentor).__name__} cannot be exported; choose from EncoderDecoder."
        )
    mode = segmentor.test_cfg.get("mode", "whole")
    if mode != "whole":
        raise ValueError(
            f"model.test_cfg.mode={mode!r} cuts an image into several, and an export computes it as a whole: set it "
            "to 'whole' in the config if that is what you want."
        )
    head = type(segmentor.decode_head)
    if not {"predict", "predict_by_feat"}.isdisjoint(_own_methods(head)):
        raise ValueError(
            f"a decode_head of type {head.__name__} predicts otherwise than by its forward pass, so it cannot be "
            "exported; UPerHead and most others can."
        )
    return Segments(segmentor, images, raw), ("logits",) if raw else ("labels", "logits")


def _own_methods(head: type) -> set[str]:
    """Name what a head defines otherwise than mmseg's BaseDecodeHead."""
    names = [base.__name__ for base in head.__mro__]
    own = head.__mro__[: names.index("BaseDecodeHead")] if "BaseDecodeHead" in names else head.__mro__
    return {name for base in own for name in vars(base)}


def _with_cell_means(head: nn.Module) -> nn.Module:
    """Return a copy of a head in which pooling to a number of cells is `CellMeans`."""
    head = copy.deepcopy(head)
    for module in list(head.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                setattr(module, name, CellMeans(child.output_size))  # type: ignore[arg-type]
    return head
