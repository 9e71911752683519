"""From where a run continues, and what it never does to the run before."""

import os
import signal
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import HashStore

from davit.engine import build
from davit.engine.distributed import World
from davit.engine.flags import train_parser
from davit.engine.run_folder import BEST, LAST, PREVIOUS, RunFolder, open_folder, read_state
from davit.engine.steps import Stepper
from tests.engine.runs import SHORT, Train, summary, weights_hash

A = [*SHORT, "--epochs", "3", "--lr", "1e-3"]
B = [*A, "--experiment", "b"]
CPU = torch.device("cpu")


def tiny_state(epoch: int, step: int = 0) -> dict[str, Any]:
    return {"state_dict": {"w": torch.full((1000,), float(epoch))}, "epoch": epoch, "step": step, "metric": None}


def saved(path: Path, epoch: int, step: int = 0) -> None:
    """Let a run have saved a state in its folder."""
    folder = RunFolder(path)
    folder.save(tiny_state(epoch, step))
    folder.close()


def asked(output: Path, *words: str) -> Namespace:
    return train_parser().parse_args(["--model", "DaViT_nano", "--output", str(output), *words])


def opened(options: Namespace, world: World) -> tuple[Path, dict[str, Any] | None]:
    found = open_folder(options, 16, world)
    found.folder.close()
    return found.folder.path, found.state


def rates(folder: Path) -> list[float]:
    return [float(row["lr"]) for row in summary(folder)]


# -- a job that torchrun restarts


def test_a_restarted_job_goes_on_in_its_own_folder_and_in_no_other(tmp_path: Path) -> None:
    earlier = tmp_path / "20990101-000000-DaViT_nano-16"
    saved(earlier, 7)
    world = World(0, 0, 1, CPU, HashStore())
    path, state = opened(asked(tmp_path), world)
    assert path != earlier and state is None
    again, state = opened(asked(tmp_path), world)  # restarted before it had saved anything
    assert (again, state) == (path, None)
    saved(path, 1, step=5)
    again, state = opened(asked(tmp_path), world)
    assert again == path
    assert state is not None
    assert (state["epoch"], state["step"]) == (1, 5)


def test_a_restart_does_not_soften_the_refusal_of_anothers_folder(tmp_path: Path) -> None:
    other = tmp_path / "a"
    saved(other, 7)
    world = World(0, 0, 1, CPU, HashStore())
    for _ in range(2):
        with pytest.raises(ValueError) as refused:
            opened(asked(tmp_path, "--experiment", "a"), world)
        assert all(word in str(refused.value) for word in (str(other), "--auto-resume", "--overwrite"))
        assert read_state(other / LAST)["epoch"] == 7
    replacing = asked(tmp_path, "--experiment", "a", "--overwrite")
    path, state = opened(replacing, world)
    assert state is None
    assert not (path / LAST).exists()
    saved(path, 2)
    _, state = opened(replacing, world)
    assert state is not None  # its own work is not overwritten by the restart
    assert state["epoch"] == 2


# -- what --overwrite may and may not remove


