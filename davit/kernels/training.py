"""A block on the CPU with gradients: fewer saved maps and oneDNN's products, forward and backward.

Saved for the backward pass are the inputs of the convolutions and norms, q, k and v, what the attention gave, and
the MLP's hidden map in front of its GELU: 12 values for each position and channel. The plain modules save about
20: also what the norms and the GELU made, which costs little to compute again, and copies.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from ..windows import window_partition, window_unpartition
from .inference import LOOP_ELEMENTS, PART_BYTES, attention_of, channel_products, linear
from .twice import differentiable

if TYPE_CHECKING:
    from ..model import DualAttentionBlock


def train_block(block: "DualAttentionBlock", x_BHWC: Tensor) -> Tensor:
    """What ``block`` computes of (B, H, W, C), with gradients, drop path included."""
    x = _position_encoding(block.cpe[0], x_BHWC)
    attention = _window_attention if hasattr(block.attn, "window_size") else _channel_attention
    x = _add(x, attention(block, x), block.drop_path)
    x = _position_encoding(block.cpe[1], x)
    if not block.ffn:
        return x
    norm: Any = block.norm2
    mlp: Any = block.mlp
    branch = NormMlp.apply(
        x, norm.weight, norm.bias, norm.eps, mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias
    )
    return _add(x, branch, block.drop_path)


def _add(x: Tensor, branch: Tensor, drop_path: nn.Module) -> Tensor:
    """x + drop_path(branch), drawing the same numbers as timm's DropPath, in one pass that saves the mask alone."""
    if not isinstance(drop_path, DropPath) or drop_path.drop_prob == 0.0 or not drop_path.training:
        return x + branch
    keep = 1.0 - drop_path.drop_prob
    mask = branch.new_empty((branch.shape[0], 1, 1, 1)).bernoulli_(keep)
    if keep > 0.0 and drop_path.scale_by_keep:
        mask.div_(keep)
    return torch.addcmul(x, branch, mask)


def _position_encoding(encoding: Any, x: Tensor) -> Tensor:
    conv = encoding.proj
    map_BCHW = F.conv2d(x.permute(0, 3, 1, 2), conv.weight, conv.bias, padding=1, groups=conv.groups)
    if isinstance(encoding.activation, nn.GELU):
        return x + F.gelu(map_BCHW).permute(0, 2, 3, 1)
    return map_BCHW.permute(0, 2, 3, 1).add_(x)


