"""Define DaViT as the backbone of a detector or a segmentor: the same stages, one normalised map per level."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .model import DualAttentionStages, init_weights


class DaViTPyramid(DualAttentionStages):
    """Return the maps of several stages of DaViT, each normalised by a norm of its own (``norm0`` ...).

    Stages and norms that no output needs do not exist, so that every parameter gets a gradient.

    Args:
        out_indices: stages whose maps are returned, in ascending order; a negative one counts from the end.
        frozen_stages: -1 freezes nothing, 0 the stem, k the first k stages and their output norms. What is frozen has
            no gradients, and no drop path in training.
        grad_checkpointing: keep only the inputs of blocks for the backward pass.
        stages: the arguments of `DualAttentionStages`.

    Shapes:
        input (B, in_chans, H, W), any H and W of at least one pixel; output one NCHW map for each of
        ``out_indices``, (B, embed_dims[i], H / 4 / 2^i, W / 4 / 2^i) rounded up at each stage, in
        channels-last memory.
    """

    def __init__(
        self,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        grad_checkpointing: bool = False,
        norm_layer: Callable[[int], nn.Module] = nn.LayerNorm,
        weight_init: str = "",
        **stages: Any,
    ):
        super().__init__(norm_layer=norm_layer, weight_init=weight_init, **stages)
        self.out_indices = _checked_levels(out_indices, self.num_stages)
        if not -1 <= frozen_stages <= self.num_stages:
            raise ValueError(f"frozen_stages={frozen_stages} must be from -1 (nothing) to {self.num_stages} (all).")
        self.frozen_stages = frozen_stages
        needed = max(self.out_indices) + 1
        self.patch_embeds = self.patch_embeds[:needed]
        self.main_blocks = self.main_blocks[:needed]
        self.num_features = [self.embed_dims[level] for level in self.out_indices]
        for level in self.out_indices:
            self.add_module(f"norm{level}", norm_layer(self.embed_dims[level]))
        init_weights(self, weight_init)
        self.set_grad_checkpointing(grad_checkpointing)
        self.train(self.training)

    @torch.jit.ignore
    def _frozen_modules(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        frozen: list[nn.Module] = [self.patch_embeds[0]]
        for stage in range(min(self.frozen_stages, len(self.main_blocks))):
            frozen += [self.patch_embeds[stage], self.main_blocks[stage]]
            if stage in self.out_indices:
                frozen.append(getattr(self, f"norm{stage}"))
        return frozen

    @torch.jit.ignore
    def train(self, mode: bool = True) -> "DaViTPyramid":
        """Switch to training mode, except for the frozen stages."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval().requires_grad_(False)
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.forward_levels(self.forward_stages(x))

    def forward_levels(self, maps: list[Tensor]) -> tuple[Tensor, ...]:
        """Normalise the levels among the maps that `forward_stages` returned; give them as NCHW."""
        return tuple(getattr(self, f"norm{level}")(maps[level]).permute(0, 3, 1, 2) for level in self.out_indices)


def _checked_levels(out_indices: Sequence[int], num_stages: int) -> tuple[int, ...]:
    levels = tuple(level + num_stages if level < 0 else level for level in out_indices)
    if not levels or list(levels) != sorted(set(levels)) or not 0 <= levels[0] <= levels[-1] < num_stages:
        raise ValueError(
            f"out_indices={tuple(out_indices)} must name stages of 0 to {num_stages - 1}, each once and ascending."
        )
    return levels
