"""The number format of a forward pass."""

from __future__ import annotations

from argparse import Namespace
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

DTYPES = {"bf16": torch.bfloat16, "bfloat16": torch.bfloat16, "fp16": torch.float16, "float16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """Mixed precision in ``dtype``, or plain fp32 where it is None."""

    device_type: str
    dtype: torch.dtype | None = None

    def autocast(self) -> AbstractContextManager[object]:
        """The context a forward pass runs in."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.device_type, self.dtype)

    @property
    def needs_scaler(self) -> bool:
        """Whether gradients underflow without loss scaling."""
        return self.dtype == torch.float16


def precision_from(args: Namespace, device: torch.device) -> Precision:
    """What --amp, --native-amp and --amp-dtype ask for; fp16 on CUDA (as the original), bf16 elsewhere."""
    if not (args.amp or args.native_amp or args.apex_amp or args.amp_dtype):
        return Precision(device.type)
    name = args.amp_dtype or ("fp16" if device.type == "cuda" else "bf16")
    if name not in DTYPES:
        raise ValueError(f"--amp-dtype {name!r} is unknown; choose from {', '.join(DTYPES)}.")
    return Precision(device.type, DTYPES[name])
