"""YOLO's data.yaml and label files: what they say in COCO's form, and what is wrong with them, by file and line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from davit.data import DataError, scenes
from davit.data.coco import LINE
from davit.data.layouts import find_layout
from davit.data.yolo import YoloSet, coco_of, read_yolo

YAML = "train: images/train\nval: images/val\nnames: [cat, dog]\n"


@pytest.fixture
def root(pictures: Callable[..., Path]) -> Path:
    """Two images to train on and one to evaluate, 24 x 20; the first has a box and a triangle."""
    root = pictures("images/train/2.png", "images/train/10.png", "images/val/a.png")
    label(root, "train/2", "1 0.5 0.25 0.125 0.5", "0 0 0 1 0 1 0.5")
    label(root, "train/10")
    label(root, "val/a", "0 .5 .5 1 1")
    (root / "data.yaml").write_text(YAML)
    return root


def label(root: Path, name: str, *lines: str) -> Path:
    file = root / "labels" / f"{name}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines))
    return file


def read(root: Path, text: str | None = None) -> YoloSet:
    if text is not None:
        (root / "data.yaml").write_text(text)
    found = read_yolo(root / "data.yaml")
    assert found is not None
    return found


def test_numbers_in_pixels(root: Path) -> None:
    contents, notes = coco_of(read(root), "train")
    assert contents["images"] == [
        {"id": number, "file_name": name, "width": 24, "height": 20} for number, name in ((1, "2.png"), (2, "10.png"))
    ]
    assert contents["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    triangle = [0, 0, 24, 0, 24, 10]
    lines = [entry.pop(LINE) for entry in contents["annotations"]]
    assert lines == [f"{root / 'labels/train/2.txt'}:{number}" for number in (1, 2)]
    assert contents["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 2, "bbox": [10.5, 0, 3, 10], "area": 30, "iscrowd": 0},
        {
            **{"id": 2, "image_id": 1, "category_id": 1, "bbox": [0, 0, 24, 10], "area": 120, "iscrowd": 0},
            "segmentation": [triangle],
        },
    ]
    assert notes == []


def test_the_size_is_that_of_the_upright_picture(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (24, 20)).save(root / "images/val/a.png", exif=exif)
    contents, _ = coco_of(read(root), "val")
    assert (contents["images"][0]["width"], contents["images"][0]["height"]) == (20, 24)
    assert contents["annotations"][0]["bbox"] == [0, 0, 20, 24]


def test_the_names_are_the_text_that_is_written(root: Path) -> None:
    for text, names in (
        ("names: [no, '01', 02, 1.0, ~, Größe]", ("no", "01", "02", "1.0", "~", "Größe")),
        ("names: {1: on, 0: off}\nnc: 2", ("off", "on")),
        ("nc: 3", ("0", "1", "2")),
        ("names: other.names", ("cat", "dog")),
    ):
        (root / "other.names").write_text("cat\ndog\n")
        assert read(root, f"train: images/train\n{text}\n").names == names


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("names: [cat]\nnc: 2", ["nc: 2", "1 names"]),
        ("names: {0: cat, 2: dog}", ["0, 2"]),
        ("names: {cat: 0}", ["cat"]),
        ("names: [cat, cat]", ["'cat'"]),
        ("names: []", ["names"]),
        ("names: nowhere.txt", ["names"]),
        ("nc: many", ["names"]),
    ],
)
def test_wrong_names(root: Path, text: str, named: list[str]) -> None:
    with pytest.raises(DataError) as error:
        read(root, f"train: images/train\n{text}\n")
    assert all(word in str(error.value) for word in ["data.yaml", *named])


@pytest.mark.parametrize(
    ("places", "train", "val"),
    [
        ("path: {root}\ntrain: images/train\nval: images/val", 2, 1),
        ("path: ../{name}\ntrain: images/train\nval: [images/val]", 2, 1),
        ("path: /content/datasets/elsewhere\ntrain: images/train", 2, 0),
        ("train: ../images/train\nvalid: ../images/val\ntest: ../test/images", 2, 1),
        ("train: [images/train, images/val]\nval:", 3, 0),
        ("train: list.txt\nval: {root}/images/val/a.png", 2, 1),
        ("train: images\\train\nval: ./images/val/", 2, 1),
        ("train: images\nval: [images/val, images/gone]", 3, 1),
    ],
)
def test_where_the_pictures_are(root: Path, places: str, train: int, val: int) -> None:
    (root / "list.txt").write_text(f"./images/train/10.png\n{root}/images/val/a.png\n\n")
    found = read(root, places.format(root=root, name=root.name) + "\nnames: [cat, dog]\n")
    assert {name: len(split.pictures) for name, split in found.splits.items()} == {
        name: count for name, count in (("train", train), ("val", val)) if count
    }
    for split in found.splits.values():
        assert all(file is not None and file.stem == picture.stem for picture, file in zip(*pair(split), strict=True))
    absent = [word for word in ("elsewhere", "test/images", "images/gone") if word in places]
    assert all(any(word in note for note in found.notes) for word in absent) and len(found.notes) == len(absent)


def pair(split: Any) -> tuple[list[Path], list[Path | None]]:
    return split.pictures, split.label_files


def test_no_pictures_at_all(root: Path) -> None:
    with pytest.raises(DataError, match="imges"):
        read(root, "train: imges/train\nnames: [cat]\n")
    with pytest.raises(DataError, match=r"data\.yaml"):
        read(root, "train:\nnames: [cat]\n")


@pytest.mark.parametrize("text", ["model: x\nnames: [a]", "train: 3", "- a", "a: [", "", "\0", "x: 2001-99-99"])
def test_other_yaml_files(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.yaml").write_text(text)
    assert read_yolo(tmp_path / "data.yaml") is None
    assert read_yolo(tmp_path / "gone.yaml") is None


def test_a_yaml_that_is_too_large(root: Path) -> None:
    (root / "data.yaml").write_text(YAML + "# and so on\n" * 30_000)
    assert read_yolo(root / "data.yaml") is None


def test_labels_beside_the_pictures_and_of_other_spellings(root: Path) -> None:
    """In the same folder; of another Unicode form; with an upper-case suffix; the last "images" of the path counts."""
    (root / "images/val/a.png").rename(root / "images/val/e\u0301.png")
    (root / "labels/val/a.txt").rename(root / "labels/val/\u00e9.TXT")
    found = read(root)
    assert found.splits["val"].label_files == [root / "labels/val/\u00e9.TXT"]
    (root / "labels/train/2.txt").rename(root / "images/train/2.txt")
    (root / "labels/train/10.txt").unlink()
    found = read(root)
    assert found.splits["train"].label_files == [root / "images/train/2.txt", None]
    assert len(coco_of(found, "train")[0]["annotations"]) == 2


def test_what_is_not_used_is_said(root: Path) -> None:
    label(root, "train/2", "1 .5 .5 .1 .1", "", "1 .5 .5 .1 .1", "1 .5 .5 .1 .2")
    (root / "labels/train/10.txt").rename(root / "labels/train/11.txt")
    contents, notes = coco_of(read(root), "train")
    assert [one["bbox"][3] for one in contents["annotations"]] == [pytest.approx(2), pytest.approx(4)]
    assert [[word for word in note.split() if word.isdigit()] for note in notes] == [["1", "2"], ["1"], ["1"]]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("2 .5 .5 .1 .1", ["class 2", "0 to 1"]),
        ("-1 .5 .5 .1 .1", ["class -1"]),
        ("0.5 .5 .5 .1 .1", ["class 0.5"]),
        ("nan .5 .5 .1 .1", ["nan"]),
        ("0 1.5 .5 .1 .1", ["1.5"]),
        ("0 120 80 40 20", ["120"]),
        ("0 .5 .5 -.1 .1", ["-0.1"]),
        ("0 .5 inf .1 .1", ["inf"]),
        ("0 .1 .1 .2 .2 .3", ["6 numbers"]),
        ("0 .1 .1 .2 .2 .3 .3 .4", ["8 numbers"]),
        ("0 .5 .5", ["3 numbers"]),
        ("cat .5 .5 .1 .1", ["'cat'"]),
        ("0,.5,.5,.1,.1", ["'0,.5,.5,.1,.1'"]),
        ("0 0 0 1 0 1 2", ["2 "]),
        ("\0", ["'\\x00'"]),
    ],
)
def test_wrong_lines(root: Path, line: str, named: list[str]) -> None:
    file = label(root, "train/10", "0 .5 .5 .1 .1", line)
    with pytest.raises(DataError) as error:
        coco_of(read(root), "train")
    assert all(word in str(error.value) for word in (f"{file}:2", *named))


def test_many_wrong_lines_are_counted(root: Path) -> None:
    label(root, "train/2", *["7 0 0 0 0"] * 9)
    label(root, "train/10", "x")
    with pytest.raises(DataError) as error:
        coco_of(read(root), "train")
    assert all(word in str(error.value) for word in ("10 lines", "2 label files", "2.txt:5", "5 more"))
    assert "2.txt:6" not in str(error.value)


def test_a_label_that_is_rounded_or_whole_numbers_with_a_point(root: Path) -> None:
    label(root, "train/2", "1.0 0.5 0.5 1.0000005 1")
    assert coco_of(read(root), "train")[0]["annotations"][0]["category_id"] == 2


def test_keypoints_are_left_out(root: Path) -> None:
    label(root, "train/2", "1 .5 .5 .5 .5 .1 .1 2 .3 .3 1")
    found = read(root, YAML + "kpt_shape: [2, 3]\n")
    contents, _ = coco_of(found, "train")
    assert len(found.notes) == 1 and contents["annotations"][0]["bbox"] == [6, 5, 12, 10]
    label(root, "train/2", "1 .5 .5 .5 .5 .1 .1 2")
    with pytest.raises(DataError, match="11"):
        coco_of(found, "train")


def test_files_that_cannot_be_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("davit.data.yolo._LARGEST_LABELS", 10)
    with pytest.raises(DataError, match=r"2\.txt:1"):
        coco_of(read(root), "train")
    (root / "labels/val/a.txt").unlink()
    (root / "labels/val/a.txt").mkdir()
    with pytest.raises(DataError, match=r"a\.txt:1"):
        coco_of(read(root), "val")
    (root / "images/val/a.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.png"):
        coco_of(read(root), "val")


def test_scenes_say_the_same_in_each_form(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Boxes and areas to the last bit, masks to the last pixel."""
    mask = pytest.importorskip("pycocotools.mask")
    monkeypatch.setattr(scenes, "COUNTS", {"train": 5, "val": 2})
    found = {form: find_layout(scenes.write_scenes(tmp_path / form, form)) for form in scenes.FORMS}
    assert [layout.kind for layout in found.values()] == ["COCO", "Roboflow", "YOLO"]
    for split in ("train", "val"):
        coco, roboflow = (
            json.loads(layout.splits[split].labels.read_text())  # type: ignore[union-attr]
            for layout in (found["coco"], found["roboflow"])
        )
        yolo, notes = coco_of(found["yolo"].yolo, split)  # type: ignore[arg-type]
        assert notes == [] and yolo["images"] == coco["images"] and yolo["categories"] == coco["categories"]
        assert roboflow["annotations"] == coco["annotations"]
        parent, *children = roboflow["categories"]
        assert parent["id"] == 0 and {one.pop("supercategory") for one in children} == {parent["name"]}
        assert children == coco["categories"]
        for ours, theirs in zip(yolo["annotations"], coco["annotations"], strict=True):
            polygon, runs = ours.pop("segmentation"), theirs.pop("segmentation")
            del ours[LINE]
            assert ours == theirs
            filled = mask.merge(mask.frPyObjects(polygon, 128, 128))
            assert np.array_equal(mask.decode(filled), mask.decode(mask.frPyObjects(runs, 128, 128)))


