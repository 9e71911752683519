"""mmseg/tools in several processes, and the commands of the original's users as they wrote them."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from davit import create_model
from davit.openmmlab.cli import test_main as evaluate
from tests.conftest import REPOSITORY
from tests.openmmlab.conftest import SEG_TOOLS, SEGMENTOR, Go, save, scores_of, shell

TRAIN, TEST = SEG_TOOLS / "dist_train.sh", SEG_TOOLS / "dist_test.sh"


@pytest.mark.long
def test_two_processes_measure_what_one_does(go: Go, masks: Path, segmentor_weights: Path, tmp_path: Path) -> None:
    """Three images: one process gets two, the other one, and none counts twice."""
    words = ["--data-root", masks, "--eval", "mIoU", "--aug-test"]
    go(evaluate, SEGMENTOR, segmentor_weights, "--work-dir", "one", *words)
    ours = [*words, "--work-dir", tmp_path / "two", "--show-dir", tmp_path / "shown", "--out", tmp_path / "out"]
    shell(TEST, SEGMENTOR, segmentor_weights, 2, *ours, cwd=tmp_path)
    first, second = scores_of(tmp_path / "one"), scores_of(tmp_path / "two")
    assert [first[name] for name in ("aAcc", "mIoU", "mAcc")] == [second[name] for name in ("aAcc", "mIoU", "mAcc")]
    names = sorted(file.name for file in (masks / "images" / "val").iterdir())
    assert sorted(file.name for file in (tmp_path / "shown").iterdir()) == names  # drawn by both
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == names


@pytest.mark.long
def test_a_resumed_run_ends_where_it_would_have(masks: Path, tmp_path: Path) -> None:
    """Two processes, plain batch norm; no dropout, whose random numbers are drawn again after resuming."""

    def run(name: str, *words: Any, iterations: int = 8) -> str:
        options = ["model.decode_head.dropout_ratio=0", "model.auxiliary_head.dropout_ratio=0", "log_level=INFO"]
        more = ["--data-root", masks, "--work-dir", tmp_path / name, "--seed", 3, *words, "--options", *options]
        return shell(TRAIN, SEGMENTOR, 2, *more, f"train_cfg.max_iters={iterations}", cwd=tmp_path)

    run("whole")
    run("halves", iterations=4)
    (tmp_path / "halves" / "iter_9.pth").write_bytes(b"cut off")
    assert "iter_4.pth" in run("halves", "--resume")
    whole, halves = (torch.load(tmp_path / name / "iter_8.pth", weights_only=True) for name in ("whole", "halves"))
    assert halves["meta"]["iter"] == 8
    torch.testing.assert_close(halves["state_dict"], whole["state_dict"])


@pytest.mark.long
def test_a_data_error_stops_every_process(masks: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(masks, tmp_path / "set")
    (broken / "masks" / "train" / "002.png").unlink()
    words = [TRAIN, SEGMENTOR, 2, "--data-root", broken, "--work-dir", tmp_path / "run"]
    assert "002.png" in shell(*words, cwd=tmp_path, status=1)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The checkout with ADE20K in its place: four images of noise with labels 0 to 150."""
    root = tmp_path / "checkout"
    root.mkdir()
    (root / "davit").symlink_to(REPOSITORY / "davit")
    shutil.copytree(REPOSITORY / "tools", root / "tools")
    for name in ("configs", "tools"):
        shutil.copytree(REPOSITORY / "mmseg" / name, root / "mmseg" / name)
    draws = np.random.default_rng(0)
    ade = root / "mmseg" / "data" / "ade" / "ADEChallengeData2016"
    for split, count in (("training", 4), ("validation", 2)):
        for number in range(count):
            save(draws.integers(0, 256, (48, 64, 3)), ade / "images" / split / f"{number}.jpg")
            save(draws.integers(0, 151, (48, 64)), ade / "annotations" / split / f"{number}.png")
    return root


@pytest.mark.long
@pytest.mark.parametrize("folder", ["mmseg", "."], ids=["from mmseg", "from the root"])
def test_the_commands_of_the_originals_users(repository: Path, tmp_path: Path, folder: str) -> None:
    """shared/spec/commands.md, with two processes in place of eight and a smaller image, both given by --options."""
    classifier = tmp_path / "classifier.pth"
    torch.save(create_model("DaViT_tiny").state_dict(), classifier)
    prefix = "" if folder == "mmseg" else "mmseg/"
    name = "upernet_davit_512x512_160k_ade20k"
    config = f"{prefix}configs/{name}.py"
    small = ["train_cfg.max_iters=1", "train_cfg.val_interval=9", "model.data_preprocessor.size=(64,64)"]
    small += [
        "train_dataloader.dataset.pipeline.2.scale=(64,64)",
        "train_dataloader.dataset.pipeline.3.crop_size=(64,64)",
    ]
    small += [f"{split}_dataloader.num_workers=0" for split in ("train", "val", "test")]
    words = [f"{prefix}tools/dist_train.sh", config, 2, "--options", f"model.pretrained={classifier}", *small]
    said = shell(*words, cwd=repository / folder)
    assert "100 % of its stages" in said
    trained = repository / folder / "work_dirs" / name / "iter_1.pth"
    assert trained.is_file()
    whole = [f"tta_pipeline.1.transforms.0.{i}.scale=({32 * (i + 2)},{32 * (i + 2)})" for i in range(6)]
    words = [f"{prefix}tools/dist_test.sh", config, trained, 2, "--aug-test", "--eval", "mIoU"]
    options = ["--options", "test_dataloader.num_workers=0", *whole]
    assert "mIoU" in shell(*words, *options, cwd=repository / folder)
