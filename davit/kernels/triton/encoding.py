"""Compute the position encoding, its residual and the LayerNorm after it in Triton.

A program takes a strip of a few columns with all channels and moves down its rows. It reads each row three times,
shifted by one column, and adds it to the three rows of the result that it touches, which stay in registers. A complete
row is normalised and written. The backward pass has three kernels: for the norm, the same convolution with transposed
weights, and the gradients of the weights. Each program writes its part of a sum, and parts are added afterwards, so
results do not depend on the order in which programs run.
"""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

import torch
from torch import Tensor

from .support import MANY_PROGRAMS, ceil_div, channels_together, constexpr, jit, launch, power_of_two, tl

TILE = 1024  # positions x channels at a time
MAX_CHANNELS = 2048


def encode_backward(
    grad_y: Tensor | None, grad_normed: Tensor | None, x_BHWC: Tensor, weight: Tensor, norm_weight: Tensor | None,
    y_BHWC: Tensor, mean: Tensor, rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute `ops.encode_and_norm_backward`; see `support.runs_on`."""
    x, C = channels_together(x_BHWC), x_BHWC.shape[3]
    grad, vectors_3C = _norm_backward(grad_y, grad_normed, norm_weight, y_BHWC, mean, rstd)
    grad_x = torch.empty_like(grad)
    encode(grad, weight, None, grad_x, None, 0.0)
    return grad_x, _weight_gradient(x, grad).view(9, C).t().contiguous(), vectors_3C


def _constants(C: int) -> dict[str, Any]:
    channels = power_of_two(C, 16)
    positions = max(1, TILE // channels)
    return {"C": C, "CP": channels, "P": positions, "num_warps": 4 if channels <= TILE else 8}


def _strips(B: int, H: int, W: int, P: int) -> tuple[int, int, int]:
    """Return the rows of a strip, and the number of strips down and across; strips are long if there are many."""
    across, rows = ceil_div(W, P), 16
    while rows > 2 and B * across * ceil_div(H, rows) < 2 * MANY_PROGRAMS:
        rows //= 2
    return rows, ceil_div(H, rows), across


def encode(
    x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor,
    norm: tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor] | None, eps: float,
) -> None:  # fmt: skip
    """Write x + its encoding into ``y``, and the norm of that. Without ``norm`` use the transposed convolution."""
    x = channels_together(x)
    B, H, W, C = x.shape
    constants = _constants(C)
    rows, down, across = _strips(B, H, W, constants["P"])
    normed, norm_weight, norm_bias, mean, rstd = norm or (y, None, None, y, y)
    vectors = [y if p is None else p.contiguous() for p in (bias, norm_weight, norm_bias)]
    launch(
        _encode_kernel, B * down * across, x.device, x, weight.reshape(C, 9).contiguous(), *vectors,
        y, normed, mean, rstd, *x.stride()[:3], H, W, rows, down, across, eps,
        HAS_BIAS=bias is not None, HAS_NORM_WEIGHT=norm_weight is not None, HAS_NORM_BIAS=norm_bias is not None,
        NORM=norm is not None, **constants,
    )  # fmt: skip


def _norm_backward(
    grad_y: Tensor | None, grad_normed: Tensor | None, norm_weight: Tensor | None,
    y: Tensor, mean: Tensor, rstd: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the whole gradient of y; its sum over the map, and the gradients of the norm's weight and bias (3, C)."""
    C = y.shape[3]
    positions, constants = y.numel() // C, _constants(C)
    blocks = ceil_div(positions, constants["P"])
    part = constants["P"] * max(1, ceil_div(blocks, MANY_PROGRAMS))
    programs = ceil_div(positions, part)
    grad = torch.empty_like(y, memory_format=torch.contiguous_format)
    parts = y.new_empty(programs, 3, C, dtype=torch.float32)
    given = [y if g is None else g.contiguous() for g in (grad_y, grad_normed, norm_weight, y, mean, rstd)]
    launch(
        _norm_backward_kernel, programs, y.device, *given, grad, parts, positions, part,
        HAS_Y=grad_y is not None, HAS_NORMED=grad_normed is not None, HAS_NORM_WEIGHT=norm_weight is not None,
        **constants,
    )  # fmt: skip
    return grad, parts.sum(0)


def _weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient of the convolution's weight, (9, C)."""
    B, H, W, C = x.shape
    constants = _constants(C)
    rows, down, across = _strips(B, H, W, constants["P"])
    part = max(1, ceil_div(B * down, max(1, 2 * MANY_PROGRAMS // across)))
    splits = ceil_div(B * down, part)
    parts = x.new_empty(splits * across, 9, C, dtype=torch.float32)
    launch(
        _weight_gradient_kernel, splits * across, x.device, x, grad, parts, *x.stride()[:3],
        B, H, W, rows, down, across, part, **constants,
    )  # fmt: skip
    return parts.sum(0)


# --- kernels; P: columns at a time, CP: channels rounded up to a power of two ---


@jit
def _vector(source, C: constexpr, CP: constexpr):
    c = tl.arange(0, CP)
    return tl.load(source + c, mask=c < C, other=0.0).to(tl.float32)


@jit
def _tap(weight, tap, C: constexpr, CP: constexpr):
    """Load one of the nine weights of every channel."""
    c = tl.arange(0, CP)
    return tl.load(weight + c * 9 + tap, mask=c < C, other=0.0).to(tl.float32)[None, :]


@jit
def _row(image, h, w_P, stride_h, stride_w, H, W, C: constexpr, CP: constexpr):
    """Load positions of row ``h``, zeros outside the map; (P, CP) in float32."""
    c = tl.arange(0, CP)
    inside = (h >= 0) & (h < H) & (w_P >= 0) & (w_P < W)
    address = image + h * stride_h + w_P.to(tl.int64)[:, None] * stride_w + c[None, :]
    return tl.load(address, mask=inside[:, None] & (c < C)[None, :], other=0.0).to(tl.float32)


@jit
def _normalise(
    y_PC, norm_weight, norm_bias, eps,
    C: constexpr, CP: constexpr, HAS_NORM_WEIGHT: constexpr, HAS_NORM_BIAS: constexpr,
):  # fmt: skip
    mean = tl.sum(y_PC, axis=1) / C
    centred = tl.where((tl.arange(0, CP) < C)[None, :], y_PC - mean[:, None], 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=1) / C + eps)
    normed = centred * rstd[:, None]
    if HAS_NORM_WEIGHT:
        normed *= _vector(norm_weight, C, CP)[None, :]
    if HAS_NORM_BIAS:
        normed += _vector(norm_bias, C, CP)[None, :]
    return normed, mean, rstd


@jit
def _encode_kernel(
    x, weight, bias, norm_weight, norm_bias, y, normed, mean, rstd, stride_b, stride_h, stride_w,
    H, W, rows, down, across, eps,
    C: constexpr, CP: constexpr, P: constexpr,
    HAS_BIAS: constexpr, HAS_NORM_WEIGHT: constexpr, HAS_NORM_BIAS: constexpr, NORM: constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    w, c = (program % across) * P + tl.arange(0, P), tl.arange(0, CP)
    first, b = ((program // across) % down) * rows, (program // across // down).to(tl.int64)
    image = x + b * stride_b
    step: tl.constexpr = 1 if NORM else -1  # the transposed convolution reads its weights from the other end
    start: tl.constexpr = 0 if NORM else 8
    w00, w01 = _tap(weight, start, C, CP), _tap(weight, start + step, C, CP)
    w02 = _tap(weight, start + 2 * step, C, CP)
    w10, w11 = _tap(weight, start + 3 * step, C, CP), _tap(weight, 4, C, CP) + 1.0  # + 1: the residual
    w12, w20 = _tap(weight, start + 5 * step, C, CP), _tap(weight, start + 6 * step, C, CP)
    w21, w22 = _tap(weight, start + 7 * step, C, CP), _tap(weight, start + 8 * step, C, CP)
    above = tl.zeros([P, CP], tl.float32)
    if HAS_BIAS:
        above += _vector(bias, C, CP)[None, :]
    initial, current = above, above
    last = tl.minimum(first + rows, H)
    for h in range(first - 1, last + 1):
        left = _row(image, tl.cast(h, tl.int64), w - 1, stride_h, stride_w, H, W, C, CP)
        middle = _row(image, tl.cast(h, tl.int64), w, stride_h, stride_w, H, W, C, CP)
        right = _row(image, tl.cast(h, tl.int64), w + 1, stride_h, stride_w, H, W, C, CP)
        done = above + w20 * left + w21 * middle + w22 * right
        if h > first:
            position = (b * H + h - 1) * W + w
            target, mask = position[:, None] * C + c[None, :], (w < W)[:, None] & (c < C)[None, :]
            rounded = done.to(y.dtype.element_ty)
            tl.store(y + target, rounded, mask=mask)
            if NORM:
                result, m, r = _normalise(
                    rounded.to(tl.float32), norm_weight, norm_bias, eps, C, CP, HAS_NORM_WEIGHT, HAS_NORM_BIAS
                )
                tl.store(normed + target, result.to(normed.dtype.element_ty), mask=mask)
                tl.store(mean + position, m, mask=w < W)
                tl.store(rstd + position, r, mask=w < W)
        above = current + w10 * left + w11 * middle + w12 * right
        current = initial + w00 * left + w01 * middle + w02 * right


@jit
def _norm_backward_kernel(
    grad_y, grad_normed, norm_weight, y, mean, rstd, grad, parts, positions, part,
    C: constexpr, CP: constexpr, P: constexpr, HAS_Y: constexpr, HAS_NORMED: constexpr, HAS_NORM_WEIGHT: constexpr,
):  # fmt: skip
    program, c = tl.program_id(0).to(tl.int64), tl.arange(0, CP)
    zero = tl.zeros([CP], tl.float32)
    grad_bias, grad_norm_weight, grad_norm_bias = zero, zero, zero
    for step in range(0, part, P):
        n = program * part + step + tl.arange(0, P)
        address, mask = n[:, None] * C + c[None, :], (n < positions)[:, None] & (c < C)[None, :]
        total = tl.zeros([P, CP], tl.float32)
        if HAS_NORMED:
            m = tl.load(mean + n, mask=n < positions, other=0.0)
            r = tl.load(rstd + n, mask=n < positions, other=0.0)
            g = tl.load(grad_normed + address, mask=mask, other=0.0).to(tl.float32)
            value = tl.load(y + address, mask=mask, other=0.0).to(tl.float32)
            value = tl.where(mask, (value - m[:, None]) * r[:, None], 0.0)
            grad_norm_weight += tl.sum(g * value, axis=0)
            grad_norm_bias += tl.sum(g, axis=0)
            if HAS_NORM_WEIGHT:
                g *= _vector(norm_weight, C, CP)[None, :]
            along = tl.sum(g * value, axis=1) / C
            total = tl.where(mask, (g - (tl.sum(g, axis=1) / C)[:, None] - value * along[:, None]) * r[:, None], 0.0)
        if HAS_Y:
            total += tl.load(grad_y + address, mask=mask, other=0.0).to(tl.float32)
        rounded = total.to(grad.dtype.element_ty)
        tl.store(grad + address, rounded, mask=mask)
        grad_bias += tl.sum(rounded.to(tl.float32), axis=0)
    target = parts + program * 3 * C + c
    tl.store(target, grad_bias, mask=c < C)
    tl.store(target + C, grad_norm_weight, mask=c < C)
    tl.store(target + 2 * C, grad_norm_bias, mask=c < C)


@jit
def _weight_gradient_kernel(
    x, grad, parts, stride_b, stride_h, stride_w, B, H, W, rows, down, across, part,
    C: constexpr, CP: constexpr, P: constexpr,
):  # fmt: skip
    """Multiply each row of the gradient with the rows of x above, beside and below it."""
    program, c = tl.program_id(0), tl.arange(0, CP)
    w, split = (program % across) * P + tl.arange(0, P), program // across
    zero = tl.zeros([P, CP], tl.float32)
    d00, d01, d02, d10, d11, d12, d20, d21, d22 = zero, zero, zero, zero, zero, zero, zero, zero, zero
    for strip in range(split * part, tl.minimum(split * part + part, B * down)):
        b, first = tl.cast(strip // down, tl.int64), (strip % down) * rows
        image, grad_image = x + b * stride_b, grad + b * H * W * C
        above = _row(image, tl.cast(first - 1, tl.int64), w, stride_h, stride_w, H, W, C, CP)
        current = _row(image, tl.cast(first, tl.int64), w, stride_h, stride_w, H, W, C, CP)
        for h in range(first, tl.minimum(first + rows, H)):
            below = _row(image, tl.cast(h + 1, tl.int64), w, stride_h, stride_w, H, W, C, CP)
            left = _row(grad_image, tl.cast(h, tl.int64), w + 1, W * C, C, H, W, C, CP)
            middle = _row(grad_image, tl.cast(h, tl.int64), w, W * C, C, H, W, C, CP)
            right = _row(grad_image, tl.cast(h, tl.int64), w - 1, W * C, C, H, W, C, CP)
            d00, d01, d02 = d00 + above * left, d01 + above * middle, d02 + above * right
            d10, d11, d12 = d10 + current * left, d11 + current * middle, d12 + current * right
            d20, d21, d22 = d20 + below * left, d21 + below * middle, d22 + below * right
            above, current = current, below
    target, mask = parts + tl.cast(program, tl.int64) * 9 * C + c, c < C
    tl.store(target, tl.sum(d00, axis=0), mask=mask)
    tl.store(target + C, tl.sum(d01, axis=0), mask=mask)
    tl.store(target + 2 * C, tl.sum(d02, axis=0), mask=mask)
    tl.store(target + 3 * C, tl.sum(d10, axis=0), mask=mask)
    tl.store(target + 4 * C, tl.sum(d11, axis=0), mask=mask)
    tl.store(target + 5 * C, tl.sum(d12, axis=0), mask=mask)
    tl.store(target + 6 * C, tl.sum(d20, axis=0), mask=mask)
    tl.store(target + 7 * C, tl.sum(d21, axis=0), mask=mask)
    tl.store(target + 8 * C, tl.sum(d22, axis=0), mask=mask)
