"""Define the spans of a block that have kernels as custom operators of PyTorch, forward and backward.

Each runs Triton on CUDA and native.cpp on the CPU. Where a device has no kernel, or none for the sizes, the operator
computes the formula of `davit.model`, so that a program exported on CUDA runs there too. A compiler does not look into
operators: a graph of torch.compile or torch.export has each as one node.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..model import attend_among_channels, attend_among_channels_qk, attend_among_positions
from ..windows import window_partition, window_unpartition
from .cpu import native
from .triton import channel as triton_channel
from .triton import encoding as triton_encoding
from .triton import support
from .triton import window as triton_window


def double_backward(
    formula: Callable[..., Any], needed: Sequence[bool], inputs: Sequence[Any], grads: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Return gradients that can be differentiated again, by running ``formula(*inputs)`` anew under autograd.

    Without gradients enabled, plain tensors are returned.

    Args:
        needed: for each input, whether its gradient is wanted.
        grads: gradient of each output of ``formula``; None counts as zero. Outputs that depend on no needed input
            are left out.
    """
    create_graph = torch.is_grad_enabled()
    wanted = [i for i, need in enumerate(needed) if need]
    with torch.enable_grad():
        outputs = formula(*inputs)
        outputs = [outputs] if isinstance(outputs, Tensor) else outputs
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
        found = torch.autograd.grad(
            [o for o, _ in pairs],
            [inputs[i] for i in wanted],
            [g for _, g in pairs],
            create_graph=create_graph,
            allow_unused=True,
        )
    by_input = dict(zip(wanted, found, strict=True))
    return tuple(by_input.get(i) for i in range(len(inputs)))


# --- window attention, on the unpartitioned map ---
# The kernels read q, k and v from the map of the qkv layer, and write the result in place. Positions outside the map
# are keys whose k and v are that layer's bias, which is what it gives for the zeros that `davit.model` pads with.
# Their queries would be cropped, and are not computed. The map of q, k and v alone is saved for the backward pass.


def window_formula(qkv_BHWE: Tensor, bias_E: Tensor | None, window: int, heads: int) -> Tensor:
    """Compute `window_attention` by the formula of `davit.model`."""
    qkv_MNE, tiling = window_partition(qkv_BHWE, window, bias_E)
    x_MNC = attend_among_positions(qkv_MNE, heads)[0]
    return window_unpartition(x_MNC, window, tiling, (qkv_BHWE.shape[1], qkv_BHWE.shape[2]))


def _has_attention_kernel(qkv_BHWE: Tensor, window: int, heads: int) -> bool:
    return support.runs_on(qkv_BHWE) or native.supports_attention(qkv_BHWE, window, heads)


@torch.library.custom_op("davit::window_attention", mutates_args=())
def window_attention(qkv_BHWE: Tensor, bias_E: Tensor | None, window: int, heads: int) -> Tensor:
    """Attend within windows of a map of q, k and v, E = 3 C channels; returns (B, H, W, C).

    Args:
        bias_E: bias of the layer that made the map, or None.
    """
    if not _has_attention_kernel(qkv_BHWE, window, heads):
        return window_formula(qkv_BHWE, bias_E, window, heads)
    module = triton_window if support.runs_on(qkv_BHWE) else native
    return module.window_attention(qkv_BHWE, bias_E, window, heads)


