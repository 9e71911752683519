"""Faster ways to compute what `davit.model` computes, taken only where they are known to hold.

The plain modules of `davit.model` are the reference. A block asks `fuses` on every call; the answer is no for
everything out of the ordinary (see there), and then the plain modules run. docs/performance.md has the
measurements behind each choice.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .inference import infer_block
from .select import FUSED, ORDINARY, fuses
from .training import train_block

if TYPE_CHECKING:
    from ..model import DualAttentionBlock

__all__ = ["FUSED", "ORDINARY", "fuses", "run_block"]


def run_block(block: "DualAttentionBlock", x_BHWC: Tensor) -> Tensor:
    """What ``block`` computes, for an input that `fuses` accepted."""
    if torch.is_grad_enabled() and (x_BHWC.requires_grad or any(p.requires_grad for p in block.parameters())):
        return train_block(block, x_BHWC)
    return infer_block(block, x_BHWC)
