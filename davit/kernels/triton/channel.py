"""Compute channel attention in Triton: sums over parts of the positions, then the result block by block.

There are no atomic additions: each program writes its part, and parts are added in a fixed order. The attention is
softmax(scale * a^T b), and it is applied to x: a, b and x are k, v and q, or in Florence-2's function (`qk`) q, k, v.
"""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

import torch
from torch import Tensor

from .support import MANY_PROGRAMS, ceil_div, channels_together, constexpr, dot, jit, launch, power_of_two, tl

BLOCK = 128  # positions at a time


def channel_attention(qkv_BHWE: Tensor, groups: int, qk: bool) -> tuple[Tensor, Tensor]:
    """Compute `ops.channel_attention`; see `support.runs_on`."""
    B, H, W, E = qkv_BHWE.shape
    a, b, x = _split(qkv_BHWE, qk)
    D, constants = _constants(E // 3, groups)
    attention = qkv_BHWE.new_empty(B, groups, D, D, dtype=torch.float32)
    parts_BGSDD = _products(a, b, groups)
    splits, scale = parts_BGSDD.shape[2], _scale(x, D, qk)
    launch(_softmax_kernel, B * groups, x.device, parts_BGSDD, attention, splits, scale, **constants)
    out = qkv_BHWE.new_empty(B, H, W, E // 3)
    blocks = ceil_div(H * W, BLOCK)
    launch(
        _apply_kernel, B * groups * blocks, x.device, x, attention, out,
        x.stride(0), x.stride(1), H * W, groups, blocks, BN=BLOCK, **constants,
    )  # fmt: skip
    return out, attention


def channel_attention_backward(
    grad_BHWC: Tensor, qkv_BHWE: Tensor, attention_BGDD: Tensor, groups: int, qk: bool
) -> Tensor:
    """Return the gradient of the map of q, k and v."""
    B, H, W, E = qkv_BHWE.shape
    a, b, x = _split(qkv_BHWE, qk)
    grad = channels_together(grad_BHWC.reshape(B, H * W, E // 3))
    D, constants = _constants(E // 3, groups)
    attention_BGDD = attention_BGDD.contiguous()
    grad_score = torch.empty_like(attention_BGDD)
    parts_BGSDD = _products(grad, x, groups)
    launch(
        _softmax_backward_kernel, B * groups, x.device, parts_BGSDD, attention_BGDD, grad_score,
        parts_BGSDD.shape[2], _scale(x, D, qk), **constants,
    )  # fmt: skip
    grad_qkv = torch.empty_like(qkv_BHWE, memory_format=torch.contiguous_format)
    blocks = ceil_div(H * W, BLOCK)
    launch(
        _apply_backward_kernel, B * groups * blocks, x.device, a, b, grad, attention_BGDD, grad_score,
        *_split(grad_qkv, qk), *a.stride()[:2], *grad.stride()[:2], H * W, groups, blocks, BN=BLOCK, **constants,
    )  # fmt: skip
    return grad_qkv


def _split(qkv_BHWE: Tensor, qk: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return a, b and x as views (B, N, C) of one map of q, k and v, contiguous in their channels."""
    q, k, v = channels_together(qkv_BHWE).flatten(1, 2).chunk(3, dim=2)
    return (q, k, v) if qk else (k, v, q)


def _scale(x_BNC: Tensor, D: int, qk: bool) -> float:
    return float((max(x_BNC.shape[1], 1) if qk else D) ** -0.5)


def _constants(C: int, groups: int) -> tuple[int, dict[str, Any]]:
    D = C // groups
    return D, {"D": D, "DP": power_of_two(D, 16), "num_warps": 4 if D <= 64 else 8, "num_stages": 2}


def _products(x_BNC: Tensor, y_BNC: Tensor, groups: int) -> Tensor:
    """Compute x^T y of each image and group, as sums over S parts of the positions: (B, G, S, D, D) in float32."""
    B, N, C = x_BNC.shape
    D, constants = _constants(C, groups)
    blocks = ceil_div(N, BLOCK)
    part = BLOCK * ceil_div(blocks, min(blocks, max(1, MANY_PROGRAMS // max(1, B * groups))))
    splits = ceil_div(N, part)
    out = x_BNC.new_empty(B, groups, splits, D, D, dtype=torch.float32)
    launch(
        _product_kernel, B * groups * splits, x_BNC.device, x_BNC, y_BNC, out,
        *x_BNC.stride()[:2], *y_BNC.stride()[:2], N, part, groups, splits, BN=BLOCK, **constants,
    )  # fmt: skip
    return out


# --- kernels; BN: positions at a time, DP: channels of a group rounded up to a power of two ---


@jit
def _tile(source, stride_n, n_N, N, D: constexpr, DP: constexpr):
    d = tl.arange(0, DP)
    address = source + n_N.to(tl.int64)[:, None] * stride_n + d[None, :]
    return tl.load(address, mask=(n_N < N)[:, None] & (d < D)[None, :], other=0.0)


@jit
def _square(source, index, D: constexpr, DP: constexpr):
    """Load matrix ``index`` of a row of D x D matrices."""
    d = tl.arange(0, DP)
    address = source + index * (D * D) + d[:, None] * D + d[None, :]
    return tl.load(address, mask=(d < D)[:, None] & (d < D)[None, :], other=0.0)


@jit
def _store_square(target, index, value, D: constexpr, DP: constexpr):
    d = tl.arange(0, DP)
    address = target + index * (D * D) + d[:, None] * D + d[None, :]
    tl.store(address, value, mask=(d < D)[:, None] & (d < D)[None, :])


@jit
def _product_kernel(
    x, y, out, x_stride_b, x_stride_n, y_stride_b, y_stride_n, N, part, G, splits,
    BN: constexpr, D: constexpr, DP: constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    split, g, b = program % splits, (program // splits) % G, program // splits // G
    x_rows, y_rows = x + b * x_stride_b + g * D, y + b * y_stride_b + g * D
    first = (split * part).to(tl.int32)
    total = tl.zeros([DP, DP], tl.float32)
    for start in range(first, tl.minimum(first + part, N), BN):
        n = start + tl.arange(0, BN)
        total += dot(tl.trans(_tile(x_rows, x_stride_n, n, N, D, DP)), _tile(y_rows, y_stride_n, n, N, D, DP))
    _store_square(out, program, total, D, DP)


@jit
def _summed(parts, program, splits, D: constexpr, DP: constexpr):
    total = tl.zeros([DP, DP], tl.float32)
    for split in range(0, splits):
        total += _square(parts, program * splits + split, D, DP)
    return total


@jit
def _softmax_kernel(parts, attention, splits, scale, D: constexpr, DP: constexpr):
    program = tl.program_id(0).to(tl.int64)
    score = _summed(parts, program, splits, D, DP) * scale
    score = tl.where((tl.arange(0, DP) < D)[None, :], score, float("-inf"))
    weight = tl.exp(score - tl.max(score, axis=1)[:, None])
    _store_square(attention, program, weight / tl.sum(weight, axis=1)[:, None], D, DP)


@jit
def _softmax_backward_kernel(parts, attention, grad_score, splits, scale, D: constexpr, DP: constexpr):
    program = tl.program_id(0).to(tl.int64)
    grad = _summed(parts, program, splits, D, DP)
    weight = _square(attention, program, D, DP)
    grad = weight * (grad - tl.sum(weight * grad, axis=1)[:, None]) * scale
    _store_square(grad_score, program, grad, D, DP)


@jit
def _apply_kernel(
    x, attention, out, stride_b, stride_n, N, G, blocks, BN: constexpr, D: constexpr, DP: constexpr
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    block, g, b = program % blocks, (program // blocks) % G, program // blocks // G
    n, d = block * BN + tl.arange(0, BN), tl.arange(0, DP)
    tile = _tile(x + b * stride_b + g * D, stride_n, n, N, D, DP)
    weight = _square(attention, b * G + g, D, DP).to(tile.dtype)
    mixed = dot(tile, tl.trans(weight))
    target = out + (b * N + n)[:, None] * (G * D) + g * D + d[None, :]
    tl.store(target, mixed.to(out.dtype.element_ty), mask=(n < N)[:, None] & (d < D)[None, :])


@jit
def _apply_backward_kernel(
    a, b, grad, attention, grad_score, grad_a, grad_b, grad_x,
    stride_b, stride_n, grad_stride_b, grad_stride_n, N, G, blocks,
    BN: constexpr, D: constexpr, DP: constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    block, g, image = program % blocks, (program // blocks) % G, program // blocks // G
    n, d = block * BN + tl.arange(0, BN), tl.arange(0, DP)
    mask = (n < N)[:, None] & (d < D)[None, :]
    target = (image * N + n)[:, None] * (3 * G * D) + g * D + d[None, :]
    rows = image * stride_b + g * D
    out = _tile(grad + image * grad_stride_b + g * D, grad_stride_n, n, N, D, DP)
    dx = dot(out, _square(attention, image * G + g, D, DP).to(out.dtype))
    tl.store(grad_x + target, dx.to(grad_x.dtype.element_ty), mask=mask)
    dscore = _square(grad_score, image * G + g, D, DP).to(out.dtype)
    da = dot(_tile(b + rows, stride_n, n, N, D, DP), tl.trans(dscore))
    tl.store(grad_a + target, da.to(grad_a.dtype.element_ty), mask=mask)
    db = dot(_tile(a + rows, stride_n, n, N, D, DP), dscore)
    tl.store(grad_b + target, db.to(grad_b.dtype.element_ty), mask=mask)
