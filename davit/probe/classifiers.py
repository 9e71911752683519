"""Classify features by their nearest neighbours and by logistic regression, both of scikit-learn.

What is left open, the number of neighbours or the strength of the regularisation, is chosen on the training part.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger(__name__)

Vectors = NDArray[np.float32]  # (N, C)
Classes = NDArray[np.int64]  # (N,)

_NEIGHBOURS = (1, 3, 5, 10, 20, 50, 100, 200)  # numbers to choose from
_MOST_ASKED = 10_000  # training images that the choice asks; more change it little
_STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of scikit-learn's C, for standardised features
_FOLDS = 5
_MOST_STEPS, _STEPS_TO_CHOOSE = 1000, 200  # of the solver; those for the choice begin where the last ended


@dataclass(frozen=True)
class Fitted:
    """What a classifier says of the validation images.

    Attributes:
        classes_N: a class index for each.
        setting: what was given or chosen, such as "k=10".
    """

    classes_N: Classes
    setting: str


def nearest_neighbours(
    train_NC: Vectors, targets_N: Classes, test_NC: Vectors, *, k: int | None = None, temperature: float | None = None
) -> Fitted:
    """Classify by the k nearest training images, by the cosine of their features.

    It is scikit-learn's ``KNeighborsClassifier(k, metric="cosine")``, and decides ties as that does: of classes with
    equal votes the first.

    Args:
        k: None chooses the number that is right most often where each training image is classified by all others
            (at most 10,000 of them); of equally good ones the smallest.
        temperature: let each neighbour vote with the weight exp(cosine / temperature), as DINO does (0.07 there);
            None: all alike.

    Raises:
        ValueError: `k` is more than there are training images.
    """
    require_neighbours(k, len(train_NC))
    weights = None if temperature is None else _weights_at(temperature)
    chosen = _best_number(train_NC, targets_N, weights) if k is None else k
    model = _neighbours(chosen, weights or "uniform").fit(train_NC, targets_N)
    vote = "" if temperature is None else f", T={temperature:g}"
    return Fitted(model.predict(test_NC), f"k={chosen}{vote}")


def require_neighbours(k: int | None, count: int) -> None:
    """Raise `ValueError` for more neighbours than there are training images."""
    if k is not None and k > count:
        raise ValueError(f"`k={k}` is more than the {count} training images: give 1 to {count}, or leave it out.")


def _neighbours(k: int, weights: str | Callable[[Any], Any] = "uniform") -> Any:
    from sklearn.neighbors import KNeighborsClassifier  # a second of import, paid where it is used

    return KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weights)


def _weights_at(temperature: float) -> Callable[[Any], Any]:
    # exp(cosine / T) over exp(1 / T), which no small T makes infinite; never 0, with which nobody would vote
    return lambda distances: np.maximum(np.exp(-np.asarray(distances, np.float64) / temperature), 1e-300)


def _best_number(train_NC: Vectors, targets_N: Classes, weights: Callable[[Any], Any] | None) -> int:
    """Choose the number of neighbours by classifying training images, each without itself."""
    count = len(train_NC)
    if count < 3:
        return 1
    candidates = [number for number in _NEIGHBOURS if number < count]
    asked: NDArray[np.int64] = np.arange(count)
    if count > _MOST_ASKED:
        asked = np.sort(np.random.default_rng(0).choice(count, _MOST_ASKED, replace=False))
    found = _neighbours(candidates[-1]).fit(train_NC, targets_N)
    distances, nearest = found.kneighbors(train_NC[asked], candidates[-1] + 1)
    is_other = nearest != asked[:, None]
    is_other[is_other.all(1), -1] = False  # copies of it took its place: the farthest goes
    distances, nearest = (table[is_other].reshape(len(asked), -1) for table in (distances, nearest))
    names, numbers = np.unique(targets_N, return_inverse=True)
    votes = np.zeros((len(asked), len(names)))
    right: dict[int, int] = {}
    shares = np.ones_like(distances) if weights is None else weights(distances)
    for place in range(candidates[-1]):
        votes[np.arange(len(asked)), numbers[nearest[:, place]]] += shares[:, place]
        if place + 1 in candidates:
            right[place + 1] = int((votes.argmax(1) == numbers[asked]).sum())
    return max(right, key=lambda number: (right[number], -number))


def regression(train_NC: Vectors, targets_N: Classes, test_NC: Vectors) -> Fitted:
    """Classify by scikit-learn's logistic regression of standardised features.

    Its C, of 1e-4 to 10, is the one with which most training images are right where each fifth of them is classified
    by the other four; of equally good ones the smallest. Two values in a row that do no better end the search.

    Raises:
        ValueError: all training images are of one class.
    """
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(targets_N)) < 2:
        raise ValueError("all training images are of one class, so nothing can be told apart: add another.")
    strength = _best_strength(train_NC, targets_N)
    model = make_pipeline(StandardScaler(), _solver(strength, _MOST_STEPS))
    _fit(model, train_NC, targets_N)
    return Fitted(model.predict(test_NC), f"C={strength:g}")


def _solver(strength: float, steps: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=steps, warm_start=True)


def _best_strength(train_NC: Vectors, targets_N: Classes) -> float:
    """Choose the C by cross-validation; 1 where no fold has two classes to learn from."""
    from sklearn.model_selection import StratifiedKFold
    from sklearn.preprocessing import StandardScaler

    most = int(np.unique(targets_N, return_counts=True)[1].max())
    if most < 2:
        return 1.0
    folds = StratifiedKFold(min(_FOLDS, most), shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        parts = [part for part in folds.split(train_NC, targets_N) if len(np.unique(targets_N[part[0]])) > 1]
    models = [_solver(_STRENGTHS[0], _STEPS_TO_CHOOSE) for _ in parts]
    best, most_right, worse = 1.0, 0, 0
    for strength in _STRENGTHS:
        right = 0
        for (learnt, asked), model in zip(parts, models, strict=True):
            scaler = StandardScaler().fit(train_NC[learnt])
            # continues from the solution of the C before
            _fit(model.set_params(C=strength), scaler.transform(train_NC[learnt]), targets_N[learnt])
            right += int((model.predict(scaler.transform(train_NC[asked])) == targets_N[asked]).sum())
        if right > most_right:
            best, most_right, worse = strength, right, 0
        elif (worse := worse + 1) == 2:  # larger ones take the longest, and the best lies behind
            break
    return best


def _fit(model: Any, vectors_NC: Vectors, targets_N: Classes) -> None:
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        # a solution that is nearly there classifies as well
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(vectors_NC, targets_N)
