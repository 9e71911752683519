"""Gather images of several requests into batches, for the one thread that runs the model."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .engine import Engine

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Done:
    """What came of one image.

    Attributes:
        output: of the model.
        waited: seconds between its arrival here and the start of its batch.
        took: seconds of the batch in the model.
        batch: images in it.
    """

    output: Any
    waited: float
    took: float
    batch: int


@dataclass
class _Waiting:
    kind: str
    prepared: Any
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Done]
    since: float = field(default_factory=time.monotonic)

    @property
    def sort(self) -> tuple[Any, ...]:
        """Images of one sort share a batch."""
        return self.kind, tuple(getattr(self.prepared, "shape", ()))


class Batcher:
    """Run a model in one thread, on what has arrived together.

    The first image of a batch waits for others at most `delay` seconds, and not at all when none is on its way.

    Args:
        size: images in a batch, at most.
        threads: of PyTorch in the model's thread; None leaves them.
        is_more_coming: tells whether an image is being read or decoded.
        observe: is told of each batch its images and seconds.
    """

    def __init__(
        self,
        engine: Engine,
        size: int,
        delay: float,
        *,
        threads: int | None = None,
        is_more_coming: Callable[[], bool] = lambda: True,
        observe: Callable[[int, float], None] = lambda pictures, seconds: None,
    ) -> None:
        self._engine = engine
        self._size = size if engine.batches else 1
        self._delay = delay
        self._threads = threads
        self._is_more_coming = is_more_coming
        self._observe = observe
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)

    def start(self) -> None:
        """Start the model's thread."""
        self._thread.start()

    def close(self, seconds: float = 10.0) -> None:
        """End the thread after its batch; what waits is never answered."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join(seconds)

    def is_alive(self) -> bool:
        """Tell whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, kind: str, prepared: Any) -> asyncio.Future[Done]:
        """Queue an image; a future that is cancelled takes it out again."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Done] = loop.create_future()
        with self._changed:
            self._waiting.append(_Waiting(kind, prepared, loop, future))
            self._changed.notify()
        return future

    def _work(self) -> None:
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        while (batch := self._next()) is not None:
            if batch:
                self._run(batch)

    def _next(self) -> list[_Waiting] | None:
        """Wait for a batch; None when there will be none, and none of its images where all were taken out."""
        with self._changed:
            while not self._waiting and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                return None
            until = self._waiting[0].since + self._delay
            while len(self._waiting) < self._size and not self._is_closed and self._is_more_coming():
                left = until - time.monotonic()
                if left <= 0:
                    break
                # an image that turns out to be none is not announced: look again soon
                self._changed.wait(min(left, 0.002))
            first = self._waiting[0].sort
            batch: list[_Waiting] = []
            others: deque[_Waiting] = deque()
            for one in self._waiting:
                if one.future.cancelled():
                    continue
                takes = one.sort == first and len(batch) < self._size
                (batch if takes else others).append(one)
            self._waiting = others
            return batch

    def _run(self, batch: Sequence[_Waiting]) -> None:
        begun = time.monotonic()
        try:
            outputs = self._outputs(batch)
        except Exception as error:
            for one in batch:
                _tell(one, one.future.set_exception, error)
            return
        took = time.monotonic() - begun
        self._observe(len(batch), took)
        for one, output in zip(batch, outputs, strict=True):
            _tell(one, one.future.set_result, Done(output, begun - one.since, took, len(batch)))

    def _outputs(self, batch: Sequence[_Waiting]) -> Sequence[Any]:
        kind, prepared = batch[0].kind, [one.prepared for one in batch]
        try:
            return self._engine.run(kind, prepared)
        except ValueError:  # of a program that was exported for another number of images
            if len(batch) == 1:
                raise
            return [self._engine.run(kind, [one])[0] for one in prepared]


def _tell(one: _Waiting, how: Callable[[Any], None], what: Any) -> None:
    """Call a future's method in its loop, unless nobody waits any more."""

    def call() -> None:
        if not one.future.done():
            how(what)

    try:
        one.loop.call_soon_threadsafe(call)
    except RuntimeError:  # the loop has ended
        log.debug("an answer came after the end")