@torch.library.custom_op("davit::window_attention_backward", mutates_args=())
def window_attention_backward(
    grad_BHWC: Tensor, qkv_BHWE: Tensor, bias_E: Tensor | None, window: int, heads: int
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the map (B, H, W, E), and of the bias through the padded positions (E, in float32)."""
    module = triton_window if support.runs_on(qkv_BHWE) else native
    grad_qkv, parts_MC = module.window_attention_backward(grad_BHWC, qkv_BHWE, bias_E, window, heads)
    E = qkv_BHWE.shape[3]
    grad_bias = qkv_BHWE.new_zeros(E, dtype=torch.float32)
    grad_bias[E // 3 :] = parts_MC.sum(0)
    return grad_qkv, grad_bias


@window_attention.register_fake
def _(qkv_BHWE: Tensor, *_: Any) -> Tensor:
    B, H, W, E = qkv_BHWE.shape
    return qkv_BHWE.new_empty(B, H, W, E // 3)


@window_attention_backward.register_fake
def _(grad_BHWC: Tensor, qkv_BHWE: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    grad_qkv = torch.empty_like(qkv_BHWE, memory_format=torch.contiguous_format)
    return grad_qkv, qkv_BHWE.new_empty(qkv_BHWE.shape[3], dtype=torch.float32)


def _save_window(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.options = inputs[2:]


def _window_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    qkv, bias = ctx.saved_tensors
    if torch.is_grad_enabled() or not _has_attention_kernel(qkv, *ctx.options):
        return double_backward(window_formula, ctx.needs_input_grad, (qkv, bias, *ctx.options), [grad])
    grad_qkv, grad_bias = window_attention_backward(grad, qkv, bias, *ctx.options)
    return grad_qkv, None if bias is None else grad_bias.to(bias.dtype), None, None


window_attention.register_autograd(_window_gradients, setup_context=_save_window)


# --- channel attention, in two passes over strided views of the map of q, k and v ---
# First k^T v, D x D for each image and group, summed over parts of the positions in a fixed order, and its softmax;
# then q times that. The backward pass has the same two passes. Saved are the map of q, k and v, and the attention.
# Florence-2's function (`qk`) has q, k and v in the places of k, v and q, and another scale.


def channel_formula(qkv_BHWE: Tensor, groups: int, qk: bool = False) -> tuple[Tensor, Tensor]:
    """Compute `channel_attention` by the formula of `davit.model`."""
    B, H, W, E = qkv_BHWE.shape
    attend = attend_among_channels_qk if qk else attend_among_channels
    x_BNC, attention_BGDD = attend(qkv_BHWE.flatten(1, 2), groups)
    return x_BNC.reshape(B, H, W, E // 3).contiguous(), attention_BGDD.float()


@torch.library.custom_op("davit::channel_attention", mutates_args=())
def channel_attention(qkv_BHWE: Tensor, groups: int, qk: bool = False) -> tuple[Tensor, Tensor]:
    """Attend among the channels of each group of a map of q, k and v, E = 3 C channels.

    Args:
        qk: as `davit.model.attend_among_channels_qk` does, not as `davit.model.attend_among_channels`.

    Returns:
        The map (B, H, W, C), and the attention (B, G, D, D) in float32, which has no gradient.
    """
    if not _has_attention_kernel(qkv_BHWE, 0, groups):
        return channel_formula(qkv_BHWE, groups, qk)
    module = triton_channel if support.runs_on(qkv_BHWE) else native
    return module.channel_attention(qkv_BHWE, groups, qk)


@torch.library.custom_op("davit::channel_attention_backward", mutates_args=())
def channel_attention_backward(
    grad_BHWC: Tensor, qkv_BHWE: Tensor, attention_BGDD: Tensor, groups: int, qk: bool = False
) -> Tensor:
    """Return the gradient of the map of q, k and v, (B, H, W, E)."""
    module = triton_channel if support.runs_on(qkv_BHWE) else native
    return module.channel_attention_backward(grad_BHWC, qkv_BHWE, attention_BGDD, groups, qk)


@channel_attention.register_fake
def _(qkv_BHWE: Tensor, groups: int, qk: bool = False) -> tuple[Tensor, Tensor]:
    B, H, W, E = qkv_BHWE.shape
    D = E // 3 // groups
    return qkv_BHWE.new_empty(B, H, W, E // 3), qkv_BHWE.new_empty(B, groups, D, D, dtype=torch.float32)


@channel_attention_backward.register_fake
def _(grad_BHWC: Tensor, qkv_BHWE: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(qkv_BHWE, memory_format=torch.contiguous_format)


def _save_channel(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(inputs[0], output[1])
    ctx.options = inputs[1:]


def _channel_gradients(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    qkv, attention = ctx.saved_tensors
    if torch.is_grad_enabled() or not _has_attention_kernel(qkv, 0, ctx.options[0]):
        return double_backward(channel_formula, ctx.needs_input_grad, (qkv, *ctx.options), [grad, None])
    return channel_attention_backward(grad, qkv, attention, *ctx.options), None, None


channel_attention.register_autograd(_channel_gradients, setup_context=_save_channel)


# --- position encoding, its residual and the LayerNorm after it, in one pass over the map ---


def encoding_formula(x_BHWC: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Add to a map its depthwise 3x3 convolution, in the map's dtype."""
    x_BCHW = x_BHWC.permute(0, 3, 1, 2)
    weight, bias = like(x_BHWC, weight, bias)
    encoding_BCHW = F.conv2d(x_BCHW, weight, bias, padding=1, groups=x_BHWC.shape[3])
    return x_BHWC + encoding_BCHW.permute(0, 2, 3, 1)


def like(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Cast a layer's parameters to the dtype of ``x``: under autocast they are float32."""
    return weight.to(x.dtype), None if bias is None else bias.to(x.dtype)


def encode_and_norm_formula(
    x_BHWC: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None, norm_bias: Tensor | None,
    eps: float, norm_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute `encode_and_norm` by PyTorch's own operators."""
    with torch.autocast(x_BHWC.device.type, enabled=False):
        y = encoding_formula(x_BHWC, weight, bias)
        wide = torch.promote_types(x_BHWC.dtype, torch.float32)
        norm_weight, norm_bias = (None if p is None else p.to(wide) for p in (norm_weight, norm_bias))
        normed, mean, rstd = torch.native_layer_norm(y.to(wide), [x_BHWC.shape[3]], norm_weight, norm_bias, eps)
        return y.contiguous(), normed.to(norm_dtype).contiguous(), mean[..., 0].float(), rstd[..., 0].float()


def _has_row_kernel(x: Tensor) -> bool:
    return support.runs_on(x) or native.supports_rows(x)


@torch.library.custom_op("davit::encode_and_norm", mutates_args=())
def encode_and_norm(
    x_BHWC: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None, norm_bias: Tensor | None,
    eps: float, norm_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Add the position encoding to a map, and normalise the result.

    Args:
        weight: (C, 1, 3, 3), of the depthwise convolution.
        norm_dtype: dtype of the normalised map; under autocast that of the linear layer that reads it.

    Returns:
        x + encoding and the normalised map, both (B, H, W, C); mean and reciprocal standard deviation of each
        position, in float32, which have no gradient.
    """
    if not _has_row_kernel(x_BHWC):
        return encode_and_norm_formula(x_BHWC, weight, bias, norm_weight, norm_bias, eps, norm_dtype)
    y, normed, mean, rstd = _encoded_like(x_BHWC, norm_dtype)
    module = triton_encoding if support.runs_on(x_BHWC) else native
    module.encode(x_BHWC, weight, bias, y, (normed, norm_weight, norm_bias, mean, rstd), eps)
    return y, normed, mean, rstd


def _encoded_like(x_BHWC: Tensor, norm_dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Allocate the results of `encode_and_norm`."""
    y = torch.empty_like(x_BHWC, memory_format=torch.contiguous_format)
    mean, rstd = (x_BHWC.new_empty(x_BHWC.shape[:3], dtype=torch.float32) for _ in range(2))
    return y, torch.empty_like(y, dtype=norm_dtype), mean, rstd


@torch.library.custom_op("davit::encode_and_norm_backward", mutates_args=())
def encode_and_norm_backward(
    grad_y: Tensor | None, grad_normed: Tensor | None, x_BHWC: Tensor, weight: Tensor, norm_weight: Tensor | None,
    y_BHWC: Tensor, mean: Tensor, rstd: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of x; in float32 of the weight (C, 9), and of bias, norm weight and norm bias (3, C)."""
    module = triton_encoding if support.runs_on(x_BHWC) else native
    return module.encode_backward(grad_y, grad_normed, x_BHWC, weight, norm_weight, y_BHWC, mean, rstd)


@encode_and_norm.register_fake
def _(x_BHWC: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _encoded_like(x_BHWC, others[-1])


@encode_and_norm_backward.register_fake
def _(grad_y: Tensor | None, grad_normed: Tensor | None, x_BHWC: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    C = x_BHWC.shape[3]
    sums = [x_BHWC.new_empty(shape, dtype=torch.float32) for shape in ((C, 9), (3, C))]
    return torch.empty_like(x_BHWC, memory_format=torch.contiguous_format), sums[0], sums[1]


def _save_encoding(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:5], output[0], *output[2:])
    ctx.options = inputs[5:]


def _encoding_gradients(
    ctx: Any, grad_y: Tensor | None, grad_normed: Tensor | None, *_: Any
) -> tuple[Tensor | None, ...]:
    x, weight, bias, norm_weight, norm_bias, y, mean, rstd = ctx.saved_tensors
    if grad_y is None and grad_normed is None:
        return (None,) * 7
    if torch.is_grad_enabled() or not _has_row_kernel(x):
        inputs = (x, weight, bias, norm_weight, norm_bias, *ctx.options)
        grads = [grad_y, grad_normed, None, None]
        return double_backward(encode_and_norm_formula, ctx.needs_input_grad, inputs, grads)
    backward = encode_and_norm_backward(grad_y, grad_normed, x, weight, norm_weight, y, mean, rstd)
    grad_x, grad_weight, grad_vectors = backward
    pairs = zip((bias, norm_weight, norm_bias), grad_vectors, strict=True)
    vectors = [None if p is None else grad.to(p.dtype) for p, grad in pairs]
    return grad_x, grad_weight.to(weight.dtype).view_as(weight), *vectors, None, None


encode_and_norm.register_autograd(_encoding_gradients, setup_context=_save_encoding)


# --- inference of a whole block, and of a patch embedding, by native.cpp alone ---


infer_block = torch.library.custom_op("davit::block", native.infer_block, mutates_args=())
pack_block = torch.library.custom_op("davit::pack_block", native.pack_block, mutates_args=())
patch_embed = torch.library.custom_op("davit::patch_embed", native.patch_embed, mutates_args=())


@infer_block.register_fake
def _(x_BHWC: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x_BHWC, memory_format=torch.contiguous_format)


@pack_block.register_fake
def _(weights: Sequence[Tensor | None], heads: int) -> Tensor:
    matrices = [p for p in (weights[i] for i in native.MATRICES) if p is not None]
    return matrices[0].new_empty(sum(p.numel() for p in matrices))


@patch_embed.register_fake
def _(x: Tensor, weight: Tensor, *others: Any) -> Tensor:
    *_, stride, stem = others
    H, W = x.shape[2:] if stem else x.shape[1:3]
    return x.new_empty(x.shape[0], (H - 1) // stride + 1, (W - 1) // stride + 1, weight.shape[0])
