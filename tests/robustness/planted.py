"""Folders with planted errors: a model's own answers decide into which class folder each image goes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from davit.data import eval_transform
from tests.engine.runs import SMALL, small_model

SIDE = 16
READ = eval_transform(img_size=SIDE, crop_pct=1.0)


def save_model(file: Path, num_classes: int, seed: int = 0, **entries: Any) -> Any:
    """A small model whose checkpoint notes its size, and no class names unless `entries` have them."""
    model = small_model(num_classes=num_classes, seed=seed)
    with torch.no_grad():  # answers that differ from image to image
        model.head.weight.mul_(20)
    args = {
        "model": "DaViT_nano",
        "model_kwargs": SMALL,
        "num_classes": num_classes,
        "img_size": SIDE,
        "crop_pct": 1.0,
    }
    torch.save({"state_dict": model.state_dict(), "args": args, **entries}, file)
    return model.eval()


def draw(count: int, seed: int = 0) -> list[Image.Image]:
    generator = np.random.default_rng(seed)
    pictures = []
    for _ in range(count):
        pixels = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        pictures.append(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.NEAREST))
    return pictures


@torch.no_grad()
def logits_of(model: Any, pictures: Sequence[Image.Image]) -> torch.Tensor:
    return model(torch.stack([READ(picture) for picture in pictures]))


def plant(
    folder: Path,
    model: Any,
    pictures: Sequence[Image.Image],
    right: int,
    name_of: Callable[[int], str],
    competing: Sequence[int] | None = None,
    suffix: str = ".png",
) -> dict[str, int]:
    """Write images so that the first `right` of them lie in the class that the model gives, and the others do not.

    Args:
        name_of: a class index -> the name of its folder.
        competing: the classes that compete; None for all.

    Returns:
        file name -> the class of its folder.
    """
    logits = logits_of(model, pictures)
    classes = list(range(logits.shape[1])) if competing is None else list(competing)
    answers = logits[:, classes].argmax(1).tolist()
    placed = {}
    for number, (picture, answer) in enumerate(zip(pictures, answers, strict=True)):
        wrong = classes[(answer + 1 + number % (len(classes) - 1)) % len(classes)]
        index = classes[answer] if number < right else wrong
        file = folder / name_of(index) / f"ILSVRC2012_val_{number + 1:08d}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)
        placed[file.name] = index
    return placed
