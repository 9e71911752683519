"""What the two attentions of each block look at, computed again from q, k and v.

Hooks keep the input of every attention of one forward pass; the model itself runs as it always does. Shape
suffixes are those of davit/model.py; here B is 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..model import ChannelAttention, DaViT, WindowAttention
from ..windows import window_partition, window_unpartition


@dataclass(frozen=True)
class SpatialView:
    """One window attention's view of one picture.

    Attributes:
        name: of the module, such as main_blocks.0.0.0.attn.
        stage: from 0.
        window: side of a window, in positions.
        attention_MGNN: each row, the attention of one position, sums to 1 over its window's positions.
        received_HW: how much the positions of its window attend to a position, over heads; 1 is the mean of a
            window without padding.
    """

    name: str
    stage: int
    window: int
    tiling: tuple[int, int]
    attention_MGNN: Tensor
    received_HW: Tensor

    def seen_from(self, row: int, column: int) -> Tensor:
        """The attention of one position, mean over heads: (H, W), zero outside its window.

        It sums to 1, less what padding gets.
        """
        w = self.window
        M, _, N, _ = self.attention_MGNN.shape
        seen_MN = self.attention_MGNN.new_zeros(M, N)
        here = (row // w) * self.tiling[1] + column // w
        seen_MN[here] = self.attention_MGNN[here, :, (row % w) * w + column % w].mean(0)
        H, W = self.received_HW.shape
        return window_unpartition(seen_MN[:, :, None], w, self.tiling, (H, W))[0, :, :, 0]


@dataclass(frozen=True)
class ChannelView:
    """One channel attention's view of one picture.

    Attributes:
        attention_GDD: each row, a channel's attention to the channels of its group, sums to 1.
        response_GHW: where each group's output departs from its own mean over the picture (root mean square over
            the channels of the group, before the projection).
    """

    name: str
    stage: int
    attention_GDD: Tensor
    response_GHW: Tensor

    def most_telling(self, count: int) -> list[int]:
        """The groups whose response is most concentrated: the largest peak over its mean, that first."""
        flat_GP = self.response_GHW.flatten(1)
        contrast_G = flat_GP.amax(1) / flat_GP.mean(1).clamp_min(torch.finfo(flat_GP.dtype).tiny)
        return contrast_G.argsort(descending=True, stable=True)[:count].tolist()


@dataclass(frozen=True)
class Attention:
    """Every attention of a model on one picture, in the order of the blocks."""

    spatial: tuple[SpatialView, ...]
    channel: tuple[ChannelView, ...]

    def last(self, stage: int) -> tuple[SpatialView | None, ChannelView | None]:
        """The last of either kind in a stage; None where it has none."""
        spatial = [view for view in self.spatial if view.stage == stage]
        channel = [view for view in self.channel if view.stage == stage]
        return (spatial[-1] if spatial else None), (channel[-1] if channel else None)


def attention_of(model: nn.Module, image_1CHW: Tensor) -> Attention:
    """What every attention of a DaViT looks at in one picture.

    Args:
        model: a `DaViT`, in eval mode.
        image_1CHW: one picture, normalised as for the model.

    Raises:
        ValueError: another model, or not one picture.
    """
    if not isinstance(model, DaViT):
        raise ValueError(f"attention is shown for DaViT, not for {type(model).__name__}.")
    if image_1CHW.dim() != 4 or image_1CHW.shape[0] != 1:
        raise ValueError(f"one picture (1, C, H, W) is looked at, not {tuple(image_1CHW.shape)}.")
    with torch.no_grad():
        with _inputs(model) as seen:
            model(image_1CHW)
        spatial = tuple(_spatial(name, module, x) for name, module, x in seen if isinstance(module, WindowAttention))
        channel = tuple(_channel(name, module, x) for name, module, x in seen if isinstance(module, ChannelAttention))
    return Attention(spatial, channel)


@contextmanager
def _inputs(model: nn.Module) -> Iterator[list[tuple[str, nn.Module, Tensor]]]:
    """(name, module, input) of each attention, in the order in which they run."""
    seen: list[tuple[str, nn.Module, Tensor]] = []

    def keep(name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            seen.append((name, module, arguments[0].detach()))

        return hook

    handles = [
        module.register_forward_pre_hook(keep(name))
        for name, module in model.named_modules()
        if isinstance(module, WindowAttention | ChannelAttention)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _stage_of(name: str) -> int:
    return int(name.split(".")[1])  # main_blocks.STAGE.PAIR.BLOCK.attn


def _spatial(name: str, module: WindowAttention, x_BHWC: Tensor) -> SpatialView:
    H, W, C = x_BHWC.shape[1:]
    w, G = module.window_size, module.num_heads
    qkv_MNE, tiling = window_partition(module.qkv(x_BHWC), w, module.qkv.bias)
    M, N = qkv_MNE.shape[:2]
    q_MGND, k_MGND, _ = qkv_MNE.reshape(M, N, 3, G, C // G).permute(2, 0, 3, 1, 4).float().unbind(0)
    attention_MGNN = ((q_MGND * module.scale) @ k_MGND.transpose(-2, -1)).softmax(dim=-1)
    real_MN = window_partition(x_BHWC.new_ones(1, H, W, 1), w, None)[0][:, :, 0].float()  # 0: padding, which asks too
    asked_MN = torch.einsum("mgij,mi->mj", attention_MGNN, real_MN) / G
    share_MN = N * asked_MN / real_MN.sum(1, keepdim=True)
    received_HW = window_unpartition(share_MN[:, :, None], w, tiling, (H, W))[0, :, :, 0]
    return SpatialView(name, _stage_of(name), w, tiling, attention_MGNN, received_HW)


def _channel(name: str, module: ChannelAttention, x_BHWC: Tensor) -> ChannelView:
    _, H, W, C = x_BHWC.shape
    G = module.num_groups
    qkv_PE = module.qkv(x_BHWC).reshape(H * W, 3, G, C // G)
    q_GPD, k_GPD, v_GPD = qkv_PE.permute(1, 2, 0, 3).float().unbind(0)
    attention_GDD = ((k_GPD * module.scale).transpose(-2, -1) @ v_GPD).softmax(dim=-1)
    y_GDP = attention_GDD @ q_GPD.transpose(-2, -1)
    departure_GP = (y_GDP - y_GDP.mean(2, keepdim=True)).square().mean(1).sqrt()
    return ChannelView(name, _stage_of(name), attention_GDD, departure_GP.reshape(G, H, W))
