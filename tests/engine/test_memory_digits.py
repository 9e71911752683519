"""Memory that holds 24 images and steps of 96, with DaViT_nano on digits: bit for bit the run that was dealt so."""

import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from davit.data.digits import write_digits
from davit.engine.run_folder import LAST, read_state
from tests.engine.runs import REPOSITORY, Completed, run, weights_hash
from tests.engine.test_memory import samples

pytestmark = pytest.mark.long

STEPS = 10
WORDS = [
    *("--model", "DaViT_nano", "--img-size", "32", "--epochs", "1", "--warmup-epochs", "0", "--cooldown-epochs", "0"),
    *("--workers", "0", "--recovery-interval", "1", "--output", "runs", "--experiment", "a"),
]
AUTO = ["--batch-size", "auto", "--global-batch", "96"]


def dealt(size: int, accumulate: int) -> list[str]:
    return ["--batch-size", str(size), "--grad-accum-steps", str(accumulate)]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """So many that an epoch has ten steps of 96."""
    folder = tmp_path_factory.mktemp("digits")
    whole = write_digits(folder / "whole")
    for split, count in (("train", 96), ("val", 5)):
        for label in whole.joinpath(split).iterdir():
            (folder / "part" / split / label.name).mkdir(parents=True)
            for file in sorted(label.iterdir())[:count]:
                shutil.copy(file, folder / "part" / split / label.name)
    return folder / "part"


def trained(data: Path, cwd: Path, *flags: str, processes: int = 1, status: int = 0, **more: Any) -> Completed:
    cwd.mkdir(exist_ok=True)
    launcher = [sys.executable, "-u"]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    words = [*launcher, str(REPOSITORY / "tests/engine/starving.py"), str(data), *WORDS, *flags]
    return run(words, cwd, status, SEEN="seen", **{name: str(value) for name, value in more.items()})


def state_of(cwd: Path) -> Path:
    return cwd / "runs/a" / LAST


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """A run of 24 x 4."""
    cwd = tmp_path_factory.mktemp("whole")
    trained(digits, cwd, *dealt(24, 4))
    found = samples(cwd)
    assert sorted(found) == [(0, step) for step in range(STEPS)]
    assert {len(set(positions)) for positions in found.values()} == {96}
    return cwd


def test_auto_is_24_times_4(tmp_path: Path, digits: Path, whole: Path) -> None:
    found = trained(digits, tmp_path, *AUTO, MOST=24)
    assert "--batch-size 24 --grad-accum-steps 4" in found.stderr
    assert weights_hash(state_of(tmp_path)) == weights_hash(state_of(whole))
    assert samples(tmp_path) == samples(whole)


def test_an_error_at_step_7_and_a_kill_behind_it(tmp_path: Path, digits: Path, whole: Path) -> None:
    hit, killed = tmp_path / "hit", tmp_path / "killed"
    told = trained(digits, hit, *dealt(24, 4), RUN_OUT="7,0")
    assert "8 micro-batches of 12" in told.stderr
    assert samples(hit) == samples(whole)
    assert (read_state(state_of(hit))["micro_batch"], read_state(state_of(hit))["global_batch"]) == (12, 96)
    trained(digits, killed, *dealt(24, 4), status=-signal.SIGKILL, RUN_OUT="7,0", KILL="8")
    state = read_state(state_of(killed))
    assert (state["epoch"], state["step"], state["micro_batch"]) == (0, 8, 12)
    again = trained(digits, killed, *dealt(24, 4), "--auto-resume")
    assert "Resumed at epoch 0, step 8" in again.stderr
    assert weights_hash(state_of(killed)) == weights_hash(state_of(hit))


@pytest.mark.parametrize(("most", "accumulate"), [(12, 4), (24, 2)])
def test_auto_in_two_processes(tmp_path: Path, digits: Path, most: int, accumulate: int) -> None:
    found = trained(digits, tmp_path / "auto", *AUTO, processes=2, MOST=most)
    assert f"--batch-size {most} --grad-accum-steps {accumulate}" in found.stderr
    trained(digits, tmp_path / "named", *dealt(most, accumulate), processes=2)
    assert weights_hash(state_of(tmp_path / "auto")) == weights_hash(state_of(tmp_path / "named"))
    dealt_out = samples(tmp_path / "auto", 2)
    assert dealt_out == samples(tmp_path / "named", 2)
    assert {len(set(positions)) for positions in dealt_out.values()} == {96}
