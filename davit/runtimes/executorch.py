"""Run ExecuTorch's programs by its own runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from executorch.runtime import Runtime, Verification
from torch import Tensor

from ..files import open_regular
from .metadata import KEY, Metadata, MetadataError
from .model import ExportedError, ExportedModel


class ExecutorchModel(ExportedModel):
    """A program of ExecuTorch, of one size."""

    runtime = "executorch"

    def __init__(self, path: Path, metadata: Metadata, threads: int, program: Any) -> None:
        super().__init__(path, metadata, threads)
        self._program = program
        self._forward = program.load_method("forward")

    def _run(self, images: Tensor) -> tuple[Tensor, ...]:
        outputs = self._forward.execute([images])
        return tuple(output.clone() for output in outputs)  # its memory is used again


def open_program(path: Path, threads: int) -> ExecutorchModel:
    """Open a .pte file (errors as in `davit.runtimes.open_exported`); its runtime chooses the threads itself."""
    with open_regular(path) as stream:
        contents = stream.read()
    try:
        program = Runtime.get().load_program(contents, verification=Verification.InternalConsistency)
        names = program.method_names
    except Exception as error:  # its errors have no common type
        raise ExportedError(f"{path} cannot be opened by ExecuTorch ({error}); export it again.") from error
    if KEY not in names or "forward" not in names:
        raise ExportedError(
            f"{path} is a program of ExecuTorch without davit's metadata: nothing says how its images are prepared "
            "and what its outputs mean. Export its checkpoint by `python -m davit.export CHECKPOINT OUT.pte`."
        )
    try:
        metadata = Metadata.from_json(str(program.load_method(KEY).execute([])[0]))
        return ExecutorchModel(path, metadata, threads, program)
    except MetadataError as error:
        raise ExportedError(f"{path}: {error}; export it again.") from error
    except Exception as error:  # as above
        raise ExportedError(f"{path} cannot be opened by ExecuTorch ({error}); export it again.") from error
