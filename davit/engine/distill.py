"""Train with a teacher: its logits or features are a second target, by timm's distillation tasks."""

from __future__ import annotations

import hashlib
import logging
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.task import (
    DistillationTeacher,
    FeatureDistillationTask,
    LogitDistillationTask,
    TokenDistillationTask,
    TrainingTask,
)
from torch import Tensor, nn

from ..data import in_other_order
from ..text import some
from .load_model import ModelOptions, load_model
from .teachers import Teacher, named_for_transformers, open_transformers

log = logging.getLogger(__name__)

TASKS: Mapping[str, type[TrainingTask]] = {
    "logits": LogitDistillationTask,
    "features": FeatureDistillationTask,
    "token": TokenDistillationTask,
}


class SizedTeacher(nn.Module):
    """A teacher that gets images of its own size, and gives classes in the student's order.

    Args:
        size: (H, W) to which images of another size are resampled.
        order: the teacher's index of each of the student's classes; None where both have the same order.
    """

    def __init__(self, model: nn.Module, size: tuple[int, int], order: Sequence[int] | None = None) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.size, self.order = size, None if order is None else list(order)
        self.num_features: int = getattr(model, "head_hidden_size", 0) or getattr(model, "num_features", 0)

    def _sized(self, image_BCHW: Tensor) -> Tensor:
        if image_BCHW.shape[-2:] == self.size:
            return image_BCHW
        return F.interpolate(image_BCHW, self.size, mode="bicubic", antialias=True)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.model(self._sized(image_BCHW))
        return logits_BK if self.order is None else logits_BK[:, self.order]

    def forward_features(self, image_BCHW: Tensor) -> Tensor:
        """Return what the teacher hands to its head."""
        features: Tensor = self.model.forward_features(self._sized(image_BCHW))  # type: ignore[operator]
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the pooled features (B, C) with ``pre_logits``, else the logits."""
        pooled: Tensor = self.model.forward_head(x, pre_logits=pre_logits)  # type: ignore[operator]
        return pooled


def build_task(
    args: Namespace, model: nn.Module, loss: nn.Module, class_names: Sequence[str], config: Mapping[str, Any]
) -> TrainingTask | None:
    """Build the task of --teacher around a student and its loss, on the student's device; None without a teacher.

    Args:
        class_names: of the data.
        config: how images are prepared for the student.

    Raises:
        ValueError: the teacher cannot be had, or does not fit the student.
    """
    if not args.teacher:
        if args.distill:
            raise ValueError(f"--distill {args.distill} needs a teacher: give --teacher NAME or a checkpoint.")
        return None
    how, device = args.distill or "logits", next(model.parameters()).device
    loaded = _load(args.teacher, device)
    _check(args.teacher, how, loaded, model, len(class_names), config)
    height, width = loaded.config["input_size"][-2:]
    order = None if how == "features" else _order(args.teacher, loaded, class_names)
    teacher = SizedTeacher(loaded.model, (height, width), order)
    options = {} if how == "features" else {"temperature": args.distill_temperature}
    if how == "features" and args.distill_temperature != 1:
        log.warning(
            "--distill-temperature %g does nothing with --distill features; it is for logits and token.",
            args.distill_temperature,
        )
    weights = {"distill_loss_weight": args.distill_weight, "task_loss_weight": args.task_weight}
    wrapped = DistillationTeacher(teacher, device=device)
    task = TASKS[how](model, wrapped, loss, **weights, **options, device=device, verbose=False)
    # timm takes both from the models; the student's are those of the run
    for buffer, source in ((wrapped, loaded.config), (task, config)):
        for kind in ("mean", "std"):
            name = f"{kind}_kd" if buffer is wrapped else f"student_{kind}"
            values = torch.tensor(source[kind], device=device, dtype=torch.float32).view(1, -1, 1, 1)
            setattr(buffer, name, values)
    log.info(
        "Distilling %s of %s, which sees %s px: loss %g x task + %g x distillation.",
        *(how, loaded.name, "x".join(map(str, teacher.size)), args.task_weight, args.distill_weight),
    )
    return task


def digest_of(task: TrainingTask) -> str:
    """Return a hash of a teacher's weights."""
    digest = hashlib.sha256()
    for name, tensor in task.teacher.model.state_dict().items():
        flat = tensor.detach().cpu().contiguous().flatten()  # a count of a batch norm has no dimension
        digest.update(name.encode() + flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def trained_by(task: TrainingTask | None, model: nn.Module) -> nn.Module:
    """Return the module whose parameters are trained: the student, or with it a projection of its features."""
    if task is None:
        return model
    trainable: nn.Module = task.trainable_module
    return trainable


def parameter_name(name: str) -> str:
    """Return a trained parameter's name in the student; that of a projection stays as it is."""
    return name.removeprefix("student.")


def _load(teacher: str, device: torch.device) -> Teacher:
    is_name = timm.is_model(teacher.partition(".")[0]) and not Path(teacher).exists()
    try:
        if not is_name and (name := named_for_transformers(teacher)) is not None:
            return open_transformers(name, device)
        loaded = load_model(teacher if is_name else None, None if is_name else Path(teacher), ModelOptions(), device)
    except ValueError as error:
        raise ValueError(f"--teacher {teacher}: {error}") from error
    num_classes = getattr(loaded.model, "num_classes", 0)
    return Teacher(loaded.name, loaded.model, loaded.config, loaded.class_names, num_classes)


def _order(name: str, loaded: Teacher, class_names: Sequence[str]) -> list[int] | None:
    """Find the teacher's index of each class of the data, where both have the same names in different orders.

    Names that differ in case, or by spaces, hyphens and underscores, are the same.
    """
    theirs = loaded.class_names
    if theirs is None or list(theirs) == list(class_names):
        return None
    plain, ours = (["".join(filter(str.isalnum, one)).casefold() for one in names] for names in (theirs, class_names))
    if in_other_order(theirs, class_names):
        plain, ours = list(theirs), list(class_names)
    if len(set(ours)) == len(ours) and sorted(plain) == sorted(ours):
        order = [plain.index(one) for one in ours]
        if order == list(range(len(order))):
            return None
        log.info("--teacher %s has the same classes in another order; they are matched by name.", name)
        return order
    unknown = [one for one, spelled in zip(class_names, ours, strict=True) if spelled not in plain]
    log.warning(
        "--teacher %s knows no %s, by name; its classes are taken in the order of their indices.",
        *(name, some(unknown)),
    )
    return None


def _check(
    name: str, how: str, loaded: Teacher, model: nn.Module, num_classes: int, config: Mapping[str, Any]
) -> None:
    theirs = loaded.num_classes
    if how != "features" and theirs != num_classes:
        raise ValueError(
            f"--teacher {name} tells {theirs} classes apart, and the data have {num_classes}: give a teacher that was "
            "trained on these classes, or --distill features."
        )
    bands, wanted = config["input_size"][0], loaded.config["input_size"][0]
    if bands != wanted:
        raise ValueError(f"--teacher {name} takes images of {wanted} bands, and the student of {bands}.")
    lacking = [one for one in ("forward_features", "forward_head") if not hasattr(loaded.model, one)]
    if how == "features" and lacking:
        raise ValueError(f"--distill features: the teacher {name} has no {' and no '.join(lacking)}; take logits.")
    if how == "token" and not hasattr(model, "set_distilled_training"):
        raise ValueError(
            f"--distill token: {type(model).__name__} has no distillation token, as timm's deit_*_distilled_* have; "
            "take logits or features."
        )
