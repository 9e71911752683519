"""Say which numbers make sense: the one table for flags, options of Python callers, and what a checkpoint notes.

A number outside its limits is refused before it hangs a loop, fills the memory or is blamed on an image.
"""

from __future__ import annotations

import argparse
import itertools
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

MOST_CLASSES = 1_000_000
MOST_SIDE = 8192  # pixels of a side of a square image as the model sees it
MOST_VALUES = 3 * MOST_SIDE**2  # of one such image, with its bands
MOST_YAML = 1 << 20  # bytes of a recipe
MOST_NOTED = 2048  # pixels of a side that a checkpoint may ask for, and nobody else

_MOST_ITEMS = 10_000  # of its values, counted as often as they are referred to
_MOST_DEPTH = 16
_MOST_SIGNS = 4096  # of one text


@dataclass(frozen=True)
class Limits:
    """Take numbers from `least` to `most`; as an argparse type it converts a text.

    Attributes:
        whole: whole numbers only.
        zero: also 0, which is below `least`.
        nargs: a list of so many numbers, as argparse counts them; None: one number.
        fits: what is wrong with a list as a whole, as the end of "... must", or None.
    """

    least: float
    most: float
    whole: bool = False
    zero: bool = False
    nargs: int | str | None = None
    fits: Callable[[Sequence[float]], str | None] | None = None

    @property
    def __name__(self) -> str:  # argparse calls a type by it
        return "number"

    def __call__(self, text: str) -> float:
        try:
            value: float = int(text) if self.whole else float(text)
        except ValueError:
            value = math.nan
        if not self.has(value):
            raise argparse.ArgumentTypeError(f"{_short(text)} is not {self}")
        return value

    def has(self, value: object) -> bool:
        """Return whether a value is one of these numbers."""
        kind = numbers.Integral if self.whole else numbers.Real
        if not isinstance(value, kind) or isinstance(value, bool):
            return False
        real: Any = value
        return bool(self.least <= real <= self.most or (self.zero and real == 0))

    def why_not(self, value: object) -> str | None:
        """Say what a value, or a list where `nargs` asks for one, must be; None where it is that."""
        values: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
        if self.nargs is None and isinstance(value, list | tuple):
            return f"be {self}"
        if self.nargs is not None and not isinstance(value, list | tuple):
            return f"be a list of numbers, each {self}"
        if not all(map(self.has, values)):
            return f"be {self}" if self.nargs is None else f"hold numbers, each {self}"
        if isinstance(self.nargs, int) and len(values) != self.nargs:
            return f"hold {self.nargs} numbers"
        return self.fits(values) if self.fits is not None and isinstance(value, list | tuple) else None

    def __str__(self) -> str:
        low, high = (str(int(end)) if self.whole else f"{end:g}" for end in (self.least, self.most))
        return f"{'0 or ' * self.zero}a {'whole ' * self.whole}number from {low} to {high}"


