"""Spans of a block on the CPU with gradients: fewer saved maps, products by native.cpp or oneDNN in both directions.

Saved for the backward pass are the inputs of the convolutions and norms, q, k and v, what the attention gave, and
the MLP's hidden map in front of its GELU: 12 values for each position and channel. The plain modules save about
20: also what the norms and the GELU made, which costs little to compute again, attention matrices and copies.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..twice import differentiable
from . import native
from .inference import PART_BYTES, linear


class Recomputing(torch.autograd.Function):
    """What the functions below share: the plain formula, for gradients of gradients."""

    @staticmethod
    def plain(*inputs: Any) -> Tensor:
        raise NotImplementedError

    @classmethod
    def differentiable(cls, ctx: Any, inputs: tuple[Any, ...], grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients that can be differentiated again (``create_graph``): through the plain formula."""
        return differentiable(cls.plain, ctx.needs_input_grad, inputs, [grad])


class Linear(Recomputing):
    """x @ weight^T + bias."""

    @staticmethod
    def plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, *like(x, weight, bias))

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        if native.takes_products(x, *weight.shape):
            return native.linear(x, *like(x, weight, bias))
        return linear(x, *like(x, weight, bias))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():
            return Linear.differentiable(ctx, (x, weight, bias), grad)
        need_x, *need = ctx.needs_input_grad
        grad_x = _input_grad(grad, weight) if need_x else None
        return grad_x, *weight_grads(grad, x, weight, bias, need)


class PositionEncoding(Recomputing):
    """x + depthwise 3x3 convolution of x, of which x alone is saved."""

    @staticmethod
    def plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x_BCHW = x.permute(0, 3, 1, 2)
        return x + F.conv2d(x_BCHW, *like(x, weight, bias), padding=1, groups=x.shape[3]).permute(0, 2, 3, 1)

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
            return PositionEncoding.differentiable(ctx, (x, weight, bias), grad)
        grad_x, grad_weight, grad_bias = native.encode_gradients(grad, x, weight)
        of_weight = grad_weight.view_as(weight).to(weight.dtype)
        return grad_x, of_weight, None if bias is None else grad_bias.to(bias.dtype)


class NormLinear(Recomputing):
    """LayerNorm, linear layer. What the norm gave is not saved."""

    @staticmethod
    def plain(
        x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        y = F.layer_norm(x, x.shape[-1:], scale, shift, eps)
        return F.linear(y, *like(y, weight, bias))

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float,
        weight: Tensor, bias: Tensor | None,
    ) -> Tensor:  # fmt: skip
        ctx.eps = eps
        if native.takes_products(x, *weight.shape):
            mean, rstd = _moments(x)
            out = native.linear(x, *like(x, weight, bias), norm=native.Norm(scale, shift, eps, mean, rstd))
        else:
            y, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], scale, shift, eps)
            out = linear(y, *like(y, weight, bias))
        ctx.save_for_backward(x, scale, shift, weight, bias, mean, rstd)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, weight, bias, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():
            return NormLinear.differentiable(ctx, (x, scale, shift, ctx.eps, weight, bias), grad)
        needed = ctx.needs_input_grad
        norm = native.Norm(scale, shift, ctx.eps, mean, rstd)
        of_bias: Tensor | None = None
        if native.takes_products(x, *weight.shape):
            y, of_bias, *given = native.linear_backward(grad, x, norm, weight.to(x.dtype))
            of_norm = [*_needed(norm, given, needed[:3])]
        else:
            y, *of_norm = norm_backward(_input_grad(grad, weight), x, norm, needed[:3])
        return *of_norm, None, *weight_grads(grad, y, weight, bias, needed[4:], of_bias)


