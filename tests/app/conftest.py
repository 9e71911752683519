"""A classifier behind the page: a small one with random weights."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import davit
from davit import create_model
from davit.app import ClassifierReader
from tests.conftest import randomise

KWARGS = {"embed_dims": [8, 16], "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
CLASSES = ["ant", "bee", "cat"]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = randomise(create_model("DaViT_nano", num_classes=3, **KWARGS), 0)
    file = tmp_path_factory.mktemp("checkpoint") / "model.pth.tar"
    args = {"model": "DaViT_nano", "img_size": 32, "model_kwargs": KWARGS}
    torch.save({"state_dict": model.state_dict(), "args": args, "class_names": CLASSES}, file)
    return file


@pytest.fixture(scope="session")
def reader(checkpoint: Path) -> ClassifierReader:
    return ClassifierReader(davit.load(checkpoint))


@pytest.fixture(autouse=True)
def _same_log() -> Iterator[None]:
    handlers = logging.root.handlers[:]
    yield
    logging.root.handlers[:] = handlers
