"""Compare a written program, in its own runtime, with PyTorch."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..runtimes import open_exported
from .program import Program, Size
from .tracing import fixed_size

log = logging.getLogger(__name__)

DIFFERENT = 3  # exit status


class DifferentError(RuntimeError):
    """The exported program computes something else than the model; nothing was written."""

    exit_status = DIFFERENT


def fitting_sizes(program: Program) -> tuple[Size, ...]:
    """Choose the sizes of the check: those that the program takes, or its one."""
    if (fixed := fixed_size(program)) is not None:
        return (fixed,)
    least = program.metadata.axes["height"][0]
    sizes = [size for size in program.sizes if min(size[1:]) >= least]
    return (*sizes, (1, least, least + 8))


def check(program: Program, path: Path) -> tuple[Mapping[str, Any], ...]:
    """Run a written program at the sizes of the check, and return the difference at each.

    Raises:
        DifferentError: one is above the tolerance, or the runtime does not run it.
    """
    opened = open_exported(path)
    generator = torch.Generator().manual_seed(0)
    found = []
    for size in program.sizes:
        images = program.draw(size, generator)
        wanted = program.compute(images)
        batch, height, width = size
        try:
            outputs = opened(images)
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise DifferentError(
                f"{opened.runtime} cannot run the program on {batch} x {height} x {width} pixels ({text[:400]}). "
                "Nothing was written."
            ) from error
        difference = program.compare(outputs, wanted)
        log.info("%d x %4d x %4d pixels: differs by %.2g of the largest value", batch, height, width, difference)
        if not difference <= program.tolerance:
            raise DifferentError(
                f"in {opened.runtime} the outputs on {batch} x {height} x {width} pixels differ from PyTorch's by "
                f"{difference:.3g} of the largest value, and {program.tolerance:g} is allowed. Nothing was written."
            )
        found.append({"batch": batch, "height": height, "width": width, "difference": float(f"{difference:.3g}")})
    return tuple(found)
