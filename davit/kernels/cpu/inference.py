"""A block on the CPU without gradients, by native.cpp where it has everything of it.

Otherwise with the matrix products of oneDNN instead of MKL, and GELU or the residual added on the way out. Either way
the batch is cut into parts that the cache keeps, below the size from which the allocator asks the system for new
pages on every call.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import native

if TYPE_CHECKING:
    from ...model import DualAttentionBlock

PART_BYTES = 8 << 20  # of the widest map; measured, see docs/performance.md

#: Parameters of a block that `infer_natively` reads.
PARAMETERS = (
    *(f"cpe.{which}.proj.{kind}" for which in (0, 1) for kind in ("weight", "bias")),
    *(f"{norm}.{kind}" for norm in ("norm1", "norm2") for kind in ("weight", "bias")),
    *(f"{layer}.{kind}" for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2") for kind in ("weight", "bias")),
)


def infer_block(block: "DualAttentionBlock", x_BHWC: Tensor) -> Tensor:
    """What ``block`` computes of (B, H, W, C), as many images at a time as the cache holds; no gradients."""
    attn: Any = block.attn
    weights = {
        name: p.to(x_BHWC.dtype) if p.dtype != x_BHWC.dtype and "norm" not in name else p
        for name, p in block.named_parameters()
    }
    if infers_natively(block, x_BHWC):
        return infer_natively(x_BHWC, weights, attn.products, epsilons(block))
    H, W, C = x_BHWC.shape[1:]
    hidden = weights["mlp.fc1.weight"].shape[0] if block.ffn else C
    rows = PART_BYTES // (max(hidden, 3 * C) * x_BHWC.element_size())
    parts = [_part(block, weights, part, rows) for part in x_BHWC.contiguous().split(max(1, rows // (H * W)))]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def infers_natively(block: "DualAttentionBlock", x_BHWC: Tensor) -> bool:
    """Whether native.cpp has everything of a block; the attentions' own formulas may stand in for it."""
    mlp: Any = block.mlp
    hidden = mlp.fc1.out_features if block.ffn else x_BHWC.shape[3]
    return native.takes_products(x_BHWC, x_BHWC.shape[3], hidden) and all(
        encodes_natively(encoding, x_BHWC) for encoding in block.cpe
    )


def epsilons(block: "DualAttentionBlock") -> tuple[float, float]:
    """Of both norms."""
    norms: list[Any] = [block.norm1, block.norm2 if block.ffn else block.norm1]
    return norms[0].eps, norms[1].eps


def infer_natively(
    x_BHWC: Tensor,
    weights: Mapping[str, Tensor | None],
    attend: Callable[[Tensor], Tensor],
    eps: Sequence[float],
) -> Tensor:
    """A block by native.cpp.

    Args:
        weights: of `PARAMETERS`, in the number format of x; norms may have another. Without 'mlp.fc1.weight' there is
            no MLP.
        attend: from the map of q, k and v to that of the attention.
        eps: of both norms.
    """
    get = weights.get

    def encode(x: Tensor, which: int) -> Tensor:
        y, kernel = torch.empty_like(x), get(f"cpe.{which}.proj.weight")
        assert kernel is not None
        native.encode(x, kernel, get(f"cpe.{which}.proj.bias"), y, None, 0.0)
        return y

    def layer(name: str) -> tuple[Tensor, Tensor | None]:
        weight = get(f"{name}.weight")
        assert weight is not None
        return weight, get(f"{name}.bias")

    norms = [native.Norm(get(f"norm{i}.weight"), get(f"norm{i}.bias"), eps[i - 1]) for i in (1, 2)]
    H, W, C = x_BHWC.shape[1:]
    images = max(1, PART_BYTES // (H * W * 3 * C * x_BHWC.element_size()))
    out = torch.empty_like(x_BHWC, memory_format=torch.contiguous_format)
    for part, target in zip(x_BHWC.contiguous().split(images), out.split(images), strict=True):
        x = encode(part, 0)
        mixed = attend(native.linear(x, *layer("attn.qkv"), norm=norms[0]))
        x = native.linear(mixed, *layer("attn.proj"), residual=x)
        if get("mlp.fc1.weight") is None:
            target.copy_(encode(x, 1))
        else:
            native.mlp(encode(x, 1), norms[1], *layer("mlp.fc1"), *layer("mlp.fc2"), added=True, out=target)
    return out


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
