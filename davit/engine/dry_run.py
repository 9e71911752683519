"""Measure the time and memory that a training would take, in about a minute whatever a step takes (--dry-run)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..commands import TookTooLong, time_limit
from ..data import Batch

log = logging.getLogger(__name__)

LONGEST_STEP = 30.0  # seconds; of a step that is predicted to take longer a part is measured
LIMIT = 60.0  # seconds, after which what is being measured is ended
COMPILING = 10  # times as long, where the first step compiles the model


@dataclass(frozen=True)
class DryRun:
    """What was measured, and what follows from it.

    Attributes:
        images_per_step: of all processes.
        images_measured: fewer, where a whole step would take too long; 0 where not even these were done in time.
        step_seconds: of a whole step; the least it takes, where the limit ended it.
        evaluation_seconds: of the whole validation data; None where it was not measured.
        hours: of all epochs with their evaluations; likewise the least.
        is_least: the limit ended the step or the evaluation.
        peak_memory_mb: of a process, with the images that were measured.
    """

    images_per_step: int
    images_measured: int
    step_seconds: float
    evaluation_seconds: float | None
    epochs: int
    hours: float
    is_least: bool
    peak_memory_mb: float

    def document(self) -> dict[str, Any]:
        """Return plain values, for --json."""
        return {"dry_run": asdict(self)}

    def __str__(self) -> str:
        """Say it in a sentence or two."""
        about = "over" if self.is_least else "about"
        long = f"{self.hours:.1f} hours" if self.hours >= 1 else f"{max(1, round(60 * self.hours))} min"
        hours = f"{about} {long} for {self.epochs} epoch{'s' if self.epochs > 1 else ''}"
        if not self.images_measured:
            took = f"{self.step_seconds:.0f} s did not suffice for a step, and it was ended"
        elif self.images_measured < self.images_per_step:
            took = (
                f"a step of {self.images_measured} in place of {self.images_per_step} images was measured, by which a "
                f"whole one takes {about} {self.step_seconds:.0f} s and more memory"
            )
        else:
            took = f"{self.step_seconds:.2f} s for a step"
        how = "included" if self.evaluation_seconds is not None else "not measured, and not included"
        return (
            f"Dry run: peak memory {self.peak_memory_mb:.0f} MB for each process; {took}, so {hours} "
            f"(evaluation {how}). Nothing was written."
        )


def limit_of(is_compiled: bool) -> float:
    """Return the seconds after which what is measured is ended."""
    return LIMIT * (COMPILING if is_compiled else 1)


def is_long(seconds: float) -> bool:
    """Tell whether a step takes so long that there is no second one."""
    return seconds > LONGEST_STEP


def timed(work: Callable[[], object], limit: float) -> float | None:
    """Return the seconds that some work takes; None where it was ended by the limit."""
    begun = time.perf_counter()
    try:
        with time_limit(limit):
            work()
    except TookTooLong:
        return None
    return time.perf_counter() - begun


def part_of(batch: Batch, count: int) -> Batch:
    """Take the first images of a batch, each with all its augmented copies."""
    whole = len(batch.indices)
    rows = torch.cat([torch.arange(count) + begin for begin in range(0, len(batch.targets), whole)])
    rows = rows.to(batch.images.device)
    return batch._replace(images=batch.images[rows], targets=batch.targets[rows], indices=batch.indices[:count])


def step_seconds(
    step: Callable[[Sequence[Batch]], object],
    batch: Batch,
    images: int,
    limit: float,
    slowest: Callable[[float], float],
) -> tuple[float, int] | None:
    """Measure a step on a few images, and on more where a whole one is predicted to take longer than `LONGEST_STEP`.

    Args:
        step: runs an optimizer step on micro-batches.
        batch: a micro-batch, of which some images are taken.
        images: of a whole step in this process.
        slowest: returns the most that any process says.

    Returns:
        The seconds of a whole step by that, and how many images were measured; None where the limit ended them.
    """
    count = min(2, len(batch.indices))  # mixup pairs them
    seconds = timed(lambda: step([part_of(batch, count)]), limit)
    if seconds is None:
        return None
    seconds = slowest(seconds)
    # as many as take half of the longest step
    more = min(len(batch.indices), int(count * LONGEST_STEP / 2 / max(seconds, 1e-6))) // 2 * 2
    if is_long(seconds * images / count) and more > count:
        again = timed(lambda: step([part_of(batch, more)]), limit)
        if again is not None:
            seconds, count = slowest(again), more
    return seconds * images / count, count
