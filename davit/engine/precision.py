"""Choose the dtype of a forward pass, and tell whether this processor is fast in it."""

from __future__ import annotations

import logging
import os
import platform
import timeit
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from ..choices import AMP_DTYPES, MODEL_DTYPES

log = logging.getLogger(__name__)

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, full) for name, full in AMP_DTYPES.items()}

_SIDE = 256  # of the matrices that are timed: 60 ms where bfloat16 is emulated, else 3
_SLOW = 1.5  # times float32; with instructions it is about half, by conversions 3, one number at a time 30
_WITHOUT = ("AVX512_CORE", "AVX512_CORE_VNNI")  # values of ONEDNN_MAX_CPU_ISA with AVX-512, but without its bfloat16


@dataclass(frozen=True)
class Precision:
    """Mixed precision in ``dtype``, or none where it is None: then all is computed in the dtype of the weights.

    Attributes:
        weights: of the model, and of the images that it gets.
        remark: why it is not what the flags ask for, or what it costs; "" where there is nothing to say.
    """

    device_type: str
    dtype: torch.dtype | None = None
    remark: str = ""
    weights: torch.dtype = torch.float32

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context that a forward pass runs in."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device_type, self.dtype)

    @property
    def name(self) -> str:
        """float32, bfloat16 or float16, as it is recorded; with " weights" behind it where these have that dtype."""
        if self.weights != torch.float32:
            return f"{self.weights} weights".removeprefix("torch.")
        return str(self.dtype or torch.float32).removeprefix("torch.")

    @property
    def needs_scaler(self) -> bool:
        """Whether gradients underflow without loss scaling."""
        return self.dtype == torch.float16

    @property
    def flags(self) -> dict[str, Any]:
        """The flags that give this precision on any machine, for the record of a run."""
        mixed = self.dtype is not None
        return {"amp": mixed, "native_amp": False, "apex_amp": False, "amp_dtype": self.name if mixed else None}

    def say(self, before: str | None = None) -> None:
        """Log what the flags do not tell, in one line; nothing where there is nothing.

        Args:
            before: the precision recorded in the state that a run continues from, if any.
        """
        words = [self.remark] if self.remark else []
        if before is not None and before != self.name:
            dtype, _, of_weights = before.partition(" ")
            keep = "no --amp" if before == "float32" else f"--{'model' if of_weights else 'amp'}-dtype {dtype}"
            words.insert(0, f"Precision was {before} and is {self.name} from here on ({keep} keeps it).")
        if words:
            log.warning("%s", " ".join(words))


def precision_from(options: Any, device: torch.device, agree: Callable[[bool], bool] = bool) -> Precision:
    """Decide the dtype of mixed precision; without a name fp16 on CUDA (as the original) and bf16 elsewhere.

    On a processor without instructions for bfloat16 it is float32, unless `amp_dtype` names bfloat16.

    Args:
        options: flags or `ModelOptions`, of which amp, its older names native_amp and apex_amp, amp_dtype and
            model_dtype count.
        agree: whether something that holds for this process holds for all (`World.everywhere`): processes on
            several machines must not differ in precision.
    """
    amp_dtype, model_dtype = options.amp_dtype, getattr(options, "model_dtype", None)
    is_mixed = options.amp or options.native_amp or options.apex_amp or amp_dtype
    if model_dtype not in (None, "float32"):
        if model_dtype not in MODEL_DTYPES:
            raise ValueError(f"`model_dtype={model_dtype}` is unknown; choose from {', '.join(MODEL_DTYPES)}.")
        if is_mixed:
            raise ValueError(
                f"`model_dtype={model_dtype}` gives the weights this dtype, and mixed precision (amp, amp_dtype) "
                "keeps them in float32: leave one of them out."
            )
        weights = getattr(torch, model_dtype)
        is_emulated = device.type == "cpu" and weights == torch.bfloat16 and not agree(has_bfloat16())
        remark = f"model_dtype {model_dtype}: {_why_slow()}." if is_emulated else ""
        return Precision(device.type, None, remark, weights)
    if not is_mixed:
        return Precision(device.type)
    name = amp_dtype or ("fp16" if device.type == "cuda" else "bf16")
    if name not in DTYPES:
        raise ValueError(f"`amp_dtype={name}` is unknown; choose from {', '.join(DTYPES)}.")
    dtype = DTYPES[name]
    if device.type != "cpu" or dtype != torch.bfloat16 or agree(has_bfloat16()):
        return Precision(device.type, dtype)
    why = _why_slow()
    if amp_dtype:
        return Precision(device.type, dtype, f"amp_dtype {name}: {why}. With amp alone it would be float32.")
    return Precision(device.type, None, f"amp: float32, since {why}. amp_dtype bfloat16 is used even so.")


def dtype_of(model: nn.Module) -> torch.dtype | None:
    """Return the dtype of a model's weights, in which it takes images; None where it has none, and takes any."""
    return next((parameter.dtype for parameter in model.parameters()), None)


def _why_slow() -> str:
    if has_bfloat16():
        return "a machine of this job has no instructions for bfloat16 and is many times slower in it"
    times = f"{bfloat16_cost():.0f} times as long as in float32"
    return f"this processor has no instructions for bfloat16, and products of matrices take {times}"


@cache
def has_bfloat16() -> bool:
    """Tell whether products of bfloat16 are fast here: the processor has instructions, and oneDNN may use them.

    ``ONEDNN_MAX_CPU_ISA`` can forbid it. ``ATEN_CPU_CAPABILITY`` cannot: it limits PyTorch's own loops, not oneDNN.
    Elsewhere than on x86 and ARM, and for a torch that does not tell, a small product is timed.
    """
    try:
        onednn = torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        if platform.machine().lower() in ("aarch64", "arm64") and torch.backends.mkldnn.is_available():
            return onednn
        if platform.machine().lower() in ("x86_64", "amd64"):
            # oneDNN's answer is yes from AVX-512 on, where it may have to convert to float32 and back
            limit = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA", "")
            has = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
            return onednn and has and limit.upper() not in _WITHOUT
    except (AttributeError, RuntimeError):  # names that PyTorch may change
        pass
    return bfloat16_cost() < _SLOW


@cache
def bfloat16_cost() -> float:
    """Measure the time of a product of matrices in bfloat16 over that in float32."""

    def seconds(matrix: torch.Tensor) -> float:
        return min(timeit.repeat(lambda: matrix @ matrix, number=1, repeat=4)[1:])  # the first prepares

    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        ones = torch.ones(_SIDE, _SIDE, device="cpu", dtype=torch.float32)
        return seconds(ones.bfloat16()) / seconds(ones)
