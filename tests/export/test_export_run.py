"""Exports compute what the checkpoint computes, say what it says, and are whole or not there."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace

import onnx
import pytest
import torch

import davit
from davit.engine.load_model import ModelOptions, load_model
from davit.export import DifferentError, ExportOptions, export
from davit.export import check as check_module
from davit.export.__main__ import main
from davit.export.classifiers import classifier_program
from davit.export.program import largest_relative
from davit.runtimes import ExportedError, format_of, is_exported, open_exported
from tests.export.conftest import NAMES

SIZES = ((1, 33, 33), (3, 61, 40), (2, 100, 47))


def ours(file, task="classification"):
    model = davit.plain(load_model(None, file, ModelOptions(), torch.device("cpu")).model)
    if task == "classification":
        return lambda x: (model(x),)
    return lambda x: (model.forward_head(model.forward_features(x), pre_logits=True),)


def assert_same(opened, wanted, sizes=SIZES, tolerance=1e-5):
    for batch, height, width in sizes:
        images = torch.randn(batch, opened.metadata.bands, height, width)
        with torch.inference_mode():
            assert largest_relative(opened(images), wanted(images)) <= tolerance


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".xml"])
def test_a_classifier_at_other_sizes_and_batches(small, exported, suffix):
    path = exported(suffix)
    opened = open_exported(path)
    assert is_exported(path)
    assert opened.output_names == ("logits",)
    assert_same(opened, ours(small))
    assert opened.metadata.format == {".onnx": "onnx", ".pt2": "pt2", ".xml": "openvino"}[suffix]


def test_the_metadata_say_what_the_checkpoint_says(small, exported):
    said = open_exported(exported(".onnx")).metadata
    assert (said.task, said.model, said.input_size) == ("classification", "DaViT_tiny", (3, 48, 64))
    assert said.class_names == tuple(NAMES)
    assert said.mean == pytest.approx((0.1, 0.2, 0.3)) and said.std == pytest.approx((0.3,) * 3)
    assert (said.crop_pct, said.interpolation) == (0.8, "bilinear")
    assert said.sha256 == hashlib.sha256(small.read_bytes()).hexdigest()
    assert said.opset == 20 and said.davit == davit.__version__ and said.licence == "apache-2.0"
    assert said.differences and max(one["difference"] for one in said.differences) <= said.tolerance == 1e-5
    sizes = {(one["batch"], one["height"], one["width"]) for one in said.differences}
    assert any(height != width for _, height, width in sizes) and any(height % 2 for _, height, _ in sizes)
    assert {batch for batch, *_ in sizes} >= {1, 2, 3}


def test_the_graph_is_one_file_with_named_axes_and_nothing_of_this_machine(exported):
    path = exported(".onnx")
    model = onnx.load(path, load_external_data=False)
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert [axis.dim_param or axis.dim_value for axis in shape] == ["batch", 3, "height", "width"]
    assert [one.name for one in model.graph.output] == ["logits"]
    assert not any(one.external_data for one in model.graph.initializer)
    assert {one.domain for one in model.opset_import} == {""}
    assert b"/davit/model.py" not in path.read_bytes() and b"site-packages" not in path.read_bytes()
    assert sorted(one.name for one in path.parent.iterdir()) == [path.name]


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2"])
def test_windows_are_as_many_as_needed_down_to_one_pixel(small, exported, suffix):
    opened = open_exported(exported(suffix))
    assert_same(opened, ours(small), ((1, 1, 1), (2, 5, 300), (1, 31, 2)))


def test_pt2_is_read_without_davit(exported):
    path = exported(".pt2")
    program = (
        "import sys, torch\n"
        f"module = torch.export.load({str(path)!r}).module()\n"
        "print(module(torch.ones(2, 3, 30, 55))[0].sum().item(), any(one.startswith('davit') for one in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True, cwd=path.parent
    )
    value, has_davit = done.stdout.split()
    (wanted,) = open_exported(path)(torch.ones(2, 3, 30, 55))
    assert has_davit == "False" and float(value) == pytest.approx(float(wanted.sum()), rel=1e-4)


def test_executorch_at_its_own_size_alone(small, tmp_path):
    done = export(small, tmp_path / "a.pte", ExportOptions(batch=2, model_options={"img_size": 40}))
    opened = open_exported(done.path)
    assert opened.runtime == "executorch" and format_of(done.path) == "executorch"
    assert_same(opened, ours(small), ((2, 40, 40),))
    with pytest.raises(ValueError, match="40"):
        opened(torch.zeros(1, 3, 40, 40))
    with pytest.raises(ValueError, match="40"):
        opened(torch.zeros(2, 3, 48, 40))


def test_core_ml_is_saved_and_says_that_it_was_not_checked(small, tmp_path):
    import coremltools

    done = export(small, tmp_path / "a.mlpackage")
    said = coremltools.models.MLModel(str(done.path), skip_model_load=True).user_defined_metadata["davit"]
    assert json.loads(said)["unchecked"] and not json.loads(said)["differences"]
    with pytest.raises(ExportedError):
        open_exported(done.path)


def test_tensorrt_needs_its_builder(small, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="trtexec"):
        export(small, tmp_path / "a.engine")
    assert not list(tmp_path.iterdir())


@pytest.mark.long
@pytest.mark.usefixtures("published_tiny")
def test_published_weights_by_name(tmp_path):
    """The command of docs/export.md."""
    assert main(["--model", "DaViT_tiny", "--pretrained", str(tmp_path / "tiny.onnx")]) == 0
    assert open_exported(tmp_path / "tiny.onnx").metadata.model == "DaViT_tiny"


@pytest.mark.parametrize("task", ["features", "pyramid"])
def test_features_and_pyramid(saved, tmp_path, task):
    file = saved(attention_types=("spatial", "channel_qk"), overlapped_patch=True)
    path = export(file, tmp_path / "a.onnx", ExportOptions(task=task)).path
    opened = open_exported(path)
    if task == "features":
        assert opened.output_names == ("features",)
        assert_same(opened, ours(file, task))
        return
    assert opened.output_names == ("c2", "c3")
    model = davit.plain(load_model(None, file, ModelOptions(), torch.device("cpu")).model)

    def wanted(images):
        maps = model.forward_stages(images)
        return tuple(torch.nn.functional.layer_norm(m, m.shape[-1:]).permute(0, 3, 1, 2) for m in maps)

    assert_same(opened, wanted)
    assert "height_4" in str(onnx.load(path).graph.output[0].type)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_bytes_in(small, tmp_path, layout):
    path = export(small, tmp_path / "a.onnx", ExportOptions(preprocess="uint8", layout=layout)).path
    opened = open_exported(path)
    images = torch.randint(256, (2, 3, 45, 70), dtype=torch.uint8)
    mean, std = (torch.tensor(getattr(opened.metadata, name)).view(-1, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        wanted = ours(small)((images / 255 - mean) / std)
    assert largest_relative(opened(images), wanted) < 1e-5
    shape = [one.dim_value for one in onnx.load(path).graph.input[0].type.tensor_type.shape.dim]
    assert shape.index(3) == (1 if layout == "NCHW" else 3)
    with pytest.raises(ValueError, match="uint8"):
        opened(images.float())


def test_bytes_are_no_values_of_more_bits(small, tmp_path):
    options = ExportOptions(preprocess="uint8", model_options={"bit_depth": 12})
    with pytest.raises(ValueError, match="bit_depth"):
        export(small, tmp_path / "a.onnx", options)


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_float16_is_half_the_size_and_takes_and_gives_float32(small, exported, tmp_path, suffix):
    done = export(small, tmp_path / f"a{suffix}", ExportOptions(fp16=True))
    opened = open_exported(done.path)
    assert opened.metadata.precision == "float16" and 1e-5 < opened.metadata.tolerance <= 0.02
    assert opened(torch.zeros(1, 3, 33, 40))[0].dtype == torch.float32
    assert_same(opened, ours(small), tolerance=0.01)
    weights, whole = (path.with_suffix(".bin") if suffix == ".xml" else path for path in (done.path, exported(suffix)))
    assert weights.stat().st_size < 0.75 * whole.stat().st_size


def test_a_program_for_one_size(small, tmp_path):
    options = ExportOptions(fixed=True, batch=3, model_options={"img_size": 56})
    opened = open_exported(export(small, tmp_path / "a.onnx", options).path)
    assert_same(opened, ours(small), ((3, 56, 56),))
    with pytest.raises(ValueError):
        opened(torch.zeros(3, 3, 56, 57))


def test_another_number_of_bands(saved, tmp_path):
    file = saved(in_chans=5)
    opened = open_exported(export(file, tmp_path / "a.onnx").path)
    assert opened.metadata.bands == 5
    assert_same(opened, ours(file))


# --- what is not written ---


class _Wrong(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, images):
        return (self.module(images)[0] * 1.001,)


def test_an_export_that_computes_something_else_is_not_written(small, tmp_path, monkeypatch, caplog):
    def other(source, options):
        program = classifier_program(source, options)
        return replace(program, reference=_Wrong(program.module))

    monkeypatch.setattr("davit.export.run.classifier_program", other)
    assert main([str(small), str(tmp_path / "a.onnx")]) == 3
    assert not list(tmp_path.iterdir())


def test_an_export_that_its_runtime_cannot_run_is_not_written(small, tmp_path, monkeypatch):
    class Broken:
        runtime = "broken"

        def __call__(self, images):
            raise RuntimeError("no such operator")

    monkeypatch.setattr(check_module, "open_exported", lambda path: Broken())
    with pytest.raises(DifferentError):
        export(small, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["{small}", "{new}.onnx", "--to", "pt2"],
        ["{small}", "{new}.xyz"],
        ["{small}", "{new}/none/a.onnx"],
        ["{small}", "{there}.onnx"],
        ["{new}.onnx"],
        ["{new}.onnx", "--pretrained"],
        ["{small}", "{new}.onnx", "--model", "DaViT_tiny", "--pretrained"],
        ["{new}.pth", "{new}.onnx"],
    ],
)
def test_mistakes(small, tmp_path, words):
    there = tmp_path / "there.onnx"
    there.write_bytes(b"mine")
    named = [word.format(small=small, new=tmp_path / "new", there=tmp_path / "there") for word in words]
    assert main(named) == 2
    assert there.read_bytes() == b"mine" and [one.name for one in tmp_path.iterdir()] == ["there.onnx"]


def test_flags_that_exclude_each_other(small, tmp_path):
    with pytest.raises(SystemExit) as caught:
        main([str(small), str(tmp_path / "a.onnx"), "--features", "--pyramid"])
    assert caught.value.code == 2


def test_overwrite_replaces_and_a_failure_leaves_what_was_there(small, tmp_path, monkeypatch):
    out = tmp_path / "a.xml"
    export(small, out)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError):
        export(small, out)
    monkeypatch.setattr("davit.export.run.check", lambda *_: (_ for _ in ()).throw(DifferentError("no")))
    with pytest.raises(DifferentError):
        export(small, out, ExportOptions(overwrite=True))
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.undo()
    export(small, out, ExportOptions(overwrite=True, task="features"))
    assert open_exported(out).metadata.task == "features"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.xml"]


def test_without_the_check_the_file_says_so(small, tmp_path, caplog):
    done = export(small, tmp_path / "a.onnx", ExportOptions(check=False))
    assert open_exported(done.path).metadata.unchecked and not done.metadata.differences
    assert any(record.levelname == "WARNING" for record in caplog.records)


def test_a_missing_library_names_the_extra(small, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "davit.export.openvino", raising=False)
    with pytest.raises(ValueError, match=r"davit-torch\[openvino\]"):
        export(small, tmp_path / "a.xml")
