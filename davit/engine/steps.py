"""Run one optimizer step: what happens between a global batch and new weights."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from timm.data import Mixup
from timm.models import model_parameters
from timm.task import TrainingTask
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn

from ..data import Batch
from ..seeding import seed_everything
from ..text import some
from .distill import digest_of, parameter_name, trained_by
from .distributed import World
from .finetune import training_mode
from .precision import Precision

log = logging.getLogger(__name__)

MOST_OVERFLOWS = 100  # steps in a row that fp16 may skip with its scale at 1: scaling has no part in those

OnNonFinite = Callable[[float, float, Batch], Exception]
"""Makes the exception to raise from (loss, gradient norm, the first guilty micro-batch)."""


@dataclass
class StepResult:
    """What a step did, over all processes."""

    loss: float
    """Mean over the samples of the step, before clipping or averaging."""
    top1: float
    """Percent of the samples whose first class is their main label, mixed and augmented as they are."""
    grad_norm: float
    """L2 norm of the gradients before clipping."""
    samples: int
    skipped: bool
    """fp16 only: the gradients overflowed, the scale was lowered and the weights stayed."""
    stop_asked: bool
    """A process was told to stop."""


@dataclass(eq=False)
class Stepper:
    """The parts that turn batches into new weights, and one method that does.

    Attributes:
        model: the bare model, which owns the weights.
        forward: the same for the forward pass: compiled and wrapped for data parallelism.
        seed: of every random number; see `seed_everything`.
        clip_grad, clip_mode: as timm's `dispatch_clip_grad` takes them; None: no clipping.
        updates: steps that changed the weights.
        task: computes loss and outputs with a teacher; None for the loss alone.
        multilabel: a target is a row of several labels; then a sample counts as right where its first class is one.
    """

    model: nn.Module
    forward: nn.Module
    loss: nn.Module
    optimizer: torch.optim.Optimizer
    precision: Precision
    world: World
    mixup: Mixup | None
    ema: ModelEmaV3 | None
    seed: int
    clip_grad: float | None = None
    clip_mode: str = "norm"
    updates: int = 0
    task: TrainingTask | None = None
    multilabel: bool = False

    def __post_init__(self) -> None:
        self.scaler = torch.amp.GradScaler(self.world.device.type, enabled=self.precision.needs_scaler)
        self.overflows = 0  # steps in a row that were skipped
        self.trainable = trained_by(self.task, self.model)
        if self.task is not None:
            self.task.trainable_module = self.forward
            self.teacher = digest_of(self.task)
        self.parameters = [p for p in self.trainable.parameters() if p.requires_grad]
        # adaptive clipping leaves the head alone (Brock et al. 2021), as in timm's script
        self.clipped = list(model_parameters(self.model, exclude_head=self.clip_mode == "agc"))
        if self.trainable is not self.model:
            student = {id(parameter) for parameter in self.model.parameters()}
            self.clipped += [p for p in self.trainable.parameters() if id(p) not in student]

    def train(self) -> None:
        """Put the model into training mode, except its frozen layers."""
        training_mode(self.trainable, self.forward)

    def step(
        self, micro_batches: Sequence[Batch], epoch: int, step: int, stop_asked: bool, on_nonfinite: OnNonFinite
    ) -> StepResult:
        """Run one optimizer step on this process's share of a global batch.

        Args:
            stop_asked: whether this process was told to stop; any process's word is every process's result.

        Raises:
            Exception: that of `on_nonfinite`, for a loss or gradient that is not finite.
        """
        seed_everything(self.seed, epoch, step, self.world.rank)
        losses, hits = [], []
        batches = [self._mixed(batch) for batch in micro_batches]
        for number, batch in enumerate(batches):
            forward = self.forward
            wait = isinstance(forward, nn.parallel.DistributedDataParallel) and number < len(batches) - 1
            with forward.no_sync() if wait else nullcontext():  # type: ignore[operator]
                with self.precision.autocast():
                    if self.task is None:
                        output = forward(batch.images)
                        loss = self.loss(output, batch.targets)
                    else:
                        result = self.task(batch.images, batch.targets)
                        output, loss = result["output"], result["loss"]
                self.scaler.scale(loss / len(batches)).backward()
            losses.append(loss.detach().float())
            first = output.detach().argmax(1)
            if self.multilabel:
                right = batch.targets.gather(1, first[:, None])[:, 0] >= 0.5
            else:
                right = first == (batch.targets if batch.targets.dim() == 1 else batch.targets.argmax(1))
            hits.append(right.float().mean())
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        # one exchange and one wait a step: mean loss and accuracy, and whether anyone is to stop
        mine = torch.stack([torch.stack(losses).mean(), torch.stack(hits).mean(), norm.new_tensor(stop_asked)])
        total, hit, stops = self.world.sum(mine.double()).tolist()
        skipped = self._is_overflow(losses, norm, total, batches, on_nonfinite)
        if self.clip_grad is not None and not skipped:
            dispatch_clip_grad(self.clipped, self.clip_grad, self.clip_mode)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if not skipped:
            self.updates += 1
            if self.ema is not None:
                self.ema.update(self.model, step=self.updates)
        size = self.world.size
        samples = sum(len(batch.indices) for batch in batches) * size
        return StepResult(total / size, 100 * hit / size, float(norm), samples, skipped, stops > 0)

    def _mixed(self, batch: Batch) -> Batch:
        if self.mixup is None:
            return batch
        images, targets = self.mixup(batch.images, batch.targets)
        return batch._replace(images=images, targets=targets)

    def _is_overflow(
        self, losses: list[Tensor], norm: Tensor, total: float, batches: list[Batch], on_nonfinite: OnNonFinite
    ) -> bool:
        """Return whether fp16 gradients overflowed, so that the step is skipped; raise for other non-finite numbers.

        An infinite gradient norm with a finite loss is how `GradScaler` finds its scale, unless it lasts. A loss that
        is not finite is an error with a scaler too: the scale has no part in the forward pass.
        """
        values = [*torch.stack(losses).tolist(), float(norm)]
        if np.isfinite(values).all():
            self.overflows = 0
            return False
        self.overflows += 1
        is_finding_the_scale = self.overflows < MOST_OVERFLOWS or self.scaler.get_scale() > 1
        if np.isfinite(total) and self.precision.needs_scaler and is_finding_the_scale:
            return True
        guilty = next((i for i, value in enumerate(values[:-1]) if not np.isfinite(value)), 0)
        raise on_nonfinite(values[guilty], values[-1], batches[guilty])

    def state_dict(self) -> dict[str, Any]:
        """Gather what the next steps depend on, beside the weights."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "parameters": parameter_names(self.optimizer, self.trainable),
            "scaler": self.scaler.state_dict(),
            "updates": self.updates,
            **({} if self.task is None else {"teacher": self.teacher, "projection": self._projection()}),
        }

    def _projection(self) -> dict[str, Tensor]:
        """Return what is trained beside the model: the projection of its features, if there is one."""
        mine = {id(tensor) for tensor in self.model.state_dict(keep_vars=True).values()}
        state = self.trainable.state_dict(keep_vars=True)
        return {name: tensor.detach() for name, tensor in state.items() if id(tensor) not in mine}

    def load_state_dict(self, state: dict[str, Any], names: list[list[str]]) -> bool:
        """Put back what `state_dict` gathered; return whether the optimizer groups the parameters as then.

        Where it does not, each parameter gets its own moments by its name, and the groups' values (rates, decay) stay.

        Args:
            names: of the parameters in each group of the saved optimizer, as `parameter_names` gives them.

        Raises:
            ValueError: the optimizer's state does not fit.
        """
        same = names == parameter_names(self.optimizer, self.trainable)
        saved = state["optimizer"] if same else _regrouped(state["optimizer"], names, self.optimizer, self.trainable)
        self.optimizer.load_state_dict(saved)
        if state["scaler"]:  # empty where the run was not in fp16
            self.scaler.load_state_dict(state["scaler"])
        self.updates = state["updates"]
        if self.task is not None:
            if state.get("teacher") not in (None, self.teacher):
                log.warning("The teacher's weights are others than when the state was saved.")
            saved = state.get("projection") or {}
            for name, tensor in self._projection().items():
                if name in saved:
                    tensor.copy_(saved[name])
                else:
                    log.warning("The state has no %s, which begins anew.", name)
        return same


