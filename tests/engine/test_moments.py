"""The optimizer's moments belong to parameters by name: another grouping takes them over."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from davit.engine.run_folder import LAST, read_state
from davit.engine.steps import Stepper
from tests.engine.runs import SHORT, Train, weights_hash

RUN = [*SHORT, "--epochs", "2", "--lr", "1e-3"]
MORE = ["--epochs", "3", "--auto-resume"]


def moments(file: Path) -> dict[str, Any]:
    """The moments of each parameter by name, of a state that has the names."""
    state = read_state(file)
    numbers = [number for group in state["optimizer"]["param_groups"] for number in group["params"]]
    names = [name for group in state["parameters"] for name in group]
    return {name: state["optimizer"]["state"][number] for number, name in zip(numbers, names, strict=True)}


@pytest.fixture
def begun(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A run of two epochs, and what its optimizer holds; `Stepper.step` notes what the next run begins with."""
    train(*RUN)
    return moments(tmp_path / "runs/a" / LAST)


@pytest.fixture
def first(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the optimizer holds before the first step of a run, by name, and the decays and rates of its groups."""
    found: dict[str, Any] = {}
    step = Stepper.step

    def noted(self: Stepper, *rest: Any) -> Any:
        if not found:
            names = {id(parameter): name for name, parameter in self.model.named_parameters()}
            for group in self.optimizer.param_groups:
                for parameter in group["params"]:
                    held = {
                        key: torch.as_tensor(value).clone() for key, value in self.optimizer.state[parameter].items()
                    }
                    found[names[id(parameter)]] = held, group["weight_decay"], group["lr"]
        return step(self, *rest)

    monkeypatch.setattr(Stepper, "step", noted)
    return found


def same(before: dict[str, Any], found: dict[str, Any]) -> bool:
    return {*before} == {*found} and all(
        torch.equal(torch.as_tensor(before[name][key]), value)
        for name, (held, _, _) in found.items()
        for key, value in held.items()
    )


GROUPINGS = [["--weight-decay", "0"], ["--weight-decay", "0.1"], ["--layer-decay", "0.7"]]
GROUPINGS += [["--layer-decay", "0.7", "--weight-decay", "0"]]


@pytest.mark.parametrize("flags", GROUPINGS, ids=" ".join)
@pytest.mark.parametrize("is_old", [False, True])
def test_another_grouping_takes_the_moments_over(
    train: Train, tmp_path: Path, begun: dict[str, Any], first: dict[str, Any], flags: list[str], is_old: bool
) -> None:
    file = tmp_path / "runs/a" / LAST
    if is_old:  # a state of an earlier version knows groups alone
        state = read_state(file)
        del state["parameters"]
        file.unlink()
        torch.save(state, file)
    result = train(*RUN, *MORE, *flags)
    assert same(begun, first)
    decay = float(flags[flags.index("--weight-decay") + 1]) if "--weight-decay" in flags else 0.05
    assert {decay for _, decay, _ in first.values()} == {0.0, decay}
    assert (len({rate for _, _, rate in first.values()}) > 1) == ("--layer-decay" in flags)
    assert flags[0] in result.stderr
    # and back, and on with the same flags
    first.clear()
    now = moments(file)
    train(*RUN, "--epochs", "4", "--auto-resume")
    assert same(now, first)


def test_the_grouping_and_the_state_may_be_another_runs(train: Train, tmp_path: Path, first: dict[str, Any]) -> None:
    train(*RUN, "--layer-decay", "0.5", "--weight-decay", "0")
    first.clear()
    before = moments(tmp_path / "runs/a" / LAST)
    train(*RUN, "--epochs", "3", "--experiment", "b", "--resume", "runs/a/last.pth.tar")
    assert same(before, first)


def test_momentum_of_sgd_is_taken_over(train: Train, tmp_path: Path, first: dict[str, Any]) -> None:
    train(*RUN, "--opt", "sgd")
    first.clear()
    before = moments(tmp_path / "runs/a" / LAST)
    train(*RUN, *MORE, "--opt", "sgd", "--weight-decay", "0")
    assert same(before, first) and all("momentum_buffer" in held for held, _, _ in first.values())


def test_an_old_state_of_the_same_groups_is_bit_identical(train: Train, tmp_path: Path) -> None:
    train(*RUN)
    shutil.copytree(tmp_path / "runs/a", tmp_path / "runs/old")
    file = tmp_path / "runs/old" / LAST
    state = read_state(file)
    del state["parameters"]
    file.unlink()
    torch.save(state, file)
    for name in ("a", "old"):
        train(*RUN, *MORE, "--experiment", name)
    assert weights_hash(file) == weights_hash(tmp_path / "runs/a" / LAST)


def test_what_cannot_be_taken_over_is_named(train: Train, tmp_path: Path, begun: dict[str, Any]) -> None:
    file = tmp_path / "runs/a" / LAST
    state = read_state(file)
    group = next(names for names in state["parameters"] if "head.weight" in names)
    group[group.index("head.weight")] = "old_head.weight"
    file.unlink()
    torch.save(state, file)
    result = train(*RUN, *MORE)
    assert any("head.weight" in line and "old_head" not in line for line in result.stderr.splitlines())
    assert any("old_head.weight" in line for line in result.stderr.splitlines())
    # of an old state whose groups nobody can tell
    state = read_state(file)
    del state["parameters"]
    state["optimizer"]["param_groups"][0]["params"].pop()
    file.unlink()
    torch.save(state, file)
    assert "--no-resume-opt" in train(*RUN, "--epochs", "4", "--auto-resume", status=2).stderr
