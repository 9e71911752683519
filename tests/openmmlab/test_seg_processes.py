"""mmseg/tools in several processes, and the commands of the original's users as they wrote them."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import davit.openmmlab  # noqa: F401  (before mmseg)
from davit import create_model
from davit.openmmlab.cli import test_main as run_test
from tests.openmmlab.segs import CONFIG, TOOLS, checkpoint, write_set
from tests.processes import kill_tree

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set"))


def environment() -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    return {**os.environ, "PORT": port, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}


def launch(words: list[Any], folder: Path, status: int = 0) -> str:
    words = ["bash", *map(str, words)]
    done = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, timeout=500)
    said = done.stdout + done.stderr
    assert done.returncode == status, said[-4000:]
    return said


def measured(folder: Path) -> dict[str, float]:
    (file,) = folder.glob("*/*.json")
    return json.loads(file.read_text())


@pytest.mark.long
def test_two_processes_measure_what_one_does(data: Path, tmp_path: Path) -> None:
    """Five pictures: one process gets three, the other two, and none counts twice."""
    weights = checkpoint(tmp_path / "tiny.pth")
    words = ["--data-root", str(data), "--eval", "mIoU", "--aug-test"]
    one = run_test([str(CONFIG), str(weights), "--work-dir", str(tmp_path / "one"), *words])
    assert one == 0
    shown = tmp_path / "shown"
    ours = [*words, "--work-dir", tmp_path / "two", "--show-dir", shown, "--out", tmp_path / "out"]
    launch([TOOLS / "dist_test.sh", CONFIG, weights, 2, *ours], tmp_path)
    first, second = measured(tmp_path / "one"), measured(tmp_path / "two")
    assert [first[name] for name in ("aAcc", "mIoU", "mAcc")] == [second[name] for name in ("aAcc", "mIoU", "mAcc")]
    names = sorted(file.name for file in (data / "images" / "val").iterdir())
    assert sorted(file.name for file in shown.iterdir()) == names  # drawn by both
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == names


@pytest.mark.long
def test_a_resumed_run_ends_where_it_would_have(data: Path, tmp_path: Path) -> None:
    """Two processes, plain batch norm; no dropout, whose random numbers are drawn anew after resuming."""
    still = ["model.decode_head.dropout_ratio=0", "model.auxiliary_head.dropout_ratio=0", "log_level=INFO"]

    def train(name: str, *words: Any) -> str:
        more = ["--data-root", data, "--work-dir", tmp_path / name, "--seed", 3, *words, "--options", *still]
        return launch([TOOLS / "dist_train.sh", CONFIG, 2, *more, *more_options], tmp_path)

    more_options: list[str] = []
    train("whole")
    more_options = ["train_cfg.max_iters=4"]
    train("halves")
    (tmp_path / "halves" / "iter_9.pth").write_bytes(b"cut off")
    more_options = []
    said = train("halves", "--resume")
    assert "iter_4.pth: epoch 0, iteration 4" in said.replace("\n", " ")
    whole, halves = (torch.load(tmp_path / name / "iter_8.pth", weights_only=True) for name in ("whole", "halves"))
    assert halves["meta"]["iter"] == 8
    for name, tensor in whole["state_dict"].items():
        torch.testing.assert_close(halves["state_dict"][name], tensor, msg=name)


@pytest.mark.long
def test_a_killed_run_goes_on(data: Path, tmp_path: Path) -> None:
    words = [TOOLS / "dist_train.sh", CONFIG, 2, "--data-root", data, "--work-dir", tmp_path / "run", "--options"]
    options = ["train_cfg.max_iters=2000", "train_cfg.val_interval=2000"]
    running = subprocess.Popen(
        ["bash", *map(str, [*words, *options])],
        cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 200
        while not list((tmp_path / "run").glob("iter_*.pth")):
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        kill_tree(running.pid)
        running.wait()
    newest = max(int(file.stem.split("_")[1]) for file in (tmp_path / "run").glob("iter_*.pth"))
    options = [f"train_cfg.max_iters={newest + 4}", f"train_cfg.val_interval={newest + 4}", "log_level=INFO"]
    said = launch([*words[:-1], "--resume", "--options", *options], tmp_path)
    assert "Resumed from" in said
    assert (tmp_path / "run" / f"iter_{newest + 4}.pth").is_file()
    assert "mIoU" in said


def test_a_data_error_stops_every_process(data: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(data, tmp_path / "set")
    (broken / "masks" / "train" / "002.png").unlink()
    words = [TOOLS / "dist_train.sh", CONFIG, 2, "--data-root", broken, "--work-dir", tmp_path / "run"]
    said = launch(words, tmp_path, status=1)
    assert "002.png: not there" in said


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The checkout with ADE20K in its place: four pictures of noise with labels 0 to 150."""
    root = tmp_path / "checkout"
    root.mkdir()
    (root / "davit").symlink_to(REPOSITORY / "davit")
    shutil.copytree(REPOSITORY / "tools", root / "tools")
    for name in ("configs", "tools"):
        shutil.copytree(REPOSITORY / "mmseg" / name, root / "mmseg" / name)
    draws = np.random.default_rng(0)
    ade = root / "mmseg" / "data" / "ade" / "ADEChallengeData2016"
    for split, count in (("training", 4), ("validation", 2)):
        for kind, shape, suffix in (("images", (48, 64, 3), ".jpg"), ("annotations", (48, 64), ".png")):
            folder = ade / kind / split
            folder.mkdir(parents=True)
            for number in range(count):
                high = 256 if kind == "images" else 151
                Image.fromarray(draws.integers(0, high, shape).astype(np.uint8)).save(folder / f"{number}{suffix}")
    return root


