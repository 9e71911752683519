"""Compute mmcv's operators on boxes by torchvision: suppression, pooling, the focal loss.

The functions have the names, arguments and results that mmcv's Python side expects of its extension: several
fill tensors that they are given. They run wherever torchvision's operators run, forward and backward. Half
precision is computed in float32 and rounded once, at the end.

Boxes are (x1, y1, x2, y2) in pixels; RoIs are (image, x1, y1, x2, y2).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torchvision
from torch import Tensor

_ROIS_AT_ONCE = 64  # bounds the memory of max-pooled RoIAlign
_LONGEST_BY_MATRICES = 48  # of a map's sides; for larger ones most weights are 0
MAX_POOL, AVG_POOL = 0, 1  # mmcv's codes


def wide(tensor: Tensor) -> Tensor:
    """Convert to at least float32: bfloat16 cannot represent a coordinate of 1333."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices (int64) of the boxes that stay, best first.

    Args:
        offset: 1 where a box's width is x2 - x1 + 1, as before MMDetection 2; else 0.
    """
    boxes = boxes.detach().float() if boxes.dtype != torch.float64 else boxes.detach()
    if offset:
        boxes = boxes + boxes.new_tensor([0.0, 0.0, offset, offset])
    return torchvision.ops.nms(boxes, scores.detach().to(boxes.dtype), iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Lower the scores of boxes that overlap a better one: soft-NMS (Bodla et al., ICCV 2017).

    Args:
        dets: (N, 5), filled from the top with the boxes that stay and their lowered scores.
        iou_threshold: overlap from which methods 0 and 1 act.
        sigma: width of method 2.
        min_score: a box whose score falls below is out.
        method: 0 scores become 0 (ordinary NMS), 1 are multiplied by 1 - IoU, 2 by exp(-IoU^2 / sigma).
        offset: as in `nms`.

    Returns:
        Indices (int64) of the boxes that stay, in the order of their lowered scores.
    """
    work = boxes.detach().double()
    left = scores.detach().double().clone()
    areas = (work[:, 2] - work[:, 0] + offset) * (work[:, 3] - work[:, 1] + offset)
    alive = torch.ones(len(left), dtype=torch.bool)
    kept: list[int] = []
    while bool(alive.any()):
        best = int(left.masked_fill(~alive, -torch.inf).argmax())
        dets[len(kept), :4] = boxes[best]
        dets[len(kept), 4] = left[best]
        kept.append(best)
        alive[best] = False
        corner = torch.minimum(work[:, 2:], work[best, 2:]) - torch.maximum(work[:, :2], work[best, :2])
        inter = (corner + offset).clamp(min=0).prod(1)
        iou = inter / (areas + areas[best] - inter)
        if method == 2:
            factor = torch.exp(-(iou**2) / sigma)
        else:
            factor = torch.where(iou >= iou_threshold, 1 - iou if method == 1 else torch.zeros_like(iou), 1.0)
        left = torch.where(alive, left * factor, left)
        alive &= left >= min_score
    return torch.tensor(kept, dtype=torch.int64)