def test_boxes_of_scenes_are_exact(root: Path) -> None:
    """Numbers over a power of two, written in full, give the same box in pixels to the last bit."""
    Image.new("RGB", (128, 64)).save(root / "images/val/a.png")
    draws = np.random.default_rng(0)
    corners = draws.integers(0, (64, 32), (50, 2)), draws.integers(1, (64, 32), (50, 2))
    boxes = [[*map(float, (*corner, *size))] for corner, size in zip(*corners, strict=True)]
    lines = (f"0 {(x + w / 2) / 128!r} {(y + h / 2) / 64!r} {w / 128!r} {h / 64!r}" for x, y, w, h in boxes)
    label(root, "val/a", *dict.fromkeys(lines))
    found = [one["bbox"] for one in coco_of(read(root), "val")[0]["annotations"]]
    assert found == [list(box) for box in dict.fromkeys(map(tuple, boxes))]


def test_files_that_begin_with_a_byte_order_mark(root: Path) -> None:
    for file, text in (
        ("train.txt", "./images/train/2.png\r\n./images/train/10.png"),
        ("all.names", "cat\r\ndog\r\n"),
    ):
        (root / file).write_bytes(f"\ufeff{text}".encode())
    found = read(root, "train: train.txt\nnames: all.names")
    assert found.names == ("cat", "dog")
    assert all(picture.is_file() for picture in found.splits["train"].pictures)


@pytest.mark.parametrize(
    "text",
    ['train: "..\\images"\nnames: [cat, dog]', "train: images\nnames: [caf\xe9, dog]", "train: images\nnames: [cat"],
)
def test_a_data_yaml_that_is_no_yaml_is_named(root: Path, text: str) -> None:
    (root / "data.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"data\.yaml"):
        read_yolo(root / "data.yaml")


def test_folders_in_upper_case(root: Path) -> None:
    (root / "images").rename(root / "Images")
    (root / "labels").rename(root / "Labels")
    files = read(root, "train: Images\nnames: [cat, dog]").splits["train"].label_files
    assert any(files) and all(file is None or (root / "Labels") in file.parents for file in files)
