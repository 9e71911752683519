"""The program that makes hostile trials: it sees each way of failing, and what it tries holds."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from tests.hostile import commands, kills, lives, routes, runs, trials  # noqa: F401 (each registers its kinds)
from tests.hostile.attack import CANARY, KINDS, REPOSITORY, Tally, Trial, attempt, table


def _traceback() -> int:
    raise RuntimeError("a fault")


def _sleep() -> int:
    time.sleep(60)
    return 0


def _memory() -> int:
    return int(np.ones(2**28).sum()) and 0


def _killed() -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def _leave() -> int:
    sys.exit(3)


@pytest.mark.parametrize(
    ("work", "why"),
    [
        (lambda: 0, None),
        (lambda: None, None),
        (lambda: 2, None),
        (lambda: 5, "status 5"),
        (_leave, "status 3"),
        (_traceback, "traceback"),
        (_sleep, "no end"),
        (_memory, ""),
        (_killed, "signal 9"),
        (lambda: Path(CANARY).touch(), "code"),
        (lambda: print("damaged"), "damaged"),
    ],
)
def test_each_way_of_failing_is_seen(work: Callable[[], int | None], why: str | None, tmp_path: Path) -> None:
    base = attempt(Trial("nothing", lambda: 0, megabytes=100_000), tmp_path / "scratch")[3]
    trial = Trial("t", work, hides=("damaged",), seconds=1, megabytes=400)
    failure = attempt(trial, tmp_path / "scratch", base)[0]
    assert failure is None if why is None else why in str(failure)
    if why == "":
        assert failure is not None


def test_what_must_be_printed() -> None:
    lines = table({"a": Tally(3, ["x"], {0: 3, 1: 1}, 1.0, 2.0), "b": Tally(1)}).splitlines()
    assert [line.split("|")[2:5] for line in lines[2:]] == [
        [" 4 ", " 3 ", " 1 "],
        [" 1 ", " 1 ", " 0 "],
        [" 5 ", " 4 ", " 1 "],
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_makes_the_same_trials(kind: str, tmp_path: Path) -> None:
    lab = trials.build_lab(tmp_path)
    made = [[trial.name for trial in islice(KINDS[kind][1](random.Random(1), lab), 30)] for _ in range(2)]
    assert made[0] == made[1] and len(set(made[0])) > 15


def test_shares_are_of_all() -> None:
    """So that those of 200 in the long tests are 200."""
    assert sum(share for share, _ in KINDS.values()) == pytest.approx(1)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_hostile_trials_hold(kind: str) -> None:
    """A share of 200 trials each, as `make test-long` runs them; `make attack N=2000` runs more."""
    number = max(1, round(200 * KINDS[kind][0]))
    command = [sys.executable, "-m", "tests.hostile.attack", "-n", str(number), "--kinds", kind, "--seed", "7"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=550, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
def test_runs_of_two_processes_that_are_killed_ten_times(tmp_path: Path) -> None:
    """`python -m tests.hostile.kills -n 100` in short; its result is in benchmarks/results/kills.md."""
    before = dict(os.environ)
    try:
        counts = kills.kill(10, seed=4, folder=tmp_path)
    finally:
        os.environ.clear()
        os.environ.update(before)
    assert counts["kills"] >= 10 and not counts["broken"]


def test_states_without_a_process_are_fingerprinted_alike(tmp_path: Path) -> None:
    """Two lives of one run end as one life does; another seed ends otherwise."""
    lab, setting = trials.build_lab(tmp_path), lives.Setting(1, hard=False)
    whole = lives.reference(lab, setting)
    for name, flags in (("again", []), ("other", ["--seed", "7"])):
        scratch = tmp_path / name
        scratch.mkdir()
        words = [str(lives.write_data(lab)), *setting.words(), *flags, "--output", str(scratch / "runs")]
        assert lives.live(words, setting, scratch / "o.txt", moment=(3, 0.0)) == [-signal.SIGKILL]
        assert lives.live([*words, "--auto-resume"], setting, scratch / "o.txt") == [0]
        assert (lives.fingerprint(scratch / lives.FOLDER) == whole) == (name == "again")
