"""What the tests of segmentation share: a small set of pictures with masks, and a run of the tools in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

CONFIG = Path(__file__).with_name("seg_tiny.py")
CONFIGS = Path(__file__).parents[2] / "mmseg" / "configs"
TOOLS = Path(__file__).parents[2] / "mmseg" / "tools"
CLASSES = ("ground", "disc", "bar")
SIZE = (64, 48)  # width, height


def write_set(root: Path, train: int = 6, val: int = 5) -> Path:
    """images/{train,val}/N.png of discs and bars, masks/{train,val}/N.png with their labels and a border of 255."""
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            picture, labels = draw(number + (100 if split == "val" else 0))
            for kind, array in (("images", picture), ("masks", labels)):
                file = root / kind / split / f"{number:03d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(file)
    return root


def draw(seed: int) -> tuple[Any, Any]:
    """A picture (48, 64, 3) and its labels (48, 64)."""
    draws = np.random.default_rng(seed)
    x, y = np.meshgrid(np.arange(SIZE[0]), np.arange(SIZE[1]))
    labels = np.zeros((SIZE[1], SIZE[0]), dtype=np.uint8)
    labels[(x - draws.integers(10, 54)) ** 2 + (y - draws.integers(10, 38)) ** 2 < draws.integers(40, 120)] = 1
    left = int(draws.integers(4, 50))
    labels[:, left : left + 6] = 2
    colours = np.array([[60, 60, 60], [220, 40, 40], [40, 220, 40]])
    picture = np.clip(colours[labels] + draws.normal(0, 20, (*labels.shape, 3)), 0, 255).astype(np.uint8)
    labels[0, :] = 255
    return picture, labels


def confusion(pairs: list[tuple[Any, Any]], classes: int) -> Any:
    """(label, prediction) counts in plain NumPy, pixels labelled 255 left out."""
    table = np.zeros((classes, classes), dtype=np.int64)
    for labels, predictions in pairs:
        for label, prediction in zip(labels.ravel().tolist(), predictions.ravel().tolist(), strict=True):
            if label != 255:
                table[label, prediction] += 1
    return table


def scores(table: Any) -> dict[str, float]:
    """aAcc, mIoU, mAcc in percent from a confusion matrix; a class that is nowhere does not count."""
    with np.errstate(invalid="ignore"):
        hits = np.diag(table)
        return {
            "aAcc": 100 * hits.sum() / table.sum(),
            "mIoU": 100 * np.nanmean(hits / (table.sum(0) + table.sum(1) - hits)),
            "mAcc": 100 * np.nanmean(hits / table.sum(1)),
        }


def checkpoint(file: Path, seed: int = 0) -> Path:
    """Random weights of the tiny segmentor, whose predictions hold all classes."""
    from davit.openmmlab.config import read_config
    from tests.conftest import randomise

    model = randomise(build(read_config(CONFIG)), seed)
    torch.save({"state_dict": model.state_dict()}, file)
    return file


def build(cfg: Any) -> Any:
    """The model of a config."""
    from mmengine.registry import MODELS, init_default_scope

    init_default_scope("mmseg")
    cfg.model.pop("pretrained", None)
    return MODELS.build(cfg.model)
