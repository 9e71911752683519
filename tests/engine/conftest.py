"""A data set that trains in seconds, and train.py on it."""

import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.engine.runs import Train, run_here


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of coloured noise, 16 x 16: 48 training and 13 validation images."""
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
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, check=False, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a tmpfs may not be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def train(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """train.py on the small data set in a folder of its own, within this process."""
    monkeypatch.chdir(tmp_path)
    return partial(run_here, pictures, cwd=tmp_path)
