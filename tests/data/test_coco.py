"""Annotations that must stop a run before it starts, those that are mended or left out, and those only counted."""

import copy
import json
import math
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from davit.data import DataError, coco
from davit.data.coco import (
    LINE,
    ORIGIN,
    CocoSummary,
    Examined,
    categories_of,
    check_annotations,
    examine,
    keep_annotations,
)

Check = Callable[..., Examined]
WIDTH, HEIGHT = 20, 10


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAVIT_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def contents() -> dict[str, Any]:
    """Two images, each with an object; the second is a crowd."""
    crowd = {"size": [HEIGHT, WIDTH], "counts": [20, 5, 175]}
    polygon = [[1, 1, 9, 1, 9, 9, 1, 9]]
    boxes = [
        {"image_id": 1, "category_id": 7, "bbox": [1, 1, 8, 8], "area": 64, "iscrowd": 0, "segmentation": polygon},
        {"image_id": 2, "category_id": 3, "bbox": [2, 2, 5, 5], "area": 25, "iscrowd": 1, "segmentation": crowd},
    ]
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT} for i in (1, 2)],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [{"id": number, **box} for number, box in enumerate(boxes, 1)],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    for number in (1, 2):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / f"pictures/{number}.png")
    return tmp_path / "pictures"


@pytest.fixture
def check(tmp_path: Path, folder: Path) -> Check:
    def go(contents: Any, classes: Any = ("cat", "dog"), folder: Path = folder, **options: Any) -> Examined:
        text = contents if isinstance(contents, str) else json.dumps(contents)
        (tmp_path / "a.json").write_text(text)
        return check_annotations(tmp_path / "a.json", folder, classes, **{"needs_masks": True, **options})

    return go


def change(contents: dict[str, Any], path: str, value: Any) -> None:
    """Set what a path such as images.0.id leads to; `...` deletes it."""
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    place: Any = contents
    for step in way:
        place = place[step]
    if value is ...:
        del place[last]
    else:
        place[last] = value


def more(contents: dict[str, Any], *changes: dict[str, Any]) -> None:
    """Add objects like the first one with new ids."""
    for number, other in enumerate(changes, len(contents["annotations"]) + 1):
        contents["annotations"].append({**copy.deepcopy(contents["annotations"][0]), "id": number, **other})


# -- what is right


def test_a_sound_file_is_used_as_it_is(check: Check, contents: dict[str, Any], tmp_path: Path) -> None:
    found = check(contents)
    assert found.file() == tmp_path / "a.json" and not found.notes and not found.is_changed
    assert found.contents == contents and found.classes == ("cat", "dog")
    assert found.summary == CocoSummary(pictures=2, classes=2, objects=2, crowd=1)


def test_what_is_there_is_counted(check: Check, contents: dict[str, Any]) -> None:
    contents["categories"].append({"id": 9, "name": "cow"})
    more(contents, {"bbox": [4, 4, 0, 3]}, {"bbox": [25, 4, 3, 3]}, {"category_id": 9}, {"ignore": 1})
    found = check(contents).summary
    assert found == CocoSummary(2, classes=2, objects=2, crowd=1, without_area=2, other_classes=1, ignored=1)
    assert check(contents, classes=None).summary == CocoSummary(2, 3, objects=3, crowd=1, without_area=2, ignored=1)
    assert [int(word) for word in str(found).split() if word.isdigit()] == [2, 2, 2, 1, 2, 1, 1]


def test_pictures_that_training_leaves_out_are_counted(check: Check, contents: dict[str, Any]) -> None:
    rule = {"filter_empty_gt": True, "min_size": 5}
    assert check(contents, filter_cfg=rule).summary.used == 2
    del contents["annotations"][1]
    found = check(contents, filter_cfg=rule).summary
    assert (found.pictures, found.used, found.empty, found.small) == (2, 1, 1, 0)
    assert check(contents).summary.used == 2
    found = check(contents, filter_cfg={"min_size": 10}).summary
    assert found.used == 2
    with pytest.raises(DataError, match="min_size"):
        check(contents, filter_cfg={"filter_empty_gt": True, "min_size": 32})


