"""Train blocks in eager mode by autograd Functions that save less for the backward pass than the modules do.

They save the inputs of the convolutions and norms, q, k and v, the output of the attention, and the input of the MLP's
GELU: 12 values for each position and channel. The modules save about 20, since they keep the outputs of norms and
GELU (cheap to recompute), attention matrices and copies too. Channel attention on large maps uses the Gram matrix and
saves its input alone.

Matrix products are native.cpp's where it supports them, otherwise PyTorch's. Gradients are summed in a fixed order.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ops
from .cpu import native
from .ops import double_backward, like
from .triton import gelu, support

#: Size of the hidden map of the rows that an MLP takes at a time. Measured; see docs/performance.md.
PART_BYTES = 8 << 20

#: Minimum positions per channel, by the bytes of a value, at which the Gram matrix is faster than q, k and v: for each
#: image it costs C^3 operations in float64. Measured; see docs/performance.md.
MIN_POSITIONS = {4: 8, 2: 24}


class LinearFunction(torch.autograd.Function):
    """Compute x @ weight^T + bias."""

    @staticmethod
    def formula(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, *like(x, weight, bias))

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        if native.supports_products(x, *weight.shape):
            return native.linear(x, *like(x, weight, bias))
        return F.linear(x, *like(x, weight, bias))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():
            return double_backward(LinearFunction.formula, ctx.needs_input_grad, (x, weight, bias), [grad])
        need_x, *need = ctx.needs_input_grad
        grad_x = _input_grad(grad, weight) if need_x else None
        return grad_x, *weight_grads(grad, x, weight, bias, need)


class PositionEncoding(torch.autograd.Function):
    """Add a depthwise 3x3 convolution of x to x; saves x alone."""

    formula = staticmethod(ops.encoding_formula)

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        native.encode(x, weight, bias, y, None, 0.0)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():
            return double_backward(PositionEncoding.formula, ctx.needs_input_grad, (x, weight, bias), [grad])
        grad_x, grad_weight, grad_bias = native.encode_gradients(grad, x, weight)
        grad_weight = grad_weight.view_as(weight).to(weight.dtype)
        return grad_x, grad_weight, None if bias is None else grad_bias.to(bias.dtype)


class NormLinear(torch.autograd.Function):
    """Apply a LayerNorm and a linear layer; the norm's output is not saved."""

    @staticmethod
    def formula(
        x: Tensor,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        eps: float,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        y = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
        return F.linear(y, *like(y, weight, bias))

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, eps: float,
        weight: Tensor, bias: Tensor | None,
    ) -> Tensor:  # fmt: skip
        ctx.eps = eps
        if native.supports_products(x, *weight.shape):
            mean, rstd = _moments(x)
            norm = native.NormArgs(norm_weight, norm_bias, eps, mean, rstd)
            out = native.linear(x, *like(x, weight, bias), norm=norm)
        else:
            y, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
            out = F.linear(y, *like(y, weight, bias))
        ctx.save_for_backward(x, norm_weight, norm_bias, weight, bias, mean, rstd)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, norm_weight, norm_bias, weight, bias, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():
            inputs = (x, norm_weight, norm_bias, ctx.eps, weight, bias)
            return double_backward(NormLinear.formula, ctx.needs_input_grad, inputs, [grad])
        needed = ctx.needs_input_grad
        norm = native.NormArgs(norm_weight, norm_bias, ctx.eps, mean, rstd)
        grad_bias: Tensor | None = None
        if native.supports_products(x, *weight.shape):
            y, grad_bias, *found = native.linear_backward(grad, x, norm, weight.to(x.dtype))
            norm_grads = [*_needed(norm, found, needed[:3])]
        else:
            y, *norm_grads = norm_backward(_input_grad(grad, weight), x, norm, needed[:3])
        return *norm_grads, None, *weight_grads(grad, y, weight, bias, needed[4:], grad_bias)


