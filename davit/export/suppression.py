"""Suppress boxes that overlap a better one, as an operator that every exporter can translate.

The operator ``davit::suppress`` has a result of a fixed shape: the scores, with -1 in the place of those that are
suppressed. A graph with it has no shapes that depend on values, so batch, height and width may be free.
`ONNX_TRANSLATIONS` has it for ONNX, where it is one NonMaxSuppression of the standard's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor

#: The score of what is no candidate, or has been suppressed; scores are probabilities.
NONE = -1.0


@torch.library.custom_op("davit::suppress", mutates_args=())
def suppress(boxes: Tensor, scores: Tensor, iou_threshold: float, limit: int) -> Tensor:
    """Set scores to -1 of all boxes but the best, none of which overlap by more than a threshold.

    Args:
        boxes: (B, N, 4), x1 y1 x2 y2.
        scores: (B, N); a negative one is of no candidate.
        iou_threshold: intersection over union above which the box with the lower score is suppressed.
        limit: how many stay at most, of each image.
    """
    left = torch.full_like(scores, NONE)
    for picture in range(boxes.shape[0]):
        candidates = (scores[picture] >= 0).nonzero()[:, 0]
        found = torchvision.ops.nms(boxes[picture, candidates], scores[picture, candidates], iou_threshold)
        best = candidates[found[:limit]]
        left[picture, best] = scores[picture, best]
    return left


@suppress.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, limit: int) -> Tensor:
    return torch.empty_like(scores)


def _suppress_in_onnx(boxes: Any, scores: Any, iou_threshold: float, limit: int) -> Any:
    """Write the operator as NonMaxSuppression, whose rows (image, class, box) are scattered into the scores."""
    from onnxscript import opset18 as op

    rows = op.NonMaxSuppression(
        boxes,
        op.Unsqueeze(scores, op.Constant(value_ints=[1])),
        op.Constant(value_ints=[limit]),
        op.Constant(value_floats=[iou_threshold]),
        op.Constant(value_floats=[NONE / 2]),
    )
    places = op.Gather(rows, op.Constant(value_ints=[0, 2]), axis=1)
    left = op.Expand(op.Constant(value_floats=[NONE]), op.Shape(scores))
    return op.ScatterND(left, places, op.GatherND(scores, places))


def onnx_translations() -> dict[Any, Callable[..., Any]]:
    """Return what ``torch.onnx.export(custom_translation_table=...)`` needs for the operators of this module."""
    return {torch.ops.davit.suppress.default: _suppress_in_onnx}
