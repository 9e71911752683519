"""COCO annotations, checked before a run starts rather than in its third hour."""

from __future__ import annotations

import json
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdet.registry import DATASETS

from ..data import DataError
from ..data.folder import absent
from ..text import some

log = logging.getLogger(__name__)


@dataclass
class CocoSummary:
    """What is in an annotation file, as the detector will see it."""

    pictures: int
    objects: int
    classes: int
    crowd: int
    without_area: int
    other_classes: int

    def __str__(self) -> str:
        text = f"{self.pictures:,} pictures, {self.objects:,} objects of {self.classes} classes"
        if self.crowd:
            text += f"; {self.crowd} crowds, which training ignores and evaluation matches leniently"
        if self.without_area:
            text += f"; {self.without_area} boxes without area or outside of their picture, left out"
        if self.other_classes:
            text += f"; {self.other_classes} objects of classes that are not trained on, left out"
        return text


def check_coco(dataset: Any, split: str, masks: bool) -> CocoSummary:
    """Check the data set of a config.

    Args:
        dataset: the config of a ``CocoDataset``.
        split: what to call it in messages: 'train', 'val' or 'test'.
        masks: whether objects need a segmentation.

    Raises:
        DataError: a file is missing or of another format, refers to something that is not there, has no
            objects, or its classes are not the config's.
    """
    root = Path(dataset.get("data_root") or ".")
    file = root / dataset["ann_file"]
    contents = read_annotations(file)
    pictures = {picture["id"]: picture for picture in contents["images"]}
    names = _check_references(file, contents, pictures)
    classes = _classes(dataset)
    _check_classes(file, contents["categories"], classes)
    folder = root / dataset.get("data_prefix", {}).get("img", "")
    _check_files(file, folder, [picture["file_name"] for picture in contents["images"]])
    summary = CocoSummary(len(pictures), 0, len(classes), 0, 0, 0)
    bare: list[Any] = []
    for annotation in contents["annotations"]:
        if names[annotation["category_id"]] not in classes:
            summary.other_classes += 1
        elif not _has_area(annotation, pictures[annotation["image_id"]]):
            summary.without_area += 1
        else:
            summary.objects += 1
            summary.crowd += bool(annotation.get("iscrowd"))
            if masks and not annotation.get("segmentation"):
                bare.append(annotation.get("id"))
    if not summary.objects:
        raise DataError(
            f"{file}: there is no object to {'learn from' if split == 'train' else 'evaluate on'}: "
            f"{len(contents['annotations'])} annotations, of which {summary.other_classes} of other classes than the "
            f"config's and {summary.without_area} without area."
        )
    if bare:
        raise DataError(
            f"{file}: {len(bare)} objects have no segmentation (the first is annotation {bare[0]}), and this detector "
            "learns masks. Add them, or use a RetinaNet config, which needs boxes alone."
        )
    log.info("%s: %s.", split, summary)
    return summary


def read_annotations(file: Path) -> dict[str, Any]:
    """The contents of a COCO json: a dict with lists of images, annotations and categories.

    Raises:
        DataError: it is missing, is no JSON, or has another layout.
    """
    if not file.is_file():
        raise DataError(
            f"there is no annotation file {file}. COCO belongs into mmdet/data/coco (annotations/, train2017/, "
            "val2017/); a data set elsewhere is named with --data-root DIR, its files with --cfg-options "
            "train_dataloader.dataset.ann_file=... (mmdet/README.md has an example)."
        )
    try:
        contents = json.loads(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file} is no JSON: {error}. It may be cut off; copy it again.") from error
    wanted = {"images": ("id", "file_name", "width", "height"), "annotations": (), "categories": ("id", "name")}
    for name, keys in wanted.items():
        entries = contents.get(name) if isinstance(contents, dict) else None
        if not isinstance(entries, list):
            kind = (
                f"a dict of {', '.join(list(contents)[:6])}"
                if isinstance(contents, dict)
                else f"a {type(contents).__name__}"
            )
            raise DataError(
                f"{file} is not in the format of COCO's instances: it has no list {name!r} (it is {kind}). Needed are "
                "images, annotations and categories."
            )
        for entry in entries:
            if not isinstance(entry, dict) or any(key not in entry for key in keys):
                raise DataError(f"{file}: an entry of {name!r} lacks one of {', '.join(keys)}: {str(entry)[:120]}")
    return contents


