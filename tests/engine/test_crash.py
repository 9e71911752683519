"""A run that is killed, told to stop, or whose newest state is damaged ends as one that never was."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.engine.runs import environment, run, train_command, weights_hash

# everything random at once, and an average of the weights
HARD = [
    *("--epochs", "3", "--warmup-epochs", "1", "--cooldown-epochs", "0", "--lr", "1e-3", "--workers", "2"),
    *("--aa", "rand-m9-mstd0.5-inc1", "--mixup", "0.8", "--cutmix", "1.0", "--reprob", "0.5", "--drop-path", "0.3"),
    *("--model-ema", "--model-ema-decay", "0.9", "--clip-grad", "1.0", "--recovery-interval", "1"),
    *("--output", "runs", "--experiment", "a"),
]
ONE = [*HARD, "--batch-size", "4", "--grad-accum-steps", "2"]
TWO = [*HARD, "--batch-size", "2", "--grad-accum-steps", "2"]


def kill_and_resume(command: list[str], cwd: Path, kills: int, seed: int, sig: int = signal.SIGKILL) -> int:
    """Run a command again and again, killing its whole process group at random moments; the number of kills."""
    draw = random.Random(seed)
    done = 0
    for _ in range(kills):
        with subprocess.Popen(
            command,
            cwd=cwd,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as process:
            folder = cwd / "runs" / "a"
            start, before = time.time(), _stamp(folder)
            while process.poll() is None and _stamp(folder) == before and time.time() - start < 120:
                time.sleep(0.05)  # until this process has saved something of its own
            time.sleep(draw.uniform(0, 1.0))
            if process.poll() is None:
                done += 1
                _signal_group(process.pid, sig)
            process.communicate()
        if "--auto-resume" not in command:
            command = [*command, "--auto-resume"]
    final = run(command, cwd)
    assert final.returncode == 0, final.stderr
    return done


def _signal_group(pid: int, sig: int) -> None:
    os.killpg(pid, sig)


def _stamp(folder: Path) -> int:
    last = folder / "last.pth.tar"
    return last.stat().st_mtime_ns if last.exists() else 0


def whole_run(pictures: Path, cwd: Path, flags: list[str], processes: int) -> str:
    cwd.mkdir()
    result = run(train_command(pictures, *flags, processes=processes), cwd)
    assert result.returncode == 0, result.stderr
    return weights_hash(cwd / "runs/a/last.pth.tar")


@pytest.mark.parametrize(
    ("kills", "seed"), [(2, 0), pytest.param(6, 1, marks=pytest.mark.long), pytest.param(6, 2, marks=pytest.mark.long)]
)
def test_killed_at_random_steps(tmp_path: Path, pictures: Path, kills: int, seed: int) -> None:
    expected = whole_run(pictures, tmp_path / "whole", ONE, 0)
    (tmp_path / "killed").mkdir()
    # another number of workers: the samples do not depend on it
    command = train_command(pictures, *ONE, "--workers", "0")
    assert kill_and_resume(command, tmp_path / "killed", kills, seed) > 0
    assert weights_hash(tmp_path / "killed/runs/a/last.pth.tar") == expected
    whole, killed = (tmp_path / name / "runs/a/summary.csv" for name in ("whole", "killed"))
    assert _without_times(whole) == _without_times(killed)


@pytest.mark.long
@pytest.mark.parametrize("seed", [3])
def test_two_processes_killed_at_random_steps(tmp_path: Path, pictures: Path, seed: int) -> None:
    expected = whole_run(pictures, tmp_path / "whole", TWO, 2)
    (tmp_path / "killed").mkdir()
    assert kill_and_resume(train_command(pictures, *TWO, processes=2), tmp_path / "killed", 5, seed) > 0
    assert weights_hash(tmp_path / "killed/runs/a/last.pth.tar") == expected


def _without_times(summary: Path) -> list[list[str]]:
    rows = [line.split(",") for line in summary.read_text().splitlines()]
    timed = {"images_per_second", "data_share", "peak_memory_mb", "seconds"}
    columns = [i for i, name in enumerate(rows[0]) if name not in timed]
    return [[row[i] for i in columns] for row in rows]


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_saves_and_says_so(tmp_path: Path, pictures: Path, sig: int) -> None:
    command = train_command(pictures, *ONE)
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        folder = tmp_path / "runs/a"
        while _stamp(folder) == 0 and process.poll() is None:
            time.sleep(0.02)
        _signal_group(process.pid, sig)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    assert "--auto-resume" in errors
    assert run([*command, "--auto-resume"], tmp_path).returncode == 0
    assert weights_hash(folder / "last.pth.tar") == whole_run(pictures, tmp_path / "whole", ONE, 0)


def test_damaged_state_is_passed_over(tmp_path: Path, pictures: Path) -> None:
    expected = whole_run(pictures, tmp_path / "whole", ONE, 0)
    folder = tmp_path / "whole/runs/a"
    content = bytearray((folder / "last.pth.tar").read_bytes())
    content[len(content) // 2] ^= 1
    # the newest and its other names share the bytes
    damaged = folder / "damaged"
    damaged.write_bytes(content)
    damaged.replace(folder / "last.pth.tar")
    for file in folder.glob("checkpoint-2.pth.tar"):
        file.unlink()
    result = run(train_command(pictures, *ONE, "--auto-resume"), tmp_path / "whole")
    assert result.returncode == 0, result.stderr
    assert "passed over" in result.stderr
    assert "damaged" in result.stderr
    assert (folder / "last.pth.tar.damaged").read_bytes() == content
    assert weights_hash(folder / "last.pth.tar") == expected


def test_all_states_damaged_is_an_error(tmp_path: Path, pictures: Path) -> None:
    whole_run(pictures, tmp_path / "whole", [*ONE, "--epochs", "1"], 0)
    folder = tmp_path / "whole/runs/a"
    for file in folder.glob("*.pth.tar"):
        content = file.read_bytes()[:1000]
        file.unlink()
        file.write_bytes(content)
    result = run(train_command(pictures, *ONE, "--auto-resume"), tmp_path / "whole")
    assert result.returncode == 2
    assert "no state" in result.stderr
    assert "--overwrite" in result.stderr
