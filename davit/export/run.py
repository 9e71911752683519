"""Export a model: make the program, write it, compare it with PyTorch, and give it its name."""

from __future__ import annotations

import importlib
import logging
import os
import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import torch

from ..engine.evaluate import peak_memory_mb
from ..files import write_atomically
from ..runtimes import Metadata
from ..text import in_bytes, install_extra
from .check import check, fitting_sizes
from .classifiers import classifier_program
from .openmmlab import of_openmmlab, openmmlab_program
from .options import FORMATS, OPSETS, ExportOptions
from .program import Program, Save
from .tracing import wrapped

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        files: name to size in bytes.
        seconds: that the export took, its check included.
        memory: the most that the process had in memory until now, in 10^6 bytes.
    """

    path: Path
    metadata: Metadata
    files: dict[str, int]
    seconds: float
    memory: float

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} ({in_bytes(size)})" for name, size in self.files.items())
        found = [one["difference"] for one in self.metadata.differences]
        own = [one["pytorch"] for one in self.metadata.differences if one.get("pytorch") is not None]
        checked = (
            f"differs from PyTorch by at most {max(found):.2g} of the largest value, at {len(found)} sizes"
            if found
            else f"not compared with PyTorch: {self.metadata.unchecked}"
        )
        if own:
            checked += f" (in float64, from which PyTorch's own float32 differs by {max(own):.2g})"
        takes = self.metadata
        axes = ", ".join(
            f"{axis} {least}{'' if least == most else ' or more' if most is None else f' to {most}'}"
            for axis, (least, most) in takes.axes.items()
        )
        return (
            f"{takes.model}, {takes.task}, {takes.precision}: {sizes}; {checked}.\n"
            f"It takes {takes.bands} bands in {takes.layout}, "
            f"{'uint8' if takes.preprocess == 'uint8' else 'normalised float32'}: {axes}. Resize and crop outside "
            f"({takes.crop_mode}, {takes.crop_pct:g}, {takes.interpolation}).\n"
            f"It took {self.seconds:.0f} s, and {self.memory / 1e3:.2f} GB of memory at most."
        )


def export(source: str | Path | None, out: str | Path, options: ExportOptions | None = None) -> Exported:
    """Export a checkpoint to a runtime's format: a classifier, its features or pyramid, a detector, a segmentor.

    Args:
        source: any that `davit.pretrained.resolve` takes; None for the published weights of `options.model`.
        out: the file to write; its suffix says the format.

    Raises:
        ValueError: source, options and file do not fit one another.
        DifferentError: the program computes something else in its runtime; nothing was written.
        davit.export.int8.DropError: int8 costs too much accuracy; nothing was written.
        OSError: the file cannot be written.
    """
    options, out = options or ExportOptions(), Path(out)
    check_destination(out, options)
    return write_program(program_of(source, options, out), out, options)


def program_of(source: str | Path | None, options: ExportOptions, out: Path) -> Program:
    """Make the program of a checkpoint: of a detector or segmentor where there is a config, else of a classifier."""
    found = of_openmmlab(source, options)
    if found is not None:
        if options.task != "classification" or options.model:
            raise ValueError("a detector or segmentor is what its config says: leave out the flags of a classifier.")
        if options.int8 is not None and options.raw:
            raise ValueError("`int8=DATA` is judged by the objects found, and `raw=True` leaves them out: choose one.")
        if unused := [*options.model_options, *(["class_map"] if options.class_map else [])]:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
            log.warning("%s: not used for a detector or segmentor, whose config says how images are prepared.", flags)
        return openmmlab_program(*found, options, options.format_for(out))
    if options.raw:
        raise ValueError("`raw=True` is for detectors and segmentors, which are exported with a `config`.")
    return classifier_program(source, options)


def check_destination(out: Path, options: ExportOptions) -> str:
    """Return the format of an export, or raise a ValueError if its file cannot be written as it is asked for."""
    name = options.format_for(out)
    if not out.parent.is_dir():
        raise ValueError(f"{out} cannot be written: the folder {out.parent} does not exist; create it first.")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise ValueError(f"{out} cannot be written: nothing can be written into {out.parent}; name another folder.")
    if (out.exists() or out.is_symlink()) and not options.overwrite:
        raise ValueError(f"{out} exists and is not replaced; give another name, or `overwrite=True`.")
    return name


def write_program(program: Program, out: Path, options: ExportOptions) -> Exported:
    """Write a program in the format of `out`'s suffix, checked before it gets its name (errors as in `export`)."""
    start = time.perf_counter()
    to = check_destination(out, options)
    form = FORMATS[to]
    try:
        module = importlib.import_module(f".{form.module}", __package__)
    except ModuleNotFoundError as error:
        if (error.name or "davit").partition(".")[0] == "davit" or not form.extra:
            raise
        raise ValueError(
            f"`to={to}` needs {(error.name or '').partition('.')[0]}, which is not installed: "
            f"{install_extra(form.extra)}"
        ) from error
    _warn_of_unused(options, to)
    if options.int8 is not None:
        from .int8.quantize import require_possible

        require_possible(to, program.metadata, options.int8)
    program = module.prepared(wrapped(program, options, to), options).described(format=to)
    program = replace(program, sizes=fitting_sizes(program))
    save: Save = module.build(program, options)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", suffix=".partial", dir=out.parent) as folder:
        partial = Path(folder) / out.name
        metadata = program.metadata
        if form.runs_here and options.check:
            save(metadata, partial)
            metadata = replace(metadata, tolerance=program.tolerance, differences=check(program, partial))
        else:
            reason = "no runtime of this machine runs it" if not form.runs_here else "it was asked for unchecked"
            metadata = replace(metadata, unchecked=reason)
            log.warning("%s is not compared with PyTorch: %s.", out.name, reason)
        save(metadata, partial)
        if options.int8 is not None:
            from .int8 import quantize

            small = Path(folder) / "int8" / out.name
            small.parent.mkdir()
            metadata = quantize(partial, small, options.int8)
            partial = small
        files = _put_in_place(partial, out)
    return Exported(out, metadata, files, time.perf_counter() - start, peak_memory_mb(torch.device("cpu")))


def _warn_of_unused(options: ExportOptions, to: str) -> None:
    if options.batch != 1 and FORMATS[to].is_dynamic and not options.fixed:
        log.warning("--batch-size %d does nothing without --fixed: %s takes any number of images.", options.batch, to)
    if options.opset != OPSETS[0] and to not in ("onnx", "openvino", "tensorrt"):
        log.warning("--opset %d does nothing for %s.", options.opset, to)
    if options.class_map and options.task != "classification":
        log.warning("--class-map does nothing for %s.", options.task)


def _put_in_place(partial: Path, out: Path) -> dict[str, int]:
    """Give what was written its name: what lies beside the file first, and the file itself last.

    A file that is there, whose companions are replaced, is taken away before: half of an old export would be read
    with half of a new one.
    """
    beside = sorted(path for path in partial.parent.iterdir() if path.name != partial.name)
    if beside or out.is_dir():
        _remove(out)
    for path in [*beside, partial]:
        _move(path, out.with_name(path.name))
    return {path.name: _bytes_of(out.with_name(path.name)) for path in [partial, *beside]}


def _move(partial: Path, out: Path) -> None:
    if partial.is_dir():
        partial.rename(out)
        return

    def copy(stream: IO[bytes]) -> None:
        with partial.open("rb") as source:
            shutil.copyfileobj(source, stream, 1 << 22)

    write_atomically(out, copy)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _bytes_of(path: Path) -> int:
    """Return the bytes of a file, or of all in a folder."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
