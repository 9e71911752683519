"""Boxes of a file reach the model as shares of the image, whatever was done to the image."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from davit.data import DataError, write_scenes
from davit.detect.augment import NOTHING, ForEvaluation, ForTraining, pixels_of
from davit.detect.data import BoxDataset, Reading, open_split
from davit.engine.distributed import World
from davit.seeding import seeded
from tests.detect.conftest import FEWER

ALONE = World(0, 0, 1, torch.device("cpu"))
EVERYTHING = {"photometric": 1.0, "zoom_out": 1.0, "iou_crop": 1.0, "hflip": 1.0, "vflip": 1.0}


def opened(root: Path, split: str = "train", classes: list[str] | None = None, **options: bool) -> BoxDataset:
    return open_split(root, split, classes, ALONE, Reading(), **options)


def edited(few: Path, tmp_path: Path, **fields: object) -> Path:
    """A copy of the data whose first training object has other fields."""
    root = shutil.copytree(few, tmp_path / "edited")
    file = root / "annotations/instances_train2017.json"
    contents = json.loads(file.read_text())
    contents["annotations"][0].update(fields)
    file.write_text(json.dumps(contents))
    return root


def test_boxes_are_those_of_the_file(few: Path) -> None:
    dataset, contents = opened(few), json.loads((few / "annotations/instances_train2017.json").read_text())
    for position, image in enumerate(contents["images"]):
        boxes, labels = dataset.source.objects(position)
        own = [one for one in contents["annotations"] if one["image_id"] == image["id"]]
        assert labels.tolist() == [one["category_id"] - 1 for one in own]
        assert [[x, y, x + w, y + h] for x, y, w, h in (one["bbox"] for one in own)] == boxes.tolist()
    assert dataset.class_names == list("0123456789")
    assert dataset.source.most == max(len(dataset.source.objects(i)[1]) for i in range(len(dataset)))


def test_yolo_has_the_same_boxes_as_coco(tmp_path: Path, scenes: Path) -> None:
    with FEWER:
        root = write_scenes(tmp_path / "yolo", "yolo")
    coco, yolo = opened(scenes, "val"), opened(root, "val")
    assert coco.filenames() == yolo.filenames()
    for position in range(len(coco)):
        (boxes, labels), (others, names) = coco.source.objects(position), yolo.source.objects(position)
        assert labels.tolist() == names.tolist()
        np.testing.assert_allclose(boxes, others, atol=0.01)


@pytest.mark.parametrize("fields", [{"iscrowd": 1}, {"ignore": 1}, {"bbox": [10, 10, 0.5, 20]}])
def test_what_is_not_learnt_is_no_target(few: Path, tmp_path: Path, fields: dict[str, object]) -> None:
    before, after = opened(few), opened(edited(few, tmp_path, **fields))
    assert len(after.source.objects(0)[1]) == len(before.source.objects(0)[1]) - 1
    assert after.source.targets()[0] != before.source.targets()[0]
    assert after.source.targets()[1:] == before.source.targets()[1:]


def test_a_box_that_reaches_out_is_cut(few: Path, tmp_path: Path) -> None:
    boxes, _ = opened(edited(few, tmp_path, bbox=[100, 90, 60, 70])).source.objects(0)
    assert boxes[0].tolist() == [100, 90, 128, 128]


def test_some_classes_in_another_order(few: Path) -> None:
    everything, some = opened(few), opened(few, classes=["7", "2", "1"])
    assert some.class_names == ["7", "2", "1"] and some.categories == [8, 3, 2]
    for position in range(len(some)):
        named = [everything.class_names[i] for i in everything.source.objects(position)[1]]
        kept = [some.class_names[i] for i in some.source.objects(position)[1]]
        assert kept == [name for name in named if name in ("7", "2", "1")]


@pytest.mark.parametrize("split", ["train", "val"])
def test_labels_without_an_object_are_refused_by_the_name_of_the_data(tmp_path: Path, split: str) -> None:
    with FEWER:
        root = write_scenes(tmp_path / "my scenes", "yolo")
    for file in (root / "labels" / split).iterdir():
        file.write_text("")
    with pytest.raises(DataError, match=re.escape(str(root / "data.yaml"))):
        opened(root, split, training=split == "train")
    assert len(opened(root, split, labelled=False)) == {"train": 10, "val": 6}[split]


@pytest.mark.parametrize(("split", "classes"), [("tset", None), ("train", ["7", "dog"])])
def test_an_unknown_split_or_class(few: Path, split: str, classes: list[str] | None) -> None:
    with pytest.raises(DataError):
        opened(few, split, classes, training=True)


def test_a_target_holds_shares_of_the_picture() -> None:
    boxes, labels = np.array([[20, 10, 60, 40], [0, 0, 200, 100]], np.float32), np.array([3, 0])
    image, target = ForTraining(side=64, rows=3)(Image.new("RGB", (200, 100)), boxes, labels)
    assert image.shape == (3, 64, 64)
    np.testing.assert_allclose(target[0], [3, 0.2, 0.25, 0.2, 0.3], atol=1e-6)
    np.testing.assert_allclose(target[1], [0, 0.5, 0.5, 1, 1], atol=1e-6)
    assert target[2].tolist() == [NOTHING] * 5


@pytest.mark.parametrize(("flip", "centre"), [({"hflip": 1.0}, (0.8, 0.25)), ({"vflip": 1.0}, (0.2, 0.75))])
def test_boxes_are_mirrored_with_the_picture(flip: dict[str, float], centre: tuple[float, float]) -> None:
    boxes, labels = np.array([[20, 10, 60, 40]], np.float32), np.array([3])
    _, target = ForTraining(64, 1, **flip)(Image.new("RGB", (200, 100)), boxes, labels)
    np.testing.assert_allclose(target[0], [3, *centre, 0.2, 0.3], atol=1e-6)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("size", [(60, 40), (300, 700)])
def test_boxes_follow_their_object_through_all_augmentations(seed: int, size: tuple[int, int]) -> None:
    """A white rectangle in the dark stays where its box says."""
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = width // 4, height // 3, width // 2, height // 2 + 5
    pixels[y1:y2, x1:x2] = 255
    step = ForTraining(128, 2, **{**EVERYTHING, "photometric": 0.0})
    with seeded(seed):
        image, target = step(Image.fromarray(pixels), np.array([[x1, y1, x2, y2]], np.float32), np.array([1]))
    assert target[1, 0] == NOTHING
    if target[0, 0] == NOTHING:  # smaller than a pixel, or cut away
        return
    is_bright = (image[0] * 0.229 + 0.485) > 0.5
    rows, columns = is_bright.any(1).nonzero()[:, 0], is_bright.any(0).nonzero()[:, 0]
    _, x, y, w, h = (128 * target[0]).tolist()
    found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_allclose(found, [x - w / 2, y - h / 2, x + w / 2, y + h / 2], atol=2)


def test_a_picture_without_objects_is_augmented_too() -> None:
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    for seed in range(5):
        with seeded(seed):
            image, target = ForTraining(64, 4, **EVERYTHING)(Image.new("RGB", (90, 70), "red"), *nothing)
        assert image.shape == (3, 64, 64) and (target == NOTHING).all()


def test_each_probability_has_an_effect(few: Path) -> None:
    picture, objects = opened(few).read(0)[0], opened(few).source.objects(0)
    with seeded(1):
        plain, _ = ForTraining(64, 6)(picture, *objects)
    for name, chance in EVERYTHING.items():
        with seeded(1):
            other, _ = ForTraining(64, 6, **{name: chance})(picture, *objects)
        assert not torch.equal(plain, other), name


def test_evaluation_prepares_as_the_saved_processor(trained: Path, few: Path) -> None:
    from transformers import AutoImageProcessor

    picture = Image.open(next((few / "val2017").glob("*.png"))).convert("RGB").resize((150, 90))
    ours, _ = ForEvaluation(64)(picture, np.zeros((0, 4)), np.zeros(0))
    theirs = AutoImageProcessor.from_pretrained(trained / "detector")(picture, return_tensors="pt").pixel_values[0]
    assert pixels_of(picture).shape == (3, 90, 150)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
