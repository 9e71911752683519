"""train.py and test.py of mmdet/tools as a user runs them, in this process and on a small detector."""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from davit import create_model
from davit.openmmlab import cli, config
from davit.openmmlab.cli import test_main as evaluate
from davit.openmmlab.cli import train_main as train
from tests.openmmlab.conftest import CONFIGS, REPOSITORY, Go
from tests.processes import kill_tree


def weights(file: Path) -> dict[str, torch.Tensor]:
    return torch.load(file, map_location="cpu", weights_only=True)["state_dict"]


def scores_of(folder: Path) -> dict[str, float]:
    """What a test run measured: the json of its work folder."""
    (file,) = folder.glob("*/*.json")
    return json.loads(file.read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, few_scenes: Path) -> Path:
    """A checkpoint of the small detector, of two epochs of four steps."""
    from tests.openmmlab.conftest import SMALL

    folder = tmp_path_factory.mktemp("trained")
    file = folder / "small.py"
    file.write_text(SMALL.format(base=str(CONFIGS / "davit_nano_maskrcnn_digits.py")))
    status = train([str(file), "--data-root", str(few_scenes), "--work-dir", str(folder / "out"), "--seed", "1"])
    assert status == 0
    return folder / "out" / "epoch_2.pth"


def test_training_writes_whole_plain_states(trained: Path, tmp_path: Path) -> None:
    state = torch.load(trained, weights_only=True)  # nothing in it needs trust
    assert state["meta"]["epoch"] == 2 and state["meta"]["iter"] == 8
    assert state["meta"]["dataset_meta"]["classes"] == list("0123456789")
    assert {"optimizer", "param_schedulers", "message_hub"} <= set(state)
    assert not list(trained.parent.glob(".*.partial"))


def test_resumed_after_an_epoch_ends_where_it_would_have(
    go: Go, small_config: Path, few_scenes: Path, trained: Path, tmp_path: Path
) -> None:
    words = [small_config, "--data-root", few_scenes, "--work-dir", tmp_path / "out", "--seed", "1"]
    assert go(train, *words, "--cfg-options", "train_cfg.max_epochs=1").returncode == 0
    assert torch.load(tmp_path / "out/epoch_1.pth", weights_only=True)["meta"]["epoch"] == 1
    (tmp_path / "out/epoch_9.pth").write_bytes((tmp_path / "out/epoch_1.pth").read_bytes()[:5000])  # cut off
    resumed = go(train, *words, "--resume")
    assert resumed.returncode == 0, resumed.stdout
    assert "passed over" in resumed.stdout and "Resumed from" in resumed.stdout
    state = torch.load(tmp_path / "out/epoch_2.pth", weights_only=True)
    assert state["meta"]["iter"] == 8
    whole = torch.load(trained, weights_only=True)
    assert state["param_schedulers"] == whole["param_schedulers"]
    assert state["optimizer"]["param_groups"] == whole["optimizer"]["param_groups"]


def test_nothing_to_resume_and_nothing_whole(go: Go, small_config: Path, few_scenes: Path, tmp_path: Path) -> None:
    words = [small_config, "--data-root", few_scenes, "--work-dir", tmp_path / "out", "--auto-resume", "--no-validate"]
    one = ["--cfg-options", "train_cfg.max_epochs=1", "train_dataloader.dataset.indices=2"]
    anew = go(train, *words, *one)
    assert anew.returncode == 0 and "starting anew" in anew.stdout
    (tmp_path / "out/epoch_1.pth").write_bytes(b"cut off")
    broken = go(train, *words, *one)
    assert broken.returncode == 2 and "no state in" in broken.stdout


def test_evaluation(go: Go, small_config: Path, few_scenes: Path, trained: Path, tmp_path: Path) -> None:
    words = [small_config, trained, "--data-root", few_scenes, "--work-dir", tmp_path / "test"]
    result = go(evaluate, *words, "--eval", "bbox", "--out", tmp_path / "found.json", "--show-dir", tmp_path / "drawn")
    assert result.returncode == 0, result.stdout
    assert "100 % of its" in result.stdout
    measured = scores_of(tmp_path / "test")
    assert "coco/bbox_mAP" in measured and "coco/segm_mAP" not in measured
    found = json.loads((tmp_path / "found.bbox.json").read_text())
    assert found and {"image_id", "bbox", "score", "category_id"} <= set(found[0])
    assert len(list((tmp_path / "drawn").rglob("*.png"))) == 4


