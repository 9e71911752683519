"""Trace a program by torch.export, and wrap what is done before and after it."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from .options import FORMATS, MOST_SIDE, ExportOptions
from .program import Axes, Program

PROVEN_LEAST = 33  # pixels: below, torch.export cannot prove that the last stages have more than one position
MOST_BATCH = 65536
EXAMPLE = (2, 224, 192)
HALF_TOLERANCE = 1e-2
_LOGGERS = ("onnxscript", "onnx_ir", "torch.onnx", "torch.export", "torch.fx", "coremltools", "executorch")


class _Wrapped(nn.Module):
    """Take images in the layout and type that were asked for, and compute in float16 if so."""

    mean: Tensor
    std: Tensor

    def __init__(self, module: nn.Module, program: Program, options: ExportOptions) -> None:
        super().__init__()
        self.module = module
        self.is_uint8, self.is_nhwc, self.is_half = options.preprocess == "uint8", options.layout == "NHWC", False
        for name in ("mean", "std"):
            values = torch.tensor(getattr(program.metadata, name)).view(-1, 1, 1)
            self.register_buffer(name, values, persistent=True)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if self.is_nhwc:
            images = images.permute(0, 3, 1, 2)
        if self.is_uint8:  # as davit.data.transforms does
            images = images.to(self.mean.dtype).div(255).sub(self.mean).div(self.std)
        if not self.is_half:
            return self.module(images)
        outputs = self.module(images.half())
        return tuple(output.float() if output.is_floating_point() else output for output in outputs)


def wrapped(program: Program, options: ExportOptions, to: str) -> Program:
    """Put what `preprocess`, `layout` and `fp16` ask for around a program that takes normalised float32 NCHW.

    Raises:
        ValueError: images of more than 8 bits cannot be taken as bytes.
    """
    if options.preprocess == "uint8" and (bits := _more_than_bytes(program.metadata.decoding)):
        raise ValueError(
            f"`preprocess=True` takes images as bytes, and this model reads values of more than 8 bits ({bits}); "
            "leave it out, and normalise outside."
        )
    tolerance = options.tolerance or max(program.tolerance, FORMATS[to].tolerance)
    if options.fp16:
        tolerance = options.tolerance or program.half_tolerance or HALF_TOLERANCE
    program = replace(program, tolerance=tolerance, is_strict=options.tolerance is not None)
    program = program.described(precision="float16" if options.fp16 else "float32")
    halves = options.fp16 and not FORMATS[to].halves_itself
    if not (options.preprocess == "uint8" or options.layout == "NHWC" or halves):
        return program
    module, reference = _Wrapped(program.module, program, options).eval(), None
    if halves:
        reference, module = module, _Wrapped(copy.deepcopy(program.module).half(), program, options).eval()
        module.is_half = True
    program = replace(program, module=module, reference=reference)
    return program.described(preprocess=options.preprocess, layout=options.layout)


def _more_than_bytes(decoding: Any) -> str:
    found = {name: decoding.get(name) for name in ("bit_depth", "percentiles")}
    return ", ".join(f"{name}={value}" for name, value in found.items() if value not in (None, 8))


def axes_of(program: Program, options: ExportOptions, least: int, most: int | None, most_batch: int | None) -> Axes:
    """Say which sizes a program of a format takes: any of these, or one where that was asked for."""
    if options.fixed:
        _, height, width = program.metadata.input_size
        return {"batch": (options.batch,) * 2, "height": (height, height), "width": (width, width)}
    return {"batch": (1, most_batch), "height": (least, most), "width": (least, most)}


def fixed_size(program: Program) -> tuple[int, int, int] | None:
    """Return the (batch, height, width) of a program for one size; None for one of free sizes."""
    ends = [program.metadata.axes[axis] for axis in ("batch", "height", "width")]
    if any(least != most for least, most in ends):
        return None
    return ends[0][0], ends[1][0], ends[2][0]


def traced(program: Program) -> ExportedProgram:
    """Trace a program by torch.export, at the sizes that its metadata's axes say.

    Raises:
        ValueError: it cannot be traced with free sizes.
    """
    size = fixed_size(program)
    height, width = (1, 2) if program.metadata.layout == "NHWC" else (2, 3)
    least = max(PROVEN_LEAST, program.least)
    free = {
        0: Dim("batch", min=1, max=MOST_BATCH),
        height: Dim("height", min=least, max=MOST_SIDE),
        width: Dim("width", min=least, max=MOST_SIDE),
    }
    image = program.example(size or program.traced_at or EXAMPLE)
    with torch.no_grad(), quiet():
        if size is not None:
            return export(program.module, (image,))
        if not program.is_proven:
            axes = dict.fromkeys(free, Dim.DYNAMIC)
            return export(
                program.module, (image,), dynamic_shapes=(axes,), prefer_deferred_runtime_asserts_over_guards=True
            )
        for strict in (False, True):  # torch 2.11 proves free sizes in the strict mode alone
            try:
                return export(program.module, (image,), dynamic_shapes=(free,), strict=strict)
            except Exception as error:  # torch's errors of this have no common type
                reason = " ".join(str(error).split())[:300]
    raise ValueError(
        f"{program.metadata.model} cannot be exported with free sizes ({reason}); `fixed=True` exports it for one "
        "size (--img-size) and batch."
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Leave out what torch.export and the exporters say of their own deprecations and progress."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
