"""Register `DaViTPyramid` as a backbone of MMDetection and MMSegmentation, with the arguments of their configs."""

from __future__ import annotations

import inspect
import logging
import re
from typing import Any

from mmengine.logging import print_log
from mmengine.registry import MODELS

from .. import kernels
from ..checkpoint import LoadReport, load_checkpoint
from ..model import DualAttentionStages
from ..pretrained import PUBLISHED, load_pretrained, read_source
from ..pyramid import DaViTPyramid
from ..text import did_you_mean
from ..variants import VARIANTS

# the keywords of the pyramid and of its stages, except the one that has another name in configs
_PYRAMID = dict.fromkeys(
    name
    for cls in (DaViTPyramid, DualAttentionStages)
    for name, parameter in inspect.signature(cls).parameters.items()
    if parameter.kind is not parameter.VAR_KEYWORD and name != "grad_checkpointing"
)
_OWN = ("variant", "with_cp", "init_cfg", "accelerate")
_NORM = re.compile(r"norm\d+\.")  # of a level


@MODELS.register_module(name="DaViT", force=True)
class DaViTBackbone(DaViTPyramid):
    """The pyramid, registered as ``DaViT`` in mmengine's root registry, which serves both mmdet and mmseg.

    Args:
        variant: a name in `VARIANTS`, which gives widths, depths, heads and window; None for DaViT's defaults.
        with_cp: gradient checkpointing; the ecosystem's name for it.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)``, or None for random weights. The checkpoint is a
            classifier's or a backbone's, of ours, the original's or timm's, or one of `PUBLISHED` by name.
        accelerate: let kernels compute the blocks where they can (`davit.accelerate`).
        kwargs: those of `DaViTPyramid`, which replace the variant's: embed_dims, depths, num_heads, window_size,
            drop_path_rate, cpe_act, ffn, out_indices, frozen_stages ...

    Raises:
        ValueError: an argument or its value is unknown.
    """

    def __init__(
        self,
        variant: str | None = None,
        with_cp: bool = False,
        init_cfg: dict[str, Any] | None = None,
        accelerate: bool = True,
        **kwargs: Any,
    ):
        for name in kwargs:
            if name not in _PYRAMID:
                hint = did_you_mean(name, [*_PYRAMID, *_OWN], limit=1)
                raise ValueError(f"the backbone has no argument {name!r}; {hint}It has {', '.join(_PYRAMID)}.")
        if variant is not None:
            if variant not in VARIANTS:
                hint = did_you_mean(variant, VARIANTS)
                raise ValueError(f"the backbone has no variant {variant!r}; {hint}There are {', '.join(VARIANTS)}.")
            kwargs = {**VARIANTS[variant].model_kwargs(), **kwargs}
        super().__init__(grad_checkpointing=with_cp, **kwargs)
        if accelerate:
            kernels.accelerate(self)
        if init_cfg is not None and (init_cfg.get("type") != "Pretrained" or not init_cfg.get("checkpoint")):
            raise ValueError(
                f"init_cfg={dict(init_cfg)!r}: DaViT initialises itself, so this is "
                "dict(type='Pretrained', checkpoint=FILE) or None."
            )
        self.init_cfg = init_cfg
        self.is_init = False

    def init_weights(self) -> None:
        """Load the checkpoint of ``init_cfg``; mmengine calls this once, when the detector is built for training.

        Raises:
            CheckpointError: the file cannot be read, or does not fill every layer of the stages that a DaViT has.
        """
        if self.is_init or self.init_cfg is None:
            return
        source = str(self.init_cfg["checkpoint"])
        report = load_pretrained(self, source) if source in PUBLISHED else load_checkpoint(self, read_source(source))
        self._log_filled(report)
        self.is_init = True

    def _log_filled(self, report: LoadReport) -> None:
        """Say what a checkpoint filled; a warning names tensors that an edit added to the stages."""
        stages = {name: tensor.numel() for name, tensor in self.state_dict().items() if not _NORM.match(name)}
        added = sorted(stages.keys() & report.missing)  # `load_checkpoint` allows only such to be missing
        share = 1 - sum(stages[name] for name in added) / sum(stages.values())
        new = [*sorted(set(report.missing) - stages.keys()), *added]
        text = (
            f"Backbone: {100 * share:.4g} % of its stages ({sum(stages.values()):,} parameters) filled from "
            f"{report.origin}{'; new: ' if new else ''}{', '.join(new)}."
        )
        print_log(text, logger="current", level=logging.WARNING if added else logging.INFO)