def test_predictions_for_a_server(go: Go, small_config: Path, few_scenes: Path, trained: Path, tmp_path: Path) -> None:
    words = [small_config, trained, "--data-root", few_scenes, "--work-dir", tmp_path / "test"]
    assert go(evaluate, *words, "--format-only").returncode == 0
    assert json.loads((tmp_path / "test/results.segm.json").read_text())
    assert not any(
        "mAP" in name for file in (tmp_path / "test").glob("*/*.json") for name in json.loads(file.read_text())
    )


def test_a_classifier_that_train_py_wrote_starts_a_detector(
    go: Go, small_config: Path, few_scenes: Path, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    small = {"embed_dims": (8, 16, 16, 16), "num_heads": (1, 2, 2, 2), "depths": (1, 1, 1, 1), "window_size": 4}
    classifier = create_model("DaViT_nano", num_classes=3, **small)
    torch.save({"state_dict": classifier.state_dict(), "arch": "DaViT_nano"}, tmp_path / "model_best.pth.tar")
    words = [small_config, "--data-root", few_scenes, "--work-dir", tmp_path / "out", "--no-validate"]
    options = ["model.pretrained=model_best.pth.tar", "optim_wrapper.optimizer.lr=0", "train_cfg.max_epochs=1"]
    result = go(train, *words, "--options", *options)
    assert result.returncode == 0, result.stdout
    assert "Backbone: 100 % of its stages" in result.stdout
    ours, theirs = weights(tmp_path / "out/epoch_1.pth"), classifier.state_dict()
    stages = [name for name in theirs if name.startswith(("patch_embeds", "main_blocks"))]
    assert all(torch.equal(ours[f"backbone.{name}"], theirs[name]) for name in stages) and len(stages) > 100


def test_a_detector_starts_one_of_other_classes(
    go: Go, small_config: Path, few_scenes: Path, trained: Path, tmp_path: Path
) -> None:
    words = [small_config, "--data-root", few_scenes, "--work-dir", tmp_path / "out", "--no-validate"]
    words += ["--load-from", trained, "--classes", "3", "5"]
    result = go(train, *words, "--cfg-options", "train_cfg.max_epochs=1", "optim_wrapper.optimizer.lr=0")
    assert result.returncode == 0, result.stdout
    assert "roi_head.bbox_head.fc_cls.weight" in result.stdout
    ours, theirs = weights(tmp_path / "out/epoch_1.pth"), weights(trained)
    assert ours["roi_head.bbox_head.fc_cls.weight"].shape == (3, 16)
    same = [name for name in ours if ours[name].shape == theirs[name].shape]
    assert all(torch.equal(ours[name], theirs[name]) for name in same)
    refused = go(evaluate, small_config, tmp_path / "out/epoch_1.pth", "--data-root", few_scenes)
    assert refused.returncode == 2 and "--classes" in refused.stdout
    judged = go(evaluate, small_config, tmp_path / "out/epoch_1.pth", "--data-root", few_scenes, "--classes", "3", "5")
    assert judged.returncode == 0, judged.stdout


def test_classes_of_the_file(go: Go, small_config: Path, few_scenes: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        file = few_scenes / f"annotations/instances_{split}2017.json"
        contents = json.loads(file.read_text())
        for category in contents["categories"]:
            category["name"] = f"digit {category['name']}"
        (tmp_path / f"{split}.json").write_text(json.dumps(contents))
    files = [f"{split}_dataloader.dataset.ann_file={tmp_path}/{split}.json" for split in ("train", "val")]
    words = [small_config, "--data-root", few_scenes, "--work-dir", tmp_path / "out", "--no-validate"]
    refused = go(train, *words, "--cfg-options", *files)
    assert refused.returncode == 2 and "--classes auto" in refused.stdout
    result = go(train, *words, "--classes", "auto", "--cfg-options", *files, "train_cfg.max_epochs=1")
    assert result.returncode == 0, result.stdout
    meta = torch.load(tmp_path / "out/epoch_1.pth", weights_only=True)["meta"]
    assert meta["dataset_meta"]["classes"][0] == "digit 0"


def test_the_readmes_example_of_own_data(go: Go, small_config: Path, few_scenes: Path, tmp_path: Path) -> None:
    mydata = tmp_path / "mydata"
    mydata.mkdir()
    for split in ("train", "val"):
        contents = json.loads((few_scenes / f"annotations/instances_{split}2017.json").read_text())
        for image in contents["images"]:
            image["file_name"] = f"{split}-{image['file_name']}"
        for category in contents["categories"]:
            category["name"] = f"my {category['name']}"
        (mydata / f"{split}.json").write_text(json.dumps(contents))
    (mydata / "images").mkdir()
    for file in few_scenes.glob("*2017/*.png"):
        shutil.copy(file, mydata / "images" / f"{file.parent.name.removesuffix('2017')}-{file.name}")
    lines = (REPOSITORY / "mmdet/README.md").read_text().splitlines()
    commands = [shlex.split(line) for line in lines if "--data-root mydata" in line]
    assert [words[:3] for words in commands] == [
        ["python", f"mmdet/tools/{tool}.py", "mmdet/configs/davit_maskrcnn_1x_coco.py"] for tool in ("train", "test")
    ]
    trained = go(train, small_config, *commands[0][3:], "--work-dir", "out")
    assert trained.returncode == 0, trained.stdout
    words = [
        word.replace("work_dirs/davit_maskrcnn_1x_coco/epoch_12.pth", "out/epoch_2.pth") for word in commands[1][3:]
    ]
    tested = go(evaluate, small_config, *words)
    assert tested.returncode == 0, tested.stdout
    assert "4 pictures, 9 objects of 10 classes" in tested.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--cfg-options", "model.pretrained=no.pth"], "no.pth: there is no such file"),
        (["--cfg-options", "model.backbone.embed_dim=3"], "embed_dims"),
        (["--data-root", "nowhere"], "there is no annotation file nowhere"),
        (["--load-from", "no.pth"], "no.pth: there is no such file"),
        (["--resume", "a.pth", "--load-from", "b.pth"], "pass one of the two"),
        (["--launcher", "pytorch"], "RANK"),
        (["--launcher", "slurm"], "SLURM_"),
    ],
)
def test_mistakes_of_training(
    go: Go, small_config: Path, few_scenes: Path, words: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    result = go(train, small_config, "--data-root", few_scenes, *words)
    assert result.returncode != 0
    assert expected in result.stdout and "Traceback" not in result.stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--eval", "mIoU"], "'mIoU' is not one of bbox"),
        (["--aug-test"], "no tta_model"),
    ],
)
def test_mistakes_of_evaluation(
    go: Go, small_config: Path, few_scenes: Path, trained: Path, words: list[str], expected: str
) -> None:
    result = go(evaluate, small_config, trained, "--data-root", few_scenes, *words)
    assert result.returncode == 2 and expected in result.stdout


