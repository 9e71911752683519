"""Infer a block in float32 by oneDNN where native.cpp cannot; PyTorch's modules use MKL, which is slower.

oneDNN applies GELU or adds the residual while it writes a product. The batch is cut into parts that fit the cache, and
that are small enough for the allocator to reuse memory. In bfloat16 and in training this gains nothing
(docs/performance.md).
"""

import platform
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PART_BYTES = 8 << 20  # size of the widest map of a part; measured, see docs/performance.md


def _probe() -> bool:
    """Try the private operators that `infer_block` calls on a small example; False if one is missing or differs."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():
        return False
    try:
        x, w, b = torch.ones(2, 16), torch.full((16, 16), 0.125), torch.ones(16)
        gelu, added = linear(x, w, b, "gelu"), linear_add(x, w, b, x)
        image, kernel = torch.ones(1, 16, 3, 3).to(memory_format=torch.channels_last), torch.ones(16, 1, 3, 3)
        encoded = _convolve_add(image, kernel, b)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    expected = torch.nn.functional.gelu(torch.tensor(3.0))
    return bool(torch.allclose(gelu, expected) and (added == 4).all() and encoded[0, 0, 1, 1] == 11)


def infer_block(block: Any, x_BHWC: Tensor, attend: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
    """Infer a block of a float32 map (B, H, W, C).

    Args:
        attend: computes an attention module from its map of q, k and v.
    """
    H, W, C = x_BHWC.shape[1:]
    hidden = block.mlp.fc1.out_features if block.ffn else C
    rows = PART_BYTES // (max(hidden, 3 * C) * x_BHWC.element_size())
    parts = [_infer_part(block, part, rows, attend) for part in x_BHWC.contiguous().split(max(1, rows // (H * W)))]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _infer_part(block: Any, x_BHWC: Tensor, rows: int, attend: Callable[[nn.Module, Tensor], Tensor]) -> Tensor:
    attn = block.attn
    x = _encode(block.cpe[0], x_BHWC)
    qkv = linear(block.norm1(x), attn.qkv.weight, attn.qkv.bias)
    x = linear_add(attend(attn, qkv), attn.proj.weight, attn.proj.bias, x)
    x = _encode(block.cpe[1], x)
    if not block.ffn:
        return x
    fc1, fc2, parts = block.mlp.fc1, block.mlp.fc2, []
    for x_NC in x.view(-1, x.shape[3]).split(max(rows, 64)):
        hidden = linear(block.norm2(x_NC), fc1.weight, fc1.bias, "gelu")
        parts.append(linear_add(hidden, fc2.weight, fc2.bias, x_NC))
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(x.shape)


def _encode(encoding: Any, x_BHWC: Tensor) -> Tensor:
    x_BCHW, conv = x_BHWC.permute(0, 3, 1, 2), encoding.proj
    if isinstance(encoding.activation, nn.GELU):
        added = x_BCHW + F.gelu(F.conv2d(x_BCHW, conv.weight, conv.bias, padding=1, groups=conv.groups))
    else:
        added = _convolve_add(x_BCHW, conv.weight, conv.bias)
    return added.permute(0, 2, 3, 1).contiguous()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """Compute a linear layer, with ``activation`` 'gelu' (exact) or 'none' on the result."""
    algorithm = "none" if activation == "gelu" else ""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], algorithm)


def linear_add(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> Tensor:
    """Compute residual + linear layer, in one pass."""
    return torch.ops.mkldnn._linear_pointwise.binary(x, residual, weight, bias, "add")


def _convolve_add(x_BCHW: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x + depthwise 3x3 convolution of x."""
    one = [1, 1]
    return torch.ops.mkldnn._convolution_pointwise.binary(
        x_BCHW, x_BCHW, weight, bias, one, one, one, weight.shape[0], "add", None, None, [], None
    )


AVAILABLE = _probe()
