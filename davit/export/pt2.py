"""Write programs as torch.export saves them: plain operations of PyTorch, read without davit."""

from __future__ import annotations

from pathlib import Path

import torch

from ..runtimes import KEY, Metadata
from .options import MOST_SIDE, ExportOptions
from .program import Program, Save
from .tracing import MOST_BATCH, PROVEN_LEAST, axes_of, traced

# of the source code: stack traces with this machine's paths, and names of modules
_NOTES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node", "custom")


def prepared(program: Program, options: ExportOptions) -> Program:
    """Fill in the sizes that torch.export can prove."""
    least = max(PROVEN_LEAST, program.least)
    return program.described(axes=axes_of(program, options, least, MOST_SIDE, MOST_BATCH))


def build(program: Program, options: ExportOptions) -> Save:
    """Trace a program, and return what writes it."""
    found = traced(program)
    for node in found.graph.nodes:
        for note in _NOTES:
            node.meta.pop(note, None)
    found.example_inputs = None

    def save(metadata: Metadata, path: Path) -> None:
        torch.export.save(found, path, extra_files={KEY: metadata.to_json()})

    return save