def parameter_names(optimizer: torch.optim.Optimizer, model: nn.Module) -> list[list[str]]:
    """Name the parameters of each group of an optimizer, in its order."""
    name_of = {id(parameter): parameter_name(name) for name, parameter in model.named_parameters()}
    return [[name_of[id(parameter)] for parameter in group["params"]] for group in optimizer.param_groups]


def _regrouped(
    saved: dict[str, Any], names: list[list[str]], optimizer: torch.optim.Optimizer, model: nn.Module
) -> dict[str, Any]:
    """Order the moments of a saved optimizer as another one groups the parameters; what has none is logged."""
    now, then = parameter_names(optimizer, model), [group["params"] for group in saved["param_groups"]]
    number_of = dict(zip(chain(*names), chain(*then), strict=True))
    groups = optimizer.state_dict()["param_groups"]
    numbers = dict(zip(chain(*now), chain(*(group["params"] for group in groups)), strict=True))
    if new := [name for name in numbers if name not in number_of]:
        log.warning("%d parameters have no moments in the state and begin without: %s.", len(new), some(new))
    if lost := [name for name in number_of if name not in numbers]:
        log.warning("The moments of %d parameters are left out, as they are not trained: %s.", len(lost), some(lost))
    moments = {number: saved["state"].get(number_of.get(name)) for name, number in numbers.items()}
    return {"state": {n: values for n, values in moments.items() if values is not None}, "param_groups": groups}


@dataclass
class EpochTotals:
    """Sums over an epoch's steps, kept over an interruption."""

    steps: int = 0
    samples: int = 0
    loss_sum: float = 0.0
    top1_sum: float = 0.0
    norm_sum: float = 0.0
    waited: float = 0.0
    seconds: float = 0.0

    def add(self, result: StepResult, waited: float, seconds: float) -> None:
        """Add a step that took so many seconds, `waited` of them for data."""
        self.steps += 1
        self.samples += result.samples
        self.loss_sum += result.loss * result.samples
        self.top1_sum += result.top1 * result.samples
        self.norm_sum += result.grad_norm
        self.waited += waited
        self.seconds += seconds

    @property
    def loss(self) -> float:
        """Mean over samples."""
        return self.loss_sum / max(1, self.samples)

    @property
    def top1(self) -> float:
        """Percent of the samples, as they were mixed and augmented."""
        return self.top1_sum / max(1, self.samples)

    @property
    def grad_norm(self) -> float:
        """Mean over steps."""
        return self.norm_sum / max(1, self.steps)

    @property
    def images_per_second(self) -> float:
        return self.samples / self.seconds if self.seconds else 0.0

    @property
    def data_share(self) -> float:
        """Share of the time spent waiting for data."""
        return self.waited / self.seconds if self.seconds else 0.0
