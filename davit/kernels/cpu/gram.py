"""Channel attention with gradients by the Gram matrix of the normed map, where positions outnumber channels by far.

With G = x^T x over the positions of an image, k^T v is Wk G Wv^T; and q, the attention of it and the projection are
one matrix for all positions, Wproj A Wq (as in cpp/block_channel.h, where the mean is left in). That leaves, forward
and backward, 5 C C multiply-adds a position of 12 C C and 6 C D, and of the map its input alone is saved: 1 value of 5
for each channel.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..operators import channel
from ..twice import differentiable
from . import native
from .functions import Recomputing, like, norm_backward
from .inference import attention

#: Positions for each channel, by the bytes of a number, from which it is faster than by q, k and v: what is done once
#: an image is C C C, in float64. Measured; see docs/performance.md.
LEAST_POSITIONS = {4: 8, 2: 24}


def pays(attn: Any, x_BHWC: Tensor) -> bool:
    """Whether an attention is one of channels, and the map large enough for `ChannelAttention`."""
    H, W, C = x_BHWC.shape[1:]
    positions_for_each = H * W / C
    return attention(attn)[0] == 0 and positions_for_each >= LEAST_POSITIONS[x_BHWC.element_size()]


def layer_of(
    gram_BCC: Tensor, mean_BC: Tensor, positions: int, groups: int, scale: float,
    qkv: Tensor, qkv_bias: Tensor | None, proj: Tensor, proj_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The linear layer that channel attention and its projection are to an image: weights (B, C, C), biases (B, C).

    Args:
        gram_BCC: x^T x over the positions, of x less its mean, whose share would hide the last digits of the rest.
        mean_BC: that mean.
    """
    B, C = mean_BC.shape
    q_GDC, k_GDC, v_GDC = qkv.view(3, groups, C // groups, C)
    _, k_BGD, v_BGD = F.linear(mean_BC, qkv, qkv_bias).view(B, 3, groups, -1).unbind(1)
    score_BGDD = (k_GDC.reshape(C, C) @ gram_BCC).view(B, *k_GDC.shape) @ v_GDC.mT
    score_BGDD = score_BGDD + positions * k_BGD[..., :, None] * v_BGD[..., None, :]
    attention_BGDD = (score_BGDD * scale).softmax(-1)
    weight_BCC = proj @ (attention_BGDD @ q_GDC).view(B, C, C)
    if qkv_bias is None:
        return weight_BCC, mean_BC.new_zeros(B, C) if proj_bias is None else proj_bias.expand(B, C)
    bias_BGD1 = attention_BGDD @ qkv_bias[:C].view(groups, -1, 1)
    return weight_BCC, F.linear(bias_BGD1.view(B, C), proj, proj_bias)


class ChannelAttention(Recomputing):
    """LayerNorm, channel attention, its projection; what is done once an image in float64, which keeps the digits."""

    @staticmethod
    def plain(
        x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float, qkv: Tensor, qkv_bias: Tensor | None,
        proj: Tensor, proj_bias: Tensor | None, groups: int, attention_scale: float,
    ) -> Tensor:  # fmt: skip
        y = F.layer_norm(x, x.shape[-1:], scale, shift, eps)
        mixed, _ = channel.plain(F.linear(y, *like(y, qkv, qkv_bias)), groups, attention_scale)
        return F.linear(mixed, *like(y, proj, proj_bias))

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float, qkv: Tensor,
        qkv_bias: Tensor | None, proj: Tensor, proj_bias: Tensor | None, groups: int, attention_scale: float,
    ) -> Tensor:  # fmt: skip
        with torch.autocast(x.device.type, enabled=False):
            y_BHWC, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], scale, shift, eps)
            y_BNC = y_BHWC.flatten(1, 2)
            mean_BC = y_BNC.mean(1, dtype=torch.float32)
            about_BNC = y_BNC - mean_BC[:, None]
            gram_BCC = about_BNC.mT @ about_BNC
            ctx.eps, ctx.options = eps, (y_BNC.shape[1], groups, attention_scale)
            layers = (_leaf(p) for p in (qkv, qkv_bias, proj, proj_bias))
            layer = layer_of(gram_BCC.double(), mean_BC.double(), *ctx.options, *layers)
            weight_BCC, bias_BC = (t.to(x.dtype) for t in layer)
            out_BNC = torch.baddbmm(bias_BC[:, None], y_BNC, weight_BCC.mT)
        of_image = (gram_BCC, mean_BC, weight_BCC)
        ctx.save_for_backward(x, scale, shift, qkv, qkv_bias, proj, proj_bias, mean, rstd, *of_image)
        return out_BNC.view(y_BHWC.shape)

    @staticmethod
    def backward(ctx: Any, grad_BHWC: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, *layers, mean, rstd, gram_BCC, mean_BC, weight_BCC = ctx.saved_tensors
        if torch.is_grad_enabled():
            inputs = (x, scale, shift, ctx.eps, *layers, *ctx.options[1:])
            return ChannelAttention.differentiable(ctx, inputs, grad_BHWC)
        needed = ctx.needs_input_grad
        before = any(needed[:3])
        with torch.autocast(x.device.type, enabled=False):
            y_BNC = F.layer_norm(x, x.shape[-1:], scale, shift, ctx.eps).flatten(1, 2)
            grad_BNC = grad_BHWC.flatten(1, 2)
            of_layer = (grad_BNC.mT @ y_BNC).double(), grad_BNC.sum(1, dtype=torch.float32).double()
            wanted = (before, before, False, False, False, *needed[4:8])
            inputs = (gram_BCC, mean_BC, *ctx.options, *layers)
            leaves = [_leaf(p, need) if isinstance(p, Tensor) else p for p, need in zip(inputs, wanted, strict=True)]
            of_gram, of_mean, _, _, _, *of_wide = differentiable(layer_of, wanted, leaves, of_layer)
            of_norm: Sequence[Tensor | None] = (None, None, None)
            if of_gram is not None and of_mean is not None:
                of_about = of_gram + of_gram.mT
                of_all = (of_mean / y_BNC.shape[1])[:, None] - mean_BC.double()[:, None] @ of_about
                of_y = torch.baddbmm(of_all.to(x.dtype), grad_BNC, weight_BCC)
                of_y.baddbmm_(y_BNC, of_about.to(x.dtype))
                norm = native.Norm(scale, shift, ctx.eps, mean, rstd)
                _, *of_norm = norm_backward(of_y.view(x.shape), x, norm, needed[:3])
        of_layers = [None if g is None else g.to(p.dtype) for g, p in zip(of_wide, layers, strict=True)]
        return *of_norm, None, *of_layers, None, None


def _leaf(parameter: Tensor | None, needed: bool = False) -> Any:
    return None if parameter is None else parameter.detach().double().requires_grad_(needed)
