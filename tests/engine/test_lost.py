"""What somebody removes under a running run is noticed; nameless runs keep apart, and the right one continues."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime as clock
from pathlib import Path
from typing import Any

import pytest
import torch

from davit.engine import run_folder
from davit.engine.run_folder import BEST, FORMAT, LAST, FolderTakenError, RunFolder, read_state, run_path
from davit.engine.steps import Stepper
from davit.engine.train import RunOptions
from tests.engine.runs import SHORT, Train, run_here, summary, weights_hash
from tests.engine.test_resume import asked

RUN = [*SHORT, "--epochs", "3", "--recovery-interval", "4", "--lr", "1e-3"]  # 6 steps per epoch
Meddle = Callable[[int, Callable[[], object]], None]


@pytest.fixture
def after(monkeypatch: pytest.MonkeyPatch) -> Meddle:
    """Do something once so many steps are done."""

    def meddle(steps: int, act: Callable[[], object]) -> None:
        done, step = [0], Stepper.step

        def counted(self: Stepper, *rest: Any) -> Any:
            done[0] += 1
            if done[0] == steps:
                act()
            return step(self, *rest)

        monkeypatch.setattr(Stepper, "step", counted)

    return meddle


# -- a folder that vanishes


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> str:
    """The hash of a run that nothing disturbed."""
    cwd = tmp_path_factory.mktemp("whole")
    run_here(pictures, *RUN, cwd=cwd)
    return weights_hash(cwd / "runs/a" / LAST)


@pytest.mark.parametrize(
    ("steps", "way"),
    [(2, "removed"), (8, "renamed"), (11, "removed"), (11, "renamed"), (18, "removed with all above")],
)
def test_a_folder_that_vanishes_is_made_anew(
    train: Train, tmp_path: Path, whole: str, after: Meddle, steps: int, way: str
) -> None:
    folder = tmp_path / "runs/a"
    acts: dict[str, Callable[[], object]] = {
        "removed": lambda: shutil.rmtree(folder),
        "renamed": lambda: folder.rename(tmp_path / "runs/b"),
        "removed with all above": lambda: shutil.rmtree(tmp_path / "runs"),
    }
    after(steps, acts[way])
    result = train(*RUN)
    assert any("made again" in line and "runs/a" in line for line in result.stderr.splitlines())
    assert weights_hash(folder / LAST) == whole
    assert [row["epoch"] for row in summary(folder)] == ["0", "1", "2"]
    assert (folder / "args.yaml").exists()
    kept = {epoch for epoch in range(3) if (folder / f"checkpoint-{epoch}.pth.tar").exists()}
    assert kept == {epoch for epoch in range(3) if 6 * (epoch + 1) >= steps}
    assert read_state(folder / BEST)["epoch"] - 1 in kept
    assert f"at epoch {read_state(folder / BEST)['epoch'] - 1};" in result.stderr
    if way == "renamed":
        RunFolder(tmp_path / "runs/b").close()  # it was let go


def test_a_run_told_to_stop_in_a_folder_that_vanished_saves(train: Train, tmp_path: Path, after: Meddle) -> None:
    def act() -> None:
        shutil.rmtree(tmp_path / "runs/a")
        os.kill(os.getpid(), signal.SIGTERM)

    after(9, act)
    train(*RUN, "--save-images", "--log-interval", "1", status=75)
    state = read_state(tmp_path / "runs/a" / LAST)
    assert (state["epoch"], state["step"]) == (1, 4)  # that step had asked before
    assert [row["epoch"] for row in summary(tmp_path / "runs/a")] == ["0"]


# -- states that vanish


def test_the_best_is_one_of_those_on_the_disk(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a", keep=3)
    kept: dict[int, float] = {}
    for epoch, metric in enumerate((9.0, 5.0, 7.0)):
        folder.save({"epoch": epoch + 1, "state_dict": {"w": torch.zeros(1)}})
        kept = folder.keep_epoch(epoch, metric, kept)
    (folder.path / BEST).unlink()
    assert folder.on_disk(kept) == kept  # its other name is there
    assert read_state(folder.path / BEST)["epoch"] == 1
    (folder.path / "checkpoint-0.pth.tar").unlink()
    assert folder.on_disk(kept) == kept
    assert read_state(folder.path / "checkpoint-0.pth.tar")["epoch"] == 1
    for name in (BEST, "checkpoint-0.pth.tar"):
        (folder.path / name).unlink()
    assert folder.on_disk(kept) == {1: 5.0, 2: 7.0}
    assert read_state(folder.path / BEST)["epoch"] == 3
    for file in folder.path.glob("*.pth.tar"):
        file.unlink()
    assert folder.on_disk(kept) == {}
    folder.save({"epoch": 4, "state_dict": {"w": torch.zeros(1)}})
    assert folder.keep_epoch(3, 1.0, kept) == {3: 1.0}
    folder.close()


def test_what_is_reported_at_the_end_is_on_the_disk(train: Train, tmp_path: Path, after: Meddle) -> None:
    folder = tmp_path / "runs/a"

    def act() -> None:
        for file in folder.glob("*.pth.tar"):
            file.unlink()

    after(14, act)
    result = train(*RUN)
    assert read_state(folder / BEST)["epoch"] == 3
    assert "at epoch 2;" in result.stderr
    assert any("epochs 0, 1" in line for line in result.stderr.splitlines())


# -- a lock that vanishes


def test_a_lock_that_was_removed_is_made_again(train: Train, tmp_path: Path, after: Meddle) -> None:
    lock = tmp_path / "runs/a/.lock"
    after(8, lock.unlink)
    result = train(*RUN)
    assert any(".lock" in line and "made again" in line for line in result.stderr.splitlines())
    assert lock.exists()
    assert [row["epoch"] for row in summary(tmp_path / "runs/a")] == ["0", "1", "2"]


HOLD = """
import fcntl, sys, time
stream = open(sys.argv[1], "a+")
fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("steps", [8, 11])
def test_a_run_whose_folder_another_one_took_stops_and_loses_nothing(
    train: Train, tmp_path: Path, whole: str, after: Meddle, steps: int
) -> None:
    lock, others = tmp_path / "runs/a/.lock", []

    def act() -> None:
        lock.unlink()
        other = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True)
        others.append(other)
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        (tmp_path / "runs/a" / LAST).write_text("the other's")
        (tmp_path / "runs/a/summary.csv").write_text("the other's")

    try:
        after(steps, act)
        stopped = train(*RUN, status=2)
    finally:
        others[0].kill()
        others[0].communicate()
    assert (tmp_path / "runs/a" / LAST).read_text() == "the other's"
    assert (tmp_path / "runs/a/summary.csv").read_text() == "the other's"
    assert "--experiment a-2 --auto-resume" in stopped.stderr
    train(*RUN, "--experiment", "a-2", "--auto-resume")
    assert weights_hash(tmp_path / "runs/a-2" / LAST) == whole


