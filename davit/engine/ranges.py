"""What the values of flags may be: what argparse cannot see, said before anything takes time."""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Sequence

import torch

_COUNTS = {  # flag -> the least whole number
    **dict.fromkeys(("epochs", "batch_size", "grad_accum_steps", "log_interval", "img_size", "lr_cycle_limit"), 1),
    **dict.fromkeys(("checkpoint_hist", "validation_batch_size_multiplier"), 1),
    **dict.fromkeys(("start_epoch", "warmup_epochs", "cooldown_epochs", "patience_epochs"), 0),
    **dict.fromkeys(("recovery_interval", "mixup_off_epoch", "workers"), 0),
}
_NOT_NEGATIVE = ("lr", "warmup_lr", "min_lr", "weight_decay", "mixup", "cutmix", "color_jitter", "opt_eps", "momentum")
_POSITIVE = ("clip_grad", "crop_pct", "layer_decay", "decay_epochs", "decay_rate", "lr_cycle_mul")
_SHARES = ("mixup_prob", "mixup_switch_prob", "smoothing", "model_ema_decay")


def check_flags(args: Namespace) -> None:
    """Raises `ValueError` naming the first flag of train.py whose value makes no sense, and what it may be."""
    for name, least in _COUNTS.items():
        require_number(name, getattr(args, name), least, math.inf, f"a number of {least} or more")
    for name in _NOT_NEGATIVE:
        require_number(name, getattr(args, name), 0, math.inf, "a number of 0 or more")
    for name in _POSITIVE:
        require_number(name, getattr(args, name), math.ulp(0.0), math.inf, "a number above 0; leave it out for none")
    for name in _SHARES:
        require_number(name, getattr(args, name), 0, 1, "a share between 0 and 1")
    _require_length("opt_betas", args.opt_betas, (2, 3))
    _require_length("cutmix_minmax", args.cutmix_minmax, (2,))
    if args.opt_betas:
        for beta in args.opt_betas:
            require_number("opt_betas", beta, 0, 1, "numbers between 0 and 1")
    check_backend(args.torchcompile)


def check_backend(name: str | None) -> None:
    """Raises `ValueError` where --torchcompile names no backend of torch.compile."""
    if name and name not in torch.compiler.list_backends(exclude_tags=()):
        known = ", ".join(torch.compiler.list_backends())
        raise ValueError(f"--torchcompile {name!r} is unknown; choose from {known}.")


def require_number(name: str, value: float | None, least: float, most: float, wanted: str) -> None:
    """Raises `ValueError` for a value that is not `wanted`: outside of `least` to `most`, or not finite."""
    if value is not None and not (least <= value <= most and math.isfinite(value)):
        raise ValueError(f"--{name.replace('_', '-')} {value} is not {wanted}.")


def _require_length(name: str, values: Sequence[float] | None, lengths: tuple[int, ...]) -> None:
    if values and len(values) not in lengths:
        wanted = " or ".join(map(str, lengths))
        raise ValueError(f"--{name.replace('_', '-')} {' '.join(map(str, values))}: {wanted} numbers are needed.")
