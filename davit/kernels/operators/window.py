"""Window attention on the unpartitioned map: q, k and v are read from it, and the result written in place.

Positions outside the map take part as keys whose k and v are the bias of the qkv layer (`davit.model.WindowAttention`
says why); as queries they would be cropped, and are not written. For the backward pass the map of q, k and v is saved,
and nothing else.
"""

from typing import Any

import torch
from torch import Tensor

from ...windows import window_partition, window_unpartition
from ..cpu import native
from ..gpu import support
from ..gpu import window as gpu
from ..twice import differentiable


def plain(qkv_BHWE: Tensor, bias_E: Tensor | None, window: int, heads: int, scale: float) -> Tensor:
    """What the kernel must equal: (B, H, W, 3 C) to (B, H, W, C)."""
    H, W, C = qkv_BHWE.shape[1], qkv_BHWE.shape[2], qkv_BHWE.shape[3] // 3
    qkv_MNE, tiling = window_partition(qkv_BHWE, window, bias_E)
    M, N = qkv_MNE.shape[:2]
    q_MGND, k_MGND, v_MGND = qkv_MNE.reshape(M, N, 3, heads, C // heads).permute(2, 0, 3, 1, 4).unbind(0)
    attention_MGNN = ((q_MGND * scale) @ k_MGND.transpose(-2, -1)).softmax(dim=-1)
    x_MNC = (attention_MGNN @ v_MGND).transpose(1, 2).reshape(M, N, C)
    return window_unpartition(x_MNC, window, tiling, (H, W))


@torch.library.custom_op("davit::window_attention", mutates_args=())
def window_attention(qkv_BHWE: Tensor, bias_E: Tensor | None, window: int, heads: int, scale: float) -> Tensor:
    """Attention within windows of a map of q, k and v, E = 3 C channels; (B, H, W, C).

    Args:
        bias_E: of the layer that made the map; None where it has none.
    """
    if support.runs_on(qkv_BHWE):
        return gpu.attend(qkv_BHWE, bias_E, window, heads, scale)
    if native.takes_window(qkv_BHWE, window, heads):
        return native.window_attention(qkv_BHWE, bias_E, window, heads, scale)
    return plain(qkv_BHWE, bias_E, window, heads, scale)


@torch.library.custom_op("davit::window_attention_backward", mutates_args=())
def window_attention_backward(
    grad_BHWC: Tensor, qkv_BHWE: Tensor, bias_E: Tensor | None, window: int, heads: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Gradients of the map (B, H, W, E), and of the bias through the padded positions (E, in float32)."""
    backward = gpu.attend_backward if support.runs_on(qkv_BHWE) else native.window_attention_backward
    grad_qkv, parts_MC = backward(grad_BHWC, qkv_BHWE, bias_E, window, heads, scale)
    E = qkv_BHWE.shape[3]
    grad_bias = qkv_BHWE.new_zeros(E, dtype=torch.float32)
    grad_bias[E // 3 :] = parts_MC.sum(0)
    return grad_qkv, grad_bias


@window_attention.register_fake
def _(qkv_BHWE: Tensor, bias_E: Tensor | None, window: int, heads: int, scale: float) -> Tensor:
    B, H, W, E = qkv_BHWE.shape
    return qkv_BHWE.new_empty(B, H, W, E // 3)


@window_attention_backward.register_fake
def _(
    grad_BHWC: Tensor, qkv_BHWE: Tensor, bias_E: Tensor | None, window: int, heads: int, scale: float
) -> tuple[Tensor, Tensor]:
    grad_qkv = torch.empty_like(qkv_BHWE, memory_format=torch.contiguous_format)
    return grad_qkv, qkv_BHWE.new_empty(qkv_BHWE.shape[3], dtype=torch.float32)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.options = inputs[2:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    qkv, bias = ctx.saved_tensors
    fast = support.runs_on(qkv) or native.takes_window(qkv, *ctx.options[:2])
    if torch.is_grad_enabled() or not fast:
        return differentiable(plain, ctx.needs_input_grad, (qkv, bias, *ctx.options), [grad])
    grad_qkv, grad_bias = window_attention_backward(grad, qkv, bias, *ctx.options)
    return grad_qkv, None if bias is None else grad_bias.to(bias.dtype), None, None, None


window_attention.register_autograd(_backward, setup_context=_setup)
