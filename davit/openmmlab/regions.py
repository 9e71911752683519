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
from ..data.listing import locate
from ..data.masks import IGNORED
from ..text import did_you_mean, some

log = logging.getLogger(__name__)

BACKGROUND = "background"
_POINTS = 3  # that a polygon needs


@dataclass(frozen=True)
class Regions:
    """The objects of one image.

    Attributes:
        height, width: of the image, upright.
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
    if isinstance(shape, tuple):
        encoded = coco_mask.merge(coco_mask.frPyObjects([*shape], height, width))
    elif isinstance(shape["counts"], list):
        encoded = coco_mask.frPyObjects(shape, height, width)
    else:  # compressed
        encoded = shape
    return np.asarray(coco_mask.decode(encoded)).astype(bool)


def classes_of_regions(file: Path) -> tuple[str, ...]:
    """Return the classes that a file's categories give a segmentor: "background" first, unless one of them is that."""
    categories = categories_of(file)
    return categories if any(map(_is_ground, categories)) else (BACKGROUND, *categories)


def read_regions(file: Path, classes: Sequence[str] | None = None) -> RegionFile:
    """Read a file in COCO's form for segmentation; `check_annotations` has found it sound.

    Args:
        classes: in the order of their labels; None for `classes_of_regions`.

    Raises:
        DataError: it is missing, of another form or without shapes, or classes are no categories of it.
    """
    contents = read_annotations(file, labelled=False)
    classes = tuple(classes or classes_of_regions(file))
    names = [str(category.get("name")) for category in contents["categories"]]
    others = [name for name in classes if name not in names]
    grounds = [name for name in (*others, *classes) if _is_ground(name)] or others[:1]
    unknown = [name for name in others if name not in grounds[:1]]
    advice = did_you_mean(unknown[0], names) if unknown else ""
    if unknown and (advice or not any(_is_ground(name) for name in grounds)):
        raise DataError(
            f"{some(others, 4)} are not categories of {file}, which are {some(names, 8)}; {advice}only one class may "
            "be none of them, for what no object covers."
        )
    return RegionFile(file, contents, classes, classes.index(grounds[0]) if grounds else IGNORED)


def _is_ground(name: str) -> bool:
    return name.strip("_ ").lower() == BACKGROUND


class RegionFile:
    """Hold the images and objects of a file in COCO's form; made by `read_regions`.

    Attributes:
        classes: in the order of their labels.
    """

    def __init__(self, file: Path, contents: dict[str, Any], classes: tuple[str, ...], ground: int) -> None:
        self.classes = classes
        self._file, self._ground = file, ground
        self._images = contents["images"]
        labels = {str(name): label for label, name in enumerate(classes)}
        label_of = {one.get("id"): labels.get(str(one.get("name"))) for one in contents["categories"]}
        self._objects: dict[Any, list[tuple[int, bool, Any]]] = {}
        others = shapeless = shaped = 0
        for one in contents.get("annotations") or ():
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
        for why, count in left.items():
            if count:
                log.warning("%s: %s objects %s are left out.", file, f"{count:,}", why)

    def pictures(self, folder: Path) -> Iterator[tuple[str, Regions]]:
        """List the images, by their paths below a folder, with their objects."""
        found = locate(folder, [str(image["file_name"]) for image in self._images]).found
        for image in self._images:
            name = str(image["file_name"])
            objects = tuple(self._objects.get(image["id"], ()))
            yield found.get(name, name), Regions(int(image["height"]), int(image["width"]), objects, self._ground)


def count_regions(regions: Sequence[Regions]) -> NDArray[np.int64]:
    """Count the pixels of each label of images, shape (images, 256)."""
    return np.array([np.bincount(one.draw().ravel(), minlength=256) for one in regions]).reshape(-1, 256)


def _shape(segmentation: Any) -> Any:
    """Return a run-length encoding as it is, polygons as a tuple of lists; None for an object without shape."""
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
