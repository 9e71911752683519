"""train.py and test.py of mmdet/tools as a user runs them, in this process and on a small detector."""

import contextlib
import csv
import errno
import json
import logging
import os
import subprocess
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from davit import create_model
from davit.cli import main as davit_main
from davit.commands import DISK_FULL
from davit.openmmlab import cli, config
from davit.openmmlab.cli import test_main as evaluate
from davit.openmmlab.cli import train_main as train
from davit.parsing.openmmlab import add_override_arguments
from tests.conftest import REPOSITORY
from tests.openmmlab.conftest import (
    DET,
    DET_TOOLS,
    SEGMENTOR,
    Go,
    build,
    scores_of,
    shell,
    shell_environment,
    weights_of,
)
from tests.openmmlab.conftest import config as config_of
from tests.processes import kill_tree

ONE_PICTURE = ("--cfg-options", "test_dataloader.dataset.indices=1")
ONE_STEP = ("train_cfg.max_epochs=1", "train_dataloader.dataset.indices=2")


def test_training_writes_plain_states_that_a_run_goes_on_from(
    go: Go, detector: Path, few_scenes: Path, trained: Path, tmp_path: Path
) -> None:
    """An interrupted run, with a damaged state as its newest, ends where one without a break does."""
    words = [detector, "--data-root", few_scenes, "--work-dir", tmp_path / "out", "--seed", "1"]
    go(train, *words, "--auto-resume", "--no-validate", "--cfg-options", "train_cfg.max_epochs=1")
    first = torch.load(tmp_path / "out/epoch_1.pth", weights_only=True)  # nothing in it needs trust
    assert (first["meta"]["epoch"], first["meta"]["iter"]) == (1, 2)
    assert first["meta"]["dataset_meta"]["classes"] == list("0123456789")
    (tmp_path / "out/epoch_9.pth").write_bytes((tmp_path / "out/epoch_1.pth").read_bytes()[:5000])  # cut off
    (tmp_path / "out/.epoch_9.pth.0.partial").touch()  # as a killed process leaves it
    assert "epoch_9.pth" in go(train, *words, "--resume")
    ours, whole = (torch.load(folder / "epoch_2.pth", weights_only=True) for folder in (tmp_path / "out", trained))
    assert ours["meta"]["iter"] == whole["meta"]["iter"] == 4
    assert ours["param_schedulers"] == whole["param_schedulers"]
    assert ours["optimizer"]["param_groups"] == whole["optimizer"]["param_groups"]
    losses, _ = ours["message_hub"]["log_scalars"]["train/loss"]
    assert len(losses) == 4 and losses[:2] == first["message_hub"]["log_scalars"]["train/loss"][0]
    assert not [file for file in (*(tmp_path / "out").iterdir(), *trained.iterdir()) if file.suffix == ".partial"]


def test_a_training_is_one_document_for_programs(
    go: Go, detector: Path, few_scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [detector, "--data-root", few_scenes, "--work-dir", tmp_path / "out", "--seed", "1", "--json"]
    handlers = logging.root.handlers[:]
    with contextlib.chdir(tmp_path):
        assert train([*map(str, words), "--cfg-options", *ONE_STEP]) == 0
    logging.root.handlers[:] = handlers
    found = json.loads(capsys.readouterr().out)
    assert found["folder"] == str(tmp_path / "out") and found["iteration"] >= 1
    assert Path(found["checkpoint"]).is_file()


def test_a_full_disk_leaves_the_state_before(
    go: Go, detector: Path, few_scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", fail)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/epoch_1.pth").write_text("old")
    words = [detector, "--data-root", few_scenes, "--work-dir", tmp_path / "out", "--no-validate"]
    go(train, *words, "--cfg-options", *ONE_STEP, status=DISK_FULL)
    assert (tmp_path / "out/epoch_1.pth").read_text() == "old"
    assert not list((tmp_path / "out").glob(".*"))


def test_nothing_whole_to_resume(go: Go, detector: Path, few_scenes: Path, tmp_path: Path) -> None:
    """Neither a file that was cut off nor one that would run a program; without any, a run starts again."""

    class Program:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "out").mkdir()
    (tmp_path / "out/epoch_1.pth").write_bytes(b"cut off")
    torch.save({"state_dict": {}, "meta": {}, "optimizer": Program()}, tmp_path / "out/epoch_2.pth")
    words = [detector, "--data-root", few_scenes, "--work-dir", tmp_path / "out", "--no-validate"]
    said = go(train, *words, "--auto-resume", status=2)
    assert all(word in said for word in ("epoch_1.pth", "epoch_2.pth", "--work-dir"))
    assert not (tmp_path / "ran").exists()


