"""Draw the objects of an annotation file in COCO's form as a label for every pixel."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from ..data import DataError
from ..data.coco import categories_of, read_annotations
from ..data.headers import read_headers
from ..data.listing import locate
from ..data.masks import IGNORED
from ..text import did_you_mean, some

log = logging.getLogger(__name__)

BACKGROUND = "background"
_POINTS = 3  # that a polygon needs


@dataclass(frozen=True)
class Regions:
    """The objects of one picture.

    Attributes:
        height, width: of the picture, upright.
        objects: (label, whether it is a crowd, its shape as COCO has it: polygons, or a run-length encoding).
        ground: the label where no object is.
    """

    height: int
    width: int
    objects: tuple[tuple[int, bool, Any], ...]
    ground: int

    def draw(self) -> NDArray[np.uint8]:
        """Draw the label of every pixel, shape (H, W): crowds first, then the largest object to the smallest."""
        labels = np.full((self.height, self.width), self.ground, dtype=np.uint8)
        drawn = [(not crowd, label, _draw(shape, self.height, self.width)) for label, crowd, shape in self.objects]
        drawn.sort(key=lambda one: (one[0], -int(one[2].sum())))
        for _, label, inside in drawn:
            labels[inside] = label
        return labels


def _draw(shape: Any, height: int, width: int) -> NDArray[np.bool_]:
    encoded = coco_mask.frPyObjects([*shape] if isinstance(shape, tuple) else shape, height, width)
    if isinstance(encoded, list):
        encoded = coco_mask.merge(encoded)
    return np.asarray(coco_mask.decode(encoded)).astype(bool)


def read_regions(file: Path, classes: Sequence[str] | None = None) -> RegionFile:
    """Read a file in COCO's form for segmentation.

    Args:
        classes: in the order of their labels; None for all categories behind "background".

    Raises:
        DataError: it is missing, of another form or without shapes, or several classes are no categories of it.
    """
    contents = read_annotations(file)
    names = [str(category["name"]) for category in contents["categories"]]
    if classes is None:
        own = categories_of(file)
        classes = own if any(_is_ground(name) for name in own) else (BACKGROUND, *own)
    others = [name for name in classes if name not in names]
    if len(others) > 1:
        raise DataError(
            f"{some(others, 4)} are not categories of {file}, which are {some(names, 8)}; only one class may be none, "
            f"for what no object covers. {did_you_mean(others[-1], names)}"
        )
    grounds = others or [name for name in classes if _is_ground(name)]
    ground = classes.index(grounds[0]) if grounds else IGNORED
    return RegionFile(file, contents, tuple(classes), ground)


def _is_ground(name: str) -> bool:
    return name.strip("_ ").lower() == BACKGROUND


class RegionFile:
    """The pictures and objects of a file in COCO's form; made by `read_regions`.

    Attributes:
        classes: in the order of their labels.
    """

    def __init__(self, file: Path, contents: dict[str, Any], classes: tuple[str, ...], ground: int) -> None:
        self.classes = classes
        self._file, self._ground = file, ground
        self._images = contents["images"]
        labels = {str(name): label for label, name in enumerate(classes)}
        label_of = {one["id"]: labels.get(str(one["name"])) for one in contents["categories"]}
        self._objects: dict[Any, list[tuple[int, bool, Any]]] = {}
        others = shapeless = shaped = 0
        for one in contents["annotations"]:
            label = label_of.get(one.get("category_id"))
            if label is None:
                others += 1
                continue
            shape = _shape(one.get("segmentation"))
            if shape is None:
                shapeless += 1
                continue
            shaped += 1
            self._objects.setdefault(one.get("image_id"), []).append((label, bool(one.get("iscrowd")), shape))
        if shapeless and not shaped:
            raise DataError(
                f"{file} has boxes alone: none of its {shapeless:,} objects has a polygon or mask, which segmentation "
                "needs. Export polygons, or train a detector (mmdet/README.md)."
            )
        left = {"of classes that are not learned": others, "without a polygon of three points": shapeless}
        self.left_out = ", ".join(f"{count:,} objects {why}" for why, count in left.items() if count)

    def pictures(self, folder: Path) -> Iterator[tuple[str, Regions]]:
        """List the pictures, by their paths below a folder, with their objects."""
        found = locate(folder, [str(image["file_name"]) for image in self._images]).found
        for image in self._images:
            name = str(image["file_name"])
            objects = tuple(self._objects.get(image["id"], ()))
            yield found.get(name, name), Regions(int(image["height"]), int(image["width"]), objects, self._ground)

    def check(self, pictures: Sequence[Path], regions: Sequence[Regions]) -> None:
        """Check that all pictures can be opened, and are of the size that the file says.

        Raises:
            DataError: one is missing, damaged or of another size, or a shape is made for another size.
        """
        for picture, header, drawn in zip(pictures, read_headers(pictures), regions, strict=True):
            if header.fault:
                raise DataError(f"{picture}, which {self._file} names: {header.fault}. Copy it again, or take it out.")
            if (header.width, header.height) != (drawn.width, drawn.height):
                raise DataError(
                    f"{picture} is {header.width} x {header.height} pixels{' after its EXIF turn' * header.turned}, "
                    f"and {self._file} says {drawn.width} x {drawn.height}: its shapes would lie in wrong places. "
                    "Export the annotations again, of the pictures as they are."
                )
            for _, _, shape in drawn.objects:
                if isinstance(shape, dict) and list(shape.get("size", ())) != [drawn.height, drawn.width]:
                    raise DataError(
                        f"{self._file}: a mask of {picture.name} is of the size {shape.get('size')}, its picture "
                        f"{[drawn.height, drawn.width]} (height, width). Export the annotations again."
                    )
        if self.left_out:
            log.warning("%s: left out are %s.", self._file, self.left_out)


def _shape(segmentation: Any) -> Any:
    """Return a run-length encoding as it is, polygons as a tuple of arrays; None for an object without shape."""
    if isinstance(segmentation, dict):
        return segmentation if segmentation.get("counts") else None
    if not isinstance(segmentation, list):
        return None
    try:
        polygons = [np.asarray(one, dtype=float) for one in segmentation]
    except (TypeError, ValueError):
        return None
    kept = [one.tolist() for one in polygons if one.ndim == 1 and one.size >= 2 * _POINTS and np.isfinite(one).all()]
    return tuple(one[: len(one) // 2 * 2] for one in kept) or None
