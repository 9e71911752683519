"""Distillation: what is learnt from a teacher, and that runs with one resume to the bit."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from davit.engine.build import build_loss, build_optimizer
from davit.engine.distill import SizedTeacher, build_task, trained_by
from davit.engine.flags import train_parser
from davit.engine.run_folder import read_state
from tests.engine.runs import SHORT, run_here, small_model, weights_hash

CONFIG = {"input_size": (3, 16, 16), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
NAMES = ["blue", "green", "red"]


def flags(*words: str) -> Namespace:
    return train_parser().parse_args(["DIR", *words])


def teacher_file(folder: Path, class_names: list[str] | None = None, img_size: int = 16, **options: Any) -> Path:
    """A checkpoint as train.py writes it, of a small model with random weights."""
    model = small_model(seed=7, **options)
    noted = {"model": "DaViT_nano", "img_size": img_size, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7]}
    noted["model_kwargs"] = {name: list(value) for name, value in {"embed_dims": (8, 16), "depths": (1, 1)}.items()}
    noted["model_kwargs"] |= {"num_heads": [1, 2], "window_size": 2, **options}
    file = folder / "teacher.pth.tar"
    torch.save({"state_dict": model.state_dict(), "args": noted, "class_names": class_names or NAMES}, file)
    return file


def test_the_loss_of_logits(tmp_path: Path) -> None:
    file = teacher_file(tmp_path, ["red", "green", "blue"], img_size=24)
    words = "--distill-weight 0.7 --task-weight 0.4 --distill-temperature 3"
    args = flags("--teacher", str(file), *words.split())
    student, images, labels = small_model().eval(), torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0])
    task = build_task(args, student, nn.CrossEntropyLoss(), NAMES, CONFIG)
    assert task is not None
    found = task(images, labels)
    teacher = small_model(seed=7).eval()

    def column(values: Any) -> torch.Tensor:
        return torch.tensor(values).view(1, 3, 1, 1)

    pixels = images * column(CONFIG["std"]) + column(CONFIG["mean"])
    normalised = (pixels - column([0.1, 0.2, 0.3])) / column([0.5, 0.6, 0.7])
    seen = F.interpolate(normalised, 24, mode="bicubic", antialias=True)
    with torch.no_grad():
        theirs = teacher(seen)[:, [2, 1, 0]].div(3).log_softmax(1)
    ours = student(images)
    divergence = (theirs.exp() * (theirs - ours.div(3).log_softmax(1))).sum(1).mean() * 9
    wanted = 0.4 * F.cross_entropy(ours, labels) + 0.7 * divergence
    assert found["loss"].item() == pytest.approx(wanted.item(), rel=1e-6)
    assert torch.equal(found["output"], ours)


def test_the_loss_of_features(tmp_path: Path) -> None:
    file = teacher_file(tmp_path, img_size=16)
    student = small_model(num_classes=5).eval()
    images, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 4])
    config = {**CONFIG, "mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)}
    args = flags("--teacher", str(file), "--distill", "features")
    task = build_task(args, student, build_loss(args, None), ["a", "b", "c", "d", "e"], config)
    assert task is not None
    models = (student, small_model(seed=7).eval())
    features = [model.forward_head(model.forward_features(images), pre_logits=True) for model in models]
    wanted = F.mse_loss(*features) + build_loss(args, None)(student(images), labels)
    assert task(images, labels)["loss"].item() == pytest.approx(wanted.item(), rel=1e-6)


def test_a_teacher_of_another_shape_of_output() -> None:
    teacher = SizedTeacher(small_model(), (8, 12), [2, 0, 1])
    images = torch.randn(2, 3, 8, 12)
    assert torch.equal(teacher(images), small_model().eval()(images)[:, [2, 0, 1]])
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize(
    ("how", "more"),
    [
        ("logits", ""),
        ("features", ""),
        ("features", "--head-lr-scale 4 --layer-decay 0.75"),
        ("features", "--layer-decay 0.75"),
    ],
)
def test_a_run_with_a_teacher_resumes_to_the_bit(pictures: Path, tmp_path: Path, how: str, more: str) -> None:
    # other widths, so that features need a projection
    wider: dict[str, Any] = {"embed_dims": [8, 24], "num_heads": [1, 3]} if how == "features" else {}
    file = teacher_file(tmp_path, img_size=24, **wider)
    before = file.read_bytes()
    words = [*SHORT, "--teacher", str(file), "--distill", how, "--epochs", "3", "--model-ema", *more.split()]
    run_here(pictures, *words, "--experiment", "whole", cwd=tmp_path)
    run_here(pictures, *words, "--stop-epoch", "1", cwd=tmp_path)
    done = run_here(pictures, *words, "--auto-resume", cwd=tmp_path)
    states = [tmp_path / "runs" / name / "last.pth.tar" for name in ("whole", "a")]
    assert weights_hash(states[0]) == weights_hash(states[1])
    projections = [read_state(state)["projection"] for state in states]
    assert set(projections[0]) == ({"projection.weight", "projection.bias"} if how == "features" else set())
    assert all(torch.equal(tensor, projections[1][name]) for name, tensor in projections[0].items())
    assert file.read_bytes() == before
    alone = [*SHORT, "--epochs", "3", "--experiment", "alone"]
    run_here(pictures, *alone, cwd=tmp_path)
    assert weights_hash(tmp_path / "runs/alone/last.pth.tar") != weights_hash(states[0])
    assert "others" not in done.stderr


def test_other_weights_of_the_teacher_are_named(
    pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = teacher_file(tmp_path)
    words = [*SHORT, "--teacher", str(file), "--epochs", "2"]
    run_here(pictures, *words, "--stop-epoch", "1", cwd=tmp_path)
    state = torch.load(file, weights_only=True)
    state["state_dict"]["head.bias"] += 1
    torch.save(state, file)
    done = run_here(pictures, *words, "--auto-resume", cwd=tmp_path)
    assert "teacher" in done.stderr


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("--distill token", {}),
        ("--distill logits", {"num_classes": 4}),
        ("--distill features", {"in_chans": 1}),
        ("--distill both", {}),
    ],
)
def test_teachers_that_do_not_fit(pictures: Path, tmp_path: Path, words: str, options: dict[str, Any]) -> None:
    classes = [f"class {n}" for n in range(options.get("num_classes", 3))]
    file = teacher_file(tmp_path, classes, **options)
    run_here(pictures, *SHORT, "--teacher", str(file), *words.split(), cwd=tmp_path, status=2)
    run_here(pictures, *SHORT, "--teacher", "no_such_model", cwd=tmp_path, status=2)
    run_here(pictures, *SHORT, "--distill", "logits", cwd=tmp_path, status=2)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("words", ["", "--distill features --head-lr-scale 5 --layer-decay 0.5"])
def test_a_teacher_of_timm_with_batch_norms(pictures: Path, tmp_path: Path, words: str) -> None:
    """Its counts of batches have no dimension, and its file notes nothing but its tensors."""
    torch.manual_seed(1)
    file = tmp_path / "teacher.pth"
    torch.save(
        {"arch": "test_resnet", "state_dict": timm.create_model("test_resnet", num_classes=3).state_dict()}, file
    )
    flags = [*SHORT, "--teacher", str(file), *words.split()]
    run_here(pictures, *flags, "--experiment", "whole", cwd=tmp_path)
    run_here(pictures, *flags, "--stop-epoch", "1", cwd=tmp_path)
    run_here(pictures, *flags, "--auto-resume", cwd=tmp_path)
    whole, parted = (tmp_path / "runs" / name / "last.pth.tar" for name in ("whole", "a"))
    assert weights_hash(whole) == weights_hash(parted)


def test_the_classifier_of_a_student_has_its_rate_beside_a_projection(tmp_path: Path) -> None:
    file = teacher_file(tmp_path, embed_dims=(8, 24), num_heads=(1, 3))
    args = flags("--teacher", str(file), "--distill", "features", "--head-lr-scale", "5")
    student = small_model()
    task = build_task(args, student, nn.CrossEntropyLoss(), NAMES, CONFIG)
    optimizer = build_optimizer(args, trained_by(task, student))
    scale = {id(p): group.get("lr_scale", 1.0) for group in optimizer.param_groups for p in group["params"]}
    scales = {name: scale[id(p)] for name, p in trained_by(task, student).named_parameters()}
    assert {name for name, found in scales.items() if found == 5.0} == {"student.head.weight", "student.head.bias"}
    assert scales["projection.weight"] == 1.0