class _CheckedList(argparse.Action):
    """Store a list of numbers that fits as a whole."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: Any = None
    ) -> None:
        assert isinstance(self.type, Limits)
        if (wanted := self.type.why_not(values)) is not None:
            raise argparse.ArgumentError(self, f"{' '.join(f'{value:g}' for value in values)} must {wanted}")
        setattr(namespace, self.dest, values)


def number(name: str) -> dict[str, Any]:
    """Return the keywords of `add_argument` for the numeric flag whose argument is called `name` in `NUMBERS`."""
    limits = NUMBERS[name]
    return {"type": limits, **({} if limits.nargs is None else {"nargs": limits.nargs, "action": _CheckedList})}


def check_numbers(values: Mapping[str, Any], said_by: str = "") -> None:
    """Check those of `values` that are in `NUMBERS`; None and what is empty say nothing.

    Args:
        said_by: the file that says so, for the message.

    Raises:
        ValueError: one is outside its limits.
    """
    for name, value in values.items():
        limits = NUMBERS.get(name)
        if limits is None or value is None or (isinstance(value, list | tuple | str) and not value):
            continue
        if (wanted := limits.why_not(value)) is not None:
            notes = f"{said_by} notes " if said_by else ""
            raise ValueError(f"{notes}`{name}={short(value)}`, which must {wanted}.")


def short(value: object, length: int = 80) -> str:
    """Write a value for a message, however large or deep it is."""
    return _short(value) if isinstance(value, str) else _cut(_written(value, length), length)


def _written(value: object, room: int) -> str:
    """Write no more of a nest than fits."""
    if room <= 0:
        return "..."
    if isinstance(value, dict):
        parts: list[str] = []
        for key, inner in value.items():
            parts.append(f"{_written(key, room)}: {_written(inner, room - sum(map(len, parts)) - 8)}")
            if sum(map(len, parts)) > room:
                break
        return "{" + ", ".join(parts) + "}"
    if isinstance(value, list | tuple):
        parts = []
        for inner in value:
            parts.append(_written(inner, room - sum(map(len, parts)) - 8))
            if sum(map(len, parts)) > room:
                break
        return "[" + ", ".join(parts) + "]"
    if isinstance(value, int) and value.bit_length() > 300:
        return f"a whole number of {value.bit_length()} bits"
    return _short(value) if isinstance(value, str) else repr(value)


def _short(text: str) -> str:
    return repr(text) if len(text) <= 80 else f"{text[:60]!r}... ({len(text)} characters)"


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length + 20 else f"{text[:length]}..."


# ---- what only fits as a whole ----


def _ascending(values: Sequence[float]) -> str | None:
    return None if list(values) == sorted(values) else "have the smaller number first"


def _rising(values: Sequence[float]) -> str | None:
    return None if all(a < b for a, b in itertools.pairwise(values)) else "rise from one to the next"


def _one_or_rising_pair(values: Sequence[float]) -> str | None:
    return "hold one number or two" if len(values) > 2 else _rising(values)


def _two_or_three(values: Sequence[float]) -> str | None:
    return None if len(values) in (2, 3) else "hold 2 or 3 numbers"


def _is_picture(shape: Sequence[float]) -> str | None:
    if shape[0] > NUMBERS["in_chans"].most:
        return f"begin with a number of bands, which is {NUMBERS['in_chans']}"
    if math.prod(shape) > MOST_VALUES:
        return f"be an image of at most {MOST_VALUES} values (bands x height x width), not {math.prod(shape)}"
    return None


def _one_or_two(values: Sequence[float]) -> str | None:
    return None if len(values) <= 2 else "hold one side, or height and width"


def _count(least: int, most: int) -> Limits:
    return Limits(least, most, whole=True)


_SIDE = _count(1, MOST_SIDE)
_SHARE = Limits(0, 1)
_RATE = Limits(0, 10_000)
_EPOCHS = _count(0, 1_000_000)
_INTERVAL = 2**31 - 1

# By the name of the argument, which flags, options of `davit.load` and checkpoints share.
NUMBERS: dict[str, Limits] = {
    # images
    "img_size": _SIDE,
    "input_size": Limits(1, 2**20, whole=True, nargs=3, fits=_is_picture),
    "input": Limits(1, 2**20, whole=True, nargs=3, fits=_is_picture),
    "shape": Limits(1, MOST_SIDE, whole=True, nargs="+", fits=_one_or_two),
    "size_multiple": _count(1, 1024),
    "tolerance": Limits(1e-9, 1.0),
    "in_chans": _count(1, 4096),
    "bit_depth": _count(1, 32),
    "percentiles": Limits(0, 100, nargs=2, fits=_rising),
    "crop_pct": Limits(0.1, 10),
    "mean": Limits(-1000, 1000, nargs="+"),
    "std": Limits(1e-6, 1000, nargs="+"),
    "num_classes": _count(1, MOST_CLASSES),
    # loading
    "batch_size": _count(1, 2**20),
    "validation_batch_size_multiplier": _count(1, 1024),
    "workers": _count(0, 1024),
    "local_rank": _count(-1, 65_535),
    "num_gpu": _count(0, 65_535),
    # parts of a data set
    "val": _SHARE,
    "test": _SHARE,
    # optimizer
    "opt_eps": _SHARE,
    "opt_betas": Limits(0, 1, nargs="+", fits=_two_or_three),
    "momentum": _SHARE,
    "weight_decay": Limits(0, 1000),
    "layer_decay": Limits(0.001, 1),
    "layer_decay_min_scale": _SHARE,
    "head_lr_scale": Limits(1e-6, 1e6),
    "lora": _count(1, 4096),
    "lora_alpha": Limits(0.001, 1e6),
    "distill_weight": Limits(0, 1e6),
    "task_weight": Limits(0, 1e6),
    "distill_temperature": Limits(0.01, 1000),
    "head_init_scale": Limits(0, 1e6),
    "head_init_bias": Limits(-1e6, 1e6),
    "clip_grad": Limits(1e-8, 1e12),
    "grad_accum_steps": _count(1, 65_536),
    "global_batch": _count(1, 2**26),
    # schedule; timm draws noise until it is below the limit, so that must not be far below the std
    "lr": _RATE,
    "warmup_lr": _RATE,
    "min_lr": _RATE,
    "lr_noise": Limits(0, 1, nargs="+", fits=_one_or_rising_pair),
    "lr_noise_pct": Limits(0.001, 1),
    "lr_noise_std": Limits(0, 10),
    "lr_cycle_mul": Limits(1, 100),
    "lr_cycle_limit": _count(1, 1000),
    "lr_cycle_decay": _SHARE,
    "lr_k_decay": Limits(0.01, 10),
    "epochs": _count(1, 1_000_000),
    "epoch_repeats": Limits(0, 1000),
    "start_epoch": _EPOCHS,
    "stop_epoch": _count(1, 1_000_000),
    "val_interval": _count(1, 1_000_000),
    "keep_epochs": _count(1, 1_000_000),
    "early_stop": _count(1, 1_000_000),
    "decay_epochs": Limits(0.01, 1_000_000),
    "decay_milestones": Limits(0, 1_000_000, whole=True, nargs="+", fits=_rising),
    "decay_rate": Limits(1e-6, 1),
    "warmup_epochs": _EPOCHS,
    "cooldown_epochs": _EPOCHS,
    "patience_epochs": _EPOCHS,
    # several labels an image, and the losses
    "threshold": Limits(1e-6, 1 - 1e-6),
    "bce_target_thresh": _SHARE,
    # parts of a model
    "freeze": _count(0, 1000),
    # augmentation
    "scale": Limits(1e-4, 1, nargs=2, fits=_ascending),
    "ratio": Limits(0.01, 100, nargs=2, fits=_ascending),
    "hflip": _SHARE,
    "vflip": _SHARE,
    "color_jitter": Limits(0, 10),
    "photometric": _SHARE,
    "zoom_out": _SHARE,
    "iou_crop": _SHARE,
    "aug_splits": _count(0, 16),
    "reprob": _SHARE,
    "recount": _count(1, 100),
    "mixup": Limits(0.001, 1000, zero=True),
    "cutmix": Limits(0.001, 1000, zero=True),
    "cutmix_minmax": Limits(0, 1, nargs=2, fits=_rising),
    "mixup_prob": _SHARE,
    "mixup_switch_prob": _SHARE,
    "mixup_off_epoch": _EPOCHS,
    "smoothing": _SHARE,
    "tta": _count(0, 1000),
    # regularisation, batch norm and averaging
    "drop": _SHARE,
    "drop_connect": _SHARE,
    "drop_path": _SHARE,
    "drop_block": _SHARE,
    "bn_momentum": _SHARE,
    "bn_eps": Limits(1e-12, 1),
    "model_ema_decay": _SHARE,
    # run, results, page
    "seed": _count(-(2**63), 2**63 - 1),
    "numpy_seed": _count(0, 2**32 - 1),
    "log_interval": _count(1, _INTERVAL),
    "recovery_interval": _count(0, _INTERVAL),
    "checkpoint_hist": _count(1, 1_000_000),
    "log_freq": _count(0, _INTERVAL),
    "topk": _count(1, MOST_CLASSES),
    "temperature": Limits(0.001, 100),
    "max_drop": Limits(-100, 100),
    "calibration": _count(1, 100_000),
    "severities": Limits(1, 5, whole=True, nargs="+", fits=_rising),
    "limit": _count(1, _INTERVAL),
    "sample": _count(1, _INTERVAL),
    "score_thr": _SHARE,
    "k": _count(1, MOST_CLASSES),
    "vote_temperature": Limits(0.001, 100),
    "count": _count(1, 1000),
    "port": _count(0, 65_535),
    "max_megabytes": _count(1, 4096),
    # service; Pillow warns of images beyond 89 megapixels
    "max_megapixels": Limits(0.001, 89),
    "max_batch": _count(1, 1024),
    "max_delay": Limits(0, 10_000),
    "max_queue": _count(1, 100_000),
    "max_files": _count(1, 1000),
    "timeout": Limits(0.01, 3600),
    "threads": _count(1, 1024),
}

# Of a model's constructor: how much a file or a flag may ask for. The rest of its numbers are finite and below 2^31.
_OF_A_MODEL: dict[str, Limits] = {
    "in_chans": NUMBERS["in_chans"],
    "num_classes": _count(0, MOST_CLASSES),
    "embed_dims": _count(1, 16_384),
    "embed_dim": _count(1, 16_384),
    "depths": _count(1, 512),
    "depth": _count(1, 512),
    "num_heads": _count(1, 1024),
    "window_size": _count(1, 4096),
    "patch_size": _count(1, 1024),
    "mlp_ratio": Limits(0.001, 64),
    "drop_rate": _SHARE,
    "drop_path_rate": _SHARE,
}


def check_model_kwargs(kwargs: object, said_by: str = "") -> None:
    """Check the arguments of a model's constructor as they come from a flag, a recipe or a checkpoint.

    Raises:
        ValueError: they are no dictionary, nested or long beyond use, or hold a number that makes no sense.
    """
    notes = f"{said_by} notes " if said_by else ""
    if not isinstance(kwargs, Mapping) or not all(isinstance(name, str) for name in kwargs):
        raise ValueError(f"{notes}`model_kwargs={short(kwargs)}`, which must be names and values.")
    for name, value in kwargs.items():
        if (reason := why_unbounded(value)) is not None:
            raise ValueError(f"{notes}`model_kwargs` with {short(name)}: {short(value)}, which {reason}.")
        limits = _OF_A_MODEL.get(name, Limits(-(2**31), 2**31))
        if name in ("in_chans", "num_classes") and value is not None and not limits.has(value):
            raise ValueError(f"{notes}`model_kwargs` with {name}: {short(value)}, which must be {limits}.")
        if name == "depths" and isinstance(value, list | tuple) and sum(_numbers_in(value)) > limits.most:
            raise ValueError(f"{notes}`model_kwargs` with {name}: {short(value)}, more than {limits.most} in all.")
        for one in _numbers_in(value):
            if not limits.has(one):
                raise ValueError(f"{notes}`model_kwargs` with {name}: {short(value)}, where each number is {limits}.")


def _numbers_in(value: object) -> list[float]:
    if isinstance(value, list | tuple):
        return [one for inner in value for one in _numbers_in(inner)]
    if isinstance(value, Mapping):
        return [one for inner in value.values() for one in _numbers_in(inner)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


# ---- YAML ----


class _Loader(yaml.SafeLoader):
    """Read YAML whose merge keys (``<<: *other``) do not multiply."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MOST_ITEMS:
            raise yaml.constructor.ConstructorError(None, None, f"more than {_MOST_ITEMS} lines", node.start_mark)


