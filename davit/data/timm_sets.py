"""Open data sets by name (torch/cifar10, hfds/...) with timm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from timm.data import ImageDataset, create_dataset
from torch.utils.data import Dataset, IterableDataset
from torchvision.datasets import DatasetFolder

from .decode import Stored
from .errors import BadImageError, DataError
from .source import read_class_map


class NamedSource:
    """Read a data set that timm's `create_dataset` opens, by the same methods as `FolderSource`."""

    def __init__(
        self,
        name: str,
        root: str | Path | None,
        split: str,
        *,
        class_map: str | Path | dict[str, int] | None = None,
        download: bool = False,
        **options: Any,
    ) -> None:
        """Open the data set; `options` (input_key, target_key, ...) go to timm's reader."""
        if class_map and name.lower().startswith("torch/"):
            raise DataError(f"`dataset={name}` cannot take a class map; folders and hfds/ data sets can")
        self._label = f"{name}:{split}"
        mapping = read_class_map(class_map, Path(root or ".")) if class_map else None
        self._dataset = _create(name, root, split, class_map=mapping, download=download, **options)
        self._reader = self._dataset.reader if isinstance(self._dataset, ImageDataset) else None
        knows = self._dataset if self._reader is None else self._reader
        self.class_to_idx: dict[str, int] = dict(getattr(knows, "class_to_idx", None) or {})

    def __len__(self) -> int:
        return len(self._dataset)

    def filename(self, index: int) -> str:
        """Return the file's own name where the data set knows one, else its position."""
        if isinstance(self._dataset, DatasetFolder):
            return str(Path(self._dataset.samples[index][0]).relative_to(self._dataset.root))
        name = self._reader.filename(index) if self._reader is not None else None
        return str(name) if name else f"{index:08d}"

    def names(self) -> list[str]:
        return [self.filename(index) for index in range(len(self))]

    def path(self, index: int) -> str:
        return f"{self._label}[{index}]"

    def targets(self) -> list[int] | None:
        noted = getattr(self._dataset, "targets", None)  # a list or a tensor, in torchvision's sets that have them
        if noted is None or len(noted) != len(self):
            return None
        return [int(target) for target in noted]

    def open(self, index: int) -> tuple[Stored, int]:
        """Return an image's file or stream and its class index; what torchvision decodes itself comes decoded."""
        name = self.path(index)
        if isinstance(self._dataset, DatasetFolder):
            file, target = self._dataset.samples[index]
            return file, int(target)
        if self._reader is not None:
            stream, target, *_ = self._reader[index]
            return stream, _class_index(target, name)
        try:
            image, target = self._dataset[index]
        except (OSError, SyntaxError) as error:  # what Pillow raises inside torchvision's data sets
            raise BadImageError.of(name, f"damaged image ({error})") from error
        return image, _class_index(target, name)


def _create(name: str, root: str | Path | None, split: str, **options: Any) -> Any:
    try:
        dataset: Dataset[Any] = create_dataset(name, root=str(root) if root else None, split=split, **options)
    except ImportError as error:
        raise DataError(f"`dataset={name}` needs a package that is not installed: {error}") from error
    except (AssertionError, RuntimeError, OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"`dataset={name}` (split {split!r}, folder {root}) cannot be opened: {error}. Names are '' for a folder, "
            "torch/NAME or hfds/NAME; `dataset_download=True` fetches where timm can."
        ) from error
    if isinstance(dataset, IterableDataset):
        raise DataError(
            f"`dataset={name}` is a stream without positions, so a run on it can neither be resumed exactly "
            "nor count each image once. Use hfds/NAME for a set with positions, or export it to a folder."
        )
    return dataset


def _class_index(target: Any, name: str) -> int:
    try:
        return int(target)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: its label {target!r} is not one class index") from error
