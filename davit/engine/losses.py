"""Choose the loss of a training, and weigh its classes: timm's losses, by timm's names."""

from __future__ import annotations

import csv
import inspect
import io
import json
import logging
import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import Mixup
from timm.loss import CLASS_WEIGHT_METHOD_KINDS, MULTI_LABEL_LOSS_TYPES, compute_class_weights
from timm.loss import create_classification_loss as create_loss
from torch import Tensor, nn

from ..choices import MULTILABEL
from ..data import DataError, PictureDataset
from ..files import read_small
from ..limits import short
from ..text import as_line, some

log = logging.getLogger(__name__)

_MOST_BYTES = 1 << 26  # of a file of weights
_MOST_WEIGHT = 1e6
_AUTO = {True: ("neg_pos", 100.0), False: ("effective_num", None)}  # by whether there are several labels: the most
_OURS = ("loss_type", "multi_label", "smoothing", "soft_targets", "class_weight", "class_counts", "num_samples")
_NO_MIXING = "pass --mixup 0 --cutmix 0"


class WeightedCrossEntropy(nn.Module):
    """Cross-entropy in which each class has a weight, divided by the number of images.

    torch's own mean divides by the weights of the batch, so that it depends on which images meet in one.

    Args:
        weight: (K,) of each class.
        smoothing: of class indices; mixed targets are smoothed already.
    """

    weight: Tensor

    def __init__(self, weight: Tensor, smoothing: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.smoothing = smoothing

    def forward(self, logits_NK: Tensor, target: Tensor) -> Tensor:
        smoothing = self.smoothing if target.dim() == 1 else 0.0
        total = F.cross_entropy(logits_NK, target, self.weight, reduction="sum", label_smoothing=smoothing)
        return total / len(logits_NK)


def loss_of(args: Namespace) -> str:
    """Return timm's name of the loss that the flags ask for.

    Raises:
        ValueError: they contradict one another, or it is not for this task.
    """
    asked = {"asymmetric": "asl"}.get(args.loss, args.loss)
    for flag, means in (("jsd", "jsd"), ("bce_loss", "bce")):
        if getattr(args, flag):
            if asked not in ("auto", means):
                raise ValueError(f"--{flag.replace('_', '-')} and --loss {args.loss} ask for two losses; give one.")
            asked = means
    is_multilabel = args.task == MULTILABEL
    if asked == "auto":
        asked = "bce" if is_multilabel else "ce"
    if is_multilabel and asked not in MULTI_LABEL_LOSS_TYPES:
        flag = "--jsd" if args.jsd else f"--loss {asked}"
        raise ValueError(
            f"{flag} is for one class per image; with --task {MULTILABEL} take one of "
            f"{', '.join(MULTI_LABEL_LOSS_TYPES)}."
        )
    if not is_multilabel and asked in ("twoway", "zlpr", "db"):
        raise ValueError(f"--loss {asked} is for images with several labels: give --task {MULTILABEL}, or another.")
    if asked != "bce" and (args.bce_sum or args.bce_target_thresh is not None):
        flag = "--bce-sum" if args.bce_sum else f"--bce-target-thresh {args.bce_target_thresh:g}"
        raise ValueError(f"{flag} is for --loss bce, and the loss is {asked}; leave one out.")
    return str(asked)


def build_loss(args: Namespace, mixup: Mixup | None, train: PictureDataset | None = None) -> nn.Module:
    """Build the training loss that fits the task and the augmentation.

    Args:
        train: the training images, whose classes are counted where weights or the loss need it.

    Raises:
        ValueError: the flags contradict one another, or the classes cannot be counted.
    """
    if args.smoothing >= 1:
        raise ValueError(f"--smoothing {args.smoothing:g} leaves nothing of the labels: take less than 1.")
    loss, is_multilabel = loss_of(args), args.task == MULTILABEL
    if loss == "jsd" and args.aug_splits < 2:
        raise ValueError(f"{'--jsd' if args.jsd else '--loss jsd'} needs --aug-splits of 2 or more.")
    if mixup is not None and loss in ("asl", "twoway", "zlpr", "jsd") and not (loss == "asl" and is_multilabel):
        wanted = "labels that are not mixed" if is_multilabel else "one class per image"
        raise ValueError(f"--loss {loss} needs {wanted}: {_NO_MIXING}.")
    if loss in ("twoway", "zlpr") and args.smoothing:
        raise ValueError(f"--loss {loss} needs labels of 0 and 1: pass --smoothing 0.")
    options: dict[str, Any] = {**_checked(args.loss_kwargs), "smoothing": args.smoothing}
    if args.bce_sum:
        options["bce_sum"] = True
    if args.bce_target_thresh is not None:
        options["bce_target_thresh"] = args.bce_target_thresh
    if loss == "jsd":
        options["jsd_splits"] = args.aug_splits
    if loss == "db":
        counts, pictures = _counts(train, "--loss db")
        options |= {"class_counts": counts, "num_samples": pictures}
    if args.class_weights:
        kind, weights = class_weights(args, loss, train)
        if kind in options:
            raise ValueError(f"--class-weights and --loss-kwargs {kind}=... both weigh the classes; give one.")
        if loss == "ce":
            return WeightedCrossEntropy(weights, args.smoothing)
        options[kind] = weights
    try:
        found: nn.Module = create_loss(
            loss_type=loss, multi_label=is_multilabel, soft_targets=mixup is not None, **options
        )
    except (ValueError, TypeError, AssertionError) as error:
        raise ValueError(f"timm cannot make --loss {loss} of these flags: {error}") from error
    return found


def _checked(options: Mapping[str, Any]) -> dict[str, Any]:
    known = [name for name in inspect.signature(create_loss).parameters if name not in _OURS]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"--loss-kwargs {some(unknown)}: timm's losses take {', '.join(known)}.")
    return dict(options)


