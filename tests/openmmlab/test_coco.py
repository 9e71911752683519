"""Annotations that must stop a run before it starts, and those that are only said."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from davit.data import DataError
from davit.openmmlab.coco import check_coco

CLASSES = ("cat", "dog")


@pytest.fixture
def contents() -> dict[str, Any]:
    polygon = [[1, 1, 9, 1, 9, 9, 1, 9]]
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 20, "height": 10} for i in (1, 2)],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 1, 8, 8], "area": 64, "iscrowd": 0}
            | {"segmentation": polygon},
            {"id": 2, "image_id": 2, "category_id": 3, "bbox": [2, 2, 5, 5], "area": 25, "iscrowd": 1}
            | {"segmentation": {"size": [10, 20], "counts": [20, 5, 175]}},
        ],
    }


Check = Callable[..., Any]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    (tmp_path / "pictures").mkdir()
    for i in (1, 2):
        Image.fromarray(np.zeros((10, 20, 3), np.uint8)).save(tmp_path / f"pictures/{i}.png")

    def go(contents: Any, masks: bool = True, **words: Any) -> Any:
        text = contents if isinstance(contents, str) else json.dumps(contents)
        (tmp_path / "a.json").write_text(text)
        dataset = {"type": "CocoDataset", "data_root": str(tmp_path), "ann_file": "a.json"}
        dataset |= {"data_prefix": {"img": "pictures/"}, "metainfo": {"classes": CLASSES}}
        return check_coco({**dataset, **words}, "train", masks)

    return go


def test_what_is_there_is_counted(check: Check, contents: dict[str, Any]) -> None:
    contents["categories"].append({"id": 9, "name": "cow"})
    contents["annotations"] += [
        {**contents["annotations"][0], "id": 3, "bbox": [4, 4, 0, 3]},
        {**contents["annotations"][0], "id": 4, "bbox": [25, 4, 3, 3]},
        {**contents["annotations"][0], "id": 5, "category_id": 9},
    ]
    found = check(contents)
    assert (found.pictures, found.objects, found.crowd, found.without_area, found.other_classes) == (2, 2, 1, 2, 1)
    for words in ("2 pictures", "2 objects of 2 classes", "1 crowds", "2 boxes without area", "1 objects of classes"):
        assert words in str(found)


def change(contents: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(contents)
    *way, last = path.split(".")
    place: Any = changed
    for step in way:
        place = place[int(step) if step.isdigit() else step]
    if value is None:
        del place[last]
    else:
        place[int(last) if last.isdigit() else last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("images", None, "no list 'images'"),
        ("categories", {}, "no list 'categories'"),
        ("images.0.file_name", None, "lacks one of id, file_name"),
        ("images.0.file_name", "gone.png", "names 1 pictures that are not in .*gone.png"),
        ("images.1.id", 1, "the picture id 1 is there 2 times"),
        ("categories.1.id", 7, "the category id 7 is there 2 times"),
        ("annotations", [], "no object to learn from"),
        ("annotations.0.image_id", 5, "annotation 1 is of picture 5"),
        ("annotations.0.category_id", 5, "annotation 1 is of category 5"),
        ("annotations.0.bbox", [1, 2, 3], "annotation 1 has no bbox"),
        ("annotations.0.iscrowd", None, "annotation 1 lacks iscrowd"),
        ("annotations.0.segmentation", None, "1 objects have no segmentation"),
        ("categories.0.name", "lynx", r"lacks 1 of the config's 2 classes \(cat\).*--classes auto"),
    ],
)
def test_what_is_wrong_is_named(check: Check, contents: dict[str, Any], path: str, value: Any, expected: str) -> None:
    with pytest.raises(DataError, match=f"(?s){expected}"):
        check(change(contents, path, value))


def test_a_detector_of_boxes_needs_no_masks(check: Check, contents: dict[str, Any]) -> None:
    assert check(change(contents, "annotations.0.segmentation", None), masks=False).objects == 2


def test_files_that_are_no_annotations(check: Check, contents: dict[str, Any]) -> None:
    for text, expected in (
        ("{" + json.dumps(contents)[1:100], "is no JSON"),
        ("[1, 2]", "a list"),
        ('{"detections": 1}', "dict of detections"),
        ('{"images": [1], "annotations": [], "categories": []}', "'images' lacks"),
    ):
        with pytest.raises(DataError, match=expected):
            check(text)
    with pytest.raises(DataError, match=r"no annotation file .*b.json.*--data-root"):
        check(contents, ann_file="b.json")
    with pytest.raises(DataError, match=r"their folder .*elsewhere does not exist"):
        check(contents, data_prefix={"img": "elsewhere"})


def test_labels_are_numbered_as_the_file_has_them(check: Check, contents: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"another order .*--classes cat dog"):
        check(contents, metainfo={"classes": ("dog", "cat")})
    assert check(contents, metainfo={"classes": ("dog",)}).objects == 1


def test_the_eighty_classes_are_those_of_the_data_set(check: Check, contents: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="lacks 78 of the config's 80 classes"):
        check(contents, metainfo=None)


def test_coco_itself_passes(shared: Path) -> None:
    dataset = {"type": "CocoDataset", "data_root": str(shared / "data/coco-tiny")}
    for split, crowd in (("train", 6), ("val", 11)):
        files = {"ann_file": f"annotations/instances_{split}2017.json", "data_prefix": {"img": f"{split}2017/"}}
        found = check_coco({**dataset, **files}, split, masks=True)
        assert (found.pictures, found.classes, found.crowd) == (80, 80, crowd)
