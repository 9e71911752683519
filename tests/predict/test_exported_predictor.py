"""Check that an exported model stands where its checkpoint does."""

import csv
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import davit
from davit.app.page import answer_file
from davit.app.readers import ClassifierReader
from davit.engine.exported import ExportedNetwork
from davit.engine.load_model import ModelOptions, load_model
from davit.engine.validate import main as validate
from davit.predict import Predictor
from tests.predict.conftest import CLASSES, noise

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
from davit.export import ExportOptions, export

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def exports(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoint as plain.onnx, bytes.onnx (which normalises itself) and features.onnx."""
    folder = tmp_path_factory.mktemp("exports")
    export(checkpoint, folder / "plain.onnx", ExportOptions(check=False))
    export(checkpoint, folder / "bytes.onnx", ExportOptions(check=False, preprocess="uint8"))
    export(checkpoint, folder / "features.onnx", ExportOptions(check=False, task="features"))
    return folder


@pytest.mark.parametrize("name", ["plain.onnx", "bytes.onnx"])
def test_predictions_are_the_checkpoints(exports: Path, loaded: Predictor, name: str) -> None:
    exported = davit.load(exports / name)
    assert exported.class_names == tuple(CLASSES)
    for seed, size in enumerate([(16, 16), (40, 23), (9, 90)]):
        ours, wanted = exported.predict(noise(seed, size)), loaded.predict(noise(seed, size))
        assert [guess.name for guess in ours.guesses] == [guess.name for guess in wanted.guesses]
        assert torch.allclose(ours.probabilities, wanted.probabilities, atol=1e-4)


def test_predict_prints_the_checkpoints_lines(exports: Path, predict: Callable, folder: Path) -> None:  # type: ignore[type-arg]
    wanted = predict(folder, "--format", "csv")
    found = predict(folder, "--format", "csv", "--checkpoint", exports / "plain.onnx")
    assert found.status == wanted.status == 0
    rows = [list(csv.reader(one.out.splitlines())) for one in (found, wanted)]
    assert len(rows[0]) == 10
    for ours, theirs in zip(*rows, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one == other or float(one) == pytest.approx(float(other), abs=1e-4)


def test_features(exports: Path, loaded: Predictor) -> None:
    exported = davit.load(exports / "features.onnx")
    pictures = [noise(seed) for seed in range(3)]
    assert torch.allclose(exported.embed(pictures), loaded.embed(pictures), atol=1e-4)
    with pytest.raises(ValueError):
        exported.predict(pictures)
    with pytest.raises(ValueError):
        davit.load(exports / "plain.onnx").embed(pictures)


def test_embed_command(exports: Path, folder: Path, tmp_path: Path) -> None:
    from davit.embed.__main__ import main
    from davit.embed.vectors import read_embeddings

    assert main([str(exports / "features.onnx"), str(folder), str(tmp_path / "out.npz")]) == 0
    found = read_embeddings(tmp_path / "out.npz")
    assert len(found) == 9
    other = load_model(None, exports / "plain.onnx", ModelOptions(), CPU, takes_exported=True)
    assert found.metadata["weights_sha256"]
    assert bytes(other.model.file_sha256.tolist()).hex() not in found.metadata["weights_sha256"]


def test_validate(exports: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index, name in enumerate(CLASSES * 4):
        place = tmp_path / "data" / "val" / name
        place.mkdir(parents=True, exist_ok=True)
        noise(index, (20, 16)).save(place / f"{index}.png")
    rows = []
    for file in (checkpoint, exports / "plain.onnx", exports / "bytes.onnx"):
        assert validate([str(tmp_path / "data"), "--checkpoint", str(file), "-j", "0", "--json"]) == 0
        rows.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    for row in rows[1:]:
        assert row["runtime"] == "onnxruntime"
        for name in ("top1", "top5", "count", "param_count", "model", "weights", "crop_pct"):
            assert row[name] == rows[0][name]
        assert row["loss"] == pytest.approx(rows[0]["loss"], abs=1e-4)
    assert validate([str(tmp_path / "data"), "--checkpoint", str(exports), "--workers", "0"]) == 1  # features cannot


@pytest.mark.long
def test_validate_in_two_processes(exports: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each process opens the file; every image of an odd number counts once."""
    for index in range(11):
        place = tmp_path / "val" / CLASSES[index % len(CLASSES)]
        place.mkdir(parents=True, exist_ok=True)
        noise(index, (20, 16)).save(place / f"{index}.png")
    words = [str(tmp_path), "--checkpoint", str(exports / "plain.onnx"), "--workers", "0", "--batch-size", "2"]
    assert validate(words) == 0
    alone = json.loads(capsys.readouterr().out.splitlines()[-1])
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "davit", "validate"]
    done = subprocess.run(
        [sys.executable, *torchrun, *words, "--device", "cpu"],
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
        env={**os.environ, "PYTHONPATH": str(Path(davit.__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    )
    together = json.loads(done.stdout.splitlines()[-1])
    assert (alone["processes"], together["processes"]) == (1, 2)
    assert together["runtime"] == "onnxruntime"
    assert together["count"] == alone["count"] == 11
    assert together["top1"] == alone["top1"]
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5)


def test_an_exported_file_is_opened_once(exports: Path, monkeypatch: pytest.MonkeyPatch, loaded: Predictor) -> None:
    import onnxruntime

    opened = []

    class Session(onnxruntime.InferenceSession):  # type: ignore[misc]
        def __init__(self, *args: object, **options: object) -> None:
            opened.append(args[0])
            super().__init__(*args, **options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    predictor = davit.load(exports / "plain.onnx", threads=1)
    assert opened == [str(exports / "plain.onnx")]
    assert predictor.program is not None and predictor.program.threads == 1
    assert predictor.class_names == loaded.class_names


@pytest.mark.parametrize(
    "options",
    [
        {"amp": True},
        {"amp_dtype": "bfloat16"},
        {"ema": "never"},
        {"model_kwargs": {"window_size": 4}},
        {"torchcompile": "inductor"},
        {"channels_last": True},
        {"test_time_pool": True},
        {"num_classes": 7},
        {"in_chans": 4},
    ],
)
def test_options_that_cannot_apply_are_named(exports: Path, options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        davit.load(exports / "plain.onnx", **options)


def test_other_models_name(exports: Path) -> None:
    with pytest.raises(ValueError):
        davit.load(exports / "plain.onnx", "DaViT_tiny")
    davit.load(exports / "plain.onnx", "DaViT_nano", num_classes=len(CLASSES))


def test_preparation_can_change(exports: Path, loaded: Predictor, checkpoint: Path) -> None:
    picture = noise(4, (50, 40))
    ours = davit.load(exports / "plain.onnx", img_size=24, crop_pct=0.8, no_test_pool=True, temperature=2.0)
    wanted = davit.load(checkpoint, img_size=24, crop_pct=0.8, no_test_pool=True, temperature=2.0)
    assert torch.allclose(ours.predict(picture).probabilities, wanted.predict(picture).probabilities, atol=1e-4)
    with pytest.raises(ValueError):
        davit.load(exports / "bytes.onnx", mean=[0.5])


def test_fitted_temperature_is_of_the_file(exports: Path) -> None:
    one, other = (load_model(None, exports / name, ModelOptions(), CPU, takes_exported=True) for name in
                  ("plain.onnx", "bytes.onnx"))  # fmt: skip
    from davit.engine.calibration import fingerprint

    assert fingerprint(one.model) != fingerprint(other.model)


def test_weights_cannot_be_reached(exports: Path) -> None:
    with pytest.raises(ValueError):
        load_model(None, exports / "plain.onnx", ModelOptions(), CPU)


def test_page_shows_classes_and_says_what_is_missing(exports: Path, tmp_path: Path) -> None:
    from davit.visualize.figure import draw_picture

    noise(0).save(tmp_path / "a.png")
    for name in ("plain.onnx", "bytes.onnx"):
        predictor = davit.load(exports / name)
        answer = answer_file(ClassifierReader(predictor), str(tmp_path / "a.png"))
        assert not isinstance(answer, str)
        assert {one["class"] for one in answer.found} == set(CLASSES)
        assert not answer.maps
        assert answer.picture.size == (16, 16)
        with pytest.raises(ValueError):
            draw_picture(predictor, tmp_path / "a.png", tmp_path / "b.png")


class _Fixed:
    """A program that takes four images at a time, and gives their means."""

    path = Path("fixed.onnx")

    def __init__(self, axes: dict[str, tuple[int, int | None]], folder: Path) -> None:
        from davit.runtimes import Metadata

        self.path = folder / "fixed.onnx"
        self.path.write_bytes(b"x")
        self.metadata = Metadata("classification", "m", (3, 2, 2), ("logits",), ("a", "b"), axes=axes)
        self.seen: list[int] = []

    def __call__(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        self.seen.append(len(images))
        return (images.mean((2, 3))[:, :2],)


def test_batches_are_cut_to_what_a_program_takes(tmp_path: Path) -> None:
    images = torch.randn(10, 3, 2, 2)
    for axes, seen in (({"batch": (4, 4)}, [4, 4, 4]), ({"batch": (1, 1)}, [1] * 10), ({}, [10])):
        program = _Fixed(axes, tmp_path)
        outputs = ExportedNetwork(program)(images)  # type: ignore[arg-type]
        assert torch.equal(outputs, images.mean((2, 3))[:, :2])
        assert program.seen == seen


def test_gpu_is_said(caplog: pytest.LogCaptureFixture) -> None:
    from davit.engine.exported import say_device

    with caplog.at_level(logging.INFO):
        say_device(Path("a.onnx"), torch.device("cuda"))
        say_device(Path("b.onnx"), CPU)
    assert len(caplog.records) == 1
