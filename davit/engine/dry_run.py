"""Measure the time and memory that a training would take, in about a minute whatever a step takes (--dry-run)."""

from __future__ import annotations

import contextvars
import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..commands import OK, TookTooLong, time_limit
from ..data import Batch
from .distributed import World

log = logging.getLogger(__name__)

LONGEST_STEP = 30.0  # seconds; of a step that is predicted to take longer a part is measured
LIMIT = 60.0  # seconds, after which what is being measured is ended
COMPILING = 10  # times as long, where the first step compiles the model
_POLL = 0.1  # seconds
_GRACE = 2.0  # seconds in which the main process of a job says what was found


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
            took = f"a step did not end within {self.step_seconds:.0f} s and was stopped"
        elif self.images_measured < self.images_per_step:
            took = (
                f"a step of {self.images_measured} instead of {self.images_per_step} images was measured; a whole one "
                f"would take {about} {self.step_seconds:.0f} s, and more memory"
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


class Watch:
    """End a job of several processes as soon as one of them has worked or waited for too long.

    An alarm cannot do so: Python hears it between two operations, and a process that waits for another one in a
    collective operation never comes to the next. So a thread of each process looks at the job's store.
    """

    def __init__(self, world: World, say: Callable[[], object]) -> None:
        """Begin to watch; all processes of the job do so together.

        Args:
            say: tells what is known when the job is ended; called in the main process, once.
        """
        assert world.store is not None
        self._store, self._is_main, self._say = world.store, world.is_main, say
        self._key = f"davit/too_long/{world.broadcast(uuid.uuid4().hex)}"
        self._deadline = math.inf
        self._over = threading.Event()
        self._ending = threading.Lock()
        watch = contextvars.copy_context().run  # where standard output is
        threading.Thread(target=watch, args=(self._watch,), daemon=True).start()

    @contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """End the job if the body takes longer."""
        self._deadline = time.monotonic() + seconds
        try:
            yield
        finally:
            self._deadline = math.inf

    def close(self) -> None:
        """Stop watching; where the job is being ended, wait for that."""
        with self._ending:
            self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(_POLL):
            if time.monotonic() > self._deadline:
                self._store.set(self._key, "1")
            if not self._store.check([self._key]):
                continue
            with self._ending:
                if self._over.is_set():
                    return
                if self._is_main:
                    self._say()
                    time.sleep(5 * _POLL)  # the others still read the store, which this process may hold
                else:
                    time.sleep(_GRACE)
                os._exit(OK)  # the other threads may wait for ever


def timed(work: Callable[[], object], limit: float, watch: Watch | None = None) -> float | None:
    """Return the seconds that some work takes, or None if the limit stopped it.

    In several processes the watch ends the whole job instead.
    """
    begun = time.perf_counter()
    try:
        with time_limit(limit) if watch is None else watch.limit(limit):
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
    watch: Watch | None = None,
) -> tuple[float, int] | None:
    """Measure a step on a few images, and on more where a whole one is predicted to take longer than `LONGEST_STEP`.

    Args:
        step: runs an optimizer step on micro-batches.
        batch: a micro-batch, of which some images are taken.
        images: of a whole step in this process.
        slowest: returns the most that any process says.
        watch: of a job of several processes.

    Returns:
        The seconds of a whole step by that, and how many images were measured; None where the limit ended them.
    """
    count = min(2, len(batch.indices))  # mixup pairs them
    seconds = timed(lambda: step([part_of(batch, count)]), limit, watch)
    if seconds is None:
        return None
    seconds = slowest(seconds)
    # as many as take half of the longest step
    more = min(len(batch.indices), int(count * LONGEST_STEP / 2 / max(seconds, 1e-6))) // 2 * 2
    if is_long(seconds * images / count) and more > count:
        again = timed(lambda: step([part_of(batch, more)]), limit, watch)
        if again is not None:
            seconds, count = slowest(again), more
    return seconds * images / count, count
