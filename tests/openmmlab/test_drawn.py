"""What test.py and image_demo.py write of images whose names are alike: each has a file."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from davit.openmmlab import demo
from davit.openmmlab.cli import test_main as evaluate
from davit.openmmlab.predictor import Detections, draw_segments
from tests.openmmlab.conftest import SEGMENTOR, Go


def test_detections_of_pictures_that_share_a_name(go: Go, detector: Path, few_scenes: Path, trained: Path) -> None:
    root = Path("set")
    shutil.copytree(few_scenes, root)
    contents = json.loads((root / "annotations/instances_val2017.json").read_text())
    names = ["a/x.png", "b/x.png", "b/x.bmp", "b/X.png"]
    for image, name in zip(contents["images"], names, strict=True):
        target = root / "val2017" / name
        target.parent.mkdir(exist_ok=True)
        Image.open(root / "val2017" / image["file_name"]).save(target)
        image["file_name"] = name
    (root / "annotations/instances_val2017.json").write_text(json.dumps(contents))
    words = [detector, trained / "epoch_2.pth", "--data-root", root]
    go(evaluate, *words, "--work-dir", "run", "--show-dir", "shown")
    drawn = {file.name for file in Path("shown").iterdir()}
    assert drawn == {"a-x.png.png", "b-X.png.png", "b-x.bmp.png", "b-x.png-2.png"}
    for image in contents["images"]:
        Path("bare", image["file_name"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "val2017" / image["file_name"], Path("bare", image["file_name"]))
    go(demo.main, "bare", detector, trained / "epoch_2.pth", "--out-dir", "demo")
    assert len(list(Path("demo").glob("*.png"))) == len(json.loads(Path("demo/predictions.json").read_text())) == 4


def test_masks_of_pictures_that_share_a_name(go: Go, masks: Path, segmentor_weights: Path) -> None:
    """A single name stays the image's own, as servers want it."""
    folder = Path("set/images/val")
    first, second = sorted((masks / "images/val").iterdir())[:2]
    for number, file in enumerate((first, second)):
        (folder / str(number)).mkdir(parents=True)
        shutil.copy(file, folder / str(number) / "x.png")
    words = [SEGMENTOR, segmentor_weights, "--data-root", "set", "--format-only"]
    go(evaluate, *words, "--work-dir", "run", "--out", "out")
    found = sorted(Path("out").iterdir())
    assert [file.name for file in found] == ["0-x.png.png", "1-x.png.png"]
    assert all(np.asarray(Image.open(file)).shape == (48, 64) for file in found)


def test_names_that_no_font_can_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their index is drawn: as much as of a class that is called so."""
    monkeypatch.setattr("davit.fonts.font_for", lambda text: None if "猫" in text else Path("unused"))
    picture, boxes = np.zeros((400, 400, 3), np.uint8), np.array([[50, 60, 200, 300]], np.float32)
    scores, labels = np.ones(1, np.float32), np.ones(1, np.int64)
    odd, plain = (
        Detections(picture, boxes, scores, labels, None, ("dog", name)).draw().tobytes() for name in ("猫", "1")
    )
    assert odd == plain != Detections(picture, boxes, scores, labels, None, ("dog", "2")).draw().tobytes()
    segments = np.ones((400, 400), np.int64)
    palette = ((0, 0, 0), (255, 0, 0))
    odd, plain = (draw_segments(picture, segments, ("dog", name), palette).tobytes() for name in ("猫", "1"))
    assert odd == plain


def test_masks_that_overlap() -> None:
    """There the image is tinted too: by the mean of the objects' colours."""
    picture, boxes = np.full((400, 400, 3), 200, np.uint8), np.array([[0, 0, 9, 9]] * 3, np.float32)
    masks = np.zeros((3, 400, 400), bool)
    masks[0, 100:300], masks[1, 200:390], masks[2, :, 300:] = True, True, True

    def drawn(*labels: int) -> Any:
        found = Detections(picture, boxes, np.ones(3, np.float32), np.array(labels), masks, ("a", "b"))
        return np.asarray(found.draw()).astype(int)

    same, other = drawn(0, 0, 0), drawn(0, 1, 1)
    first, second = same[150, 50], other[350, 50]
    assert (same[250, 50] == first).all() and (same[250, 350] == first).all()
    assert np.abs(other[250, 50] - (first + second) / 2).max() <= 1
    assert (same[50, 250] == 200).all() and not (first == second).all()
