"""mmcv's compiled operators from torchvision: what RetinaNet, Mask R-CNN and UPerNet need of `mmcv._ext`.

The functions have the names, arguments and results that mmcv's Python side expects of its extension: several
fill tensors that they are given. They run wherever torchvision's operators run, forward and backward. Half
precision is computed in float32 and rounded once, at the end.

Boxes are (x1, y1, x2, y2) in pixels; RoIs are (picture, x1, y1, x2, y2).
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor

_ROIS_AT_ONCE = 64  # bounds the memory of max-pooled RoIAlign
MAX_POOL, AVG_POOL = 0, 1  # mmcv's codes


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices (int64) of the boxes that stay, best first.

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
    """Soft-NMS (Bodla et al., ICCV 2017): boxes that overlap a better one lose score rather than vanish.

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
    """Fill ``output`` (R, C, height, width) with pooled RoIs, and for max pooling the places of the maxima."""
    if pool_mode == AVG_POOL:
        pooled = torchvision.ops.roi_align(
            _wide(image), _wide(rois), (aligned_height, aligned_width), spatial_scale, sampling_ratio, aligned
        )
        output.copy_(pooled)
        return
    grid = (aligned_height, aligned_width)
    for chosen, y, x in _sampling_points(rois, grid, spatial_scale, sampling_ratio, aligned):
        values = _interpolate(_wide(image), rois[chosen, 0].long(), y, x)  # (R, C, cells, samples)
        best, where = values.max(-1)
        shape = (len(chosen), image.shape[1], *grid)
        where_in_cell = where.flatten(1, 1)
        output[chosen] = best.reshape(shape).to(output.dtype)
        for target, coordinate in ((argmax_y, y), (argmax_x, x)):
            spread = coordinate[:, None].expand(-1, image.shape[1], -1, -1)
            target[chosen] = spread.gather(-1, where_in_cell[..., None])[..., 0].reshape(shape).to(target.dtype)


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
    size = tuple(grad_input.shape)
    if pool_mode == AVG_POOL:
        grid = (aligned_height, aligned_width)
        grad = torch.ops.torchvision._roi_align_backward(
            _wide(grad_output), _wide(rois), spatial_scale, *grid, *size, sampling_ratio, aligned
        )
        grad_input.copy_(grad)
        return
    B, C, H, W = size
    total = torch.zeros(B * C * H * W, dtype=_wide(grad_input).dtype, device=grad_input.device)
    planes = (rois[:, 0].long()[:, None] * C + torch.arange(C, device=rois.device))[..., None, None]
    for row, column, weight in _corners(_wide(argmax_y), _wide(argmax_x), H, W):
        place = (planes * H + row) * W + column
        total.index_add_(0, place.flatten(), (weight * _wide(grad_output)).flatten())
    grad_input.copy_(total.reshape(size))


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

    RoIs are rounded to whole cells, as Fast R-CNN has it and torchvision does; mmcv's own operator, for CUDA
    alone, keeps their fractions.
    """
    pooled, where = torch.ops.torchvision.roi_pool(
        _wide(image), _wide(rois), spatial_scale, pooled_height, pooled_width
    )
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
        _wide(grad_output), _wide(rois), argmax, spatial_scale, *grid, *grad_input.shape
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
    output.copy_(_focal_loss(_wide(logits), target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    logits: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Fill ``grad_input`` with the derivative of each loss by its logit."""
    with torch.enable_grad():
        leaf = _wide(logits.detach()).requires_grad_()
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


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in at least single precision: a coordinate of 1333 is no number of bfloat16."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _sampling_points(
    rois: Tensor, grid: tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(indices of RoIs, y, x) with y and x of (RoIs, cells, samples): where RoIAlign reads the map.

    RoIs are put together by their number of samples, which depends on their size where ``sampling_ratio`` is 0.
    """
    height, width = grid
    box = _wide(rois)[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    extent = box[:, 2:] - box[:, :2]
    if not aligned:
        extent = extent.clamp(min=1.0)
    cell = extent / extent.new_tensor([width, height])
    counts = torch.full_like(cell, float(sampling_ratio)) if sampling_ratio > 0 else cell.ceil().clamp(min=1.0)
    found = []
    for count in counts.unique(dim=0):
        columns, rows = int(count[0]), int(count[1])
        same = (counts == count).all(1).nonzero()[:, 0]
        for chosen in same.split(_ROIS_AT_ONCE):
            at_y = _positions(height, rows, box.device, box.dtype)  # (height, rows), in cells
            at_x = _positions(width, columns, box.device, box.dtype)
            y = box[chosen, 1, None, None] + at_y * cell[chosen, 1, None, None]
            x = box[chosen, 0, None, None] + at_x * cell[chosen, 0, None, None]
            shape = (len(chosen), height, width, rows, columns)
            flat = (len(chosen), height * width, rows * columns)
            y = y[:, :, None, :, None].expand(shape).reshape(flat)
            x = x[:, None, :, None, :].expand(shape).reshape(flat)
            found.append((chosen, y, x))
    return found


def _positions(cells: int, samples: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    within = (torch.arange(samples, device=device, dtype=dtype) + 0.5) / samples
    return torch.arange(cells, device=device, dtype=dtype)[:, None] + within


def _interpolate(image: Tensor, picture: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Bilinear values (RoIs, C, cells, samples) of the maps that RoIs belong to."""
    _, C, H, W = image.shape
    flat = image.flatten(2)
    total = torch.zeros((len(picture), C, *y.shape[1:]), dtype=image.dtype, device=image.device)
    for row, column, weight in _corners(y, x, H, W):
        place = (row * W + column).flatten(1)[:, None].expand(-1, C, -1)
        total += flat[picture].gather(2, place).reshape(total.shape) * weight[:, None]
    return total


def _corners(y: Tensor, x: Tensor, H: int, W: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(row, column, weight) of the four cells around each point; weight 0 for a point off the map."""
    inside = (y >= -1) & (y <= H) & (x >= -1) & (x <= W)
    y, x = y.clamp(0, H - 1), x.clamp(0, W - 1)
    top, left = y.floor(), x.floor()
    down, right = y - top, x - left
    rows = (top.long(), (top.long() + 1).clamp(max=H - 1))
    columns = (left.long(), (left.long() + 1).clamp(max=W - 1))
    weights = ((1 - down, down), (1 - right, right))
    return [
        (rows[i], columns[j], torch.where(inside, weights[0][i] * weights[1][j], 0.0)) for i in (0, 1) for j in (0, 1)
    ]