def test_overwrite_reads_what_it_resumes_from_before_it_removes_anything(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runs/a"
    train(*A)
    whole = weights_hash(folder / LAST)
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    monkeypatch.setitem(sys.modules, "wandb", None)
    for mistake in (["--resume", "no.pth"], ["--log-wandb"], ["--lr", "-1"], ["--opt", "adamx"]):
        train(*A, "--overwrite", *mistake, status=2)
        assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    train(*A, "--overwrite", "--resume", str(folder / "checkpoint-0.pth.tar"))
    assert weights_hash(folder / LAST) == whole


def test_overwrite_removes_a_run_and_nothing_else(train: Train, tmp_path: Path) -> None:
    folder = tmp_path / "runs/a"
    (folder / "notes").mkdir(parents=True)
    kept = {folder / "notes/mine.txt", folder / "weights.pth"}
    for file in kept:
        file.write_bytes(b"kept")
    train(*A, "--log-tensorboard", "--save-images", "--log-interval", "1", "--epochs", "1")
    train(*A, "--overwrite", "--epochs", "1")
    assert {entry.name for entry in folder.iterdir()} == {
        *("notes", "weights.pth", ".lock", "args.yaml", "summary.csv"),
        *("last.pth.tar", "model_best.pth.tar", "checkpoint-0.pth.tar"),
    }
    assert all(file.read_bytes() == b"kept" for file in kept)


# -- which state is the newest


def test_the_newest_state_does_not_depend_on_the_clock(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a")
    kept: dict[int, float] = {}
    for epoch in range(12):
        folder.save(tiny_state(epoch))
        kept = folder.keep_epoch(epoch, float(epoch), kept)
    for age, name in enumerate((LAST, PREVIOUS, "checkpoint-9.pth.tar")):
        os.utime(folder.path / name, (1000 + age, 1000 + age))  # as if the clock had been set back
    for expected in (11, 10, 9):
        state = folder.go_on()
        assert state is not None and state["epoch"] == expected
        for file in folder.path.glob("*.pth.tar"):
            if read_state(file)["epoch"] == expected:
                file.unlink()


def test_a_metric_that_is_not_a_number_is_the_worst(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a", keep=2, higher_is_better=False)
    kept: dict[int, float] = {}
    for epoch, metric in enumerate((float("nan"), 2.0, float("nan"), 1.0)):
        folder.save(tiny_state(epoch))
        kept = folder.keep_epoch(epoch, metric, kept)
    assert kept == {1: 2.0, 3: 1.0}
    assert read_state(folder.path / BEST)["epoch"] == 3


# -- what is taken from a state


def test_weights_epoch_and_average_of_a_foreign_state_are_taken_over(train: Train, tmp_path: Path) -> None:
    still = ["--lr", "0", "--warmup-lr", "0", "--min-lr", "0", "--weight-decay", "0", "--model-ema-decay", "1"]
    train(*A, "--epochs", "1")
    weights = read_state(tmp_path / "runs/a/last.pth.tar")["state_dict"]
    average = {name: tensor + 1 for name, tensor in weights.items()}
    foreign = {"state_dict": weights, "state_dict_ema": average, "epoch": 0, "args": Namespace(lr=1)}
    torch.save(foreign, tmp_path / "timm.pth.tar")
    result = train(*B, *still, "--model-ema", "--resume", "timm.pth.tar")
    assert [row["epoch"] for row in summary(tmp_path / "runs/b")] == ["1", "2"]
    state = read_state(tmp_path / "runs/b/last.pth.tar")
    for name, tensor in average.items():
        assert torch.equal(state["state_dict_ema"][name], tensor), name
        assert torch.equal(state["state_dict"][name], weights[name]), name
    # another optimizer does not take over the moments of a state of ours
    result = train(*A, "--opt", "sgd", "--auto-resume", status=2)
    for word in ("--opt adamw", "--opt sgd", "--no-resume-opt"):
        assert word in result.stderr


def test_no_resume_opt_takes_the_weights_and_the_epoch(train: Train, tmp_path: Path) -> None:
    train(*A, "--epochs", "2")
    state = str(tmp_path / "runs/a/last.pth.tar")
    b = [*B, "--epochs", "5", "--resume", state, "--no-resume-opt", "--sched", "step"]
    train(*b, "--opt", "sgd", "--recovery-interval", "1")
    folder = tmp_path / "runs/b"
    assert [row["epoch"] for row in summary(folder)] == ["2", "3", "4"]
    assert rates(folder) == pytest.approx([1e-3] * 3)
    # interrupted, it continues from its own state, optimizer and all, rather than from --resume again
    whole = weights_hash(folder / "last.pth.tar")
    for name in (LAST, "checkpoint-4.pth.tar"):
        (folder / name).unlink(missing_ok=True)
    train(*b, "--opt", "sgd", "--auto-resume")
    assert weights_hash(folder / "last.pth.tar") == whole
    train(*A, "--experiment", "c", "--epochs", "4", "--resume", state, "--no-resume-opt", "--start-epoch", "3")
    assert [row["epoch"] for row in summary(tmp_path / "runs/c")] == ["3"]


def test_plateau_remembers_earlier_metrics(train: Train, tmp_path: Path) -> None:
    flags = [*("--sched", "plateau", "--patience-epochs", "1", "--epochs", "6", "--lr-noise", "0.5", "1.0")]
    flags += [*("--eval-metric", "loss", "--lr", "1e-5", "--warmup-epochs", "0", "--checkpoint-hist", "9")]
    train(*A, *flags)
    whole = rates(tmp_path / "runs/a")
    assert len(set(whole)) > 2
    state = str(tmp_path / "runs/a/checkpoint-3.pth.tar")
    train(*B, *flags, "--resume", state)
    assert rates(tmp_path / "runs/b") == whole[4:]
    assert weights_hash(tmp_path / "runs/b" / LAST) == weights_hash(tmp_path / "runs/a" / LAST)


def test_start_epoch_enters_a_schedule_of_updates(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[list[float]] = []
    step = Stepper.step

    def recorded(self: Stepper, *rest: Any) -> Any:
        used[-1].append(self.optimizer.param_groups[0]["lr"])
        return step(self, *rest)

    monkeypatch.setattr(Stepper, "step", recorded)
    for more in ([], ["--start-epoch", "2", "--experiment", "b"]):
        used.append([])
        train(*A, "--sched-on-updates", *more)
    assert used[1] == pytest.approx(used[0][12:])


# -- told to stop while it evaluates


def test_a_signal_in_the_evaluation_is_not_kept_waiting(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(*A, "--model-ema")
    evaluate, passes = build.evaluate, []

    def interrupted(*words: Any, **options: Any) -> Any:
        passes.append(words)
        if len(passes) == 3:  # of the weights and of their average, each epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*words, **options)

    monkeypatch.setattr(build, "evaluate", interrupted)
    b = [*B, "--model-ema"]
    train(*b, status=75)
    state = read_state(tmp_path / "runs/b/last.pth.tar")
    assert (state["epoch"], state["step"]) == (1, 6)  # the epoch is trained, and yet to be evaluated
    assert [row["epoch"] for row in summary(tmp_path / "runs/b")] == ["0"]
    train(*b, "--auto-resume")
    assert weights_hash(tmp_path / "runs/b/last.pth.tar") == weights_hash(tmp_path / "runs/a/last.pth.tar")
    for name in ("train_loss", "eval_loss", "ema_top1", "lr"):
        whole, stopped = ([row[name] for row in summary(tmp_path / f"runs/{run}")] for run in "ab")
        assert whole == stopped, name
