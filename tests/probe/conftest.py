"""Three classes of coloured noise, a small model with random weights, and the probe on them within this process."""

import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from davit.probe.__main__ import main
from tests.predict.conftest import checkpoint, model, save  # noqa: F401

CLASSES = ("blue", "green", "red")


class Outcome(NamedTuple):
    """What a call gave: its exit status, what it printed and what it logged."""

    status: int
    out: str
    err: str

    @property
    def rows(self) -> list[dict[str, Any]]:
        return json.loads(self.out)


def coloured(number: int, draw: np.random.Generator, noise: int = 190) -> Image.Image:
    pixels = draw.integers(0, noise, (16, 16, 3), dtype=np.uint8)
    pixels[..., number] += 40
    return Image.fromarray(pixels)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 training and 30 validation images."""
    root = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 10)):
        for number, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                coloured(number, draw).save(root / split / name / f"{i}.png")
    return root


def features_of(network: torch.nn.Module, folder: Path) -> tuple[np.ndarray[Any, Any], list[str], list[str]]:
    """Features, classes and names of a split's images, in order, one image at a time."""
    files = sorted(folder.glob("*/*.png"), key=lambda file: (file.parent.name, int(file.stem)))
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    rows: list[Any] = []
    for file in files:
        x_HWC = (torch.from_numpy(np.array(Image.open(file).convert("RGB"))).float() / 255 - mean) / std
        with torch.no_grad():
            x_BCHW = x_HWC.permute(2, 0, 1)[None]
            rows.append(network.forward_head(network.forward_features(x_BCHW), pre_logits=True)[0].numpy())  # type: ignore[operator]
    names = [f"{file.parent.name}/{file.name}" for file in files]
    return np.stack(rows), [file.parent.name for file in files], names


@pytest.fixture
def probe(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Callable[..., Outcome]]:
    """probe(*words): the command in a folder of its own, without loader processes."""
    monkeypatch.chdir(tmp_path)
    handlers = logging.root.handlers[:]

    def go(*words: object) -> Outcome:
        logging.root.handlers[:] = []
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
        try:
            status = main([*map(str, words), "--workers", "0"])
        except SystemExit as leave:  # argparse
            status = int(leave.code or 0)
        return Outcome(status, *capfd.readouterr())

    yield go
    logging.root.handlers[:] = handlers
