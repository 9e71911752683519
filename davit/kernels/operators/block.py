"""A whole block without gradients, for torch.compile: what eager mode runs, as one node of the graph."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..cpu.inference import PARAMETERS, infer_natively
from .channel import channel_attention
from .window import window_attention


@torch.library.custom_op("davit::block", mutates_args=())
def infer(
    x_BHWC: Tensor, weights: Sequence[Tensor | None], window: int, heads: int, scale: float, eps: Sequence[float]
) -> Tensor:
    """A block of window attention, or of channel attention where ``window`` is 0.

    Args:
        weights: as in `PARAMETERS`; None is absent.
        heads: or groups.
        eps: of both norms.
    """
    given = dict(zip(PARAMETERS, weights, strict=True))

    def attend(qkv: Tensor) -> Tensor:
        if window:
            return window_attention(qkv, given["attn.qkv.bias"], window, heads, scale)
        return channel_attention(qkv, heads, scale)[0]

    return infer_natively(x_BHWC, given, attend, eps)


@infer.register_fake
def _(
    x_BHWC: Tensor, weights: Sequence[Tensor | None], window: int, heads: int, scale: float, eps: Sequence[float]
) -> Tensor:
    return torch.empty_like(x_BHWC, memory_format=torch.contiguous_format)
