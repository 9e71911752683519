"""What is whole without gradients, a block or a patch embedding: as one node what eager mode runs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..cpu import whole


@torch.library.custom_op("davit::block", mutates_args=())
def infer(
    x_BHWC: Tensor,
    weights: Sequence[Tensor | None],
    window: int,
    heads: int,
    scale: float,
    eps: Sequence[float],
    packed: Tensor | None,
) -> Tensor:
    """As `whole.block`."""
    return whole.block(x_BHWC, weights, window, heads, scale, eps, packed)


@infer.register_fake
def _(
    x_BHWC: Tensor,
    weights: Sequence[Tensor | None],
    window: int,
    heads: int,
    scale: float,
    eps: Sequence[float],
    packed: Tensor | None,
) -> Tensor:
    return torch.empty_like(x_BHWC, memory_format=torch.contiguous_format)


@torch.library.custom_op("davit::pack_block", mutates_args=())
def pack(weights: Sequence[Tensor | None], heads: int) -> Tensor:
    """As `whole.pack_block`."""
    return whole.pack_block(weights, heads)


@pack.register_fake
def _(weights: Sequence[Tensor | None], heads: int) -> Tensor:
    matrices = [p for p in (weights[i] for i in whole.MATRICES) if p is not None]
    return matrices[0].new_empty(sum(p.numel() for p in matrices))


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
    """As `whole.patch_embed`."""
    return whole.patch_embed(x, weight, bias, scale, shift, eps, stride, stem)


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
