"""A block on the CPU without gradients, by oneDNN's operations and in pieces that stay in the cache.

What it gains over the plain modules: matrix products by oneDNN instead of MKL, with GELU or the residual added on
the way out; the batch in parts, below the size from which the allocator asks the system for new pages on every
call; windows cut out of the narrow map in front of the qkv layer; channel attention on views of the qkv map.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..windows import window_partition, window_unpartition

if TYPE_CHECKING:
    from ..model import DualAttentionBlock

PART_BYTES = 16 << 20  # of the widest map, which is the MLP's hidden one; measured, see docs/performance.md
LOOP_ELEMENTS = 1 << 15  # of one image's map, from which channel attention goes image by image


def infer_block(block: "DualAttentionBlock", x_BHWC: Tensor) -> Tensor:
    """What ``block`` computes of (B, H, W, C), as many images at a time as the cache holds; no gradients."""
    weights = {
        name: p.to(x_BHWC.dtype) if p.dtype != x_BHWC.dtype and "norm" not in name else p
        for name, p in block.named_parameters()
    }
    B, H, W, C = x_BHWC.shape
    hidden = weights["mlp.fc1.weight"].shape[0] if block.ffn else 3 * C
    row_bytes = max(hidden, 3 * C) * x_BHWC.element_size()
    images = max(1, PART_BYTES // (H * W * row_bytes))
    if images >= B:
        return _part(block, weights, x_BHWC.contiguous(), PART_BYTES // row_bytes)
    out = torch.empty_like(x_BHWC, memory_format=torch.contiguous_format)
    for start in range(0, B, images):
        part = x_BHWC[start : start + images].contiguous()
        out[start : start + images] = _part(block, weights, part, PART_BYTES // row_bytes)
    return out


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, post: str = "none") -> Tensor:
    """oneDNN's linear layer, with ``post`` 'gelu' (exact) or 'none' on the result."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, post, [], "none" if post == "gelu" else "")


