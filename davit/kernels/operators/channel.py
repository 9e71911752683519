"""Channel attention in two passes over strided views of the map of q, k and v; nothing is transposed in memory.

First k^T v, D x D for each image and group, summed over parts of the positions in a fixed order, and its softmax; then
q times that. The backward pass has the same two passes. Saved are the map of q, k and v, and the D x D attention in
float32.
"""

from typing import Any

import torch
from torch import Tensor

from ..cpu import native
from ..gpu import channel as gpu
from ..gpu import support
from ..twice import differentiable


def plain(qkv_BHWE: Tensor, groups: int, scale: float) -> tuple[Tensor, Tensor]:
    """What the kernels must equal: (B, H, W, 3 C) to (B, H, W, C), and the attention (B, G, D, D) in float32."""
    B, H, W, C = *qkv_BHWE.shape[:3], qkv_BHWE.shape[3] // 3
    qkv = qkv_BHWE.reshape(B, H * W, 3, groups, C // groups)
    q_BGND, k_BGND, v_BGND = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    attention_BGDD = ((k_BGND * scale).transpose(-2, -1) @ v_BGND).softmax(dim=-1)
    x_BNGD = (q_BGND @ attention_BGDD.transpose(-2, -1)).transpose(1, 2)
    return x_BNGD.reshape(B, H, W, C), attention_BGDD.float()


@torch.library.custom_op("davit::channel_attention", mutates_args=())
def channel_attention(qkv_BHWE: Tensor, groups: int, scale: float) -> tuple[Tensor, Tensor]:
    """Attention among the channels of each group, of a map of q, k and v, E = 3 C channels.

    Returns:
        The map (B, H, W, C), and the attention (B, G, D, D) in float32, which has no gradient.
    """
    if support.runs_on(qkv_BHWE):
        return gpu.attend(qkv_BHWE, groups, scale)
    if native.takes_channel(qkv_BHWE, groups):
        return native.channel_attention(qkv_BHWE, groups, scale)
    return plain(qkv_BHWE, groups, scale)


@torch.library.custom_op("davit::channel_attention_backward", mutates_args=())
def channel_attention_backward(
    grad_BHWC: Tensor, qkv_BHWE: Tensor, attention_BGDD: Tensor, groups: int, scale: float
) -> Tensor:
    """Gradient of the map of q, k and v, (B, H, W, E)."""
    backward = gpu.attend_backward if support.runs_on(qkv_BHWE) else native.channel_attention_backward
    return backward(grad_BHWC, qkv_BHWE, attention_BGDD, groups, scale)


@channel_attention.register_fake
def _(qkv_BHWE: Tensor, groups: int, scale: float) -> tuple[Tensor, Tensor]:
    B, H, W, E = qkv_BHWE.shape
    D = E // 3 // groups
    return qkv_BHWE.new_empty(B, H, W, E // 3), qkv_BHWE.new_empty(B, groups, D, D, dtype=torch.float32)


@channel_attention_backward.register_fake
def _(grad_BHWC: Tensor, qkv_BHWE: Tensor, attention_BGDD: Tensor, groups: int, scale: float) -> Tensor:
    return torch.empty_like(qkv_BHWE, memory_format=torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0], output[1])
    ctx.options = inputs[1:]


def _backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    qkv, attention = ctx.saved_tensors
    fast = support.runs_on(qkv) or native.takes_channel(qkv, ctx.options[0])
    if torch.is_grad_enabled() or not fast:
        return differentiable(plain, ctx.needs_input_grad, (qkv, *ctx.options), [grad, None])
    return channel_attention_backward(grad, qkv, attention, *ctx.options), None, None


channel_attention.register_autograd(_backward, setup_context=_setup)
