"""Draw scenes of several handwritten digits: the embedded data set of detection and segmentation.

Digits of different sizes and colours lie on textured grounds and may hide a part of one another. Boxes and masks are
exact: they are made with the image. Training and validation scenes show different handwriting.
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .digits import Array, load_glyphs, write_once
from .errors import require_choice

FORMS = ("coco", "roboflow", "yolo")
SIDE = 128  # pixels
COUNTS = {"train": 2400, "val": 100}
CLASSES = tuple(str(digit) for digit in range(10))
_ROBOFLOWS = {"train": "train", "val": "valid"}
_ROBOFLOW_JSON = "_annotations.coco.json"
_SEED = 0
_SIZES = (24, 64)  # pixels, a digit's height and width
_DIGITS = (2, 6)
_INK = 0.4  # share of full intensity from which a pixel belongs to the digit
_COMPRESSION = 1  # of the PNG files; the usual 6 takes longer than drawing, and saves little of a noisy image
_MOST_HIDDEN = 0.3  # share of a digit that others may cover


def write_scenes(root: str | Path | None = None, form: str = "coco") -> Path:
    """Lay the scenes out once, and return the folder; the same pixels every time, and the same objects in each form.

    "coco": train2017/, val2017/ hold the images (PNG, 128 x 128), annotations/instances_{train,val}2017.json the
    objects as COCO has them (categories 1 to 10 named 0 to 9, masks run-length encoded), and masks/{train,val}2017/ a
    label per pixel: 0 is ground, d + 1 the digit d. "roboflow": {train,valid}/ hold images and
    _annotations.coco.json, whose category 0 is a parent without objects. "yolo": data.yaml, images/{train,val}/ and
    labels/{train,val}/ with a polygon for each object, which goes round its mask along the sides of the pixels.

    Raises `DataError` if `root` (default: see `write_once`) holds something else.
    """
    require_choice("form", form, FORMS)
    name = "scenes" if form == "coco" else f"scenes_{form}"
    return write_once(name, root, partial(_write, form), partial(_missing, form))


def _write(form: str, folder: Path) -> None:
    glyphs = load_glyphs()
    for number, (split, count) in enumerate(COUNTS.items()):
        for place in _folders(form, split):
            (folder / place).mkdir(parents=True, exist_ok=True)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        pictures, labels, *_ = (folder / place for place in _folders(form, split))
        for index in range(count):
            draw = np.random.default_rng((_SEED, number, index))
            picture, objects = _scene(draw, glyphs[split])
            stem = f"{index:06d}"
            if form == "roboflow":  # as it names its copies
                stem = f"{stem}_png.rf.{hashlib.sha256(picture.tobytes()).hexdigest()[:32]}"
            name = f"{stem}.png"
            Image.fromarray(picture).save(pictures / name, compress_level=_COMPRESSION)
            images.append({"id": index + 1, "file_name": name, "width": SIDE, "height": SIDE})
            for digit, mask in objects:
                annotations.append(_annotation(len(annotations) + 1, index + 1, digit, mask))
            if form == "coco":
                label = np.zeros((SIDE, SIDE), dtype=np.uint8)
                for digit, mask in objects:
                    label[mask] = digit + 1
                Image.fromarray(label).save(labels / name, compress_level=_COMPRESSION)
            elif form == "yolo":
                lines = (" ".join(map(str, (digit, *outline(mask).ravel() / SIDE))) for digit, mask in objects)
                (labels / f"{stem}.txt").write_text("".join(f"{line}\n" for line in lines))
        if form != "yolo":
            _write_json(folder / _json(form, split), images, annotations, form)
    if form == "yolo":
        names = "".join(f"  {number}: {name!r}\n" for number, name in enumerate(CLASSES))
        (folder / "data.yaml").write_text(f"path: .\ntrain: images/train\nval: images/val\nnames:\n{names}")


def _folders(form: str, split: str) -> tuple[str, ...]:
    """Name the folders of a split: of its images, its labels, and what else is needed."""
    if form == "coco":
        return f"{split}2017", f"masks/{split}2017"
    if form == "yolo":
        return f"images/{split}", f"labels/{split}"
    return (_ROBOFLOWS[split],) * 2


def _json(form: str, split: str) -> str:
    return f"annotations/instances_{split}2017.json" if form == "coco" else f"{_ROBOFLOWS[split]}/{_ROBOFLOW_JSON}"


def _write_json(file: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]], form: str) -> None:
    parent = [{"id": 0, "name": "digits", "supercategory": "none"}] if form == "roboflow" else []
    below = {"supercategory": "digits"} if parent else {}
    contents = {
        "info": {"description": "scenes of scikit-learn's handwritten digits"},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": [
            *parent,
            *({"id": digit + 1, "name": name, **below} for digit, name in enumerate(CLASSES)),
        ],
    }
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(contents))


def _scene(draw: np.random.Generator, glyphs: list[tuple[int, int, Array]]) -> tuple[Array, list[tuple[int, Any]]]:
    """Draw an image (SIDE, SIDE, 3); return it with its (digit, visible mask) from back to front."""
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


def outline(mask: Any) -> Array:
    """Go round a mask along the sides of its pixels, by one polygon of (N, 2) corners x, y.

    Several parts, and holes, are joined by ways that are gone there and back, so that filling the polygon by the
    even-odd rule, as pycocotools does, gives the mask again, and its signed area is the number of pixels.
    """
    padded = np.pad(mask, 1)
    inside = padded[1:-1, 1:-1]
    following: dict[tuple[int, int], list[tuple[int, int]]] = {}
    # from each side of a pixel without a neighbour, clockwise: (rows, columns to the neighbour), start, end as (x, y)
    for (down, right), start, end in (
        ((-1, 0), (0, 0), (1, 0)),
        ((0, 1), (1, 0), (1, 1)),
        ((1, 0), (1, 1), (0, 1)),
        ((0, -1), (0, 1), (0, 0)),
    ):
        neighbour = np.roll(padded, (-down, -right), (0, 1))[1:-1, 1:-1]
        for row, column in np.argwhere(inside & ~neighbour).tolist():
            place = (column + start[0], row + start[1])
            following.setdefault(place, []).append((column + end[0], row + end[1]))
    way: list[tuple[int, int]] = []
    back: list[tuple[int, int]] = []
    while following:
        place = first = min(following)
        if way:  # go along the two sides of a corner, and come back the same way at the end
            corner = (first[0], way[0][1])
            way.append(corner)
            back = [corner, way[0]]
        loop = [first]
        while not (place == first and len(loop) > 1):
            ends = following[place]
            step = ends.pop()
            if not ends:
                del following[place]
            place = step
            loop.append(place)
        way += [*_corners(loop), *back]
    return np.array(way[:-1])


def _corners(loop: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Leave out the points of a closed way between its first and last at which it goes straight on."""
    triples = zip(loop, loop[1:], loop[2:], strict=False)
    turns = [b for a, b, c in triples if (b[0] - a[0], b[1] - a[1]) != (c[0] - b[0], c[1] - b[1])]
    return [loop[0], *turns, loop[-1]]


def _missing(form: str, root: Path) -> str:
    for split, count in COUNTS.items():
        places = dict.fromkeys(_folders(form, split))
        suffixes = dict(zip(places, (".png", ".txt" if form == "yolo" else ".png"), strict=False))
        files = {place: len([*root.glob(f"{place}/*{suffix}")]) for place, suffix in suffixes.items()}
        if wrong := [f"{number} files in {place}" for place, number in files.items() if number != count]:
            return f"{split} has {' and '.join(wrong)}, of {count}"
        file = root / ("data.yaml" if form == "yolo" else _json(form, split))
        if not file.is_file():
            return f"there is no {file}"
    return ""
