"""Draw scenes of several handwritten digits: the embedded data set of detection and segmentation.

Digits of different sizes and colours lie on textured grounds and may hide a part of one another. Boxes and masks are
exact: they are made with the picture. Training and validation scenes show different handwriting.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .digits import Array, load_glyphs, write_once

SIDE = 128  # pixels
COUNTS = {"train": 2400, "val": 100}
CLASSES = tuple(str(digit) for digit in range(10))
_SEED = 0
_SIZES = (24, 64)  # pixels, a digit's height and width
_DIGITS = (2, 6)
_INK = 0.4  # share of full intensity from which a pixel belongs to the digit
_MOST_HIDDEN = 0.3  # share of a digit that others may cover


def write_scenes(root: str | Path | None = None) -> Path:
    """Lay the scenes out once, and return the folder; the same pixels every time.

    train2017/, val2017/ hold the pictures (PNG, 128 x 128), annotations/instances_{train,val}2017.json the objects as
    COCO has them (categories 1 to 10 named 0 to 9, masks run-length encoded), and masks/{train,val}2017/ a label
    per pixel: 0 is ground, d + 1 the digit d. Raises `DataError` if `root` (default: see `write_once`) holds
    something else.
    """
    return write_once("scenes", root, _write, _missing)


def _write(folder: Path) -> None:
    glyphs = load_glyphs()
    (folder / "annotations").mkdir(parents=True)
    for number, (split, count) in enumerate(COUNTS.items()):
        pictures, masks = folder / f"{split}2017", folder / "masks" / f"{split}2017"
        pictures.mkdir()
        masks.mkdir(parents=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(count):
            draw = np.random.default_rng((_SEED, number, index))
            picture, objects = _scene(draw, glyphs[split])
            name = f"{index:06d}.png"
            Image.fromarray(picture).save(pictures / name)
            labels = np.zeros((SIDE, SIDE), dtype=np.uint8)
            images.append({"id": index + 1, "file_name": name, "width": SIDE, "height": SIDE})
            for digit, mask in objects:
                labels[mask] = digit + 1
                annotations.append(_annotation(len(annotations) + 1, index + 1, digit, mask))
            Image.fromarray(labels).save(masks / name)
        contents = {
            "info": {"description": "scenes of scikit-learn's handwritten digits"},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": [{"id": digit + 1, "name": name} for digit, name in enumerate(CLASSES)],
        }
        (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(contents))


def _scene(draw: np.random.Generator, glyphs: list[tuple[int, int, Array]]) -> tuple[Array, list[tuple[int, Any]]]:
    """Draw a picture (SIDE, SIDE, 3); return it with its (digit, visible mask) from back to front."""
    picture = _ground(draw)
    owner: Any = np.full((SIDE, SIDE), -1)
    digits: list[int] = []
    areas: list[int] = []
    for _ in range(int(draw.integers(*_DIGITS))):
        _, digit, pixels = glyphs[int(draw.integers(len(glyphs)))]
        side = int(draw.integers(*_SIZES))
        ink = np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)) / 255.0
        top, left = (int(draw.integers(0, SIDE - side + 1)) for _ in range(2))
        mask = np.zeros((SIDE, SIDE), dtype=bool)
        mask[top : top + side, left : left + side] = ink > _INK
        after = np.where(mask, len(digits), owner)
        if any((after == i).sum() < (1 - _MOST_HIDDEN) * area for i, area in enumerate(areas)):
            continue
        owner = after
        digits.append(digit)
        areas.append(int(mask.sum()))
        covered = picture[mask]
        colour = _contrasting(draw, covered.mean(axis=0))
        picture[mask] = np.clip(colour + draw.normal(0, 6, covered.shape), 0, 255)
    return picture.astype(np.uint8), [(digit, owner == i) for i, digit in enumerate(digits)]


def _ground(draw: np.random.Generator) -> Any:
    """Draw a coloured texture: noise of three scales, smoothly enlarged."""
    base = draw.uniform(40, 215, 3)
    texture = np.zeros((SIDE, SIDE, 3))
    for cells, strength in ((4, 25), (16, 12), (64, 8)):
        noise = draw.normal(0, strength, (cells, cells, 3)) + 128
        small = Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8))
        texture += np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=float) - 128
    return np.clip(base + texture, 0, 255)


def _contrasting(draw: np.random.Generator, ground: Any) -> Any:
    """Draw a colour that differs from the ground's by enough to be seen."""
    while True:
        colour = draw.uniform(0, 255, 3)
        if np.abs(colour - ground).sum() > 150:
            return colour


def _annotation(number: int, image: int, digit: int, mask: Any) -> dict[str, Any]:
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    x, y = int(columns[0]), int(rows[0])
    return {
        "id": number,
        "image_id": image,
        "category_id": digit + 1,
        "bbox": [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": [SIDE, SIDE], "counts": run_lengths(mask)},
    }


def run_lengths(mask: Any) -> list[int]:
    """Encode a mask by COCO's uncompressed run lengths, down the columns, the first of zeros."""
    flat = np.concatenate([[0], mask.flatten(order="F").astype(np.int8), [2]])  # a run of zeros first, an end last
    return np.diff(np.flatnonzero(np.diff(flat)), prepend=0).tolist()


def _missing(root: Path) -> str:
    for split, count in COUNTS.items():
        files = [len([*root.glob(f"{folder}{split}2017/*.png")]) for folder in ("", "masks/")]
        if files != [count, count] or not (root / "annotations" / f"instances_{split}2017.json").is_file():
            return f"{split} has {files[0]} pictures and {files[1]} masks of {count}, or no annotations"
    return ""
