"""Find where in an image the evidence for a class is: a class activation map without a target layer to choose.

DaViT's head is a mean over positions, a LayerNorm and a linear layer. For the map x of the last stage with
positions p and channels, m = mean_p x_p, and the LayerNorm with weight g, bias b and s = sqrt(var(m) + eps),

    logit_c = w_c . (g (m - mean(m)) / s + b) + a_c
            = mean_p [ w_c . g (x_p - mean(x_p)) / s ] + w_c . b + a_c

since the mean over channels and the mean over positions commute. The bracket is the evidence at p: an exact
decomposition, in which nothing is approximated or clipped (only s is shared by all positions). As the softmax does
not change when all logits move together, w_c and a_c are taken less their means over classes: evidence is for the
class rather than for the average one.

Other models, and images so small that the last map has hardly any places, get occlusion: the evidence at a place
is what the logit, less the mean of all logits, loses when the tile there and its neighbours are hidden under the
median colour of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..model import DaViT

_LEAST_SIDE = 4  # positions; a smaller map does not tell places apart
_TILES = 8  # a side, of an occluded image
_BATCH = 16  # occluded images that go through the model at once


@dataclass(frozen=True)
class Evidence:
    """The evidence for one class.

    Attributes:
        map_HW: at the places of the last stage's map, or at the tiles of the image; positive speaks for the class.
        method: "exact" for the decomposition above, or "occlusion".
        offset: what belongs to no place. With "exact", the mean of the map and it add up to the class's logit
            less the mean of all logits; with "occlusion" it is 0.
    """

    class_index: int
    map_HW: Tensor
    method: str
    offset: float = 0.0


def class_evidence(model: nn.Module, image_1CHW: Tensor, classes: Sequence[int]) -> list[Evidence]:
    """Compute the evidence for each of some classes in one image.

    Args:
        model: a classifier in eval mode, of images (B, C, H, W), with the number of its classes in ``num_classes``.
        image_1CHW: one image, normalised as for the model.

    Raises:
        ValueError: not one image, or an unknown class.
    """
    count = int(getattr(model, "num_classes", 0))
    if wrong := [index for index in classes if not 0 <= index < count]:
        raise ValueError(f"class {wrong[0]} is none of the model's, which are 0 to {count - 1}.")
    if image_1CHW.dim() != 4 or image_1CHW.shape[0] != 1:
        raise ValueError(f"one image (1, C, H, W) is looked at, not {tuple(image_1CHW.shape)}.")
    norm = model.norms if isinstance(model, DaViT) and model.global_pool == "avg" else None
    if isinstance(norm, nn.LayerNorm) and norm.elementwise_affine:
        with torch.no_grad():
            x_BCHW = model.forward_features(image_1CHW)  # type: ignore[operator]
        if min(x_BCHW.shape[2:]) >= _LEAST_SIDE:
            return _exact(norm, model.head, x_BCHW, classes)  # type: ignore[arg-type]
    return _by_occlusion(model, image_1CHW, classes)


@torch.no_grad()
def _exact(norm: nn.LayerNorm, head: nn.Linear, x_BCHW: Tensor, classes: Sequence[int]) -> list[Evidence]:
    x_HWC = x_BCHW[0].permute(1, 2, 0).double()
    s = (x_HWC.mean((0, 1)).var(unbiased=False) + norm.eps).sqrt()
    centred_HWC = (x_HWC - x_HWC.mean(2, keepdim=True)) / s * norm.weight.double()
    weight_KC = head.weight.double() - head.weight.double().mean(0)
    offset_K = head.bias.double() - head.bias.double().mean()
    if norm.bias is not None:
        offset_K = offset_K + weight_KC @ norm.bias.double()
    return [
        Evidence(index, (centred_HWC @ weight_KC[index]).float(), "exact", offset_K[index].item()) for index in classes
    ]


@torch.no_grad()
def _by_occlusion(model: nn.Module, image_1CHW: Tensor, classes: Sequence[int]) -> list[Evidence]:
    H, W = image_1CHW.shape[2:]
    rows, columns = min(_TILES, H), min(_TILES, W)
    median_1C11 = image_1CHW.flatten(2).median(2).values[:, :, None, None]
    row_of_H = torch.arange(H, device=image_1CHW.device) * rows // H
    column_of_W = torch.arange(W, device=image_1CHW.device) * columns // W
    wanted = torch.tensor(list(classes), device=image_1CHW.device)

    def above_mean(images_BCHW: Tensor) -> Tensor:
        logits_BK = model(images_BCHW).float()
        return logits_BK[:, wanted] - logits_BK.mean(1, keepdim=True)

    whole_K = above_mean(image_1CHW)[0]
    losses = []
    for tiles_B in torch.arange(rows * columns, device=image_1CHW.device).split(_BATCH):
        near_BH = (row_of_H - (tiles_B // columns)[:, None]).abs() <= 1
        near_BW = (column_of_W - (tiles_B % columns)[:, None]).abs() <= 1
        hidden_B1HW = near_BH[:, None, :, None] & near_BW[:, None, None, :]
        losses.append(whole_K - above_mean(torch.where(hidden_B1HW, median_1C11, image_1CHW)))
    maps_KHW = torch.cat(losses).T.reshape(len(classes), rows, columns)
    return [Evidence(index, maps_KHW[place], "occlusion") for place, index in enumerate(classes)]
