"""Measure how far a model's probabilities can be trusted, and fit the temperature that makes them agree with reality.

Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017): the logits are divided by one number, so that no
answer changes, only how sure it is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..files import read_small, write_bytes
from ..limits import NUMBERS
from ..text import as_line, without_nan
from .distributed import World
from .records import Array, Outcomes, Records, gather_outcomes

log = logging.getLogger(__name__)

BINS = 15
SUFFIX = ".temperature.json"
LEAST, MOST = 0.05, 20.0  # of a temperature that is fitted: answers that are all right ask for 0

_MOST_BYTES = 1 << 20
_ROWS = 4096  # images whose logits are looked at together
_STEPS = 100


@dataclass(frozen=True)
class Bin:
    """The images whose confidence lies from `low` to below `high`; a confidence of exactly 1 has a bin of its own.

    `confidence` and `accuracy` are means, NaN where `count` is 0.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def reliability(confidence: Array, right: Array, bins: int = BINS) -> list[Bin]:
    """Sort images by confidence into bins of equal width, and a last one for what is exactly 1 (as torchmetrics).

    Args:
        confidence: (N,) the probability of the first class, float32.
        right: (N,) whether it is right.
    """
    edges = torch.linspace(0, 1, bins + 1)
    bin_N = (torch.bucketize(torch.as_tensor(confidence, dtype=torch.float32), edges, right=True) - 1).numpy()
    counts = np.bincount(bin_N, minlength=bins + 1)
    sure = np.bincount(bin_N, weights=confidence.astype(np.float64), minlength=bins + 1)
    hits = np.bincount(bin_N, weights=right.astype(np.float64), minlength=bins + 1)
    ends = [*edges.tolist(), 1.0]

    def mean(total: float, count: int) -> float:
        return total / count if count else math.nan

    return [
        Bin(ends[i], ends[i + 1], int(counts[i]), mean(sure[i], counts[i]), mean(hits[i], counts[i]))
        for i in range(bins + 1)
    ]


def ece(bins: list[Bin]) -> float:
    """Return the expected calibration error, 0 to 1: the mean gap between confidence and accuracy."""
    total = sum(one.count for one in bins)
    return (
        sum(one.count * abs(one.accuracy - one.confidence) for one in bins if one.count) / total if total else math.nan
    )


@dataclass(frozen=True)
class Calibration:
    """How well the probabilities of some images agree with reality.

    Attributes:
        count: the images: those with a label and finite logits.
        nll: the mean of -log(probability of the right class), in nats.
        ece: of 15 bins, 0 to 1.
    """

    count: int
    nll: float
    ece: float

    @classmethod
    def of(cls, outcomes: Outcomes) -> Calibration:
        """Measure it on those of the images that have a label and finite logits."""
        kept = outcomes.only(outcomes.scored & outcomes.finite)
        nll = float(kept.loss.astype(np.float64).mean()) if len(kept) else math.nan
        return cls(len(kept), nll, ece(reliability(kept.confidence, kept.right)))


# ---- the temperature ----


def at_temperature(logits_NC: Tensor, column_N: Tensor, temperature: float | Tensor) -> tuple[Tensor, Tensor]:
    """Return the confidence and the loss, each (N,) float32, of logits divided by a temperature (of each row)."""
    divisor = temperature[:, None] if isinstance(temperature, Tensor) else temperature
    logs_NC = (logits_NC / divisor).log_softmax(dim=1)
    return logs_NC.amax(1).exp(), -logs_NC.gather(1, column_N[:, None])[:, 0]


