"""A run that is killed, told to stop, or whose newest state is damaged ends as one that never was."""

import random
import shutil
import signal
from pathlib import Path

import pytest

from davit.engine.run_folder import LAST, read_state
from tests.engine.runs import REPOSITORY, SHORT, Completed, Train, run, run_here, summary, train_command, weights_hash

# everything random at once, and an average of the weights
HARD = [
    *(*SHORT, "--epochs", "3", "--lr", "1e-3", "--workers", "2"),
    *("--aa", "rand-m9-mstd0.5-inc1", "--mixup", "0.8", "--cutmix", "1.0", "--reprob", "0.5", "--drop-path", "0.3"),
    *("--model-ema", "--model-ema-decay", "0.9", "--clip-grad", "1.0", "--recovery-interval", "1"),
]
ONE = [*HARD, "--batch-size", "4", "--grad-accum-steps", "2"]
TWO = [*HARD, "--batch-size", "2", "--grad-accum-steps", "2"]
STEPS = 18  # of each of them


def signalled(
    command: list[str], cwd: Path, sig: int, steps: int, seconds: float, status: int | None = None
) -> Completed:
    """A run that gets a signal so many steps after its start, and some seconds later (`dying.py`)."""
    words = [str(REPOSITORY / "tests/engine/dying.py") if word.endswith("train.py") else word for word in command]
    return run(words, cwd, status, DIE=f"{int(sig)},{steps},{seconds}")


def kill_often(command: list[str], cwd: Path, kills: int, seed: int) -> None:
    """Run a command over several lives, each killed at a random moment."""
    draw = random.Random(seed)
    for life in range(kills):
        words = [*command, *(["--auto-resume"] if life else [])]
        died = signalled(words, cwd, signal.SIGKILL, draw.randint(1, STEPS // kills - 1), draw.uniform(0, 0.02))
        assert died.returncode in (-signal.SIGKILL, 1), died.stderr  # torchrun tells of a dead process by 1
        assert "Best" not in died.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """The folder of a run of one process that nothing disturbed."""
    cwd = tmp_path_factory.mktemp("whole")
    run_here(pictures, *ONE, cwd=cwd)
    return cwd / "runs/a"


@pytest.mark.parametrize(
    ("kills", "seed"), [(1, 0), pytest.param(6, 1, marks=pytest.mark.long), pytest.param(6, 2, marks=pytest.mark.long)]
)
def test_killed_at_random_steps(
    train: Train, tmp_path: Path, pictures: Path, whole: Path, kills: int, seed: int
) -> None:
    kill_often(train_command(pictures, *ONE), tmp_path, kills, seed)
    # another number of workers: the samples do not depend on it
    train(*ONE, "--workers", "0", "--auto-resume")
    assert ends_as(tmp_path / "runs/a", whole)


def ends_as(folder: Path, whole: Path) -> bool:
    """Whether a run has the weights and the record of another, but for the times."""
    timed = {"images_per_second", "data_share", "peak_memory_mb", "seconds"}
    records = [
        [{name: cell for name, cell in row.items() if name not in timed} for row in summary(one)]
        for one in (folder, whole)
    ]
    return weights_hash(folder / LAST) == weights_hash(whole / LAST) and records[0] == records[1]


@pytest.mark.long
def test_two_processes_killed_at_random_steps(tmp_path: Path, pictures: Path) -> None:
    command = train_command(pictures, *TWO, processes=2)
    for name, kills in (("whole", 0), ("killed", 5)):
        cwd = tmp_path / name
        cwd.mkdir()
        kill_often(command, cwd, kills, seed=3)
        run([*command, *(["--auto-resume"] if kills else [])], cwd)
    assert ends_as(tmp_path / "killed/runs/a", tmp_path / "whole/runs/a")


def test_a_signal_to_all_processes_saves(train: Train, tmp_path: Path, pictures: Path, whole: Path) -> None:
    """As Ctrl-C does: the loader's processes get it too."""
    stopped = signalled(train_command(pictures, *ONE), tmp_path, signal.SIGINT, 4, 0, status=75)
    assert "--auto-resume" in stopped.stderr
    state = read_state(tmp_path / "runs/a" / LAST)
    assert (state["epoch"], state["step"]) in ((0, 4), (0, 5))
    train(*ONE, "--auto-resume")
    assert ends_as(tmp_path / "runs/a", whole)


def test_damaged_state_is_passed_over_and_none_that_is_whole_is_an_error(
    train: Train, tmp_path: Path, whole: Path
) -> None:
    folder = tmp_path / "runs/a"
    shutil.copytree(whole, folder)
    content = bytearray((folder / LAST).read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + 256):  # one byte alone may be padding that nobody reads
        content[place] ^= 1
    # the newest and its other names share the bytes
    damaged = folder / "damaged"
    damaged.write_bytes(content)
    damaged.replace(folder / LAST)
    (folder / "checkpoint-2.pth.tar").unlink(missing_ok=True)
    result = train(*ONE, "--auto-resume")
    assert str(Path("runs/a") / LAST) in result.stderr
    assert (folder / "last.pth.tar.damaged").read_bytes() == content
    assert ends_as(folder, whole)
    for file in folder.glob("*.pth.tar"):
        content = file.read_bytes()[:1000]
        file.unlink()
        file.write_bytes(content)
    result = train(*ONE, "--auto-resume", status=2)
    for word in (LAST, "--overwrite", "--initial-checkpoint"):
        assert word in result.stderr
