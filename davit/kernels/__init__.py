"""Faster ways to compute what `davit.model` computes, taken only where they are known to hold.

The plain modules of `davit.model` are the reference. A block asks `fuses` on every call; the answer is no for
everything out of the ordinary (see there), and then the plain modules run. docs/performance.md has the
measurements behind each choice.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .inference import infer_block
from .select import FUSED, ORDINARY, as_convolution, fuses
from .training import train_block

if TYPE_CHECKING:
    from ..model import DualAttentionBlock

__all__ = ["FUSED", "ORDINARY", "as_convolution", "convolve", "fuses", "run_block"]


def run_block(block: "DualAttentionBlock", x_BHWC: Tensor) -> Tensor:
    """What ``block`` computes, for an input that `fuses` accepted."""
    if torch.is_grad_enabled() and (x_BHWC.requires_grad or any(p.requires_grad for p in block.parameters())):
        return train_block(block, x_BHWC)
    return infer_block(block, x_BHWC)


def convolve(layer: nn.Module, x_BHWC: Tensor) -> Tensor:
    """A linear layer as a 1x1 convolution of the same memory, seen as channels-last.

    A layer that is not just that, or is watched, is called as it is.
    """
    if type(layer) is not nn.Linear or layer._forward_hooks or layer._forward_pre_hooks:
        return layer(x_BHWC)
    weight = layer.weight[:, :, None, None]
    return F.conv2d(x_BHWC.permute(0, 3, 1, 2), weight, layer.bias).permute(0, 2, 3, 1)
