"""`davit det train DATA --head HEAD`, `test` and `demo`, as a user calls them."""

import csv
import json
import shutil
import signal
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import davit as package
from davit.checkpoint import read_checkpoint
from davit.detect import cli
from davit.detect.model import load_detector
from davit.detect.predictor import Predictor
from davit.engine.run_folder import LAST, read_state
from tests.detect.conftest import TINY, davit
from tests.engine.runs import REPOSITORY, run, weights_hash
from tests.test_docs import FENCE

TIMED = {"images_per_second", "data_share", "peak_memory_mb", "seconds"}


def record(folder: Path) -> list[dict[str, str]]:
    with (folder / "summary.csv").open() as stream:
        return [{name: cell for name, cell in row.items() if name not in TIMED} for row in csv.DictReader(stream)]


def ends_as(folder: Path, whole: Path) -> bool:
    return weights_hash(folder / LAST) == weights_hash(whole / LAST) and record(folder) == record(whole)


def test_what_a_run_leaves(trained: Path) -> None:
    rows = record(trained)
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert {"train_loss", "eval_ap", "eval_ap50", "ema_ap"} <= set(rows[0])
    assert not {"train_top1", "eval_loss", "eval_top1"} & set(rows[0])
    state = read_state(trained / LAST)
    assert state["class_names"] == list("0123456789") and state["metric_name"] == "ema_ap"
    noted = yaml.safe_load((trained / "args.yaml").read_text())
    assert noted["head"] in ("dfine", "rtdetrv2") and "mixup" not in noted


def test_the_average_of_a_short_run_forgets_the_first_weights(trained: Path, few: Path, tmp_path: Path) -> None:
    """After six steps it lies nearer to the last weights than to those of the first step, where it is without."""

    def distance(folder: Path) -> float:
        state = read_state(folder / LAST)
        name = "net.model.decoder.layers.0.self_attn.q_proj.weight"
        return float((state["state_dict"][name] - state["state_dict_ema"][name]).norm())

    head = yaml.safe_load((trained / "args.yaml").read_text())["head"]
    words = ["det", "train", few, "--head", head, *TINY, "--epochs", 2, "--model-ema", "--no-model-ema-warmup"]
    davit(words, tmp_path)
    assert 0 < distance(trained) < 0.6 * distance(tmp_path / "runs/a")
    davit(["det", "train", "-c", "runs/a/args.yaml", "--head", head, "--overwrite"], tmp_path)
    assert not yaml.safe_load((tmp_path / "runs/a/args.yaml").read_text())["model_ema_warmup"]


def test_args_yaml_is_a_recipe(trained: Path, tmp_path: Path) -> None:
    words = ["det", "train", "-c", trained / "args.yaml", "--head", "dfine", "--dry-run", "--json"]
    measured = json.loads(davit(words, tmp_path).stdout)["dry_run"]
    assert measured["images_measured"] == measured["images_per_step"] == 2 and measured["hours"] > 0
    assert not [*tmp_path.iterdir()]


def test_the_saved_folder_is_the_best_checkpoint(trained: Path, few: Path) -> None:
    from transformers import AutoModelForObjectDetection

    saved = AutoModelForObjectDetection.from_pretrained(trained / "detector").eval()
    assert saved.config.id2label == dict(enumerate("0123456789"))
    picture = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    best = load_detector(trained, torch.device("cpu")).detector
    with torch.no_grad():
        logits, boxes = best(picture)
        found = saved(picture)
    torch.testing.assert_close((found.logits, found.pred_boxes), (logits, boxes), atol=1e-5, rtol=1e-5)


def test_all_forms_predict_alike(trained: Path, few: Path) -> None:
    picture = next((few / "val2017").glob("*.png"))
    found = [
        Predictor(source, 0.0, "cpu").predict(picture)
        for source in (trained, trained / "model_best.pth.tar", trained / "detector")
    ]
    assert found[0].classes == tuple("0123456789") and len(found[0].boxes) == 100
    for other in found[1:]:
        np.testing.assert_allclose(other.boxes, found[0].boxes, atol=1e-3)
    loaded = package.load(trained, score_threshold=0.0, device="cpu")
    assert isinstance(loaded, Predictor)
    assert loaded.predict(Image.open(picture)).boxes.tolist() == found[0].boxes.tolist()
    with pytest.raises(ValueError):
        package.load(trained, img_size=64)