def test_files_that_are_no_detectors(
    go: Go, small_config: Path, few_scenes: Path, trained: Path, tmp_path: Path
) -> None:
    missing = go(evaluate, small_config, "no.pth", "--data-root", few_scenes)
    assert missing.returncode == 2 and "no.pth: there is no such checkpoint" in missing.stdout
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    other = go(evaluate, small_config, tmp_path / "other.pth", "--data-root", few_scenes)
    assert other.returncode == 2 and "model.pretrained=" in other.stdout and "Nothing was loaded" in other.stdout
    resumed = go(train, small_config, "--data-root", few_scenes, "--resume", tmp_path / "other.pth")
    assert resumed.returncode == 2 and "other.pth" in resumed.stdout


def test_a_config_that_is_not_there_offers_its_neighbours(go: Go) -> None:
    result = go(train, CONFIGS / "davit_maskrcn_1x_coco.py")
    assert result.returncode == 2 and "davit_maskrcnn_1x_coco.py" in result.stdout
    Path("broken.py").write_text("model = dict(")
    broken = go(train, "broken.py")
    assert broken.returncode == 2 and "broken.py cannot be read" in broken.stdout


def test_segm_of_a_detector_of_boxes(go: Go, trained: Path, few_scenes: Path) -> None:
    words = [CONFIGS / "davit_retinanet_1x_coco.py", trained, "--data-root", few_scenes, "--classes", *"0123456789"]
    result = go(evaluate, *words, "--eval", "segm")
    assert result.returncode == 2 and "boxes alone" in result.stdout


def test_old_words_are_answered(go: Go, small_config: Path, caplog: pytest.LogCaptureFixture) -> None:
    result = go(train, small_config, "--gpus", "2", "--data-root", "nowhere")
    assert "--gpus: the number of processes is the launcher's" in result.stdout


