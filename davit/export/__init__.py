"""Export models to other runtimes: ONNX, torch.export, OpenVINO, ExecuTorch, Core ML, TensorRT."""

from typing import TYPE_CHECKING

from .options import FORMATS, ExportOptions

if TYPE_CHECKING:
    from .check import DifferentError
    from .program import Program
    from .run import Exported, export, write_program
else:
    from ..text import lazily

    __getattr__ = lazily(
        __name__, check=("DifferentError",), program=("Program",), run=("Exported", "export", "write_program")
    )

__all__ = ["FORMATS", "DifferentError", "ExportOptions", "Exported", "Program", "export", "write_program"]
