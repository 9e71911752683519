"""What test.py and image_demo.py write of pictures whose names are alike: each has a file."""

import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from davit.openmmlab import demo
from davit.openmmlab.cli import test_main as evaluate
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
    """A single name stays the picture's own, as servers want it."""
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
