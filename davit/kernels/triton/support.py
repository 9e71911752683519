"""Import Triton, which not every wheel of PyTorch brings, and provide the helpers that the kernels share."""

import functools
import logging
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

_logger = logging.getLogger(__name__)

try:
    import triton
    import triton.language as tl
    from triton.runtime.jit import JITFunction
except ImportError:  # macOS, Windows, wheels for the CPU
    HAS_TRITON = INTERPRETED = False
    tl: Any = None  # type: ignore[no-redef]
    constexpr: Any = None

    def jit(function: Any) -> Any:
        """Return the kernel unchanged; it is never launched."""
        return function

else:
    HAS_TRITON = True
    jit, constexpr = triton.jit, tl.constexpr

    @jit
    def _probe() -> None:
        pass

    #: Whether TRITON_INTERPRET=1 was set when Triton was imported: kernels run on the CPU, slowly, for tests.
    INTERPRETED = not isinstance(_probe, JITFunction)

#: Whether products need float32 inputs: Triton's interpreter would multiply the bits of bfloat16.
WIDE_DOT = constexpr(INTERPRETED) if HAS_TRITON else False

#: Programs that fill a large GPU a few times over (an H100 has 132 multiprocessors). Sums are cut into parts by this
#: number and not by that of the GPU at hand, so that results are the same on each.
MANY_PROGRAMS = 528


@jit
def dot(a, b):  # type: ignore[no-untyped-def]
    """Multiply matrices, summed in float32, without TF32."""
    if WIDE_DOT:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


def runs_on(x: Tensor) -> bool:
    """Tell whether kernels can be launched for this tensor: on GPUs from Ampere on, or interpreted on the CPU."""
    return HAS_TRITON and (_launches_on(x.device.index) if x.is_cuda else INTERPRETED and x.device.type == "cpu")


@torch.compiler.assume_constant_result
def _launches_on(index: int) -> bool:
    return _can_launch(index)


@functools.cache
def _can_launch(index: int) -> bool:
    """Launch an empty kernel on a GPU: besides the GPU, Triton needs a C compiler and the headers of Python."""
    if torch.version.cuda is None or torch.cuda.get_device_capability(index) < (8, 0):
        return False
    try:
        with torch.cuda.device(index):
            _probe[(1,)]()
    except Exception as error:  # whatever a compiler, a loader or a driver raises
        _logger.warning(
            "Triton cannot launch a kernel on cuda:%d (%s: %s), so PyTorch computes everything, which is slower.",
            index, type(error).__name__, " ".join(str(error).split())[:300],
        )  # fmt: skip
        return False
    return True


def launch(kernel: Any, programs: int, device: torch.device, *arguments: Any, **constants: Any) -> None:
    """Run a kernel on a line of programs, on the device of its tensors."""
    if programs > 0:
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            kernel[(programs,)](*arguments, **constants)


def channels_together(x: Tensor) -> Tensor:
    """Return the tensor itself if its last axis is contiguous, as kernels need it, else a copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def power_of_two(number: int, minimum: int = 1) -> int:
    """Return the smallest power of two that is at least ``number`` and ``minimum``."""
    return max(minimum, 1 << (number - 1).bit_length())


def ceil_div(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)
