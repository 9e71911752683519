"""The scenes of digits: exact masks and boxes, the same every time, in two layouts that agree."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from davit.data import DataError, scenes, write_scenes
from davit.data.__main__ import main as command


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(scenes, "COUNTS", {"train": 6, "val": 3})
    return write_scenes(tmp_path / "scenes")


def decode(rle: dict) -> np.ndarray:
    flat = np.repeat(np.arange(len(rle["counts"])) % 2, rle["counts"])
    return flat.reshape(rle["size"], order="F").astype(bool)


def test_boxes_masks_and_labels_are_of_the_same_pixels(few: Path) -> None:
    for split, count in (("train", 6), ("val", 3)):
        contents = json.loads((few / f"annotations/instances_{split}2017.json").read_text())
        assert [category["name"] for category in contents["categories"]] == list("0123456789")
        assert len(contents["images"]) == count and len(contents["annotations"]) >= count
        for image in contents["images"]:
            labels = np.asarray(Image.open(few / f"masks/{split}2017" / image["file_name"]))
            assert Image.open(few / f"{split}2017" / image["file_name"]).size == (image["width"], image["height"])
            covered = np.zeros_like(labels)
            for one in (a for a in contents["annotations"] if a["image_id"] == image["id"]):
                mask = decode(one["segmentation"])
                rows, columns = np.nonzero(mask)
                x, y, width, height = one["bbox"]
                assert (x, y) == (columns.min(), rows.min())
                assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
                assert one["area"] == mask.sum() > 20
                assert not covered[mask].any()  # visible parts do not overlap
                covered[mask] = one["category_id"]
            assert np.array_equal(covered, labels)  # d + 1 for the digit d, whose category id it is


def test_the_command_writes_the_same_every_time(few: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = few.with_name("again")
    assert command(["scenes", str(again)]) == 0
    assert capsys.readouterr().out.split() == [str(again)]
    names = [file.relative_to(few) for file in sorted(few.rglob("*")) if file.is_file()]
    assert len(names) == 2 * 9 + 2
    assert command(["scenes", str(few.with_name("yolo")), "--as", "yolo"]) == 0
    assert (few.with_name("yolo") / "data.yaml").is_file()
    with pytest.raises(SystemExit) as leave:
        command(["scenes", "--as", "wds"])
    assert leave.value.code == 2
    assert all((few / name).read_bytes() == (again / name).read_bytes() for name in names)


def test_digits_stand_out(few: Path) -> None:
    contents = json.loads((few / "annotations/instances_train2017.json").read_text())
    names = {image["id"]: image["file_name"] for image in contents["images"]}
    for one in contents["annotations"]:
        picture = np.asarray(Image.open(few / "train2017" / names[one["image_id"]])).astype(float)
        ground = np.asarray(Image.open(few / "masks/train2017" / names[one["image_id"]])) == 0
        mask = decode(one["segmentation"])
        near = sum(np.roll(mask, step, axis) for axis in (0, 1) for step in range(-3, 4)).astype(bool)
        assert np.abs(picture[mask].mean(0) - picture[near & ground].mean(0)).sum() > 60


def test_run_lengths_of_plain_masks() -> None:
    assert scenes.run_lengths(np.zeros((2, 3), bool)) == [6]
    assert scenes.run_lengths(np.ones((2, 3), bool)) == [0, 6]
    assert scenes.run_lengths(np.array([[1, 0], [0, 1]], bool)) == [0, 1, 2, 1]


def test_what_is_not_whole_is_refused(few: Path) -> None:
    (few / "masks/val2017/000000.png").unlink()
    with pytest.raises(DataError, match=r"2 files in masks.* 3"):
        write_scenes(few)