def _window_attention(block: "DualAttentionBlock", x: Tensor) -> Tensor:
    attn: Any = block.attn
    norm: Any = block.norm1
    H, W, C = x.shape[1:]
    window = attn.window_size
    tiled = H % window == 0 and W % window == 0
    qkv = NormLinear.apply(x, norm.weight, norm.bias, norm.eps, attn.qkv.weight, attn.qkv.bias, window if tiled else 0)
    tiling = (H // window, W // window)
    if not tiled:
        qkv, tiling = window_partition(qkv, window, attn.qkv.bias)
    M, N, _ = qkv.shape
    x_MNC = WindowProducts.apply(qkv.view(M, N, 3, attn.num_heads, C // attn.num_heads), attn.scale).view(M, N, C)
    return window_unpartition(Linear.apply(x_MNC, attn.proj.weight, attn.proj.bias), window, tiling, (H, W))


def _channel_attention(block: "DualAttentionBlock", x: Tensor) -> Tensor:
    attn: Any = block.attn
    norm: Any = block.norm1
    B, H, W, C = x.shape
    qkv = NormLinear.apply(x, norm.weight, norm.bias, norm.eps, attn.qkv.weight, attn.qkv.bias, 0)
    x_BNGD = ChannelProducts.apply(qkv.view(B, H * W, 3, attn.num_groups, C // attn.num_groups), attn.scale)
    return Linear.apply(x_BNGD.view(B, H, W, C), attn.proj.weight, attn.proj.bias)


class _Recomputing(torch.autograd.Function):
    """What the functions below share: the plain formula, for gradients of gradients."""

    @staticmethod
    def plain(*inputs: Any) -> Tensor:
        raise NotImplementedError

    @classmethod
    def differentiable(cls, ctx: Any, inputs: tuple[Any, ...], grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients that can be differentiated again (``create_graph``): through the plain formula."""
        return differentiable(cls.plain, ctx.needs_input_grad, inputs, [grad])


class Linear(_Recomputing):
    """x @ weight^T + bias."""

    @staticmethod
    def plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, *_like(x, weight, bias))

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return linear(x, *_like(x, weight, bias))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():
            return Linear.differentiable(ctx, (x, weight, bias), grad)
        need_x, *need = ctx.needs_input_grad
        grad_x = _input_grad(grad, weight) if need_x else None
        return grad_x, *weight_grads(grad, x, weight, bias, need)


class NormLinear(_Recomputing):
    """LayerNorm, cut into windows where ``window`` is not 0, linear layer. What the norm gave is not saved."""

    @staticmethod
    def plain(
        x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float,
        weight: Tensor, bias: Tensor | None, window: int,
    ) -> Tensor:  # fmt: skip
        y = F.layer_norm(x, x.shape[-1:], scale, shift, eps)
        if window:
            y, _ = window_partition(y, window, None)
        return F.linear(y, *_like(y, weight, bias))

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float,
        weight: Tensor, bias: Tensor | None, window: int,
    ) -> Tensor:  # fmt: skip
        y, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], scale, shift, eps)
        ctx.save_for_backward(x, scale, shift, weight, bias, mean, rstd)
        ctx.eps, ctx.window = eps, window
        if window:
            y, _ = window_partition(y, window, None)
        return linear(y, *_like(y, weight, bias))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, weight, bias, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():
            inputs = (x, scale, shift, ctx.eps, weight, bias, ctx.window)
            return NormLinear.differentiable(ctx, inputs, grad)
        need_x, need_scale, need_shift, _, need_weight, need_bias, _ = ctx.needs_input_grad
        grad_weight = grad_bias = None
        if need_weight or need_bias:
            y = F.layer_norm(x, x.shape[-1:], scale, shift, ctx.eps)
            if ctx.window:
                y, _ = window_partition(y, ctx.window, None)
            grad_weight, grad_bias = weight_grads(grad, y, weight, bias, (need_weight, need_bias))
            del y
        grad_y = _input_grad(grad, weight)
        if ctx.window:
            H, W = x.shape[1:3]
            grad_y = window_unpartition(grad_y, ctx.window, (H // ctx.window, W // ctx.window), (H, W))
        norm_grads = _norm_grads(grad_y, x, scale, shift, mean, rstd, (need_x, need_scale, need_shift))
        return *norm_grads, None, grad_weight, grad_bias, None


class NormMlp(_Recomputing):
    """LayerNorm, linear layer, exact GELU, linear layer, a part of the rows at a time.

    Only the hidden map in front of the GELU is saved, one tensor a part.
    """

    @staticmethod
    def plain(
        x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float,
        weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None,
    ) -> Tensor:  # fmt: skip
        y = F.layer_norm(x, x.shape[-1:], scale, shift, eps)
        return F.linear(F.gelu(F.linear(y, *_like(y, weight1, bias1))), *_like(y, weight2, bias2))

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor | None, shift: Tensor | None, eps: float,
        weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None,
    ) -> Tensor:  # fmt: skip
        C = x.shape[-1]
        rows = max(64, PART_BYTES // (weight1.shape[0] * x.element_size()))
        first, second = _like(x, weight1, bias1), _like(x, weight2, bias2)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        saved = []
        for part, target in zip(x.reshape(-1, C).split(rows), out.view(-1, C).split(rows), strict=True):
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
        need_x, need_scale, need_shift, _, *need = ctx.needs_input_grad
        grad_x = torch.empty_like(x, memory_format=torch.contiguous_format) if need_x else None
        sums: list[Tensor | None] = [None] * 6
        parts = zip(x.reshape(-1, C).split(ctx.rows), grad.reshape(-1, C).split(ctx.rows), strict=True)
        for i, (x_part, grad_part) in enumerate(parts):
            mean, rstd, hidden = saved[3 * i : 3 * i + 3]
            second = weight_grads(grad_part, F.gelu(hidden), weight2, bias2, need[2:])
            grad_hidden = torch.ops.aten.gelu_backward(_input_grad(grad_part, weight2), hidden)
            y = F.layer_norm(x_part, [C], scale, shift, ctx.eps)
            first = weight_grads(grad_hidden, y, weight1, bias1, need[:2])
            grad_y = _input_grad(grad_hidden, weight1)
            of_x, *of_norm = _norm_grads(grad_y, x_part, scale, shift, mean, rstd, (need_x, need_scale, need_shift))
            if grad_x is not None and of_x is not None:
                grad_x.view(-1, C)[i * ctx.rows : i * ctx.rows + len(x_part)].copy_(of_x)
            sums = [_sum(old, new) for old, new in zip(sums, (*of_norm, *first, *second), strict=True)]
        return grad_x, sums[0], sums[1], None, *sums[2:]


class WindowProducts(_Recomputing):
    """Window attention of q, k and v, (M, N, 3, G, D) to (M, N, G, D).

    In float32 by PyTorch's fused attention, which saves no attention matrix; in bfloat16 its backward pass takes
    six times as long as that of the single products.
    """

    @staticmethod
    def plain(qkv_MN3GD: Tensor, scale: float) -> Tensor:
        q, k, v = qkv_MN3GD.permute(2, 0, 3, 1, 4).unbind(0)
        return (((q * scale) @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2)

    @staticmethod
    def forward(ctx: Any, qkv_MN3GD: Tensor, scale: float) -> Tensor:
        ctx.scale, ctx.fused = scale, qkv_MN3GD.dtype == torch.float32
        if ctx.fused:
            q, k, v = (t.transpose(1, 2) for t in qkv_MN3GD.unbind(2))
            out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)
            ctx.save_for_backward(qkv_MN3GD, out, lse)
            return out.transpose(1, 2).contiguous()
        M, N, _, G, D = qkv_MN3GD.shape
        qkv, attention = attention_of(qkv_MN3GD, scale)
        ctx.save_for_backward(qkv_MN3GD, attention)
        return torch.bmm(attention, qkv[2]).view(M, G, N, D).transpose(1, 2).contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv_MN3GD, *saved = ctx.saved_tensors
        if torch.is_grad_enabled():
            return WindowProducts.differentiable(ctx, (qkv_MN3GD, ctx.scale), grad)
        M, N, _, G, D = qkv_MN3GD.shape
        if ctx.fused:
            q, k, v = (t.transpose(1, 2) for t in qkv_MN3GD.unbind(2))
            grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad.transpose(1, 2), q, k, v, *saved, 0.0, False, scale=ctx.scale
            )
            return torch.stack([g.transpose(1, 2) for g in grads], dim=2), None
        (attention,) = saved
        q, k, v = qkv_MN3GD.permute(2, 0, 3, 1, 4).reshape(3, M * G, N, D).unbind(0)
        g = grad.transpose(1, 2).reshape(M * G, N, D)
        grad_score = torch._softmax_backward_data(torch.bmm(g, v.transpose(1, 2)), attention, -1, attention.dtype)
        grad_score = grad_score.mul_(ctx.scale)
        grads = (
            torch.bmm(grad_score, k),
            torch.bmm(grad_score.transpose(1, 2), q),
            torch.bmm(attention.transpose(1, 2), g),
        )
        return torch.stack([t.view(M, G, N, D).transpose(1, 2) for t in grads], dim=2), None


class ChannelProducts(_Recomputing):
    """Both products of channel attention, (B, N, 3, G, D) to (B, N, G, D), on views of q, k and v.

    Saved are q, k and v as the qkv layer gave them, and the D x D attention.
    """

    @staticmethod
    def plain(qkv_BN3GD: Tensor, scale: float) -> Tensor:
        q, k, v = qkv_BN3GD.permute(2, 0, 3, 1, 4).unbind(0)
        attention_BGDD = ((k * scale).transpose(-2, -1) @ v).softmax(dim=-1)
        return (q @ attention_BGDD.transpose(-2, -1)).transpose(1, 2)

    @staticmethod
    def forward(ctx: Any, qkv_BN3GD: Tensor, scale: float) -> Tensor:
        attention, out = channel_products(qkv_BN3GD, scale)
        ctx.save_for_backward(qkv_BN3GD, attention)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        qkv_BN3GD, attention_BGDD = ctx.saved_tensors
        if torch.is_grad_enabled():
            return ChannelProducts.differentiable(ctx, (qkv_BN3GD, ctx.scale), grad)
        B, N, _, G, D = qkv_BN3GD.shape
        images = B if N * G * D < LOOP_ELEMENTS else 1
        parts = zip(*(t.split(images) for t in (qkv_BN3GD, attention_BGDD, grad)), strict=True)
        grads = [_channel_grads(qkv, attention, g, ctx.scale) for qkv, attention, g in parts]
        return (grads[0] if len(grads) == 1 else torch.cat(grads)), None


def _channel_grads(qkv_BN3GD: Tensor, attention_BGDD: Tensor, grad_BNGD: Tensor, scale: float) -> Tensor:
    q, k, v = qkv_BN3GD.permute(2, 0, 3, 1, 4).unbind(0)
    g = grad_BNGD.transpose(1, 2)
    grad_attention = g.transpose(2, 3) @ q
    grad_score = torch._softmax_backward_data(grad_attention, attention_BGDD, -1, attention_BGDD.dtype) * scale
    target = torch.empty_like(qkv_BN3GD)
    target[:, :, 0] = (g @ attention_BGDD).transpose(1, 2)
    target[:, :, 1] = (v @ grad_score.transpose(2, 3)).transpose(1, 2)
    target[:, :, 2] = (k @ grad_score).transpose(1, 2)
    return target


def _like(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A layer's parameters in the number format of ``x``: under autocast they are float32."""
    return weight.to(x.dtype), None if bias is None else bias.to(x.dtype)


def _input_grad(grad: Tensor, weight: Tensor) -> Tensor:
    return linear(grad, weight.to(grad.dtype).t(), None)


def weight_grads(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, need: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Of a linear layer's weight and bias, each where it is needed, in their own number formats."""
    grad_NE, x_NC = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
    return (
        (grad_NE.t() @ x_NC).to(weight.dtype) if need[0] else None,
        grad_NE.sum(0).to(bias.dtype) if need[1] and bias is not None else None,
    )


def _norm_grads(
    grad: Tensor, x: Tensor, scale: Tensor | None, shift: Tensor | None, mean: Tensor, rstd: Tensor,
    need: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    mask = [need[0], need[1] and scale is not None, need[2] and shift is not None]
    return torch.ops.aten.native_layer_norm_backward(
        grad.contiguous(), x, x.shape[-1:], mean, rstd, scale, shift, mask
    )


def _sum(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    return new if old is None or new is None else old.add_(new)