class NormMlp(Recomputing):
    """LayerNorm, linear layer, exact GELU, linear layer, a part of the rows at a time.

    Only the hidden map in front of the GELU is saved, one tensor a part.
    """

    @staticmethod
    def plain(
        x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float,
        weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None,
    ) -> Tensor:  # fmt: skip
        y = F.layer_norm(x, x.shape[-1:], scale, shift, eps)
        return F.linear(F.gelu(F.linear(y, *like(y, weight1, bias1))), *like(y, weight2, bias2))

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float,
        weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None,
    ) -> Tensor:  # fmt: skip
        C = x.shape[-1]
        rows = max(64, PART_BYTES // (weight1.shape[0] * x.element_size()))
        first, second = like(x, weight1, bias1), like(x, weight2, bias2)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        saved = []
        natively = native.takes_products(x, *weight1.shape)
        for part, target in zip(x.reshape(-1, C).split(rows), out.view(-1, C).split(rows), strict=True):
            if natively:
                mean, rstd = _moments(part)
                hidden = x.new_empty(len(part), weight1.shape[0])
                norm = native.Norm(scale, shift, eps, mean, rstd)
                native.mlp(part, norm, *first, *second, hidden=hidden, out=target)
            else:
                y, mean, rstd = torch.native_layer_norm(part, [C], scale, shift, eps)
                hidden = linear(y, *first)
                target.copy_(linear(F.gelu(hidden), *second))
            saved += [mean, rstd, hidden]
        ctx.save_for_backward(x, scale, shift, weight1, bias1, weight2, bias2, *saved)
        ctx.eps, ctx.rows = eps, rows
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, weight1, bias1, weight2, bias2, *saved = ctx.saved_tensors
        if torch.is_grad_enabled():
            inputs = (x, scale, shift, ctx.eps, weight1, bias1, weight2, bias2)
            return NormMlp.differentiable(ctx, inputs, grad)
        C = x.shape[-1]
        needed = ctx.needs_input_grad
        grad_x = torch.empty_like(x, memory_format=torch.contiguous_format) if needed[0] else None
        sums: list[Tensor | None] = [None] * 6
        natively = native.takes_products(x, *weight1.shape)
        parts = zip(x.reshape(-1, C).split(ctx.rows), grad.reshape(-1, C).split(ctx.rows), strict=True)
        for i, (x_part, grad_part) in enumerate(parts):
            mean, rstd, hidden = saved[3 * i : 3 * i + 3]
            norm = native.Norm(scale, shift, ctx.eps, mean, rstd)
            of_bias1: Tensor | None
            of_bias2: Tensor | None = None
            if natively:
                grad_hidden, activated, y, of_bias1, of_bias2, *norm_grads = native.mlp_backward(
                    grad_part, x_part, norm, weight1.to(x.dtype), weight2.to(x.dtype), hidden
                )
                of_x, *of_norm = _needed(norm, norm_grads, needed[:3])
            else:
                grad_hidden, activated, of_bias1 = _gelu_backward(_input_grad(grad_part, weight2), hidden)
                y, of_x, *of_norm = norm_backward(_input_grad(grad_hidden, weight1), x_part, norm, needed[:3])
            second = weight_grads(grad_part, activated, weight2, bias2, needed[6:], of_bias2)
            first = weight_grads(grad_hidden, y, weight1, bias1, needed[4:6], of_bias1)
            del activated, grad_hidden
            if grad_x is not None and of_x is not None:
                grad_x.view(-1, C)[i * ctx.rows : i * ctx.rows + len(x_part)].copy_(of_x)
            sums = [_sum(old, new) for old, new in zip(sums, (*of_norm, *first, *second), strict=True)]
        return grad_x, sums[0], sums[1], None, *sums[2:]


def _gelu_backward(grad: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradient in front of a GELU, over ``grad``; what the GELU gave; and the former's sum, where it is known."""
    if native.takes_rows(hidden):
        return native.gelu_backward(grad, hidden, in_place=True)
    return torch.ops.aten.gelu_backward(grad, hidden), F.gelu(hidden), None


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for the mean and the reciprocal deviation of each position."""
    return x.new_empty(x.shape[:-1], dtype=torch.float32), x.new_empty(x.shape[:-1], dtype=torch.float32)


def norm_backward(
    grad: Tensor, x: Tensor, norm: native.Norm, need: Sequence[bool]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """What a LayerNorm gave, and the gradients of its input, scale and shift that are needed. Overwrites ``grad``."""
    scale, shift, eps, mean, rstd = norm
    assert mean is not None and rstd is not None
    if native.takes_rows(x):
        y, *given = native.norm_backward(grad, x, mean, rstd, scale, shift)
        return y, *_needed(norm, given, need)
    y = F.layer_norm(x, x.shape[-1:], scale, shift, eps)
    mask = [need[0], need[1] and scale is not None, need[2] and shift is not None]
    grads = torch.ops.aten.native_layer_norm_backward(
        grad.contiguous(), x, x.shape[-1:], mean, rstd, scale, shift, mask
    )
    return y, *grads


def _needed(
    norm: native.Norm, grads: Sequence[Tensor], need: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Of the gradients of a norm's input, scale and shift those that are needed, in the parameters' number formats."""
    vectors = [
        grad.to(p.dtype) if wanted and p is not None else None
        for grad, p, wanted in zip(grads[1:], norm[:2], need[1:], strict=True)
    ]
    return grads[0] if need[0] else None, vectors[0], vectors[1]


def like(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A layer's parameters in the number format of ``x``: under autocast they are float32."""
    return weight.to(x.dtype), None if bias is None else bias.to(x.dtype)


def _input_grad(grad: Tensor, weight: Tensor) -> Tensor:
    if native.takes_products(grad, *weight.shape):
        return native.linear(grad, weight.to(grad.dtype), None, turned=True)
    return linear(grad, weight.to(grad.dtype).t(), None)


def weight_grads(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, need: Sequence[bool], of_bias: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """Of a linear layer's weight and bias, each where it is needed, in their own number formats.

    Args:
        of_bias: the sum of ``grad`` over the positions, where it is known already.
    """
    grad_NE, x_NC = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
    grad_weight = (grad_NE.t() @ x_NC).to(weight.dtype) if need[0] else None
    if not need[1] or bias is None:
        return grad_weight, None
    return grad_weight, (grad_NE.sum(0) if of_bias is None else of_bias).to(bias.dtype)


def _sum(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    return new if old is None or new is None else old.add_(new)
