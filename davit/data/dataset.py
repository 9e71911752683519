"""Open a split as an indexed data set, and make each training sample a function of its key."""

import io
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor
from torch.utils.data import Dataset

from ..seeding import seeded
from ..text import some
from .crop_first import CropFirst, PendingCrop
from .decode import RGB, Decoding, Pixels, Reduction, Stored, load_picture
from .errors import BadImageError, DataError
from .folder import FolderSource, find_split
from .timm_sets import NamedSource

# (epoch, index, repeat): `repeat` counts the occurrences of one picture in one epoch, 0 for the first.
Key = tuple[int, int, int]
Transform = Callable[[Any], Tensor]  # of a decoded picture, `Pixels`

_FOLDER_NAMES = ("", "folder", "imagefolder", "image_folder")


class Source(Protocol):
    """Where pictures come from: a folder, a named data set, a list."""

    class_to_idx: dict[str, int]

    def __len__(self) -> int: ...

    def filename(self, index: int) -> str:
        """Name a picture for predictions and reports: by its file below the split folder, where it has one."""

    def path(self, index: int) -> str:
        """Name a picture for errors and lists of bad ones."""

    def targets(self) -> Sequence[int] | None:
        """List the class indices of all pictures; None where only opening the pictures would tell."""

    def open(self, index: int) -> tuple[Stored, int]:
        """Return a picture as it is stored, and its class index; decoding is the data set's work."""


class PictureDataset(Dataset[tuple[Any, int]]):
    """The pictures of one split: item i is (transform(decoded picture), class index).

    `transform` and `decoding` may be set at any time before a loader's first batch; without a transform an item's
    picture is that of `load_picture`. Decoding and transform meet in `__getitem__` and nowhere else.
    """

    def __init__(
        self, source: Source, transform: Transform | None = None, *, decoding: Decoding = RGB, mapped: bool = False
    ) -> None:
        """Wrap a source; `mapped`: its class indices come from a class map rather than from the data itself."""
        self.source = source
        self.transform = transform
        self.decoding = decoding
        self.mapped = mapped

    @property
    def class_to_idx(self) -> dict[str, int]:
        """The classes' names and indices; empty for a named data set that does not tell."""
        return self.source.class_to_idx

    @property
    def class_names(self) -> list[str]:
        """The class names in order of their indices."""
        return sorted(self.class_to_idx, key=self.class_to_idx.__getitem__)

    def __len__(self) -> int:
        return len(self.source)

    def filename(self, index: int) -> str:
        """Name a picture for predictions and reports, as its source does."""
        return self.source.filename(index)

    def filenames(self) -> list[str]:
        """List the files of all pictures, in order of their positions."""
        return [self.source.filename(index) for index in range(len(self))]

    def read(self, index: int, reduction: Reduction | None = None) -> tuple[Pixels, int]:
        """Decode a picture and return it with its class index; `reduction` as in `load_picture`."""
        stored, target = self.source.open(index)
        with stored if isinstance(stored, io.IOBase) else nullcontext():
            return load_picture(stored, self.source.path(index), reduction, self.decoding), target

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if isinstance(self.transform, CropFirst):
            crop = PendingCrop(self.transform)
            image, target = self.read(index, crop.reduction)
            return crop.finish(image), target
        image, target = self.read(index)
        return (self.transform(image) if self.transform is not None else image), target


def open_dataset(
    root: str | Path | None,
    split: str,
    *,
    dataset: str = "",
    class_map: str | Path | dict[str, int] | None = None,
    dataset_download: bool = False,
    transform: Transform | None = None,
    **options: Any,
) -> PictureDataset:
    """Open the pictures of `split`: of the image folder `root`, or of the data set named as timm names it.

    `split` is a folder below `root`; "train" and "validation" find their usual synonyms ("val", ...) and "."
    is `root` itself. `options` (input_key, target_key, ...) and `dataset_download` are for named data sets.
    Raises `DataError` saying what is missing or wrong, and where.
    """
    options = {key: value for key, value in options.items() if value is not None}
    if "/" in dataset:
        source: Source = NamedSource(dataset, root, split, class_map=class_map, download=dataset_download, **options)
    elif dataset.lower() not in _FOLDER_NAMES:
        raise DataError(f"`{dataset=}` is unknown; leave it empty for a folder, or give torch/NAME or hfds/NAME")
    else:
        if dataset_download or options:
            asked = some(["dataset_download"] * dataset_download + sorted(options))
            raise DataError(f"an image folder takes no {asked}; only `dataset=torch/NAME` and hfds/NAME do")
        if root is None:
            raise DataError("no data folder: give one with train/ and val/, one folder a class")
        source = FolderSource(find_split(root, split), class_map)
    if len(source) == 0:
        raise DataError(f"the data set {dataset or root} has no pictures in split {split!r}")
    return PictureDataset(source, transform, mapped=bool(class_map))


def check_classes(
    train: PictureDataset | None, val: PictureDataset | None = None, num_classes: int | None = None
) -> None:
    """Raise `DataError` if train and val differ in classes, or if a model of `num_classes` does not fit.

    With a class map the splits may hold any of its classes, and its indices must be below `num_classes`.
    Named data sets that do not tell their classes are not checked.
    """
    if train and val and train.class_to_idx and val.class_to_idx and not (train.mapped or val.mapped):
        ours, theirs = set(train.class_to_idx), set(val.class_to_idx)
        if ours != theirs:
            alone = {"train": ours - theirs, "val": theirs - ours}
            only = "; ".join(f"only in {split}: {some(sorted(names))}" for split, names in alone.items() if names)
            raise DataError(f"train has {len(ours)} classes and val {len(theirs)}, not the same ones ({only})")
    for dataset in (train, val):
        if dataset is None or num_classes is None or not dataset.class_to_idx:
            continue
        needed = max(dataset.class_to_idx.values()) + 1
        if needed > num_classes or (needed < num_classes and not dataset.mapped):
            raise DataError(
                f"the data has {needed} classes ({some(dataset.class_names, 5)}) and the model {num_classes}: pass "
                f"`num_classes={needed}`, or `class_map=FILE` to give the folders the model's class indices"
            )


class Sample(NamedTuple):
    """A transformed picture, its class, its position in the data set, and the bad files met on the way."""

    image: Tensor
    target: int
    position: int
    bad: tuple[tuple[str, str], ...] = ()


class SeededDataset(Dataset[Sample]):
    """Make training samples by key: the item depends on (seed, epoch, index, repeat) and on nothing else.

    Not on the worker, the process, or what was read before. With `skip_bad_images` a picture that cannot
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
        epoch, index, repeat = key
        bad: list[tuple[str, str]] = []
        for position in range(index, index + len(self)):
            position %= len(self)
            with seeded(self.seed, epoch, index, repeat):
                try:
                    image, target = self.dataset[position]
                except BadImageError as error:
                    if not self.skip_bad_images:
                        raise
                    bad.append((error.file, error.reason))
                else:
                    return Sample(image, target, position, tuple(bad))
        raise DataError(f"none of the {len(bad)} pictures can be read; the first: {': '.join(bad[0])}")
