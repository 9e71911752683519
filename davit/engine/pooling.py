"""Test-time pooling: a head meets maps no larger than those it was trained on."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TestTimePool(nn.Module):
    """Applies a classifier's head to every window of the trained size of a larger map.

    As timm's `TestTimePoolHead`: local means over `window` = (rows, columns) at stride 1, the head at each
    place, and of the logits the average of mean and maximum over the places. Unlike it, this also serves
    heads that are more than one linear layer, as DaViT's (norm and linear).
    """

    __test__ = False  # for pytest, which collects by name

    def __init__(self, model: Any, window: tuple[int, int]) -> None:
        super().__init__()
        self.model = model
        self.rows, self.columns = window
        self.num_classes = int(model.num_classes)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        local_BCHW = F.avg_pool2d(self.model.forward_features(image_BCHW), [self.rows, self.columns], stride=1)
        batch, channels = local_BCHW.shape[:2]
        places = local_BCHW.permute(0, 2, 3, 1).reshape(-1, channels, 1, 1)
        logits = self.model.forward_head(places).view(batch, -1, self.num_classes)
        return 0.5 * (logits.mean(1) + logits.amax(1))


def pooling_window(model: Any, trained: tuple[int, int], size: tuple[int, int]) -> tuple[int, int] | None:
    """The window of test-time pooling at pictures of `size` for a model trained at `trained` (both H, W).

    None unless `size` is larger both ways, as in timm: the head then sees no more than in training. The model
    must be in eval mode.

    Raises:
        ValueError: the model gives no map (B, C, H, W) of features to its head.
    """
    if size[0] <= trained[0] or size[1] <= trained[1]:
        return None
    shape: tuple[int, ...] = ()
    if hasattr(model, "forward_features") and hasattr(model, "forward_head"):
        device = next(model.parameters()).device
        with torch.inference_mode():
            shape = tuple(model.forward_features(torch.zeros(1, 3, *trained, device=device)).shape)
    if len(shape) != 4 or shape[1] != model.num_features:
        raise ValueError(
            "test-time pooling needs a model whose head gets a map (batch, channels, rows, columns) of "
            f"features, and {type(model).__name__} hands over {shape or 'none'}"
        )
    return shape[2], shape[3]
