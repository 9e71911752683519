"""A bar on a terminal, plain lines elsewhere."""

import fcntl
import io
import logging
import os
import pty
import re
import select
import struct
import termios
from collections.abc import Callable, Iterator
from typing import TextIO

import pytest
import torch

from davit.engine import progress as module
from davit.engine.progress import Progress


class Clock:
    """The module's clock, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "perf_counter", clock)
    return clock


class Terminal:
    """A pseudo-terminal and what was drawn on it."""

    def __init__(self, columns: int) -> None:
        self.master, slave = pty.openpty()
        self.resize(columns)
        self.stream: TextIO = os.fdopen(slave, "w")

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def read(self) -> str:
        self.stream.flush()
        seen = b""
        while select.select([self.master], [], [], 0.05)[0]:
            seen += os.read(self.master, 1 << 16)
        return seen.decode()

    def close(self) -> None:
        self.stream.close()
        os.close(self.master)


@pytest.fixture
def terminal() -> Iterator[Callable[[int], Terminal]]:
    made: list[Terminal] = []

    def make(columns: int = 120) -> Terminal:
        made.append(Terminal(columns))
        return made[-1]

    yield make
    for one in made:
        one.close()


def on_screen(drawn: str) -> list[str]:
    """The lines that stay, after every carriage return has overwritten."""
    lines = []
    for line in drawn.replace("\r\n", "\n").split("\n"):
        screen: list[str] = []
        for part in line.split("\r"):
            screen[: len(part)] = part
        lines.append("".join(screen).rstrip())
    return lines


def test_bar_shows_progress_numbers_speed_and_time_left(terminal: Callable[..., Terminal], clock: Clock) -> None:
    tty = terminal(160)
    bar = Progress(200, "epoch 3/299", images_per_step=32, stream=tty.stream)
    assert on_screen(tty.read())[-1].startswith("epoch 3/299   0%|")
    for step in range(1, 51):
        clock.now += 0.25
        bar.update(loss=5 / step, top1=42.5, lr=5e-4, grad_norm=1.25, data_share=0.071)
    line = on_screen(tty.read())[-1]
    # 4 steps/s of 32 pictures, 150 steps to go
    assert re.match(r"epoch 3/299  25%\|.{10,}\| 50/200, loss 0\.1000, top-1 42\.50 %, ", line)
    assert "128 images/s, 00:37 left" in line
    assert line.endswith("lr 0.0005, grad norm 1.25, waiting for data 7%")
    bar.close()
    assert on_screen(tty.read())[-1] == ""


def test_bar_is_one_line_and_fits_the_terminal_as_it_changes(terminal: Callable[..., Terminal], clock: Clock) -> None:
    tty = terminal(60)
    with Progress(1000, "epoch 0/9", images_per_step=8, stream=tty.stream) as bar:
        tty.read()
        for columns in (60, 200, 45):
            tty.resize(columns)
            for _ in range(3):
                clock.now += 1
                bar.update(loss=1.0, top1=1.0, top5=2.0, lr=1e-3, grad_norm=2.0, data_share=0.5)
            drawn = tty.read()
            assert "\n" not in drawn
            line = on_screen(drawn)[-1]
            assert 30 < len(line) <= columns
            assert ("waiting for data" in line) == (columns == 200)


def test_bar_does_not_redraw_every_step(terminal: Callable[..., Terminal], clock: Clock) -> None:
    tty = terminal()
    with Progress(10_000, "fast", images_per_step=1, stream=tty.stream) as bar:
        tty.read()
        for _ in range(10_000):
            clock.now += 0.001
            bar.update(loss=1.0)
        assert 40 <= tty.read().count("\r") <= 60


def test_log_lines_appear_above_the_bar(
    terminal: Callable[..., Terminal], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    tty = terminal()
    monkeypatch.setattr("sys.stderr", tty.stream)
    handler = logging.StreamHandler()
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        with Progress(10, "epoch", images_per_step=1) as bar:
            clock.now += 1
            bar.update(loss=1.0)
            logging.getLogger("davit.test").warning("a picture was bad")
            lines = on_screen(tty.read())
        assert lines[0] == "a picture was bad"
        assert lines[-1].startswith("epoch  10%|")
        assert len(lines) == 2
        assert handler in root.handlers
        tty.read()
        logging.getLogger("davit.test").warning("after")
        assert on_screen(tty.read()) == ["after", ""]
    finally:
        root.removeHandler(handler)


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == module.__name__]


def test_plain_lines_at_each_interval_and_at_the_end(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    stream = io.StringIO()
    with Progress(120, "epoch 1/9", images_per_step=64, interval=50, stream=stream) as lines:
        for step in range(1, 121):
            clock.now += 0.5
            lines.update(loss=step, top1=10.0, top5=50.0, peak_mb=1234.5)
    for line, step, left in zip(lines_of(caplog), (50, 100, 120), ("00:35", "00:10", "00:00"), strict=True):
        parts = [f"{step}/120", f"{step}.000000", "10.00 %", "50.00 %", "128 images/s", left, "peak_mb 1234"]
        assert re.search(".*".join(map(re.escape, ["epoch 1/9", *parts])), line)  # in this order
        assert "\r" not in line and "\n" not in line
    assert stream.getvalue() == ""


def test_resumed_pass_counts_from_where_it_was(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Progress(100, "epoch", images_per_step=10, interval=20, start=70, stream=io.StringIO()) as lines:
        for _ in range(30):
            clock.now += 1
            lines.update()
    assert [line.split(", ")[0] for line in lines_of(caplog)] == [
        "epoch: step 80/100 (80%)",
        "epoch: step 100/100 (100%)",
    ]
    assert "10 images/s, 00:20 left" in lines_of(caplog)[0]


def test_several_steps_at_once_and_an_early_end(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    lines = Progress(1000, "epoch", images_per_step=1, interval=50, stream=io.StringIO())
    for _ in range(3):
        clock.now += 1
        lines.update(33)
    assert [line.split(" ")[2] for line in lines_of(caplog)] == ["66/1000"]
    lines.close()
    lines.close()
    assert [line.split(" ")[2] for line in lines_of(caplog)] == ["66/1000", "99/1000"]


def test_speed_is_of_the_last_seconds(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with Progress(10_000, "epoch", images_per_step=1, interval=100, stream=io.StringIO()) as lines:
        for number in range(400):
            clock.now += 1.0 if number < 100 else 0.1  # ten times as fast after a slow start
            lines.update()
        clock.now += 60  # a step that takes a minute
        lines.update(100)
    rates = [float(re.search(r"([\d.]+) images/s", line)[1]) for line in lines_of(caplog)]  # type: ignore[index]
    assert rates[0] == pytest.approx(1, rel=0.05)
    assert rates[3] == pytest.approx(10, rel=0.05)
    assert rates[4] < 5


def test_tensors_are_read_only_when_shown(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    class Watched(torch.Tensor):
        read = 0

        def __float__(self) -> float:
            Watched.read += 1
            return float(self.item())

    caplog.set_level(logging.INFO)
    with Progress(100, "epoch", images_per_step=1, interval=25, stream=io.StringIO()) as lines:
        for _ in range(100):
            clock.now += 1
            lines.update(loss=torch.tensor(2.5).as_subclass(Watched))
    assert Watched.read == 4
    assert all("loss 2.500000" in line for line in lines_of(caplog))


def test_other_processes_are_silent(terminal: Callable[..., Terminal], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    tty = terminal()
    for stream in (tty.stream, io.StringIO()):
        with Progress(2, "epoch", images_per_step=1, interval=1, stream=stream, enabled=False) as silent:
            silent.update(loss=1.0)
            silent.update(loss=1.0)
    assert tty.read() == ""
    assert lines_of(caplog) == []


def test_interval_of_none_is_refused() -> None:
    with pytest.raises(ValueError, match="0"):
        Progress(1, "epoch", images_per_step=1, interval=0)
