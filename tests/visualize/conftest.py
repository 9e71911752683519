"""Train a small model on the colour of one object on grey noise, so that it is known where to look."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import davit
from davit import DaViT
from davit.predict import Predictor

SIDE, RADIUS, COLOURS = 64, 10, ("red", "green", "blue")
MEAN, STD = 0.5, 1 / 3
MODEL_KWARGS: dict[str, Any] = {"embed_dims": [24, 48], "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}


class Scene(NamedTuple):
    """An image (SIDE, SIDE, 3) of uint8, its class, and the centre of its object (row, column)."""

    pixels: np.ndarray[Any, Any]
    colour: int
    centre: tuple[int, int]


def scene(seed: int) -> Scene:
    draw = np.random.default_rng(seed)
    picture = draw.normal(0.5, 0.1, (SIDE, SIDE, 3))
    colour = int(draw.integers(3))
    row, column = map(int, draw.integers(12, SIDE - 12, 2))
    down, right = np.mgrid[:SIDE, :SIDE]
    inside = (down - row) ** 2 + (right - column) ** 2 < RADIUS**2
    picture[inside] = np.where(np.arange(3) == colour, 0.9, 0.2) + draw.normal(0, 0.05, (int(inside.sum()), 3))
    return Scene((255 * picture.clip(0, 1)).round().astype(np.uint8), colour, (row, column))


def as_input(scenes: list[Scene]) -> torch.Tensor:
    pixels = torch.from_numpy(np.stack([one.pixels for one in scenes])).permute(0, 3, 1, 2).float()
    return (pixels / 255 - MEAN) / STD


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as train.py writes it; two passes over 480 scenes."""
    torch.manual_seed(0)
    scenes = [scene(seed) for seed in range(480)]
    inputs, colours = as_input(scenes), torch.tensor([one.colour for one in scenes])
    model = DaViT(num_classes=3, **MODEL_KWARGS)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for number in range(40):
        batch = torch.arange(24 * number, 24 * number + 24) % 480
        loss = F.cross_entropy(model(inputs[batch]), colours[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    file = tmp_path_factory.mktemp("trained") / "model.pth.tar"
    args = {"model": "DaViT_nano", "img_size": SIDE, "model_kwargs": MODEL_KWARGS, "crop_pct": 1.0}
    args |= {"mean": [MEAN] * 3, "std": [STD] * 3}
    torch.save({"state_dict": model.state_dict(), "args": args, "class_names": list(COLOURS)}, file)
    return file


@pytest.fixture
def predictor(trained: Path) -> Predictor:
    return davit.load(trained)


@pytest.fixture
def scene_file(tmp_path: Path) -> Path:
    """Scene 1000, which no training saw, as a file."""
    Image.fromarray(scene(1000).pixels).save(tmp_path / "scene.png")
    return tmp_path / "scene.png"
