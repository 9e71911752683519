"""Quantize an exported classifier or detector: what stays in float, what it costs, and whether that is too much."""

from __future__ import annotations

import importlib
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from ...runtimes import ExportedError, ExportedModel, Metadata, format_of, open_exported
from ...text import install_extra
from ..options import Int8Options
from .classifiers import Classifiers
from .detectors import Detectors
from .groups import Groups
from .measure import medians, size_of

log = logging.getLogger(__name__)

SENSITIVE = 0.1  # share of the results that changes from which operations stay in float, alone and all together
TOO_LARGE = 3  # exit status
_TIMES = 40  # runs that a median is of
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


class Judge(Protocol):
    """Calibrates the int8 versions of a float program, and says what they cost.

    Attributes:
        what: the results that `change` is about, in words.
        scores: what is measured on the validation images: name in `compare` -> words.
        program: in float.
        batches: calibration images, (N, C, H, W).
        pictures: how many these are.
        judged: how many of them `change` looks at.
    """

    what: str
    scores: Mapping[str, str]
    program: ExportedModel
    batches: Sequence[Tensor]
    pictures: int
    judged: int

    def change(self, file: Path) -> float:
        """Return by how much an int8 version changes the results of calibration images, as a share of them."""
        ...

    def compare(self, file: Path) -> dict[str, float | int]:
        """Measure an int8 version on the validation images: each score, with `_float` behind it for the float one.

        Scores are in percent; `pictures` says on how many.
        """
        ...


def quantize(source: Path, out: Path, options: Int8Options) -> Metadata:
    """Quantize a float export of a classifier or a detector, and write the int8 program.

    Each group of operations is quantized alone, and what that changes in the results of calibration images decides
    whether it stays in float. Then the chosen ones are judged together: the most sensitive are left in float until
    that changes no more than one alone may. The metadata's `int8` says what was measured.

    Raises:
        ValueError: the format has no quantization here, or the data do not fit the model.
        DropError: the accuracy falls by more than is allowed; `out` is not written.
    """
    program = open_exported(source)
    kind, backend = _chosen(format_of(source) or "", program.metadata)
    judge = kind(source, options)
    metadata = replace(judge.program.metadata, precision="int8")
    with tempfile.TemporaryDirectory(prefix="davit-int8-") as folder:
        trial = Path(folder, f"trial{out.suffix}")
        quantizer: Quantizer = backend.Quantizer(source, _Arranged(judge.batches, metadata), Path(folder))
        errors = {
            name: _change(quantizer, [name], judge, metadata, trial)
            for name in quantizer.groups
            if name not in backend.SLOW
        }
        chosen = [name for name, error in errors.items() if error < SENSITIVE]
        together, left = math.inf, []
        while chosen and not (together := _change(quantizer, chosen, judge, metadata, trial)) < SENSITIVE:
            left.append(max(chosen, key=lambda name: errors[name]))
            chosen.remove(left[-1])
        _say_choice(quantizer.groups, errors, chosen, left, backend.SLOW, judge)
        if not chosen:
            raise DropError(f"every group of operations is too sensitive for int8 ({_listed(errors)}): none written.")
        log.info("all of these together change the %s by %.2g %%", judge.what, 100 * together)
        facts = judge.compare(trial)
        facts |= _cost(judge, source, trial)
        _require_small_drop(judge, facts, options.max_drop)
        named = {
            "tool": f"{backend.TOOL} {importlib.import_module(backend.TOOL).__version__.partition('-')[0]}",
            "calibration": judge.pictures,
            "judged": judge.judged,
            "seed": options.seed,
            "error": together,
            "groups": {
                name: {"operations": len(nodes), "int8": name in chosen, "error": _finite(errors.get(name))}
                for name, nodes in quantizer.groups.items()
            },
            "scores": list(judge.scores),
            **facts,
        }
        metadata = replace(metadata, int8=named)
        quantizer.write(chosen, out, metadata)
    return metadata


def require_possible(to: str, metadata: Metadata, options: Int8Options) -> None:
    """Find out before a model is exported what would keep it from being quantized.

    Raises:
        ValueError: the format or the task has no quantization here, its tool is not installed, or there are no data.
    """
    kind, _ = _chosen(to, metadata)
    kind.open_data(options.data, metadata)


