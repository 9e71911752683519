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

from tests.hostile import trials
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
    trial = Trial("t", work, hides=("damaged",), seconds=3, megabytes=400)
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


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_hostile_trials_hold(kind: str) -> None:
    """A share of 200 trials each, as `make test-long` runs them; `make attack N=2000` runs more."""
    number = round(200 * KINDS[kind][0])
    command = [sys.executable, "-m", "tests.hostile.attack", "-n", str(number), "--kinds", kind, "--seed", "7"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=550, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