def test_options_reach_the_config() -> None:
    cfg = Config.fromfile(CONFIGS / "davit_maskrcnn_1x_coco.py")
    config.set_data_root(cfg, "/elsewhere")
    assert {part.data_root for name in config.LOADERS for part in config.datasets_of(cfg[name])} == {"/elsewhere"}
    config.use_auto_scale_lr(cfg)
    assert cfg.auto_scale_lr.enable and cfg.auto_scale_lr.base_batch_size == 16
    config.set_classes(cfg, ("a", "b"))
    assert cfg.model.roi_head.bbox_head.num_classes == cfg.model.roi_head.mask_head.num_classes == 2
    cfg.auto_scale_lr = {}
    with pytest.raises(ValueError, match="base_batch_size"):
        config.use_auto_scale_lr(cfg)
    nested = {"dataset": {"datasets": [{"type": "A"}, {"dataset": {"type": "B"}}]}}
    assert [part["type"] for part in config.datasets_of(nested)] == ["A", "B"]


def options_of(*words: str) -> Config:
    parser = ArgumentParser()
    config.add_config_arguments(parser)
    return config.load_config(parser.parse_args([str(CONFIGS / "davit_maskrcnn_1x_coco.py"), *words]))


def test_evaluators_follow_their_data() -> None:
    cfg = options_of("--data-root", "/a", "--cfg-options", "val_dataloader.dataset.ann_file=v.json")
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == "/a/v.json"
    assert cfg.train_dataloader.dataset.data_root == cfg.test_dataloader.dataset.data_root == "/a"
    options = ["val_dataloader.dataset.ann_file=v.json", "test_dataloader.dataset.ann_file=t.json"]
    cfg = options_of("--options", "data_root=/b", *options, "val_evaluator.ann_file=/c/w.json")
    assert cfg.test_dataloader.dataset.ann_file == "t.json" and cfg.val_dataloader.dataset.ann_file == "v.json"
    assert (cfg.val_evaluator.ann_file, cfg.test_evaluator.ann_file) == ("/c/w.json", "/c/w.json")


