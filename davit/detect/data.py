"""Read data in COCO's or YOLO's form as images with boxes, for the loaders that train.py has."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data import PictureDataset
from ..data.coco import Examined, check_annotations, examine
from ..data.decode import Stored
from ..data.errors import DataError
from ..data.layouts import Layout, find_layout, say_layout
from ..data.source import Texts
from ..data.yolo import coco_of
from ..engine.distributed import World, in_step
from ..text import did_you_mean, some

log = logging.getLogger(__name__)

Transform = Callable[[Any, NDArray[Any], NDArray[Any]], tuple[Any, Any]]
_ENOUGH = 1.0  # pixels that a box is wide and high at the least


class AnnotatedPictures:
    """The images of an annotation file, as a `davit.data.source.Source`; boxes lie in three arrays.

    Attributes:
        ids: (N,) of the images, as the file has them.
        sizes: (N, 2) width and height of the upright images.
    """

    def __init__(self, found: Examined, folder: Path) -> None:
        images = found.contents["images"]
        self.folder = folder
        self.class_to_idx = {name: index for index, name in enumerate(found.classes)}
        self._names = Texts(image["file_name"] for image in images)
        self.ids = np.array([image["id"] for image in images], dtype=np.int64)
        self.sizes = np.array([(image["width"], image["height"]) for image in images], dtype=np.int64).reshape(-1, 2)
        number_of = {one["id"]: index for index, one in enumerate(categories_of(found))}
        position_of = {int(number): position for position, number in enumerate(self.ids)}
        rows: list[list[tuple[float, ...]]] = [[] for _ in images]
        for entry in found.contents.get("annotations") or ():
            label = number_of.get(entry["category_id"])
            if label is None or entry["iscrowd"] or entry.get("ignore"):
                continue
            position = position_of[entry["image_id"]]
            width, height = self.sizes[position]
            x, y, w, h = entry["bbox"]
            x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
            if x2 - x1 >= _ENOUGH and y2 - y1 >= _ENOUGH:
                rows[position].append((x1, y1, x2, y2, label))
        self._ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        flat = np.array([one for row in rows for one in row], dtype=np.float64).reshape(-1, 5)
        self._boxes, self._labels = flat[:, :4].astype(np.float32), flat[:, 4].astype(np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def most(self) -> int:
        """How many objects the fullest image has."""
        return int(np.diff(self._ends, prepend=0).max(initial=0))

    def objects(self, index: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return boxes (n, 4), x1 y1 x2 y2 in pixels of the upright image, and their classes (n,)."""
        own = slice(int(self._ends[index - 1]) if index else 0, int(self._ends[index]))
        return self._boxes[own], self._labels[own]

    def filename(self, index: int) -> str:
        """Name an image as the file does."""
        return self._names[index]

    def names(self) -> Sequence[str]:
        """List the names of all images."""
        return list(self._names)

    def path(self, index: int) -> str:
        """Return where an image lies."""
        return str(self.folder / self._names[index])

    def targets(self) -> Sequence[int]:
        """Return a number for each image that is another one as soon as its boxes or their classes are."""
        return [self._digest(*self.objects(index)) for index in range(len(self))]

    @staticmethod
    def _digest(boxes: NDArray[Any], labels: NDArray[Any]) -> int:
        digest = hashlib.blake2b(boxes.tobytes() + labels.tobytes(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1  # of 63 bits

    def open(self, index: int) -> tuple[Stored, int]:
        """Return an image as it is stored; it has no one class."""
        return self.path(index), 0


class BoxDataset(PictureDataset):
    """Images with boxes: an item is what the transform makes of both (`davit.detect.augment`).

    Attributes:
        annotations: in COCO's form, for evaluation.
        categories: the number of each class in them.
    """

    source: AnnotatedPictures

    def __init__(self, found: Examined, folder: Path) -> None:
        super().__init__(AnnotatedPictures(found, folder))
        self.annotations = found.contents
        self.categories = [int(one["id"]) for one in categories_of(found)]

    def sized(self, index: int, size: int | None = None) -> tuple[Any, Any]:
        """Return the item with an image of another size than that of `transform`."""
        transform: Any = self.transform if size is None else self.transforms[size]
        picture, _ = self.read(index)
        return transform(picture, *self.source.objects(index))


def categories_of(found: Examined) -> list[dict[str, Any]]:
    """Return the category of each class, in the order of the classes."""
    named: dict[str, dict[str, Any]] = {}
    for one in found.contents["categories"]:
        named.setdefault(str(one["name"]), one)
    return [named[name] for name in found.classes]


@dataclass(frozen=True)
class Reading:
    """How data are read: the flags of the same names."""

    data_check: bool = True
    skip_bad_images: bool = False


def open_split(
    root: str | Path,
    split: str,
    classes: Sequence[str] | None,
    world: World,
    reading: Reading,
    *,
    training: bool = False,
    labelled: bool = True,
    say: bool = True,
) -> BoxDataset:
    """Open one split of a data folder, after its annotations and images are checked.

    Args:
        classes: in this order; None for all that the file names.
        training: faults that only matter for learning count too.
        labelled: False where nothing is compared with labels.
        say: log the layout that was found.

    Raises:
        DataError: the folder has no such split, or there are faults in it: all kinds are named at once.
    """
    layout = find_layout(root, "detection")
    if say and world.is_main:
        say_layout(layout)
    if split not in layout.splits:
        near = did_you_mean(split, layout.splits)
        raise DataError(
            f"{root} has no split {split!r}. {near}There are {some(layout.splits) or 'none'}: {layout}. Name another "
            "one with --train-split and --val-split (--split of `davit det test`), or part the data in two."
        )
    found: list[Examined] = []
    for turn in (True, False):  # one process of each machine first, which fills the cache of headers and annotations
        with in_step(world):
            if (world.local_rank == 0) == turn:
                found.append(_check(layout, split, classes, reading, training, labelled))
    if world.is_main:
        for note in found[0].notes:
            log.warning("%s: %s: %s", split, found[0].origin, note)
        log.info("%s: %s.", split, found[0].summary)
    return BoxDataset(found[0], layout.splits[split].pictures)


def _check(
    layout: Layout, split: str, classes: Sequence[str] | None, reading: Reading, training: bool, labelled: bool
) -> Examined:
    options: dict[str, Any] = {"training": training, "labelled": labelled, **vars(reading)}
    place = layout.splits[split]
    if layout.yolo is None:
        assert place.labels is not None  # only class folders have none
        return check_annotations(place.labels, place.pictures, classes, **options)
    contents, notes = coco_of(layout.yolo, split)
    found = examine(contents, layout.yolo.file, place.pictures, classes, converted=True, **options)
    found.refuse_faults()
    found.notes[:0] = notes
    return found
