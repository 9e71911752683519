"""--dry-run in several processes ends by itself, says what it found once, and writes nothing."""

import json
import time
from pathlib import Path

import pytest

from tests.engine.runs import SHORT, run, train_command

# train.py, with one process of which a step or the evaluation takes as good as for ever
_SCRIPT = """
import os, sys, time
from davit.engine import dry_run
from davit.engine.steps import Stepper
from davit.engine.train import Trainer, main

where, rank = sys.argv.pop(1).split("-")
dry_run.LIMIT = 5.0
cls, name = (Stepper, "step") if where == "step" else (Trainer, "_evaluate_one")
if os.environ["RANK"] == rank:
    setattr(cls, name, lambda *_, **__: time.sleep(600))
sys.exit(main())
"""


def job(data: Path, cwd: Path, *first: str) -> tuple[dict[str, object], str]:
    """Run a job of two processes; return its document and its log."""
    command = train_command(data, *SHORT, "--batch-size", "4", "--dry-run", "--json", processes=2)
    place = next(place for place, word in enumerate(command) if word.endswith("train.py"))
    if first:
        (cwd / "slow.py").write_text(_SCRIPT)
        command[place : place + 1] = [str(cwd / "slow.py"), *first]
    before = sorted(cwd.rglob("*"))
    done = run(command, cwd)
    assert sorted(cwd.rglob("*")) == before
    return json.loads(done.stdout)["dry_run"], done.stderr


def test_a_job_measures_whole_steps_of_all_processes(tmp_path: Path, pictures: Path) -> None:
    found, said = job(pictures, tmp_path)
    assert (found["images_per_step"], found["images_measured"], found["is_least"]) == (8, 8, False)
    assert said.count(" MB ") == 1


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("where", ["step", "evaluation"])
def test_a_process_that_does_not_come_ends_the_job(tmp_path: Path, pictures: Path, where: str, rank: str) -> None:
    """The other one waits for it in a collective operation."""
    begun = time.monotonic()
    found, said = job(pictures, tmp_path, f"{where}-{rank}")
    assert time.monotonic() - begun < 120 and said.count(" MB ") == 1
    assert found["is_least"] and found["evaluation_seconds"] is None
    assert found["images_measured"] == (0 if where == "step" else 8)
