"""What a checkpoint notes is believed within the limits of the flags, else refused with file and value."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import davit
from davit.engine.load_model import ModelOptions
from tests.engine.runs import SMALL, small_model


def noting(file: Path, **notes: Any) -> Path:
    """Write a checkpoint of the small model whose training notes these."""
    args = {"model": "DaViT_nano", "img_size": 16, "model_kwargs": SMALL, **notes}
    torch.save({"state_dict": small_model().state_dict(), "args": args}, file)
    return file


@pytest.mark.parametrize(
    "notes",
    [
        {"input_size": [3, 1_000_000, 1_000_000]},
        {"input_size": [3, 5000, 5000]},
        {"input_size": [3, 16]},
        {"input_size": "abc"},
        {"img_size": 10**12},
        {"img_size": 2**70},
        {"img_size": -1},
        {"img_size": "x"},
        {"img_size": math.nan},
        {"crop_pct": 1e-300},
        {"crop_pct": math.inf},
        {"mean": -1},
        {"std": 0.5},
        {"mean": [math.nan] * 3},
        {"mean": [[0.5]]},
        {"std": [0, 0, 0]},
        {"num_classes": 10**12},
        {"bit_depth": 99},
        {"percentiles": ["a", "b"]},
        {"in_chans": 10**9},
        {"interpolation": 3},
        {"gp": [1]},
        {"model_kwargs": [1]},
        {"model_kwargs": {**SMALL, "mlp_ratio": math.inf}},
        {"model_kwargs": {**SMALL, "embed_dims": [10**6, 10**6]}},
        {"model_kwargs": {**SMALL, "embed_dims": [8192, 16384]}},  # each within its limits, and not this checkpoint's
        {"model_kwargs": {**SMALL, "depths": [10**5, 1]}},
    ],
    ids=str,
)
def test_numbers_of_a_checkpoint_that_make_no_sense_are_refused(tmp_path: Path, notes: dict[str, Any]) -> None:
    file = noting(tmp_path / "c.pth", **notes)
    with pytest.raises(ValueError) as error:
        davit.load(file)
    assert "c.pth" in str(error.value)
    named = next(iter(notes))
    assert named in str(error.value) or "img_size" in str(error.value) or "embed_dims" in str(error.value)


def test_what_a_caller_gives_replaces_what_makes_no_sense(tmp_path: Path) -> None:
    file = noting(tmp_path / "c.pth", input_size=[3, 10**6, 10**6], crop_pct=1e-300)
    model = davit.load(file, img_size=16, crop_pct=0.9)
    assert (model.config["input_size"], model.config["crop_pct"]) == ((3, 16, 16), 0.9)
    large = noting(tmp_path / "d.pth", img_size=5000)
    assert davit.load(large, img_size=32).config["input_size"] == (3, 32, 32)


@pytest.mark.parametrize(
    "options",
    [{"img_size": 10**6}, {"crop_pct": math.nan}, {"std": (0.0,)}, {"model_kwargs": {"mlp_ratio": math.inf}}],
)
def test_options_of_python_have_the_limits_of_flags(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        ModelOptions(**options)
