"""Run the probe: the same answers as scikit-learn's, for data of any form, several models, and what is wrong."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

import davit
from davit.data import write_digits
from davit.engine import features, load_model
from davit.engine.records import wilson
from davit.probe.flags import probe_parser
from davit.probe.places import read_places
from tests.forms import FORMS
from tests.predict.conftest import MODEL_KWARGS
from tests.probe.conftest import CLASSES, Outcome, coloured, features_of

Probe = Callable[..., Outcome]


def test_neighbours_equal_scikit_learns_picture_by_picture(
    probe: Probe, pictures: Path, checkpoint: Path, model: torch.nn.Module, tmp_path: Path
) -> None:
    words = ("--methods", "knn", "--k", 3, "--predictions", "p.csv", "--format", "json")
    done = probe(checkpoint, pictures, *words)
    train, targets, _ = features_of(model, pictures / "train")
    test, classes, names = features_of(model, pictures / "val")
    expected = KNeighborsClassifier(3, metric="cosine").fit(train, targets).predict(test).tolist()
    with (tmp_path / "p.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["file"] for row in rows] == names
    assert [row["class"] for row in rows] == classes
    assert [row[f"{checkpoint} knn"] for row in rows] == expected
    (row,) = done.rows
    correct = sum(a == b for a, b in zip(expected, classes, strict=True))
    assert (done.status, row["correct"], row["n"], row["n_train"]) == (0, correct, 30, 48)
    assert row["top1"] == pytest.approx(100 * correct / 30)
    assert (row["top1_low"], row["top1_high"]) == pytest.approx(tuple(100 * end for end in wilson(correct, 30)))
    assert (row["model"], row["checkpoint"], row["setting"], row["skipped"]) == (
        "DaViT_nano",
        str(checkpoint),
        "k=3",
        0,
    )


@pytest.mark.parametrize("form", FORMS)
def test_data_of_any_form_give_the_same_figures(
    probe: Probe, pictures: Path, checkpoint: Path, tmp_path: Path, form: str
) -> None:
    other = FORMS[form](pictures, tmp_path / form)
    words = ("--methods", "knn", "logistic", "--k", 5, "--format", "json")
    ours, theirs = (probe(checkpoint, place, *words).rows for place in (pictures, other))
    assert [row["correct"] for row in ours] == [row["correct"] for row in theirs]


def test_batches_of_any_size_give_the_same(
    pictures: Path, checkpoint: Path, model: torch.nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _, _ = features_of(model, pictures / "val")
    loaded = davit.load(checkpoint)
    dataset = davit.data.open_dataset(pictures, "val")  # type: ignore[attr-defined]
    dataset.transform = loaded.transform
    for size, workers in ((1, 0), (7, 0), (1000, 2)):
        monkeypatch.setattr(features, "WORKERS_FROM", 0)
        found = features.extract_features(
            loaded.model,
            dataset,
            device=torch.device("cpu"),
            precision=loaded._precision,
            batch_size=size,
            workers=workers,
        )
        np.testing.assert_allclose(found.vectors_NC, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
        assert found.positions_N.tolist() == list(range(30)) and found.vectors_NC.dtype == np.float32
        assert found.targets_N.tolist() == [number for number in range(3) for _ in range(10)]


def test_several_models_make_one_table(
    probe: Probe, pictures: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Published weights are stood for by random ones, as nothing is fetched here."""
    create = load_model.create_model
    monkeypatch.setattr(load_model, "create_model", lambda name, pretrained=False, **given: create(name, **given))
    words = ("--img-size", 32, "--methods", "knn", "logistic", "--results-file", "all.json")
    done = probe(
        checkpoint, "test_resnet.r160_in1k", pictures, "--model", "test_vit.r160_in1k", "--pretrained", *words
    )
    assert (done.status, len(done.out.splitlines())) == (0, 7)
    done = probe(checkpoint, pictures, "--model", "test_resnet", "test_efficientnet", "--pretrained", *words)
    assert done.status == 0
    lines = done.out.splitlines()
    assert len(lines) == 7 and [line.split()[2] for line in lines[1:4]] == ["k-NN"] * 3
    accuracies = [float(line.split()[-6]) for line in lines[1:4]]
    assert accuracies == sorted(accuracies, reverse=True)
    again = probe("test_efficientnet", pictures, *words[:2], "--methods", "knn", "--format", "csv")
    (row,) = csv.DictReader(again.out.splitlines())
    assert (row["weights"], row["checkpoint"], row["features"]) == ("published", "", "256")


