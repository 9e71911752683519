"""Compute mmcv's deformable operators by PyTorch and torchvision: attention and convolutions at learned places.

As in `ops`, the functions have the names, arguments and results that mmcv's Python side expects of its extension, and
half precision is computed in float32 and rounded once, at the end.
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor
from torch.nn import functional as F

from .ops import wide


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Compute multi-scale deformable attention (Zhu et al., ICLR 2021, equation 3): (N, Q, heads * D).

    Args:
        value: (N, S, heads, D), the positions of all levels one after another.
        value_spatial_shapes: (levels, 2), height and width of each level.
        value_level_start_index: (levels,), where each level starts; it follows from the shapes.
        sampling_locations: (N, Q, heads, levels, points, 2), x and y from 0 to 1 over a level.
        attention_weights: (N, Q, heads, levels, points).
        im2col_step: how mmcv's operator cuts the batch, which has no meaning here.
    """
    with torch.no_grad():
        wanted = _attention(wide(value), value_spatial_shapes, wide(sampling_locations), wide(attention_weights))
    return wanted.to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Fill the gradients of value, places and weights, each of the shape of what it is of."""
    with torch.enable_grad():
        leaves = [wide(one.detach()).requires_grad_() for one in (value, sampling_locations, attention_weights)]
        output = _attention(leaves[0], value_spatial_shapes, *leaves[1:])
    found = torch.autograd.grad(output, leaves, wide(grad_output))
    for target, gradient in zip((grad_value, grad_sampling_loc, grad_attn_weight), found, strict=True):
        target.copy_(gradient)


def _attention(
    value_NSHD: Tensor, shapes: Tensor, locations_NQHLP2: Tensor, weights_NQHLP: Tensor
) -> Tensor:  # (N, Q, H * D)
    N, _, H, D = value_NSHD.shape
    Q = locations_NQHLP2.shape[1]
    sizes = [(int(height), int(width)) for height, width in shapes.tolist()]
    grids_NHLQP2 = (2 * locations_NQHLP2 - 1).permute(0, 2, 3, 1, 4, 5)  # grid_sample counts from -1 to 1
    weights_NHLQP = weights_NQHLP.permute(0, 2, 3, 1, 4)
    total = value_NSHD.new_zeros(N * H, D, Q)
    for level, (one_NSHD, (height, width)) in enumerate(
        zip(value_NSHD.split([height * width for height, width in sizes], 1), sizes, strict=True)
    ):
        map_BDhw = one_NSHD.permute(0, 2, 3, 1).reshape(N * H, D, height, width)
        grid_BQP2 = grids_NHLQP2[:, :, level].flatten(0, 1)
        sampled_BDQP = F.grid_sample(map_BDhw, grid_BQP2, mode="bilinear", padding_mode="zeros", align_corners=False)
        total = total + (sampled_BDQP * weights_NHLQP[:, :, level].reshape(N * H, 1, Q, -1)).sum(-1)
    return total.reshape(N, H * D, Q).transpose(1, 2).contiguous()


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Fill ``output`` with a deformable convolution (Dai et al., ICCV 2017).

    Args:
        offset: (N, deformable_group * kH * kW * 2, H, W), y and x in turn.
        columns, ones: mmcv's working memory, not used; nor is `im2col_step`.
    """
    steps = {"stride": (dH, dW), "padding": (padH, padW), "dilation": (dilationH, dilationW)}
    output.copy_(torchvision.ops.deform_conv2d(wide(input), wide(offset), wide(weight), **steps))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Fill the gradients of input and offset."""
    steps = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    found = _convolution_gradients(grad_output, input, weight, offset, None, steps)
    grad_input.copy_(found[0])
    grad_offset.copy_(found[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Fill the gradient of the weight, times `scale`."""
    steps = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    found = _convolution_gradients(grad_output, input, grad_weight, offset, None, steps)
    grad_weight.copy_(found[1] * scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Fill ``output`` with a modulated deformable convolution (Zhu et al., CVPR 2019).

    Args:
        offset: as in `deform_conv_forward`; of a larger map in DyHead (see `_of_size`).
        mask: (N, deformable_group * kernel_h * kernel_w, H, W), a factor of each sample.
        bias: (channels,), empty where `with_bias` is false.
    """
    size = output.shape[-2:]
    steps = {"stride": (stride_h, stride_w), "padding": (pad_h, pad_w), "dilation": (dilation_h, dilation_w)}
    tensors = (wide(input), wide(_of_size(offset, size)), wide(weight), wide(bias) if with_bias else None)
    output.copy_(torchvision.ops.deform_conv2d(*tensors, **steps, mask=wide(_of_size(mask, size))))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Fill the gradients of input, weight, bias, offset and mask; what was not read of the last two has none."""
    size = grad_output.shape[-2:]
    steps = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    read = (_of_size(offset, size), _of_size(mask, size))
    found = _convolution_gradients(grad_output, input, weight, *read, steps)
    for target, gradient in zip((grad_input, grad_weight, grad_offset, grad_mask), found, strict=False):
        if target.shape != gradient.shape:
            unread = target[0].numel() - gradient[0].numel()
            gradient = F.pad(gradient.flatten(1), (0, unread)).reshape(target.shape)
        target.copy_(gradient)
    if with_bias:
        grad_bias.copy_(found[4])


def _of_size(planes: Tensor, size: torch.Size) -> Tensor:
    """Read the planes of each image, (N, C, H, W), as mmcv's kernel does: as if they were of the output's size.

    MMDetection's DyHead gives the offsets of one level to the convolution of the next, which has a quarter of its
    positions. The kernel does not look at their shape and reads an image's numbers one after another; weights
    trained with it expect that.

    Raises:
        ValueError: there are fewer numbers than the kernel would read.
    """
    if planes.shape[-2:] == size:
        return planes
    if planes.shape[-2] * planes.shape[-1] < size.numel():
        raise ValueError(
            f"offsets and masks of {tuple(planes.shape[-2:])} positions are too few for an output of {tuple(size)}."
        )
    return planes.flatten(1)[:, : planes.shape[1] * size.numel()].unflatten(1, (planes.shape[1], *size))


def _convolution_gradients(
    grad_output: Tensor, input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None, steps: tuple[int, ...]
) -> tuple[Tensor, ...]:
    """Return the gradients of input, weight, offset, mask and bias.

    Args:
        weight: the values have no part in its own gradient.
        steps: stride, padding and dilation, each by rows and columns, groups, and groups of offsets.
    """
    grad_output, input, weight, offset = (wide(one) for one in (grad_output, input, weight, offset))
    given = wide(mask) if mask is not None else input.new_zeros(len(input), 1)
    bias = weight.new_zeros(len(weight))
    backward = torch.ops.torchvision._deform_conv2d_backward
    return tuple(backward(grad_output, input, weight, offset, given, bias, *steps, mask is not None))
