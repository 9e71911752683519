"""Exported files are told from others and opened; what is foreign, damaged or hostile is refused by name."""

import io
import json
import os
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from davit.runtimes import ExportedError, Metadata, MetadataError, format_of, is_exported, open_exported
from davit.runtimes.pt2 import require_plain

SAID = Metadata("classification", "DaViT_tiny", (3, 8, 8), ("logits",), axes={"batch": (1, None), "height": (4, 16)})


def tiny_onnx(path: Path, metadata: str | None = "", external: str = "") -> Path:
    """Write a model that adds a number to its input."""
    number = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1])
    if external:
        number.data_location = TensorProto.EXTERNAL
        for key, value in (("location", external), ("offset", "0"), ("length", "4")):
            number.external_data.add(key=key, value=value)
    else:
        number.raw_data = np.ones(1, "f").tobytes()
    values = [
        helper.make_tensor_value_info(one, TensorProto.FLOAT, ["n", 3, "h", "w"]) for one in ("images", "logits")
    ]
    graph = helper.make_graph(
        [helper.make_node("Add", ["images", "w"], ["logits"])], "g", values[:1], values[1:], [number]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    if metadata is not None:
        helper.set_model_props(model, {"davit": metadata or SAID.to_json()})
    path.write_bytes(model.SerializeToString())
    return path


class Add(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(1))

    def forward(self, images):
        return (images + self.w,)


def tiny_pt2(path: Path, metadata: str = "") -> Path:
    axes = {0: torch.export.Dim("batch"), 2: torch.export.Dim("height", min=4)}
    program = torch.export.export(Add(), (torch.ones(2, 3, 8, 8),), dynamic_shapes=(axes,))
    for node in program.graph.nodes:
        for note in ("stack_trace", "source_fn_stack", "from_node", "nn_module_stack", "torch_fn"):
            node.meta.pop(note, None)
    torch.export.save(program, path, extra_files={"davit": metadata or SAID.to_json()} if metadata != "none" else None)
    return path


def edited(path: Path, member: str, edit, compress: bool = False) -> io.BytesIO:
    """Copy an archive with one member replaced, or added."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as target:
        names = source.namelist()
        root = names[0].partition("/")[0]
        for name in names:
            data = source.read(name)
            if name == f"{root}/{member}":
                data = edit(data)
            target.writestr(name, data, zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED)
        if f"{root}/{member}" not in names:
            target.writestr(f"{root}/{member}", edit(b""))
    out.seek(0)
    return out


# --- opening ---


@pytest.mark.parametrize("write", [tiny_onnx, tiny_pt2])
def test_open_and_run(tmp_path, write):
    path = write(tmp_path / {tiny_onnx: "a.onnx", tiny_pt2: "a.pt2"}[write])
    opened = open_exported(path, threads=1)
    assert opened.metadata == SAID and opened.threads == 1 and is_exported(path)
    (found,) = opened(torch.zeros(2, 3, 8, 8))
    assert torch.equal(found, torch.ones(2, 3, 8, 8))
    for wrong in (torch.zeros(3, 8, 8), torch.zeros(1, 4, 8, 8), torch.zeros(1, 3, 17, 8), torch.zeros(1, 3, 3, 8)):
        with pytest.raises(ValueError):
            opened(wrong)
    with pytest.raises(ValueError):
        opened(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError):
        open_exported(path, threads=0)


def test_weights_texts_and_what_is_not_there_are_no_exports(tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "a.pth")
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "b.xml").write_text("<html></html>")
    (tmp_path / "c.pt2").write_bytes(b"PK\x03\x04 and nothing else")
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "d.mlpackage").mkdir()
    for name in ("a.pth", "a.txt", "empty.onnx", "b.xml", "c.pt2", "pipe.onnx", "d.mlpackage", "none.onnx"):
        assert format_of(tmp_path / name) is None, name
        with pytest.raises(ExportedError):
            open_exported(tmp_path / name)


def test_the_weights_of_openvino_point_to_their_description(tmp_path):
    (tmp_path / "a.xml").write_text('<?xml version="1.0"?>\n<net name="a" version="11"></net>')
    with pytest.raises(ExportedError, match=r"a\.bin"):
        open_exported(tmp_path / "a.xml")
    (tmp_path / "a.bin").write_bytes(bytes(8))
    with pytest.raises(ExportedError, match=r"a\.xml"):
        open_exported(tmp_path / "a.bin")
    with pytest.raises(ExportedError):
        open_exported(tmp_path / "a.xml")


@pytest.mark.parametrize("cut", [16, 40, 200])
def test_damaged_files(tmp_path, cut):
    for path in (tiny_onnx(tmp_path / "a.onnx"), tiny_pt2(tmp_path / "a.pt2")):
        path.write_bytes(path.read_bytes()[:-cut])
        with pytest.raises(ExportedError):
            open_exported(path)


# --- foreign ones ---


def test_a_model_of_others_names_what_it_takes_and_the_remedy(tmp_path):
    with pytest.raises(ExportedError, match=r"images.*davit\.export"):
        open_exported(tiny_onnx(tmp_path / "a.onnx", metadata=None))
    with pytest.raises(ExportedError, match=r"davit\.export"):
        open_exported(tiny_pt2(tmp_path / "a.pt2", "none"))


@pytest.mark.parametrize("text", ["{}", "[1]", "nonsense", '{"task": "x"}', "[" * 50_000])
def test_metadata_of_others(tmp_path, text):
    for path in (tiny_onnx(tmp_path / "a.onnx", text), tiny_pt2(tmp_path / "a.pt2", text)):
        with pytest.raises(ExportedError):
            open_exported(path)


def test_outputs_that_the_model_lacks(tmp_path):
    other = json.dumps({**json.loads(SAID.to_json()), "output_names": ["boxes"]})
    with pytest.raises(ExportedError, match="logits"):
        open_exported(tiny_onnx(tmp_path / "a.onnx", other))


# --- hostile ones ---


def test_external_weights_come_from_the_folder_alone(tmp_path):
    (tmp_path / "secret.bin").write_bytes(np.full(1, 7, "f").tobytes())
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "w.bin").write_bytes(np.full(1, 7, "f").tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (found,) = open_exported(tiny_onnx(folder / "a.onnx", external="w.bin"))(torch.zeros(1, 3, 8, 8))
    assert float(found.max()) == 7
    for place in ("../secret.bin", str(tmp_path / "secret.bin"), "link.bin", "none.bin"):
        with pytest.raises(ExportedError):
            open_exported(tiny_onnx(folder / "a.onnx", external=place))


def test_a_plain_program_is_let_through(tmp_path):
    text = require_plain(io.BytesIO(tiny_pt2(tmp_path / "a.pt2").read_bytes()))
    assert text == SAID.to_json()


def _json(change):
    def edit(data):
        value = json.loads(data)
        change(value)
        return json.dumps(value).encode()

    return edit


def _pickled(config):
    next(iter(config["config"].values()))["use_pickle"] = True


def _opaque(config):
    config["config"]["x"] = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}


def _graph(target=None, expression=None, symbol=None):
    def change(program):
        if target:
            program["graph_module"]["graph"]["nodes"][0]["target"] = target
        if symbol:
            program["range_constraints"][symbol] = {"min_val": 1, "max_val": 2}
        if expression:
            values = program["graph_module"]["graph"]["sym_int_values"]
            values["x"] = {"as_expr": {"expr_str": expression, "hint": None}}

    return _json(change)


CODE = "__import__('os').system('touch ran')"
HOSTILE = {
    "a pickled weight": ("data/weights/model_weights_config.json", _json(_pickled)),
    "a pickled constant": ("data/constants/model_constants_config.json", _json(_opaque)),
    "old weights": ("data/weights/model.pt", lambda _: b"x"),
    "a compiled library": ("data/aotinductor/model/a.so", lambda _: b"x"),
    "a second model": ("models/other.json", lambda _: b"{}"),
    "a call of another function": ("models/model.json", _graph(target="torch.os.system")),
    "a call by torch.ops": ("models/model.json", _graph(target="torch.ops.load_library")),
    "an evaluated expression": ("models/model.json", _graph(expression=CODE)),
    "an attribute in one": ("models/model.json", _graph(expression="Symbol('s0').__class__")),
    "a number without end": ("models/model.json", _graph(expression="9**9**9")),
    "an evaluated name": ("models/model.json", _graph(symbol=CODE)),
    "no graph": ("models/model.json", lambda _: b"[]"),
}


@pytest.mark.parametrize("kind", list(HOSTILE))
def test_programs_that_would_run_something(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)

    def never(*_, **__):
        raise AssertionError("it was loaded")

    contents = edited(tiny_pt2(tmp_path / "a.pt2"), *HOSTILE[kind])
    (tmp_path / "b.pt2").write_bytes(contents.getvalue())
    monkeypatch.setattr(torch.export, "load", never)
    with pytest.raises(ExportedError):
        open_exported(tmp_path / "b.pt2")
    assert not (tmp_path / "ran").exists()


def test_a_compressed_archive_could_be_a_bomb(tmp_path):
    path = tiny_pt2(tmp_path / "a.pt2")
    path.write_bytes(edited(path, "extra/davit", lambda data: data, compress=True).getvalue())
    with pytest.raises(ExportedError):
        open_exported(path)


# --- metadata ---


def test_metadata_are_one_text_there_and_back():
    text = SAID.to_json()
    assert Metadata.from_json(text) == SAID
    later = json.dumps({**json.loads(text), "of_a_later_version": 1})
    assert Metadata.from_json(later) == SAID
    assert SAID.is_dynamic and not Metadata("features", "m", (3, 8, 8), ("a",), axes={"height": (8, 8)}).is_dynamic


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task", "other"),
        ("input_size", (3, 8)),
        ("input_size", (3, 0, 8)),
        ("mean", (0.5,)),
        ("std", (0.0, 1.0, 1.0)),
        ("crop_pct", float("nan")),
        ("temperature", 0),
        ("output_names", ()),
        ("class_names", (1, 2)),
        ("axes", {"batch": (0, 1)}),
        ("preprocess", "float"),
        ("layout", "CHWN"),
        ("licence", 3),
        ("int8", 3),
    ],
)
def test_metadata_that_make_no_sense(name, value):
    with pytest.raises(MetadataError):
        Metadata(**{**vars(SAID), name: value})


def test_onnx_is_told_by_its_content(tmp_path):
    path = tiny_onnx(tmp_path / "renamed.bin")
    assert format_of(path) in (None, "onnx")
    assert onnx.load(path).graph.name == "g"
