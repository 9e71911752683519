"""Write small image folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from davit.data import PictureDataset, open_dataset


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., Path]:
    """``pictures("train/ant/1.png", ...)``: such files, each of its own noise, below the folder that it returns."""

    def write(*files: str) -> Path:
        for number, file in enumerate(files):
            noise = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise).save(tmp_path / file)
        return tmp_path

    return write


@pytest.fixture
def make_folder(pictures: Callable[..., Path]) -> Callable[..., Path]:
    """``make_folder(train=40, val=10, classes=(...))``: so many images, assigned to the classes in turn."""

    def make(*, train: int = 40, val: int = 10, classes: tuple[str, ...] = ("ant", "bee")) -> Path:
        counts = {"train": train, "val": val}
        return pictures(
            *(f"{split}/{classes[i % len(classes)]}/{i:03d}.png" for split, n in counts.items() for i in range(n))
        )

    return make


@pytest.fixture
def train_set(make_folder: Callable[..., Path]) -> PictureDataset:
    return open_dataset(make_folder(), "train")
