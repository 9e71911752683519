"""Run OpenVINO's models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openvino
import torch
from openvino.properties import hint, inference_num_threads
from torch import Tensor

from .metadata import KEY, Metadata, MetadataError
from .model import ExportedError, ExportedModel

_MOST_DESCRIPTION = 256 << 20  # bytes of the .xml


class OpenvinoModel(ExportedModel):
    """A model of OpenVINO, on the CPU."""

    runtime = "openvino"

    def __init__(self, path: Path, metadata: Metadata, threads: int, compiled: Any) -> None:
        super().__init__(path, metadata, threads)
        self._compiled = compiled

    def _run(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self._compiled(images.numpy())
        return tuple(torch.from_numpy(outputs[name].copy()) for name in self.output_names)


def open_program(path: Path, threads: int) -> OpenvinoModel:
    """Open an .xml file with its .bin (errors as in `davit.runtimes.open_exported`)."""
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise ExportedError(f"{weights} is missing: the weights of {path.name} must lie beside it.")
    if path.stat().st_size > _MOST_DESCRIPTION:
        raise ExportedError(f"{path} is larger than {_MOST_DESCRIPTION:,} bytes; no export of davit's is.")
    core = openvino.Core()
    try:
        model = core.read_model(str(path), str(weights))
    except Exception as error:  # its errors have no common type
        raise ExportedError(
            f"{path} cannot be read by OpenVINO ({' '.join(str(error).split())[:300]}); export it again."
        ) from error
    if not model.has_rt_info([KEY]):
        raise ExportedError(
            f"{path} is an OpenVINO model without davit's metadata: nothing says how its images are prepared and "
            "what its outputs mean. Export its checkpoint by `python -m davit.export CHECKPOINT OUT.xml`; or run it "
            "by openvino itself."
        )
    try:
        metadata = Metadata.from_json(model.get_rt_info([KEY]).astype(str))
    except MetadataError as error:
        raise ExportedError(f"{path}: {error}; export it again.") from error
    there = {name for output in model.outputs for name in output.get_names()}
    if len(model.inputs) != 1 or not set(metadata.output_names) <= there:
        raise ExportedError(f"{path} has the outputs {sorted(there)}, not those of its metadata; export it again.")
    settings = {
        inference_num_threads: threads,
        hint.performance_mode: hint.PerformanceMode.LATENCY,
        hint.inference_precision: openvino.Type.f32,  # some processors would take bfloat16 unasked
    }
    try:
        compiled = core.compile_model(model, "CPU", settings)
    except Exception as error:  # as above
        raise ExportedError(
            f"{path} cannot be compiled by OpenVINO ({' '.join(str(error).split())[:300]}); export it again."
        ) from error
    return OpenvinoModel(path, metadata, threads, compiled)
