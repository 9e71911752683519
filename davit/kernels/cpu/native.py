"""Call the compiled functions of native.cpp on tensors; `supports` and its like say where that is possible."""

import ctypes
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .library import TYPES, ask, load

LANES = 16  # channels, and channels of a head or group, must be a multiple of it
MAX_POSITIONS = 256  # of a window: its attention stays in the cache
MAX_GROUP = 128  # channels of a group
PART = 512  # positions of a part of channel attention, as in attention.h
MIN_ROWS = 28  # rows for each thread from which products are faster than oneDNN's
FEW_POSITIONS = 256  # of a map, up to which threads share a layer's columns and not the rows, as in block_columns.h
MIN_COLUMNS = 32  # of a layer, for each thread; an estimate, as more than two threads were not measured
BANDS = 64  # parts of a map, for the gradients of vectors

LIBRARY = load()

_HAS_PAIRS = LIBRARY is not None and bool(LIBRARY.davit_has_pairs())
HAS_AMX = torch.cpu._is_amx_tile_supported()


class NormArgs(NamedTuple):
    """Arguments of a LayerNorm; ``mean`` and ``rstd`` of each position are written if given, or read by backward."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float
    mean: Tensor | None = None
    rstd: Tensor | None = None


def supports(x: Tensor) -> bool:
    """Tell whether the functions can be called on this tensor, sizes aside."""
    return LIBRARY is not None and x.device.type == "cpu" and x.dtype in TYPES


def supports_attention(qkv_BHWE: Tensor, window: int, heads: int) -> bool:
    """Tell whether windows, or groups of channels if ``window`` is 0, have a size that is compiled."""
    return supports(qkv_BHWE) and _has_attention(qkv_BHWE.shape[3] // 3, window, heads)


def _has_attention(channels: int, window: int, heads: int) -> bool:
    D = channels // heads
    in_range = window * window <= MAX_POSITIONS if window else D <= MAX_GROUP
    return channels % heads == 0 and D % LANES == 0 and in_range


def supports_rows(x: Tensor) -> bool:
    """Tell whether position encodings and gradients of norms and GELUs are compiled for this number of channels."""
    return supports(x) and x.shape[-1] % LANES == 0


def has_products(dtype: torch.dtype) -> bool:
    """Tell whether `linear` and `mlp` exist for this dtype; bfloat16 needs an instruction that multiplies pairs."""
    return LIBRARY is not None and (dtype == torch.float32 or (dtype == torch.bfloat16 and _HAS_PAIRS))


def supports_products(x: Tensor, *widths: int, rows: int | None = None) -> bool:
    """Tell whether `linear` and `mlp` are faster than oneDNN on the rows of ``x``, for layers of these widths.

    Weights are packed on every call and threads share the rows, so this pays only with enough rows for each thread.
    """
    rows = x.numel() // x.shape[-1] if rows is None else rows
    return rows >= MIN_ROWS * _threads() and _has_widths(x, widths)


def _supports_columns(x: Tensor, narrowest: int, rows: int, *widths: int) -> bool:
    """Tell whether a map has so few rows that threads share the columns of its layers, and every thread gets some."""
    return rows <= FEW_POSITIONS and narrowest >= MIN_COLUMNS * _threads() and _has_widths(x, widths)


def _has_widths(x: Tensor, widths: Sequence[int]) -> bool:
    """Tell whether layers of these widths have products of ours. On AMX machines oneDNN is faster in bfloat16."""
    per_word = 4 // x.element_size()
    return (
        supports(x)
        and has_products(x.dtype)
        and not (x.dtype == torch.bfloat16 and HAS_AMX)
        and all(width % (LANES * per_word) == 0 for width in widths)
    )


@torch.compiler.assume_constant_result
def _threads() -> int:
    return torch.get_num_threads()


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, norm: NormArgs | None = None, transposed: bool = False
) -> Tensor:
    """Compute a linear layer of x, or of its LayerNorm; see `supports_products`.

    Args:
        transposed: multiply by the weight instead of its transpose, as the backward pass does.
    """
    x, (K, N) = x.contiguous(), weight.shape if transposed else weight.shape[::-1]
    out = x.new_empty(*x.shape[:-1], N)
    given = (weight.contiguous(), int(transposed), vector(out, bias, 0.0), out, x.new_empty(N * K))
    call("davit_linear", x, *norm_arguments(x, norm), *given, x.numel() // K, K, N)
    return out


def linear_backward(
    grad: Tensor, x: Tensor, norm: NormArgs, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Differentiate a linear layer with a LayerNorm in front of it.

    Args:
        grad: gradient of the layer's output.
        norm: with the mean and rstd of the forward pass.

    Returns:
        The norm's output; in float32 the gradient of the layer's bias (N); and the gradients of x and, in float32, of
        the norm's weight and bias (C).
    """
    x, (N, C) = x.contiguous(), weight.shape
    M, normed, grad_x = x.numel() // C, torch.empty_like(x), torch.empty_like(x)
    rows, sums = _tasks(M, C)
    of_bias = sums.new_empty(len(sums), N)
    given = (weight.contiguous(), grad_x, normed, sums, of_bias, x.new_empty(N * C))
    call("davit_linear_backward", _like(x, grad), x, *norm_arguments(x, norm), *given, rows, M, C, N)
    return normed, of_bias.sum(0), grad_x, *sums.sum(0)


