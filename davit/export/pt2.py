"""Write programs as torch.export saves them: plain operations of PyTorch, read without davit."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.export import ExportedProgram
from torch.utils._sympy.value_ranges import ValueRanges

from ..runtimes import KEY, Metadata
from .options import MOST_SIDE, ExportOptions
from .program import Program, Save
from .tracing import MOST_BATCH, PROVEN_LEAST, axes_of, traced

# of the source code: stack traces with this machine's paths, and names of modules
_NOTES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node", "custom")


def prepared(program: Program, options: ExportOptions) -> Program:
    """Fill in the sizes; those of heads with many levels, which nothing proves, end where proofs of others do."""
    least = program.least if program.is_proven else max(PROVEN_LEAST, program.least)
    return program.described(axes=axes_of(program, options, least, MOST_SIDE, MOST_BATCH))


def build(program: Program, options: ExportOptions) -> Save:
    """Trace a program, and return what writes it."""
    found = traced(program)
    for node in found.graph.nodes:
        for note in _NOTES:
            node.meta.pop(note, None)
    found.example_inputs = None
    if program.is_proven:
        state_sizes(found, program.metadata)

    def save(metadata: Metadata, path: Path) -> None:
        torch.export.save(found, path, extra_files={KEY: metadata.to_json()})

    return save


def state_sizes(found: ExportedProgram, metadata: Metadata) -> None:
    """Let a traced program take the sizes that its metadata say.

    torch.export states sizes from `PROVEN_LEAST` on, and guards that are about larger ones. The graph computes
    smaller ones as well, as the check of each export shows, and models of small images need them.
    """
    (name,) = found.graph_signature.user_inputs
    image = next(node.meta["val"] for node in found.graph.nodes if node.name == name)
    order = ("batch", "", "height", "width") if metadata.layout == "NCHW" else ("batch", "height", "width", "")
    for axis, size in zip(order, image.shape, strict=True):
        if isinstance(size, torch.SymInt):
            found.range_constraints[size.node.expr] = ValueRanges(*metadata.axes[axis])
            found._guards_code = []
