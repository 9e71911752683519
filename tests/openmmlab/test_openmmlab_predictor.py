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
from davit.openmmlab.config import read_config
from davit.openmmlab.predictor import Detections, Predictor, Segmentation
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


def test_a_saved_config_without_test_data_prepares_alike(detector: Path, checkpoint: Path) -> None:
    """A training saves its config without the data that it did not use: those of testing, and of validation."""
    noise = np.random.default_rng(0).integers(0, 255, (50, 90, 3), dtype=np.uint8)
    wanted = Predictor(detector, checkpoint, score_threshold=0.0, device="cpu").predict(noise)
    for left_out in (("test",), ("test", "val")):
        cfg = read_config(detector)
        for split in left_out:
            cfg[f"{split}_dataloader"] = None
        found = Predictor(cfg, checkpoint, score_threshold=0.0, device="cpu").predict(noise)
        assert isinstance(found, Detections) and np.array_equal(found.boxes, wanted.boxes)


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
    """What is no class keeps its image; names are below it."""
    labels = np.zeros((400, 400), np.int64)
    labels[:, 100:] = 2
    labels[:, 200:] = 255
    palette = ((0, 0, 0), (255, 0, 0), (0, 0, 255))
    picture, classes = np.full((400, 400, 3), 200, np.uint8), ("ground", "cat", "dog")
    drawn = np.asarray(Segmentation(picture, labels, classes, palette).draw())
    assert drawn.shape[0] > 400 and (drawn[:400, 200:] == 200).all()
    assert (drawn[:400, :100] == 80).all() and (drawn[:400, 100:200] == [80, 80, 233]).all()
    small = Segmentation(picture[:4, :6], np.repeat([[0, 0, 2]], 4, 0), classes, palette)
    assert small.to_json() == {"classes": {"ground": pytest.approx(2 / 3), "dog": pytest.approx(1 / 3)}}


def test_image_demo(go: Go, detector: Path, checkpoint: Path, few_scenes: Path) -> None:
    """A file that is no image does not stop the others; two that differ in suffix have a drawing each."""
    shutil.copytree(few_scenes / "val2017", "pictures")
    Path("pictures/broken.jpg").write_text("no image")
    words = ["pictures", detector, checkpoint, "--score-thr", "0", "--out-dir"]
    assert "broken.jpg" in go(demo.main, *words, "out", status=2)
    listed = json.loads(Path("out/predictions.json").read_text())
    assert len(listed) == 4 and all(one["objects"] for one in listed.values())
    assert {file.name for file in Path("out").glob("*.png")} == {f"{Path(name).stem}.png" for name in listed}
    Path("pictures/broken.jpg").unlink()
    first = Path(min(listed))
    shutil.copy(first, first.with_suffix(".bmp"))
    assert first.with_suffix(".bmp").name in go(demo.main, *words, "twins")
    drawn = {file.name for file in Path("twins").glob("*.png")}
    assert drawn == {f"{file.name}.png" for file in Path("pictures").iterdir()} and len(drawn) == 5


def test_image_demo_of_nothing(go: Go, detector: Path, checkpoint: Path) -> None:
    assert "no.jpg" in go(demo.main, "no.jpg", detector, checkpoint, status=2)
    Path("empty").mkdir()
    assert "empty" in go(demo.main, "empty", detector, checkpoint, status=2)