def test_a_file_gets_the_measures(
    go: Go, detector: Path, few_scenes: Path, trained: Path, masks: Path, segmentor_weights: Path, tmp_path: Path
) -> None:
    """As a table and as a document, of a detector and of a segmentor: the same numbers as the run's own record."""
    box = ("det", "test", detector, trained / "epoch_2.pth", "--data-root", few_scenes, "--eval", "bbox")
    mask = ("seg", "test", SEGMENTOR, segmentor_weights, "--data-root", masks, "--eval", "mIoU")
    for words, measure in ((box, "coco/bbox_mAP"), (mask, "mIoU")):
        found = {}
        for name in ("scores.json", "scores.csv"):
            work = tmp_path / f"{words[0]}-{name}"
            go(davit_main, *words, "--work-dir", work, "--output", name)
            found[name] = scores_of(work)[measure]
        document = json.loads(Path("scores.json").read_text())
        with Path("scores.csv").open(newline="") as stream:
            table = {row["measure"]: float(row["value"]) for row in csv.DictReader(stream)}
        assert document[measure] == found["scores.json"] and table[measure] == found["scores.csv"]
        assert document.keys() == table.keys() and len(table) > 2
        go(davit_main, *words, "--output", tmp_path / "nowhere" / "scores.csv", status=2)


def test_two_processes_measure_what_one_does(
    go: Go, detector: Path, few_scenes: Path, trained: Path, tmp_path: Path
) -> None:
    words = [detector, trained / "epoch_2.pth", "--data-root", few_scenes]
    go(evaluate, *words, "--work-dir", tmp_path / "one", "--out", "found.json", "--show-dir", tmp_path / "drawn")
    one = {name: score for name, score in scores_of(tmp_path / "one").items() if name.startswith("coco/")}
    assert len(one) == 12
    found = json.loads(Path("found.bbox.json").read_text())
    assert found and {"image_id", "bbox", "score", "category_id"} <= set(found[0])
    assert len(list((tmp_path / "drawn").rglob("*.png"))) == 4
    go(evaluate, *words, "--work-dir", tmp_path / "server", "--format-only", *ONE_PICTURE)
    assert json.loads((tmp_path / "server/results.segm.json").read_text())
    assert not any("mAP" in name for name in scores_of(tmp_path / "server"))
    words.insert(2, "2")
    shell(DET_TOOLS / "dist_test.sh", *words, "--eval", "bbox", "--work-dir", tmp_path / "two", cwd=tmp_path)
    two = {name: score for name, score in scores_of(tmp_path / "two").items() if name.startswith("coco/")}
    assert two == {name: score for name, score in one.items() if "bbox" in name}


