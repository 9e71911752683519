"""Share a small detector and segmentor, data for both, and ways to run the tools in this process and others."""

import contextlib
import copy
import functools
import io
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from torch import nn

import davit.openmmlab  # noqa: F401  (before mmdet and mmseg)
from davit.data import scenes
from davit.openmmlab.config import read_config
from tests.conftest import REPOSITORY, randomise

DET, SEG = REPOSITORY / "mmdet" / "configs", REPOSITORY / "mmseg" / "configs"
DET_TOOLS, SEG_TOOLS = REPOSITORY / "mmdet" / "tools", REPOSITORY / "mmseg" / "tools"
SEGMENTOR = Path(__file__).with_name("tiny_segmentor.py")
CLASSES = ("ground", "disc", "bar")  # of the segmentor
SIZE = (64, 48)  # width and height of its images

_DETECTOR = f"""
_base_ = {str(DET / "davit_nano_maskrcnn_digits.py")!r}
model = dict(
    backbone=dict(embed_dims=(8, 16, 16, 16), num_heads=(1, 2, 2, 2)),
    neck=dict(in_channels=[8, 16, 16, 16], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=16),
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(in_channels=16, conv_out_channels=16),
    ),
    test_cfg=dict(rpn=dict(nms_pre=50, max_per_img=20), rcnn=dict(score_thr=0.0, max_per_img=20)),
)
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=2, val_interval=2)
param_scheduler = [dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=4)]
"""


def config(file: Path) -> Any:
    """A config of one's own, though each file is read once."""
    return copy.deepcopy(_read(file))


_read = functools.cache(read_config)


def build(cfg: Config | Path) -> Any:
    """Build the model of a config."""
    cfg = cfg if isinstance(cfg, Config) else config(cfg)
    init_default_scope(cfg.default_scope)
    cfg.model.pop("pretrained", None)
    return MODELS.build(cfg.model)


def weights_of(file: Path) -> dict[str, torch.Tensor]:
    """The weights in a file that a run wrote."""
    return torch.load(file, map_location="cpu", weights_only=True)["state_dict"]


def scores_of(folder: Path) -> dict[str, float]:
    """What a run of test.py wrote of its metrics into its folder."""
    (file,) = folder.glob("*/*.json")
    return json.loads(file.read_text())


# -- the detector


@pytest.fixture(scope="session")
def few_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four scenes of digits to train on, four to evaluate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "COUNTS", {"train": 4, "val": 4})
        return scenes.write_scenes(tmp_path_factory.mktemp("scenes") / "set")


@pytest.fixture(scope="session")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of the digits' Mask R-CNN, made small."""
    file = tmp_path_factory.mktemp("detector") / "small.py"
    file.write_text(_DETECTOR)
    return file


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, detector: Path, few_scenes: Path) -> Path:
    """The folder of a run of the small detector: two epochs of two steps."""
    from davit.openmmlab.cli import train_main

    folder = tmp_path_factory.mktemp("trained")
    words = [detector, "--data-root", few_scenes, "--work-dir", folder, "--seed", "1"]
    assert train_main([*map(str, words)]) == 0
    return folder


# -- the segmentor


@pytest.fixture(scope="session")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images/{train,val}/N.png of discs and bars, masks/{train,val}/N.png with their labels; not to be changed."""
    return write_masks(tmp_path_factory.mktemp("masks"))


def write_masks(root: Path, train: int = 4, val: int = 3) -> Path:
    """Write images and masks of three classes, in which a border is 255."""
    for split, first, count in (("train", 0, train), ("val", 100, val)):
        for number in range(count):
            draws = np.random.default_rng(first + number)
            x, y = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
            labels = np.zeros((SIZE[1], SIZE[0]), dtype=np.uint8)
            labels[(x - draws.integers(10, 54)) ** 2 + (y - draws.integers(10, 38)) ** 2 < draws.integers(40, 120)] = 1
            left = int(draws.integers(4, 50))
            labels[:, left : left + 6] = 2
            colours = np.array([[60, 60, 60], [220, 40, 40], [40, 220, 40]])[labels]
            labels[0, :] = 255
            save(colours + draws.normal(0, 20, colours.shape), root / "images" / split / f"{number:03d}.png")
            save(labels, root / "masks" / split / f"{number:03d}.png")
    return root


def save(pixels: Any, file: Path, mode: str | None = None, **words: Any) -> None:
    """Write an array as an image, of another mode if that is named."""
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    (image.convert(mode) if mode else image).save(file, **words)


@pytest.fixture(scope="session")
def segmentor_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the tiny segmentor, whose predictions hold several classes."""
    file = tmp_path_factory.mktemp("segmentor") / "tiny.pth"
    model: nn.Module = randomise(build(SEGMENTOR), 0)
    torch.save({"state_dict": model.state_dict()}, file)
    return file


# -- running the tools


Go = Callable[..., str]


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Go]:
    """``go(main, *words, status=0)``: run a tool within this process, in an empty folder; returns what it said."""
    monkeypatch.chdir(tmp_path)
    handlers = logging.root.handlers[:]

    def run(main: Callable[[list[str]], int], *words: Any, status: int = 0) -> str:
        from mmengine.logging import MMLogger
        from mmengine.visualization import Visualizer

        for kept in (MMLogger, Visualizer):  # mmengine keeps one of each by name for ever
            kept._instance_dict.clear()
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                found = main([str(word) for word in words])
            except SystemExit as leave:  # argparse
                found = int(leave.code or 0)
        assert found == status, said.getvalue()
        return said.getvalue()

    yield run
    logging.root.handlers[:] = handlers


def shell_environment(**more: str) -> dict[str, str]:
    """The environment of a job of several processes, on a port that no other job has."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable, "PORT": port}
    return {**os.environ, **own, **more}


def shell(*words: Any, cwd: Path, status: int = 0, **more: str) -> str:
    """Run one of the tools' shell scripts; what it says comes back."""
    command = ["bash", *map(str, words)]
    env = shell_environment(**more)
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=500)
    said = done.stdout + done.stderr
    assert done.returncode == status, said[-4000:]
    return said