def fit_temperature(
    logits_NC: Tensor, column_N: Tensor, total: Callable[[Tensor], Tensor] = lambda sums: sums
) -> float:
    """Find the temperature from `LEAST` to `MOST` with the least mean cross-entropy, to six digits.

    The cross-entropy is convex in 1 / temperature, so its slope is zero there: Newton's steps, halving where one
    leaves the bracket.

    Args:
        logits_NC: finite; of this process's images.
        column_N: which of them is right.
        total: sums a tensor over all processes; each must call this function.
    """
    low, high = 1 / MOST, 1 / LEAST
    scale = 1.0
    for _ in range(_STEPS):
        slope, curve = total(_slope(logits_NC, column_N, scale)).tolist()
        if slope == 0:
            break
        if slope > 0:
            high = scale
        else:
            low = scale
        step = scale - slope / curve if curve > 0 else math.nan
        before, scale = scale, step if low < step < high else math.sqrt(low * high)
        if abs(scale - before) < 1e-9 * before:
            break
    return float(f"{min(max(1 / scale, LEAST), MOST):.6g}")


def _slope(logits_NC: Tensor, column_N: Tensor, scale: float) -> Tensor:
    """Sum the first and second derivative of the cross-entropy by the factor on the logits, over images."""
    sums = torch.zeros(2, dtype=torch.float64)
    for some_NC, right_N in zip(logits_NC.split(_ROWS), column_N.split(_ROWS), strict=True):
        z_NC = some_NC.double()
        p_NC = (scale * z_NC).softmax(dim=1)
        mean_N = (p_NC * z_NC).sum(1)
        right = z_NC.gather(1, right_N[:, None])[:, 0]
        variance = (p_NC * (z_NC - mean_N[:, None]) ** 2).sum()
        sums += torch.stack([(mean_N - right).sum(), variance])
    return sums


@dataclass(frozen=True)
class Fitted:
    """A temperature, and what it was fitted on.

    Attributes:
        temperature: what logits are divided by.
        part: "all" of the data, or every second image ("half").
        pictures: how many it was fitted on.
        held, held_calibrated: images that it was not fitted on, without and with the temperature. With the part
            "all" each half of the data under the temperature of the other half.
        data: the data's place and split.
        weights: as `fingerprint` of the model.
    """

    temperature: float
    part: str
    pictures: int
    held: Calibration
    held_calibrated: Calibration
    data: str
    weights: str


def fit(records: Records, part: str, world: World) -> tuple[float, int, Calibration, Calibration]:
    """Fit a temperature on the images of all processes, and measure it on images that it was not fitted on.

    Args:
        records: with logits, of this process's images.
        part: of `davit.choices.FITTED_ON`: all images, or those at the even positions of the data set.

    Returns:
        The temperature, the number of images it was fitted on, and held images without and with it.

    Raises:
        ValueError: there are not two images for it.
    """
    own = {name: records.column(name) for name in ("index", "scored", "finite", "logits", "column")}
    usable_N = own["scored"].bool() & own["finite"].bool()
    is_even_N = own["index"] % 2 == 0
    halves = usable_N & is_even_N, usable_N & ~is_even_N
    counts = world.sum(torch.tensor([int(half.sum()) for half in halves], device=world.device)).tolist()
    if not all(counts):
        raise ValueError(
            "--fit-temperature needs images with a label and finite logits at even and odd positions of the data, "
            f"to fit on the ones and test on the others; there are {counts[0]} and {counts[1]}."
        )

    def fitted_on(mask_N: Tensor) -> float:
        def total(sums: Tensor) -> Tensor:
            return world.sum(sums.to(world.device)).cpu()

        return fit_temperature(own["logits"][mask_N], own["column"][mask_N], total)

    first = fitted_on(halves[0])
    if part == "half":
        temperature, pictures = first, counts[0]
        crossed_N = torch.full(usable_N.shape, first)
    else:
        temperature, pictures = fitted_on(usable_N), sum(counts)
        crossed_N = torch.where(is_even_N, fitted_on(halves[1]), first)
    before, after = records.gather(world), records_at(records, crossed_N, world)
    if part == "half":
        before, after = (one.only(one.index % 2 == 1) for one in (before, after))
    return temperature, pictures, Calibration.of(before), Calibration.of(after)


