"""Run one optimizer step: what happens between a global batch and new weights."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any, ClassVar

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
from .distributed import DataParallel, StarvedError, World, is_out_of_memory
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

    #: Whether a sample can be right or wrong, so that a step has an accuracy.
    has_accuracy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.scaler = self._new_scaler()
        self.overflows = 0  # steps in a row that were skipped
        self.trainable = trained_by(self.task, self.model)
        self.use(self.forward)
        if self.task is not None:
            self.teacher = digest_of(self.task)
        synchronised = any(isinstance(module, nn.SyncBatchNorm) for module in self.trainable.modules())
        self.has_sync_bn = synchronised and self.world.size > 1
        self.parameters = [p for p in self.trainable.parameters() if p.requires_grad]
        # adaptive clipping leaves the head alone (Brock et al. 2021), as in timm's script
        self.clipped = list(model_parameters(self.model, exclude_head=self.clip_mode == "agc"))
        if self.trainable is not self.model:
            student = {id(parameter) for parameter in self.model.parameters()}
            self.clipped += [p for p in self.trainable.parameters() if id(p) not in student]

    def _new_scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler(self.world.device.type, enabled=self.precision.needs_scaler)

    def use(self, forward: nn.Module) -> None:
        """Take another wrapping of the same model for the forward pass."""
        self.forward = forward
        if self.task is not None:
            self.task.trainable_module = forward

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
            StarvedError: memory did not suffice for it, in some process. Weights, buffers, moments and scale are those
                from before the step, so that it can be repeated in smaller micro-batches.
        """
        seed_everything(self.seed, epoch, step, self.world.rank)
        kept = [buffer.clone() for buffer in self.trainable.buffers()]
        if isinstance(self.forward, DataParallel):
            self.forward.averaged.count = 0
        reason = ""
        try:
            batches, losses, hits = self.gradients(micro_batches)
            self.scaler.unscale_(self.optimizer)
            norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
            mine = torch.stack([torch.stack(losses).mean(), torch.stack(hits).mean(), norm.new_tensor(stop_asked)])
            mine = torch.cat([mine.double(), mine.new_zeros(1, dtype=torch.float64)])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if self.has_sync_bn:  # the others wait in a batch norm, where nothing can be made up for
                raise ValueError(
                    f"memory ran out in a job with --sync-bn ({reason_of(error)}), which cannot repeat the step: "
                    "lower --batch-size."
                ) from error
            reason = reason_of(error)
        if reason:  # the error is gone by here, and with it what it held
            batches, losses, hits = [], [], []
            self._clear()
            if isinstance(self.forward, DataParallel):
                self.forward.finish()
            mine = torch.tensor([0, 0, 0, 1], dtype=torch.float64, device=self.world.device)
        # one exchange and one wait a step: mean loss and accuracy, whether anyone is to stop, or lacks memory
        total, hit, stops, starved = self.world.sum(mine).tolist()
        if starved:
            batches, losses, hits = [], [], []
            self._take_back(kept)
            raise StarvedError(reason or "in another process")
        skipped = self._is_overflow(losses, norm, total, batches, on_nonfinite)
        try:
            self._update(skipped)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise ValueError(  # some weights may have changed: no step to repeat
                f"there is not enough memory for the optimizer ({reason_of(error)}): lower --batch-size, or take "
                "another --opt."
            ) from error
        size = self.world.size
        samples = sum(len(batch.indices) for batch in batches) * size
        return StepResult(total / size, 100 * hit / size, float(norm), samples, skipped, stops > 0)

    def _update(self, skipped: bool) -> None:
        """Change the weights by their gradients, and their average."""
        if self.clip_grad is not None and not skipped:
            dispatch_clip_grad(self.clipped, self.clip_grad, self.clip_mode)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if not skipped:
            self.updates += 1
            if self.ema is not None:
                self.ema.update(self.model, step=self.updates)

    def gradients(self, micro_batches: Sequence[Batch]) -> tuple[list[Batch], list[Tensor], list[Tensor]]:
        """Add up the gradients of micro-batches; return them as they were mixed, their losses and their accuracies."""
        losses, hits = [], []
        batches = [self._mixed(batch) for batch in micro_batches]
        for number, batch in enumerate(batches):
            forward = self.forward
            wait = isinstance(forward, nn.parallel.DistributedDataParallel) and number < len(batches) - 1
            with forward.no_sync() if wait else nullcontext():  # type: ignore[operator]
                with self.precision.autocast():
                    loss, hit = self._loss_of(forward, batch)
                self.scaler.scale(loss / len(batches)).backward()
            losses.append(loss.detach().float())
            hits.append(hit)
        return batches, losses, hits

    def _loss_of(self, forward: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute the loss of a micro-batch, and the share of its samples that are right."""
        if self.task is None:
            output = forward(batch.images)
            if self.precision.weights != torch.float32:
                output = output.float()  # 16 bits are too few for the loss
            loss = self.loss(output, batch.targets)
        else:
            result = self.task(batch.images, batch.targets)
            output, loss = result["output"], result["loss"]
        first = output.detach().argmax(1)
        if self.multilabel:
            right = batch.targets.gather(1, first[:, None])[:, 0] >= 0.5
        else:
            right = first == (batch.targets if batch.targets.dim() == 1 else batch.targets.argmax(1))
        return loss, right.float().mean()

    def _clear(self) -> None:
        """Let the gradients go, and what a step that failed has left in memory."""
        for parameter in self.parameters:
            parameter.grad = None
        gc.collect()
        if self.world.device.type == "cuda":
            torch.cuda.empty_cache()

    def _take_back(self, kept: list[Tensor]) -> None:
        """Undo what a step that is not finished has changed.

        Args:
            kept: the buffers, such as batch norm's statistics, from before.
        """
        self._clear()
        for buffer, value in zip(self.trainable.buffers(), kept, strict=True):
            buffer.copy_(value)
        scaler = self._new_scaler()  # which has unscaled nothing yet
        if self.scaler.is_enabled():
            scaler.load_state_dict(self.scaler.state_dict())
        self.scaler = scaler
        if isinstance(self.forward, DataParallel):  # a backward pass that broke off leaves it waiting for the rest
            bare = self.forward.module
            self.use(bare)
            gc.collect()  # its hooks on the parameters end with it
            self.use(DataParallel(bare, self.world.device))
        self.train()

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
                log.warning("The teacher's weights are others than when the checkpoint was saved.")
            saved = state.get("projection") or {}
            for name, tensor in self._projection().items():
                if name in saved:
                    tensor.copy_(saved[name])
                else:
                    log.warning("The checkpoint has no %s, which starts again.", name)
        return same


def reason_of(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return str(error).partition("\n")[0] or type(error).__name__


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
        log.warning("%d parameters have no moments in the checkpoint and begin without: %s.", len(new), some(new))
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