def _chosen(to: str, metadata: Metadata) -> tuple[type[Classifiers | Detectors], Any]:
    """Return what judges a task, and the module of a format's tool."""
    if to not in _MODULES:
        raise ValueError(f"int8 is for {', '.join(_MODULES)}, not for {to or 'this file'}.")
    kinds: dict[str, type[Classifiers | Detectors]] = {"classification": Classifiers, "detection": Detectors}
    if metadata.task not in kinds:
        raise ValueError(f"int8 is for classifiers and detectors, not for {metadata.task}: leave it out.")
    return kinds[metadata.task], _backend(to)


class _Arranged(Sequence[Tensor]):
    """Brings calibration images (N, C, H, W) into the program's layout."""

    def __init__(self, batches: Sequence[Tensor], metadata: Metadata) -> None:
        self._batches, self._is_nhwc = batches, metadata.layout == "NHWC"

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, place: Any) -> Any:
        images = self._batches[place]
        return images.permute(0, 2, 3, 1).contiguous() if self._is_nhwc else images


def _backend(found: str) -> Any:
    module, extra = _MODULES[found]
    try:
        return importlib.import_module(f".{module}", __package__)
    except ModuleNotFoundError as error:
        if (error.name or "davit").partition(".")[0] == "davit":
            raise
        package = (error.name or "").partition(".")[0]
        raise ValueError(f"int8 needs {package}, which is not installed: {install_extra(extra)}") from error


def _change(quantizer: Quantizer, chosen: Sequence[str], judge: Judge, metadata: Metadata, trial: Path) -> float:
    """Return by how much int8 in the chosen groups changes the results.

    Infinity where the runtime does not take the program: OpenVINO has none for some operations by channel.
    """
    try:
        quantizer.write(chosen, trial, metadata)
        return float(f"{judge.change(trial):.3g}")
    except ExportedError as error:
        log.debug("int8 of %s: %s", chosen, error)
        return math.inf


def _say_choice(
    groups: Groups,
    errors: Mapping[str, float],
    chosen: Sequence[str],
    left: Sequence[str],
    slow: Sequence[str],
    judge: Judge,
) -> None:
    for name, nodes in groups.items():
        alone = 100 * errors.get(name, 0.0)
        if name in chosen:
            reason = f"int8 (alone it changes the {judge.what} of {judge.judged} images by {alone:.2g} %)"
        elif name in left:
            reason = f"float: with the others in int8 too much changes (alone {alone:.2g} %)"
        elif errors.get(name) == math.inf:
            reason = "float: the runtime takes no such int8 operations"
        elif name in errors:
            reason = f"float: int8 changes the {judge.what} by {alone:.2g} %"
        else:
            reason = "float: int8 is no faster here" if name in slow else "float"
        log.info("%s, %d operations: %s", name, len(nodes), reason)
    log.info("norms, softmax, activations and additions: float")


def _cost(judge: Judge, source: Path, trial: Path) -> dict[str, float | int]:
    """Measure size and time of both programs, and log them."""
    sizes, threads = [size_of(source), size_of(trial)], judge.program.threads
    times = medians([judge.program, open_exported(trial, threads=threads)], judge.batches[0][:1], _TIMES)
    for name, size, taken in zip(("float", "int8"), sizes, times, strict=True):
        log.info("%-5s %.2f MB, p50 %.2f ms for one image on %d threads", *(name, size / 1e6, taken), threads)
    return {
        "bytes_float": sizes[0],
        "bytes": sizes[1],
        "p50_ms_float": round(times[0], 3),
        "p50_ms": round(times[1], 3),
        "threads": threads,
    }


def _require_small_drop(judge: Judge, facts: Mapping[str, float | int], most: float) -> None:
    """Raise a `DropError` if a score falls by more than is allowed."""
    for key, words in judge.scores.items():
        drop = facts[f"{key}_float"] - facts[key]
        if not drop <= most:
            raise DropError(
                f"int8 costs {drop:.3f} points of {words} on {facts['pictures']} images, and `max_drop={most:g}` "
                "are allowed. Nothing was written."
            )


def _finite(error: float | None) -> float | None:
    return error if error is not None and math.isfinite(error) else None


def _listed(errors: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {100 * error:.2g} %" for name, error in errors.items())
