"""Weights of 16 bits, and states that are kept for good."""

import json
import logging
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

import davit
from davit.engine import precision
from davit.engine.precision import Precision, precision_from
from davit.engine.run_folder import LAST, RunFolder, read_state
from davit.engine.validate import main as validate
from tests.engine.runs import SHORT, Train, summary

CPU = torch.device("cpu")


def asked(**flags: Any) -> Namespace:
    return Namespace(**{"amp": False, "native_amp": False, "apex_amp": False, "amp_dtype": None, **flags})


def test_the_dtype_of_weights_excludes_mixed_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda: True)
    found = precision_from(asked(model_dtype="bfloat16"), CPU)
    assert found == Precision("cpu", None, "", torch.bfloat16)
    assert (found.name, found.needs_scaler, found.flags["amp"]) == ("bfloat16 weights", False, False)
    for flags in ({}, {"model_dtype": None}, {"model_dtype": "float32"}):
        assert precision_from(asked(**flags), CPU) == Precision("cpu")
    for flags in ({"amp": True}, {"native_amp": True}, {"amp_dtype": "bf16"}):
        with pytest.raises(ValueError, match="model_dtype=float16"):
            precision_from(asked(**flags, model_dtype="float16"), CPU)
    assert precision_from(asked(amp_dtype="fp16", model_dtype="float32"), CPU).dtype == torch.float16
    with pytest.raises(ValueError, match="float16"):
        precision_from(asked(model_dtype="float8"), CPU)


def test_a_processor_that_emulates_it_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda: False)
    monkeypatch.setattr(precision, "bfloat16_cost", lambda: 30.0)
    found = precision_from(asked(model_dtype="bfloat16"), CPU)
    assert found.weights == torch.bfloat16
    with caplog.at_level(logging.WARNING):
        found.say(before="float16 weights")
    assert "30" in caplog.text and "--model-dtype float16" in caplog.text
    assert precision_from(asked(model_dtype="float16"), CPU).remark == ""


def test_a_run_in_bfloat16_and_its_evaluation(
    train: Train, tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SHORT, "--model-dtype", "bfloat16", "--model-ema", "--model-ema-decay", "0.9", "--keep-epochs", "1,2,9"]
    train(*words, "--stop-epoch", "1")
    folder = tmp_path / "runs/a"
    before = read_state(folder / "milestone-1.pth.tar")
    train(*words, "--auto-resume")
    state = read_state(folder / LAST)
    assert {tensor.dtype for tensor in state["state_dict"].values()} == {torch.bfloat16}
    assert {tensor.dtype for tensor in state["state_dict_ema"].values()} == {torch.float32}
    assert state["precision"] == "bfloat16 weights"
    assert all(float(row["train_loss"]) < 2 for row in summary(folder))
    averages = before["state_dict_ema"], state["state_dict_ema"]
    assert not all(torch.equal(averages[0][name], averages[1][name]) for name in averages[0])
    assert sorted(file.name for file in folder.glob("milestone-*")) == ["milestone-1.pth.tar", "milestone-2.pth.tar"]
    capsys.readouterr()
    for dtype, ema in (("bfloat16", "never"), ("float32", "always")):
        flags = ["--checkpoint", str(folder / LAST), "--workers", "0", "--model-dtype", dtype, "--ema", ema]
        assert validate([str(pictures), *flags, "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        prefix = "eval" if ema == "never" else "ema"
        assert result["loss"] == pytest.approx(float(summary(folder)[-1][f"{prefix}_loss"]), rel=1e-3)
    model, exact = (davit.load(folder / LAST, model_dtype=dtype) for dtype in ("bfloat16", "float32"))
    files = sorted(pictures.glob("val/*/*.png"))
    found, expected = model.embed(files), exact.embed(files)
    assert (found.dtype, found.shape) == (torch.float32, expected.shape)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)
    assert not torch.equal(found, expected)
    for one, other in zip(model.predict(files), exact.predict(files), strict=True):
        assert one.probabilities.dtype == torch.float32
        torch.testing.assert_close(one.probabilities, other.probabilities, rtol=0.05, atol=0.02)


def test_16_bits_beside_amp_are_refused(train: Train, pictures: Path) -> None:
    failed = train(*SHORT, "--model-dtype", "bfloat16", "--amp", status=2)
    assert "--model-dtype bfloat16" in failed.stderr


def test_milestones_outlast_the_history(train: Train, tmp_path: Path) -> None:
    train(*SHORT, "--epochs", "4", "--checkpoint-hist", "1", "--keep-epochs", "1,3", "--val-interval", "4")
    folder = tmp_path / "runs/a"
    for epochs in (1, 3):
        state = read_state(folder / f"milestone-{epochs}.pth.tar")
        assert (state["epoch"], state["step"]) == (epochs, 0)
    assert sorted(file.name for file in folder.glob("checkpoint-*")) == ["checkpoint-3.pth.tar"]
    train(*SHORT, "--overwrite", "--dry-run")
    assert (folder / "milestone-1.pth.tar").exists()
    train(*SHORT, "--overwrite")
    assert not list(folder.glob("milestone-*"))


def test_a_milestone_is_made_up_for_after_a_kill(tmp_path: Path) -> None:
    """Between the state and its second name; and the newest of them serves where the last state is damaged."""
    folder = RunFolder(tmp_path, milestones=[2])
    state = {"format": 1, "state_dict": {}, "epoch": 2, "step": 0, "metric": None, "kept": {}}
    folder.save(state)
    assert folder.go_on() is not None
    assert read_state(tmp_path / "milestone-2.pth.tar")["epoch"] == 2
    (tmp_path / "milestone-10.pth.tar").write_bytes((tmp_path / LAST).read_bytes())
    (tmp_path / "milestone-9.pth.tar").write_bytes(b"damaged")
    (tmp_path / LAST).unlink()
    assert folder.go_on() is not None
    assert (tmp_path / LAST).samefile(tmp_path / "milestone-10.pth.tar")
    folder.close()


@pytest.mark.parametrize("epochs", ["0", "2,1", "1,1", "x", "1.5", ""])
def test_epochs_that_are_none(train: Train, epochs: str) -> None:
    assert "--keep-epochs" in train(*SHORT, "--keep-epochs", epochs, status=2).stderr
