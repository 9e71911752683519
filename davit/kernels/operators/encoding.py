"""Position encoding, its residual and the LayerNorm behind it in one pass over a channels-last map."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cpu import native
from ..gpu import encoding as gpu
from ..gpu import support
from ..twice import differentiable


def plain(
    x_BHWC: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None,
    eps: float, norm_dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What the kernels must equal: y = x + depthwise 3x3 convolution of x, and LayerNorm(y) in ``norm_dtype``."""
    dtype, C = x_BHWC.dtype, x_BHWC.shape[3]
    conv_bias = None if bias is None else bias.to(dtype)
    with torch.autocast(x_BHWC.device.type, enabled=False):
        y_BCHW = F.conv2d(x_BHWC.permute(0, 3, 1, 2), weight.to(dtype), conv_bias, padding=1, groups=C)
        y = x_BHWC + y_BCHW.permute(0, 2, 3, 1)
        wide = torch.promote_types(dtype, torch.float32)
        wide_scale, wide_shift = (None if p is None else p.to(wide) for p in (scale, shift))
        return y, F.layer_norm(y.to(wide), [C], wide_scale, wide_shift, eps).to(norm_dtype)


@torch.library.custom_op("davit::encode_and_norm", mutates_args=())
def encode_and_norm(
    x_BHWC: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None,
    eps: float, norm_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Position encoding with its residual, and what LayerNorm makes of it.

    Args:
        weight: (C, 1, 3, 3), of the depthwise convolution.
        scale: of the norm, with ``shift`` and ``eps``.
        norm_dtype: number format of the normalised map; under autocast that of the linear layer that reads it.

    Returns:
        x + encoding and the normalised map, both (B, H, W, C); mean and reciprocal deviation of each position,
        in float32, which have no gradient.
    """
    mean, rstd = (x_BHWC.new_empty(x_BHWC.shape[:3], dtype=torch.float32) for _ in range(2))
    fast = gpu if support.runs_on(x_BHWC) else native if native.takes_rows(x_BHWC) else None
    if fast is None:
        y, normed = plain(x_BHWC, weight, bias, scale, shift, eps, norm_dtype)
        variance = torch.var_mean(y.float(), dim=3, correction=0)
        return y, normed, mean.copy_(variance[1]), rstd.copy_((variance[0] + eps).rsqrt())
    y = torch.empty_like(x_BHWC, memory_format=torch.contiguous_format)
    normed = torch.empty_like(y, dtype=norm_dtype)
    fast.encode(x_BHWC, weight, bias, y, (normed, scale, shift, mean, rstd), eps)
    return y, normed, mean, rstd


@torch.library.custom_op("davit::encode_and_norm_backward", mutates_args=())
def encode_and_norm_backward(
    grad_y: Tensor | None, grad_normed: Tensor | None, x_BHWC: Tensor, weight: Tensor, scale: Tensor | None,
    y_BHWC: Tensor, mean: Tensor, rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of x; in float32 of the weight (C, 9), and of bias, the norm's scale and its shift (3, C)."""
    backward = gpu.encode_backward if support.runs_on(x_BHWC) else native.encode_backward
    return backward(grad_y, grad_normed, x_BHWC, weight, scale, y_BHWC, mean, rstd)


@encode_and_norm.register_fake
def _(
    x_BHWC: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None,
    eps: float, norm_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    y = torch.empty_like(x_BHWC, memory_format=torch.contiguous_format)
    mean, rstd = (x_BHWC.new_empty(x_BHWC.shape[:3], dtype=torch.float32) for _ in range(2))
    return y, torch.empty_like(y, dtype=norm_dtype), mean, rstd


@encode_and_norm_backward.register_fake
def _(
    grad_y: Tensor | None, grad_normed: Tensor | None, x_BHWC: Tensor, weight: Tensor, scale: Tensor | None,
    y_BHWC: Tensor, mean: Tensor, rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    C = x_BHWC.shape[3]
    sums = [x_BHWC.new_empty(shape, dtype=torch.float32) for shape in ((C, 9), (3, C))]
    return torch.empty_like(y_BHWC, memory_format=torch.contiguous_format), sums[0], sums[1]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:5], output[0], *output[2:])
    ctx.options = inputs[5:]


def _backward(ctx: Any, grad_y: Tensor | None, grad_normed: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    x, weight, bias, scale, shift, y, mean, rstd = ctx.saved_tensors
    if grad_y is None and grad_normed is None:
        return (None,) * 7
    if torch.is_grad_enabled() or not (support.runs_on(x) or native.takes_rows(x)):
        inputs = (x, weight, bias, scale, shift, *ctx.options)
        return differentiable(plain, ctx.needs_input_grad, inputs, [grad_y, grad_normed])
    grad_x, grad_weight, (of_bias, of_scale, of_shift) = encode_and_norm_backward(
        grad_y, grad_normed, x, weight, scale, y, mean, rstd
    )
    vectors = [
        None if p is None else g.to(p.dtype)
        for p, g in zip((bias, scale, shift), (of_bias, of_scale, of_shift), strict=True)
    ]
    return grad_x, grad_weight.to(weight.dtype).view_as(weight), *vectors, None, None


encode_and_norm.register_autograd(_backward, setup_context=_setup)