def test_a_classifier_that_train_py_wrote_starts_a_detector(
    go: Go, detector: Path, few_scenes: Path, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    small = {"embed_dims": (8, 16, 16, 16), "num_heads": (1, 2, 2, 2), "depths": (1, 1, 1, 1), "window_size": 4}
    classifier = create_model("DaViT_nano", num_classes=3, **small)
    torch.save({"state_dict": classifier.state_dict(), "arch": "DaViT_nano"}, tmp_path / "model_best.pth.tar")
    words = [detector, "--data-root", few_scenes, "--work-dir", tmp_path / "out", "--no-validate"]
    said = go(
        train, *words, "--options", "model.pretrained=model_best.pth.tar", "optim_wrapper.optimizer.lr=0", *ONE_STEP
    )
    assert "100 % of its stages" in said
    ours, theirs = weights_of(tmp_path / "out/epoch_1.pth"), classifier.state_dict()
    stages = [name for name in theirs if name.startswith(("patch_embeds", "main_blocks"))]
    assert all(torch.equal(ours[f"backbone.{name}"], theirs[name]) for name in stages) and len(stages) > 100


def test_a_detector_starts_one_of_other_classes(
    go: Go, detector: Path, few_scenes: Path, trained: Path, tmp_path: Path
) -> None:
    weights, ours = trained / "epoch_2.pth", tmp_path / "out/epoch_1.pth"
    words = [detector, "--data-root", few_scenes, "--work-dir", tmp_path / "out", "--no-validate"]
    options = ["--load-from", weights, "--classes", "3", "5", "--cfg-options", "optim_wrapper.optimizer.lr=0"]
    assert "roi_head.bbox_head.fc_cls.weight" in go(train, *words, *options, *ONE_STEP)
    before, after = weights_of(weights), weights_of(ours)
    same = [name for name, tensor in before.items() if tensor.shape == after[name].shape]
    assert {name.split(".")[-2] for name in before if name not in same} == {"fc_cls", "fc_reg", "conv_logits"}
    assert all(torch.equal(before[name], after[name]) for name in same)
    words = [detector, ours, "--data-root", few_scenes]
    assert "--classes" in go(evaluate, *words, status=2)
    go(evaluate, *words, "--classes", "3", "5", *ONE_PICTURE)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--cfg-options", "model.pretrained=no.pth"], ["no.pth", "DaViT_tiny"]),
        (["--cfg-options", "model.backbone.embed_dim=3"], ["'embed_dim'", "'embed_dims'"]),
        (["--load-from", "no.pth"], ["no.pth"]),
        (["--resume", "a.pth", "--load-from", "b.pth"], ["--resume", "--load-from"]),
        (["--launcher", "pytorch"], ["RANK"]),
        (["--launcher", "slurm"], ["SLURM_PROCID"]),
        (["--cfg-options", "default_hooks.logger.interval=1.5"], ["default_hooks.logger.interval"]),
        (["--cfg-options", "model.backbone.variant=[]"], ["model.backbone.variant"]),
        (["--cfg-options", "train_dataloader=x"], ["train_dataloader='x'"]),
        (["--cfg-options", "train_dataloader.dataset.pipeline=[]"], ["train_dataloader.dataset.pipeline"]),
        (["--cfg-options", "train_dataloader.dataset.pipeline.1.with_box=1"], ["train_dataloader.dataset.pipeline.1"]),
        (["--cfg-options", "model.rpn_head.anchor_generator.scales=[0.5,[]]"], ["model.rpn_head.anchor_generator"]),
        (["--cfg-options", "work_dir=3"], ["work_dir=3"]),
        (["--cfg-options", "default_scope=[]"], ["default_scope"]),
        (["--cfg-options", "=3"], ["--cfg-options"]),
        (["--gpus", "2", "--data-root", "nowhere"], ["nowhere", "--gpus", "tools/dist_train.sh"]),  # of older tools
    ],
)
def test_mistakes_of_training(
    go: Go, detector: Path, few_scenes: Path, words: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    said = go(train, detector, "--data-root", few_scenes, *words, status=2)
    assert all(word in said for word in expected)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train_dataloader = 'x'", "train_dataloader"),
        ("param_scheduler = 3", "param_scheduler"),
        ("default_hooks = dict(logger=1)", "default_hooks.logger"),
        ("train_dataloader = dict(dataset=dict(pipeline=[3]))", "train_dataloader.dataset.pipeline"),
        ("model = dict(backbone=dict(variant=[]))", "faulty.py"),
        ("optim_wrapper = dict(optimizer=dict(type='Nothing'))", "faulty.py"),
    ],
)
def test_mistakes_in_a_config_of_the_users(go: Go, detector: Path, few_scenes: Path, line: str, expected: str) -> None:
    Path("faulty.py").write_text(f"_base_ = {str(detector)!r}\n{line}\n")
    said = go(train, "faulty.py", "--data-root", few_scenes, "--no-validate", status=2)
    assert expected in said


def test_a_fault_of_the_program_is_no_fault_of_the_config() -> None:
    args = Namespace(config="a.py", cfg_options={})
    with pytest.raises(AttributeError), config.faults_named(args):
        raise AttributeError("of ours")
    args.cfg_options = {"a.b": 3}
    for passes in (OSError(errno.EIO, "input/output error"), torch.OutOfMemoryError("of a GPU")):
        with pytest.raises(type(passes)), config.faults_named(args):
            raise passes
    with pytest.raises(ValueError, match=r"a\.b=3") as found, config.faults_named(args):
        raise ZeroDivisionError("x" * 10_000)
    assert len(str(found.value)) < 1000 and isinstance(found.value.__cause__, ZeroDivisionError)


def test_mistakes_of_evaluation(go: Go, detector: Path, few_scenes: Path, trained: Path) -> None:
    data = ["--data-root", few_scenes]
    said = go(evaluate, detector, trained / "epoch_2.pth", *data, "--eval", "mIoU", status=2)
    assert all(word in said for word in ("'mIoU'", "bbox", "segm"))
    assert "tta_model" in go(evaluate, detector, trained / "epoch_2.pth", *data, "--aug-test", status=2)
    words = [DET / "davit_retinanet_1x_coco.py", trained / "epoch_2.pth", *data, "--classes", *"0123456789"]
    assert "--eval bbox" in go(evaluate, *words, "--eval", "segm", status=2)


