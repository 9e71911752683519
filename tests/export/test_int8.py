"""Check quantization after training: what is chosen, what is measured, and when nothing is written."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import davit

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
from davit.engine.load_model import ModelOptions, load_model
from davit.export import ExportOptions, export
from davit.export.int8 import DropError, quantize
from davit.export.int8.measure import calibration_images, calibration_places
from davit.export.options import Int8Options
from davit.runtimes import open_exported

KWARGS = {"embed_dims": [16, 32], "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
CLASSES = ["dark", "light"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark and light images."""
    root, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 8)):
        for index, name in enumerate(CLASSES * count):
            place = root / split / name
            place.mkdir(parents=True, exist_ok=True)
            pixels = draw.integers(0, 128, (40, 40, 3)) + 127 * (name == "light")
            Image.fromarray(pixels.astype(np.uint8)).save(place / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("float")
    torch.manual_seed(0)
    model = davit.create_model("DaViT_nano", num_classes=2, **KWARGS)
    args = {"model": "DaViT_nano", "img_size": 40, "model_kwargs": KWARGS, "crop_pct": 1.0}
    torch.save({"state_dict": model.state_dict(), "args": args, "class_names": CLASSES}, folder / "model.pth.tar")
    return export(folder / "model.pth.tar", folder / "model.onnx", ExportOptions(check=False)).path


def _difference(one: Path, other: Path, data: Path) -> float:
    """How far the logits of training images lie apart, relative to their norm."""
    cpu = torch.device("cpu")
    models = [load_model(None, path, ModelOptions(), cpu, takes_exported=True) for path in (one, other)]
    images = calibration_images(models[0], str(data), 12, seed=3)
    wanted, found = (model.classifier(images) for model in models)
    return float((found - wanted).norm() / wanted.norm())


def _largest_weight(file: Path) -> int:
    """The largest of the 8-bit weights of a program."""
    if file.suffix == ".xml":
        import openvino

        model = openvino.Core().read_model(str(file))
        nodes = (one for one in model.get_ops() if one.get_type_name() == "Constant")
        weights = [one.data for one in nodes if one.get_element_type() == openvino.Type.i8 and one.data.size > 64]
    else:
        import onnx

        kept = (one for one in onnx.load(str(file)).graph.initializer if one.data_type == onnx.TensorProto.INT8)
        weights = [onnx.numpy_helper.to_array(one) for one in kept if len(one.dims) > 1]
    return max(int(np.abs(one.astype(int)).max()) for one in weights)


def test_int8_of_onnx(exported: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "small.onnx"
    metadata = quantize(exported, out, Int8Options(str(data), max_drop=100, calibration=10))
    opened = open_exported(out)
    assert opened.metadata == metadata
    assert metadata.precision == "int8"
    facts = dict(metadata.int8 or {})
    assert facts["calibration"] == 10
    assert facts["pictures"] == 16
    assert facts["bytes"] == pytest.approx(out.stat().st_size, rel=0.1)
    assert facts["groups"]["linear layers"]["int8"]
    assert not facts["groups"]["position encodings"]["int8"]
    assert out.stat().st_size < exported.stat().st_size
    assert 0 < _difference(exported, out, data) < 0.1
    assert 32 < _largest_weight(out) <= 64  # no sum overflows where the processor has no VNNI
    assert opened(torch.randn(2, 3, 21, 40))[0].shape == (2, 2)  # any size still
    again = quantize(exported, tmp_path / "again.onnx", Int8Options(str(data), max_drop=100, calibration=10))
    assert dict(again.int8 or {})["groups"] == facts["groups"]


def test_too_large_a_drop_leaves_no_file(exported: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(DropError) as raised:
        quantize(exported, tmp_path / "small.onnx", Int8Options(str(data), max_drop=-1, calibration=4))
    assert raised.value.exit_status == 3
    assert not list(tmp_path.iterdir())


def test_command(exported: Path, data: Path, tmp_path: Path) -> None:
    from davit.export.__main__ import main

    words = [str(exported.with_name("model.pth.tar")), str(tmp_path / "small.onnx"), "--int8", str(data)]
    assert main([*words, "--max-drop", "-1", "--calibration", "4"]) == 3
    assert not list(tmp_path.iterdir())


def test_calibration_takes_all_classes_in_turn() -> None:
    targets = [0] * 50 + [1] * 3 + [2] * 7
    places = calibration_places(targets, 9, len(targets), seed=1)
    assert sorted(targets[place] for place in places) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert places == calibration_places(targets, 9, len(targets), seed=1)
    assert places != calibration_places(targets, 9, len(targets), seed=2)
    assert len(calibration_places(None, 100, 60, seed=1)) == 60


def test_mistakes_are_told_before_the_export(
    exported: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A format without quantization, and data that are not there or have no validation images."""
    monkeypatch.setattr("davit.export.onnx.translated", None)  # nothing may come this far
    checkpoint = exported.with_name("model.pth.tar")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "train").symlink_to(data / "train")
    for name, folder in (("a.pte", data), ("a.onnx", tmp_path / "none"), ("a.onnx", tmp_path / "half")):
        with pytest.raises(ValueError):
            export(checkpoint, tmp_path / name, ExportOptions(int8=Int8Options(str(folder))))
    assert [one.name for one in tmp_path.iterdir()] == ["half"]


def test_int8_needs_a_float_classifier(data: Path) -> None:
    for wrong in ({"fp16": True}, {"task": "features"}):
        with pytest.raises(ValueError):
            ExportOptions(int8=Int8Options(str(data)), **wrong)  # type: ignore[arg-type]


@pytest.mark.long
@pytest.mark.parametrize(("suffix", "package"), [(".xml", "nncf"), (".pt2", "torchao")])
def test_int8_of_others(suffix: str, package: str, exported: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip(package)
    source, out = tmp_path / f"float{suffix}", tmp_path / f"small{suffix}"
    export(exported.with_name("model.pth.tar"), source, ExportOptions(check=False))
    metadata = quantize(source, out, Int8Options(str(data), max_drop=100, calibration=10))
    opened = open_exported(out)
    assert opened.metadata.int8 == metadata.int8
    assert opened(torch.randn(2, 3, 37, 50))[0].shape == (2, 2)
    assert 0 < _difference(source, out, data) < 0.1
    if suffix == ".xml":
        assert 32 < _largest_weight(out) <= 64
