"""Run ONNX models by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from .metadata import KEY, Metadata, MetadataError
from .model import ExportedError, ExportedModel


class OnnxModel(ExportedModel):
    """A model of ONNX Runtime, on the CPU."""

    runtime = "onnxruntime"

    def __init__(self, path: Path, metadata: Metadata, threads: int, session: Any) -> None:
        super().__init__(path, metadata, threads)
        self._session = session
        self._input = session.get_inputs()[0].name

    def _run(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self._session.run(list(self.output_names), {self._input: images.numpy()})
        return tuple(map(torch.from_numpy, outputs))


def open_program(path: Path, threads: int) -> OnnxModel:
    """Open a .onnx file (errors as in `davit.runtimes.open_exported`)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors; warnings are of its optimiser
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common type
        raise ExportedError(
            f"{path} cannot be opened by ONNX Runtime ({str(error)[:300]}); export it again."
        ) from error
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    if text is None:
        raise ExportedError(f"{path} {_foreign(session)}")
    try:
        metadata = Metadata.from_json(text)
    except MetadataError as error:
        raise ExportedError(f"{path}: {error}; export it again.") from error
    there = [one.name for one in session.get_outputs()]
    if len(session.get_inputs()) != 1 or not set(metadata.output_names) <= set(there):
        raise ExportedError(f"{path} has the outputs {there}, not those of its metadata; export it again.")
    return OnnxModel(path, metadata, threads, session)


def _foreign(session: Any) -> str:
    """Say what can be known of a model that is not ours: the rest of a sentence."""
    inputs = ", ".join(f"{one.name} {one.type} {one.shape}" for one in session.get_inputs()[:4])
    outputs = ", ".join(f"{one.name} {one.shape}" for one in session.get_outputs()[:8])
    return (
        f"is an ONNX model without davit's metadata, from {inputs} to {outputs}: nothing says how its images are "
        "prepared and what its outputs mean. Export its checkpoint by `python -m davit.export CHECKPOINT OUT.onnx`; "
        "or run it by onnxruntime itself."
    )
