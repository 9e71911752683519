"""A model with parameters that no other DaViT has: trained, gone on with, evaluated and asked as any other."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

import davit
from davit.engine import load_model
from davit.engine.run_folder import LAST, read_state
from davit.engine.validate import main as validate
from davit.predict.cli import main as predict
from tests.edits import edited
from tests.engine.edited import edited_nano
from tests.engine.runs import REPOSITORY, SHORT, Train, run, run_here, summary, train_command, weights_hash

PLAIN = [*SHORT, "--epochs", "3", "--lr", "1e-3", "--recovery-interval", "2"]
PLAIN += ["--model-ema", "--model-ema-decay", "0.9"]
EDITED = [*PLAIN, "--model", "edited_nano"]


def gammas(state: dict[str, Any], entry: str = "state_dict") -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state[entry].items() if name.endswith("gamma")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """The folder of a run of the edited model."""
    cwd = tmp_path_factory.mktemp("edited")
    run_here(pictures, *EDITED, cwd=cwd)
    return cwd / "runs/a"


def test_a_run_goes_on_from_its_own_states(train: Train, trained: Path, tmp_path: Path) -> None:
    whole = weights_hash(trained / LAST)
    state = read_state(trained / LAST)
    for entry in ("state_dict", "state_dict_ema"):
        learned = gammas(state, entry)
        assert len(learned) == 4
        assert all((tensor != 0.5).any() for tensor in learned.values())

    train(*EDITED, "--experiment", "b", "--resume", str(trained / "checkpoint-0.pth.tar"))
    assert weights_hash(tmp_path / "runs/b" / LAST) == whole


def test_its_checkpoints_are_evaluated_and_asked(
    trained: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (LAST, "model_best.pth.tar"):
        checkpoint = trained / file
        for flag, weights, entry in (("--use-ema", "EMA", "state_dict_ema"), ("--ema=never", "plain", "state_dict")):
            assert validate([str(pictures), "--checkpoint", str(checkpoint), flag, "-j", "0", "--json"]) == 0
            row = json.loads(capsys.readouterr().out.splitlines()[-1])
            assert (row["model"], row["weights"], row["count"]) == ("edited_nano", weights, 13)
            model = davit.load(checkpoint, device="cpu", ema="auto" if weights == "EMA" else "never").model
            for name, tensor in gammas(read_state(checkpoint), entry).items():
                assert torch.equal(model.state_dict()[name], tensor), name
    picture = next((pictures / "val" / "red").iterdir())
    assert predict([str(picture), "--checkpoint", str(trained / LAST), "--device", "cpu", "--format", "json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert len(answer["predictions"]) == 3


def test_the_classes_of_a_head_of_another_kind_are_those_of_its_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    by_two_layers = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.GELU(), torch.nn.Linear(8, 3))
    for head in (by_two_layers, torch.nn.Linear(3, 16, bias=False)):  # a weight that other code applies transposed
        model = edited_nano(num_classes=3, embed_dims=(8, 16), depths=(1, 1), num_heads=(1, 2))
        model.head = head
        create = Mock(return_value=model)
        monkeypatch.setattr(load_model, "create_model", create)
        args = {"model": "edited_nano", "num_classes": 3, "img_size": 16}
        torch.save({"state_dict": model.state_dict(), "args": args}, tmp_path / "head.pth")
        assert davit.load(tmp_path / "head.pth", device="cpu").model.head is head
        assert create.call_args.kwargs["num_classes"] == 3


def test_weights_without_the_edit_are_a_start_and_are_neither_evaluated_nor_gone_on_with(
    train: Train, trained: Path, pictures: Path, tmp_path: Path
) -> None:
    train(*PLAIN, "--experiment", "base", "--epochs", "1")
    base = tmp_path / "runs/base" / LAST
    still = ["--lr", "0", "--warmup-lr", "0", "--min-lr", "0", "--weight-decay", "0", "--epochs", "1"]
    train(*EDITED, *still, "--experiment", "tuned", "--initial-checkpoint", str(base))
    state = read_state(tmp_path / "runs/tuned" / LAST)
    averaged = read_state(base)["state_dict_ema"]
    assert all(torch.equal(state["state_dict"][name], tensor) for name, tensor in averaged.items())
    assert all((tensor == 0.5).all() for tensor in gammas(state).values())

    words = [str(pictures), "-j", "0", "--device", "cpu", "--checkpoint"]
    for checkpoint, model in ((base, "edited_nano"), (trained / LAST, "DaViT_nano")):
        with pytest.raises(davit.checkpoint.CheckpointError) as caught:
            davit.load(checkpoint, model, device="cpu")
        assert "main_blocks.0.0.0.gamma" in str(caught.value)
        assert validate([*words, str(checkpoint), "--model", model]) == 2
        result = train(*PLAIN, "--model", model, "--experiment", "other", "--resume", str(checkpoint), status=2)
        assert "main_blocks.0.0.0.gamma" in result.stderr


@pytest.mark.long
@pytest.mark.parametrize("name", ["LayerScale", "relative position bias", "dropout in the MLP", "a third branch"])
def test_who_edits_the_package_trains_is_killed_and_goes_on(name: str, tmp_path: Path, pictures: Path) -> None:
    """A copy of the package in which a researcher has edited model.py, and the commands on it."""
    copy = edited(name, tmp_path / "copy")
    for script in ("train.py", "validate.py", "predict.py", "tests/engine/dying.py"):
        shutil.copy(REPOSITORY / script, copy)

    def go(script: str, *words: object, **more: Any) -> subprocess.CompletedProcess[str]:
        return run([sys.executable, str(copy / script), *map(str, words)], tmp_path, PYTHONPATH=str(copy), **more)

    words = train_command(pictures, *PLAIN)[3:]
    go("train.py", *words, "--experiment", "whole")
    go("dying.py", *words, DIE=f"{int(signal.SIGKILL)},8,0", status=-signal.SIGKILL)
    go("train.py", *words, "--auto-resume")
    folder = tmp_path / "runs/a"
    assert [row["epoch"] for row in summary(folder)] == ["0", "1", "2"]
    assert weights_hash(folder / LAST) == weights_hash(tmp_path / "runs/whole" / LAST)
    for checkpoint in (folder / LAST, folder / "model_best.pth.tar"):
        go("validate.py", pictures, "-j", 0, "--device", "cpu", "--checkpoint", checkpoint)
    go("predict.py", pictures / "val/red", "--device", "cpu", "--checkpoint", folder / LAST)
