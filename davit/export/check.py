"""Compare a written program, in its own runtime, with PyTorch."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..runtimes import open_exported
from .program import Outputs, Program, Size, largest_relative
from .tracing import fixed_size

log = logging.getLogger(__name__)

DIFFERENT = 3  # exit status
ROUNDING = 2.0  # times as far from float64 as PyTorch's own float32 an export may be


class DifferentError(RuntimeError):
    """The exported program computes something else than the model; nothing was written."""

    exit_status = DIFFERENT


@dataclass(frozen=True)
class Distance:
    """Say how far outputs are from what the model computes in float64, and how far PyTorch's own in float32 are.

    Attributes:
        runtime: of the outputs.
        pytorch: of PyTorch's; None where the model does not compute in float64, and `runtime` is from float32.
    """

    runtime: float
    pytorch: float | None

    def allowed(self, tolerance: float) -> float:
        """Return the largest distance that is taken for rounding: a tolerance, or `ROUNDING` times PyTorch's own.

        Large models amplify the rounding of float32, in PyTorch as in every other runtime, beyond any fixed tolerance.
        """
        own = self.pytorch
        return max(tolerance, ROUNDING * own) if own is not None and math.isfinite(own) else tolerance


class Reference:
    """Computes what an export must compute, in float32 and in float64.

    Args:
        module: in eval mode on the CPU, from an input to a tuple of outputs.
        compare: outputs, outputs that are wanted -> difference.
    """

    def __init__(self, module: nn.Module, compare: Callable[[Outputs, Outputs], float] = largest_relative) -> None:
        self._module, self._compare = module, compare
        self._exact: nn.Module | None = _in_double(module)

    @torch.inference_mode()
    def distance(self, found: Outputs, images: Tensor) -> Distance:
        """Measure how far outputs are from those of the module for an input."""
        own: Outputs = self._module(images)
        exact = self._in_float64(images)
        if exact is None:
            return Distance(self._compare(found, own), None)
        return Distance(self._compare(found, exact), self._compare(own, exact))

    def _in_float64(self, images: Tensor) -> Outputs | None:
        if self._exact is None:
            return None
        try:
            outputs: Outputs = self._exact(images.double() if images.is_floating_point() else images)
            return outputs
        except (RuntimeError, TypeError, ValueError) as error:  # a part that is written for float32 alone
            text = " ".join(str(error).split())[:200]
            log.warning("Compared with PyTorch in float32, as the model does not compute in float64 (%s).", text)
            self._exact = None
            return None


def _in_double(module: nn.Module) -> nn.Module:
    """Copy a module in float64, without a copy in float32 on the way."""
    tensors = [*module.parameters(), *module.buffers()]
    made: dict[int, Tensor] = {}
    for one in tensors:
        if one.is_floating_point():
            double = one.detach().double()
            made[id(one)] = nn.Parameter(double, requires_grad=False) if isinstance(one, nn.Parameter) else double
    return copy.deepcopy(module, made).double()


def fitting_sizes(program: Program) -> tuple[Size, ...]:
    """Choose the sizes of the check: those that the program takes, or its one."""
    if (fixed := fixed_size(program)) is not None:
        return (fixed,)
    least = program.metadata.axes["height"][0]
    sizes = [size for size in program.sizes if min(size[1:]) >= least]
    return (*sizes, (1, least, least + 8))


def check(program: Program, path: Path) -> tuple[Mapping[str, Any], ...]:
    """Run a written program at the sizes of the check, and return the distances at each.

    Raises:
        DifferentError: one is larger than is allowed, or the runtime does not run it.
    """
    opened = open_exported(path)
    reference = Reference(program.reference or program.module, program.compare)
    generator = torch.Generator().manual_seed(0)
    found = []
    for size in program.sizes:
        images = program.draw(size, generator)
        batch, height, width = size
        try:
            outputs = opened(images)
        except Exception as error:
            text = " ".join(f"{type(error).__name__}: {error}".split())
            raise DifferentError(
                f"{opened.runtime} cannot run the program on {batch} x {height} x {width} pixels ({text[:400]}). "
                "Nothing was written."
            ) from error
        distance = reference.distance(outputs, program.arranged(images))
        own, base = distance.pytorch, "float64" if distance.pytorch is not None else "float32"
        allowed = program.tolerance if program.is_strict else distance.allowed(program.tolerance)
        said = "" if own is None else f" (PyTorch in float32: {own:.2g})"
        log.info(
            "%d x %4d x %4d pixels: %.2g of the largest value from PyTorch in %s%s",
            *(batch, height, width, distance.runtime, base, said),
        )
        if not distance.runtime <= allowed:
            raise DifferentError(
                f"in {opened.runtime} the outputs on {batch} x {height} x {width} pixels differ from PyTorch's in "
                f"{base} by {distance.runtime:.3g} of the largest value, and {allowed:g} is allowed{said}. "
                "Nothing was written."
            )
        found.append(
            {
                **{"batch": batch, "height": height, "width": width},
                **{"difference": float(f"{distance.runtime:.3g}"), "pytorch": own and float(f"{own:.3g}")},
            }
        )
    return tuple(found)
