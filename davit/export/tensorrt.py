"""Write programs for TensorRT, NVIDIA's runtime, through ONNX: an engine for the GPU that builds it."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

from ..runtimes import Metadata
from . import onnx
from .options import ExportOptions
from .program import Program, Save
from .tracing import axes_of, fixed_size

_MOST_BATCH, _MOST_SIDE = 32, 1024  # of an engine's profile; its memory grows with them


def prepared(program: Program, options: ExportOptions) -> Program:
    """State the sizes of the engine's profile.

    Raises:
        ValueError: `trtexec`, which builds engines, is not there.
    """
    if shutil.which("trtexec") is None:
        raise ValueError(
            "`to=tensorrt` needs trtexec of TensorRT, which is not on the PATH, and an NVIDIA GPU; install TensorRT, or "
            "export to .onnx here and build the engine there: trtexec --onnx=FILE.onnx --saveEngine=FILE.engine."
        )
    least = max(32, program.least)
    axes = axes_of(program, options, least, _MOST_SIDE, max(_MOST_BATCH, options.batch))
    return program.described(axes=axes, opset=options.opset)


def build(program: Program, options: ExportOptions) -> Save:
    """Translate a program to ONNX, and return what builds and writes the engine."""
    model = onnx.translated(program, options.opset)
    built: list[bytes] = []

    def save(metadata: Metadata, path: Path) -> None:
        if not built:
            file = path.with_name("program.onnx")
            onnx.write(model, file)
            _run(["trtexec", f"--onnx={file}", f"--saveEngine={path}", *_arguments(program)])
            file.unlink()
            file.with_name(f"{file.name}.data").unlink(missing_ok=True)
            built.append(path.read_bytes())
        path.write_bytes(built[0])
        # an engine has no place for text: it lies beside it
        path.with_suffix(".json").write_text(replace(metadata).to_json(), encoding="utf-8")

    return save


def _arguments(program: Program) -> list[str]:
    strong = ["--stronglyTyped"]  # as the graph's types say: float16 where that was asked for, and no TF32
    if fixed_size(program) is not None:
        return strong
    ends = [program.metadata.axes[axis] for axis in ("batch", "height", "width")]
    bands, height, width = program.metadata.input_size
    usual = (1, height, width)

    def shape(sizes: tuple[int, ...]) -> str:
        batch, *sides = sizes
        order = [batch, *sides, bands] if program.metadata.layout == "NHWC" else [batch, bands, *sides]
        return f"{onnx.INPUT}:{'x'.join(map(str, order))}"

    least, most = (tuple(int(pair[end] or 1) for pair in ends) for end in (0, 1))
    best = tuple(min(max(one, low), high) for one, low, high in zip(usual, least, most, strict=True))
    return [*strong, f"--minShapes={shape(least)}", f"--optShapes={shape(best)}", f"--maxShapes={shape(most)}"]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        end = " ".join((done.stdout + done.stderr).split())[-600:]
        raise ValueError(f"trtexec could not build the engine: ... {end}")
