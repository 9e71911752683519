"""Window attention on the unpartitioned map: one program reads a window of one head by strides and writes it in place.

A window is one tile (49 positions of a window of 7, padded to 64), so that softmax needs no second pass, and the
backward pass computes it again from q and k: nothing but the map of q, k and v is saved.

Positions outside the map take part as keys whose k and v are the bias of the qkv layer (`davit.model.WindowAttention`
says why); as queries they would be cropped, and are not written.
"""

# mypy: disable-error-code="no-untyped-def"

from typing import Any

import torch
from torch import Tensor

from ...windows import window_partition, window_unpartition
from ..twice import differentiable
from .support import ceil_div, channels_together, constexpr, dot, jit, launch, power_of_two, runs_on, tl


def plain(qkv_BHWE: Tensor, bias_E: Tensor | None, window: int, heads: int, scale: float) -> Tensor:
    """What the kernel must equal: (B, H, W, 3 C) to (B, H, W, C)."""
    H, W, C = qkv_BHWE.shape[1], qkv_BHWE.shape[2], qkv_BHWE.shape[3] // 3
    qkv_MNE, tiling = window_partition(qkv_BHWE, window, bias_E)
    M, N = qkv_MNE.shape[:2]
    q_MGND, k_MGND, v_MGND = qkv_MNE.reshape(M, N, 3, heads, C // heads).permute(2, 0, 3, 1, 4).unbind(0)
    attention_MGNN = ((q_MGND * scale) @ k_MGND.transpose(-2, -1)).softmax(dim=-1)
    x_MNC = (attention_MGNN @ v_MGND).transpose(1, 2).reshape(M, N, C)
    return window_unpartition(x_MNC, window, tiling, (H, W))


@torch.library.custom_op("davit::window_attention", mutates_args=())
def window_attention(qkv_BHWE: Tensor, bias_E: Tensor | None, window: int, heads: int, scale: float) -> Tensor:
    """Attention within windows of a map of q, k and v, E = 3 C channels; (B, H, W, C).

    Args:
        bias_E: of the layer that made the map; None where it has none.
    """
    if not runs_on(qkv_BHWE):
        return plain(qkv_BHWE, bias_E, window, heads, scale)
    qkv = channels_together(qkv_BHWE)
    B, H, W, E = qkv.shape
    out = qkv.new_empty(B, H, W, E // 3)
    programs, sizes, constants = _plan(qkv, bias_E, window, heads)
    bias = qkv if bias_E is None else bias_E.contiguous()
    launch(_forward_kernel, programs, qkv.device, qkv, bias, out, *qkv.stride()[:3], *sizes, scale, **constants)
    return out


@torch.library.custom_op("davit::window_attention_backward", mutates_args=())
def window_attention_backward(
    grad_BHWC: Tensor, qkv_BHWE: Tensor, bias_E: Tensor | None, window: int, heads: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Gradients of the map (B, H, W, E), and of the bias through the padded positions (E, in float32)."""
    qkv, grad = channels_together(qkv_BHWE), channels_together(grad_BHWC)
    E = qkv.shape[3]
    grad_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    programs, sizes, constants = _plan(qkv, bias_E, window, heads)
    bias = qkv if bias_E is None else bias_E.contiguous()
    windows = programs // heads if constants["HAS_FILL"] else 0
    parts_MC = qkv.new_empty(windows, 2 * E // 3, dtype=torch.float32)
    launch(
        _backward_kernel, programs, qkv.device, qkv, bias, grad, grad_qkv, parts_MC,
        *qkv.stride()[:3], *grad.stride()[:3], *sizes, scale, **constants,
    )  # fmt: skip
    grad_bias = qkv.new_zeros(E, dtype=torch.float32)
    grad_bias[E // 3 :] = parts_MC.sum(0)
    return grad_qkv, grad_bias


def _plan(qkv: Tensor, bias: Tensor | None, window: int, heads: int) -> tuple[int, tuple[int, ...], dict[str, Any]]:
    """Programs, sizes and constants of either kernel."""
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
    return B * rows * columns * heads, (H, W, rows, columns, heads), constants


@window_attention.register_fake
def _(qkv_BHWE: Tensor, bias_E: Tensor | None, window: int, heads: int, scale: float) -> Tensor:
    B, H, W, E = qkv_BHWE.shape
    return qkv_BHWE.new_empty(B, H, W, E // 3)


@window_attention_backward.register_fake
def _(
    grad_BHWC: Tensor, qkv_BHWE: Tensor, bias_E: Tensor | None, window: int, heads: int, scale: float
) -> tuple[Tensor, Tensor]:
    grad_qkv = torch.empty_like(qkv_BHWE, memory_format=torch.contiguous_format)
    return grad_qkv, qkv_BHWE.new_empty(qkv_BHWE.shape[3], dtype=torch.float32)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.options = inputs[2:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    qkv, bias = ctx.saved_tensors
    if torch.is_grad_enabled() or not runs_on(qkv):
        return differentiable(plain, ctx.needs_input_grad, (qkv, bias, *ctx.options), [grad])
    grad_qkv, grad_bias = window_attention_backward(grad, qkv, bias, *ctx.options)
    return grad_qkv, None if bias is None else grad_bias.to(bias.dtype), None, None, None


window_attention.register_autograd(_backward, setup_context=_setup)


# --- kernels; in names of tiles N is positions of the window, NP that as a power of two, and so for D ---


@jit
def _locate(program, H, W, rows, columns, G, WINDOW: constexpr, NP: constexpr):
    """Image, window and head of a program, and for each position of the window where it is and what it is."""
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
    """A tile of q, k or v, padded positions filled with the bias."""
    d = tl.arange(0, DP)
    tile = tl.load(rows_N[:, None] + first + d[None, :], mask=inside_N[:, None] & (d < D)[None, :], other=0.0)
    if HAS_FILL:
        fill = tl.load(bias + first + d, mask=d < D, other=0.0).to(tile.dtype)
        tile = tl.where(padded_N[:, None], fill[None, :], tile)
    return tile


@jit
def _softmax(q, k, scale, exists_N):
    """Attention in float32; keys that only fill up the tile get none."""
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
    of_output = grad + b * grad_stride_b + h * grad_stride_h + w * grad_stride_w
    dx = _load(of_output, g * D, bias, inside, padded, D, DP, False)
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
