"""What a state holds is checked before it is used: a wrong type is a sentence and status 2."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from davit.checkpoint import CheckpointError
from davit.engine.run_folder import LAST, has_our_format, read_any, read_state
from tests.engine.runs import SHORT, Train, run_here

RUN = [*SHORT, "--epochs", "1"]
WRONG: list[Any] = ["x", -1, 1.5, None, True, [], {}, [None], {"a": "b"}, {1: {}}, torch.zeros(1), 2**80]


@pytest.fixture(scope="module")
def state(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    cwd = tmp_path_factory.mktemp("state")
    run_here(pictures, *RUN, "--recovery-interval", "1", cwd=cwd)
    return read_state(cwd / "runs/a" / LAST)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("epoch", value) for value in ("x", None, -1, 1.5, [0], torch.zeros(1))],
        *[("step", value) for value in ("0", None, -3)],
        *[("global_batch", 0), ("updates", "8"), ("kept", {"a": 1}), ("kept", [1]), ("bad_images", {"a": 1})],
        *[("optimizer", {}), ("optimizer", {"state": {}, "param_groups": [{"params": "x"}]}), ("scaler", 1)],
        *[
            ("args", None),
            ("args", {"lr": torch.zeros(2)}),
            ("args", {"mean": [torch.zeros(2)]}),
            ("class_names", "ab"),
            ("class_names", [1, 2, 3]),
            ("totals", {"steps": "x"}),
        ],
        *[("data", {"train": {}}), ("results", {0: {"a": "b"}}), ("parameters", [["a"], "b"]), ("metric", "x")],
    ],
)
def test_a_wrong_type_is_named(tmp_path: Path, state: dict[str, Any], name: str, value: Any) -> None:
    torch.save({**state, name: value}, tmp_path / "x.pth.tar")
    for read in (read_state, read_any):
        with pytest.raises(CheckpointError) as refused:
            read(tmp_path / "x.pth.tar")
        assert f"its {name} is" in str(refused.value)


def test_a_format_of_another_type_is_not_ours() -> None:
    for value in [*WRONG, torch.zeros(2), torch.zeros(0), float("nan")]:
        assert has_our_format({"format": value}) == (value is True)  # which is 1
    assert has_our_format({"format": 1}) and not has_our_format({})


def test_a_run_from_a_state_of_no_known_format(train: Train, tmp_path: Path, state: dict[str, Any]) -> None:
    torch.save({**state, "format": torch.zeros(2)}, tmp_path / "x.pth.tar")
    result = train(*RUN, "--epochs", "1", "--overwrite", "--resume", str(tmp_path / "x.pth.tar"), status=None)
    assert result.returncode in (0, 2) and "Traceback" not in result.stderr


@pytest.mark.parametrize("values", [1, pytest.param(len(WRONG), marks=pytest.mark.long)])
def test_any_wrong_value_anywhere_ends_with_a_sentence(
    train: Train, tmp_path: Path, state: dict[str, Any], values: int
) -> None:
    """Or with a run, where the value is one that it can do with."""
    paths = [(name,) for name in state if name not in ("state_dict", "format", "arch", "num_epochs")]
    paths += [("optimizer", "param_groups", 0, "lr"), ("optimizer", "param_groups", 0, "betas")]
    paths += [("optimizer", "state", 0), ("scheduler", "base_values"), ("scheduler", "t_initial"), ("args", "opt")]
    paths += [("args", "eval_metric"), ("data", "train"), ("totals", "samples")]
    file = tmp_path / "x.pth.tar"
    for number, path in enumerate(paths):
        for value in [*WRONG, *WRONG][number % len(WRONG) :][:values]:
            broken = copy.deepcopy(state)
            *above, last = path
            place: Any = broken
            for key in above:
                place = place[key]
            place[last] = value
            torch.save(broken, file)
            result = train(*RUN, "--epochs", "1", "--overwrite", "--resume", str(file), status=None)
            assert result.returncode in (0, 2), (path, value)
            assert "Traceback" not in result.stderr, (path, value)


@pytest.mark.parametrize("name", ["optimizer", "scheduler", "args", "kept", "totals", "class_names", "metric"])
def test_a_state_that_lacks_something_is_refused(
    train: Train, tmp_path: Path, state: dict[str, Any], name: str
) -> None:
    torch.save({key: value for key, value in state.items() if key != name}, tmp_path / "x.pth.tar")
    assert name in train(*RUN, "--resume", "x.pth.tar", status=2).stderr


def test_a_state_of_wrong_types_is_passed_over(train: Train, tmp_path: Path) -> None:
    train(*RUN)
    folder = tmp_path / "runs/a"
    wrong = {**read_state(folder / LAST), "epoch": "x"}
    (folder / LAST).unlink()
    torch.save(wrong, folder / LAST)
    assert "epoch" in train(*RUN, "--epochs", "2", "--auto-resume").stderr
    assert read_state(folder / LAST)["epoch"] == 2
