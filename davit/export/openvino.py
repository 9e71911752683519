"""Write programs as OpenVINO's IR, through ONNX: a description (.xml) and its weights (.bin) beside it."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import openvino

from ..runtimes import KEY, Metadata
from . import onnx
from .options import ExportOptions
from .program import Program, Save
from .tracing import axes_of


def prepared(program: Program, options: ExportOptions) -> Program:
    """Fill in what OpenVINO adds to a program's metadata."""
    versions = {**program.metadata.versions, "openvino": openvino.__version__}
    return program.described(axes=axes_of(program, options, program.least, None, None), versions=versions)


def build(program: Program, options: ExportOptions) -> Save:
    """Translate a program, and return what writes it."""
    model = openvino.convert_model(io.BytesIO(onnx.translated(program, options.opset).SerializeToString()))

    def save(metadata: Metadata, path: Path) -> None:
        model.set_rt_info(replace(metadata, opset=None).to_json(), [KEY])
        openvino.save_model(model, str(path), compress_to_fp16=options.fp16)

    return save
