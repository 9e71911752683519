"""Teachers of the transformers library: tiny random models, built from their configs without a network."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.task import LogitDistillationTask
from torch import nn

from davit.engine.distill import build_task, digest_of
from davit.engine.flags import train_parser
from davit.engine.run_folder import read_state
from davit.engine.teachers import named_for_transformers, open_transformers
from tests.engine.runs import SHORT, environment, run, run_here, small_model, train_command, weights_hash

transformers = pytest.importorskip("transformers")

CONFIG = {"input_size": (3, 16, 16), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
NAMES = ["blue", "green", "red"]
LABELS = {0: "Red", 1: "blue", 2: "GREEN"}
VIT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "patch_size": 4}


def save_vit(folder: Path, labels: dict[int, str] | None = None, size: int = 12, **processor: Any) -> Any:
    """A classifier with dropout, which has to be off, and an image processor with a normalisation of its own."""
    torch.manual_seed(3)
    labels = LABELS if labels is None else labels
    config = transformers.ViTConfig(**VIT, image_size=size, hidden_dropout_prob=0.3, id2label=labels)
    model = transformers.ViTForImageClassification(config).eval()
    nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder)
    prepared = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "size": {"height": size, "width": size}}
    transformers.ViTImageProcessor(**{**prepared, **processor}).save_pretrained(folder)
    return model


def column(values: Any) -> torch.Tensor:
    return torch.tensor(values).view(1, 3, 1, 1)


def task_of(teacher: str, student: nn.Module, *words: str, names: list[str] = NAMES) -> Any:
    args = train_parser().parse_args(["DIR", "--teacher", teacher, *words])
    return build_task(args, student, nn.CrossEntropyLoss(), names, CONFIG)


def seen_by(images: torch.Tensor, size: int, mean: Any = (0.1, 0.2, 0.3), std: Any = (0.5, 0.6, 0.7)) -> torch.Tensor:
    pixels = images * column(CONFIG["std"]) + column(CONFIG["mean"])
    normalised = (pixels - column(mean)) / column(std)
    return F.interpolate(normalised, size, mode="bicubic", antialias=True)


@pytest.mark.parametrize("prefix", ["", "transformers:"])
def test_the_loss_of_logits(tmp_path: Path, prefix: str) -> None:
    theirs = save_vit(tmp_path / "vit")
    student, images, labels = small_model().eval(), torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    words = ("--distill-weight", "0.7", "--task-weight", "0.4", "--distill-temperature", "3")
    task = task_of(f"{prefix}{tmp_path / 'vit'}", student, *words)
    found = task(images, labels)["loss"].item()
    with torch.no_grad():
        logits = theirs(pixel_values=seen_by(images, 12)).logits[:, [1, 2, 0]]  # blue, green, red by their names
    ours = student(images)
    target = logits.div(3).softmax(1)
    divergence = (target * (target.log() - ours.div(3).log_softmax(1))).sum(1).mean() * 9
    wanted = 0.4 * F.cross_entropy(ours, labels) + 0.7 * divergence
    assert found == pytest.approx(wanted.item(), rel=1e-6)


def test_the_loss_is_that_of_timms_task(tmp_path: Path) -> None:
    theirs = save_vit(tmp_path / "vit", {0: "blue", 1: "green", 2: "red"}, size=16)

    class Logits(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = theirs(pixel_values=x).logits
            return logits

    student, images, labels = small_model().eval(), torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    ours = task_of(str(tmp_path / "vit"), student, "--distill-temperature", "2")
    student.pretrained_cfg = CONFIG  # type: ignore[assignment]
    teacher = Logits()
    teacher.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}  # type: ignore[assignment]
    timms = LogitDistillationTask(
        *(student, teacher, nn.CrossEntropyLoss()),
        **{"distill_loss_weight": 1.0, "task_loss_weight": 1.0, "temperature": 2.0, "verbose": False},
    )
    assert ours(images, labels)["loss"].item() == pytest.approx(timms(images, labels)["loss"].item(), rel=1e-6)


def tower(kind: str) -> Any:
    """A small model without or with a classifier, and its features for an image."""
    torch.manual_seed(5)
    if kind == "dinov2":
        config = transformers.Dinov2Config(**{**VIT, "image_size": 12})
        return transformers.Dinov2Model(config), lambda model, x: model(pixel_values=x).pooler_output
    if kind == "resnet":
        config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic")
        return transformers.ResNetModel(config), lambda model, x: model(pixel_values=x).pooler_output.flatten(1)
    if kind == "convnext":
        config = transformers.ConvNextConfig(hidden_sizes=[4, 6], depths=[1, 1], num_stages=2, num_labels=7)
        model = transformers.ConvNextForImageClassification(config)
        return model, lambda model, x: model.convnext(pixel_values=x).pooler_output
    if kind == "no pooler":
        model = transformers.ViTModel(transformers.ViTConfig(**VIT, image_size=12), add_pooling_layer=False)
        return model, lambda model, x: model(pixel_values=x).last_hidden_state.mean(1)
    text = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    text |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = transformers.CLIPConfig(text_config=text, vision_config={**VIT, "image_size": 12}, projection_dim=5)

    def of_clip(model: Any, x: torch.Tensor) -> torch.Tensor:
        vector: torch.Tensor = model.visual_projection(model.vision_model(pixel_values=x).pooler_output)
        return vector

    return transformers.CLIPModel(config), of_clip


@pytest.mark.parametrize("kind", ["dinov2", "resnet", "convnext", "no pooler", "clip"])
def test_the_loss_of_features(tmp_path: Path, kind: str) -> None:
    model, features = tower(kind)
    model.eval().save_pretrained(tmp_path / "tower")
    size = {"shortest_edge": 12} if kind == "convnext" else {"height": 12, "width": 12}
    processor = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "size": size}
    processor["image_processor_type"] = "ConvNextImageProcessor" if kind == "convnext" else "ViTImageProcessor"
    (tmp_path / "tower/preprocessor_config.json").write_text(json.dumps(processor))
    student, images, labels = small_model().eval(), torch.randn(2, 3, 16, 16), torch.tensor([0, 1])
    torch.manual_seed(9)
    task = task_of(str(tmp_path / "tower"), student, "--distill", "features")
    with torch.no_grad():
        wanted = features(model, seen_by(images, 12))
    ours = student.forward_head(student.forward_features(images), pre_logits=True)
    projection = task.trainable_module.projection
    ours = ours if projection is None else projection(ours)
    loss = F.mse_loss(ours, wanted) + F.cross_entropy(student(images), labels)
    assert task(images, labels)["loss"].item() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("processor", "mean", "std"),
    [
        ({}, [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]),
        ({"do_normalize": False}, [0, 0, 0], [1, 1, 1]),
        ({"rescale_factor": 2 / 255}, [0.05, 0.1, 0.15], [0.25, 0.3, 0.35]),
        ({"do_rescale": False}, [0.1 / 255, 0.2 / 255, 0.3 / 255], [0.5 / 255, 0.6 / 255, 0.7 / 255]),
    ],
)
def test_its_own_normalisation(tmp_path: Path, processor: dict[str, Any], mean: list[float], std: list[float]) -> None:
    save_vit(tmp_path, **processor)
    found = open_transformers(str(tmp_path), torch.device("cpu"))
    assert found.config["mean"] == pytest.approx(mean) and found.config["std"] == pytest.approx(std)
    assert found.config["input_size"] == (3, 12, 12) and list(found.class_names or ()) == list(LABELS.values())


def test_without_an_image_processor(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_vit(tmp_path, {index: f"LABEL_{index}" for index in range(3)})
    for file in tmp_path.glob("*processor*"):
        file.unlink()
    found = open_transformers(str(tmp_path), torch.device("cpu"))
    assert found.config["input_size"] == (3, 12, 12) and found.class_names is None
    assert found.config["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert any(record.levelname == "WARNING" for record in caplog.records)


def test_what_is_a_folder_of_transformers(tmp_path: Path) -> None:
    save_vit(tmp_path / "vit")
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm/config.json").write_text('{"architecture": "resnet18", "model_type": "timm"}')
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours/config.json").write_text('{"model_type": "davit"}')
    assert named_for_transformers(str(tmp_path / "vit")) == str(tmp_path / "vit")
    assert named_for_transformers("transformers:owner/name") == "owner/name"
    for other in ("timm", "ours", "none"):
        assert named_for_transformers(str(tmp_path / other)) is None


@pytest.mark.parametrize("words", ["--distill logits", "--distill token", ""])
def test_teachers_that_do_not_fit(pictures: Path, tmp_path: Path, words: str) -> None:
    save_vit(tmp_path / "four", {index: f"LABEL_{index}" for index in range(4)})
    model, _ = tower("dinov2")
    model.save_pretrained(tmp_path / "tower")
    for name in ("four", "tower", "transformers:", "transformers:/no/such/folder"):
        run_here(pictures, *SHORT, "--teacher", name, *words.split(), cwd=tmp_path, status=2)
    assert not (tmp_path / "runs").exists()


def test_weights_that_are_lacking_are_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bare = transformers.ViTModel(transformers.ViTConfig(**VIT, image_size=12))
    bare.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["ViTForImageClassification"]}))
    with pytest.raises(ValueError, match="classifier"):
        open_transformers(str(tmp_path), torch.device("cpu"))


@pytest.mark.parametrize("how", ["logits", "features"])
def test_a_run_resumes_to_the_bit_and_leaves_the_teacher(pictures: Path, tmp_path: Path, how: str) -> None:
    save_vit(tmp_path / "vit")
    before = digest_of(task_of(str(tmp_path / "vit"), small_model()))
    words = [*SHORT, "--teacher", "vit", "--distill", how, "--model-ema", "--epochs", "2"]
    run_here(pictures, *words, "--experiment", "whole", cwd=tmp_path)
    run_here(pictures, *words, "--stop-epoch", "1", cwd=tmp_path)
    done = run_here(pictures, *words, "--auto-resume", cwd=tmp_path)
    states = [tmp_path / "runs" / name / "last.pth.tar" for name in ("whole", "a")]
    assert weights_hash(states[0]) == weights_hash(states[1])
    assert read_state(states[0])["teacher"] == read_state(states[1])["teacher"] == before
    assert "others" not in done.stderr


@pytest.mark.long
@pytest.mark.parametrize("how", ["logits", "features"])
def test_killed_under_amp_with_accumulation_and_ema(pictures: Path, tmp_path: Path, how: str) -> None:
    save_vit(tmp_path / "vit")
    words = [*SHORT, "--teacher", str(tmp_path / "vit"), "--distill", how, "--model-ema", "--model-ema-decay", "0.9"]
    words += ["--batch-size", "4", "--grad-accum-steps", "2", "--amp", "--amp-dtype", "bfloat16", "--epochs", "4"]
    words += ["--recovery-interval", "1"]
    run(train_command(pictures, *words, "--experiment", "whole"), tmp_path)
    state = tmp_path / "runs/a/last.pth.tar"
    for _ in range(2):
        before = state.stat().st_mtime_ns if state.exists() else 0
        command = train_command(pictures, *words, "--auto-resume")
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 240
        while not (state.exists() and state.stat().st_mtime_ns > before) and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    run(train_command(pictures, *words, "--auto-resume"), tmp_path)
    whole = tmp_path / "runs/whole/last.pth.tar"
    assert weights_hash(whole) == weights_hash(state)
    projections = [read_state(file)["projection"] for file in (whole, state)]
    assert all(torch.equal(tensor, projections[1][name]) for name, tensor in projections[0].items())
    assert read_state(whole)["teacher"] == read_state(state)["teacher"]
    shutil.rmtree(tmp_path / "runs")