def records_at(records: Records, temperature: float | Tensor, world: World) -> Outcomes:
    """Gather the outcomes with logits divided by a temperature, or by one for each image, (N,)."""
    own = {one.name: records.column(one.name) for one in fields(Outcomes)}
    own["confidence"], own["loss"] = at_temperature(records.column("logits"), records.column("column"), temperature)
    return gather_outcomes(own, world)


# ---- the file beside a checkpoint ----


def fingerprint(model: nn.Module) -> str:
    """Return a hash that changes with each step of a training: of all biases, and weights and statistics of norms."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor) and tensor.dim() <= 1:
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().double().numpy().tobytes())
    return digest.hexdigest()[:32]


def file_beside(checkpoint: str | Path) -> Path:
    """Return where the temperature of a checkpoint is kept: NAME.temperature.json beside it."""
    checkpoint = Path(checkpoint)
    return checkpoint.with_name(f"{checkpoint.name}{SUFFIX}")


def require_writable(checkpoint: Path | None) -> None:
    """Raise `ValueError` where no file can be written beside a checkpoint; None is for published weights."""
    if checkpoint is None:
        return
    writable_beside("--fit-temperature", checkpoint, file_beside(checkpoint))


def writable_beside(flag: str, checkpoint: Path, file: Path) -> None:
    """Raise `ValueError` where the file that a flag writes beside a checkpoint cannot be written."""
    folder = checkpoint.absolute().parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(
            f"{flag} writes {file.name} beside the checkpoint, and none can be written in {folder}: copy the "
            "checkpoint to a folder of yours."
        )


def write_fitted(checkpoint: Path, fitted: Fitted) -> Path:
    """Write a temperature beside its checkpoint, in one step; an older one is replaced, which is said."""
    return write_beside(file_beside(checkpoint), fitted, "the temperature")


def write_beside(file: Path, fitted: Any, what: str) -> Path:
    """Write a dataclass of what was fitted beside its checkpoint, in one step; that an older one is replaced is said.

    Args:
        what: it is, for the log.
    """
    if file.exists():
        log.warning("%s: %s of an earlier fit is replaced", as_line(file), what)
    text = json.dumps(without_nan(asdict(fitted)), indent=2, allow_nan=False)
    write_bytes(file, f"{text}\n".encode())
    return file


def copy_fitted(checkpoint: Path, other: Path) -> None:
    """Write the temperature of a checkpoint beside another name of the same file too, where predict.py may look."""
    write_bytes(file_beside(other), file_beside(checkpoint).read_bytes())
    log.info("its temperature is written to %s too", as_line(file_beside(other)))


def temperature_for(asked: float | None, checkpoint: Path | None, model: nn.Module) -> float:
    """Decide by which temperature logits are divided: the one asked for, else that beside the checkpoint, else 1.

    What is taken from a file, and why one is not, is logged in a line.
    """
    if asked is not None or checkpoint is None or not (file := file_beside(checkpoint)).is_file():
        return 1.0 if asked is None else asked
    named = as_line(file)
    try:
        noted: Any = json.loads(read_small(file, _MOST_BYTES))
        temperature, weights = noted["temperature"], noted["weights"]
        if not NUMBERS["temperature"].has(temperature):
            raise ValueError(f"its temperature is not {NUMBERS['temperature']}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        log.warning(
            "%s cannot be used (%s): probabilities are not calibrated; validate.py --fit-temperature writes it again",
            *(named, as_line(error)),
        )
        return 1.0
    if weights != fingerprint(model):
        log.warning(
            "%s was fitted for other weights than these: probabilities are not calibrated; validate.py "
            "--fit-temperature fits it again, --temperature %g takes it all the same",
            *(named, temperature),
        )
        return 1.0
    log.info("temperature %g of %s calibrates the probabilities; --temperature 1 leaves them raw", temperature, named)
    return float(temperature)
