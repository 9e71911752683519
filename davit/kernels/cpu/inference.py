"""A block on the CPU without gradients, by native.cpp where it has everything of it.

Otherwise with the matrix products of oneDNN instead of MKL, and GELU or the residual added on the way out; the batch
is then cut into parts that the cache keeps, below the size from which the allocator asks the system for new pages on
every call.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import native, whole

if TYPE_CHECKING:
    from ...model import DualAttentionBlock

PART_BYTES = 8 << 20  # of the widest map, by oneDNN and in training; measured, see docs/performance.md


def infer_block(block: "DualAttentionBlock", x_BHWC: Tensor) -> Tensor:
    """What ``block`` computes of (B, H, W, C); no gradients."""
    if infers_natively(block, x_BHWC):
        return whole.block(x_BHWC, *arguments(block))
    weights = {
        name: p.to(x_BHWC.dtype) if p.dtype != x_BHWC.dtype and "norm" not in name else p
        for name, p in block.named_parameters()
    }
    H, W, C = x_BHWC.shape[1:]
    hidden = weights["mlp.fc1.weight"].shape[0] if block.ffn else C
    rows = PART_BYTES // (max(hidden, 3 * C) * x_BHWC.element_size())
    parts = [_part(block, weights, part, rows) for part in x_BHWC.contiguous().split(max(1, rows // (H * W)))]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def infers_natively(block: "DualAttentionBlock", x_BHWC: Tensor) -> bool:
    """Whether native.cpp has everything of a block."""
    attn: Any = block.attn
    mlp: Any = block.mlp
    C, (window, heads) = x_BHWC.shape[3], attention(attn)
    return (
        native.takes_products(x_BHWC, C, C // heads, mlp.fc1.out_features if block.ffn else C)
        and native.takes_attention(C, window, heads)
        and all(encodes_natively(encoding, x_BHWC) for encoding in block.cpe)
    )


def attention(attn: Any) -> tuple[int, int]:
    """The side of a window, 0 for channel attention; and the number of heads or groups."""
    return (attn.window_size, attn.num_heads) if hasattr(attn, "window_size") else (0, attn.num_groups)


def arguments(
    block: "DualAttentionBlock",
) -> tuple[list[Tensor | None], int, int, float, tuple[float, float]]:
    """What `whole.block` is given of a block, behind the map."""
    attn: Any = block.attn
    norms: list[Any] = [block.norm1, block.norm2 if block.ffn else block.norm1]
    named = dict(block.named_parameters())
    weights: list[Tensor | None] = [named.get(name) for name in whole.PARAMETERS]
    return weights, *attention(attn), attn.scale, (norms[0].eps, norms[1].eps)


def _part(block: "DualAttentionBlock", weights: dict[str, Tensor], x_BHWC: Tensor, rows: int) -> Tensor:
    """Products by oneDNN."""
    attn: Any = block.attn
    x, y = _encode_and_norm(block, weights, 0, block.norm1, x_BHWC)
    mixed = attn.products(linear(y, weights["attn.qkv.weight"], weights.get("attn.qkv.bias")))
    x = linear_add(mixed, weights["attn.proj.weight"], weights["attn.proj.bias"], x)
    if not block.ffn:
        return _encode(block, weights, 1, x)
    x, y = _encode_and_norm(block, weights, 1, block.norm2, x)
    return _mlp(weights, x, y, rows)


def _encode_and_norm(
    block: "DualAttentionBlock", weights: dict[str, Tensor], which: int, norm: Any, x: Tensor
) -> tuple[Tensor, Tensor]:
    """Position encoding with its residual, and what the norm makes of it."""
    if not encodes_natively(block.cpe[which], x):
        x = _encode(block, weights, which, x)
        return x, F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    conv: Any = block.cpe[which].proj
    y, normed = torch.empty_like(x), torch.empty_like(x)
    native.encode(x, conv.weight, conv.bias, y, (normed, norm.weight, norm.bias, None, None), norm.eps)
    return y, normed


def encodes_natively(encoding: Any, x: Tensor) -> bool:
    """Whether native.cpp has this position encoding: with a GELU it does not, as no released model has one."""
    return isinstance(encoding.activation, nn.Identity) and native.takes_rows(x)


def _encode(block: "DualAttentionBlock", weights: dict[str, Tensor], which: int, x: Tensor) -> Tensor:
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


def _mlp(weights: dict[str, Tensor], x_BHWC: Tensor, y_BHWC: Tensor, rows: int) -> Tensor:
    """x + the MLP of its norm y, some rows at a time."""
    xs, ys = (t.view(-1, t.shape[3]).split(max(rows, 64)) for t in (x_BHWC, y_BHWC))
    parts = [_mlp_rows(weights, x_NC, y_NC) for x_NC, y_NC in zip(xs, ys, strict=True)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(x_BHWC.shape)


def _mlp_rows(weights: dict[str, Tensor], x_NC: Tensor, y_NC: Tensor) -> Tensor:
    hidden = linear(y_NC, weights["mlp.fc1.weight"], weights["mlp.fc1.bias"], "gelu")
    return linear_add(hidden, weights["mlp.fc2.weight"], weights["mlp.fc2.bias"], x_NC)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, post: str = "none") -> Tensor:
    """oneDNN's linear layer, with ``post`` 'gelu' (exact) or 'none' on the result."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, post, [], "none" if post == "gelu" else "")


def linear_add(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    """residual + linear layer, in one pass."""
    return torch.ops.mkldnn._linear_pointwise.binary(x, residual, weight, bias, "add")
