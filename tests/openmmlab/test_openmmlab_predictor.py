"""What image_demo.py draws and lists."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from pycocotools import mask as coco_mask

from davit.openmmlab import demo
from davit.openmmlab.predictor import Detections, Predictor, Segmentation
from tests.openmmlab.conftest import Go


@pytest.fixture
def checkpoint(small_config: Path, tmp_path: Path) -> Path:
    """The weights of an untrained detector, which finds something everywhere."""
    cfg = Config.fromfile(small_config)
    init_default_scope("mmdet")
    torch.manual_seed(0)
    file = tmp_path / "detector.pth"
    torch.save({"state_dict": MODELS.build(cfg.model).state_dict()}, file)
    return file


def test_detections_are_of_the_picture_as_it_came(small_config: Path, checkpoint: Path) -> None:
    predictor = Predictor(small_config, checkpoint, score_threshold=0.0, device="cpu")
    noise = np.random.default_rng(0).integers(0, 255, (50, 90, 3), dtype=np.uint8)
    found = predictor.predict(noise)
    assert isinstance(found, Detections) and len(found.boxes) > 0
    assert found.masks.shape == (len(found.boxes), 50, 90) and found.classes == tuple("0123456789")
    assert (found.boxes >= 0).all() and (found.boxes <= [90, 50, 90, 50]).all()
    assert (np.diff(found.scores) <= 0).all()
    again = predictor.predict(Image.fromarray(noise))
    assert np.array_equal(again.boxes, found.boxes)
    first = found.to_json()["objects"][0]
    assert np.array_equal(coco_mask.decode(first["mask"]).astype(bool), found.masks[0])
    drawn = np.asarray(found.draw())
    large = noise.repeat(7, 0).repeat(7, 1)  # so that names can be read
    changed = (drawn != large).any(2)
    assert drawn.shape == large.shape and changed.any()
    left, top, _, bottom = (7 * found.boxes[0]).astype(int)
    assert changed[top : bottom + 1, left].mean() > 0.9, "the first box is not where it was found"
    strict = Predictor(small_config, checkpoint, score_threshold=1.1, device="cpu").predict(noise)
    assert len(strict.boxes) == 0 and np.array_equal(np.asarray(strict.draw()), large)


def test_colours_reach_the_model_as_it_was_trained(small_config: Path, checkpoint: Path) -> None:
    predictor = Predictor(small_config, checkpoint, score_threshold=0.0, device="cpu")
    seen = []
    predictor.model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    red = np.zeros((128, 128, 3), np.uint8)
    red[..., 0] = 255
    predictor.predict(red)
    expected = (torch.tensor([255.0, 0, 0]) - torch.tensor([123.675, 116.28, 103.53])) / torch.tensor(
        [58.395, 57.12, 57.375]
    )
    assert torch.allclose(seen[0][0, :, 64, 64], expected)


def test_segmentation_draws_and_counts() -> None:
    labels = np.zeros((4, 6), np.int64)
    labels[:, 4:] = 2
    palette = ((0, 0, 0), (255, 0, 0), (0, 0, 255))
    found = Segmentation(np.full((4, 6, 3), 100, np.uint8), labels, ("ground", "cat", "dog"), palette)
    assert found.to_json() == {"classes": {"ground": pytest.approx(2 / 3), "dog": pytest.approx(1 / 3)}}
    drawn = np.asarray(found.draw()).astype(int)  # enlarged, with the names below
    left, right = drawn[1, 1], drawn[1, -2]
    assert right[2] > right[0] and left[2] == left[0]  # blue for the dog alone


def test_image_demo(go: Go, small_config: Path, checkpoint: Path, few_scenes: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for file in sorted((few_scenes / "val2017").iterdir())[:2]:
        (pictures / file.name).write_bytes(file.read_bytes())
    result = go(demo.main, pictures, small_config, checkpoint, "--out-dir", "out", "--score-thr", "0")
    assert result.returncode == 0, result.stdout
    listed = json.loads((tmp_path / "out/predictions.json").read_text())
    assert len(listed) == 2 and all(found["objects"] for found in listed.values())
    assert len(list((tmp_path / "out").glob("*.png"))) == 2
    (pictures / "broken.jpg").write_text("no picture")
    broken = go(demo.main, pictures, small_config, checkpoint, "--out-dir", "again")
    assert broken.returncode == 2 and "broken.jpg" in broken.stdout
    assert len(list((tmp_path / "again").glob("*.png"))) == 2


def test_image_demo_of_nothing(go: Go, small_config: Path, checkpoint: Path, tmp_path: Path) -> None:
    missing = go(demo.main, "no.jpg", small_config, checkpoint)
    assert missing.returncode == 2 and "no.jpg" in missing.stdout
    (tmp_path / "empty").mkdir()
    empty = go(demo.main, "empty", small_config, checkpoint)
    assert empty.returncode == 2 and "holds no pictures" in empty.stdout
