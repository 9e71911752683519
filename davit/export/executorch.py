"""Write programs for ExecuTorch, for phones and small devices: of one size, computed by XNNPACK where it can."""

from __future__ import annotations

import importlib.metadata
from dataclasses import replace
from pathlib import Path

from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower

from ..runtimes import KEY, Metadata
from .options import ExportOptions
from .program import Program, Save
from .tracing import axes_of, quiet, traced


def prepared(program: Program, options: ExportOptions) -> Program:
    """Fix the size and the batch."""
    versions = {**program.metadata.versions, "executorch": importlib.metadata.version("executorch")}
    axes = axes_of(program, replace(options, fixed=True), 1, None, None)
    return program.described(axes=axes, versions=versions)


def build(program: Program, options: ExportOptions) -> Save:
    """Trace a program, and return what lowers and writes it."""
    found = traced(program)

    def save(metadata: Metadata, path: Path) -> None:
        # Lowered again each time: `to_executorch` changes what it is called on, and fails at a second call. The
        # metadata are a method of the program that returns a constant.
        with quiet(), path.open("wb") as stream:
            methods = {KEY: metadata.to_json()}
            edge = to_edge_transform_and_lower(found, partitioner=[XnnpackPartitioner()], constant_methods=methods)
            edge.to_executorch().write_to_file(stream)

    return save