def test_test_measures_what_the_training_did(trained: Path, few: Path, tmp_path: Path) -> None:
    words = ["det", "test", trained, "--workers", 0, "--out", tmp_path / "r.json", "--output", tmp_path / "m.json"]
    davit(words, tmp_path)
    measured = json.loads((tmp_path / "m.json").read_text())
    best = max(record(trained), key=lambda row: float(row["ema_ap"]))
    assert measured["ap"] == pytest.approx(float(best["ema_ap"]), abs=1e-6)
    results = json.loads((tmp_path / "r.json").read_text())
    assert len(results) == 5 * 100 and set(results[0]) == {"image_id", "category_id", "bbox", "score"}
    predicted = Predictor(trained, 0.0, "cpu").predict(few / "val2017" / "000000.png")
    x1, y1, x2, y2 = predicted.boxes[0].tolist()
    assert results[0]["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=1e-3)


def test_results_without_labels(trained: Path, few: Path, tmp_path: Path) -> None:
    root = shutil.copytree(few, tmp_path / "data")
    file = root / "annotations/instances_val2017.json"
    contents = json.loads(file.read_text())
    del contents["annotations"]
    file.write_text(json.dumps(contents))
    words = ["det", "test", trained, root, "--workers", 0, "--out", tmp_path / "r.json"]
    davit(words, tmp_path, status=2)
    davit([*words, "--format-only"], tmp_path)
    assert len(json.loads((tmp_path / "r.json").read_text())) == 500


def test_demo_draws(trained: Path, few: Path, tmp_path: Path) -> None:
    davit(["det", "demo", few / "val2017", trained, "--out-dir", "drawn", "--score-thr", 0], tmp_path)
    assert len([*(tmp_path / "drawn").glob("*.png")]) == 5
    listed = json.loads((tmp_path / "drawn/predictions.json").read_text())
    assert len(listed) == 5


def test_a_resumed_run_equals_one_that_never_stopped(trained: Path, few: Path, tmp_path: Path) -> None:
    head = yaml.safe_load((trained / "args.yaml").read_text())["head"]
    words = ["det", "train", few, "--head", head, *TINY, "--epochs", 2, "--model-ema"]
    davit([*words, "--stop-epoch", 1], tmp_path)
    assert not ends_as(tmp_path / "runs/a", trained)
    davit([*words, "--auto-resume"], tmp_path)
    assert ends_as(tmp_path / "runs/a", trained)


@pytest.mark.long
@pytest.mark.parametrize("steps", [1, 4])
def test_a_killed_run_equals_one_that_never_stopped(few: Path, tmp_path: Path, steps: int) -> None:
    words = [few, "--head", "dfine", *TINY, "--epochs", 2, "--recovery-interval", 1, "--workers", 2]
    davit(["det", "train", *words, "--experiment", "whole"], tmp_path)
    command = [sys.executable, REPOSITORY / "tests/detect/dying.py", *words]
    died = run([str(one) for one in command], tmp_path, None, DIE=f"{int(signal.SIGKILL)},{steps},0.01")
    assert died.returncode == -signal.SIGKILL, died.stderr
    davit(["det", "train", *words, "--auto-resume", "--workers", 0], tmp_path)
    assert ends_as(tmp_path / "runs/a", tmp_path / "runs/whole")


@pytest.mark.long
def test_two_processes(few: Path, tmp_path: Path) -> None:
    """Also of images without objects, where nothing is to be denoised; killed, and evaluated by both."""
    root = shutil.copytree(few, tmp_path / "data")
    file = root / "annotations/instances_train2017.json"
    contents = json.loads(file.read_text())
    contents["annotations"] = [one for one in contents["annotations"] if one["image_id"] > 3]
    file.write_text(json.dumps(contents))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    words = [root, "--head", "dfine", *TINY, "--batch-size", 1, "--epochs", 2, "--recovery-interval", 1]

    def go(script: str, *more: object, status: int | None = 0, **environment: str) -> None:
        run([str(one) for one in (*launcher, script, *more)], tmp_path, status, **environment)

    train = ("-m", "davit", "det", "train")
    run([str(one) for one in (*launcher, *train, *words, "--experiment", "whole")], tmp_path)
    go(str(REPOSITORY / "tests/detect/dying.py"), *words, status=1, DIE=f"{int(signal.SIGKILL)},2,0.01")
    run([str(one) for one in (*launcher, *train, *words, "--auto-resume")], tmp_path)
    assert ends_as(tmp_path / "runs/a", tmp_path / "runs/whole")
    test = ("-m", "davit", "det", "test", "runs/a", "--workers", "0", "--output", "two.json")
    run([str(one) for one in (*launcher, *test)], tmp_path)
    davit(["det", "test", "runs/a", "--workers", 0, "--output", "one.json"], tmp_path)
    assert json.loads((tmp_path / "two.json").read_text()) == json.loads((tmp_path / "one.json").read_text())


def test_starts_from_a_classifier_and_from_a_detector(trained: Path, few: Path, tmp_path: Path) -> None:
    torch.manual_seed(5)
    tiny = {"embed_dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2), "window_size": 4}
    classifier = package.create_model("DaViT_nano", num_classes=3, **tiny)
    torch.save({"state_dict": classifier.state_dict()}, tmp_path / "classifier.pth")
    words = ["det", "train", few, "--head", "dfine", *TINY, "--epochs", 1, "--lr", 0, "--min-lr", 0, "--warmup-lr", 0]
    davit([*words, "--initial-checkpoint", tmp_path / "classifier.pth"], tmp_path)
    state = read_checkpoint(tmp_path / "runs/a" / LAST).state_dict
    name = "main_blocks.1.0.0.attn.qkv.weight"
    (found,) = [value for key, value in state.items() if key.endswith(name)]
    (given,) = [value for key, value in classifier.state_dict().items() if key.endswith(name)]
    assert torch.equal(found, given)
    if yaml.safe_load((trained / "args.yaml").read_text())["head"] == "dfine":
        origin = read_checkpoint(trained / "model_best.pth.tar").state_dict
        for source in (trained, trained / "detector"):
            some = [*words, "--overwrite", "--classes", "3", "5", "--initial-checkpoint", source]
            davit(some, tmp_path)
            state = read_checkpoint(tmp_path / "runs/a" / LAST).state_dict
            name = "net.model.decoder.layers.0.self_attn.q_proj.weight"
            assert torch.equal(state[name], origin[name])
            assert len(state["net.model.enc_score_head.bias"]) == 2


@pytest.mark.parametrize(
    "more",
    [
        ["--img-size", "100"],
        ["--model", "DaViT_nona"],
        ["--head-kwargs", "num_querries=5"],
        ["--head-kwargs", "num_labels=5"],
        ["--head-kwargs", "d_model=30"],
        ["--model-kwargs", "depth=5"],
        ["--pretrained", "--initial-checkpoint", "x"],
        ["--initial-checkpoint", "nowhere.pth"],
        ["--head", "yolo"],
        ["--mixup", "0.5"],
        ["--eval-metric", "top1"],
        ["--train-split", "tarin"],
        ["--classes", "dog"],
        ["--batch-size", "64"],
    ],
)
def test_what_does_not_fit_is_refused(few: Path, tmp_path: Path, more: list[str]) -> None:
    davit(["det", "train", few, "--head", "dfine", *TINY, *more], tmp_path, status=2)
    assert not [*tmp_path.glob("**/*.pth.tar")]


@pytest.mark.parametrize(
    "words",
    [
        ["train", "{few}"],
        ["train", "{few}/annotations/instances_train2017.json"],
        ["train", "davit_dino_1x_coco.py", "--head", "dfine"],
        ["train", "--head", "dfine"],
        ["train", "nowhere", "--head=dfine"],
        ["test", "{few}"],
    ],
)
def test_commands_that_are_mixed_up(few: Path, tmp_path: Path, words: list[str]) -> None:
    done = davit(["det", *(word.format(few=few) for word in words)], tmp_path, status=2)
    assert done.stderr


@pytest.mark.parametrize(("words", "extra"), [(["x.py"], "openmmlab"), (["{few}", "--head", "dfine"], "detect")])
def test_what_is_not_installed_is_named(few: Path, tmp_path: Path, words: list[str], extra: str) -> None:
    gone = ModuleNotFoundError("gone", name="mmengine.config" if extra == "openmmlab" else "transformers")
    with mock.patch.object(cli.importlib, "import_module", side_effect=gone):
        assert cli.train_main([word.format(few=few) for word in words]) == 2


def test_freezing_and_growing_and_mixed_precision(few: Path, tmp_path: Path) -> None:
    words = ["det", "train", few, "--head", "dfine", *TINY, "--epochs", 2, "--img-size", "32,64", "--amp"]
    davit([*words, "--amp-dtype", "bf16", "--freeze", "all", "--grad-checkpointing", "--head-lr-scale", 2], tmp_path)
    first, last = (read_checkpoint(tmp_path / "runs/a" / f"checkpoint-{n}.pth.tar").state_dict for n in (0, 1))
    is_same = {name: torch.equal(first[name], last[name]) for name in first if name.endswith("weight")}
    assert all(same for name, same in is_same.items() if ".davit." in name and ".norm" not in name)
    assert not all(same for name, same in is_same.items() if ".decoder." in name)


def test_batches_that_fit_into_memory_are_found(few: Path, tmp_path: Path) -> None:
    words = ["det", "train", few, "--head", "dfine", *TINY, "--epochs", 1, "--batch-size", "auto", "--global-batch", 2]
    davit(words, tmp_path)
    assert read_state(tmp_path / "runs/a" / LAST)["micro_batch"] in (1, 2)


def test_a_loss_that_is_not_finite_is_reported(few: Path, tmp_path: Path) -> None:
    words = ["det", "train", few, "--head", "dfine", *TINY, "--epochs", 3, "--lr", "1000", "--warmup-epochs", 0]
    done = davit([*words, "--clip-grad", "1e9"], tmp_path, status=None)
    assert done.returncode in (0, 3), done.stderr


def test_other_classes_are_refused_on_resume(trained: Path, few: Path, tmp_path: Path) -> None:
    head = yaml.safe_load((trained / "args.yaml").read_text())["head"]
    folder: Any = tmp_path / "runs/a"
    shutil.copytree(trained, folder)
    words = ["det", "train", few, "--head", head, *TINY, "--epochs", 3, "--model-ema", "--auto-resume"]
    davit([*words, "--classes", *"9876543210"], tmp_path, status=2)


def learnt_by_heart(eight: Path, tmp_path: Path, head: str) -> float:
    words = ["det", "train", eight, "--head", head, "-c", REPOSITORY / "tests/detect/eight.yaml"]
    davit([*words, "--output", "runs", "--experiment", "a"], tmp_path)
    davit(["det", "test", "runs/a", "--workers", 0, "--output", "m.json"], tmp_path)
    return float(json.loads((tmp_path / "m.json").read_text())["ap50"])


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("head", ["dfine", "rtdetrv2"])
def test_eight_scenes_are_learnt_by_heart(eight: Path, tmp_path: Path, head: str) -> None:
    assert learnt_by_heart(eight, tmp_path, head) >= 90


PROGRAMS = [
    text
    for language, text in FENCE.findall((REPOSITORY / "docs/detection.md").read_text(encoding="utf-8"))
    if language == "python"
]


@pytest.mark.long
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda text: text.split()[1])
def test_other_libraries_read_the_saved_detector(
    trained: Path, few: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    """The programs of docs/detection.md."""
    for library in ("supervision", "sahi"):
        if library in program:
            pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained, tmp_path / "output/train/RUN")
    with Image.open(next((few / "val2017").glob("*.png"))) as picture:
        picture.convert("RGB").save("picture.jpg")
    exec(compile(program.replace("=640", "=64"), "docs/detection.md", "exec"), {})
