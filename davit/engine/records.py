"""Keep what each image of an evaluation got, and put those of all processes together."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .distributed import World

_Z = 1.959963984540054  # standard deviations on either side of 95 %

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Outcomes:
    """What the images of a data set got, in its order; an image that could not be read is left out.

    Attributes:
        index: the position in the data set.
        target: the class that is right, by the model's index.
        predicted: the first class, by the model's index; of equal ones the lower; -1 where a logit is not finite.
        confidence: the probability of the first class, float32.
        loss: the cross-entropy, which is -log of the right class's probability.
        right: the first class is right (or one of the ReaL labels).
        scored: there is a label; without ReaL labels always.
        finite: all logits are.
    """

    index: Array
    target: Array
    predicted: Array
    confidence: Array
    loss: Array
    right: Array
    scored: Array
    finite: Array

    def __len__(self) -> int:
        return len(self.index)

    def only(self, chosen: Array) -> Outcomes:
        """Take some of the images, by a mask or by places."""
        return Outcomes(**{one.name: getattr(self, one.name)[chosen] for one in fields(self)})


class Records:
    """Collect what the images of one process get, batch by batch, without waiting for the device.

    Attributes:
        keep_logits: also keep the logits of the classes that compete, in float32 on the CPU: 4 bytes for each image
            and class.
    """

    def __init__(self, *, keep_logits: bool = False) -> None:
        self.keep_logits = keep_logits
        self.clear()

    def clear(self) -> None:
        """Drop what was collected."""
        self._batches: list[dict[str, Tensor]] = []

    def add(self, index: Tensor, logits_NC: Tensor, column_N: Tensor, loss: Tensor, **columns: Tensor) -> None:
        """Take what one batch got: its logits, which of them is right, and the other columns of `Outcomes`."""
        confidence = logits_NC.softmax(dim=1).amax(1)
        batch = {"index": index, "confidence": confidence, "loss": loss, **columns, "column": column_N}
        if self.keep_logits:
            batch["logits"] = logits_NC.cpu()
        self._batches.append(batch)

    def column(self, name: str) -> Tensor:
        """Return one column of this process's images, on the CPU, in the order in which they came."""
        parts = [batch[name].cpu() for batch in self._batches]
        if parts:
            return torch.cat(parts)
        return torch.zeros((0, 1)) if name == "logits" else torch.zeros(0, dtype=torch.int64)

    def gather(self, world: World) -> Outcomes:
        """Give every process the outcomes of all."""
        return gather_outcomes({one.name: self.column(one.name) for one in fields(Outcomes)}, world)


def gather_outcomes(own: dict[str, Tensor], world: World) -> Outcomes:
    """Put the columns of `Outcomes` of all processes together, in the order of the data set."""
    mine = {name: column.numpy() for name, column in own.items()}
    parts = [part for part in world.gather(mine) if len(part["index"])] or [mine]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in own}
    return Outcomes(**joined).only(np.argsort(joined["index"], kind="stable"))


def wilson(right: float, count: float) -> tuple[float, float]:
    """Return the 95 % interval of a share: Wilson's score interval (JASA 22, 1927); (0, 1) of no images."""
    if not count:
        return 0.0, 1.0
    share, spread = right / count, _Z**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    # at the ends the two terms are equal, but for rounding
    return (0.0 if right <= 0 else middle - half), (1.0 if right >= count else middle + half)


def interval_of_shares(values: Array) -> tuple[float, float]:
    """Return the 95 % interval of a mean of shares, one for each image and each 0 to 1; (0, 1) of no images.

    Wilson's interval, for as many independent right or wrong answers as have the same variance of the mean.
    """
    count = len(values)
    if not count:
        return 0.0, 1.0
    share, variance = float(values.mean()), float(values.var())
    equal = count * share * (1 - share) / variance if variance > 1e-12 else float(count)
    return wilson(share * equal, equal)


def interval_of_mean(values: Array) -> tuple[float, float]:
    """Return the mean's 95 % interval by the images' spread (normal approximation); NaN for fewer than two."""
    if len(values) < 2:
        return math.nan, math.nan
    middle, half = float(values.mean()), _Z * float(values.std(ddof=1)) / math.sqrt(len(values))
    return middle - half, middle + half