class NormMlp(torch.autograd.Function):
    """Apply a LayerNorm, a linear layer, an exact GELU and a linear layer, part by part of the rows.

    Besides x and the norm's moments only the input of the GELU is saved, one tensor for each part.
    """

    @staticmethod
    def formula(
        x: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, eps: float,
        weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None,
    ) -> Tensor:  # fmt: skip
        y = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
        return F.linear(F.gelu(F.linear(y, *like(y, weight1, bias1))), *like(y, weight2, bias2))

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, eps: float,
        weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None,
    ) -> Tensor:  # fmt: skip
        C = x.shape[-1]
        rows = max(64, PART_BYTES // (weight1.shape[0] * x.element_size()))
        first, second = like(x, weight1, bias1), like(x, weight2, bias2)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        saved = []
        natively = native.supports_products(x, *weight1.shape)
        for part, target in zip(x.reshape(-1, C).split(rows), out.view(-1, C).split(rows), strict=True):
            if natively:
                mean, rstd = _moments(part)
                hidden = x.new_empty(len(part), weight1.shape[0])
                norm = native.NormArgs(norm_weight, norm_bias, eps, mean, rstd)
                native.mlp(part, norm, *first, *second, hidden=hidden, out=target)
            else:
                y, mean, rstd = torch.native_layer_norm(part, [C], norm_weight, norm_bias, eps)
                hidden = F.linear(y, *first)
                target.copy_(F.linear(F.gelu(hidden), *second))
            saved += [mean, rstd, hidden]
        ctx.save_for_backward(x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, *saved)
        ctx.eps, ctx.rows = eps, rows
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, *saved = ctx.saved_tensors
        if torch.is_grad_enabled():
            inputs = (x, norm_weight, norm_bias, ctx.eps, weight1, bias1, weight2, bias2)
            return double_backward(NormMlp.formula, ctx.needs_input_grad, inputs, [grad])
        C = x.shape[-1]
        needed = ctx.needs_input_grad
        grad_x = torch.empty_like(x, memory_format=torch.contiguous_format) if needed[0] else None
        sums: list[Tensor | None] = [None] * 6
        natively = native.supports_products(x, *weight1.shape)
        parts = zip(x.reshape(-1, C).split(ctx.rows), grad.reshape(-1, C).split(ctx.rows), strict=True)
        for i, (x_part, grad_part) in enumerate(parts):
            mean, rstd, hidden = saved[3 * i : 3 * i + 3]
            norm = native.NormArgs(norm_weight, norm_bias, ctx.eps, mean, rstd)
            grad_bias1: Tensor | None
            grad_bias2: Tensor | None = None
            if natively:
                grad_hidden, activated, y, grad_bias1, grad_bias2, *found = native.mlp_backward(
                    grad_part, x_part, norm, weight1.to(x.dtype), weight2.to(x.dtype), hidden
                )
                grad_x_part, *norm_grads = _needed(norm, found, needed[:3])
            else:
                grad_hidden, activated, grad_bias1 = _gelu_backward(_input_grad(grad_part, weight2), hidden)
                y, grad_x_part, *norm_grads = norm_backward(
                    _input_grad(grad_hidden, weight1), x_part, norm, needed[:3]
                )
            second = weight_grads(grad_part, activated, weight2, bias2, needed[6:], grad_bias2)
            first = weight_grads(grad_hidden, y, weight1, bias1, needed[4:6], grad_bias1)
            del activated, grad_hidden
            if grad_x is not None and grad_x_part is not None:
                grad_x.view(-1, C)[i * ctx.rows : i * ctx.rows + len(x_part)].copy_(grad_x_part)
            sums = [_sum(old, new) for old, new in zip(sums, (*norm_grads, *first, *second), strict=True)]
        return grad_x, sums[0], sums[1], None, *sums[2:]


class GeluLinear(torch.autograd.Function):
    """Apply an exact GELU and a linear layer; saves the input of the GELU alone."""

    @staticmethod
    def formula(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(F.gelu(x), *like(x, weight, bias))

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return GeluLinear.formula(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():
            return double_backward(GeluLinear.formula, ctx.needs_input_grad, (x, weight, bias), [grad])
        grad_x, activated, _ = _gelu_backward(grad @ weight.to(grad.dtype), x)
        return grad_x, *weight_grads(grad, activated.to(grad.dtype), weight, bias, ctx.needs_input_grad[1:])


# --- channel attention from the Gram matrix of the normalised map ---
# With G = x^T x over the positions of an image, k^T v is Wk G Wv^T. The query layer, the attention A and the
# projection together are one matrix for all positions, Wproj A Wq (as in cpp/block_channel.h, which does not subtract
# the mean). A position then costs 5 C C multiply-adds forward and backward in place of 12 C C + 6 C D, and the input
# alone is saved: 1 value in place of 5 for each channel. In Florence-2's function (`qk`) q, k and v are in the places
# of k, v and q.


def gram_is_faster(x_BHWC: Tensor) -> bool:
    """Tell whether `GramChannelAttention` is faster on this map than q, k and v."""
    H, W, C = x_BHWC.shape[1:]
    return MIN_POSITIONS[x_BHWC.element_size()] <= H * W / C


def folded_layer(
    gram_BCC: Tensor, mean_BC: Tensor, positions: int, groups: int, qk: bool,
    qkv: Tensor, qkv_bias: Tensor | None, proj: Tensor, proj_bias: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return channel attention and its projection as one linear layer for each image: (B, C, C) and (B, C).

    Args:
        gram_BCC: (x - mean)^T (x - mean) over the positions; with the mean left in, rounding would be larger.
        mean_BC: mean of x over the positions.
    """
    B, C = mean_BC.shape
    a, b, mixed = (0, 1, 2) if qk else (1, 2, 0)  # which of q, k and v the attention is made from and applied to
    layers_3GDC = qkv.view(3, groups, C // groups, C)
    means_B3GD = F.linear(mean_BC, qkv, qkv_bias).view(B, 3, groups, -1)
    score_BGDD = (layers_3GDC[a].reshape(C, C) @ gram_BCC).view(B, *layers_3GDC[a].shape) @ layers_3GDC[b].mT
    score_BGDD = score_BGDD + positions * means_B3GD[:, a, :, :, None] * means_B3GD[:, b, :, None, :]
    attention_BGDD = (score_BGDD * (positions if qk else C // groups) ** -0.5).softmax(-1)
    weight_BCC = proj @ (attention_BGDD @ layers_3GDC[mixed]).view(B, C, C)
    if qkv_bias is None:
        return weight_BCC, mean_BC.new_zeros(B, C) if proj_bias is None else proj_bias.expand(B, C)
    bias_BGD1 = attention_BGDD @ qkv_bias.view(3, groups, -1, 1)[mixed]
    return weight_BCC, F.linear(bias_BGD1.view(B, C), proj, proj_bias)


class GramChannelAttention(torch.autograd.Function):
    """Apply a LayerNorm, channel attention and its projection. The C x C products run in float64, for accuracy."""

    @staticmethod
    def formula(
        x: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, eps: float, qkv: Tensor,
        qkv_bias: Tensor | None, proj: Tensor, proj_bias: Tensor | None, groups: int,
        qk: bool = False,
    ) -> Tensor:  # fmt: skip
        y = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
        mixed = ops.channel_formula(F.linear(y, *like(y, qkv, qkv_bias)), groups, qk)[0]
        return F.linear(mixed, *like(y, proj, proj_bias))

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None, eps: float, qkv: Tensor,
        qkv_bias: Tensor | None, proj: Tensor, proj_bias: Tensor | None, groups: int,
        qk: bool = False,
    ) -> Tensor:  # fmt: skip
        with torch.autocast(x.device.type, enabled=False):
            y_BHWC, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
            y_BNC = y_BHWC.flatten(1, 2)
            mean_BC = y_BNC.mean(1, dtype=torch.float32)
            centred_BNC = y_BNC - mean_BC[:, None]
            gram_BCC = centred_BNC.mT @ centred_BNC
            ctx.eps, ctx.options = eps, (y_BNC.shape[1], groups, qk)
            wide = (_leaf(p) for p in (qkv, qkv_bias, proj, proj_bias))
            layer = folded_layer(gram_BCC.double(), mean_BC.double(), *ctx.options, *wide)
            weight_BCC, bias_BC = (t.to(x.dtype) for t in layer)
            out_BNC = torch.baddbmm(bias_BC[:, None], y_BNC, weight_BCC.mT)
        layers = (qkv, qkv_bias, proj, proj_bias)
        ctx.save_for_backward(x, norm_weight, norm_bias, *layers, mean, rstd, gram_BCC, mean_BC, weight_BCC)
        return out_BNC.view(y_BHWC.shape)

    @staticmethod
    def backward(ctx: Any, grad_BHWC: Tensor) -> tuple[Tensor | None, ...]:
        x, norm_weight, norm_bias, *layers, mean, rstd, gram_BCC, mean_BC, weight_BCC = ctx.saved_tensors
        if torch.is_grad_enabled():
            inputs = (x, norm_weight, norm_bias, ctx.eps, *layers, *ctx.options[1:])
            return double_backward(GramChannelAttention.formula, ctx.needs_input_grad, inputs, [grad_BHWC])
        needed = ctx.needs_input_grad
        needs_input = any(needed[:3])
        with torch.autocast(x.device.type, enabled=False):
            y_BNC = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, ctx.eps).flatten(1, 2)
            grad_BNC = grad_BHWC.flatten(1, 2)
            layer_grads = (grad_BNC.mT @ y_BNC).double(), grad_BNC.sum(1, dtype=torch.float32).double()
            wanted = (needs_input, needs_input, False, False, False, *needed[4:8])
            inputs = (gram_BCC, mean_BC, *ctx.options, *layers)
            leaves = [_leaf(p, need) if isinstance(p, Tensor) else p for p, need in zip(inputs, wanted, strict=True)]
            grad_gram, grad_mean, _, _, _, *wide_grads = double_backward(folded_layer, wanted, leaves, layer_grads)
            norm_grads: Sequence[Tensor | None] = (None, None, None)
            if grad_gram is not None and grad_mean is not None:
                grad_centred = grad_gram + grad_gram.mT
                grad_all = (grad_mean / y_BNC.shape[1])[:, None] - mean_BC.double()[:, None] @ grad_centred
                grad_y = torch.baddbmm(grad_all.to(x.dtype), grad_BNC, weight_BCC)
                grad_y.baddbmm_(y_BNC, grad_centred.to(x.dtype))
                norm = native.NormArgs(norm_weight, norm_bias, ctx.eps, mean, rstd)
                _, *norm_grads = norm_backward(grad_y.view(x.shape), x, norm, needed[:3])
        grads = [None if g is None else g.to(p.dtype) for g, p in zip(wide_grads, layers, strict=True)]
        return *norm_grads, None, *grads, None, None


def _leaf(parameter: Tensor | None, needed: bool = False) -> Any:
    """Copy a parameter to float64, as a leaf of autograd."""
    return None if parameter is None else parameter.detach().double().requires_grad_(needed)


# --- helpers ---


def _gelu_backward(grad: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradient of ``hidden`` (overwrites ``grad``), GELU(hidden), and the sum of the gradient if known."""
    if support.runs_on(hidden):
        return *gelu.gelu_backward(grad, hidden), None
    if native.supports_rows(hidden):
        return native.gelu_backward(grad, hidden)
    return torch.ops.aten.gelu_backward(grad, hidden), F.gelu(hidden), None


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Allocate the mean and the reciprocal standard deviation of each position."""
    return x.new_empty(x.shape[:-1], dtype=torch.float32), x.new_empty(x.shape[:-1], dtype=torch.float32)


def norm_backward(
    grad: Tensor, x: Tensor, norm: native.NormArgs, need: Sequence[bool]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Return a LayerNorm's output and the needed gradients of input, weight and bias. Overwrites ``grad``."""
    norm_weight, norm_bias, eps, mean, rstd = norm
    assert mean is not None and rstd is not None
    if native.supports_rows(x):
        y, *found = native.norm_backward(grad, x, mean, rstd, norm_weight, norm_bias)
        return y, *_needed(norm, found, need)
    y = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
    mask = [need[0], need[1] and norm_weight is not None, need[2] and norm_bias is not None]
    grads = torch.ops.aten.native_layer_norm_backward(
        grad.contiguous(), x, x.shape[-1:], mean, rstd, norm_weight, norm_bias, mask
    )
    return y, *grads


def _needed(
    norm: native.NormArgs, grads: Sequence[Tensor], need: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Keep the gradients of a norm's input, weight and bias that are needed, cast to their parameters' dtypes."""
    vectors = [
        grad.to(p.dtype) if wanted and p is not None else None
        for grad, p, wanted in zip(grads[1:], norm[:2], need[1:], strict=True)
    ]
    return grads[0] if need[0] else None, vectors[0], vectors[1]


def _input_grad(grad: Tensor, weight: Tensor) -> Tensor:
    if native.supports_products(grad, *weight.shape):
        return native.linear(grad, weight.to(grad.dtype), None, transposed=True)
    return grad @ weight.to(grad.dtype)


def weight_grads(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, need: Sequence[bool], grad_bias: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of a linear layer's weight and bias, each where it is needed, in their own dtypes.

    Args:
        grad_bias: the sum of ``grad`` over the positions, if it is known.
    """
    grad_NE, x_NC = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
    grad_weight = (grad_NE.t() @ x_NC).to(weight.dtype) if need[0] else None
    if not need[1] or bias is None:
        return grad_weight, None
    return grad_weight, (grad_NE.sum(0) if grad_bias is None else grad_bias).to(bias.dtype)


def _sum(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    return new if old is None or new is None else old.add_(new)
