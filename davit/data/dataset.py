"""Open a split as an indexed data set, and make each training sample a function of its key."""

import io
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from ..choices import CLASSIFICATION, MULTILABEL
from ..seeding import seeded
from .crop_first import CropFirst, PendingCrop
from .decode import RGB, Decoding, Pixels, Reduction, load_picture
from .errors import BadImageError, DataError
from .find import open_source
from .label_sets import LabelSets
from .layouts import of_another_task
from .samples import UnfitPictureError
from .source import NO_CLASS, ClassMap, Renumbered, Source

log = logging.getLogger(__name__)

# (epoch, index, repeat): `repeat` counts the occurrences of one image in one epoch, 0 for the first. Behind them
# may be the side of the image in pixels, where that changes in the course of a training (`SizeSchedule`).
Key = tuple[int, ...]
Transform = Callable[[Any], Tensor]  # of a decoded image, `Pixels`
Target = int | np.ndarray[Any, Any]  # a class index, or a row of several labels


class PictureDataset(Dataset[tuple[Any, Target]]):
    """The images of one split: item i is (transform(decoded image), class index).

    Where an image may have several labels, the class index is a row instead, (width,) float32 of 1 and 0.

    `transform` and `decoding` may be set at any time before a loader's first batch; without a transform an item's
    image is that of `load_picture`. `transforms` are those for other sizes, by the side in pixels. Decoding and
    transform meet in `sized` and nowhere else.
    """

    def __init__(
        self, source: Source, transform: Transform | None = None, *, decoding: Decoding = RGB, mapped: bool = False
    ) -> None:
        """Wrap a source; `mapped`: a class map says its class indices."""
        self.source = source
        self.transform = transform
        self.transforms: dict[int, Transform] = {}
        self.decoding = decoding
        self.has_class_map = mapped
        self.mapped = mapped or getattr(source, "is_indexed", False)  # they may leave classes out
        self.label_sets: LabelSets | None = getattr(source, "label_sets", None)
        self.width = max(source.class_to_idx.values(), default=-1) + 1  # classes of a row of several labels

    @property
    def class_to_idx(self) -> dict[str, int]:
        """The classes' names and indices; empty for a named data set that does not tell."""
        return self.source.class_to_idx

    @property
    def class_names(self) -> list[str]:
        """The class names by index; "class N" for an index that a class map leaves out."""
        name_of = {index: name for name, index in self.class_to_idx.items()}
        return [name_of.get(index, f"class {index}") for index in range(max(name_of, default=-1) + 1)]

    def numbered(self, names: Sequence[str]) -> "PictureDataset":
        """Return the same images with the classes numbered in the order of `names`, which are all of them."""
        source = Renumbered(self.source, {name: index for index, name in enumerate(names)})
        return PictureDataset(source, self.transform, decoding=self.decoding, mapped=self.mapped)

    def counts(self) -> np.ndarray[Any, Any] | None:
        """Count the images of each class index, (classes,) int64; None where the source does not tell."""
        if self.label_sets is not None:
            return self.label_sets.counts(self.width)
        targets = self.source.targets()
        if targets is None:
            return None
        found = np.asarray(targets, dtype=np.int64)
        return np.bincount(found[found != NO_CLASS], minlength=self.width)

    def __len__(self) -> int:
        return len(self.source)

    def filename(self, index: int) -> str:
        """Name an image for predictions and reports, as its source does."""
        return self.source.filename(index)

    def filenames(self) -> Sequence[str]:
        """List the files of all images, in order of their positions."""
        return self.source.names()

    def read(self, index: int, reduction: Reduction | None = None) -> tuple[Pixels, Target]:
        """Decode an image and return it with its class index or row; `reduction` as in `load_picture`."""
        stored, only = self.source.open(index)
        target: Target = only if self.label_sets is None else self.label_sets.row(index, self.width)
        with stored if isinstance(stored, io.IOBase) else nullcontext():
            return load_picture(stored, self.source.path(index), reduction, self.decoding), target

    def __getitem__(self, index: int) -> tuple[Any, Target]:
        return self.sized(index)

    def sized(self, index: int, size: int | None = None) -> tuple[Any, Target]:
        """Return the item with an image of another size than that of `transform`."""
        transform = self.transform if size is None else self.transforms[size]
        if isinstance(transform, CropFirst):
            crop = PendingCrop(transform)
            image, target = self.read(index, crop.reduction)
            return crop.finish(image), target
        image, target = self.read(index, getattr(transform, "check", None))
        try:
            return (transform(image) if transform is not None else image), target
        except UnfitPictureError as error:  # an array, whose size is known only when it is read
            raise BadImageError.of(self.source.path(index), str(error)) from error


