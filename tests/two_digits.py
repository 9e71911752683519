"""Images of two handwritten digits, none or one, with a table of their labels."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from davit.data.digits import load_glyphs


def write_two_digits(
    root: Path, train: int = 64, val: int = 24, seed: int = 0, rare: float = 1.0, none: float = 0.05
) -> Path:
    """16 x 16 pixels: a digit on the left and one on the right; root/{train,val}/NNNN.png and root/labels.csv.

    Args:
        rare: the share of the training digits 0 to 4 that is kept.
        none: the share of images without any digit.
    """
    draw, rows = np.random.default_rng(seed), []
    for split, count in (("train", train), ("val", val)):
        (root / split).mkdir(parents=True)
        glyphs = load_glyphs()[split]
        labels = np.array([label for _, label, _ in glyphs])
        weights = np.where((labels < 5) & (split == "train"), rare, 1.0)
        for number in range(count):
            canvas, shown = np.zeros((16, 16), np.uint8), []
            places = draw.choice(len(glyphs), 2, replace=False, p=weights / weights.sum())
            for left, place in zip((0, 8), places if draw.random() >= none else (), strict=False):
                top = int(draw.integers(0, 9))
                canvas[top : top + 8, left : left + 8] = glyphs[place][2]
                shown.append(str(labels[place]))
            name = f"{split}/{number:04d}.png"
            Image.fromarray(canvas).save(root / name)
            rows.append((name, ";".join(dict.fromkeys(shown))))
    with (root / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "labels"), *rows])
    return root