def test_checkpoints_of_timms_models(probe: Probe, pictures: Path, tmp_path: Path) -> None:
    """With weights alone, with a head for some classes or without one."""
    network = timm.create_model("test_resnet", num_classes=5).eval()
    whole, headless = network.state_dict(), timm.create_model("test_resnet", num_classes=0).state_dict()
    torch.save(whole, tmp_path / "whole.pth")
    torch.save({name: whole[name] for name in headless}, tmp_path / "headless.pth")
    words = ("--model", "test_resnet", "--img-size", 32, "--methods", "knn", "--k", 5, "--format", "json")
    done = [probe(tmp_path / name, pictures, *words) for name in ("whole.pth", "headless.pth")]
    assert [one.status for one in done] == [0, 0]
    assert done[0].rows[0]["correct"] == done[1].rows[0]["correct"]
    assert probe(tmp_path / "whole.pth", pictures).status == 2  # does not tell its model


def test_one_of_several_models_that_fails(probe: Probe, pictures: Path, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.pth").write_bytes(b"no checkpoint")
    done = probe(checkpoint, tmp_path / "broken.pth", pictures, "--methods", "knn", "--format", "json")
    assert done.status == 1
    assert [("error" in row, row["checkpoint"]) for row in done.rows] == [
        (False, str(checkpoint)),
        (True, str(tmp_path / "broken.pth")),
    ]
    assert probe(checkpoint, tmp_path / "broken.pth", pictures, "--methods", "knn").status == 1
    assert probe(tmp_path / "broken.pth", pictures).status == 2


def test_a_picture_that_cannot_be_read_is_named(
    probe: Probe, pictures: Path, checkpoint: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(pictures, tmp_path / "data")
    (root / "train/red/3.png").write_bytes(b"\x89PNG")
    (root / "val/blue/2.png").write_bytes(b"")
    words = (checkpoint, root, "--methods", "knn", "--format", "json", "--predictions", "p.csv")
    done = probe(*words)
    assert done.status == 1
    assert "red/3.png" in done.err and "blue/2.png" in done.err
    assert (done.rows[0]["n_train"], done.rows[0]["n"], done.rows[0]["skipped"]) == (47, 29, 2)
    with (tmp_path / "p.csv").open(newline="") as stream:
        assert [row["file"] for row in csv.DictReader(stream) if not row[f"{checkpoint} knn"]] == ["blue/2.png"]
    assert probe(*words, "--skip-bad-images").status == 0
    for file in root.glob("val/*/*.png"):
        file.write_bytes(b"")
    assert probe(*words).status == 2


def test_grey_pictures_and_those_of_sixteen_bits(probe: Probe, checkpoint: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        for number, name in enumerate(("dark", "light")):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(4):
                values = draw.integers(20_000 + 25_000 * number, 40_000 + 25_000 * number, (16, 16)).astype(np.uint16)
                picture = Image.fromarray(values) if i % 2 else Image.fromarray((values >> 8).astype(np.uint8))
                picture.save(tmp_path / "data" / split / name / f"{i}.png")
    done = probe(checkpoint, tmp_path / "data", "--format", "json")
    assert done.status == 0 and min(row["correct"] for row in done.rows) >= 7


@pytest.mark.parametrize("methods", [("knn",), ("logistic",), ("linear",)])
def test_a_single_class_is_refused(probe: Probe, checkpoint: Path, tmp_path: Path, methods: tuple[str, ...]) -> None:
    for split in ("train", "val"):
        (tmp_path / "data" / split / "one").mkdir(parents=True)
        for i in range(3):
            coloured(0, np.random.default_rng(i)).save(tmp_path / "data" / split / "one" / f"{i}.png")
    assert probe(checkpoint, tmp_path / "data", "--methods", *methods).status == 2


def test_one_class_that_can_be_read_is_refused(probe: Probe, pictures: Path, checkpoint: Path, tmp_path: Path) -> None:
    root = shutil.copytree(pictures, tmp_path / "data")
    for name in CLASSES[1:]:
        for file in (root / "train" / name).iterdir():
            file.write_bytes(b"")
    done = probe(checkpoint, root, "--methods", "knn")
    assert done.status == 2 and "blue" in done.err


@pytest.mark.parametrize(
    "words",
    [
        ("CHECKPOINT", "DATA", "--k", "49"),
        ("CHECKPOINT", "DATA", "--k", "0"),
        ("CHECKPOINT", "DATA", "--methods", "svm"),
        ("CHECKPOINT", "DATA", "--train-split", "val"),
        ("CHECKPOINT", "DATA", "--results-file", "nowhere/r.csv"),
        ("CHECKPOINT", "DATA", "--predictions", "DATA"),
        ("CHECKPOINT", "DATA", "--device", "abacus"),
        ("CHECKPOINT", "DATA/nothing"),
        ("CHECKPOINT",),
        ("DATA",),
        (),
        ("resnet_18x", "DATA"),
        ("CHECKPOINT", "DATA", "--model", "test_vit", "test_resnet"),
    ],
)
def test_a_mistake_ends_with_status_2(probe: Probe, pictures: Path, checkpoint: Path, words: tuple[str, ...]) -> None:
    places = {"CHECKPOINT": str(checkpoint), "DATA": str(pictures), "DATA/nothing": str(pictures / "nothing")}
    done = probe(*(places.get(word, word) for word in words))
    assert (done.status, done.out) == (2, "")
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("FILE DATA", [(None, "FILE")]),
        ("FILE DATA --model test_vit", [("test_vit", "FILE")]),
        ("FILE DATA --model test_vit --pretrained", [(None, "FILE"), ("test_vit", None)]),
        (
            "FILE DATA --pretrained --model test_vit test_resnet",
            [(None, "FILE"), ("test_vit", None), ("test_resnet", None)],
        ),
        ("test_vit test_vit FILE DATA", [("test_vit", None), (None, "FILE")]),
        ("--pretrained DATA --model test_vit --model test_resnet", [("test_vit", None), ("test_resnet", None)]),
        ("--model test_vit DATA", [("test_vit", None)]),
        ("--model test_vit test_resnet DATA --pretrained", [("test_vit", None), ("test_resnet", None)]),
        ("hf-hub:owner/name DATA", [(None, "hf-hub:owner/name")]),
        (
            "DaViT_tiny vit_small_patch14_dinov2.lvd142m DATA",
            [("DaViT_tiny", None), ("vit_small_patch14_dinov2.lvd142m", None)],
        ),
    ],
)
def test_which_models_and_data_are_meant(
    words: str, expected: list[tuple[Any, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").touch()
    requests, data = read_places(probe_parser().parse_args(words.split()))
    assert data == "DATA"
    assert [(one.model, str(one.checkpoint) if one.checkpoint else None) for one in requests] == expected


def test_the_linear_layer_learns_and_the_model_stays(
    probe: Probe, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        for number, name in enumerate(CLASSES):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for i in range(10):
                coloured(number, draw, noise=50).save(tmp_path / "data" / split / name / f"{i}.png")
    kept: list[Any] = []
    load = load_model.load_model

    def load_and_keep(*args: Any, **options: Any) -> Any:
        loaded = load(*args, **options)
        kept.append((loaded.model, {name: value.clone() for name, value in loaded.model.state_dict().items()}))
        return loaded

    monkeypatch.setattr("davit.probe.__main__.load_model", load_and_keep)
    words = ("--methods", "linear", "--epochs", 8, "--format", "json")
    one, two = (probe(checkpoint, tmp_path / "data", *words).rows[0] for _ in range(2))
    assert one["top1"] > 80 and one["correct"] == two["correct"]  # the same images in the same order
    for network, before in kept:
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_linear_layer_without_finite_features_says_so(
    probe: Probe, pictures: Path, save: Callable[..., Path]
) -> None:
    network = davit.create_model("DaViT_nano", num_classes=3, **MODEL_KWARGS)
    state = {name: torch.full_like(value, torch.nan) for name, value in network.state_dict().items()}
    done = probe(save(state_dict=state), pictures, "--methods", "linear")
    assert done.status == 2 and "finite" in done.err


def test_too_little_memory_is_said_beforehand(
    probe: Probe, pictures: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "_MUCH", 100)
    done = probe(checkpoint, pictures, "--methods", "knn")
    assert done.status == 0 and "GB of memory" in done.err
    monkeypatch.setattr(features, "free_memory", lambda: 100)
    assert probe(checkpoint, pictures, "--methods", "knn").status == 2
    monkeypatch.setattr(features, "free_memory", lambda: None)  # a machine that does not tell
    assert probe(checkpoint, pictures, "--methods", "knn").status == 0


@pytest.mark.long
def test_the_digits_take_less_than_a_minute(
    probe: Probe, tmp_path: Path, save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By random weights; the time that the rows name, which is that of the processor alone where none else runs."""
    torch.manual_seed(0)
    network = davit.create_model("DaViT_nano", num_classes=10)
    file = save(state_dict=network.state_dict(), args={"model": "DaViT_nano"}, class_names=list("0123456789"))
    done = probe(file, write_digits(tmp_path / "digits"), "--format", "json")
    knn, logistic = done.rows
    assert (knn["n_train"], knn["n"]) == (1437, 360)
    assert min(knn["top1"], logistic["top1"]) > 90
    assert knn["seconds"] + logistic["seconds"] < 60
