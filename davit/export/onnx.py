"""Write programs as ONNX models of free sizes."""

from __future__ import annotations

import logging
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import onnx
import onnxscript
import torch
from torch.export import Dim, export

from ..runtimes import KEY, Metadata
from .options import MOST_SIDE, ExportOptions
from .program import Program, Save
from .suppression import onnx_translations

log = logging.getLogger(__name__)

INPUT = "images"


def prepared(program: Program, options: ExportOptions) -> Program:
    """Fill in what ONNX adds to a program's metadata."""
    axes = {"batch": (1, None), "height": (1, None), "width": (1, None)}
    versions = {**program.metadata.versions, "onnx": onnx.__version__, "onnxscript": onnxscript.__version__}
    return program.described(axes=axes, opset=options.opset, versions=versions)


def exported_program(program: Program, least: int) -> Any:
    """Trace a program by torch.export, with free batch, height and width."""
    image = program.example((2, 224, 192))
    height, width = (1, 2) if program.metadata.layout == "NHWC" else (2, 3)
    axes = {
        0: Dim("batch", min=1, max=65536),
        height: Dim("height", min=least, max=MOST_SIDE),
        width: Dim("width", min=least, max=MOST_SIDE),
    }
    with torch.no_grad():
        return export(program.module, (image,), dynamic_shapes=(axes,))


def build(program: Program, options: ExportOptions) -> Save:
    """Translate a program to ONNX, and return what writes it."""
    with redirect_stdout(StringIO()):  # its progress
        found = torch.onnx.export(
            exported_program(program, program.least),
            (),
            dynamo=True,
            optimize=True,
            verbose=False,
            input_names=[INPUT],
            output_names=list(program.metadata.output_names),
            opset_version=options.opset,
            custom_translation_table=onnx_translations(),
        )
    model = found.model_proto

    def save(metadata: Metadata, path: Path) -> None:
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, {KEY: metadata.to_json()})
        onnx.save(model, str(path))

    onnx.checker.check_model(model, full_check=True)
    return save