def read_yaml(text: str) -> Any:
    """Read YAML that a person may have written: of bounded size and depth, without objects.

    Raises:
        ValueError: it is no such YAML; the message is a part of a sentence, without the name of the file.
    """
    if len(text) > MOST_YAML:
        raise ValueError(f"it has {len(text):,} characters, and at most {MOST_YAML:,} are read")
    try:
        value = yaml.load(text, Loader=_Loader)  # noqa: S506 (derived from the safe one)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except (
        yaml.YAMLError,
        ValueError,
        OverflowError,
        TypeError,
    ) as error:  # a date of no day, a number of 5,000 digits
        raise ValueError(" ".join(str(error).split())[:300]) from None
    if (reason := why_unbounded(value)) is not None:
        raise ValueError(f"it {reason}")
    return value


def why_unbounded(value: object) -> str | None:
    """Say what a nest of dictionaries and lists has too much of; None where it is bounded.

    A value that is referred to twice counts twice, as it would when it is printed.
    """
    left = _MOST_ITEMS
    waiting = [(value, 0)]
    while waiting:
        inner, depth = waiting.pop()
        left -= 1
        if depth > _MOST_DEPTH:
            return f"is nested deeper than {_MOST_DEPTH}"
        if left < 0:
            return f"holds more than {_MOST_ITEMS} values"
        if isinstance(inner, Mapping):
            waiting += [(one, depth + 1) for pair in inner.items() for one in pair]
        elif isinstance(inner, list | tuple | set | frozenset):
            waiting += [(one, depth + 1) for one in inner]
        elif isinstance(inner, str | bytes) and len(inner) > _MOST_SIGNS:
            return f"holds a text of {len(inner)} signs"
        elif isinstance(inner, int) and inner.bit_length() > 256:
            return f"holds a whole number of {inner.bit_length()} bits"
    return None
