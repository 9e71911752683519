"""Measure answers of several labels per image over a whole data set, and fit thresholds to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from .distributed import World
from .records import Array

_LEAST = float(np.finfo(np.float32).min)


@dataclass(frozen=True)
class Answers:
    """What the images of a data set got, in its order; an image that could not be read is left out.

    Attributes:
        index: (N,) the positions in the data set.
        logits: (N, K) float32; the least number there is where an image's were not finite.
        targets: (N, K) bool.
        finite: (N,) all logits were.
    """

    index: Array
    logits: Array
    targets: Array
    finite: Array

    def __len__(self) -> int:
        return len(self.index)

    def only(self, chosen: Array) -> Answers:
        """Take some of the images, by a mask or by places."""
        return Answers(self.index[chosen], self.logits[chosen], self.targets[chosen], self.finite[chosen])

    def probabilities(self) -> Array:
        """Return (N, K) float32, as predictions have them."""
        return torch.from_numpy(self.logits).sigmoid().numpy()


class AnswerRecords:
    """Collect what the images of one process get, batch by batch, on the CPU."""

    def __init__(self, num_labels: int) -> None:
        self.num_labels = num_labels
        self.clear()

    def clear(self) -> None:
        """Drop what was collected."""
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, index_N: Tensor, logits_NK: Tensor, targets_NK: Tensor) -> None:
        """Take what one batch got."""
        self._batches.append((index_N.cpu(), logits_NK.float().cpu(), (targets_NK > 0.5).cpu()))

    def gather(self, world: World) -> Answers:
        """Give every process the answers of all."""
        width = self.num_labels
        empty = (torch.empty(0, dtype=torch.int64), torch.empty(0, width), torch.empty(0, width, dtype=torch.bool))
        mine = [torch.cat(column).numpy() for column in zip(*(self._batches or [empty]), strict=True)]
        index, logits, targets = (np.concatenate(parts) for parts in zip(*world.gather(mine), strict=True))
        finite = np.isfinite(logits).all(1)
        logits = np.where(finite[:, None], logits, np.float32(_LEAST))
        return Answers(index, logits, targets, finite).only(np.argsort(index, kind="stable"))


@dataclass(frozen=True)
class Measures:
    """How good answers are. All are shares of 1, and NaN where there is nothing to divide by.

    Attributes:
        support: (K,) the images that have each class.
        predicted: (K,) those whose probability reaches the threshold; `hits` of them are right.
        average_precision: (K,) as scikit-learn defines it; NaN for a class without images.
        micro_map: average precision of all answers in one list.
        without: images that have no label.
        exact: images whose labels are all found, and no other.
    """

    support: Array
    predicted: Array
    hits: Array
    average_precision: Array
    micro_map: float
    without: int
    exact: int
    count: int

    @property
    def absent(self) -> Array:
        """The classes that no image has, which are left out of `map` and `macro_f1`."""
        return np.flatnonzero(self.support == 0)

    @property
    def map(self) -> float:
        """Mean average precision: over the classes that an image has."""
        return _mean(self.average_precision[self.support > 0])

    @property
    def f1(self) -> Array:
        """(K,) of each class; 0 where nothing is found."""
        return f1_of(self.hits, self.predicted, self.support)

    @property
    def macro_f1(self) -> float:
        return _mean(self.f1[self.support > 0])

    @property
    def micro_f1(self) -> float:
        return float(f1_of(self.hits.sum(), self.predicted.sum(), self.support.sum()))

    def percent(self) -> dict[str, float]:
        """Return the figures of a summary, in percent."""
        return {name: 100 * getattr(self, name) for name in ("map", "micro_map", "macro_f1", "micro_f1")}

    def per_class(self, names: Sequence[str], thresholds: Array) -> list[dict[str, Any]]:
        """Return a row for each class, in percent."""
        rows = []
        for index, name in enumerate(names):
            support, predicted, hits = (int(one[index]) for one in (self.support, self.predicted, self.hits))
            rows.append(
                {
                    "index": index,
                    "class": name,
                    "support": support,
                    "average_precision": 100 * float(self.average_precision[index]),
                    "threshold": float(thresholds[index]),
                    "predicted": predicted,
                    "hits": hits,
                    "precision": 100 * hits / predicted if predicted else math.nan,
                    "recall": 100 * hits / support if support else math.nan,
                    "f1": 100 * float(self.f1[index]) if support else math.nan,
                }
            )
        return rows


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else math.nan


def f1_of(hits: Any, predicted: Any, support: Any) -> Any:
    """Return 2 hits / (predicted + support); 0 of none."""
    return 2 * hits / np.maximum(1, predicted + support)


def measure(answers: Answers, thresholds: Tensor) -> Measures:
    """Measure answers against labels.

    Average precision is scikit-learn's: the sum of the precision at each score that an image with the class has,
    weighted by the recall that it adds; equal scores count together.

    Args:
        thresholds: (K,) of the probabilities, for what needs a yes or no.
    """
    targets = answers.targets
    found = answers.probabilities() >= thresholds.float().numpy()
    support = targets.sum(0)
    precision = np.full(targets.shape[1], math.nan)
    for index in np.flatnonzero(support):
        precision[index] = average_precision_score(targets[:, index], answers.logits[:, index])
    has_any = bool(support.sum())
    return Measures(
        support=support,
        predicted=found.sum(0),
        hits=(found & targets).sum(0),
        average_precision=precision,
        micro_map=float(average_precision_score(targets.ravel(), answers.logits.ravel())) if has_any else math.nan,
        without=int((~targets.any(1)).sum()),
        exact=int((found == targets).all(1).sum()),
        count=len(answers),
    )


# ---- thresholds ----

LEAST_POSITIVES = 5  # images of a class for a threshold of its own


def fit_thresholds(answers: Answers, part: str) -> Array:
    """Find the thresholds with the best macro F1, (K,) float32.

    Args:
        part: of `davit.choices.THRESHOLDS`: one for all classes, or one for each that has `LEAST_POSITIVES` images
            or more; the others then take the one for all.

    Raises:
        ValueError: no image has a label.
    """
    probabilities, targets = answers.probabilities(), answers.targets
    support = targets.sum(0)
    if not support.sum():
        raise ValueError("--fit-threshold needs images with labels, and none has one.")
    present = np.flatnonzero(support)
    single = _best_cut(probabilities[:, present], targets[:, present])
    thresholds = np.full(targets.shape[1], single, dtype=np.float32)
    if part == "class":
        for index in np.flatnonzero(support >= LEAST_POSITIVES):
            thresholds[index] = _best_cut(probabilities[:, [index]], targets[:, [index]])
    return thresholds


def _best_cut(probabilities: Array, targets: Array) -> np.float32:
    """Find the threshold for all columns at which the mean of their F1 is best; of equal ones the middle.

    All answers are taken by falling probability: each changes the F1 of its own class alone.
    """
    N, K = targets.shape
    order = np.argsort(-probabilities, axis=0, kind="stable")
    hits = np.take_along_axis(targets, order, 0).cumsum(0)
    f1 = f1_of(hits, np.arange(1, N + 1)[:, None], targets.sum(0))
    gain = np.diff(f1, axis=0, prepend=0)
    sorted_probabilities = np.take_along_axis(probabilities, order, 0)
    flat = np.argsort(-sorted_probabilities.ravel(), kind="stable")
    values, total = sorted_probabilities.ravel()[flat], gain.ravel()[flat].cumsum()
    is_end = np.append(values[1:] != values[:-1], True)  # equal probabilities go together
    values, total = values[is_end], total[is_end] / K
    best = int(total.argmax())
    following = float(values[best + 1]) if best + 1 < len(values) else 0.0
    middle = np.float32((float(values[best]) + following) / 2)
    return middle if middle > following or middle == values[best] else values[best]


def named(thresholds: Array, names: Sequence[str]) -> dict[str, float]:
    """Name the threshold of each class; one that is the same for all is called ""."""
    values = [float(value) for value in thresholds]
    return {"": values[0]} if len({*values}) == 1 else dict(zip(names, values, strict=True))


def as_row(measures: Measures) -> Mapping[str, Any]:
    """Return the columns of validate.py's results."""
    counts = {"absent_classes": len(measures.absent), "without_labels": measures.without, "exact": measures.exact}
    return {**measures.percent(), **counts}
