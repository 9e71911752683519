"""Show how far a pass over data has come: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from time import perf_counter
from typing import Any, TextIO

from torch import Tensor
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

log = logging.getLogger(__name__)

_RATE_SECONDS = 15.0  # images/s and the time left are those of about so long
_REFRESH_SECONDS = 0.2
_BAR = "{desc} {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt}{postfix}"

_FORMATS: Mapping[str, Callable[[float], str]] = {
    "loss": lambda v: f"loss {v:.4f}",
    "top1": lambda v: f"top-1 {v:.2f} %",
    "top5": lambda v: f"top-5 {v:.2f} %",
    "lr": lambda v: f"lr {v:.3g}",
    "grad_norm": lambda v: f"grad norm {v:.3g}",
    "data_share": lambda v: f"waiting for data {v:.0%}",
}
_BEFORE_RATE = ("loss", "top1", "top5")  # where a narrow terminal cuts the rest off


class Progress:
    """Show steps done, the latest numbers, images/s of the last seconds and the time left.

    Where `stream` is a terminal: one bar, redrawn a few times per second, removed by `close` (the caller logs
    what the pass came to); log lines that the root logger sends to the console meanwhile appear above it.
    Elsewhere: a line through `logging` every `interval` steps and at the last one.

    Args:
        total: steps of the whole pass.
        label: what is counted, such as "epoch 3/299".
        images_per_step: images in a step, over all processes.
        interval: steps between two lines.
        start: steps already done, when a pass is resumed.
        stream: standard error where None.
        enabled: False for silence, on every process but the main one.
    """

    def __init__(
        self,
        total: int,
        label: str,
        *,
        images_per_step: int,
        interval: int = 50,
        start: int = 0,
        stream: TextIO | None = None,
        enabled: bool = True,
    ) -> None:
        self.total = total
        self.label = label
        self.images_per_step = images_per_step
        self.interval = interval
        self.done = start
        self.enabled = enabled
        self._numbers: dict[str, float | Tensor] = {}
        self._shown_at = start  # of plain lines
        self._marks = deque([(perf_counter(), start)])
        self._bar: _Bar | None = None
        self._drawn_at = perf_counter()
        self._open = ExitStack()
        stream = sys.stderr if stream is None else stream
        if enabled and stream.isatty():
            look: dict[str, Any] = {"leave": False, "dynamic_ncols": True, "bar_format": _BAR}
            self._bar = self._open.enter_context(_Bar(total=total, initial=start, desc=label, file=stream, **look))
            self._open.enter_context(logging_redirect_tqdm(tqdm_class=_Bar))

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, steps: int = 1, **numbers: float | Tensor | None) -> None:
        """Count `steps` more, and keep `numbers`, which stay until they are replaced.

        loss, top1 and top5 (percent), lr, grad_norm, data_share (0 to 1, of the time) have a format of their
        own; any other is shown under its name. A tensor of one element is read only when it is shown, so that
        a device is not waited for at each step. None is not shown.
        """
        if not self.enabled:
            return
        before, self.done = self.done, self.done + steps
        self._numbers.update({name: value for name, value in numbers.items() if value is not None})
        now = perf_counter()
        self._mark(now)
        if self._bar is not None:
            if now - self._drawn_at >= _REFRESH_SECONDS:
                self._drawn_at = now
                self._bar.n = self.done
                self._bar.set_postfix_str(", ".join(self._parts()))
        elif self.done // self.interval > before // self.interval or self.done >= self.total > before:
            self._log_line()

    def close(self) -> None:
        """End the display; a pass that stopped between two lines gets its last one. Safe to repeat."""
        if self.enabled and self._bar is None and self.done > self._shown_at:
            self._log_line()
        self._open.close()
        self.enabled = False

    def _log_line(self) -> None:
        self._shown_at = self.done
        share = f" ({self.done / self.total:.0%})" if self.total else ""
        log.info("%s: %s", self.label, ", ".join([f"step {self.done}/{self.total}{share}", *self._parts()]))

    def _mark(self, now: float) -> None:
        """Keep a step's time; the oldest mark is the youngest that is `_RATE_SECONDS` old, if any is."""
        if len(self._marks) > 1 and now - self._marks[-2][0] < _REFRESH_SECONDS:
            self._marks.pop()
        self._marks.append((now, self.done))
        while len(self._marks) > 2 and now - self._marks[1][0] >= _RATE_SECONDS:
            self._marks.popleft()

    def _parts(self) -> list[str]:
        """Write the latest numbers as text, the most wanted first."""
        (begun, first), (now, last) = self._marks[0], self._marks[-1]
        rate = (last - first) / (now - begun) if now > begun else 0.0  # steps/s
        speed = []
        if rate > 0:
            left = tqdm.format_interval(max(0, self.total - self.done) / rate)
            images = rate * self.images_per_step
            speed = [f"{images:.0f} images/s" if images >= 100 else f"{images:.3g} images/s", f"{left} left"]
        text = {name: self._text(name, float(value)) for name, value in self._numbers.items()}
        head = [text.pop(name) for name in _BEFORE_RATE if name in text]
        return [*head, *speed, *text.values()]

    def _text(self, name: str, value: float) -> str:
        if name == "loss" and self._bar is None:
            return f"loss {value:.6f}"  # a log is for comparing runs, a bar for a glance
        return _FORMATS[name](value) if name in _FORMATS else f"{name} {value:.4g}"


class _Bar(tqdm):
    monitor_interval = 0  # no thread: data workers are forked from this process
