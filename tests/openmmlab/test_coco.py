"""Annotations that must stop a run before it starts, and those that are only counted."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.registry import init_default_scope

from davit.data import DataError
from davit.openmmlab.coco import CocoSummary, check_annotations
from davit.openmmlab.datasets import check_dataset
from tests.openmmlab.conftest import save

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


Check = Callable[..., CocoSummary]


@pytest.fixture
def check(tmp_path: Path) -> Check:
    for i in (1, 2):
        save(np.zeros((10, 20, 3)), tmp_path / f"pictures/{i}.png")

    def go(contents: Any, classes: Any = CLASSES, folder: str = "pictures", needs_masks: bool = True) -> CocoSummary:
        (tmp_path / "a.json").write_text(contents if isinstance(contents, str) else json.dumps(contents))
        return check_annotations(tmp_path / "a.json", tmp_path / folder, classes, needs_masks)

    return go


def test_what_is_there_is_counted(check: Check, contents: dict[str, Any]) -> None:
    contents["categories"].append({"id": 9, "name": "cow"})
    contents["annotations"] += [
        {**contents["annotations"][0], "id": 3, "bbox": [4, 4, 0, 3]},
        {**contents["annotations"][0], "id": 4, "bbox": [25, 4, 3, 3]},
        {**contents["annotations"][0], "id": 5, "category_id": 9},
    ]
    found = check(contents)
    assert found == CocoSummary(pictures=2, classes=2, objects=2, crowd=1, without_area=2, other_classes=1)
    assert check(contents, classes=None) == CocoSummary(2, classes=3, objects=3, crowd=1, without_area=2)
    assert [int(word) for word in str(found).split() if word.isdigit()] == [2, 2, 2, 1, 2, 1]


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
    ("path", "value", "named"),
    [
        ("images", None, ["images"]),
        ("categories", {}, ["categories"]),
        ("images.0.file_name", None, ["images", "file_name"]),
        ("images.0.file_name", "gone.png", ["gone.png"]),
        ("images.1.id", 1, ["images", "id 1 "]),
        ("categories.1.id", 7, ["categories", "id 7 "]),
        ("annotations", [], ["0 annotations"]),
        ("annotations.1", 3, ["annotations"]),
        ("annotations.0.image_id", 5, ["annotation 1 ", "image_id 5"]),
        ("annotations.0.category_id", 5, ["annotation 1 ", "category_id 5"]),
        ("annotations.0.bbox", [1, 2, 3], ["annotation 1 ", "[1, 2, 3]"]),
        ("annotations.0.iscrowd", None, ["annotation 1 ", "iscrowd"]),
        ("annotations.0.segmentation", None, ["annotation 1)", "RetinaNet"]),
        ("categories.0.name", "lynx", ["cat", "lynx", "--classes auto"]),
    ],
)
def test_what_is_wrong_is_named(
    check: Check, contents: dict[str, Any], tmp_path: Path, path: str, value: Any, named: list[str]
) -> None:
    with pytest.raises(DataError) as error:
        check(change(contents, path, value))
    assert all(word in str(error.value) for word in (*named, str(tmp_path / "a.json")))


def test_a_detector_of_boxes_needs_no_masks(check: Check, contents: dict[str, Any]) -> None:
    assert check(change(contents, "annotations.0.segmentation", None), needs_masks=False).objects == 2


@pytest.mark.parametrize("text", ['{"images": [', "[1, 2]", '{"detections": 1}', '{"images": [1]}'])
def test_files_that_are_no_annotations(check: Check, text: str) -> None:
    with pytest.raises(DataError, match=r"a\.json"):
        check(text)


def test_files_that_are_not_there(check: Check, contents: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"b\.json.*--data-root"):
        check_annotations(tmp_path / "b.json", tmp_path)
    with pytest.raises(DataError, match="elsewhere"):
        check(contents, folder="elsewhere")


def test_labels_are_numbered_as_the_file_has_them(check: Check, contents: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="--classes cat dog"):
        check(contents, classes=("dog", "cat"))
    assert check(contents, classes=("dog",)).objects == 1


def test_coco_itself_passes(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By the config of a data set without names of classes: those of mmdet's own are meant."""
    init_default_scope("mmdet")
    dataset = {"type": "CocoDataset", "data_root": str(shared / "data/coco-tiny")}
    for split, crowd in (("train", 6), ("val", 11)):
        files = {"ann_file": f"annotations/instances_{split}2017.json", "data_prefix": {"img": f"{split}2017/"}}
        with caplog.at_level("INFO"):
            check_dataset({**dataset, **files}, split, {"roi_head": {"mask_head": {}}})
        logged, summary = caplog.records[-1].args
        assert (logged, summary.pictures, summary.classes, summary.crowd) == (split, 80, 80, crowd)