def roi_align_forward(
    image: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill ``output`` (RoIs, C, height, width) with pooled RoIs.

    A RoI whose second corner lies before its first has no extent that way; where the extent says how many samples
    there are, its mean is 0. A RoI that is not finite gives NaN. With max pooling, ``argmax_y`` and ``argmax_x`` get
    the row and column, among the samples of its cell, of each maximum (mmcv has their coordinates there); only
    `roi_align_backward` reads them.
    """
    size = (aligned_height, aligned_width)
    rois, lost = _usable(wide(rois), sampling_ratio)
    if pool_mode == AVG_POOL:
        output.copy_(torchvision.ops.roi_align(wide(image), rois, size, spatial_scale, sampling_ratio, aligned))
        output[lost] = torch.nan
        return
    for chosen, (rows, columns) in _sample_counts(rois, size, spatial_scale, sampling_ratio, aligned):
        samples = (aligned_height * rows, aligned_width * columns)
        values = torchvision.ops.roi_align(wide(image), rois[chosen], samples, spatial_scale, 1, aligned)
        maxima, places = torch.nn.functional.max_pool2d(values, (rows, columns), return_indices=True)
        output[chosen] = maxima.to(output.dtype)
        argmax_y[chosen] = (places // samples[1] % rows).to(argmax_y.dtype)
        argmax_x[chosen] = (places % samples[1] % columns).to(argmax_x.dtype)
    output[lost] = torch.nan


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Fill ``grad_input``, the gradient of the image."""
    size, backward = (aligned_height, aligned_width), torch.ops.torchvision._roi_align_backward
    grad_output, (rois, _), shape = wide(grad_output), _usable(wide(rois), sampling_ratio), grad_input.shape
    if pool_mode == AVG_POOL:
        if len(rois) and grad_output.device.type == "cpu" and max(shape[2:]) <= _LONGEST_BY_MATRICES:
            grad_input.copy_(_mean_backward(grad_output, rois, spatial_scale, shape, sampling_ratio, aligned))
        else:
            grad_input.copy_(backward(grad_output, rois, spatial_scale, *size, *shape, sampling_ratio, aligned))
        return
    total = torch.zeros(shape, dtype=grad_output.dtype, device=grad_output.device)
    for chosen, (rows, columns) in _sample_counts(rois, size, spatial_scale, sampling_ratio, aligned):
        samples = (aligned_height * rows, aligned_width * columns)
        y = torch.arange(0, samples[0], rows, device=rois.device)[:, None] + argmax_y[chosen].long()
        x = torch.arange(0, samples[1], columns, device=rois.device) + argmax_x[chosen].long()
        spread = grad_output.new_zeros(len(chosen), shape[1], samples[0] * samples[1])
        spread.scatter_(2, (y * samples[1] + x).flatten(2), grad_output[chosen].flatten(2))
        spread = spread.unflatten(2, samples)
        total += backward(spread, rois[chosen], spatial_scale, *samples, *shape, 1, aligned)
    grad_input.copy_(total)


def roi_pool_forward(
    image: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Fill ``output`` with max-pooled RoIs and ``argmax`` with the places of the maxima.

    RoIs are rounded to whole cells, as in Fast R-CNN and torchvision; mmcv's own operator, which is for CUDA only,
    keeps their fractions.
    """
    pooled, where = torch.ops.torchvision.roi_pool(wide(image), wide(rois), spatial_scale, pooled_height, pooled_width)
    output.copy_(pooled)
    argmax.copy_(where)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Fill ``grad_input``, the gradient of the image."""
    grid = (pooled_height, pooled_width)
    grad = torch.ops.torchvision._roi_pool_backward(
        wide(grad_output), wide(rois), argmax, spatial_scale, *grid, *grad_input.shape
    )
    grad_input.copy_(grad)


def sigmoid_focal_loss_forward(
    logits: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Fill ``output`` (N, classes) with the focal loss (Lin et al., ICCV 2017) of each logit.

    Args:
        target: (N,) class of each row; the number of classes stands for background.
        weight: (classes,) factor of each row by its class, background 1; empty for none.
    """
    output.copy_(_focal_loss(wide(logits), target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    logits: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Fill ``grad_input`` with the derivative of each loss by its logit."""
    with torch.enable_grad():
        leaf = wide(logits.detach()).requires_grad_()
        loss = _focal_loss(leaf, target, weight, gamma, alpha).sum()
    (grad,) = torch.autograd.grad(loss, leaf)
    grad_input.copy_(grad)


def _focal_loss(logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    classes = logits.shape[1]
    one_hot = torch.nn.functional.one_hot(target, classes + 1)[:, :classes].to(logits.dtype)
    loss = torchvision.ops.sigmoid_focal_loss(logits, one_hot, alpha, gamma)
    if weight.numel():
        loss = loss * torch.cat([weight, weight.new_ones(1)])[target][:, None].to(loss.dtype)
    return loss


def _usable(rois: Tensor, sampling_ratio: int) -> tuple[Tensor, Tensor]:
    """Return RoIs that torchvision can pool, and which (bool) were not finite.

    It would ask for a negative number of samples, and end the process. Regressed boxes are such at times.
    """
    lost = ~rois.isfinite().all(1)
    rois = rois.masked_fill(lost[:, None], 0.0)
    if sampling_ratio > 0:  # the number of samples is given
        return rois, lost
    picture, first, second = rois.split((1, 2, 2), 1)
    return torch.cat([picture, first, torch.maximum(first, second)], 1), lost


def _mean_backward(
    grad_output: Tensor, rois: Tensor, spatial_scale: float, shape: torch.Size, sampling_ratio: int, aligned: bool
) -> Tensor:
    """Compute the gradient of the image for averages, on the CPU.

    A mean of bilinear samples is a weighted sum along the rows, then along the columns; so its gradient is two
    products of matrices. torchvision adds sample by sample on one thread.
    """
    _, _, height, width = shape
    x1, y1, x2, y2 = (rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)).unbind(1)
    sides = (y2 - y1, x2 - x1) if aligned else ((y2 - y1).clamp(min=1), (x2 - x1).clamp(min=1))
    rows_NPH = _weights_along(y1, sides[0], grad_output.shape[2], height, sampling_ratio)
    columns_NQW = _weights_along(x1, sides[1], grad_output.shape[3], width, sampling_ratio)
    total = grad_output.new_zeros(shape)
    of_picture = rois[:, 0].long()
    for picture in of_picture.unique().tolist():
        own = (of_picture == picture).nonzero()[:, 0]
        wide_NCPW = grad_output[own] @ columns_NQW[own].to(grad_output.dtype)[:, None]
        rows_AH = rows_NPH[own].to(grad_output.dtype).flatten(0, 1)  # A: each row of cells of each RoI
        total[picture] = (
            (rows_AH.T @ wide_NCPW.transpose(1, 2).flatten(2).flatten(0, 1))
            .view(height, shape[1], width)
            .transpose(0, 1)
        )
    return total


def _weights_along(start_N: Tensor, extent_N: Tensor, cells: int, length: int, sampling_ratio: int) -> Tensor:
    """Return how much each place of an axis counts in the mean of each cell of each RoI: (N, cells, length)."""
    step_N = extent_N / cells
    counts_N = torch.full_like(step_N, float(sampling_ratio)) if sampling_ratio > 0 else step_N.ceil().clamp(min=0)
    most = int(counts_N.max())
    sample_S = torch.arange(most, dtype=start_N.dtype)
    place_NPS = start_N[:, None, None] + step_N[:, None, None] * (
        torch.arange(cells, dtype=start_N.dtype)[:, None] + (sample_S + 0.5) / counts_N.clamp(min=1)[:, None, None]
    )
    is_counted = (sample_S < counts_N[:, None, None]) & (place_NPS >= -1) & (place_NPS <= length)
    place_NPS = place_NPS.clamp(0, length - 1)
    low = place_NPS.floor()
    share = is_counted / counts_N.clamp(min=1)[:, None, None]
    weights = start_N.new_zeros(len(start_N), cells, length)
    weights.scatter_add_(2, low.long(), (1 - (place_NPS - low)) * share)
    weights.scatter_add_(2, (low.long() + 1).clamp(max=length - 1), (place_NPS - low) * share)
    return weights


def _sample_counts(
    rois: Tensor, size: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """Group RoIs by the rows and columns of samples in each of their cells; yield the indices of each group.

    Where ``sampling_ratio`` is 0 there are about as many samples as the cell has pixels of the map.
    """
    box = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    extent = box[:, 2:] - box[:, :2]
    if not aligned:
        extent = extent.clamp(min=1.0)
    cell = extent / extent.new_tensor(size[::-1])
    counts = torch.full_like(cell, float(sampling_ratio)) if sampling_ratio > 0 else cell.ceil().clamp(min=1.0)
    for count in counts.unique(dim=0):
        same = (counts == count).all(1).nonzero()[:, 0]
        for chosen in same.split(_ROIS_AT_ONCE):
            yield chosen, (int(count[1]), int(count[0]))
