"""A run that is killed, told to stop, or whose newest state is damaged ends as one that never was."""

import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from davit.engine.run_folder import read_state
from tests.engine.runs import REPOSITORY, run, train_command, weights_hash

# everything random at once, and an average of the weights
HARD = [
    *("--epochs", "3", "--warmup-epochs", "1", "--cooldown-epochs", "0", "--lr", "1e-3", "--workers", "2"),
    *("--aa", "rand-m9-mstd0.5-inc1", "--mixup", "0.8", "--cutmix", "1.0", "--reprob", "0.5", "--drop-path", "0.3"),
    *("--model-ema", "--model-ema-decay", "0.9", "--clip-grad", "1.0", "--recovery-interval", "1"),
    *("--output", "runs", "--experiment", "a"),
]
ONE = [*HARD, "--batch-size", "4", "--grad-accum-steps", "2"]
TWO = [*HARD, "--batch-size", "2", "--grad-accum-steps", "2"]


STEPS = 18  # of each of them


def signalled(command: list[str], cwd: Path, sig: int, steps: int, seconds: float) -> subprocess.CompletedProcess[str]:
    """A run that gets a signal so many steps after its start, and some seconds later (`dying.py`)."""
    words = [str(REPOSITORY / "tests/engine/dying.py") if word.endswith("train.py") else word for word in command]
    return run(words, cwd, DIE=f"{int(sig)},{steps},{seconds}")


def kill_and_resume(command: list[str], cwd: Path, kills: int, seed: int) -> None:
    """Run a command to the end over several lives, each killed at a random moment."""
    draw = random.Random(seed)
    for _ in range(kills):
        died = signalled(command, cwd, signal.SIGKILL, draw.randint(1, STEPS // kills - 1), draw.uniform(0, 0.02))
        assert died.returncode in (-signal.SIGKILL, 1), died.stderr  # torchrun tells of a dead process by 1
        assert "Best" not in died.stderr
        if "--auto-resume" not in command:
            command = [*command, "--auto-resume"]
    final = run(command, cwd)
    assert final.returncode == 0, final.stderr


def whole_run(pictures: Path, cwd: Path, flags: list[str], processes: int) -> str:
    cwd.mkdir(exist_ok=True)
    result = run(train_command(pictures, *flags, processes=processes), cwd)
    assert result.returncode == 0, result.stderr
    return weights_hash(cwd / "runs/a/last.pth.tar")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """The folder of a run of one process that nothing disturbed."""
    cwd = tmp_path_factory.mktemp("whole")
    whole_run(pictures, cwd, ONE, 0)
    return cwd / "runs/a"


@pytest.mark.parametrize(
    ("kills", "seed"), [(2, 0), pytest.param(6, 1, marks=pytest.mark.long), pytest.param(6, 2, marks=pytest.mark.long)]
)
def test_killed_at_random_steps(tmp_path: Path, pictures: Path, whole: Path, kills: int, seed: int) -> None:
    # another number of workers: the samples do not depend on it
    command = train_command(pictures, *ONE, "--workers", "0")
    kill_and_resume(command, tmp_path, kills, seed)
    killed = tmp_path / "runs/a"
    assert weights_hash(killed / "last.pth.tar") == weights_hash(whole / "last.pth.tar")
    assert _without_times(killed / "summary.csv") == _without_times(whole / "summary.csv")


@pytest.mark.long
@pytest.mark.parametrize("seed", [3])
def test_two_processes_killed_at_random_steps(tmp_path: Path, pictures: Path, seed: int) -> None:
    expected = whole_run(pictures, tmp_path / "whole", TWO, 2)
    (tmp_path / "killed").mkdir()
    kill_and_resume(train_command(pictures, *TWO, processes=2), tmp_path / "killed", 5, seed)
    assert weights_hash(tmp_path / "killed/runs/a/last.pth.tar") == expected


def _without_times(summary: Path) -> list[list[str]]:
    rows = [line.split(",") for line in summary.read_text().splitlines()]
    timed = {"images_per_second", "data_share", "peak_memory_mb", "seconds"}
    columns = [i for i, name in enumerate(rows[0]) if name not in timed]
    return [[row[i] for i in columns] for row in rows]


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_saves_and_says_so(tmp_path: Path, pictures: Path, whole: Path, sig: int) -> None:
    command = train_command(pictures, *ONE)
    stopped = signalled(command, tmp_path, sig, 4, 0)
    assert stopped.returncode == 75, stopped.stderr
    assert "--auto-resume" in stopped.stderr
    state = read_state(tmp_path / "runs/a/last.pth.tar")
    assert (state["epoch"], state["step"]) in ((0, 4), (0, 5))
    assert run([*command, "--auto-resume"], tmp_path).returncode == 0
    assert weights_hash(tmp_path / "runs/a/last.pth.tar") == weights_hash(whole / "last.pth.tar")


def test_damaged_state_is_passed_over(tmp_path: Path, pictures: Path, whole: Path) -> None:
    folder = tmp_path / "runs/a"
    shutil.copytree(whole, folder)
    content = bytearray((folder / "last.pth.tar").read_bytes())
    content[len(content) // 2] ^= 1
    # the newest and its other names share the bytes
    damaged = folder / "damaged"
    damaged.write_bytes(content)
    damaged.replace(folder / "last.pth.tar")
    for file in folder.glob("checkpoint-2.pth.tar"):
        file.unlink()
    result = run(train_command(pictures, *ONE, "--auto-resume"), tmp_path)
    assert result.returncode == 0, result.stderr
    assert "passed over" in result.stderr
    assert "damaged" in result.stderr
    assert (folder / "last.pth.tar.damaged").read_bytes() == content
    assert weights_hash(folder / "last.pth.tar") == weights_hash(whole / "last.pth.tar")


def test_all_states_damaged_is_an_error(tmp_path: Path, pictures: Path, whole: Path) -> None:
    folder = tmp_path / "runs/a"
    shutil.copytree(whole, folder)
    for file in folder.glob("*.pth.tar"):
        content = file.read_bytes()[:1000]
        file.unlink()
        file.write_bytes(content)
    result = run(train_command(pictures, *ONE, "--auto-resume"), tmp_path)
    assert result.returncode == 2
    assert "no state" in result.stderr
    assert "--overwrite" in result.stderr
