"""Annotations that must stop a run before it starts, and those that are only counted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from davit.data import DataError
from davit.data.coco import CocoSummary, check_annotations

Check = Callable[..., CocoSummary]


@pytest.fixture
def contents() -> dict[str, Any]:
    crowd = {"size": [10, 20], "counts": [20, 5, 175]}
    boxes = [
        {"image_id": 1, "category_id": 7, "bbox": [1, 1, 8, 8], "area": 64, "iscrowd": 0, "segmentation": [[1, 1, 9]]},
        {"image_id": 2, "category_id": 3, "bbox": [2, 2, 5, 5], "area": 25, "iscrowd": 1, "segmentation": crowd},
    ]
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 20, "height": 10} for i in (1, 2)],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [{"id": number, **box} for number, box in enumerate(boxes, 1)],
    }


@pytest.fixture
def check(tmp_path: Path, pictures: Callable[..., Path]) -> Check:
    pictures("pictures/1.png", "pictures/2.png")

    def go(contents: Any, classes: Any = ("cat", "dog"), folder: str = "pictures", masks: bool = True) -> CocoSummary:
        (tmp_path / "a.json").write_text(contents if isinstance(contents, str) else json.dumps(contents))
        return check_annotations(tmp_path / "a.json", tmp_path / folder, classes, masks)

    return go


def test_what_is_there_is_counted(check: Check, contents: dict[str, Any]) -> None:
    contents["categories"].append({"id": 9, "name": "cow"})
    changes = ({"id": 3, "bbox": [4, 4, 0, 3]}, {"id": 4, "bbox": [25, 4, 3, 3]}, {"id": 5, "category_id": 9})
    contents["annotations"] += [{**contents["annotations"][0], **change} for change in changes]
    found = check(contents)
    assert found == CocoSummary(pictures=2, classes=2, objects=2, crowd=1, without_area=2, other_classes=1)
    assert check(contents, classes=None) == CocoSummary(2, classes=3, objects=3, crowd=1, without_area=2)
    assert [int(word) for word in str(found).split() if word.isdigit()] == [2, 2, 2, 1, 2, 1]


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("images", None, ["images"]),
        ("categories", {}, ["categories"]),
        ("images.0.file_name", None, ["images", "file_name"]),
        ("images.0.file_name", "gone.png", ["gone.png", "1 of 2"]),
        ("images.1.id", 1, ["images", "id 1 "]),
        ("categories.1.id", 7, ["categories", "id 7 "]),
        ("annotations", [], ["0 annotations"]),
        ("annotations.1", 3, ["annotations"]),
        ("annotations.0.image_id", 5, ["annotation 1 ", "image_id 5", "1 of 2"]),
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
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    place: Any = contents
    for step in way:
        place = place[step]
    place[last] = value
    if value is None:
        del place[last]
    with pytest.raises(DataError) as error:
        check(contents)
    assert all(word in str(error.value) for word in (*named, str(tmp_path / "a.json")))


@pytest.mark.parametrize("text", ['{"images": [', "[1, 2]", '{"detections": 1}', '{"images": [1]}'])
def test_files_that_are_no_annotations(check: Check, text: str) -> None:
    with pytest.raises(DataError, match=r"a\.json"):
        check(text)


def test_files_that_are_not_there(check: Check, contents: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"b\.json.*--data-root"):
        check_annotations(tmp_path / "b.json", tmp_path)
    with pytest.raises(DataError, match="elsewhere"):
        check(contents, folder="elsewhere")


def test_what_the_detector_needs(check: Check, contents: dict[str, Any]) -> None:
    """Labels are numbered as the file has them, and a detector of boxes needs no masks."""
    with pytest.raises(DataError, match="--classes cat dog"):
        check(contents, classes=("dog", "cat"))
    assert check(contents, classes=("dog",)).objects == 1
    del contents["annotations"][0]["segmentation"]
    assert check(contents, masks=False).objects == 2