def test_two_folders_of_one_name_are_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a")
    with pytest.raises(FolderTakenError):
        RunFolder(tmp_path / "a")
    folder.close()


# -- runs without a name


def saved(path: Path, epoch: int, of: int, step: int = 0) -> Path:
    folder = RunFolder(path)
    state = {"state_dict": {"w": torch.zeros(10)}, "epoch": epoch, "step": step, "metric": None, "num_epochs": of}
    folder.save(state)
    folder.close()
    return path


def options(output: Path, *words: str) -> Any:
    found = asked(output, *words)
    return RunOptions(**{name: getattr(found, name) for name in RunOptions.__dataclass_fields__})


def test_runs_of_the_same_second_have_names_of_their_own(tmp_path: Path) -> None:
    paths = [run_path(options(tmp_path), 16) for _ in range(5)]
    assert len({*paths}) == 5 and paths == sorted(paths)
    with pytest.raises(FileExistsError):
        run_path(options(Path("/dev/null")), 16)


def test_names_are_in_utc_and_never_go_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Set(clock):
        @classmethod
        def now(cls, zone: Any = None) -> clock:
            assert zone is not None
            return clock(2026, 10, 25, 2, hours.pop(0), tzinfo=zone)

    hours = [50, 10, 55]
    monkeypatch.setattr(run_folder, "datetime", Set)
    names = [run_path(options(tmp_path), 16).name[:15] for _ in range(3)]
    assert names == ["20261025-025000", "20261025-025001", "20261025-025500"]


def test_an_unfinished_run_goes_on_before_finished_ones(tmp_path: Path) -> None:
    finished = saved(tmp_path / "20261025-025000-DaViT_nano-16", 3, of=3)
    unfinished = saved(tmp_path / "20261025-021000-DaViT_nano-16", 1, of=3, step=2)
    saved(tmp_path / "20261025-060000-DaViT_nano-32", 1, of=3)  # of another size
    saved(tmp_path / "mine-DaViT_nano-16", 1, of=3)  # a name of the user's
    assert run_path(options(tmp_path, "--auto-resume"), 16) == unfinished
    later = saved(tmp_path / "20261025-022000-DaViT_nano-16", 0, of=3, step=2)
    assert run_path(options(tmp_path, "--auto-resume"), 16) == later
    for path in (unfinished, later):
        shutil.rmtree(path)
    assert run_path(options(tmp_path, "--auto-resume"), 16) == finished
    damaged = saved(tmp_path / "20261025-010000-DaViT_nano-16", 3, of=3)
    (damaged / LAST).write_bytes((damaged / LAST).read_bytes()[:200])
    assert run_path(options(tmp_path, "--auto-resume"), 16) == damaged  # opening it will say so


def test_an_old_state_tells_by_its_flags_whether_it_is_finished(tmp_path: Path) -> None:
    for name, epoch in (("20261025-025000", 3), ("20261025-021000", 2)):
        folder = RunFolder(tmp_path / f"{name}-DaViT_nano-16")
        state = {"state_dict": {"w": torch.zeros(1)}, "epoch": epoch, "args": {"epochs": 3}, "format": FORMAT}
        folder.save(state)
        folder.close()
    assert run_path(options(tmp_path, "--auto-resume"), 16).name.startswith("20261025-021000")


def test_the_interrupted_run_goes_on_though_the_clock_was_set_back(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: Meddle
) -> None:
    nameless = [*RUN, "--experiment", ""]

    def at(minute: int) -> None:
        class Set(clock):
            @classmethod
            def now(cls, zone: Any = None) -> clock:
                return clock(2026, 10, 25, 2, minute, tzinfo=zone)

        monkeypatch.setattr(run_folder, "datetime", Set)

    def fail() -> None:
        raise ValueError("killed")

    at(50)
    train(*nameless)
    (finished,) = (tmp_path / "runs").iterdir()
    at(10)
    after(10, fail)
    train(*nameless, status=2)
    (killed,) = {*(tmp_path / "runs").iterdir()} - {finished}
    assert killed > finished
    train(*nameless, "--auto-resume")
    assert weights_hash(killed / LAST) == weights_hash(finished / LAST)
