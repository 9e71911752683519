"""Find ImageNet's variants below a folder, and match their class folders with a model's classes."""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from timm.data import ImageNetInfo

from ..data import DataError, PictureDataset, check_classes
from ..data.listing import list_folder
from ..engine.labels import Labels
from ..text import some


@dataclass(frozen=True)
class Variant:
    """A test set for ImageNet's classes.

    Attributes:
        key: of --sets.
        title: as tables call it.
        folders: the names under which it is distributed.
        alone: the list of timm's whose classes compete alone, as published; None for all of the model's.
        numbered: the class folders are ImageNet's indices, not synsets.
    """

    key: str
    title: str
    folders: tuple[str, ...]
    alone: str | None = None
    numbered: bool = False


VARIANTS = (
    Variant(
        "v2",
        "ImageNet-V2",
        ("imagenetv2-matched-frequency-format-val", "imagenetv2-matched-frequency", "imagenetv2", "imagenet-v2"),
        numbered=True,
    ),
    Variant("a", "ImageNet-A", ("imagenet-a",), alone="imagenet_a"),
    Variant("r", "ImageNet-R", ("imagenet-r",), alone="imagenet_r"),
    Variant("sketch", "ImageNet-Sketch", ("sketch", "imagenet-sketch", "imagenet_sketch")),
)

_OF_IMAGENET = re.compile(r"ILSVRC2012_val_\d{8}")


class NotApplicableError(DataError):
    """A model does not have the classes that a set asks for."""


def find_variants(root: Path) -> dict[str, Path]:
    """Find the folders of the variants directly below `root`, whatever the case of their names: key -> folder."""
    by_name = {name.lower(): name for name in list_folder(root).folders}
    found = {}
    for variant in VARIANTS:
        name = next((by_name[name] for name in variant.folders if name in by_name), None)
        if name is not None:
            found[variant.key] = root / name
    return found


def find_real(root: Path, dataset: PictureDataset) -> str | None:
    """Find ReaL labels: real.json in `root`, or beside the images' folder; else timm's copy, for ImageNet's files.

    Returns:
        As `davit.engine.labels.real_labels` takes it, None where there are none.
    """
    folder = getattr(dataset.source, "folder", None)
    for place in (root, *([Path(folder).parent] if folder is not None else [])):
        if (place / "real.json").is_file():
            return str(place / "real.json")
    is_imagenet = all(_OF_IMAGENET.fullmatch(Path(name).stem) for name in dataset.filenames())
    return "timm" if is_imagenet else None


@cache
def synsets() -> tuple[str, ...]:
    """List ImageNet-1k's synsets (n01440764 ...) in the order of its indices."""
    return tuple(ImageNetInfo("imagenet-1k").label_names())


@cache
def synsets_of(subset: str) -> tuple[str, ...]:
    """List the synsets of one of timm's subsets: imagenet_a or imagenet_r."""
    data = pkgutil.get_data("timm.data", f"_info/{subset}_synsets.txt")
    assert data is not None
    return tuple(data.decode().split())


def labels_of_variant(variant: Variant, dataset: PictureDataset, names: Sequence[str] | None) -> Labels:
    """Match the class folders of a variant with a model's classes.

    Args:
        names: of the model's classes, as folders are named; None where they are not known.

    Raises:
        NotApplicableError: the model lacks classes of the set.
        DataError: the set has folders that are none of its classes.
    """
    place = _places(names)
    members = synsets_of(variant.alone) if variant.alone else synsets()
    synset_of = {name: name for name in dataset.class_to_idx}
    if variant.numbered and all(name.isdecimal() for name in synset_of):
        synset_of = {name: members[int(name)] if int(name) < len(members) else name for name in synset_of}
    if extra := [name for name, synset in synset_of.items() if synset not in set(members)]:
        raise DataError(
            f"{len(extra)} of its {len(synset_of)} folders are none of the {len(members)} classes of {variant.title}: "
            f"{some(extra)}; move them away"
        )
    # classes that compete must be the model's; where all do, those with images
    needed = members if variant.alone else synset_of.values()
    if lacking := [synset for synset in needed if synset not in place]:
        raise NotApplicableError(
            f"the model does not have {len(lacking)} of the classes of {variant.title} ({some(lacking, 3)})"
        )
    indices = {dataset.class_to_idx[name]: place[synset] for name, synset in synset_of.items()}
    if not variant.alone:
        return Labels(None, indices)
    columns = tuple(sorted(place[synset] for synset in members))
    return Labels(columns, {index: columns.index(column) for index, column in indices.items()})


def labels_of_val(dataset: PictureDataset, names: Sequence[str] | None, num_classes: int) -> Labels | None:
    """Match the validation images with a model's classes, all of which compete; None where the indices are the same.

    Args:
        names: of the model's classes, as folders are named; None where they are not known.

    Raises:
        DataError: the images have classes that the model lacks.
    """
    ours, place = dataset.class_to_idx, _places(names)
    if not dataset.mapped and ours and set(ours) <= place.keys():
        return Labels(None, {index: place[name] for name, index in ours.items()})
    unknown = [name for name in ours if name not in place]
    if names is not None and not dataset.mapped and len(unknown) < len(ours):
        raise DataError(
            f"{len(unknown)} of the {len(ours)} classes of the validation images are none of the model's: "
            f"{some(unknown)}; move these folders away"
        )
    check_classes(None, dataset, num_classes)
    return None


def is_imagenet(dataset: PictureDataset) -> bool:
    """Whether the class folders are ImageNet-1k's, or some of them."""
    return bool(dataset.class_to_idx) and set(dataset.class_to_idx) <= set(synsets())


def real_by_model(real: Sequence[Sequence[int]], names: Sequence[str] | None) -> list[list[int]]:
    """Write ReaL labels, which are indices of ImageNet-1k, as indices of a model's classes."""
    place = _places(names)
    return [[place[synsets()[index]] for index in classes if synsets()[index] in place] for classes in real]


def _places(names: Sequence[str] | None) -> Mapping[str, int]:
    return {name: index for index, name in enumerate(names or ())}
