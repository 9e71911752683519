"""What native.cpp has as a whole, without gradients: a block of the model, a patch embedding."""

import ctypes
import threading
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import native
from .library import TYPES, ask

#: Parameters of a block, in the order in which native.cpp is given them.
PARAMETERS = (
    *(f"cpe.{which}.proj.{kind}" for which in (0, 1) for kind in ("weight", "bias")),
    *(f"{norm}.{kind}" for norm in ("norm1", "norm2") for kind in ("weight", "bias")),
    *(f"{layer}.{kind}" for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2") for kind in ("weight", "bias")),
)
NORMS = range(4, 8)  # of these, the vectors of norms
MATRICES = range(8, 16, 2)  # and what `pack_block` packs


def block(
    x_BHWC: Tensor,
    weights: Sequence[Tensor | None],
    window: int,
    heads: int,
    scale: float,
    eps: Sequence[float],
    packed: Tensor | None = None,
) -> Tensor:
    """What a `davit.model.DualAttentionBlock` computes, where `inference.infers_natively` says so.

    Args:
        weights: by `PARAMETERS`; those of norms may be float32 whatever the rest is, None is absent.
        window: 0 for channel attention.
        heads: or groups.
        eps: of both norms.
        packed: the matrices by `pack_block`; they are not read from ``weights`` then.
    """
    x, (B, H, W, C) = x_BHWC.contiguous(), x_BHWC.shape
    like_x = all(p is None or p.dtype == x.dtype for p in (weights[i] for i in NORMS))
    kinds = [x.dtype if like_x or i not in NORMS else torch.float32 for i in range(len(weights))]
    given = [None if p is None else p.to(kind).contiguous() for p, kind in zip(weights, kinds, strict=True)]
    hidden, out = weights[MATRICES[2]], torch.empty_like(x)
    E = 0 if hidden is None else hidden.shape[0]
    if packed is not None:
        E = (packed.numel() // C - 4 * C) // 2
    sizes = (B, H, W, C, E, heads, window)
    memory = _workspace(ask(native.LIBRARY, "davit_block_memory", x.dtype, packed is not None, *sizes))
    kind = TYPES[x.dtype if like_x else torch.float32]
    native.call("davit_block", x, _pointers(given), kind, packed, memory, out, *eps, scale, *sizes)
    return out


def pack_block(weights: Sequence[Tensor | None], heads: int) -> Tensor:
    """The matrices of a block, by `PARAMETERS`, as `block` reads them: what it does on every call, done once.

    The copy knows nothing of later changes of the weights, so this is for what never changes: a compiled graph with
    frozen weights.
    """
    given = [p.contiguous() if p is not None and i in MATRICES else None for i, p in enumerate(weights)]
    qkv, hidden = given[MATRICES[0]], given[MATRICES[2]]
    assert qkv is not None
    packed = qkv.new_empty(sum(p.numel() for p in given if p is not None))
    E = 0 if hidden is None else hidden.shape[0]
    ask(native.LIBRARY, "davit_pack_block", qkv.dtype, _pointers(given), packed, qkv.shape[1], E, heads)
    return packed


def _pointers(given: Sequence[Tensor | None]) -> Any:
    return (ctypes.c_void_p * len(given))(*(None if p is None else p.data_ptr() for p in given))


_kept = threading.local()


def _workspace(size: int) -> Tensor:
    """Bytes that a thread of Python keeps from one block to the next: new pages cost up to a tenth of a step."""
    kept: Tensor | None = getattr(_kept, "memory", None)
    if kept is None or len(kept) < size:
        kept = _kept.memory = torch.empty(size, dtype=torch.uint8)
    return kept


def takes_patches(x: Tensor, weight: Tensor, stride: int, stem: bool) -> bool:
    """Whether `patch_embed` is faster than oneDNN on an image or a map: as `native.takes_products`."""
    (N, C), (B, H, W) = weight.shape[:2], (x.shape[0], *x.shape[2 if stem else 1 :][:2])
    rows = B * -(-H // stride) * -(-W // stride)
    return native.takes_products(x, *([N] if stem else [C, N]), rows=rows)


def patch_embed(
    x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None, eps: float,
    stride: int, stem: bool,
) -> Tensor:  # fmt: skip
    """What a `davit.model.PatchEmbed` computes, (B, H, W, C), where `takes_patches` says so.

    Args:
        x: an NCHW image for the stem, a (B, H, W, C) map for a later embedding.
    """
    x, (B, C, H, W) = x.contiguous(), x.shape if stem else (x.shape[0], x.shape[3], *x.shape[1:3])
    rows = weight.flatten(1)
    rows = F.pad(rows, (0, -rows.shape[1] % (native.LANES * 4 // x.element_size()))).contiguous()
    N, K = rows.shape
    out = x.new_empty(B, (H - 1) // stride + 1, (W - 1) // stride + 1, N)
    norm = native.norm_arguments(out if stem else x, native.Norm(scale, shift, eps))[:3]
    given = (rows, native.vector(out, bias, 0.0), *norm, torch.empty_like(rows), out)
    native.call("davit_patch_embed", x, *given, K, B, H, W, C, N, stride, stem)
    return out
