"""A whole block without gradients, for torch.compile: what eager mode runs, as one node of the graph."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..cpu import native


@torch.library.custom_op("davit::block", mutates_args=())
def infer(
    x_BHWC: Tensor, weights: Sequence[Tensor | None], window: int, heads: int, scale: float, eps: Sequence[float]
) -> Tensor:
    """As `native.block`."""
    return native.block(x_BHWC, weights, window, heads, scale, eps)


@infer.register_fake
def _(
    x_BHWC: Tensor, weights: Sequence[Tensor | None], window: int, heads: int, scale: float, eps: Sequence[float]
) -> Tensor:
    return torch.empty_like(x_BHWC, memory_format=torch.contiguous_format)