def open_dataset(
    root: str | Path | None,
    split: str,
    *,
    dataset: str = "",
    class_map: ClassMap = None,
    dataset_download: bool = False,
    transform: Transform | None = None,
    task: str = CLASSIFICATION,
    **options: Any,
) -> "PictureDataset":
    """Open the images of `split`, as an indexed data set.

    Args:
        root: the data folder, with class folders, tables or shards; or one table or shard, or a pattern of them.
        split: "train" and "validation" find their usual synonyms ("val", ...), as folders or in names of files; "."
            is `root` itself; a file or pattern below `root` is taken as it is.
        dataset: "" for whatever lies in `root`; else "folder", "csv", "parquet" or "wds", with a path below `root`
            after a slash; or a data set as timm names it (torch/NAME, hfds/NAME).
        class_map: a dict or file of class names and their indices, in place of the data's own.
        dataset_download: let a named data set fetch itself.
        task: "multilabel" for images with any number of labels, as tables and shards hold them.
        options: input_key and target_key, which name the columns or endings of images and labels, and options of
            named data sets.

    Raises:
        DataError: something is missing or wrong; the message says what and where.
    """
    options = {key: value for key, value in options.items() if value is not None}
    try:
        source = open_source(
            root, split, dataset=dataset, class_map=class_map, dataset_download=dataset_download, task=task, **options
        )
    except DataError as fault:
        raise DataError(f"{fault}{of_another_task(root)}") from fault
    if len(source) == 0:
        raise DataError(f"the data set {dataset or root} has no images in split {split!r}")
    found = PictureDataset(source, transform, mapped=bool(class_map))
    if task == MULTILABEL:
        _say_labels(found, dataset or str(root), split)
    return found


def _say_labels(dataset: PictureDataset, place: str, split: str) -> None:
    """Say how many labels the images have, and how many have none."""
    sets = dataset.label_sets
    assert sets is not None
    log.info(
        "%s, split %s: %d images with %d labels of %d classes (%.2f an image), %d of them without any label.",
        *(place, split, len(sets), len(sets.flat), len(dataset.class_to_idx), len(sets.flat) / len(sets)),
        sets.without,
    )


class Sample(NamedTuple):
    """A transformed image, its class or row, its position in the data set, and the bad files met on the way."""

    image: Tensor
    target: Target
    position: int
    bad: tuple[tuple[str, str], ...] = ()


class SeededDataset(Dataset[Sample]):
    """Make training samples by key: the item depends on the seed and the key and on nothing else.

    Not on the worker, the process, or what was read before. The size in a key is no part of the seed, so the crop of
    an image is the same at each size. With `skip_bad_images` an image that cannot
    be read is replaced by the next good one of the data set, augmented under the key that was asked for;
    otherwise its `BadImageError` is raised.
    """

    def __init__(self, dataset: PictureDataset, seed: int, *, skip_bad_images: bool = False) -> None:
        self.dataset = dataset
        self.seed = seed
        self.skip_bad_images = skip_bad_images

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Key) -> Sample:
        epoch, index, repeat, *size = key
        bad: list[tuple[str, str]] = []
        for position in range(index, index + len(self)):
            position %= len(self)
            with seeded(self.seed, epoch, index, repeat):
                try:
                    image, target = self.dataset.sized(position, *size) if size else self.dataset[position]
                except BadImageError as error:
                    if not self.skip_bad_images:
                        raise
                    bad.append((error.file, error.reason))
                else:
                    return Sample(image, target, position, tuple(bad))
        raise DataError(f"none of the {len(bad)} images can be read; the first: {': '.join(bad[0])}")
