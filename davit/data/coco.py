"""Check a detection data set in COCO's format before a run starts rather than in its third hour."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..text import some
from .errors import DataError
from .listing import absent

_REQUIRED_KEYS = {"images": ("id", "file_name", "width", "height"), "annotations": (), "categories": ("id", "name")}


@dataclass
class CocoSummary:
    """What is in an annotation file, as a detector of some classes sees it."""

    pictures: int
    classes: int
    objects: int = 0
    crowd: int = 0
    without_area: int = 0
    other_classes: int = 0

    def __str__(self) -> str:
        text = f"{self.pictures:,} pictures, {self.objects:,} objects of {self.classes} classes"
        if self.crowd:
            text += f"; {self.crowd} crowds, which training ignores and evaluation matches leniently"
        if self.without_area:
            text += f"; {self.without_area} boxes without area or outside of their picture, left out"
        if self.other_classes:
            text += f"; {self.other_classes} objects of classes that are not trained on, left out"
        return text


def check_annotations(
    file: Path, folder: Path, classes: Sequence[str] | None = None, needs_masks: bool = False
) -> CocoSummary:
    """Check an annotation file and that its pictures are there.

    Args:
        folder: where the pictures are.
        classes: those to detect, in order; None for all of the file's.
        needs_masks: every object needs a segmentation.

    Raises:
        DataError: a file is missing or of another format, refers to something that is not there, has no
            objects, or its classes are not the given ones.
    """
    contents = read_annotations(file)
    for fault in annotation_faults(file, contents, folder, classes):
        raise DataError(fault)
    return summarise_annotations(file, contents, classes, needs_masks)


def read_annotations(file: Path) -> dict[str, Any]:
    """Read a COCO json: a dict with lists of images, annotations and categories.

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
    is_dict = isinstance(contents, dict)
    for name, keys in _REQUIRED_KEYS.items():
        entries = contents.get(name) if is_dict else None
        if not isinstance(entries, list):
            kind = f"a dict of {some(contents, 6)}" if is_dict else f"a {type(contents).__name__}"
            raise DataError(
                f"{file} is not in the format of COCO's instances: it has no list {name!r} (it is {kind}). It needs "
                f"the lists {', '.join(_REQUIRED_KEYS)}."
            )
        for entry in entries:
            if not isinstance(entry, dict) or any(key not in entry for key in keys):
                needed = f" with {', '.join(keys)}" if keys else ""
                raise DataError(f"{file}: an entry of {name!r} is not a dict{needed}: {str(entry)[:120]}")
    return contents


def categories_of(file: Path) -> tuple[str, ...]:
    """Read the names of the categories, in the order of the file, which is the order of the labels."""
    return _names(read_annotations(file))


def annotation_faults(
    file: Path, contents: dict[str, Any], folder: Path, classes: Sequence[str] | None = None
) -> Iterator[str]:
    """Say what is wrong with the contents of a file, one message for each kind of fault, with its remedy."""
    ids = {key: Counter(entry["id"] for entry in contents[key]) for key in ("images", "categories")}
    for key, counts in ids.items():
        repeated = [(number, count) for number, count in counts.items() if count > 1]
        if repeated:
            number, count = repeated[0]
            yield f"{file}: the id {number} is there {count} times in {key!r}; ids must be unique."
    objects = contents["annotations"]
    wrong = [(entry.get("id"), fault) for entry in objects if (fault := _annotation_fault(entry, ids))]
    if wrong:
        yield f"{file}: annotation {wrong[0][0]} {wrong[0][1]} ({len(wrong)} of {len(objects)} annotations are wrong)."
    in_file = _names(contents)
    if classes is not None:
        yield from _class_faults(file, in_file, classes)
    names = [picture["file_name"] for picture in contents["images"]]
    gone = set(absent([folder / name for name in names]))
    missing = [name for name in names if folder / name in gone]
    if missing:
        where = f"in {folder}" if folder.is_dir() else f"there, as their folder {folder} does not exist"
        yield (
            f"{len(missing)} of {len(names)} pictures that {file} names are not {where}: {some(missing, 4)}. Copy them "
            "there, or take them out of the file."
        )


def summarise_annotations(
    file: Path, contents: dict[str, Any], classes: Sequence[str] | None = None, needs_masks: bool = False
) -> CocoSummary:
    """Count what is in a file that has no `annotation_faults`; arguments and errors as in `check_annotations`."""
    pictures = {picture["id"]: picture for picture in contents["images"]}
    names = {category["id"]: str(category["name"]) for category in contents["categories"]}
    classes = list(names.values()) if classes is None else classes
    summary = CocoSummary(len(pictures), len(classes))
    without_mask: list[Any] = []
    for annotation in contents["annotations"]:
        if names[annotation["category_id"]] not in classes:
            summary.other_classes += 1
        elif not _has_area(annotation, pictures[annotation["image_id"]]):
            summary.without_area += 1
        else:
            summary.objects += 1
            summary.crowd += bool(annotation.get("iscrowd"))
            if not annotation.get("segmentation"):
                without_mask.append(annotation.get("id"))
    if not summary.objects:
        raise DataError(
            f"{file}: there is no object to learn from or to evaluate on: {len(contents['annotations'])} annotations, "
            f"of which {summary.other_classes} of other classes than the config's and {summary.without_area} without "
            "area."
        )
    if needs_masks and without_mask:
        raise DataError(
            f"{file}: {len(without_mask)} objects have no segmentation (the first is annotation {without_mask[0]}), "
            "and this detector learns masks. Add them, or use a RetinaNet config, which needs only boxes."
        )
    return summary


def _names(contents: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(category["name"]) for category in contents["categories"])


def _annotation_fault(annotation: dict[str, Any], ids: dict[str, Counter[Any]]) -> str | None:
    """Say why an annotation is incomplete, or that its picture or category is not in the file."""
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4:
        return f"has no bbox of [x, y, width, height]: {str(annotation)[:120]}"
    missing = [key for key in ("area", "iscrowd") if key not in annotation]
    if missing:
        return (
            f"lacks {' and '.join(missing)}, which COCO's evaluation needs: area is that of the mask or of the box in "
            "pixels, iscrowd is 0 for a single object"
        )
    for key, entries in (("image_id", "images"), ("category_id", "categories")):
        if annotation.get(key) not in ids[entries]:
            return f"has {key} {annotation.get(key)!r}, which is not in {entries!r}"
    return None


def _class_faults(file: Path, in_file: Sequence[str], classes: Sequence[str]) -> Iterator[str]:
    missing = [name for name in classes if name not in in_file]
    order = [name for name in in_file if name in classes]
    if missing:
        yield (
            f"{file} has {len(in_file)} categories ({some(in_file, 4)}), and lacks {len(missing)} of the config's "
            f"{len(classes)} classes ({some(missing, 4)}). Pass --classes auto to train on those of the file, or "
            "--classes NAME NAME ... for some of them."
        )
    elif order != list(classes):
        yield (
            f"{file} lists the classes in another order than the config ({some(order, 4)}; the config: "
            f"{some(classes, 4)}), and MMDetection numbers them as the file does. Pass --classes "
            f"{' '.join(order[:4])} ..."
        )


def _has_area(annotation: dict[str, Any], picture: dict[str, Any]) -> bool:
    """Tell whether MMDetection keeps a box: at least a pixel wide and high, and within its picture."""
    x, y, width, height = annotation["bbox"]
    inside = min(x + width, picture["width"]) > max(x, 0) and min(y + height, picture["height"]) > max(y, 0)
    return bool(inside and width >= 1 and height >= 1 and annotation.get("area", width * height) > 0)
