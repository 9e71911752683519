"""Read labels that stand for the class folders: a subset of the classes, or ImageNet's ReaL labels."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from timm.data import ImageNetInfo, RealLabelsImagenet, infer_imagenet_subset

from ..choices import BUNDLED_REAL
from ..data import DataError, PictureDataset
from ..text import some

log = logging.getLogger(__name__)

_IMAGENET_VAL = 50_000


@dataclass(frozen=True)
class Labels:
    """How logits are scored.

    Attributes:
        columns: the classes that take part, as columns of the logits; None for all.
        column_of: the data set's class index -> which of `columns` is right; None where they are the same.
        real: for each image of the data set the classes (columns of the model's logits) that are right; an
            image with none is not scored. None: the data set's class is right.
    """

    columns: tuple[int, ...] | None = None
    column_of: Mapping[int, int] | None = None
    real: Sequence[Sequence[int]] | None = None


def labels_for(dataset: PictureDataset, num_classes: int, subset: str, real: str) -> Labels | None:
    """Read the labels of --valid-labels (`subset`) and --real-labels (`real`); None where both are empty."""
    labels = subset_labels(subset, dataset, num_classes) if subset else None
    return real_labels(real, dataset, labels or Labels()) if real else labels


def model_classes(noted: Sequence[str] | None, num_classes: int) -> list[str] | None:
    """Name the classes of a model as folders are named: as its training noted them, else by timm's lists of synsets.

    None where neither is known. timm has lists for as many classes as ImageNet-1k, -12k, -21k and -22k have.
    """
    if noted is not None:
        return list(noted) if len(noted) == num_classes else None
    subset = infer_imagenet_subset({"num_classes": num_classes})
    return list(ImageNetInfo(subset).label_names()) if subset else None


def labels_by_name(dataset: PictureDataset, names: Sequence[str] | None) -> Labels | None:
    """Match a data set that has some of a model's classes with them by name; they compete alone, which is logged.

    None where this is not so: the data set has the model's classes, or other ones, or class indices.

    Args:
        names: of the model's classes, as `model_classes` finds them.

    Raises:
        DataError: the model knows some of the data set's classes, and not the others.
    """
    ours = dataset.class_to_idx
    if names is None or dataset.mapped or not set(ours).intersection(names):
        return None
    known = set(names)
    unknown = [name for name in ours if name not in known]
    if len(ours) == len(names) and (not unknown or all(names[i] == name for name, i in ours.items() if name in known)):
        return None  # the same ones, in whatever order, or some of them under other names
    if unknown:
        raise DataError(
            f"the model has {len(names)} classes, and {len(unknown)} of the data's {len(ours)} are none of them: "
            f"{some(unknown)}; move these folders away, or leave them out by `class_map=FILE` with the model's "
            "classes, a line each"
        )
    labels = labels_of(ours, names)
    absent = [name for name in names if name not in ours]
    log.warning(
        "%d of the model's %d classes have no images here (%s). Only the other %d can be the answer, as in published "
        "results on ImageNet-A and -R. With --class-map FILE, a list of the model's classes, all can be the answer.",
        *(len(absent), len(names), some(absent), len(ours)),
    )
    return labels


def labels_of(ours: Mapping[str, int], names: Sequence[str]) -> Labels:
    """Let the classes `ours` (name -> the data set's index), all among the model's `names`, compete alone."""
    place = {name: index for index, name in enumerate(names)}
    columns = tuple(sorted(place[name] for name in ours))
    column_of = {index: columns.index(place[name]) for name, index in ours.items()}
    return Labels(columns, column_of)


def display_names(
    num_classes: int, known: Sequence[str] | None, dataset: PictureDataset, labels: Labels | None
) -> list[str]:
    """Name each class of a model for a report: as the data set does, else as `known`, else "class N"."""
    names = list(known) if known else [f"class {index}" for index in range(num_classes)]
    for name, index in dataset.class_to_idx.items():
        if labels is None or labels.columns is None:
            place = index
        elif (column := index if labels.column_of is None else labels.column_of.get(index)) is None:
            continue
        else:
            place = labels.columns[column]
        if place < num_classes:
            names[place] = name
    return names


def subset_labels(path: str | Path, dataset: PictureDataset, num_classes: int) -> Labels:
    """Read the classes of a file with an index a line, as ImageNet-A, -R and -Sketch are evaluated.

    A data set with as many classes as the file has lines has them in that order (as in timm); with the
    model's classes, or a class map, its class indices are the model's, and all must be in the file.

    Raises:
        DataError: the file cannot be used, or the data set has other classes.
    """
    columns = _read_indices(path)
    if wrong := [index for index in columns if not 0 <= index < num_classes]:
        raise DataError(f"{path}: {some(wrong)} are not classes of the model, which has 0 to {num_classes - 1}")
    found = set(dataset.class_to_idx.values())
    if not found:
        raise DataError(f"--valid-labels {path}: this data set does not tell its classes; use a folder")
    if not dataset.mapped and len(found) == len(columns):
        return Labels(columns)
    column_of = {index: column for column, index in enumerate(columns)}
    if not dataset.mapped and len(found) != num_classes:
        raise DataError(
            f"the data has {len(found)} classes, --valid-labels {path} {len(columns)} and the model "
            f"{num_classes}: the folders must be those of the file, or --class-map must give their indices"
        )
    # a class map may name more classes than there are folders: only those with images count
    targets = dataset.source.targets()  # None where the source does not tell
    present = set(found if targets is None else targets).difference(column_of)
    if outside := sorted(name for name, index in dataset.class_to_idx.items() if index in present):
        raise DataError(
            f"the data has images of classes that are not in --valid-labels {path}: {some(outside)}; "
            "leave these folders out of the split"
        )
    return Labels(columns, column_of)


def real_labels(path: str | Path, dataset: PictureDataset, labels: Labels) -> Labels:
    """Find ReaL labels (Beyer et al. 2020) by the images' file names; `labels` says which classes take part.

    `path` is the published JSON list, whose n-th entry belongs to ILSVRC2012_val_n (n of 8 digits, from 1),
    or "timm" for the copy that timm carries. A part of the validation set will do.

    Raises:
        DataError: the file cannot be used, or an image is none of ImageNet's validation set.
    """
    known = {Path(name).stem: classes for name, classes in _read_real(path).items()}
    real: list[Sequence[int]] = []
    for name in dataset.filenames():
        if (stem := Path(name).stem) not in known:
            raise DataError(
                f"--real-labels {path} has no labels for {name}: its list is of {len(known)} images, "
                "called ILSVRC2012_val_00000001 and so on"
            )
        real.append(known[stem])
    if not any(real):
        raise DataError(f"--real-labels {path} has a label for none of the {len(real)} images")
    return Labels(labels.columns, labels.column_of, real)


def _read_indices(path: str | Path) -> tuple[int, ...]:
    try:
        indices = tuple(map(int, Path(path).read_text(encoding="utf-8").split()))
    except OSError as error:
        raise DataError(f"--valid-labels {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"--valid-labels {path} must hold a class index a line: {error}") from error
    if not indices or len(set(indices)) < len(indices):
        raise DataError(f"--valid-labels {path} holds {'an index twice' if indices else 'no index'}")
    return indices


def _read_real(path: str | Path) -> dict[str, list[int]]:
    """Read the classes of each file name."""
    if str(path) == BUNDLED_REAL:
        return dict(RealLabelsImagenet([""] * _IMAGENET_VAL).real_labels)
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"--real-labels {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"--real-labels {path} is not JSON: {error}") from error
    if not isinstance(entries, list) or not all(
        isinstance(entry, list) and all(isinstance(index, int) for index in entry) for entry in entries
    ):
        raise DataError(f"--real-labels {path} must be a JSON list with a list of class indices an image")
    return dict(RealLabelsImagenet([""] * len(entries), real_json=str(path)).real_labels)
