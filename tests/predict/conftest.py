"""Write a checkpoint as train.py does, of a model with random weights, and images to show it."""

import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

import davit
from davit.predict import Predictor
from tests.conftest import randomise

MODEL_KWARGS: dict[str, Any] = {"embed_dims": [8, 16], "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
ARGS: dict[str, Any] = {"model": "DaViT_nano", "img_size": 16, "model_kwargs": MODEL_KWARGS, "crop_pct": 1.0}
CLASSES = ["ant", "bee", "cat"]


class Outcome(NamedTuple):
    """What a run of predict.py gave: its exit status, what it printed and what it logged."""

    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def model() -> torch.nn.Module:
    return randomise(davit.create_model("DaViT_nano", num_classes=len(CLASSES), **MODEL_KWARGS), 0).eval()


@pytest.fixture(scope="session")
def save(tmp_path_factory: pytest.TempPathFactory, model: torch.nn.Module) -> Callable[..., Path]:
    """save(**entries): a checkpoint of the model with these entries, and its own unless they are None."""

    def write(**entries: Any) -> Path:
        state = {"state_dict": model.state_dict(), "arch": "DaViT_nano", "args": ARGS, "class_names": CLASSES}
        file = tmp_path_factory.mktemp("trained") / "model.pth.tar"
        torch.save({key: value for key, value in {**state, **entries}.items() if value is not None}, file)
        return file

    return write


@pytest.fixture(scope="session")
def checkpoint(save: Callable[..., Path]) -> Path:
    return save()


@pytest.fixture(scope="session")
def loaded(checkpoint: Path) -> Predictor:
    return davit.load(checkpoint)


def noise(seed: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    """An image of coloured noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def png(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine images, two levels deep, and what is no image."""
    root = tmp_path / "pictures"
    for number in range(1, 10):
        place = root / ("deep/deeper" if number > 7 else "near")
        place.mkdir(parents=True, exist_ok=True)
        noise(number).save(place / f"{number}.png")
    (root / "notes.txt").write_text("no image")
    (root / ".hidden").mkdir()
    noise(0).save(root / ".hidden" / "0.png")
    noise(0).save(root / "near" / ".0.png")
    return root


@pytest.fixture
def predict(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, checkpoint: Path
) -> Iterator[Callable[..., Outcome]]:
    """predict(*words, stdin=b""): predict.py with the checkpoint, in a folder of its own, within this process."""
    from davit.predict.cli import main

    monkeypatch.chdir(tmp_path)
    handlers = logging.root.handlers[:]

    def go(*words: object, stdin: bytes = b"") -> Outcome:
        logging.root.handlers[:] = []
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        try:
            status = main(["--checkpoint", str(checkpoint), *map(str, words)])
        except SystemExit as leave:  # argparse
            status = int(leave.code or 0)
        return Outcome(status, *capfd.readouterr())

    yield go
    logging.root.handlers[:] = handlers
