"""Quantize an exported classifier: what stays in float, what it costs, and whether that is too much."""

from __future__ import annotations

import importlib
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ...engine.load_model import LoadedModel, ModelOptions, load_model
from ...runtimes import ExportedError, Metadata, format_of
from ...text import install_extra
from ..options import Int8Options
from .groups import Groups
from .measure import accuracy, calibration_images, medians, size_of, validation_pictures

log = logging.getLogger(__name__)

SENSITIVE = 0.1  # relative error of the logits from which a group stays in float
TOO_LARGE = 3  # exit status
_TIMES = 40  # runs that a median is of
_BATCH = 8
_MODULES = {"onnx": ("onnx", "export"), "openvino": ("openvino", "int8"), "pt2": ("pt2", "int8")}


class DropError(RuntimeError):
    """Quantization costs more accuracy than was allowed; nothing was written."""

    exit_status = TOO_LARGE


class Quantizer(Protocol):
    """Quantizes groups of operations of one float program."""

    groups: Groups

    def write(self, chosen: Sequence[str], out: Path, metadata: Metadata) -> None:
        """Write the program with the chosen groups in int8."""
        ...


def quantize(source: Path, out: Path, options: Int8Options) -> Metadata:
    """Quantize a float export, and write the int8 program.

    Each group of operations is quantized alone, and what that changes in the logits of the calibration images
    decides whether it stays in float. The metadata's `int8` says what was measured.

    Raises:
        ValueError: the format has no quantization here, or the data do not fit the model.
        DropError: the accuracy falls by more than is allowed; `out` is not written.
    """
    found = format_of(source) or ""
    if found not in _MODULES:
        raise ValueError(f"int8 is for {', '.join(_MODULES)}, not for {found or source}.")
    loaded = load_model(None, source, ModelOptions(), torch.device("cpu"), takes_exported=True)
    if loaded.is_multilabel:
        raise ValueError("int8 is decided by top-1, and this model tells several labels per image: export it without.")
    dataset = validation_pictures(loaded, options.data)
    images = calibration_images(loaded, options.data, options.calibration, options.seed)
    assert loaded.program is not None
    loaded.classifier(images[:1])  # a size that the program does not take is named before anything takes time
    metadata = replace(loaded.program.metadata, precision="int8")
    with tempfile.TemporaryDirectory(prefix="davit-int8-") as folder:
        work = Path(folder)
        backend = _backend(found)
        quantizer: Quantizer = backend.Quantizer(source, _as_input(images, metadata).split(_BATCH), work)
        errors = {
            name: _error(quantizer, [name], images, loaded, metadata, work)
            for name in quantizer.groups
            if name not in backend.SLOW
        }
        chosen = [name for name, error in errors.items() if error < SENSITIVE]
        if not chosen:
            raise DropError(f"every group of operations is too sensitive for int8 ({_listed(errors)}): none written.")
        _say_choice(quantizer.groups, errors, chosen, backend.SLOW, len(images))
        trial = work / f"trial{out.suffix}"
        quantizer.write(chosen, trial, metadata)
        after = load_model(None, trial, ModelOptions(), torch.device("cpu"), takes_exported=True)
        facts = _compare(loaded, after, source, trial, images, dataset)
        drop = facts["top1_float"] - facts["top1"]
        if drop > options.max_drop:
            raise DropError(
                f"int8 costs {drop:.3f} points of top-1 on {facts['pictures']} images, and "
                f"`max_drop={options.max_drop:g}` are allowed. Nothing was written."
            )
        named = {
            "tool": f"{backend.TOOL} {importlib.import_module(backend.TOOL).__version__.partition('-')[0]}",
            "calibration": len(images),
            "seed": options.seed,
            "groups": {
                name: {"operations": len(nodes), "int8": name in chosen, "error": _finite(errors.get(name))}
                for name, nodes in quantizer.groups.items()
            },
            **facts,
        }
        metadata = replace(metadata, int8=named)
        quantizer.write(chosen, out, metadata)
    return metadata


def _as_input(images: Tensor, metadata: Metadata) -> Tensor:
    """Put images (N, C, H, W) into the program's layout."""
    return images.permute(0, 2, 3, 1).contiguous() if metadata.layout == "NHWC" else images


def _backend(found: str) -> Any:
    module, extra = _MODULES[found]
    try:
        return importlib.import_module(f".{module}", __package__)
    except ModuleNotFoundError as error:
        if (error.name or "davit").partition(".")[0] == "davit":
            raise
        package = (error.name or "").partition(".")[0]
        raise ValueError(f"int8 needs {package}, which is not installed: {install_extra(extra)}") from error


def _error(
    quantizer: Quantizer,
    chosen: Sequence[str],
    images: Tensor,
    loaded: LoadedModel,
    metadata: Metadata,
    work: Path,
) -> float:
    """Return by how much int8 in the chosen groups changes the logits, relative to their norm.

    Infinity where the runtime does not take the program: OpenVINO has none for some operations by channel.
    """
    assert loaded.file is not None
    trial = work / f"group{loaded.file.suffix}"
    try:
        quantizer.write(chosen, trial, metadata)
        changed = load_model(None, trial, ModelOptions(), torch.device("cpu"), takes_exported=True)
    except ExportedError as error:
        log.debug("int8 of %s: %s", chosen, error)
        return math.inf
    wanted, found = (torch.cat([one.classifier(part) for part in images.split(_BATCH)]) for one in (loaded, changed))
    return float(f"{float((found - wanted).norm() / wanted.norm()):.3g}")


def _say_choice(
    groups: Groups, errors: Mapping[str, float], chosen: Sequence[str], slow: Sequence[str], pictures: int
) -> None:
    for name, nodes in groups.items():
        if name in chosen:
            reason = f"int8 (alone it changes the logits of {pictures} images by {100 * errors[name]:.2g} %)"
        elif errors.get(name) == math.inf:
            reason = "float: the runtime takes no such int8 operations"
        elif name in errors:
            reason = f"float: int8 changes the logits by {100 * errors[name]:.2g} %"
        else:
            reason = "float: int8 is no faster here" if name in slow else "float"
        log.info("%s, %d operations: %s", name, len(nodes), reason)
    log.info("norms, softmax, GELU and additions: float")


def _compare(
    before: LoadedModel, after: LoadedModel, source: Path, trial: Path, images: Tensor, dataset: Any
) -> dict[str, Any]:
    """Measure accuracy, size and time of both, and log them."""
    scores = [accuracy(one, dataset) for one in (before, after)]
    sizes = [size_of(source), size_of(trial)]
    assert before.program is not None and after.program is not None
    times = medians([before.program, after.program], images[:1], _TIMES)
    for name, score, size, taken in zip(("float", "int8"), scores, sizes, times, strict=True):
        log.info(
            "%-5s top-1 %.3f %% (%d of %d images), loss %.4g, %.2f MB, p50 %.2f ms for one image on %d threads",
            *(name, score.top1, score.correct1, score.scored, score.loss, size / 1e6, taken, before.program.threads),
        )
    return {
        "top1_float": round(scores[0].top1, 4),
        "top1": round(scores[1].top1, 4),
        "pictures": scores[0].scored,
        "loss_float": round(scores[0].loss, 6),
        "loss": round(scores[1].loss, 6),
        "bytes_float": sizes[0],
        "bytes": sizes[1],
        "p50_ms_float": round(times[0], 3),
        "p50_ms": round(times[1], 3),
        "threads": before.program.threads,
    }


def _finite(error: float | None) -> float | None:
    return error if error is not None and math.isfinite(error) else None


def _listed(errors: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {100 * error:.2g} %" for name, error in errors.items())
