"""What is whole without gradients, a block or a patch embedding: as one node what eager mode runs."""

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


@torch.library.custom_op("davit::patch_embed", mutates_args=())
def embed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    stride: int,
    stem: bool,
) -> Tensor:
    """As `native.patch_embed`."""
    return native.patch_embed(x, weight, bias, scale, shift, eps, stride, stem)


@embed.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    eps: float,
    stride: int,
    stem: bool,
) -> Tensor:
    H, W = x.shape[2:] if stem else x.shape[1:3]
    return x.new_empty(x.shape[0], (H - 1) // stride + 1, (W - 1) // stride + 1, weight.shape[0])
