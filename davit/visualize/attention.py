"""Compute again, from q, k and v, what the two attentions of each block look at.

Hooks keep the input of every attention of one forward pass; the model itself runs as it always does. Shape
suffixes are those of davit/model.py; here B is 1.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn

from ..kernels.conditions import difference_of_text, expect_plain
from ..model import (
    ChannelAttention,
    ChannelAttentionQK,
    DaViT,
    WindowAttention,
    attend_among_channels,
    attend_among_channels_qk,
    attend_among_positions,
)
from ..windows import window_partition, window_unpartition

log = logging.getLogger(__name__)

_CHANNEL = (ChannelAttention, ChannelAttentionQK)


@dataclass(frozen=True)
class SpatialView:
    """One window attention's view of one image.

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
        """Average the attention of one position over heads: (H, W), zero outside its window.

        It sums to 1, less what padding gets.
        """
        w = self.window
        M, _, N, _ = self.attention_MGNN.shape
        seen_MN = self.attention_MGNN.new_zeros(M, N)
        window = (row // w) * self.tiling[1] + column // w
        seen_MN[window] = self.attention_MGNN[window, :, (row % w) * w + column % w].mean(0)
        H, W = self.received_HW.shape
        return window_unpartition(seen_MN[:, :, None], w, self.tiling, (H, W))[0, :, :, 0]


@dataclass(frozen=True)
class ChannelView:
    """One channel attention's view of one image.

    Attributes:
        attention_GDD: each row, a channel's attention to the channels of its group, sums to 1.
        response_GHW: where each group's output departs from its own mean over the image (root mean square over
            the channels of the group, before the projection).
    """

    name: str
    stage: int
    attention_GDD: Tensor
    response_GHW: Tensor

    def most_telling(self, count: int) -> list[int]:
        """Choose the groups whose response is most concentrated: the largest peak over its mean comes first."""
        flat_GP = self.response_GHW.flatten(1)
        contrast_G = flat_GP.amax(1) / flat_GP.mean(1).clamp_min(torch.finfo(flat_GP.dtype).tiny)
        return contrast_G.argsort(descending=True, stable=True)[:count].tolist()


@dataclass(frozen=True)
class Attention:
    """Every attention of a model on one image, in the order of the blocks."""

    spatial: tuple[SpatialView, ...]
    channel: tuple[ChannelView, ...]

    def last(self, stage: int) -> tuple[SpatialView | None, ChannelView | None]:
        """Return the last view of either kind in a stage; None where it has none."""
        last_spatial = {view.stage: view for view in self.spatial}
        last_channel = {view.stage: view for view in self.channel}
        return last_spatial.get(stage), last_channel.get(stage)


def attention_of(model: nn.Module, image_1CHW: Tensor) -> Attention:
    """Compute what every attention of a DaViT looks at in one image.

    Args:
        model: a `DaViT`, in eval mode.
        image_1CHW: one image, normalised as for the model.

    Raises:
        ValueError: another model, or not one image.
    """
    if not isinstance(model, DaViT):
        raise ValueError(f"attention is shown for DaViT, not for {type(model).__name__}.")
    if image_1CHW.dim() != 4 or image_1CHW.shape[0] != 1:
        raise ValueError(f"one image (1, C, H, W) is looked at, not {tuple(image_1CHW.shape)}.")
    seen: list[tuple[str, nn.Module, Tensor]] = []  # in the order in which the attentions run

    def keep(name: str, module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen.append((name, module, arguments[0].detach()))

    with torch.no_grad():
        with ExitStack() as hooks, expect_plain():
            for name, module in model.named_modules():
                if isinstance(module, (WindowAttention, *_CHANNEL)):
                    hooks.enter_context(module.register_forward_pre_hook(partial(keep, name)))
            model(image_1CHW)
        try:
            spatial = tuple(_spatial(name, part, x) for name, part, x in seen if isinstance(part, WindowAttention))
            channel = tuple(_channel(name, part, x) for name, part, x in seen if isinstance(part, _CHANNEL))
        except TypeError as error:
            raise ValueError(
                f"the attention of this edited model cannot be computed again ({error}): call its formula in "
                "davit/visualize/attention.py as davit/model.py now does."
            ) from error
    for kind in (WindowAttention, *_CHANNEL):
        if any(isinstance(part, kind) for _, part, _ in seen) and (reason := difference_of_text(kind)) is not None:
            _warn_of_edit(reason)
    return Attention(spatial, channel)


@cache  # once a process
def _warn_of_edit(reason: str) -> None:
    log.warning(
        "%s. Attention is drawn by the formulas in davit/visualize/attention.py; check that they follow the edit.",
        reason,
    )


def _spatial(name: str, module: WindowAttention, x_BHWC: Tensor) -> SpatialView:
    stage = int(name.split(".")[1])  # main_blocks.STAGE.PAIR.BLOCK.attn
    H, W = x_BHWC.shape[1:3]
    w, G = module.window_size, module.num_heads
    x_MNC, tiling = window_partition(x_BHWC, w)
    N = x_MNC.shape[1]
    attention_MGNN = attend_among_positions(module.qkv(x_MNC).float(), G)[1]
    real_MN = window_partition(x_BHWC.new_ones(1, H, W, 1), w)[0][:, :, 0].float()  # 0: padding, which asks too
    asked_MN = torch.einsum("mgij,mi->mj", attention_MGNN, real_MN) / G
    share_MN = N * asked_MN / real_MN.sum(1, keepdim=True)
    received_HW = window_unpartition(share_MN[:, :, None], w, tiling, (H, W))[0, :, :, 0]
    return SpatialView(name, stage, w, tiling, attention_MGNN, received_HW)


def _channel(name: str, module: ChannelAttention | ChannelAttentionQK, x_BHWC: Tensor) -> ChannelView:
    stage = int(name.split(".")[1])
    H, W = x_BHWC.shape[1:3]
    G = module.num_groups
    attend = attend_among_channels_qk if isinstance(module, ChannelAttentionQK) else attend_among_channels
    y_1PC, attention_1GDD = attend(module.qkv(x_BHWC.flatten(1, 2)).float(), G)
    y_PGD = y_1PC[0].unflatten(1, (G, -1))
    departure_PG = (y_PGD - y_PGD.mean(0)).square().mean(2).sqrt()
    return ChannelView(name, stage, attention_1GDD[0], departure_PG.T.reshape(G, H, W))
