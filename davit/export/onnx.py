"""Write programs as ONNX models of free sizes."""

from __future__ import annotations

import logging
from contextlib import nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import onnx
import onnxscript
import torch

from ..runtimes import KEY, Metadata
from .onnx_windows import TRANSLATIONS, exact_windows
from .options import ExportOptions
from .program import Program, Save
from .tracing import axes_of, fixed_size, quiet, traced

log = logging.getLogger(__name__)

INPUT = "images"
_MOST_INSIDE = 2_000_000_000  # bytes of weights that a file of ONNX (protobuf) holds; more lie beside it


def prepared(program: Program, options: ExportOptions) -> Program:
    """Fill in what ONNX adds to a program's metadata."""
    versions = {**program.metadata.versions, "onnx": onnx.__version__, "onnxscript": onnxscript.__version__}
    axes = axes_of(program, options, program.least, None, None)
    return program.described(axes=axes, opset=options.opset, versions=versions)


def build(program: Program, options: ExportOptions) -> Save:
    """Translate a program to ONNX, and return what writes it."""
    model = translated(program, options.opset)

    def save(metadata: Metadata, path: Path) -> None:
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, {KEY: metadata.to_json()})
        write(model, path)

    return save


def write(model: onnx.ModelProto, path: Path) -> None:
    """Write a model as one file, or, from 2 GB on, with its weights in a second one; check it in full."""
    is_large = sum(len(one.raw_data) for one in model.graph.initializer) > _MOST_INSIDE
    if not is_large:
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, str(path))
        return
    whole = onnx.ModelProto()
    whole.CopyFrom(model)  # saving takes the weights out of what it saves
    onnx.save(whole, str(path), save_as_external_data=True, location=f"{path.name}.data")
    onnx.checker.check_model(str(path), full_check=True)


def translated(program: Program, opset: int) -> onnx.ModelProto:
    """Translate a program to an ONNX model without metadata, its axes named."""
    is_fixed = fixed_size(program) is not None
    with nullcontext() if is_fixed else exact_windows():
        graph = traced(program)
    with redirect_stdout(StringIO()), quiet():  # its progress
        found: Any = torch.onnx.export(
            graph,
            (),
            dynamo=True,
            optimize=True,
            verbose=False,
            input_names=[INPUT],
            output_names=list(program.metadata.output_names),
            opset_version=opset,
            custom_translation_table={**TRANSLATIONS, **program.onnx_translations},
        )
    model: onnx.ModelProto = found.model_proto
    _strip(model)
    _name_axes(model, program, is_fixed)
    return model


def _strip(model: onnx.ModelProto) -> None:
    """Leave out what the exporter notes of the source: stack traces with this machine's paths, scopes, shapes."""
    graph = model.graph
    for one in [graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *model.functions]:
        del one.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""
        node.name = node.name.removeprefix("node_")
        for attribute in node.attribute:
            attribute.doc_string = ""
    del graph.value_info[:]
    graph.name, graph.doc_string, model.doc_string = "davit", "", ""
    model.producer_name, model.producer_version = "davit", ""


def _name_axes(model: onnx.ModelProto, program: Program, is_fixed: bool) -> None:
    if is_fixed:
        return
    height, width = (1, 2) if program.metadata.layout == "NHWC" else (2, 3)
    axes = [{0: "batch", height: "height", width: "width"}, *program.output_axes]
    for value, names in zip([*model.graph.input, *model.graph.output], axes, strict=True):
        for place, axis in enumerate(value.type.tensor_type.shape.dim):
            if place in names:
                axis.dim_param = names[place]
            elif axis.dim_param:
                axis.Clear()
