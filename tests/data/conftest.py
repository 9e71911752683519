"""Small picture folders and a data set that needs none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from davit.data import PictureDataset, open_dataset


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _write_picture(file: Path, value: int, size: tuple[int, int] = (24, 20)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(value).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)


@pytest.fixture
def write_picture() -> Callable[..., None]:
    """write_picture(file, value): noise of that seed."""
    return _write_picture


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """make_folder(train=40, val=10, classes=(...)): so many pictures, dealt to the classes in turn."""

    def make(*, train: int = 40, val: int = 10, classes: tuple[str, ...] = ("ant", "bee")) -> Path:
        root = tmp_path / "pictures"
        for split, count in (("train", train), ("val", val)):
            for i in range(count):
                _write_picture(root / split / classes[i % len(classes)] / f"{i:03d}.png", i)
        return root

    return make


@pytest.fixture
def train_set(make_folder: Callable[..., Path]) -> PictureDataset:
    return open_dataset(make_folder(), "train")
