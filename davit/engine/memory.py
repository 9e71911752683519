"""Fit a step into memory: how many images go through the model at once, so that the global batch stays as it is."""

from __future__ import annotations

import gc
import logging
import os
import random
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from timm.utils import dispatch_clip_grad

from ..data import Batch, EvalLoader
from ..text import some
from .distributed import is_out_of_memory
from .steps import Stepper, reason_of

log = logging.getLogger(__name__)

T = TypeVar("T")

AUTO = "auto"
_SHARE = 0.9  # of the memory that is left which a CPU run may fill: the rest of the process grows a little too
_LEAP = 8  # times the largest size that fitted is the next that is tried, at most
_NO_LIMIT = 1 << 60  # of version 1 of control groups


# ---- what the flags ask for ----


def divisors(share: int, *, even: bool = False) -> list[int]:
    """List the sizes of micro-batches that a process's share of a step can be divided into, rising.

    Args:
        even: of an even number of images alone, as mixup pairs them.
    """
    small = [size for size in range(1, int(share**0.5) + 1) if share % size == 0]
    found = sorted({*small, *(share // size for size in small)})
    return [size for size in found if size % 2 == 0] if even else found


def settle_batch(args: Namespace, processes: int, *, even: bool) -> bool:
    """Let --grad-accum-steps follow from --global-batch; return whether the micro-batch is to be found by trying.

    In that case --batch-size is the largest that may come of it, for now.

    Args:
        even: as in `divisors`.

    Raises:
        ValueError: the global batch cannot be divided into such micro-batches; the choices are named.
    """
    is_auto, total = args.batch_size == AUTO, args.global_batch
    if total is None:
        if is_auto:
            raise ValueError(
                "--batch-size auto needs --global-batch N, the images of one step, which the learning rate is for."
            )
        return False
    share, rest = divmod(total, processes)
    choices = divisors(share, even=even) if share and not rest else []
    if not choices:
        pairs = " in pairs, as mixup needs them (or pass --mixup 0 --cutmix 0)" if even else ""
        least = processes * (2 if even else 1)
        near = sorted({max(1, total // least) * least, -(-total // least) * least})
        raise ValueError(
            f"--global-batch {total} cannot be assigned to {processes} processes{pairs}: take "
            f"{' or '.join(map(str, near))}."
        )
    if is_auto:
        args.batch_size = choices[-1]
    elif share % args.batch_size:
        raise ValueError(
            f"--batch-size {args.batch_size} does not divide the {share} images that each of {processes} processes "
            f"has of --global-batch {total}: choose from {some(choices, 12)}, or auto."
        )
    accumulate = share // args.batch_size
    if not is_auto and args.grad_accum_steps not in (1, accumulate):
        log.warning(
            "--grad-accum-steps %d is changed to %d: --global-batch %d is %d images x %d processes x %d.",
            *(args.grad_accum_steps, accumulate, total, args.batch_size, processes, accumulate),
        )
    args.grad_accum_steps = accumulate
    return is_auto


def noted_batch(
    state: Mapping[str, Any], flags: Mapping[str, Any], choices: Sequence[int], is_auto: bool
) -> int | None:
    """Return the micro-batch that a state of ours continues with exactly; None where the flags ask for another.

    Args:
        flags: every flag's value now.
        choices: sizes that this run can have.
        is_auto: the flags leave it open; then images of another size than the state's ask for a new trial.
    """
    before = state.get("args") or {}
    size = state.get("micro_batch", before.get("batch_size"))
    if size not in choices:
        return None
    if is_auto:
        return size if before.get("input_size") == flags["input_size"] else None
    return size if before.get("batch_size") == flags["batch_size"] else None


def smaller(size: int, choices: Sequence[int]) -> int | None:
    """Return the largest of the choices that is at most half as many images; None where there is none."""
    return max((choice for choice in choices if choice <= size // 2), default=None)


def within_memory(loader: EvalLoader, work: Callable[[], T]) -> T:
    """Evaluate, in batches of half the size and from the beginning again for as long as memory does not suffice.

    Args:
        work: goes through the loader, and fails in every process if in one (`in_step`).

    Raises:
        ValueError: it does not suffice for one image.
    """
    while True:
        try:
            return work()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = reason_of(error)
            if loader.batch_size == 1:
                raise ValueError(
                    f"there is not enough memory to evaluate one image ({reason}): take smaller images (--img-size), "
                    "or --amp."
                ) from error
        free()
        loader.split(loader.batch_size // 2)
        log.warning(
            "Memory ran out in the evaluation (%s): it starts again with %d images at once.", reason, loader.batch_size
        )


def free() -> None:
    """Give memory that nothing uses any more back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# ---- how many fit ----


@dataclass
class Trial:
    """Run steps on random images, of micro-batches of a given size, and say whether they fit.

    Everything that takes memory in the run does so here: the model in its precision, compiled and with checkpointing
    as it is, the teacher, the average of the weights, gradients, the optimizer's own values, the images of a step.
    On a CPU, where the kernel ends a process that takes too much, a size is tried only if it fits by what smaller
    ones took.

    Attributes:
        optimizer: one like the run's, which is used up.
        shape: of an image as the model gets it.
        share: images of a step in this process.
        splits: augmented copies of each image in a batch, or 1.
        waiting: batches that workers hold ready.
        target: of one image.
    """

    stepper: Stepper
    optimizer: torch.optim.Optimizer
    shape: tuple[int, int, int]
    share: int
    splits: int = 1
    channels_last: bool = False
    waiting: int = 0
    target: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))

    def __post_init__(self) -> None:
        self.device = self.stepper.world.device
        self.dtype = self.stepper.precision.weights
        self.peaks: dict[int, int] = {}
        room = None if self.device.type == "cuda" else room_on_cpu()
        self.base = resident_bytes()
        self.limit = None if room is None else self.base + int(_SHARE * room)
        self.reason = ""

    def largest(self, choices: Sequence[int]) -> int:
        """Return the largest of rising sizes that fits in every process; all weights and random states stay.

        Raises:
            ValueError: not even the first fits.
        """
        with untouched(self.stepper):
            if not self._fits(choices[0]):
                height, width = self.shape[1:]
                raise ValueError(
                    f"there is not enough memory to train on {choices[0]} image{'s' * (choices[0] > 1)} of {height} x "
                    f"{width} at once ({self.reason}): take smaller ones (--img-size), --grad-checkpointing, --amp, "
                    "or a smaller model."
                )
            low, high = 0, len(choices)
            while high - low > 1:
                aim = high - 1 if high == len(choices) else (low + high) // 2
                # what is predicted is as good as the step from what was measured is small
                near = [i for i in range(low + 1, aim + 1) if choices[i] <= _LEAP * choices[low]]
                probe = max(near, default=low + 1)
                if self._fits(choices[probe]):
                    low = probe
                else:
                    high = probe
        return choices[low]

    def _fits(self, size: int) -> bool:
        """Try one size in all processes at once."""
        world = self.stepper.world
        predicted = self._predicted(size)
        if not world.everywhere(predicted is None or self.limit is None or predicted <= self.limit):
            self.reason = "it would take more than there is left of it"
            return False
        is_good = True
        try:
            with peak_of(self.device) as peak:
                self._step(size)
            self.peaks[size] = peak[0]
            is_good = self.limit is None or peak[0] <= self.limit
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.reason, is_good = reason_of(error), False
        for parameter in self.stepper.parameters:
            parameter.grad = None
        free()
        return world.everywhere(is_good)

    def _predicted(self, size: int) -> int | None:
        """Predict the peak of a larger size by the last two, on a straight line; None where none is known."""
        if not self.peaks:
            return None
        (first, low), (second, high) = [(0, self.base), *sorted(self.peaks.items())][-2:]
        slope = max(0.0, (high - low) / (second - first))
        ready = size * self.splits * 4 * int(np.prod(self.shape)) * self.waiting
        return int(high + slope * (size - second)) + ready

    def _step(self, size: int) -> None:
        stepper, accumulate = self.stepper, self.share // size
        layout = torch.channels_last if self.channels_last else torch.contiguous_format

        def pictures(count: int) -> torch.Tensor:
            images = torch.empty(count * self.splits, *self.shape, device=self.device, dtype=self.dtype)
            return images.to(memory_format=layout)

        def labels(count: int) -> torch.Tensor:
            return self.target.to(self.device).expand(count, *self.target.shape).clone()

        batches = [
            Batch(
                pictures(size).normal_(),
                labels(size * self.splits),
                torch.arange(size),
            )
            for _ in range(min(2, accumulate))
        ]
        # the rest of the step, and on CUDA the batch that is copied ahead
        rest = pictures(max(0, accumulate - 2) * size + (size if self.device.type == "cuda" else 0))
        if self.device.type == "cpu":
            rest.zero_()  # memory counts when it is written to
        stepper.gradients(batches)
        if stepper.clip_grad is not None:
            dispatch_clip_grad(stepper.clipped, stepper.clip_grad, stepper.clip_mode)
        self.optimizer.step()


@contextmanager
def untouched(stepper: Stepper) -> Iterator[None]:
    """Let the body train a stepper's bare model; then put back weights, buffers, modes and random states."""
    device, trainable = stepper.world.device, stepper.trainable
    tensors = [*trainable.parameters(), *trainable.buffers()]
    kept = [tensor.detach().to("cpu", copy=True) for tensor in tensors]
    modes = [(module, module.training) for module in trainable.modules()]
    wrapped, states = stepper.forward, (random.getstate(), np.random.get_state())
    is_parallel = isinstance(wrapped, torch.nn.parallel.DistributedDataParallel)
    stepper.use(wrapped.module if is_parallel else wrapped)  # type: ignore[arg-type]
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            stepper.train()
            yield
    finally:
        stepper.use(wrapped)
        random.setstate(states[0])
        np.random.set_state(states[1])
        with torch.no_grad():
            for tensor, value in zip(tensors, kept, strict=True):
                tensor.copy_(value)
        for parameter in stepper.parameters:
            parameter.grad = None
        for module, mode in modes:
            module.training = mode
        free()


# ---- memory of a CPU ----


def room_on_cpu(root: Path = Path("/")) -> int | None:
    """Return the bytes that this process may still take: what the machine and its control groups leave, shared alike
    by the processes of a job on this machine; None where nothing tells.

    Args:
        root: where proc/ and sys/ lie.
    """
    rooms = [room for room in (_available(root), *_control_groups(root)) if room is not None]
    return max(0, min(rooms)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if rooms else None


def _available(root: Path) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    return None


def _control_groups(root: Path) -> Iterator[int]:
    """Yield what each limit of this process's control groups, of either version, leaves."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                top, limit, used, cache = "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
            elif "memory" in controllers.split(","):
                top, limit, used = "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
                cache = "total_inactive_file"
            else:
                continue
            # in a container the path may be that on the host, while the container's own group is at the top
            place = Path(path.lstrip("/"))
            for group in (root / top / place, *(root / top / parent for parent in place.parents)):
                with suppress(OSError, ValueError, KeyError):
                    most = int((group / limit).read_text())
                    if most < _NO_LIMIT:
                        facts = dict(row.split() for row in (group / "memory.stat").read_text().splitlines())
                        yield most - int((group / used).read_text()) + int(facts[cache])


def resident_bytes(field: str = "VmRSS") -> int:
    """Return this process's memory, or its peak as ``VmHWM``; 0 where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return 1024 * int(line.split()[1])
    return 0


@contextmanager
def peak_of(device: torch.device) -> Iterator[list[int]]:
    """Measure the peak of this process's memory in the body, in bytes; 0 with CUDA, whose errors tell enough."""
    peak = [0]
    if device.type == "cuda":
        yield peak
        torch.cuda.synchronize(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    except OSError:
        done = threading.Event()

        def look() -> None:
            while not done.is_set():
                peak[0] = max(peak[0], resident_bytes())
                time.sleep(0.002)

        watcher = threading.Thread(target=look, daemon=True)
        watcher.start()
        try:
            yield peak
        finally:
            done.set()
            watcher.join()
        return
    yield peak
    peak[0] = resident_bytes("VmHWM")
