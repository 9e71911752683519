"""Open and run exported models: ONNX Runtime, torch.export's programs, OpenVINO, ExecuTorch."""

from .metadata import KEY, Metadata, MetadataError
from .model import ExportedError, ExportedModel
from .open import SUFFIXES, files_of, format_of, is_exported, open_exported

__all__ = [
    "KEY",
    "SUFFIXES",
    "ExportedError",
    "ExportedModel",
    "Metadata",
    "MetadataError",
    "files_of",
    "format_of",
    "is_exported",
    "open_exported",
]
