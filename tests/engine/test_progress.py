"""A bar on a terminal, plain lines elsewhere."""

import io
import logging
import re
from collections.abc import Callable

import pytest
import torch

from davit.engine import progress as module
from davit.engine.progress import Progress


class Clock:
    now = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The module's clock, moved by hand."""
    clock = Clock()
    monkeypatch.setattr(module, "perf_counter", lambda: clock.now)
    return clock


class Terminal(io.StringIO):
    """What was drawn on a terminal since the last look."""

    columns = 160

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 99

    def look(self) -> str:
        drawn = self.getvalue()
        self.seek(0)
        self.truncate()
        return drawn

    def lines(self) -> list[str]:
        """The lines that stay, after every carriage return has overwritten."""
        lines = []
        for line in self.look().split("\n"):
            screen: list[str] = []
            for part in line.split("\r"):
                screen[: len(part)] = part
            lines.append("".join(screen).rstrip())
        return lines


@pytest.fixture
def tty(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    terminal = Terminal()
    monkeypatch.setattr("os.get_terminal_size", lambda *_: (terminal.columns, 24))
    return terminal


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Tells the lines that progress has logged."""
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records if record.name == module.__name__]


def test_bar_shows_progress_numbers_speed_and_time_left(tty: Terminal, clock: Clock) -> None:
    with Progress(200, "epoch 3/299", images_per_step=32, stream=tty) as bar:
        assert tty.lines()[-1].startswith("epoch 3/299   0%|")
        for step in range(1, 51):
            clock.now += 0.25
            bar.update(loss=5 / step, top1=42.5, lr=5e-4, grad_norm=1.25, data_share=0.071)
        line = tty.lines()[-1]
        # 4 steps/s of 32 images, 150 steps to go
        assert re.match(r"epoch 3/299  25%\|.{10,}\| 50/200, loss 0\.1000, top-1 42\.50 %, ", line)
        assert "128 images/s, 00:37 left" in line
        assert line.endswith("lr 0.0005, grad norm 1.25, waiting for data 7%")
    assert tty.lines()[-1] == ""


def test_bar_is_one_line_that_fits_and_is_not_redrawn_every_step(tty: Terminal, clock: Clock) -> None:
    with Progress(10_000, "epoch 0/9", images_per_step=8, stream=tty) as bar:
        tty.look()
        for columns in (60, 200, 45):
            tty.columns = columns
            for _ in range(3):
                clock.now += 1
                bar.update(loss=1.0, top1=1.0, top5=2.0, lr=1e-3, grad_norm=2.0, data_share=0.5)
            (line,) = tty.lines()
            assert 30 < len(line) <= columns
            assert ("waiting for data" in line) == (columns == 200)
        for _ in range(5_000):
            clock.now += 0.001
            bar.update(loss=1.0)
        assert 20 <= tty.look().count("\r") <= 30


def test_log_lines_appear_above_the_bar(tty: Terminal, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", tty)
    root, handler = logging.getLogger(), logging.StreamHandler()
    root.addHandler(handler)
    try:
        with Progress(10, "epoch", images_per_step=1) as bar:
            clock.now += 1
            bar.update(loss=1.0)
            logging.getLogger("davit.test").warning("an image was bad")
            above, drawn = tty.lines()
        assert above == "an image was bad"
        assert drawn.startswith("epoch  10%|")
        tty.look()
        logging.getLogger("davit.test").warning("after")
        assert tty.lines() == ["after", ""]
    finally:
        root.removeHandler(handler)


def test_plain_lines_at_each_interval_and_at_the_end(clock: Clock, logged: Callable[[], list[str]]) -> None:
    class Watched(torch.Tensor):
        read = 0

        def __float__(self) -> float:
            Watched.read += 1
            return float(self.item())

    stream = io.StringIO()
    with Progress(120, "epoch 1/9", images_per_step=64, interval=50, stream=stream) as lines:
        for step in range(1, 121):
            clock.now += 0.5
            lines.update(loss=torch.tensor(step).as_subclass(Watched), top1=10.0, top5=50.0, peak_mb=1234.5)
    for line, step, left in zip(logged(), (50, 100, 120), ("00:35", "00:10", "00:00"), strict=True):
        parts = [f"{step}/120", f"{step}.000000", "10.00 %", "50.00 %", "128 images/s", left, "peak_mb 1234"]
        assert re.search(".*".join(map(re.escape, ["epoch 1/9", *parts])), line)  # in this order
        assert "\r" not in line and "\n" not in line
    assert Watched.read == 3  # a device is not waited for at each step
    assert stream.getvalue() == ""


def test_a_resumed_pass_of_several_steps_at_once_that_ends_early(
    clock: Clock, logged: Callable[[], list[str]]
) -> None:
    lines = Progress(1000, "epoch", images_per_step=10, interval=50, start=500, stream=io.StringIO())
    for _ in range(3):
        clock.now += 33
        lines.update(33)
    assert [line.split(" ")[2] for line in logged()] == ["566/1000"]
    assert "10 images/s, 07:14 left" in logged()[0]
    lines.close()
    lines.close()
    assert [line.split(" ")[2] for line in logged()] == ["566/1000", "599/1000"]


def test_speed_is_of_the_last_seconds(clock: Clock, logged: Callable[[], list[str]]) -> None:
    with Progress(10_000, "epoch", images_per_step=1, interval=100, stream=io.StringIO()) as lines:
        for number in range(400):
            clock.now += 1.0 if number < 100 else 0.1  # ten times as fast after a slow start
            lines.update()
        clock.now += 60  # a step that takes a minute
        lines.update(100)
    rates = [float(re.search(r"([\d.]+) images/s", line)[1]) for line in logged()]  # type: ignore[index]
    assert rates[0] == pytest.approx(1, rel=0.05)
    assert rates[3] == pytest.approx(10, rel=0.05)
    assert rates[4] < 5


def test_other_processes_are_silent(tty: Terminal, logged: Callable[[], list[str]]) -> None:
    for stream in (tty, io.StringIO()):
        with Progress(2, "epoch", images_per_step=1, interval=1, stream=stream, enabled=False) as silent:
            silent.update(2, loss=1.0)
    assert tty.look() == ""
    assert logged() == []
