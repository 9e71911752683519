"""The commands for one's own data in the READMEs of mmdet and mmseg, as they are written there, on small data."""

import json
import re
import shlex
from pathlib import Path

import numpy as np

from davit.openmmlab.cli import test_main as evaluate
from davit.openmmlab.cli import train_main as train
from davit.openmmlab.demo import main as draw
from davit.openmmlab.predictor import Predictor
from tests.conftest import REPOSITORY
from tests.openmmlab.conftest import SEG, Go, save, weights_of

SEGMENTOR = (  # a model and images of seconds; everything that is about the data stays as written
    *("model.backbone.embed_dims=8,16,24,32", "model.backbone.num_heads=1,2,2,4", "model.backbone.depths=1,1,1,1"),
    *("model.decode_head.in_channels=8,16,24,32", "model.decode_head.channels=8"),
    *("model.auxiliary_head.in_channels=24", "model.auxiliary_head.channels=8"),
    *("model.data_preprocessor.size=(32,32)", "val_dataloader.dataset.pipeline.1.scale=(64,48)"),
    *("val_dataloader.num_workers=0",),
)
STEP = (
    *("train_cfg.max_iters=1", "train_cfg.val_interval=1", "train_dataloader.num_workers=0"),
    *("train_dataloader.dataset.pipeline.2.scale=(64,48)", "train_dataloader.dataset.pipeline.3.crop_size=32"),
)

CAMVID = {"sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"}


def commands(library: str, data: str) -> dict[str, list[str]]:
    """The commands of a README that read a data set, by the name of their tool; configs are found from anywhere."""
    text = (REPOSITORY / library / "README.md").read_text()
    found = re.findall(rf"^python {library}/tools/(\w+)\.py (.*--data-root {data}(?: .*)?)$", text, re.MULTILINE)
    return {
        tool: shlex.split(words.replace(f"{library}/configs", f"{REPOSITORY}/{library}/configs"))
        for tool, words in found
    }


def lay_out(root: Path, pictures: str, masks: str, labels: list[int]) -> None:
    draws = np.random.default_rng(0)
    for number in range(2):
        save(draws.integers(0, 256, (48, 64, 3)), root / pictures.format(number))
        save(draws.choice(labels, (48, 64)), root / masks.format(number))


def test_detection_of_classes_of_ones_own(go: Go, detector: Path, few_scenes: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        contents = json.loads((few_scenes / f"annotations/instances_{split}2017.json").read_text())
        for image in contents["images"]:
            picture = (few_scenes / f"{split}2017" / image["file_name"]).read_bytes()
            image["file_name"] = f"{split}-{image['file_name']}"
            (tmp_path / "mydata/images").mkdir(parents=True, exist_ok=True)
            (tmp_path / "mydata/images" / image["file_name"]).write_bytes(picture)
        for category in contents["categories"]:
            category["name"] = f"my {category['name']}"
        (tmp_path / f"mydata/{split}.json").write_text(json.dumps(contents))
    written = commands("mmdet", "mydata")
    options = ["--cfg-options", "train_cfg.max_epochs=1", "--work-dir", "out"]
    go(train, detector, *written["train"][1:], *options)
    said = go(evaluate, detector, "out/epoch_1.pth", *written["test"][2:])
    assert "4 images" in said and "10 classes" in said
    assert Predictor(detector, "out/epoch_1.pth", device="cpu").classes == tuple(f"my {digit}" for digit in range(10))


def test_camvid(go: Go, tmp_path: Path) -> None:
    """A twelfth of the pixels is void; image_demo.py takes the classes from what was trained."""
    for split in ("train", "val"):
        lay_out(tmp_path / "CamVid", f"{split}/{{}}.png", f"{split}annot/{{}}.png", list(range(12)))
    words = commands("mmseg", "CamVid")["train"]
    assert re.search(r"train: 2 images .* 8\.\d* %", go(train, *words, *SEGMENTOR, *STEP))
    (weights,) = tmp_path.glob("work_dirs/*/iter_1.pth")
    assert weights_of(weights)["decode_head.conv_seg.weight"].shape[0] == 11
    words = ["CamVid/val", SEG / "upernet_davit_folders.py", weights, "--out-dir", "drawn", "--options", *SEGMENTOR]
    go(draw, *words)
    found = json.loads(Path("drawn/predictions.json").read_text()).values()
    assert len(found) == len(list(Path("drawn").glob("*.png"))) == 2
    assert {name for picture in found for name in picture["classes"]} <= CAMVID


def test_cityscapes(go: Go, tmp_path: Path) -> None:
    for split in ("train", "val"):
        pictures, masks = "town/town_{}_leftImg8bit.png", "town/town_{}_gtFine_labelTrainIds.png"
        root = tmp_path / "cityscapes"
        lay_out(root, f"leftImg8bit/{split}/{pictures}", f"gtFine/{split}/{masks}", [*range(19), 255])
    written = commands("mmseg", "cityscapes")
    said = go(train, *written["train"], *SEGMENTOR, *STEP)
    assert re.search("val: 2 images .* 19 classes", said)
    (weights,) = tmp_path.glob("work_dirs/*/iter_1.pth")
    words = [str(weights) if word == "TRAINED_MODEL_PATH" else word for word in written["test"]]
    assert "mIoU" in go(evaluate, *words, *SEGMENTOR)
