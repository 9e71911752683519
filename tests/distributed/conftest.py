"""Jobs of several processes, and the run of one process that they must equal."""

import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.engine.conftest import pictures
from tests.engine.runs import SHORT, environment, run_here, summary
from tests.processes import kill_tree

__all__ = ["pictures"]

FLAGS = [
    *(*SHORT, "--epochs", "3", "--workers", "1", "--lr", "1e-3", "--recovery-interval", "2", "--log-interval", "1"),
    *("--drop-path", "0", "--mixup", "0", "--cutmix", "0"),
]


def losses(log: str) -> list[float]:
    """The loss of each step, from the lines of the log."""
    return [float(value) for value in re.findall(r"^epoch .*?\bloss (\S+?),? .*lr", log, flags=re.MULTILINE)]


def record(folder: Path) -> list[float]:
    """What was trained and evaluated in each epoch of a run."""
    names = ("epoch", "train_loss", "eval_loss", "eval_top1")
    return [float(row[name]) for row in summary(folder) for name in names]


@pytest.fixture(scope="session")
def one(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> tuple[Path, list[float]]:
    """The folder of a run of one process, and the loss of each step."""
    cwd = tmp_path_factory.mktemp("one")
    result = run_here(pictures, *FLAGS, "--batch-size", "8", cwd=cwd)
    return cwd / "runs/a", losses(result.stderr)


@contextmanager
def started(commands: Sequence[Sequence[str]], cwd: Path, **more: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Launchers of a job; all of their processes are gone when the test is over, however it ends."""
    launchers = [
        subprocess.Popen(words, cwd=cwd, env=environment(**more), stderr=subprocess.PIPE, text=True)
        for words in commands
    ]
    try:
        yield launchers
    finally:
        for launcher in launchers:
            kill_tree(launcher.pid)
            launcher.communicate()