def mlp(
    x: Tensor, norm: NormArgs, weight1: Tensor, bias1: Tensor | None, weight2: Tensor, bias2: Tensor | None,
    hidden: Tensor | None = None, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Compute LayerNorm, linear layer, exact GELU, linear layer; see `supports_products`.

    Args:
        hidden: if given, receives the input of the GELU.
        out: if given, receives the result, which otherwise is a new tensor.
    """
    x, (E, C) = x.contiguous(), weight1.shape
    out = torch.empty_like(x) if out is None else out
    packed = [x.new_empty(E * C) for _ in range(2)]  # two: from 32 MB on the allocator asks the system for new pages
    layers = (weight1.contiguous(), vector(weight2, bias1, 0.0), weight2.contiguous(), vector(x, bias2, 0.0))
    call("davit_mlp", x, *norm_arguments(x, norm), *layers, hidden, out, *packed, x.numel() // C, C, E)
    return out


def mlp_backward(
    grad: Tensor, x: Tensor, norm: NormArgs, weight1: Tensor, weight2: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Differentiate an MLP with a LayerNorm in front of it.

    Args:
        grad: gradient of the MLP's output.
        norm: with the mean and rstd of the forward pass.
        hidden: the input of the GELU.

    Returns:
        The gradient of ``hidden``; the outputs of the GELU and of the norm; in float32 the gradients of both biases (E
        and C); and the gradients of x and, in float32, of the norm's weight and bias (C).
    """
    x, hidden, (E, C) = x.contiguous(), hidden.contiguous(), weight1.shape
    M, normed, grad_x = x.numel() // C, torch.empty_like(x), torch.empty_like(x)
    grad_hidden, activated, (rows, sums) = torch.empty_like(hidden), torch.empty_like(hidden), _tasks(M, C)
    of_bias1, of_bias2 = sums.new_empty(len(sums), E), sums.new_empty(len(sums), C)
    layers = (weight1.contiguous(), weight2.contiguous(), hidden, grad_hidden, activated, grad_x, normed)
    memory = (sums, of_bias1, of_bias2, x.new_empty(E * C), x.new_empty(E * C))
    call("davit_mlp_backward", _like(x, grad), x, *norm_arguments(x, norm), *layers, *memory, rows, M, C, E)
    return grad_hidden, activated, normed, of_bias1.sum(0), of_bias2.sum(0), grad_x, *sums.sum(0)


def _tasks(rows: int, C: int) -> tuple[int, Tensor]:
    """Return the rows of a task, which do not depend on the number of threads, and memory for the norm's sums."""
    limit = max(28, min(112, 86016 // C))  # fewer above 768 channels: the cache holds a task's sums
    tasks = -(-rows // limit)
    return -(-rows // max(1, tasks)) or 1, torch.empty(tasks, 2, C, device="cpu")


def window_attention(qkv_BHWE: Tensor, bias_E: Tensor | None, window: int, heads: int) -> Tensor:
    """Compute `ops.window_attention`; see `supports_attention`."""
    qkv = qkv_BHWE.contiguous()
    B, H, W, E = qkv.shape
    out = qkv.new_empty(B, H, W, E // 3)
    call("davit_window_attention", qkv, _like(qkv, bias_E), out, B, H, W, E // 3, heads, window, _scale(E, heads))
    return out


def window_attention_backward(
    grad_BHWC: Tensor, qkv_BHWE: Tensor, bias_E: Tensor | None, window: int, heads: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the map, and of k and v at padded positions: (windows, 2 C), or (0, 2 C) if none."""
    qkv = qkv_BHWE.contiguous()
    B, H, W, E = qkv.shape
    grad_qkv = torch.empty_like(qkv)
    padded = bias_E is not None and (H % window > 0 or W % window > 0)
    parts_MC = qkv.new_empty(B * -(-H // window) * -(-W // window) if padded else 0, 2 * E // 3, dtype=torch.float32)
    given = (_like(qkv, grad_BHWC), qkv, _like(qkv, bias_E), grad_qkv, parts_MC if padded else None)
    call("davit_window_attention_backward", *given, B, H, W, E // 3, heads, window, _scale(E, heads))
    return grad_qkv, parts_MC


def channel_attention(qkv_BHWE: Tensor, groups: int, qk: bool) -> tuple[Tensor, Tensor]:
    """Compute `ops.channel_attention`; see `supports_attention`."""
    qkv = qkv_BHWE.contiguous()
    B, H, W, E = qkv.shape
    out = qkv.new_empty(B, H, W, E // 3)
    attention, parts = _squares(qkv, groups)
    sizes = (B, H * W, E // 3, groups, int(qk))
    call("davit_channel_attention", qkv, parts, attention, out, *sizes, _channel_scale(qkv, groups, qk))
    return out, attention


def channel_attention_backward(
    grad_BHWC: Tensor, qkv_BHWE: Tensor, attention_BGDD: Tensor, groups: int, qk: bool
) -> Tensor:
    """Return the gradient of the map of q, k and v."""
    qkv = qkv_BHWE.contiguous()
    B, H, W, E = qkv.shape
    grad_qkv = torch.empty_like(qkv)
    grad_score, parts = _squares(qkv, groups)
    given = (_like(qkv, grad_BHWC), qkv, attention_BGDD.contiguous(), parts, grad_score, grad_qkv)
    sizes = (B, H * W, E // 3, groups, int(qk))
    call("davit_channel_attention_backward", *given, *sizes, _channel_scale(qkv, groups, qk))
    return grad_qkv


def _scale(E: int, heads: int) -> float:
    """Return the factor of the attention scores, D^-0.5."""
    return float((E // 3 // heads) ** -0.5)


def _channel_scale(qkv_BHWE: Tensor, groups: int, qk: bool) -> float:
    """Return the factor of channel attention's scores: D^-0.5, or for N positions N^-0.5 in Florence-2's function."""
    _, H, W, E = qkv_BHWE.shape
    return float(max(H * W, 1) ** -0.5) if qk else _scale(E, groups)


def _squares(qkv_BHWE: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Allocate a D x D matrix for each image and group, and its sums over parts of the positions."""
    B, H, W, E = qkv_BHWE.shape
    D, parts = E // 3 // groups, -(-H * W // PART)
    squares = qkv_BHWE.new_empty(B, groups, D, D, dtype=torch.float32)
    return squares, qkv_BHWE.new_empty(B, groups, parts, D, D, dtype=torch.float32)


def encode(
    x_BHWC: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor,
    norm: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None] | None, eps: float,
) -> None:  # fmt: skip
    """Write x + its position encoding into ``y``, and the norm of that.

    Args:
        norm: the map to be written, weight and bias, and mean and rstd of each position, which are written if given.
    """
    x, C = x_BHWC.contiguous(), x_BHWC.shape[3]
    normed, norm_weight, norm_bias, mean, rstd = norm or (None, None, None, None, None)
    if normed is not None:
        norm_weight, norm_bias = vector(x, norm_weight, 1.0), vector(x, norm_bias, 0.0)
    norm_type = TYPES[y.dtype if normed is None else normed.dtype]
    taps = weight.reshape(-1, 9).t().float().contiguous()
    given = (taps, vector(x, bias, 0.0), norm_weight, norm_bias, eps, y, normed, mean, rstd, norm_type)
    call("davit_encode", x, *given, *x.shape[:3], C)


def encode_backward(
    grad_y: Tensor | None, grad_normed: Tensor | None, x_BHWC: Tensor, weight: Tensor, norm_weight: Tensor | None,
    y_BHWC: Tensor, mean: Tensor, rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute `ops.encode_and_norm_backward`; see `supports_rows`."""
    vectors = y_BHWC.new_zeros(3, y_BHWC.shape[3], dtype=torch.float32)
    grad = grad_y
    if grad_normed is not None:
        copy = grad_normed.to(y_BHWC.dtype, copy=True, memory_format=torch.contiguous_format)
        _, grad, vectors[1], vectors[2] = norm_backward(copy, y_BHWC, mean, rstd, norm_weight, None)
        grad = grad if grad_y is None else grad.add_(grad_y)
    assert grad is not None
    grad_x, grad_weight, vectors[0] = encode_gradients(grad, x_BHWC, weight)
    return grad_x, grad_weight, vectors


def encode_gradients(grad_BHWC: Tensor, x_BHWC: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of an encoding with its residual: of x, and in float32 of weight (C, 9) and bias (C)."""
    x = x_BHWC.contiguous()
    grad = _like(x, grad_BHWC)
    grad_x = torch.empty_like(x)
    encode(grad, weight.flip(2, 3), None, grad_x, None, 0.0)
    B, H, W, C = x.shape
    parts = _bands(B * H, 10, C)
    call("davit_encode_weights", grad, x, parts, len(parts), B, H, W, C)
    sums = parts.sum(0)
    return grad_x, sums[:9].t().contiguous(), sums[9]


def norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return a LayerNorm's output; gradients of x and, in float32, weight and bias (C). Overwrites ``grad``."""
    x, C = x.contiguous(), x.shape[-1]
    rows, grad, normed = x.numel() // C, _like(x, grad), torch.empty_like(x)
    sums = _bands(rows, 2, C)
    norm = NormArgs(weight, bias, 0.0, mean.float().contiguous(), rstd.float().contiguous())
    call("davit_norm_backward", grad, x, *norm_arguments(x, norm), grad, normed, sums, len(sums), rows, C)
    return normed, grad, *sums.sum(0)


def gelu_backward(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of x, GELU(x), and in float32 the sum of the gradient over the rows. Overwrites ``grad``."""
    x, C = x.contiguous(), x.shape[-1]
    rows, grad, activated = x.numel() // C, _like(x, grad), torch.empty_like(x)
    sums = _bands(rows, C)
    call("davit_gelu_backward", grad, x, grad, activated, sums, len(sums), rows, C)
    return grad, activated, sums.sum(0)


def _bands(rows: int, *shape: int) -> Tensor:
    """Allocate sums over parts of the rows; the number of parts does not depend on the number of threads."""
    return torch.empty(max(1, min(BANDS, rows)), *shape, device="cpu")


def norm_arguments(
    x: Tensor, norm: NormArgs | None
) -> tuple[Tensor | None, Tensor | None, float, Tensor | None, Tensor | None]:
    """Return a norm's arguments as the library takes them."""
    if norm is None:
        return None, None, 0.0, None, None
    return vector(x, norm.weight, 1.0), vector(x, norm.bias, 0.0), *norm[2:]


def _like(x: Tensor, other: Tensor | None) -> Any:
    return None if other is None else other.to(x.dtype).contiguous()


def vector(x: Tensor, parameter: Tensor | None, default: float) -> Tensor:
    """Return a parameter of one value per channel in float32, or the default for each channel of ``x``."""
    if parameter is None:
        return x.new_full([x.shape[-1]], default, dtype=torch.float32)
    return parameter.float().contiguous()


def call(name: str, first: Tensor, *rest: Any) -> None:
    """Call a function of the library for the dtype of ``first``."""
    ask(LIBRARY, name, first.dtype, first, *rest)


# --- inference of a whole block, and of a patch embedding ---

#: Parameters of a block, in the order of the enum `Parameter` in block_parts.h.
PARAMETERS = (
    *(f"cpe.{which}.proj.{kind}" for which in (0, 1) for kind in ("weight", "bias")),
    *(f"{norm}.{kind}" for norm in ("norm1", "norm2") for kind in ("weight", "bias")),
    *(f"{layer}.{kind}" for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2") for kind in ("weight", "bias")),
)
NORMS = range(4, 8)  # indices of the norms' weights and biases
MATRICES = range(8, 16, 2)  # indices of the matrices that `pack_block` packs


def supports_block(x_BHWC: Tensor, window: int, heads: int, hidden: int | None, cpe_act: bool) -> bool:
    """Tell whether `infer_block` can compute a block with an MLP of ``hidden`` channels, or without an MLP (None)."""
    B, H, W, C = x_BHWC.shape
    widths = (C, C // heads, C if hidden is None else hidden)
    by_gram = not window and H * W * x_BHWC.element_size() >= 4 * C  # as in block_parts.h
    return (
        not cpe_act  # no released model has a GELU in the position encodings
        and (supports_products(x_BHWC, *widths) or (not by_gram and _supports_columns(x_BHWC, C, B * H * W, *widths)))
        and _has_attention(C, window, heads)
    )


def infer_block(
    x_BHWC: Tensor, weights: Sequence[Tensor | None], window: int, heads: int, eps: Sequence[float], qk: bool,
    packed: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Infer a `davit.model.DualAttentionBlock`; see `supports_block`.

    Args:
        weights: in the order of `PARAMETERS`, None where there is none. Those of the norms may be float32 in any case.
        window: side of a window, 0 for channel attention.
        heads: number of heads, or of groups.
        eps: of both norms.
        qk: with channel attention, whether it is that of `davit.model.ChannelAttentionQK`.
        packed: result of `pack_block`; the matrices in ``weights`` are not read then.
    """
    x, (B, H, W, C) = x_BHWC.contiguous(), x_BHWC.shape
    like_x = all(p is None or p.dtype == x.dtype for p in (weights[i] for i in NORMS))
    kinds = [x.dtype if like_x or i not in NORMS else torch.float32 for i in range(len(weights))]
    given = [
        p if p is None or (p.dtype == kind and p.is_contiguous()) else p.to(kind).contiguous()
        for p, kind in zip(weights, kinds, strict=True)
    ]
    hidden, out = weights[MATRICES[2]], torch.empty_like(x)
    E = 0 if hidden is None else hidden.shape[0]
    if packed is not None:
        E = (packed.numel() // C - 4 * C) // 2
    sizes = (B, H, W, C, E, heads, window)
    memory = _workspace(ask(LIBRARY, "davit_block_memory", x.dtype, packed is not None, *sizes))
    kind = TYPES[x.dtype if like_x else torch.float32]
    scale = float((H * W) ** -0.5) if qk else _scale(3 * C, heads)
    call("davit_block", x, _pointers(given), kind, packed, memory, out, *eps, scale, *sizes, int(qk))
    return out


def pack_block(weights: Sequence[Tensor | None], heads: int) -> Tensor:
    """Copy the matrices of a block into the layout in which `infer_block` reads them.

    The copy does not follow later changes of the weights, so it is only for a compiled graph with frozen weights;
    otherwise `infer_block` packs on every call.
    """
    given = [p.contiguous() if p is not None and i in MATRICES else None for i, p in enumerate(weights)]
    qkv, hidden = given[MATRICES[0]], given[MATRICES[2]]
    assert qkv is not None
    packed = qkv.new_empty(sum(p.numel() for p in given if p is not None))
    E = 0 if hidden is None else hidden.shape[0]
    ask(LIBRARY, "davit_pack_block", qkv.dtype, _pointers(given), packed, qkv.shape[1], E, heads)
    return packed


def _pointers(given: Sequence[Tensor | None]) -> Any:
    return (ctypes.c_void_p * len(given))(*(None if p is None else p.data_ptr() for p in given))


_kept = threading.local()


def _workspace(size: int) -> Tensor:
    """Return memory that a Python thread keeps from one block to the next: new pages cost up to a tenth of a step."""
    kept: Tensor | None = getattr(_kept, "memory", None)
    if kept is None or len(kept) < size:
        kept = _kept.memory = torch.empty(size, dtype=torch.uint8, device="cpu")
    return kept


def supports_patches(x: Tensor, weight: Tensor, stride: int, stem: bool) -> bool:
    """Tell whether `patch_embed` is faster than oneDNN on an image (stem) or a map."""
    (N, C), (B, H, W) = weight.shape[:2], (x.shape[0], *x.shape[2 if stem else 1 :][:2])
    rows = B * -(-H // stride) * -(-W // stride)
    if stem:
        return supports_products(x, N, rows=rows)
    return supports_products(x, C, N, rows=rows) or _supports_columns(x, N, rows, C, N)


def patch_embed(
    x: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None, norm_bias: Tensor | None, eps: float,
    stride: int, stem: bool,
) -> Tensor:  # fmt: skip
    """Infer a `davit.model.PatchEmbed`, (B, H, W, C); see `supports_patches`.

    Args:
        x: an NCHW image for the stem, a (B, H, W, C) map for a later embedding.
    """
    x, (B, C, H, W) = x.contiguous(), x.shape if stem else (x.shape[0], x.shape[3], *x.shape[1:3])
    rows = weight.flatten(1)
    if missing := -rows.shape[1] % (LANES * 4 // x.element_size()):  # never but for the stem
        rows = F.pad(rows, (0, missing))
    N, K = (rows := rows.contiguous()).shape
    out = x.new_empty(B, (H - 1) // stride + 1, (W - 1) // stride + 1, N)
    norm = norm_arguments(out if stem else x, NormArgs(norm_weight, norm_bias, eps))[:3]
    packed = _workspace(rows.numel() * rows.element_size())
    given = (rows, vector(out, bias, 0.0), *norm, packed, out)
    call("davit_patch_embed", x, *given, K, B, H, W, C, N, stride, stem)
    return out