# -- what stops a run


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        ("images", ..., ["images"]),
        ("images", [], ["images"]),
        ("categories", {}, ["categories"]),
        ("categories", [], ["categories"]),
        ("annotations", ..., ["annotations", "--format-only"]),
        ("annotations", None, ["annotations"]),
        ("annotations", [], ["0 annotations", "--format-only"]),
        ("annotations.1", 3, ["annotations[1]"]),
        ("images.0.file_name", ..., ["images[0]", "id 1", "file_name"]),
        ("images.0.file_name", None, ["images[0]", "id 1", "file_name None"]),
        ("images.0.file_name", "gone.png", ["gone.png", "1 of 2"]),
        ("images.0.file_name", "../no/1.png", ["no/1.png", "1 of 2"]),
        ("images.1.id", 1, ["images[1]", "id 1"]),
        ("images.1.id", "2", ["images[1]", "'2'"]),
        ("images.1.id", 2.0, ["images[1]", "2.0"]),
        ("images.1.id", 2**70, ["images[1]", "1 of 2"]),
        ("images.1.id", ..., ["images[1]", "2.png", "no id"]),
        *(("images.0." + side, value, ["images[0]", "id 1", side]) for side in ("width", "height")
          for value in (None, "20", True, 0, -3, 20.5, math.nan)),
        ("images.0.width", 30, ["images[0]", "width 30", "20 and 10"]),
        ("categories.1.id", 7, ["categories[1]", "id 7"]),
        ("categories.1.id", None, ["categories[1]", "None"]),
        ("categories.1.name", None, ["categories[1]", "id 3", "name None"]),
        ("categories.0.name", "lynx", ["cat", "lynx", "--classes auto"]),
        ("annotations.1.id", 1, ["annotations[1]", "id 1", "1 of 2"]),
        ("annotations.1.id", ..., ["annotations[1]", "no id", "1 of 2"]),
        *(("annotations.1.id", value, ["annotations[1]", str(value)]) for value in ("x7", 7.5, None, True)),
        ("annotations.0.image_id", 5, ["annotations[0]", "id 1", "image_id 5", "1 of 2"]),
        ("annotations.0.image_id", "1", ["annotations[0]", "image_id '1'"]),
        ("annotations.0.image_id", [1], ["annotations[0]", "image_id [1]"]),
        ("annotations.0.image_id", ..., ["annotations[0]", "no image_id"]),
        ("annotations.0.category_id", 5, ["annotations[0]", "category_id 5"]),
        ("annotations.0.category_id", True, ["annotations[0]", "category_id True"]),
        ("annotations.0.bbox", ..., ["annotations[0]", "no bbox"]),
        *(("annotations.0.bbox", value, ["annotations[0]", "id 1", str(value)]) for value in
          ([1, 2, 3], ["1", "1", "8", "8"], [None] * 4, [1, 1, math.nan, 3], [1, 1, True, 3], "1 1 8 8", {"x": 1})),
        ("annotations.0.bbox", [1, 1, 10**400, 3], ["annotations[0]", "bbox"]),
        *(("annotations.0.area", value, ["annotations[0]", "id 1", "area"]) for value in
          (None, "64", True, math.nan, math.inf, [64])),
        *(("annotations.0.iscrowd", value, ["annotations[0]", "id 1", "iscrowd"]) for value in (None, "0", 2, 0.5)),
        *(("annotations.0.segmentation", value, ["annotations[0]", "id 1", "segmentation"]) for value in
          ([[1, 1, None, 1, 9, 9]], [["1", "1", "9", "1", "9", "9"]], [[1, 1, math.nan, 1, 9, 9]], "1 1 9 1", 5,
           [[1, 1, True, 1, 9, 9]], [None], [[1, 1, math.inf, 1, 9, 9]])),
        ("annotations.0.segmentation", ..., ["annotations[0]", "1 of 2", "RetinaNet"]),
        ("annotations.0.segmentation", None, ["annotations[0]", "RetinaNet"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(
    check: Check, contents: dict[str, Any], tmp_path: Path, path: str, value: Any, named: list[str]
) -> None:
    change(contents, path, value)
    with pytest.raises(DataError) as error:
        check(contents)
    assert all(word in str(error.value) for word in (*named, str(tmp_path / "a.json")))


def test_all_kinds_of_faults_are_named_at_once(check: Check, contents: dict[str, Any]) -> None:
    more(contents, {"bbox": None}, {"bbox": None}, {"image_id": 77}, {"area": "x"}, {"category_id": 88})
    contents["annotations"][1]["iscrowd"] = 7
    with pytest.raises(DataError) as error:
        check(contents)
    for word in ("2 of 7", "image_id 77", "area 'x'", "category_id 88", "iscrowd 7"):
        assert word in str(error.value)
    assert len(str(error.value).splitlines()) == 6
    contents["images"][1]["id"] = "2"
    contents["images"][0]["file_name"] = "gone.png"
    with pytest.raises(DataError) as error:
        check(contents, skip_bad_images=True)
    assert "gone.png" in str(error.value) and "id '2'" in str(error.value)
    many = [{"id": f"{n}", "file_name": n} for n in range(3)]
    assert (
        "more kinds" not in str(error.value)
        and len(examine({**contents, "images": many}, Path("a"), Path("b")).faults) > 4
    )


@pytest.mark.parametrize("text", ['{"images": [', "[1, 2]", '{"detections": 1}', '{"images": [1]}', "[" * 100_000])
def test_files_that_are_no_annotations(check: Check, text: str) -> None:
    with pytest.raises(DataError, match=r"a\.json"):
        check(text)


def test_files_that_are_not_there(check: Check, contents: dict[str, Any], tmp_path: Path, folder: Path) -> None:
    with pytest.raises(DataError, match=r"b\.json.*--data-root"):
        check_annotations(tmp_path / "b.json", tmp_path)
    with pytest.raises(DataError, match="elsewhere"):
        check(contents, folder=tmp_path / "elsewhere")
    for image in contents["images"]:
        image["file_name"] = f"pictures/{image['file_name']}"
    with pytest.raises(DataError, match="data_prefix"):
        check(contents)
    assert check(contents, folder=tmp_path).summary.pictures == 2


def test_boxes_of_other_formats(check: Check, contents: dict[str, Any]) -> None:
    corners = [[1, 1, 12, 9], [5, 2, 18, 8], [10, 4, 19, 9], [2, 1, 9, 5], [12, 2, 20, 10], [3, 3, 16, 7]]
    more(contents, *({"bbox": box} for box in corners))
    with pytest.raises(DataError, match="x1, y1, x2, y2"):
        check(contents)
    for entry, (a, b, c, d) in zip(contents["annotations"][2:], corners, strict=True):
        entry["bbox"] = [a, b, c - a, d - b]
    assert not check(contents).notes
    contents["annotations"][2]["bbox"] = [15, 1, 8, 8]
    assert any("1 of 8" in note for note in check(contents).notes)
    for entry in contents["annotations"]:
        entry["bbox"] = [0.1, 0.2, 0.5, 0.4]
    with pytest.raises(DataError, match="YOLO"):
        check(contents)


# -- masks


@pytest.mark.parametrize(
    "useless",
    [
        [[]],
        [[1, 1, 9, 9]],
        [[1, 1, 9, 1, 9]],
        [[1, 1, 9, 1, 9, 9, 3]],
        [[1, 1, 5, 5, 9, 9]],
        [[1, 1, 1, 1, 1, 1, 1, 1]],
        [[30, 30, 40, 30, 40, 40]],
        [[1, 1, 1e8, 1, 9, 9]],
        [[[1, 1], [9, 1], [9, 9]]],
        [{"size": [10, 20], "counts": [20, 5, 175]}],
        {"size": [20, 10], "counts": [20, 5, 175]},
        {"size": [10, 20], "counts": [20, 5]},
        {"size": [10, 20], "counts": [20, -5, 185]},
        {"size": [10, 20], "counts": [20, "5", 175]},
        {"size": [10, 20], "counts": [200]},
        {"size": [10, 20], "counts": "hello world"},
        {"size": [10, 20], "counts": ""},
        {"size": [10, 20]},
        {"counts": [20, 5, 175]},
        None,
        [],
    ],
)
def test_objects_without_a_usable_mask_are_left_out(check: Check, contents: dict[str, Any], useless: Any) -> None:
    more(contents, {"segmentation": useless}, {})
    found = check(contents)
    assert [entry["id"] for entry in found.contents["annotations"]] == [1, 2, 4]
    assert found.summary.objects == 3
    (note,) = found.notes
    assert "annotations[2]" in note and "id 3" in note and "1 of 4" in note
    masks = COCO(found.file())
    assert all(masks.annToMask(entry).any() for entry in masks.anns.values())
    boxes = check(contents, needs_masks=False)  # a box needs no mask
    assert boxes.summary.objects == 4 and not boxes.notes
    contents["annotations"][3]["segmentation"] = contents["annotations"][0]["segmentation"] = useless
    with pytest.raises(DataError, match=r"(?s)3 of 4.*RetinaNet"):
        check(contents)


def test_unusable_polygons_beside_good_ones(check: Check, contents: dict[str, Any]) -> None:
    good = contents["annotations"][0]["segmentation"][0]
    contents["annotations"][0]["segmentation"] = [[], good, [1, 1, 9, 9]]
    found = check(contents)
    assert found.contents["annotations"][0]["segmentation"] == [good] and len(found.notes) == 1
    assert found.summary.objects == 2
    contents["annotations"][0]["segmentation"] = good  # not in a list
    assert check(contents).contents["annotations"][0]["segmentation"] == [good]
    bow_tie = [1, 1, 9, 9, 9, 1, 1, 9]
    contents["annotations"][0]["segmentation"] = [bow_tie]
    assert not check(contents).notes


def test_run_lengths_of_all_spellings(contents: dict[str, Any], folder: Path) -> None:
    from pycocotools import mask

    pixels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
    pixels[2:6, 3:9] = 1
    packed = mask.encode(pixels)
    assert isinstance(packed["counts"], bytes)
    for spelled in (
        packed,
        {**packed, "counts": packed["counts"].decode()},
        {"size": (10, 20), "counts": packed["counts"]},
    ):
        contents["annotations"][0]["segmentation"] = spelled
        del contents["annotations"][0]["area"]
        found = examine(contents, Path("memory"), folder, needs_masks=True)
        assert not found.faults and found.contents["annotations"][0]["area"] == 24
        masks = COCO(found.file())
        assert (masks.annToMask(masks.anns[1]) == pixels).all()
        contents["annotations"][0]["area"] = 1


@pytest.mark.parametrize("shape", [(1, 1), (7, 1), (1, 9), (40, 33), (300, 211)])
def test_compressed_run_lengths_are_decoded_as_pycocotools_does(shape: tuple[int, int]) -> None:
    from pycocotools import mask

    from davit.data.outlines import decompress

    draws = np.random.default_rng(sum(shape))
    for share in (0.0, 0.02, 0.5, 1.0):
        pixels = np.asfortranarray(draws.random(shape) < share, dtype=np.uint8)
        runs = decompress(mask.encode(pixels)["counts"])
        assert runs is not None and sum(runs) == pixels.size
        flat = np.repeat(np.arange(len(runs)) % 2, runs)
        assert (pixels == flat.reshape(shape[::-1]).T).all()
    assert decompress("0" * 3) == [0, 0, 0]
    assert [decompress(bad) for bad in ("é", "o", "oooooooo1", "\x00", "A")] == [None] * 5


# -- what is mended


def test_what_is_derived(check: Check, contents: dict[str, Any]) -> None:
    first, second = contents["annotations"]
    for name in ("area", "iscrowd"):
        del first[name]
    second["iscrowd"] = True
    for image in contents["images"]:
        del image["width"], image["height"]
    contents["categories"][1]["name"] = 5
    found = check(contents, classes=("cat", "5"))
    assert [entry["area"] for entry in found.contents["annotations"]] == [64, 25]
    assert [(type(entry["iscrowd"]), entry["iscrowd"]) for entry in found.contents["annotations"]] == [
        (int, 0),
        (int, 1),
    ]
    assert [(image["width"], image["height"]) for image in found.contents["images"]] == [(WIDTH, HEIGHT)] * 2
    assert len(found.notes) == 5 and found.summary.objects == 2
    assert check(contents, classes=("cat", "5"), data_check=False).contents == found.contents
    assert "area" not in first and "width" not in contents["images"][0]  # what was given stays
    contents["images"] = [{**image, "width": 20.0, "height": 10.0} for image in contents["images"]]
    assert {type(image["width"]) for image in check(contents, classes=None).contents["images"]} == {int}
    for entry in contents["annotations"]:
        entry["area"] = 0
    assert [entry["area"] for entry in check(contents, classes=None).contents["annotations"]] == [64, 5]


def test_the_annotation_0_gets_another_id(check: Check, contents: dict[str, Any]) -> None:
    """Evaluation writes the id of what was matched, and takes 0 for nothing."""
    contents["annotations"][0]["id"] = 0
    found = check(contents)
    assert [entry["id"] for entry in found.contents["annotations"]] == [3, 2] and len(found.notes) == 1


def test_a_copy_is_written_once_and_old_ones_go(check: Check, contents: dict[str, Any], tmp_path: Path) -> None:
    found = check(contents, classes=("dog", "cat"))
    copy_ = found.file()
    kept = {**found.contents, ORIGIN: str(tmp_path / "a.json")}
    assert copy_ != tmp_path / "a.json" and json.loads(copy_.read_text()) == kept
    written = copy_.stat()
    assert check(contents, classes=("dog", "cat")).file() == copy_
    assert copy_.stat().st_ino == written.st_ino
    copy_.write_text("damaged")
    assert json.loads(check(contents, classes=("dog", "cat")).file().read_text()) == kept
    os.utime(copy_, (0, 0))
    contents["annotations"][0]["id"] = 0
    other = check(contents).file()
    assert other.is_file() and not copy_.exists()


def test_contents_of_another_origin_become_a_file(contents: dict[str, Any], folder: Path) -> None:
    found = examine(contents, Path("data.yaml"), folder, ("cat", "dog"), converted=True)
    kept = found.file()
    assert json.loads(kept.read_text()) == {**contents, ORIGIN: "data.yaml"} and not found.notes
    again = check_annotations(kept, folder, ("cat", "dog"))
    assert again.origin == Path("data.yaml") and again.file() == kept and not again.is_changed


def test_what_is_wrong_in_a_converted_file_is_told_of_what_the_user_wrote(
    contents: dict[str, Any], folder: Path
) -> None:
    contents["annotations"][0] |= {LINE: "labels/a.txt:7", "bbox": None}
    with pytest.raises(DataError) as found:
        check_annotations(keep_annotations(contents, Path("data.yaml")), folder)
    assert "labels/a.txt:7" in str(found.value) and str(found.value).startswith("data.yaml:")
    assert "annotations[" not in str(found.value)


def test_without_a_place_for_a_copy(
    check: Check, contents: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DAVIT_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match="DAVIT_CACHE_DIR"):
        check(contents, classes=("dog", "cat")).file()
    assert check(contents).file() == tmp_path / "a.json"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_in_another_encoding_is_rewritten(
    contents: dict[str, Any], tmp_path: Path, folder: Path, encoding: str
) -> None:
    contents["categories"][0]["name"] = "Kätzchen"
    (tmp_path / "a.json").write_text(json.dumps(contents, ensure_ascii=False), encoding=encoding)
    found = check_annotations(tmp_path / "a.json", folder)
    assert COCO(found.file()).cats[7]["name"] == "Kätzchen" and found.file() != tmp_path / "a.json"
    (tmp_path / "a.json").write_text(json.dumps(contents, ensure_ascii=False), encoding="utf-8")
    assert check_annotations(tmp_path / "a.json", folder).file() == tmp_path / "a.json"


# -- classes


def test_categories_are_matched_by_name(check: Check, contents: dict[str, Any]) -> None:
    found = check(contents, classes=("dog", "cat"))
    assert found.classes == ("dog", "cat")
    assert COCO(found.file()).getCatIds(catNms=found.classes) == [3, 7]  # of `classes`, in their order
    assert check(contents).file().name == "a.json"
    assert check(contents, classes=("dog",)).summary.objects == 1 and not check(contents, classes=("dog",)).is_changed
    for wrong in (("dog", "dog"), ("dog", "Cat"), ("cow",)):
        with pytest.raises(DataError, match=wrong[-1]):
            check(contents, classes=wrong)


def test_classes_that_evaluation_data_lack(check: Check, contents: dict[str, Any]) -> None:
    classes = ("cow", "dog", "cat")
    with pytest.raises(DataError, match="cow"):
        check(contents, classes=classes)
    found = check(contents, classes=classes, training=False)
    assert COCO(found.file()).getCatIds(catNms=list(classes)) == [8, 3, 7]
    for wrong in (("cow", "dog"), ("cow", "sheep")):  # 'cat' may be what is called 'cow' here
        with pytest.raises(DataError, match="cow"):
            check(contents, classes=wrong, training=False)
    with pytest.raises(DataError, match="cow"):
        check(contents, classes=classes, training=False, labelled=False)  # a server knows no such id


def test_roboflows_parents(check: Check, contents: dict[str, Any], tmp_path: Path) -> None:
    cat, dog = ({**category, "supercategory": "pets"} for category in contents["categories"])
    contents["categories"] = [{"id": 0, "name": "pets", "supercategory": "none"}, cat, dog]
    found = check(contents, classes=None)
    assert found.classes == ("cat", "dog") == categories_of(tmp_path / "a.json")
    assert any("pets" in note for note in found.notes) and not found.is_changed
    assert check(contents, classes=("pets", "cat", "dog")).classes == ("pets", "cat", "dog")
    contents["annotations"][0]["category_id"] = 0
    assert check(contents, classes=None).classes == ("pets", "cat", "dog")
    for category in contents["categories"]:
        del category["supercategory"]
    contents["annotations"][0]["category_id"] = 7
    found = check(contents, classes=None)  # nothing says that it is a parent
    assert found.classes == ("pets", "cat", "dog") and any("`--classes cat dog`" in note for note in found.notes)
    assert not check(contents, classes=("cat", "dog")).notes


@pytest.mark.parametrize("parent", [{"supercategory": "none"}, {}])
def test_a_parent_of_the_same_name(check: Check, contents: dict[str, Any], parent: Any, tmp_path: Path) -> None:
    fish = {"id": 7, "name": "fish", **({"supercategory": "fish"} if parent else {})}
    contents["categories"] = [{"id": 0, "name": "fish", **parent}, fish, {"id": 3, "name": "dog"}]
    for classes in (None, ("fish", "dog"), ("dog", "fish")):
        found = check(contents, classes=classes)
        assert categories_of(tmp_path / "a.json") == ("fish", "dog")
        assert set(found.classes) == {"fish", "dog"}
        ids = {"fish": 7, "dog": 3}
        assert COCO(found.file()).getCatIds(catNms=list(found.classes)) == [ids[name] for name in found.classes]
    more(contents, {"category_id": 0})
    with pytest.raises(DataError, match="fish"):
        check(contents, classes=None)
    assert check(contents, classes=("dog",)).summary.objects == 1


# -- images


def test_pictures_that_cannot_be_read(check: Check, contents: dict[str, Any], folder: Path) -> None:
    whole = (folder / "2.png").read_bytes()
    for data, reason in ((b"", "empty"), (whole[:40], "PNG"), (b"<html>", "text")):
        (folder / "2.png").write_bytes(data)
        with pytest.raises(DataError) as error:
            check(contents)
        assert all(word in str(error.value) for word in ("1 of 2", "2.png", reason, "`skip_bad_images=True`"))
        assert not check(contents, data_check=False).notes
    found = check(contents, skip_bad_images=True)
    assert [image["id"] for image in found.contents["images"]] == [1] and found.summary.objects == 1
    assert len(found.notes) == 2 and "1 of 2" in found.notes[0]  # the class without objects, too
    contents["images"][0]["file_name"] = "gone.png"
    with pytest.raises(DataError, match="none of the images"):
        check(contents, skip_bad_images=True)


def test_names_of_another_platform(check: Check, contents: dict[str, Any], folder: Path) -> None:
    (folder / "deeper").mkdir()
    (folder / "1.png").rename(folder / "deeper" / "Gr\u00fcn 1.png")
    contents["images"][0]["file_name"] = "deeper\\Gru\u0308n 1.png"
    found = check(contents)
    assert found.contents["images"][0]["file_name"] == "deeper/Gr\u00fcn 1.png"
    assert len(found.notes) == 1 and found.is_changed


def test_other_things_worth_a_word(check: Check, contents: dict[str, Any], folder: Path) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "2.png", "JPEG")
    (note,) = check(contents).notes
    assert "2.png is JPEG" in note
    contents["images"][1]["file_name"] = "1.png"
    (note,) = check(contents).notes
    assert "1.png" in note and "once" in note


@pytest.mark.parametrize(
    ("box", "advice"),
    [([1, 1, 8, 18], "exchange width and height"), ([1, 1, 18, 8], "remove the tag"), ([1, 1, 8, 8], "If the boxes")],
)
def test_sizes_before_the_turn_of_exif(
    check: Check, contents: dict[str, Any], folder: Path, box: list[int], advice: str
) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "1.jpg", exif=exif)
    contents["images"][0]["file_name"] = "1.jpg"
    contents["annotations"][0]["bbox"] = box
    with pytest.raises(DataError) as error:
        check(contents)
    assert all(word in str(error.value) for word in ("1 of 2", "1.jpg", "EXIF", advice))
    contents["images"][0] |= {"width": HEIGHT, "height": WIDTH}
    assert check(contents).summary.objects == 2