def _check_references(file: Path, contents: dict[str, Any], pictures: dict[Any, Any]) -> dict[Any, str]:
    """Every annotation belongs to a picture and a category; returns the categories' names by id."""
    names = {category["id"]: str(category["name"]) for category in contents["categories"]}
    for what, ids in (
        ("picture", [p["id"] for p in contents["images"]]),
        ("category", [c["id"] for c in contents["categories"]]),
    ):
        twice = [one for one, count in Counter(ids).items() if count > 1]
        if twice:
            raise DataError(
                f"{file}: the {what} id {twice[0]} is there {Counter(ids)[twice[0]]} times; ids must be unique."
            )
    for annotation in contents["annotations"]:
        label = (
            f"{file}: annotation {annotation.get('id')}" if isinstance(annotation, dict) else f"{file}: an annotation"
        )
        box = annotation.get("bbox") if isinstance(annotation, dict) else None
        if not isinstance(box, list) or len(box) != 4:
            raise DataError(f"{label} has no bbox of [x, y, width, height]: {str(annotation)[:120]}")
        lacking = [key for key in ("area", "iscrowd") if key not in annotation]
        if lacking:
            raise DataError(
                f"{label} lacks {' and '.join(lacking)}, which COCO's evaluation needs: area is that of the mask or "
                "of the box in pixels, iscrowd is 0 for a single object."
            )
        if annotation.get("image_id") not in pictures:
            raise DataError(f"{label} is of picture {annotation.get('image_id')!r}, which is not among the images.")
        if annotation.get("category_id") not in names:
            raise DataError(
                f"{label} is of category {annotation.get('category_id')!r}, which is not among the categories."
            )
    return names


def _classes(dataset: Any) -> tuple[str, ...]:
    """The classes that the data set will have."""
    given = (dataset.get("metainfo") or {}).get("classes")
    if given is None:
        given = DATASETS.get(dataset["type"]).METAINFO["classes"]
    return (given,) if isinstance(given, str) else tuple(given)


def categories_of(file: Path) -> tuple[str, ...]:
    """The names of the categories, in the order of the file, which is the order of the labels."""
    return tuple(str(category["name"]) for category in read_annotations(file)["categories"])


def _check_classes(file: Path, categories: list[Any], classes: tuple[str, ...]) -> None:
    in_file = [str(category["name"]) for category in categories]
    missing = [name for name in classes if name not in in_file]
    if missing:
        raise DataError(
            f"{file} has {len(in_file)} categories ({some(in_file, 4)}), and lacks {len(missing)} of the config's "
            f"{len(classes)} classes ({some(missing, 4)}). Pass --classes auto to train on those of the file, or "
            "--classes NAME NAME ... for some of them."
        )
    order = [name for name in in_file if name in classes]
    if order != list(classes):
        raise DataError(
            f"{file} lists the classes in another order than the config ({some(order, 4)}; the config: "
            f"{some(classes, 4)}), and MMDetection numbers them as the file does. Pass --classes "
            f"{' '.join(order[:4])} ..."
        )


def _check_files(file: Path, folder: Path, names: list[str]) -> None:
    """Every picture is there."""
    if not folder.is_dir():
        raise DataError(f"{file} lists {len(names)} pictures, but their folder {folder} does not exist.")
    files = [folder / name for name in names]
    gone = set(absent(files))
    missing = [name for name, path in zip(names, files, strict=True) if path in gone]
    if missing:
        raise DataError(
            f"{file} names {len(missing)} pictures that are not in {folder}: {some(missing, 4)}. Copy them there, or "
            "take them out of the file."
        )


def _has_area(annotation: dict[str, Any], picture: dict[str, Any]) -> bool:
    """Whether MMDetection keeps a box: at least a pixel wide and high, and within its picture."""
    x, y, width, height = annotation["bbox"]
    inside = min(x + width, picture["width"]) > max(x, 0) and min(y + height, picture["height"]) > max(y, 0)
    return bool(inside and width >= 1 and height >= 1 and annotation.get("area", width * height) > 0)