def test_files_that_are_no_detectors(go: Go, detector: Path, few_scenes: Path, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    data = ["--data-root", few_scenes]
    assert "no.pth" in go(evaluate, detector, "no.pth", *data, status=2)
    assert "model.pretrained=" in go(evaluate, detector, "other.pth", *data, status=2)
    assert "other.pth" in go(train, detector, *data, "--resume", "other.pth", status=2)


def test_a_config_that_is_not_there_offers_its_neighbours(go: Go) -> None:
    assert "davit_maskrcnn_1x_coco.py" in go(train, DET / "davit_maskrcn_1x_coco.py", status=2)
    Path("broken.py").write_text("model = dict(")
    assert "broken.py" in go(train, "broken.py", status=2)


# -- what flags do to a config


def with_options(*words: str) -> Config:
    parser = ArgumentParser()
    parser.add_argument("config")
    add_override_arguments(parser)
    return config.load_config(parser.parse_args([str(DET / "davit_maskrcnn_1x_coco.py"), *words]))


def test_evaluators_follow_their_data() -> None:
    cfg = with_options("--data-root", "/a", "--cfg-options", "val_dataloader.dataset.ann_file=v.json")
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == "/a/v.json"
    assert cfg.train_dataloader.dataset.data_root == cfg.test_dataloader.dataset.data_root == "/a"
    options = ["val_dataloader.dataset.ann_file=v.json", "test_dataloader.dataset.ann_file=t.json"]
    cfg = with_options("--options", "data_root=/b", *options, "val_evaluator.ann_file=/c/w.json")
    assert cfg.test_dataloader.dataset.ann_file == "t.json" and cfg.val_dataloader.dataset.ann_file == "v.json"
    assert (cfg.val_evaluator.ann_file, cfg.test_evaluator.ann_file) == ("/c/w.json", "/c/w.json")


def test_classes_reach_data_sets_and_heads() -> None:
    cfg = config_of(DET / "davit_maskrcnn_1x_coco.py")
    config.set_classes(cfg, ("a", "b"))
    assert cfg.model.roi_head.bbox_head.num_classes == cfg.model.roi_head.mask_head.num_classes == 2
    assert {part.metainfo["classes"] for name in config.LOADERS for part in config.datasets_of(cfg[name])} == {
        ("a", "b")
    }
    nested = {"dataset": {"datasets": [{"type": "A"}, {"dataset": {"type": "B"}}]}}
    assert [part["type"] for part in config.datasets_of(nested)] == ["A", "B"]


@pytest.mark.parametrize("name", ["davit_nano_maskrcnn_digits.py", "davit_nano_rtmdet_digits.py"])
def test_the_small_detectors_take_pictures_of_any_size(name: str) -> None:
    from mmdet.structures import DetDataSample

    about = {"img_shape": (50, 101), "ori_shape": (50, 101), "scale_factor": (1.0, 1.0)}
    picture = {"inputs": [torch.zeros(3, 50, 101, dtype=torch.uint8)], "data_samples": [DetDataSample(metainfo=about)]}
    (found,) = build(DET / name).eval().test_step(picture)
    assert found.pred_instances.bboxes.shape[1] == 4


def test_mixed_precision_and_the_learning_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {"amp": True, "auto_scale_lr": True, "resume": None, "load_from": None, "no_validate": False}
    for has_gpu, wrapper in ((False, "OptimWrapper"), (True, "AmpOptimWrapper")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda has_gpu=has_gpu: has_gpu)
        cfg = config_of(DET / "davit_maskrcnn_1x_coco.py")
        config.use_train_flags(cfg, Namespace(**flags))
        assert cfg.optim_wrapper.type == wrapper
        assert cfg.auto_scale_lr.enable and cfg.auto_scale_lr.base_batch_size == 16
    cfg.auto_scale_lr = {}
    with pytest.raises(ValueError, match="base_batch_size"):
        config.use_train_flags(cfg, Namespace(**flags))


def test_the_variables_of_slurm() -> None:
    given = {"SLURM_NODELIST": "n[1-2]", "SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}
    found = cli.slurm_environment({**given, "MASTER_ADDR": "n1", "MASTER_PORT": "5"})
    assert found == {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "5"}


# -- the shell scripts, each word as users know it


@pytest.mark.long
def test_two_processes_killed_in_the_second_epoch_and_resumed(
    detector: Path, few_scenes: Path, tmp_path: Path
) -> None:
    options = ["default_hooks.logger.interval=1", "train_dataloader.batch_size=1", "train_cfg.max_epochs=4"]
    words = [DET_TOOLS / "dist_train.sh", detector, 2, "--data-root", few_scenes, "--seed", "1", "--no-validate"]
    words += ["--cfg-options", *options]
    shell(*words, "--work-dir", tmp_path / "whole", cwd=tmp_path)
    killed = ["bash", *map(str, words), "--work-dir", str(tmp_path / "out")]
    with subprocess.Popen(killed, cwd=tmp_path, env=shell_environment(), stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if "Epoch(train)" in line and "[2][1/2]" in line:
                break
        kill_tree(process.pid)
    assert not (tmp_path / "out/epoch_4.pth").exists()
    said = shell(*words, "--work-dir", tmp_path / "out", "--resume", cwd=tmp_path)
    assert any(f"epoch_{number}.pth" in said for number in (1, 2, 3))
    ours, whole = (torch.load(tmp_path / name / "epoch_4.pth", weights_only=True) for name in ("out", "whole"))
    assert ours["meta"]["iter"] == whole["meta"]["iter"] == 8
    assert ours["param_schedulers"] == whole["param_schedulers"]


@pytest.mark.long
@pytest.mark.parametrize("root", [False, True])
def test_the_published_command_lines(shared: Path, tmp_path: Path, root: bool) -> None:
    """spec/commands.md, from mmdet/ and from the root, on two processes for eight and on few, small images."""
    torch.save({"state_dict": create_model("DaViT_tiny").state_dict()}, tmp_path / "tiny.pth")
    cwd, prefix = (REPOSITORY, "mmdet/") if root else (REPOSITORY / "mmdet", "")
    few = [f"{split}_dataloader.dataset.indices=2" for split in ("train", "val")]
    few += ["train_cfg.max_epochs=1", "model.test_cfg.rcnn.max_per_img=5", "model.test_cfg.rpn.max_per_img=50"]
    few += ["model.test_cfg.rcnn.score_thr=0.0"]  # of random weights: something is found
    data = ["--data-root", shared / "data/coco-tiny"]
    script, name = f"{prefix}tools/dist_train.sh", f"{prefix}configs/davit_retinanet_1x_coco.py"
    options = ["--cfg-options", f"model.pretrained={tmp_path / 'tiny.pth'}", *few[:3], "train_dataloader.batch_size=1"]
    said = shell(script, name, 2, *options, *data, "--work-dir", tmp_path / "a", cwd=cwd)
    assert "100 % of its stages" in said
    torch.save({"state_dict": build(DET / "davit_maskrcnn_1x_coco.py").state_dict()}, tmp_path / "whole.pth")
    words = [f"{prefix}configs/davit_maskrcnn_1x_coco.py", tmp_path / "whole.pth", 2, "--eval", "bbox", "segm", *data]
    options = ["--work-dir", tmp_path / "b", "--options", few[1], *few[3:]]
    shell(f"{prefix}tools/dist_test.sh", *words, *options, cwd=cwd)
    assert "coco/segm_mAP" in scores_of(tmp_path / "b")


@pytest.mark.parametrize(
    ("script", "words", "expected"),
    [
        ("dist_train.sh", ["a.py", "eight"], "CONFIG PROCESSES"),
        ("dist_test.sh", ["a.py", "b.pth"], "CONFIG CHECKPOINT PROCESSES"),
        ("slurm_train.sh", ["partition"], "PARTITION JOB_NAME CONFIG"),
        ("slurm_test.sh", ["partition", "job", "a.py"], "PARTITION JOB_NAME CONFIG"),
    ],
)
def test_the_scripts_say_how_they_are_called(tmp_path: Path, script: str, words: list[str], expected: str) -> None:
    said = shell(DET_TOOLS / script, *words, cwd=tmp_path, status=2)
    assert expected in said and script in said


def test_slurm_gets_the_ecosystems_words(tmp_path: Path) -> None:
    fake = tmp_path / "bin" / "srun"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    fake.chmod(0o755)
    variables: dict[str, Any] = {"PATH": f"{fake.parent}:{os.environ['PATH']}", "GPUS": "2", "SRUN_ARGS": "--x --y"}
    words = ["part", "job", "a.py", "out", "--seed", "1"]
    lines = shell(DET_TOOLS / "slurm_train.sh", *words, cwd=tmp_path, **variables).splitlines()
    assert {"--job-name=job", "--gres=gpu:2", "--ntasks=2", "--x", "--y"} <= set(lines)
    assert lines[-7:] == ["a.py", "--work-dir", "out", "--seed", "1", "--launcher", "slurm"]
    assert lines[lines.index("-p") + 1] == "part"