@pytest.mark.long
@pytest.mark.parametrize("folder", ["mmseg", "."], ids=["from mmseg", "from the root"])
def test_the_commands_of_the_originals_users(repository: Path, tmp_path: Path, folder: str) -> None:
    """shared/spec/commands.md, with two processes in place of eight and a smaller picture, both given by --options."""
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
    said = launch(words, repository / folder)
    assert "100 % of its stages" in said
    trained = repository / folder / "work_dirs" / name / "iter_1.pth"
    assert trained.is_file()
    whole = [f"tta_pipeline.1.transforms.0.{i}.scale=({32 * (i + 2)},{32 * (i + 2)})" for i in range(6)]
    words = [f"{prefix}tools/dist_test.sh", config, trained, 2, "--aug-test", "--eval", "mIoU"]
    said = launch([*words, "--options", "test_dataloader.num_workers=0", *whole], repository / folder)
    assert "mIoU" in said


def test_original_segmentors_load(tmp_path: Path, data: Path, capfd: Any) -> None:
    """mmseg 0.11's layout: a "state_dict" and a "meta"; what does not fit is named, and nothing is loaded."""
    state = torch.load(checkpoint(tmp_path / "ours.pth"), weights_only=True)["state_dict"]
    words = ["--data-root", str(data), "--work-dir", str(tmp_path / "run"), "--eval", "mIoU"]
    old = tmp_path / "old.pth"
    torch.save({"meta": {"CLASSES": ("a", "b", "c"), "iter": 160000}, "state_dict": state, "optimizer": {}}, old)
    assert run_test([str(CONFIG), str(old), *words]) == 0
    del state["decode_head.fpn_convs.0.conv.weight"]
    torch.save({"state_dict": state}, old)
    capfd.readouterr()
    assert run_test([str(CONFIG), str(old), *words]) == 2
    assert "decode_head.fpn_convs.0.conv.weight" in capfd.readouterr().err


def test_weights_of_other_classes_start_training_with_new_classifiers(tmp_path: Path, data: Path, capfd: Any) -> None:
    from davit.openmmlab.cli import train_main

    state = torch.load(checkpoint(tmp_path / "ours.pth"), weights_only=True)["state_dict"]
    for name in [name for name in state if "conv_seg" in name]:
        state[name] = torch.zeros(150, *state[name].shape[1:])
    torch.save({"state_dict": state}, tmp_path / "other.pth")
    words = [str(CONFIG), "--data-root", str(data), "--work-dir", str(tmp_path / "run"), "--no-validate"]
    more = ["--load-from", str(tmp_path / "other.pth"), "--options", "train_cfg.max_iters=1", "log_level=INFO"]
    assert train_main([*words, *more]) == 0
    said = "".join(capfd.readouterr())
    assert "decode_head.conv_seg.weight" in said and "decode_head.conv_seg.bias" in said
