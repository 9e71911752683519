"""Tell exported models by their first bytes, and open each by its runtime."""

from __future__ import annotations

import importlib
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from ..files import open_regular
from ..text import install_extra
from .model import ExportedError, ExportedModel

SUFFIXES = {"onnx": ".onnx", "pt2": ".pt2", "openvino": ".xml", "executorch": ".pte"}  # of what runs here
_READERS = {"onnx": "onnx", "pt2": "pt2", "openvino": "openvino", "executorch": "executorch"}
_EXTRAS = {"onnx": "export", "openvino": "openvino", "executorch": "executorch"}
_ELSEWHERE = {".mlpackage": "Core ML, which runs on Apple's systems", ".engine": "TensorRT, which runs on its own GPU"}
_BESIDE = {".onnx": ".onnx.data", ".xml": ".bin", ".engine": ".json"}  # weights, weights, metadata
_MOST_MEMBERS = 200_000  # of an archive


def is_exported(path: str | Path) -> bool:
    """Tell whether a path is a program of one of the runtimes, ours or another's, rather than weights."""
    return format_of(path) is not None


def format_of(path: str | Path) -> str | None:
    """Name the format of an exported program, one of `SUFFIXES`; None where it is none, or cannot be read."""
    path = Path(path)
    try:
        with open_regular(path) as stream:
            start = stream.read(1024)
    except (OSError, ValueError):
        return None
    if start[4:6] == b"ET":
        return "executorch"
    if start.startswith(b"PK\x03\x04"):
        return "pt2" if _is_program(path) else None
    if re.match(rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?<net\s", start):
        return "openvino"
    if start[:1] == b"\x08" and (path.suffix == ".onnx" or start[2:3] in (b"\x12", b"\x3a", b"\x1a")):
        return "onnx"
    return None


def _is_program(path: Path) -> bool:
    """Tell whether an archive is one of torch.export.save."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False
    return len(names) <= _MOST_MEMBERS and any(name.split("/", 1)[-1] == "archive_format" for name in names)


def files_of(path: str | Path) -> list[Path]:
    """List the files of an exported program: itself, and what belongs beside it where that is there."""
    path = Path(path)
    beside = path.with_suffix(_BESIDE.get(path.suffix, path.suffix))
    return [path, *([beside] if beside != path and beside.is_file() else [])]


def open_exported(path: str | Path, *, threads: int | None = None) -> ExportedModel:
    """Open an exported model for the CPU.

    Args:
        path: of `python -m davit.export`: .onnx, .pt2, OpenVINO's .xml (with its .bin beside it) or .pte.
        threads: how many compute at once; None for as many as PyTorch uses.

    Raises:
        ExportedError: it is not there, not an export of davit's, damaged, or its runtime is not installed.
    """
    path = Path(path)
    if threads is not None and threads < 1:
        raise ValueError(f"`threads={threads}` must be 1 or more.")
    found = format_of(path)
    if found is None:
        raise ExportedError(_why_none(path))
    module = importlib.import_module(f".{_READERS[found]}", __package__)
    reader: Callable[[Path, int], ExportedModel] = module.open_program
    try:
        return reader(path, threads or torch.get_num_threads())
    except ModuleNotFoundError as error:
        if (error.name or "davit").partition(".")[0] == "davit" or found not in _EXTRAS:
            raise
        raise ExportedError(
            f"{path} needs {(error.name or '').partition('.')[0]}, which is not installed: "
            f"{install_extra(_EXTRAS[found])}"
        ) from error


def _why_none(path: Path) -> str:
    if path.suffix in _ELSEWHERE:
        return f"{path} is for {_ELSEWHERE[path.suffix]}; export it to .onnx as well, to run it here."
    if not path.exists():
        return f"{path} does not exist; check the path."
    formats = ", ".join(f"{suffix} ({name})" for name, suffix in SUFFIXES.items())
    if path.suffix == ".bin" and path.with_suffix(".xml").is_file():
        return f"{path} holds the weights of an OpenVINO model; give {path.with_suffix('.xml')}."
    return f"{path} is no exported model: {formats} are; `python -m davit.export CHECKPOINT OUT` writes them."