def test_mixed_precision_needs_a_gpu(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    cfg = Config({"optim_wrapper": {"type": "OptimWrapper"}})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config.use_amp(cfg)
    assert cfg.optim_wrapper.type == "OptimWrapper" and "--amp" in caplog.text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config.use_amp(cfg)
    assert cfg.optim_wrapper.type == "AmpOptimWrapper" and cfg.optim_wrapper.loss_scale == "dynamic"


def test_the_variables_of_slurm() -> None:
    given = {"SLURM_NODELIST": "n[1-2]", "SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}
    found = cli._slurm_environment({**given, "MASTER_ADDR": "n1", "MASTER_PORT": "5"})
    assert found == {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "n1", "MASTER_PORT": "5"}


# -- the shell scripts, each word as users know it


def shell_environment(**more: str) -> dict[str, str]:
    with socket.socket() as free:  # a port that no other test's job has
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    own = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable, "PORT": port}
    return {**os.environ, **own, **more}


def shell(*words: Any, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=shell_environment(**more),
        capture_output=True,
        text=True,
        check=False,
        timeout=420,
    )


def test_two_processes_train_and_give_the_ap_of_one(
    go: Go, small_config: Path, few_scenes: Path, trained: Path, tmp_path: Path
) -> None:
    one = go(evaluate, small_config, trained, "--data-root", few_scenes, "--work-dir", tmp_path / "one")
    assert one.returncode == 0
    tools = REPOSITORY / "mmdet" / "tools"
    words = ["--data-root", few_scenes, "--eval", "bbox", "segm", "--work-dir", tmp_path / "two"]
    two = shell("bash", tools / "dist_test.sh", small_config, trained, 2, *words, cwd=tmp_path)
    assert two.returncode == 0, two.stderr
    expected, found = scores_of(tmp_path / "one"), scores_of(tmp_path / "two")
    measured = [name for name in expected if name.startswith("coco/")]
    assert len(measured) == 12 and all(found[name] == expected[name] for name in measured)


@pytest.mark.long
def test_two_processes_killed_in_the_second_epoch_and_resumed(
    small_config: Path, few_scenes: Path, tmp_path: Path
) -> None:
    tools = REPOSITORY / "mmdet" / "tools"
    words = [small_config, 2, "--data-root", few_scenes, "--seed", "1", "--no-validate"]
    options = ["--cfg-options", "default_hooks.logger.interval=1", "train_dataloader.batch_size=1"]
    command = ["bash", tools / "dist_train.sh", *words, *options]
    assert shell(*command, "--work-dir", tmp_path / "whole", cwd=tmp_path).returncode == 0
    killed = [str(word) for word in (*command, "--work-dir", tmp_path / "out")]
    with subprocess.Popen(killed, cwd=tmp_path, env=shell_environment(), stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if "Epoch(train)" in line and "[2][2/4]" in line:
                break
        kill_tree(process.pid)
    assert not (tmp_path / "out/epoch_2.pth").exists()
    more = shell(*command, "--work-dir", tmp_path / "out", "--resume", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert "Resumed from" in more.stdout + more.stderr
    ours, whole = (torch.load(tmp_path / name / "epoch_2.pth", weights_only=True) for name in ("out", "whole"))
    assert ours["meta"]["iter"] == whole["meta"]["iter"] == 8
    assert ours["param_schedulers"] == whole["param_schedulers"]


@pytest.mark.long
@pytest.mark.parametrize("root", [False, True])
def test_the_published_command_lines(shared: Path, tmp_path: Path, root: bool) -> None:
    """spec/commands.md, from mmdet/ and from the root, on two processes for eight and on few, small pictures."""
    torch.save({"state_dict": create_model("DaViT_tiny").state_dict()}, tmp_path / "tiny.pth")
    cwd, prefix = (REPOSITORY, "mmdet/") if root else (REPOSITORY / "mmdet", "")
    few = [f"{split}_dataloader.dataset.indices=2" for split in ("train", "val")]
    few += ["train_cfg.max_epochs=1", "model.test_cfg.rcnn.max_per_img=5", "model.test_cfg.rpn.max_per_img=50"]
    few += ["model.test_cfg.rcnn.score_thr=0.0"]  # of random weights: something is found
    data = ["--data-root", shared / "data/coco-tiny"]
    script, config = f"{prefix}tools/dist_train.sh", f"{prefix}configs/davit_retinanet_1x_coco.py"
    options = ["--cfg-options", f"model.pretrained={tmp_path / 'tiny.pth'}", *few[:3], "train_dataloader.batch_size=1"]
    trained = shell("bash", script, config, 2, *options, *data, "--work-dir", tmp_path / "a", cwd=cwd)
    assert trained.returncode == 0, trained.stderr
    assert "Backbone: 100 % of its stages" in trained.stdout + trained.stderr
    model = f"{prefix}configs/davit_maskrcnn_1x_coco.py"
    whole = MODELS.build(config_of(REPOSITORY / "mmdet/configs/davit_maskrcnn_1x_coco.py").model)
    torch.save({"state_dict": whole.state_dict()}, tmp_path / "whole.pth")
    words = [model, tmp_path / "whole.pth", 2, "--eval", "bbox", "segm", *data, "--work-dir", tmp_path / "b"]
    tested = shell("bash", f"{prefix}tools/dist_test.sh", *words, "--options", few[1], *few[3:], cwd=cwd)
    assert tested.returncode == 0, tested.stderr
    assert "coco/segm_mAP" in scores_of(tmp_path / "b")


def config_of(file: Path) -> Config:
    init_default_scope("mmdet")
    return Config.fromfile(file)


def test_the_scripts_say_how_they_are_called(tmp_path: Path) -> None:
    tools = REPOSITORY / "mmdet" / "tools"
    for script, words, expected in (
        ("dist_train.sh", ["a.py", "eight"], "CONFIG PROCESSES"),
        ("dist_test.sh", ["a.py", "b.pth"], "CONFIG CHECKPOINT PROCESSES"),
        ("slurm_train.sh", ["partition"], "PARTITION JOB_NAME CONFIG"),
        ("slurm_test.sh", ["partition", "job", "a.py"], "PARTITION JOB_NAME CONFIG"),
    ):
        result = shell("bash", tools / script, *words, cwd=tmp_path)
        assert result.returncode == 2 and expected in result.stderr and script in result.stderr


def test_slurm_gets_the_ecosystems_words(tmp_path: Path) -> None:
    fake = tmp_path / "bin" / "srun"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    fake.chmod(0o755)
    path = f"{fake.parent}:{os.environ['PATH']}"
    tools = REPOSITORY / "mmdet" / "tools"
    words = ["part", "job", "a.py", "out", "--seed", "1"]
    result = shell("bash", tools / "slurm_train.sh", *words, cwd=tmp_path, PATH=path, GPUS="2", SRUN_ARGS="--x --y")
    lines = result.stdout.splitlines()
    assert {"--job-name=job", "--gres=gpu:2", "--ntasks=2", "--x", "--y"} <= set(lines)
    assert lines[-7:] == ["a.py", "--work-dir", "out", "--seed", "1", "--launcher", "slurm"]
    assert lines[lines.index("-p") + 1] == "part"