def linear_add(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    """residual + linear layer, in one pass."""
    return torch.ops.mkldnn._linear_pointwise.binary(x, residual, weight, bias, "add")


def _part(block: "DualAttentionBlock", weights: dict[str, Tensor], x_BHWC: Tensor, rows: int) -> Tensor:
    x = _position_encoding(block, weights, 0, x_BHWC)
    y = _norm(block.norm1, x)
    if hasattr(block.attn, "window_size"):
        x = _window_attention(block.attn, weights, x, y)
    else:
        x = _channel_attention(block.attn, weights, x, y)
    x = _position_encoding(block, weights, 1, x)
    return _mlp(block, weights, x, rows) if block.ffn else x


def _position_encoding(block: "DualAttentionBlock", weights: dict[str, Tensor], which: int, x: Tensor) -> Tensor:
    C = x.shape[3]
    x_BCHW = x.permute(0, 3, 1, 2)
    weight, bias = weights[f"cpe.{which}.proj.weight"], weights[f"cpe.{which}.proj.bias"]
    one = [1, 1]
    if isinstance(block.cpe[which].activation, nn.GELU):
        encoding = F.gelu(F.conv2d(x_BCHW, weight, bias, padding=1, groups=C))
        return (x_BCHW + encoding).permute(0, 2, 3, 1).contiguous()
    added = torch.ops.mkldnn._convolution_pointwise.binary(
        x_BCHW, x_BCHW, weight, bias, one, one, one, C, "add", None, None, [], None
    )
    return added.permute(0, 2, 3, 1).contiguous()


def _norm(norm: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _window_attention(attn: Any, weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    H, W, C = x.shape[1:]
    window = attn.window_size
    qkv_weight, qkv_bias = weights["attn.qkv.weight"], weights.get("attn.qkv.bias")
    if H % window == 0 and W % window == 0:
        y_MNC, tiling = window_partition(y, window, None)
        qkv_MNE = linear(y_MNC, qkv_weight, qkv_bias)
    else:
        qkv_MNE, tiling = window_partition(linear(y, qkv_weight, qkv_bias), window, qkv_bias)
    M, N, _ = qkv_MNE.shape
    qkv = qkv_MNE.view(M, N, 3, attn.num_heads, C // attn.num_heads)
    x_MNC = attend(qkv, attn.scale).reshape(M, N, C)
    x_BHWC = window_unpartition(x_MNC, window, tiling, (H, W))
    return linear_add(x_BHWC, weights["attn.proj.weight"], weights["attn.proj.bias"], x)


def attend(qkv_MN3GD: Tensor, scale: float) -> Tensor:
    """Window attention of all heads, (M, N, G, D); by PyTorch's fused one in float32, where that is faster."""
    if qkv_MN3GD.dtype == torch.float32:
        q, k, v = (t.transpose(1, 2) for t in qkv_MN3GD.unbind(2))
        return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)
    M, N, _, G, D = qkv_MN3GD.shape
    qkv, attention = attention_of(qkv_MN3GD, scale)
    return torch.bmm(attention, qkv[2]).view(M, G, N, D).transpose(1, 2)


def attention_of(qkv_MN3GD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """q, k and v as (3, M x G, N, D), and the attention matrices (M x G, N, N)."""
    M, N, _, G, D = qkv_MN3GD.shape
    qkv = qkv_MN3GD.permute(2, 0, 3, 1, 4).reshape(3, M * G, N, D)
    return qkv, torch.baddbmm(qkv.new_zeros(()), qkv[0], qkv[1].transpose(1, 2), beta=0, alpha=scale).softmax(-1)


def _channel_attention(attn: Any, weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    B, H, W, C = x.shape
    G = attn.num_groups
    qkv = linear(y, weights["attn.qkv.weight"], weights.get("attn.qkv.bias")).view(B, H * W, 3, G, C // G)
    mixed = channel_products(qkv, attn.scale)[1]
    return linear_add(mixed.view(B, H, W, C), weights["attn.proj.weight"], weights["attn.proj.bias"], x)


def channel_products(qkv_BN3GD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Channel attention (B, G, D, D), and what it makes of q, (B, N, G, D).

    The groups of one image are strided views that a product of matrices reads as they are; those of a batch would be
    copied. So a loop, unless images are so small that its own cost counts.
    """
    B, N, _, G, D = qkv_BN3GD.shape
    if N * G * D < LOOP_ELEMENTS:
        q, k, v = qkv_BN3GD.permute(2, 0, 3, 1, 4).unbind(0)
        attention = ((k * scale).transpose(2, 3) @ v).softmax(-1)
        return attention, (q @ attention.transpose(2, 3)).transpose(1, 2).contiguous()
    attention, out = qkv_BN3GD.new_empty(B, G, D, D), qkv_BN3GD.new_empty(B, N, G, D)
    nothing = qkv_BN3GD.new_zeros(())
    for b in range(B):
        q, k, v = qkv_BN3GD[b].permute(1, 2, 0, 3).unbind(0)
        attention[b] = torch.baddbmm(nothing, k.transpose(1, 2), v, beta=0, alpha=scale).softmax(-1)
        out[b] = torch.bmm(q, attention[b].transpose(1, 2)).transpose(0, 1)
    return attention, out


def _mlp(block: "DualAttentionBlock", weights: dict[str, Tensor], x_BHWC: Tensor, rows: int) -> Tensor:
    x_NC = x_BHWC.view(-1, x_BHWC.shape[3])
    parts = [_mlp_rows(block, weights, part) for part in x_NC.split(max(rows, 64))]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(x_BHWC.shape)


def _mlp_rows(block: "DualAttentionBlock", weights: dict[str, Tensor], x_NC: Tensor) -> Tensor:
    hidden = linear(_norm(block.norm2, x_NC), weights["mlp.fc1.weight"], weights["mlp.fc1.bias"], "gelu")
    return linear_add(hidden, weights["mlp.fc2.weight"], weights["mlp.fc2.bias"], x_NC)
