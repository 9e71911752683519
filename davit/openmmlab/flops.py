"""Count parameters and FLOPs of detectors and segmentors, as the published tables do.

One image, multiply-adds by fvcore, convention of `davit.complexity`. A two-stage detector's heads see 1000
proposals, and its mask head the first 100 of them, whatever the weights would propose. A segmentor is counted without
its auxiliary head, which only training has. RoIAlign, NMS and resizing are not counted.
"""

from __future__ import annotations

import logging
import warnings
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from ..commands import run_cli
from ..complexity import count_flops
from ..parsing.openmmlab import flops_parser
from ..parsing.results import give, json_alone, require_writable
from .config import faults_named, load_config

PROPOSALS, MASKS = 1000, 100
SIZES = {"mmdet": (800, 1280), "mmseg": (512, 2048)}  # height, width of the published tables


@dataclass(frozen=True)
class Cost:
    """What the model of one config costs.

    Attributes:
        size: (height, width) of the image.
        flops: multiply-adds.
        shares: multiply-adds of backbone, neck and heads.
    """

    config: str
    size: tuple[int, int]
    parameters: int
    flops: int
    shares: dict[str, int]

    def __str__(self) -> str:
        height, width = self.size
        return (
            f"{self.config}: {self.parameters / 1e6:.2f} M parameters, {self.flops / 1e9:.1f} GFLOPs at "
            f"{width} x {height} ({_said(self)})"
        )


class _Forward(nn.Module):
    """Compute all that a detector or segmentor computes for one image, with the proposals given."""

    def __init__(self, model: Any):
        super().__init__()
        self.backbone = model.backbone
        self.neck: nn.Module = model.neck if getattr(model, "with_neck", False) else nn.Identity()
        for name in ("rpn_head", "bbox_head", "decode_head", "roi_head"):
            if getattr(model, name, None) is not None:
                setattr(self, name, getattr(model, name))

    def forward(self, image: Tensor) -> list[Any]:
        levels = self.neck(self.backbone(image))
        single = [name for name in ("rpn_head", "bbox_head", "decode_head") if hasattr(self, name)]
        results = [getattr(self, name)(levels) for name in single]
        if hasattr(self, "roi_head"):
            head: Any = self.roi_head
            rois = _spread_rois(*map(float, image.shape[-2:]))
            cascade = isinstance(head.bbox_head, nn.ModuleList)
            for stage in [(number,) for number in range(len(head.bbox_head))] if cascade else [()]:
                results.append(head._bbox_forward(*stage, levels, rois))
                if head.with_mask:
                    results.append(head._mask_forward(*stage, levels, rois[:MASKS]))
        return results


def _spread_rois(height: float, width: float) -> Tensor:
    """Spread (PROPOSALS, 5) boxes over the image, from 16 pixels to all of it."""
    place = torch.linspace(0, 1, PROPOSALS)
    side = 16 + place * (min(height, width) - 16)
    left, top = place.flip(0) * (width - side), (place * 7 % 1) * (height - side)
    return torch.stack([torch.zeros_like(place), left, top, left + side, top + side], 1)


def cost_of(cfg: Any, name: str, size: tuple[int, int] | None = None) -> Cost:
    """Count the parameters and FLOPs of a config's model.

    Args:
        size: (height, width) of the image; by default that of the published tables.
    """
    init_default_scope(cfg.default_scope)
    size = size or SIZES[cfg.default_scope]
    cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model).eval()
    forward = _Forward(model)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of tracing
        counted = count_flops(forward, torch.zeros(1, 3, *size)).by_module()
    shares = {part: int(counted[part]) for part, _ in forward.named_children() if counted[part]}
    return Cost(name, size, sum(p.numel() for p in model.parameters()), int(counted[""]), shares)


def main(argv: Sequence[str] | None = None) -> int:
    """Run get_flops.py of mmdet/tools and mmseg/tools; returns the exit status."""

    def work() -> None:
        args = flops_parser().parse_args(argv)
        require_writable(args.output)
        with json_alone(args.json):
            found = list(_costs(args, list(args.config)))
            rows = [{**asdict(one), "size": f"{one.size[0]}x{one.size[1]}", "shares": _said(one)} for one in found]
            give(args, "\n".join(map(str, found)), list(map(asdict, found)), rows)

    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    return run_cli(work)


def _costs(args: Namespace, configs: Sequence[str]) -> Iterator[Cost]:
    size = (args.shape[0], args.shape[-1]) if args.shape else None
    for config in configs:
        args.config = config
        with faults_named(args):
            cfg = load_config(args)
        with faults_named(args, building=True):
            yield cost_of(cfg, Path(config).stem, size)


def _said(cost: Cost) -> str:
    return ", ".join(f"{name} {flops / 1e9:.1f}" for name, flops in cost.shares.items())
