"""Keep the probabilities from which on a class counts as there, beside the checkpoint that they were fitted for."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import read_small, write_bytes
from ..limits import NUMBERS
from ..text import as_line, some
from .calibration import fingerprint, writable_beside, write_beside

log = logging.getLogger(__name__)

DEFAULT = 0.5
SUFFIX = ".threshold.json"

_MOST_BYTES = 1 << 26


@dataclass(frozen=True)
class FittedThresholds:
    """Thresholds, and what they were fitted on.

    Attributes:
        thresholds: of each class by its name, or the one for all under "".
        part: "all" for one threshold, or "class".
        pictures: how many they were fitted on.
        held_macro_f1, held_macro_f1_fitted: in percent, each half of the data at 0.5, and at the thresholds fitted on
            the other half.
        data: the data's place and split.
        weights: as `davit.engine.calibration.fingerprint` of the model.
    """

    thresholds: dict[str, float]
    part: str
    pictures: int
    held_macro_f1: float
    held_macro_f1_fitted: float
    data: str
    weights: str


def file_beside(checkpoint: str | Path) -> Path:
    """Return where the thresholds of a checkpoint are kept: NAME.threshold.json beside it."""
    checkpoint = Path(checkpoint)
    return checkpoint.with_name(f"{checkpoint.name}{SUFFIX}")


def require_writable(checkpoint: Path | None) -> None:
    """Raise `ValueError` where no file can be written beside a checkpoint; None is for published weights."""
    if checkpoint is not None:
        writable_beside("--fit-threshold", checkpoint, file_beside(checkpoint))


def write_thresholds(checkpoint: Path, fitted: FittedThresholds) -> Path:
    """Write thresholds beside their checkpoint, in one step; older ones are replaced, which is said."""
    return write_beside(file_beside(checkpoint), fitted, "the threshold")


def copy_thresholds(checkpoint: Path, other: Path) -> None:
    """Write the thresholds of a checkpoint beside another name of the same file too."""
    write_bytes(file_beside(other), file_beside(checkpoint).read_bytes())
    log.info("its thresholds are written to %s too", as_line(file_beside(other)))


def thresholds_for(
    asked: float | None, checkpoint: Path | None, model: nn.Module, names: Sequence[str] | None
) -> Tensor:
    """Decide from which probability on a class counts as there: the one asked for, else as fitted, else 0.5.

    What is taken from a file, and why one is not, is logged in a line.

    Args:
        names: of the model's classes, as its training noted them.

    Returns:
        (K,) float32.
    """
    count = int(getattr(model, "num_classes", 0))
    default = torch.full((count,), DEFAULT if asked is None else asked)
    if asked is not None or checkpoint is None or not (file := file_beside(checkpoint)).is_file():
        return default
    named = as_line(file)
    try:
        noted: Any = json.loads(read_small(file, _MOST_BYTES))
        values, weights = dict(noted["thresholds"]), noted["weights"]
        if wrong := [name for name, value in values.items() if not NUMBERS["threshold"].has(value)]:
            raise ValueError(f"the threshold of {some(wrong)} is not {NUMBERS['threshold']}")
        classes = list(names) if names is not None and len(names) == count else [""] * count
        missing = [name for name in classes if name not in values and "" not in values]
        if missing:
            raise ValueError(f"it has none for {some(missing)}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning(
            "%s cannot be used (%s): the threshold is %g; validate.py --fit-threshold writes it again",
            *(named, as_line(error), DEFAULT),
        )
        return default
    if weights != fingerprint(model):
        log.warning(
            "%s was fitted for other weights than these: the threshold is %g; validate.py --fit-threshold fits it "
            "again, --threshold P takes another",
            *(named, DEFAULT),
        )
        return default
    found = torch.tensor([values.get(name, values.get("")) for name in classes], dtype=torch.float32)
    span = f"{found.min():.4g}" if found.min() == found.max() else f"{found.min():.4g} to {found.max():.4g}"
    log.info("threshold %s of %s; --threshold 0.5 is the usual one", span, named)
    return found
