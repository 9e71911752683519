"""The commands of the documents on detection and segmentation with OpenMMLab, in their order, on a few scenes.

They are those that `NOT_RUN` of tests/test_docs_run.py leaves to this file. What is too large for a test is made
smaller by options at the end; random weights lie where published ones put by hand would.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from davit.cli import main as davit_main
from davit.data import scenes
from davit.openmmlab import cli, demo, flops
from tests.openmmlab.conftest import Go, save, shell_environment
from tests.test_docs import LINES, blocks, examples
from tests.test_docs_run import reason

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

COMMANDS = [line for line in LINES if "tests/openmmlab/test_openmmlab_docs.py" in reason(line)]
TOOLS: dict[str, Callable[[list[str]], int]] = {
    **{"train": cli.train_main, "test": cli.test_main, "image_demo": demo.main, "get_flops": flops.main},
}
_LOADERS = [
    *(f"{split}_dataloader.num_workers=0" for split in ("train", "val")),
    *(f"{split}_dataloader.persistent_workers=False" for split in ("train", "val")),
    "train_dataloader.batch_size=2",
]
EPOCH = [*_LOADERS, "train_cfg.max_epochs=1", "train_cfg.val_interval=1"]
STEP = [*_LOADERS, "train_cfg.max_iters=1", "train_cfg.val_interval=1"]
SIDES = "val_dataloader.dataset.pipeline.1.scale=(96,96)"
DETECTOR = [  # images are resized to one size, and not cropped before
    *("train_dataloader.dataset.pipeline.3.prob=[1.0,0.0]", SIDES),
    "train_dataloader.dataset.pipeline.3.transforms.0.0.scales=[(96,96)]",
]
SEGMENTOR = [
    *("model.data_preprocessor.size=(64,64)", "train_dataloader.dataset.pipeline.2.scale=(64,64)", SIDES),
    "train_dataloader.dataset.pipeline.3.crop_size=(64,64)",
]
# the options of the first that is found in a command
SMALLER = {
    r"det train .*--resume": [*EPOCH, *DETECTOR, "train_cfg.max_epochs=2"],
    r"seg train .*--resume": [*STEP, *SEGMENTOR, "train_cfg.max_iters=2"],
    r"train\S* \S*nano_maskrcnn": EPOCH,
    r"train\S* \S*(1x_coco|mine)": [*EPOCH, *DETECTOR],
    r"train\S* \S*dino": [*EPOCH, *DETECTOR, "model.num_queries=50"],  # no more than a small image has positions
    r"train\S* \S*(nano_digits|small)": STEP,
    r"train\S* \S*(upernet|cracks)": [*STEP, *SEGMENTOR],
    r"(test|demo)\S* .*(1x_coco|upernet_davit_[5f])": [SIDES],
}


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch, published_tiny: Path) -> None:
    monkeypatch.setattr(scenes, "COUNTS", {"train": 4, "val": 4})


@pytest.fixture
def run(go: Go, tmp_path: Path) -> Callable[..., None]:
    """``run(document, pattern, data=..., WORD=...)``: run the commands in which a pattern is found.

    Data are named at the end where a command names none; a word in capitals is replaced by a file.
    """

    def run(document: str, pattern: str = "", data: str = "", **files: object) -> None:
        found = [line.text for line in COMMANDS if line.document == document and re.search(pattern, line.text)]
        assert found, pattern
        for text in found:
            options = next((extra for start, extra in SMALLER.items() if re.search(start, text)), [])
            words = [str(files.get(word, word)) for word in shlex.split(re.sub(r"epoch_\d+", "epoch_1", text))]
            words += ["--cfg-options", *options] if options else []
            words += ["--data-root", data] if data else []
            start, *rest = words
            if start == "torchrun":
                launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
                env = shell_environment()
                done = subprocess.run([*launcher, *rest[1:]], env=env, capture_output=True, text=True, check=False)
                assert done.returncode == 0, done.stdout + done.stderr
            elif start == "davit" or rest[0] == "-m":
                go(davit_main, *(rest if start == "davit" else [rest[1].removeprefix("davit."), *rest[2:]]))
            else:
                go(TOOLS[Path(rest[0]).stem], *rest[1:])

    return run


def lay_out(root: str, folders: tuple[str, str, str, str], labels: Callable[[np.ndarray], Any], suffix: str) -> None:
    """Write four images and their masks for each split: folders of images and masks, of training and validation."""
    draws = np.random.default_rng(0)
    for pictures, masks in (folders[:2], folders[2:]):
        for number in range(4):
            save(draws.integers(0, 256, (96, 96, 3)), Path(root, pictures, f"{number}{suffix}"))
            save(labels(draws.integers(0, 2, (96, 96))), Path(root, masks, f"{number}.png"))


OURS = ("images/train", "masks/train", "images/val", "masks/val")
ADE = ("images/training", "annotations/training", "images/validation", "annotations/validation")


def test_every_command_is_one_of_these_documents() -> None:
    documents = {"README.md", "docs/detect.md", "docs/segment.md", "docs/export.md", "mmdet/README.md"}
    assert {line.document for line in COMMANDS} == {*documents, "mmseg/README.md"}


def test_detection_of_your_data(run: Callable[..., None], tmp_path: Path) -> None:
    for name, text in examples("docs/detect.md").items():
        Path(name).write_text(text)
    run("docs/detect.md")
    shutil.copy(next(Path("scenes/images/val").iterdir()), "picture.jpg")
    (program,) = (text for text in blocks("docs/detect.md") if "_base_" not in text)
    exec(program, {})
    assert Path("drawn.png").is_file()
    assert len([*Path("drawn").glob("*.png")]) == 4
    Path("model.onnx").rename("before.onnx")
    Path("work_dirs").mkdir(exist_ok=True)
    Path("work_dirs/mine").symlink_to(tmp_path / "runs/mine")
    run("docs/export.md", "work_dirs/mine")
    (program,) = (text for text in blocks("docs/export.md") if "score_threshold" in text)
    exec(program, {})


def test_an_export_of_a_file_with_its_config(run: Callable[..., None], detector: Path, trained: Path) -> None:
    shutil.copy(trained / "epoch_2.pth", "FILE.pth")
    run("docs/export.md", "CONFIG", CONFIG=detector)
    assert Path("model.onnx").is_file()


def test_segmentation_of_your_data(run: Callable[..., None]) -> None:
    for name, text in examples("docs/segment.md").items():
        Path(name).write_text(text)
    lay_out("MY_DATA", OURS, lambda mask: mask, ".jpg")
    run("docs/segment.md", "doctor")
    lay_out("MY_DATA", OURS, lambda mask: mask * 255, ".jpg")
    run("docs/segment.md", "small.py --data-root MY_DATA --work-dir")
    save(np.zeros((48, 64, 3)), Path("FOLDER/a.png"))
    run("docs/segment.md", "seg (test|demo)", TRAINED_MODEL_PATH="runs/cracks/iter_1.pth")
    assert len([*Path("MASKS").glob("*.png")]) == 4 and Path("drawn/predictions.json").is_file()
    save(np.zeros((48, 64, 3)), Path("picture.jpg"))
    (program,) = (text for text in blocks("docs/segment.md") if "_base_" not in text)
    exec(program, {})
    assert Image.open("mask.png").size == (64, 48)
    lay_out("MY_DATA", OURS, lambda mask: np.stack([mask * 255] * 3, -1), ".jpg")
    run("docs/segment.md", "cracks.py")
    lay_out("MY_DATA", OURS, lambda mask: mask, ".jpg")
    run("docs/segment.md", "upernet_davit_folders")


def test_the_commands_of_mmdet(run: Callable[..., None]) -> None:
    run("mmdet/README.md", "data scenes|nano_maskrcnn")
    for name in ("COCO_DIR", "mydata"):
        Path(name).symlink_to("data/scenes")
    shutil.copy(next(Path("data/scenes/val2017").iterdir()), "IMAGE")
    run("mmdet/README.md", "COCO_DIR")
    weights = "work_dirs/davit_maskrcnn_1x_coco/epoch_1.pth"
    run("mmdet/README.md", "^python tools/", data="COCO_DIR", TRAINED_MODEL_PATH=weights)
    run("mmdet/README.md", "mydata")
    run("mmdet/README.md", "image_demo", TRAINED_MODEL_PATH=weights)
    assert len([*Path("outputs").glob("*.png")]) == 1


def test_the_commands_of_mmseg(run: Callable[..., None]) -> None:
    run("mmseg/README.md", "data scenes|nano_digits")
    lay_out("ADE20K_DIR", ADE, lambda mask: mask + 1, ".jpg")
    run("mmseg/README.md", "ADE20K_DIR")
    weights = "work_dirs/upernet_davit_512x512_160k_ade20k/iter_1.pth"
    run("mmseg/README.md", "^python tools/", data="ADE20K_DIR", TRAINED_MODEL_PATH=weights)
    assert {*np.unique(np.asarray(Image.open("DIR/0.png"))).tolist()} <= {*range(1, 151)}
    save(np.zeros((48, 64, 3)), Path("image.png"))
    Path("image.png").rename("IMAGE")
    run("mmseg/README.md", "image_demo|get_flops", TRAINED_MODEL_PATH=weights)
    shutil.rmtree("DIR")
    lay_out("DIR", OURS, lambda mask: mask, ".jpg")
    run("mmseg/README.md", "--data-root DIR", TRAINED_MODEL_PATH="work_dirs/upernet_davit_folders/iter_1.pth")


def test_the_commands_of_the_readme(run: Callable[..., None]) -> None:
    scenes.write_scenes("MY_DATA")
    run("README.md", "mmdet/tools")
    shutil.rmtree("MY_DATA")
    lay_out("MY_DATA", OURS, lambda mask: mask, ".jpg")
    run("README.md", "mmseg/tools")