# -- data without labels


def test_data_whose_predictions_are_only_written(check: Check, contents: dict[str, Any]) -> None:
    for value in (..., []):
        change(contents, "annotations", value)
        found = check(contents, training=False, labelled=False)
        assert found.summary == CocoSummary(2, 2) and not found.is_changed
        with pytest.raises(DataError, match="--format-only"):
            check(contents, training=False)
        contents["annotations"] = []
    found = check(contents, classes=("dog", "cat"), training=False, labelled=False)
    assert COCO(found.file()).getCatIds(catNms=["dog", "cat"]) == [3, 7]


def test_a_large_file_takes_seconds(contents: dict[str, Any], folder: Path) -> None:
    polygon = [float(value) for value in np.random.default_rng(0).uniform(0, 10, 40)]
    more(contents, *({"segmentation": [polygon]} for _ in range(3000)))
    found = examine(contents, Path("memory"), folder, needs_masks=True)
    assert found.summary.objects == 3002 and coco.LISTS == ("images", "annotations", "categories")


def test_the_classes_that_are_advised_are_those_with_objects(check: Check, contents: dict[str, Any]) -> None:
    """Wherever they stand among the others, and written as a shell takes them."""
    idle = [{"id": 100 + number, "name": f"idle {number}"} for number in range(8)]
    contents["categories"] = [*idle, *contents["categories"]]
    contents["categories"][-1]["name"] = "prairie dog"
    used = [
        one["name"]
        for one in contents["categories"][8:]
        if any(a["category_id"] == one["id"] for a in contents["annotations"])
    ]
    found = check(contents, classes=None)
    assert any(f"`--classes {shlex.join(used)}`" in note for note in found.notes)
