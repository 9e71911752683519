"""What image_demo.py draws and lists."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from davit.openmmlab import demo
from davit.openmmlab.predictor import Detections, Predictor, Segmentation, draw_segments
from tests.openmmlab.conftest import Go


@pytest.fixture
def checkpoint(trained: Path) -> Path:
    return trained / "epoch_2.pth"


def test_detections_are_of_the_picture_as_it_came(detector: Path, checkpoint: Path) -> None:
    predictor = Predictor(detector, checkpoint, score_threshold=0.0, device="cpu")
    noise = np.random.default_rng(0).integers(0, 255, (50, 90, 3), dtype=np.uint8)
    found = predictor.predict(noise)
    assert isinstance(found, Detections) and len(found.boxes) > 0
    assert found.masks.shape == (len(found.boxes), 50, 90) and found.classes == tuple("0123456789")
    assert (found.boxes >= 0).all() and (found.boxes <= [90, 50, 90, 50]).all()
    assert (np.diff(found.scores) <= 0).all()
    assert np.array_equal(predictor.predict(Image.fromarray(noise)).boxes, found.boxes)
    first = found.to_json()["objects"][0]
    assert np.array_equal(coco_mask.decode(first["mask"]).astype(bool), found.masks[0])
    drawn = np.asarray(found.draw())
    large = noise.repeat(7, 0).repeat(7, 1)  # so that names can be read
    changed = (drawn != large).any(2)
    assert drawn.shape == large.shape and changed.any()
    left, top, _, bottom = (7 * found.boxes[0]).astype(int)
    assert changed[top : bottom + 1, left].mean() > 0.9, "the first box is not where it was found"
    predictor.score_threshold = 1.1
    nothing = predictor.predict(noise)
    assert len(nothing.boxes) == 0 and np.array_equal(np.asarray(nothing.draw()), large)


def test_colours_reach_the_model_as_it_was_trained(detector: Path, checkpoint: Path) -> None:
    predictor = Predictor(detector, checkpoint, score_threshold=0.0, device="cpu")
    seen = []
    predictor.model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    red = np.zeros((128, 128, 3), np.uint8)
    red[..., 0] = 255
    predictor.predict(red)
    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    assert torch.allclose(seen[0][0, :, 64, 64], (torch.tensor([255.0, 0, 0]) - mean) / std)


def test_segmentation_draws_and_counts() -> None:
    labels = np.zeros((4, 6), np.int64)
    labels[:, 4:] = 2
    palette = ((0, 0, 0), (255, 0, 0), (0, 0, 255))
    found = Segmentation(np.full((4, 6, 3), 100, np.uint8), labels, ("ground", "cat", "dog"), palette)
    assert found.to_json() == {"classes": {"ground": pytest.approx(2 / 3), "dog": pytest.approx(1 / 3)}}
    drawn = np.asarray(found.draw()).astype(int)  # enlarged, with the names below
    left, right = drawn[1, 1], drawn[1, -2]
    assert right[2] > right[0] and left[2] == left[0]  # blue for the dog alone


def test_a_drawing_keeps_what_is_no_class() -> None:
    picture = np.full((400, 400, 3), 200, dtype=np.uint8)
    labels = np.zeros((400, 400), dtype=int)
    labels[:, 200:] = 255
    drawn = np.asarray(draw_segments(picture, labels, ("one", "two"), [(0, 0, 0), (9, 9, 9)]))
    assert (drawn[:400, 200:] == 200).all()
    assert (drawn[:400, :200] == 80).all()
    assert drawn.shape[0] > 400  # the legend


def test_image_demo(go: Go, detector: Path, checkpoint: Path, few_scenes: Path, tmp_path: Path) -> None:
    shutil.copytree(few_scenes / "val2017", "pictures")
    Path("pictures/broken.jpg").write_text("no picture")
    words = ["pictures", detector, checkpoint, "--out-dir", "out", "--score-thr", "0"]
    assert "broken.jpg" in go(demo.main, *words, status=2)  # the others are drawn
    listed = json.loads(Path("out/predictions.json").read_text())
    assert len(listed) == len(list(Path("out").glob("*.png"))) == 4 and all(one["objects"] for one in listed.values())


def test_image_demo_of_nothing(go: Go, detector: Path, checkpoint: Path) -> None:
    assert "no.jpg" in go(demo.main, "no.jpg", detector, checkpoint, status=2)
    Path("empty").mkdir()
    assert "empty" in go(demo.main, "empty", detector, checkpoint, status=2)
