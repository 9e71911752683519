"""Provide checkpoints and exports that tests of the hub share."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from davit import create_model
from davit.hub.export import ExportOptions, export
from tests.conftest import randomise

NAMES = ["zero", "one, two", 'a "quoted" one', "über|日本", "back\\slash", "`code` *bold*", "a\nline"]


@pytest.fixture(autouse=True)
def nothing_here(tmp_path, monkeypatch):
    """Empty folders in place of the user's, and no network."""
    monkeypatch.setenv("DAVIT_WEIGHTS_DIR", str(tmp_path / "weights"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def never_published(monkeypatch):
    """The loader of published weights fails if it is called."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("published weights were asked for")

    for place in (
        "davit.pretrained.fetch_pretrained",
        "davit.pretrained.load_pretrained",
        "davit.registry.load_pretrained",
    ):
        monkeypatch.setattr(place, fail)


@pytest.fixture
def trained(tmp_path) -> Callable[..., tuple[Path, torch.nn.Module]]:
    """``trained(name, **kwargs)``: a checkpoint as train.py leaves it, of random weights, and its model."""

    def make(name: str = "DaViT_nano", folder: str = "run", **kwargs: Any) -> tuple[Path, torch.nn.Module]:
        options = {"num_classes": len(NAMES), **kwargs}
        model = randomise(create_model(name, accelerate=False, **options), 3).eval()
        bands = options.get("in_chans", 3)
        args = {
            "model": name,
            "model_kwargs": {key: value for key, value in kwargs.items() if key not in ("num_classes", "in_chans")},
            "num_classes": options["num_classes"],
            "input_size": [bands, 40, 40],
            "mean": [0.1 * (band + 1) for band in range(bands)],
            "std": [0.3] * bands,
            "crop_pct": 0.8,
            "interpolation": "bilinear",
        }
        state = {
            "state_dict": model.state_dict(),
            "args": args,
            "class_names": NAMES[: options["num_classes"]],
            "epoch": 2,
            "step": 0,
            "results": {1: {"eval_loss": 0.5, "eval_top1": 90.0, "eval_top5": 100.0}},
            "data": {"val": {"pictures": 360}},
            "bad_images": {},
        }
        path = tmp_path / folder / "model_best.pth.tar"
        path.parent.mkdir()
        torch.save(state, path)
        return path, model

    return make


@pytest.fixture
def exported(trained, tmp_path) -> Callable[..., tuple[Path, torch.nn.Module]]:
    """``exported(name, **kwargs)``: the folder of an export, and the model that it is of."""

    def make(name: str = "DaViT_nano", options: ExportOptions | None = None, **kwargs: Any) -> Any:
        path, model = trained(name, **kwargs)
        return export(path, tmp_path / "out", options).folder, model

    return make


@pytest.fixture
def on_the_hub(tmp_path) -> Callable[..., str]:
    """``on_the_hub(folder, revision)``: lay a folder into the hub's cache, and return how it is called."""

    def lay(folder: Path, revision: str = "main", name: str = "mine") -> str:
        repository = tmp_path / "hub" / f"models--me--{name}"
        commit = f"{len(list(repository.glob('snapshots/*'))):040x}"
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
        snapshot = repository / "snapshots" / commit
        snapshot.mkdir(parents=True)
        for file in folder.iterdir():
            (snapshot / file.name).write_bytes(file.read_bytes())
        return f"hf-hub:me/{name}" + ("" if revision == "main" else f"@{revision}")

    return lay


WITHOUT_DAVIT = """
import sys


class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "davit":
            raise ImportError("davit is not installed here")


sys.meta_path.insert(0, Blocked())
"""
PYTHON = sys.executable
