"""Provide checkpoints of small models, and exports that tests share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from davit import create_model
from tests.conftest import SMALL, randomise

TINY = {**SMALL, "depths": (1, 1), "embed_dims": (16, 32), "num_heads": (2, 2)}
NAMES = ["zero", "one, two", 'a "quoted" one', "über|日本", "back\\slash"]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``saved(name, **kwargs)``: a checkpoint as train.py leaves it, of random weights."""

    def make(name: str = "DaViT_tiny", size: tuple[int, int] = (48, 64), **kwargs: Any) -> Path:
        kwargs = {**TINY, **kwargs}
        model = randomise(create_model(name, accelerate=False, num_classes=len(NAMES), **kwargs), 3).eval()
        bands = kwargs.pop("in_chans", 3)
        args = {
            "model": name,
            "model_kwargs": kwargs,
            "num_classes": len(NAMES),
            "input_size": [bands, *size],
            "mean": [0.1 * (band + 1) for band in range(bands)],
            "std": [0.3] * bands,
            "crop_pct": 0.8,
            "interpolation": "bilinear",
        }
        file = tmp_path_factory.mktemp("saved") / "best.pth.tar"
        torch.save({"state_dict": model.state_dict(), "args": args, "class_names": NAMES}, file)
        return file

    return make


@pytest.fixture(scope="session")
def small(saved) -> Path:
    return saved()


@pytest.fixture(scope="session")
def exported(small, tmp_path_factory) -> Callable[[str], Path]:
    """``exported(".onnx")``: the small model's logits in a format, written once."""
    made: dict[str, Path] = {}

    def make(suffix: str) -> Path:
        from davit.export import export

        if suffix not in made:
            made[suffix] = export(small, tmp_path_factory.mktemp("exported") / f"model{suffix}").path
        return made[suffix]

    return make
