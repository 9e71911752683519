"""The worked examples of mmseg/README.md, as they are written there, on small folders laid out like the real ones."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import davit.openmmlab  # noqa: F401  (before mmseg)
from davit.openmmlab.cli import test_main as run_test
from davit.openmmlab.cli import train_main as run_train
from tests.openmmlab.conftest import Go

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "mmseg" / "README.md").read_text()
# a model and pictures of seconds; everything that is about the data stays as written
SMALL = [
    *("model.backbone.embed_dims=8,16,24,32", "model.backbone.num_heads=1,2,2,4", "model.backbone.depths=1,1,1,1"),
    *("model.decode_head.in_channels=8,16,24,32", "model.decode_head.channels=8"),
    *(
        "model.auxiliary_head.in_channels=24",
        "model.auxiliary_head.channels=8",
        "model.data_preprocessor.size=(32,32)",
    ),
]
TRAINING = [
    *("train_cfg.max_iters=1", "train_cfg.val_interval=1", "train_dataloader.num_workers=0"),
    *("train_dataloader.dataset.pipeline.2.scale=(64,48)", "train_dataloader.dataset.pipeline.3.crop_size=32"),
]
TESTING = ["val_dataloader.num_workers=0", "val_dataloader.dataset.pipeline.1.scale=(64,48)"]


def lines(word: str, tool: str) -> list[list[str]]:
    """The commands of the README that hold a word and run a tool, without "python TOOL"."""
    shell = re.findall(r"^```shell\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    commands = [shlex.split(line) for block in shell for line in block.splitlines()]
    found = [command[2:] for command in commands if word in command and command[1] == f"mmseg/tools/{tool}.py"]
    assert found
    return [[str(REPOSITORY / words[0]), *words[1:]] for words in found]


def lay_out(root: Path, picture: str, mask: str, values: list[int], count: int = 2) -> None:
    """Pictures and masks of noise; names with {} for the number."""
    draws = np.random.default_rng(0)
    for number in range(count):
        for name, array in (
            (picture, draws.integers(0, 256, (48, 64, 3))),
            (mask, draws.choice(values, (48, 64))),
        ):
            file = root / name.format(number)
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(file)


def test_camvid(go: Go, tmp_path: Path) -> None:
    for split in ("train", "val"):
        lay_out(tmp_path / "CamVid", f"{split}/{{}}.png", f"{split}annot/{{}}.png", list(range(12)))
    (words,) = lines("CamVid", "train")
    done = go(run_train, *words, *SMALL, *TRAINING, *TESTING)
    assert done.returncode == 0, done.stdout
    assert "train: 2 pictures with masks of 11 classes" in done.stdout
    assert "8.3" in done.stdout  # percent of the pixels ignored: a twelfth, void
    state = torch.load(next(tmp_path.glob("work_dirs/*/iter_1.pth")), weights_only=True)
    assert state["meta"]["dataset_meta"]["classes"][3] == "road"
    assert state["state_dict"]["decode_head.conv_seg.weight"].shape[0] == 11


def test_folders_as_cityscapes_has_them(go: Go, tmp_path: Path) -> None:
    for split in ("train", "val"):
        picture, mask = "town/town_{}_leftImg8bit.png", "town/town_{}_gtFine_labelTrainIds.png"
        lay_out(tmp_path / "cityscapes", f"leftImg8bit/{split}/{picture}", f"gtFine/{split}/{mask}", [*range(19), 255])
    (words,) = lines("cityscapes", "train")
    done = go(run_train, *words, *SMALL, *TRAINING, *TESTING)
    assert done.returncode == 0, done.stdout
    assert "val: 2 pictures with masks of 19 classes" in done.stdout
    weights = next(tmp_path.glob("work_dirs/*/iter_1.pth"))
    (words,) = lines("cityscapes", "test")
    words[words.index("TRAINED_MODEL_PATH")] = str(weights)
    done = go(run_test, *words, *SMALL, *TESTING)
    assert done.returncode == 0, done.stdout
    assert "mIoU" in done.stdout


@pytest.mark.parametrize("option", ["--aug-test", "--format-only", "model.test_cfg.mode=slide"])
def test_the_lines_for_ade20k_name_what_exists(option: str) -> None:
    """Those run in tests/openmmlab/test_seg_processes.py and test_seg_testing.py; here: that the README has them."""
    assert re.search(rf"^.*tools/.*{re.escape(option)}.*$", README, re.MULTILINE)


def test_image_demo_takes_the_classes_from_the_checkpoint(go: Go, tmp_path: Path) -> None:
    """A segmentor trained with --classes is drawn without naming them again."""
    from davit.openmmlab.demo import main as draw

    lay_out(tmp_path / "CamVid", "train/{}.png", "trainannot/{}.png", [0, 1, 2])
    (words,) = lines("CamVid", "train")
    assert go(run_train, *words, *SMALL, *TRAINING, "--no-validate").returncode == 0
    weights: Any = next(tmp_path.glob("work_dirs/*/iter_1.pth"))
    config = REPOSITORY / "mmseg" / "configs" / "upernet_davit_folders.py"
    size = ["test_dataloader.dataset.pipeline.1.scale=(64,48)"]
    done = go(
        draw, tmp_path / "CamVid/train", config, weights, "--out-dir", tmp_path / "o", "--options", *SMALL, *size
    )
    assert done.returncode == 0, done.stdout
    assert len(list((tmp_path / "o").glob("*.png"))) == 2
    named = words[words.index("--classes") + 1 : words.index("--cfg-options")]
    drawn = json.loads((tmp_path / "o" / "predictions.json").read_text()).values()
    assert all(picture["classes"] and set(picture["classes"]) <= set(named) for picture in drawn)
