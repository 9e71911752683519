"""One optimizer step: what happens between a global batch and new weights."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.data import Mixup
from timm.models import model_parameters
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn

from ..data import Batch
from ..seeding import seed_everything
from .distributed import World
from .nonfinite import OverflowCount
from .precision import Precision


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


class Stepper:
    """The parts that turn batches into new weights, and one method that does.

    Args:
        model: the bare model, which owns the weights.
        forward: the same for the forward pass: compiled and wrapped for data parallelism.
    """

    def __init__(
        self,
        args: Namespace,
        model: nn.Module,
        forward: nn.Module,
        loss: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        world: World,
        mixup: Mixup | None,
        ema: ModelEmaV3 | None,
    ):
        self.args = args
        self.model = model
        self.forward = forward
        self.loss = loss
        self.optimizer = optimizer
        self.precision = precision
        self.world = world
        self.mixup = mixup
        self.ema = ema
        self.scaler = torch.amp.GradScaler(world.device.type, enabled=precision.needs_scaler)
        self.overflows = OverflowCount()
        self.updates = 0
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        # adaptive clipping leaves the head alone (Brock et al. 2021), as in timm's script
        self.clipped = list(model_parameters(model, exclude_head=args.clip_mode == "agc"))

    def step(
        self,
        micro_batches: Sequence[Batch],
        epoch: int,
        step: int,
        stop_asked: bool,
        on_nonfinite: Callable[[float, float, Batch], Exception],
    ) -> StepResult:
        """Run one optimizer step on this process's share of a global batch.

        Args:
            stop_asked: whether this process was told to stop; any process's word is every process's result.
            on_nonfinite: makes the exception to raise from (loss, gradient norm, the first guilty micro-batch).
        """
        seed_everything(self.args.seed, epoch, step, self.world.rank)
        losses, hits = [], []
        batches = [self._mixed(batch) for batch in micro_batches]
        for number, batch in enumerate(batches):
            forward = self.forward
            wait = isinstance(forward, nn.parallel.DistributedDataParallel) and number < len(batches) - 1
            with forward.no_sync() if wait else nullcontext():  # type: ignore[operator]
                with self.precision.autocast():
                    output = forward(batch.images)
                    loss = self.loss(output, batch.targets)
                self.scaler.scale(loss / len(batches)).backward()
            losses.append(loss.detach().float())
            labels = batch.targets if batch.targets.dim() == 1 else batch.targets.argmax(1)
            hits.append((output.detach().argmax(1) == labels).float().mean())
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        # one exchange and one wait a step: mean loss and accuracy, and whether anyone is to stop
        mine = torch.stack([torch.stack(losses).mean(), torch.stack(hits).mean(), norm.new_tensor(stop_asked)])
        total, hit, stops = self.world.sum(mine.double()).tolist()
        skipped = self._check(losses, norm, total, batches, on_nonfinite)
        if self.args.clip_grad is not None and not skipped:
            dispatch_clip_grad(self.clipped, self.args.clip_grad, self.args.clip_mode)
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

    def _check(
        self,
        losses: list[Tensor],
        norm: Tensor,
        total: float,
        batches: list[Batch],
        on_nonfinite: Callable[[float, float, Batch], Exception],
    ) -> bool:
        """Whether the step is skipped for an fp16 overflow; raises for any other non-finite number."""
        values = [*torch.stack(losses).tolist(), float(norm)]
        if np.isfinite(values).all():
            self.overflows.reset()
            return False
        bad = next((i for i, value in enumerate(values[:-1]) if not np.isfinite(value)), None)
        # an overflow of scaled gradients is the scaler's to mend, unless it has nothing left to lower
        if np.isfinite(total) and self.precision.needs_scaler and self.overflows.bearable(self.scaler.get_scale()):
            return True
        where = 0 if bad is None else bad
        raise on_nonfinite(values[where], values[-1], batches[where])

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "updates": self.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty where the run was not in fp16
            self.scaler.load_state_dict(state["scaler"])
        self.updates = state["updates"]


# ---- sums of an epoch ----


class EpochTotals:
    """Sums over an epoch's steps, kept over an interruption."""

    def __init__(self, **sums: float):
        self.steps = int(sums.get("steps", 0))
        self.samples = int(sums.get("samples", 0))
        self.loss_sum = float(sums.get("loss_sum", 0.0))
        self.top1_sum = float(sums.get("top1_sum", 0.0))
        self.norm_sum = float(sums.get("norm_sum", 0.0))
        self.waited = float(sums.get("waited", 0.0))
        self.seconds = float(sums.get("seconds", 0.0))

    def add(self, loss: float, top1: float, grad_norm: float, samples: int, waited: float, seconds: float) -> None:
        self.steps += 1
        self.samples += samples
        self.loss_sum += loss * samples
        self.top1_sum += top1 * samples
        self.norm_sum += grad_norm
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