def _counts(train: PictureDataset | None, flag: str) -> tuple[list[int], int]:
    """Count the images of each class, and all."""
    counts = None if train is None else train.counts()
    if train is None or counts is None:
        raise ValueError(
            f"{flag} counts the images of each class, and this data set does not tell them: "
            "--class-weights FILE gives the weights themselves."
        )
    return counts.tolist(), len(train)


def class_weights(args: Namespace, loss: str, train: PictureDataset | None) -> tuple[str, Tensor]:
    """Compute or read the weights of --class-weights; they are logged.

    auto is for several labels per image the weight negatives / positives of a class's positives ("neg_pos"), but at
    most 100, for one class per image that of Cui et al. 2019 ("effective_num"). Those of one class per image have a
    mean of 1 over the images. A class without an image has no part in this and weighs 1, which is said.

    Returns:
        What timm calls them, "pos_weight" or "class_weight", and the weights (K,) float32.

    Raises:
        ValueError: the loss takes none, or the file cannot be used (`DataError`).
    """
    asked, is_multilabel = args.class_weights, args.task == MULTILABEL
    if loss not in (("bce", "asl") if is_multilabel else ("ce", "bce")):
        fitting = "bce and asl" if is_multilabel else "ce and bce"
        raise ValueError(f"--class-weights {asked} is for the losses {fitting}, not {loss}; take one of them.")
    if asked != "auto" and asked not in CLASS_WEIGHT_METHOD_KINDS:
        assert train is not None
        kind = "pos_weight" if is_multilabel else "class_weight"
        weights = read_weights(Path(asked), train.class_names)
        # --num-classes may leave room for classes that the data do not name
        weights = torch.cat([weights, torch.ones(max(0, train.width - len(weights)))])
        _say(asked, kind, weights, train.class_names)
        return kind, weights
    method, most = _AUTO[is_multilabel] if asked == "auto" else (asked, None)
    counts, pictures = _counts(train, f"--class-weights {asked}")
    assert train is not None
    number = torch.tensor(counts, dtype=torch.float64)
    there = number > 0
    kind, found = compute_class_weights(number[there], pictures, method=method, max_weight=most)
    if loss == "ce" and kind == "pos_weight":
        raise ValueError(f"--class-weights {method} weighs yes against no, which --loss bce has and ce has not.")
    if not is_multilabel:
        found = found / ((number[there] * found).sum() / number.sum())
    weights = torch.ones(len(counts))
    weights[there] = found.float()
    if not there.all():
        absent = [_name(train.class_names, index) for index in (~there).nonzero()[:, 0].tolist()]
        log.warning("Classes without a training image weigh 1: %s.", some(absent))
    said = f"{asked} ({method})" if asked == "auto" else asked
    _say(said, kind, weights, train.class_names)
    return kind, weights


def _say(what: str, kind: str, weights: Tensor, names: Sequence[str]) -> None:
    order = weights.argsort(descending=True, stable=True).tolist()
    shown = order if len(order) <= 12 else [*order[:6], *order[-6:]]
    listed = ", ".join(f"{_name(names, index)} {weights[index]:.3g}" for index in shown)
    log.info("Class weights %s, as timm's %s: %s.", what, kind, listed)


def _name(names: Sequence[str], index: int) -> str:
    return names[index] if index < len(names) else f"class {index}"


def read_weights(file: Path, names: Sequence[str]) -> Tensor:
    """Read a weight for each class, by its name: a csv of class,weight, or JSON {class: weight}.

    Raises:
        DataError: it cannot be read, a class is missing, unknown or there twice, or a weight is none.
    """
    try:
        text = read_small(file, _MOST_BYTES).decode("utf-8-sig")
        if file.suffix.lower() == ".json":
            found: Any = json.loads(text)
            if not isinstance(found, dict):
                raise ValueError("it is no object of names and weights")
            pairs = [(str(name), weight) for name, weight in found.items()]
        else:
            rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(text, newline="")) if row]
            rows = rows[1:] if rows and rows[0][-1].lower() == "weight" else rows
            pairs = [(row[0], row[1] if len(row) == 2 else None) for row in rows]
    except (OSError, ValueError, csv.Error, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        choices = ", ".join(("auto", *CLASS_WEIGHT_METHOD_KINDS))
        raise DataError(
            f"--class-weights {as_line(file)} cannot be used ({reason}): give {choices}, or a csv with class,weight"
        ) from error
    weights: dict[str, float] = {}
    for name, written in pairs:
        try:
            weight = math.nan if written is None or isinstance(written, bool) else float(written)
        except (TypeError, ValueError, OverflowError):
            weight = math.nan
        if not 0 <= weight <= _MOST_WEIGHT:
            raise DataError(
                f"--class-weights {as_line(file)}: {as_line(name)} has {short(written)}, and a weight is a number "
                f"from 0 to {_MOST_WEIGHT:g}"
            )
        if name in weights:
            raise DataError(f"--class-weights {as_line(file)} names {as_line(name)} twice")
        weights[name] = weight
    known = {*names}
    if unknown := [name for name in weights if name not in known]:
        raise DataError(f"--class-weights {as_line(file)} names {some(unknown)}, and the classes are {some(names)}")
    if missing := [name for name in names if name not in weights]:
        raise DataError(f"--class-weights {as_line(file)} has no weight for {some(missing)}; each class needs one")
    return torch.tensor([weights[name] for name in names], dtype=torch.float32)
