"""Compute window attention in Triton: one program reads one head of a window by strides and writes it in place.

A window is one tile (49 positions of a window of 7, padded to 64), so softmax needs no second pass. The backward pass
recomputes it from q and k.
"""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

import torch
from torch import Tensor

from .support import ceil_div, channels_together, constexpr, dot, jit, launch, power_of_two, tl


def window_attention(qkv_BHWE: Tensor, bias_E: Tensor | None, window: int, heads: int) -> Tensor:
    """Compute `ops.window_attention`; see `support.runs_on`."""
    qkv = channels_together(qkv_BHWE)
    B, H, W, E = qkv.shape
    out = qkv.new_empty(B, H, W, E // 3)
    programs, sizes, constants = _plan(qkv, bias_E, window, heads)
    bias = qkv if bias_E is None else bias_E.contiguous()
    launch(_forward_kernel, programs, qkv.device, qkv, bias, out, *qkv.stride()[:3], *sizes, **constants)
    return out


def window_attention_backward(
    grad_BHWC: Tensor, qkv_BHWE: Tensor, bias_E: Tensor | None, window: int, heads: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the map, and of k and v at padded positions: (windows, 2 C), or (0, 2 C) if none."""
    qkv, grad = channels_together(qkv_BHWE), channels_together(grad_BHWC)
    E = qkv.shape[3]
    grad_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    programs, sizes, constants = _plan(qkv, bias_E, window, heads)
    bias = qkv if bias_E is None else bias_E.contiguous()
    windows = programs // heads if constants["HAS_FILL"] else 0
    parts_MC = qkv.new_empty(windows, 2 * E // 3, dtype=torch.float32)
    launch(
        _backward_kernel, programs, qkv.device, qkv, bias, grad, grad_qkv, parts_MC,
        *qkv.stride()[:3], *grad.stride()[:3], *sizes, **constants,
    )  # fmt: skip
    return grad_qkv, parts_MC


def _plan(qkv: Tensor, bias: Tensor | None, window: int, heads: int) -> tuple[int, tuple[float, ...], dict[str, Any]]:
    """Return the number of programs, the sizes with the factor of the scores, and the constants of both kernels."""
    B, H, W, E = qkv.shape
    rows, columns = ceil_div(H, window), ceil_div(W, window)
    D, positions = E // 3 // heads, power_of_two(window * window, 16)
    constants = {
        "WINDOW": window,
        "NP": positions,
        "D": D,
        "DP": power_of_two(D, 16),
        "HAS_FILL": bias is not None and (H % window > 0 or W % window > 0),
        "num_warps": 4 if positions <= 64 and qkv.element_size() == 2 else 8,
        "num_stages": 1,
    }
    return B * rows * columns * heads, (H, W, rows, columns, heads, D**-0.5), constants


# --- kernels; N: positions of the window, NP: N rounded up to a power of two; D and DP the same for channels ---


@jit
def _locate(program, H, W, rows, columns, G, WINDOW: constexpr, NP: constexpr):
    """Return image, window and head of a program; row and column of each position; if it exists, and is in the map."""
    g, m = program % G, program // G
    b, tile = m // (rows * columns), m % (rows * columns)
    n = tl.arange(0, NP)
    h = (tile // columns) * WINDOW + n // WINDOW
    w = (tile % columns) * WINDOW + n % WINDOW
    exists = n < WINDOW * WINDOW
    inside = exists & (h < H) & (w < W)
    return b.to(tl.int64), m.to(tl.int64), g, h.to(tl.int64), w.to(tl.int64), exists, inside


@jit
def _load(rows_N, first, bias, inside_N, padded_N, D: constexpr, DP: constexpr, HAS_FILL: constexpr):
    """Load a tile of q, k or v; padded positions get the bias."""
    d = tl.arange(0, DP)
    tile = tl.load(rows_N[:, None] + first + d[None, :], mask=inside_N[:, None] & (d < D)[None, :], other=0.0)
    if HAS_FILL:
        fill = tl.load(bias + first + d, mask=d < D, other=0.0).to(tile.dtype)
        tile = tl.where(padded_N[:, None], fill[None, :], tile)
    return tile


@jit
def _softmax(q, k, scale, exists_N):
    """Compute attention in float32; keys that only fill up the tile get 0."""
    score = dot(q, tl.trans(k)) * scale
    score = tl.where(exists_N[None, :], score, float("-inf"))
    weight = tl.exp(score - tl.max(score, axis=1)[:, None])
    return weight / tl.sum(weight, axis=1)[:, None]


@jit
def _forward_kernel(
    qkv, bias, out, stride_b, stride_h, stride_w, H, W, rows, columns, G, scale,
    WINDOW: constexpr, NP: constexpr, D: constexpr, DP: constexpr, HAS_FILL: constexpr,
):  # fmt: skip
    b, _m, g, h, w, exists, inside = _locate(tl.program_id(0), H, W, rows, columns, G, WINDOW, NP)
    C, padded = G * D, exists & (inside == 0)
    source = qkv + b * stride_b + h * stride_h + w * stride_w
    q = _load(source, g * D, bias, inside, padded, D, DP, HAS_FILL)
    k = _load(source, C + g * D, bias, inside, padded, D, DP, HAS_FILL)
    v = _load(source, 2 * C + g * D, bias, inside, padded, D, DP, HAS_FILL)
    attention = _softmax(q, k, scale, exists)
    x = dot(attention.to(v.dtype), v)
    d = tl.arange(0, DP)
    target = out + ((b * H + h) * W + w)[:, None] * C + g * D + d[None, :]
    tl.store(target, x.to(out.dtype.element_ty), mask=inside[:, None] & (d < D)[None, :])


@jit
def _backward_kernel(
    qkv, bias, grad, grad_qkv, parts, stride_b, stride_h, stride_w, grad_stride_b, grad_stride_h, grad_stride_w,
    H, W, rows, columns, G, scale,
    WINDOW: constexpr, NP: constexpr, D: constexpr, DP: constexpr, HAS_FILL: constexpr,
):  # fmt: skip
    b, m, g, h, w, exists, inside = _locate(tl.program_id(0), H, W, rows, columns, G, WINDOW, NP)
    C, padded = G * D, exists & (inside == 0)
    source = qkv + b * stride_b + h * stride_h + w * stride_w
    q = _load(source, g * D, bias, inside, padded, D, DP, HAS_FILL)
    k = _load(source, C + g * D, bias, inside, padded, D, DP, HAS_FILL)
    v = _load(source, 2 * C + g * D, bias, inside, padded, D, DP, HAS_FILL)
    grad_rows = grad + b * grad_stride_b + h * grad_stride_h + w * grad_stride_w
    dx = _load(grad_rows, g * D, bias, inside, padded, D, DP, False)
    attention = _softmax(q, k, scale, exists)
    dv = dot(tl.trans(attention.to(dx.dtype)), dx)
    dattention = dot(dx, tl.trans(v))
    dscore = attention * (dattention - tl.sum(attention * dattention, axis=1)[:, None])
    dscore = (dscore * scale).to(q.dtype)
    dq = dot(dscore, k)
    dk = dot(tl.trans(dscore), q)
    d = tl.arange(0, DP)
    mask = inside[:, None] & (d < D)[None, :]
    target = grad_qkv + ((b * H + h) * W + w)[:, None] * (3 * C) + g * D + d[None, :]
    tl.store(target, dq.to(grad_qkv.dtype.element_ty), mask=mask)
    tl.store(target + C, dk.to(grad_qkv.dtype.element_ty), mask=mask)
    tl.store(target + 2 * C, dv.to(grad_qkv.dtype.element_ty), mask=mask)
    if HAS_FILL:
        part = parts + m * (2 * C) + g * D + d
        tl.store(part, tl.sum(tl.where(padded[:, None], dk, 0.0), axis=0), mask=d < D)
        tl.store(part + C, tl.sum(tl.where(padded[:, None], dv, 0.0), axis=0), mask=d < D)
