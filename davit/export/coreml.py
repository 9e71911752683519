"""Write programs for Core ML, Apple's runtime: of one size, which no other system can run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import coremltools

from ..runtimes import KEY, Metadata
from .options import ExportOptions
from .program import Program, Save
from .tracing import axes_of, quiet, traced


def prepared(program: Program, options: ExportOptions) -> Program:
    """Fix the size and the batch."""
    versions = {**program.metadata.versions, "coremltools": coremltools.__version__}
    return program.described(axes=axes_of(program, replace(options, fixed=True), 1, None, None), versions=versions)


def build(program: Program, options: ExportOptions) -> Save:
    """Translate a program, and return what writes it."""
    precision = coremltools.precision.FLOAT16 if options.fp16 else coremltools.precision.FLOAT32
    with quiet():
        model = coremltools.convert(
            traced(program).run_decompositions({}),
            outputs=[coremltools.TensorType(name=name) for name in program.metadata.output_names],
            convert_to="mlprogram",
            compute_precision=precision,
            minimum_deployment_target=coremltools.target.iOS17,
        )

    def save(metadata: Metadata, path: Path) -> None:
        model.user_defined_metadata[KEY] = metadata.to_json()
        model.license = metadata.licence
        model.save(str(path))

    return save
