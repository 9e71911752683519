"""Export models to other runtimes: ONNX, torch.export, OpenVINO, ExecuTorch, Core ML, TensorRT."""

from .check import DifferentError
from .options import FORMATS, ExportOptions
from .program import Program
from .run import Exported, export, write_program

__all__ = ["FORMATS", "DifferentError", "ExportOptions", "Exported", "Program", "export", "write_program"]
