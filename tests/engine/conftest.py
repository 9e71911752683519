"""A data set that trains in seconds, and train.py on it."""

import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.engine.runs import run_here


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of coloured noise, 16 x 16: 48 training and 13 validation pictures."""
    root = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 4)):
        for number, name in enumerate(("blue", "green", "red")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count + (split == "val" and number == 0)):
                pixels = draw.integers(0, 160, (16, 16, 3), dtype=np.uint8)
                pixels[..., number] += 80
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@pytest.fixture
def train(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """train.py on the small data set in a folder of its own, within this process."""
    monkeypatch.chdir(tmp_path)
    return partial(run_here, pictures, cwd=tmp_path)
