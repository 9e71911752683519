"""Hold the classifiers of features against scikit-learn and against votes counted by hand."""

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from davit.probe import classifiers, nearest_neighbours, regression

Arrays = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]


def clusters(seed: int = 0, count: int = 90, spread: float = 1.0, width: int = 6) -> Arrays:
    """Training features, their classes (3, 7 and 9), and validation features around the same centres."""
    draw = np.random.default_rng(seed)
    centres, number = draw.standard_normal((3, width)), draw.integers(0, 3, 2 * count)
    points = (centres[number] + spread * draw.standard_normal((2 * count, width))).astype(np.float32)
    return points[:count], np.array([3, 7, 9])[number[:count]], points[count:]


def with_copies() -> Arrays:
    """Features of few values: copies with other classes, and ties of distance and of votes."""
    draw = np.random.default_rng(1)
    return (
        draw.integers(1, 3, (60, 3)).astype(np.float32),
        draw.integers(0, 4, 60),
        np.float32(draw.integers(1, 3, (40, 3))),
    )


@pytest.mark.parametrize("data", [clusters(), with_copies()], ids=["clusters", "copies"])
@pytest.mark.parametrize("k", [1, 2, 5, 60])
def test_neighbours_are_scikit_learns_picture_by_picture(data: Arrays, k: int) -> None:
    train, targets, test = data
    expected = KNeighborsClassifier(k, metric="cosine").fit(train, targets).predict(test)
    found = nearest_neighbours(train, targets, test, k=k)
    assert found.classes_N.tolist() == expected.tolist()
    assert found.setting == f"k={k}"


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_the_weighted_vote_is_dinos(temperature: float) -> None:
    train, targets, test = clusters()
    unit, asked = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test))
    cosine = asked @ unit.T
    expected = []
    for row in cosine:
        near = np.argsort(-row)[:20]
        votes = {name: np.exp(row[near][targets[near] == name] / temperature).sum() for name in (3, 7, 9)}
        expected.append(max(votes, key=lambda name: votes[name]))
    assert nearest_neighbours(train, targets, test, k=20, temperature=temperature).classes_N.tolist() == expected


def test_a_small_temperature_lets_the_nearest_decide() -> None:
    train, targets, test = clusters()
    nearest = nearest_neighbours(train, targets, test, k=1).classes_N.tolist()
    assert nearest_neighbours(train, targets, test, k=20, temperature=0.001).classes_N.tolist() == nearest


@pytest.mark.parametrize("spread", [0.5, 1.5, 3.0])
def test_the_number_is_the_best_on_the_training_pictures_each_left_out(spread: float) -> None:
    train, targets, test = clusters(2, spread=spread)
    right = {}
    for k in (1, 3, 5, 10, 20, 50):
        answers = []
        for place in range(len(train)):
            others = np.arange(len(train)) != place
            model = KNeighborsClassifier(k, metric="cosine").fit(train[others], targets[others])
            answers.append(model.predict(train[place : place + 1])[0] == targets[place])
        right[k] = sum(answers)
    best = min(k for k in right if right[k] == max(right.values()))
    assert nearest_neighbours(train, targets, test).setting == f"k={best}"


def test_of_many_pictures_some_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    train, targets, test = clusters(2, count=200)
    monkeypatch.setattr(classifiers, "_MOST_ASKED", 50)
    first, second = (nearest_neighbours(train, targets, test) for _ in range(2))
    assert first.setting == second.setting
    copies = np.repeat(train[:4], 50, axis=0)  # more copies of an image than neighbours are looked for
    assert nearest_neighbours(copies, np.repeat([0, 1, 0, 1], 50), train[:4], k=None).classes_N.tolist() == [
        0,
        1,
        0,
        1,
    ]


def test_few_pictures() -> None:
    train, targets, test = clusters()
    assert nearest_neighbours(train[:2], targets[:2], test).setting == "k=1"
    assert nearest_neighbours(train, targets, test, k=90).classes_N.tolist() == [np.bincount(targets).argmax()] * 90
    with pytest.raises(ValueError, match="k=91"):
        nearest_neighbours(train, targets, test, k=91)


def test_regression_is_scikit_learns_with_the_strength_that_it_names() -> None:
    train, targets, test = clusters(3, spread=1.5)
    found = regression(train, targets, test)
    scaler = StandardScaler().fit(train)
    model = LogisticRegression(C=float(found.setting.removeprefix("C=")), max_iter=1000)
    expected = model.fit(scaler.transform(train), targets).predict(scaler.transform(test))
    assert found.classes_N.tolist() == expected.tolist()
    assert regression(train, targets, test).setting == found.setting


def test_noise_gets_a_strong_regularisation_and_clear_classes_a_weak_one() -> None:
    draw = np.random.default_rng(0)
    noise, targets = draw.standard_normal((200, 50)).astype(np.float32), draw.integers(0, 2, 200)
    noise[:, 0] += 0.5 * targets
    assert float(regression(noise, targets, noise).setting.removeprefix("C=")) < 1
    clear = np.eye(4, dtype=np.float32)[np.arange(200) % 4] + draw.normal(0, 0.05, (200, 4)).astype(np.float32)
    assert regression(clear, np.arange(200) % 4, clear).classes_N.tolist() == (np.arange(200) % 4).tolist()


@pytest.mark.parametrize("targets", [[0, 0, 0, 0, 0, 1], [0, 1], [0, 0, 1, 2]])
def test_regression_with_classes_of_one_picture(targets: list[int]) -> None:
    points = np.eye(6, dtype=np.float32)[: len(targets)]
    assert regression(points, np.array(targets), points).classes_N.shape == (len(targets),)


def test_regression_needs_two_classes() -> None:
    with pytest.raises(ValueError, match="one class"):
        regression(np.eye(3, dtype=np.float32), np.zeros(3, np.int64), np.eye(3, dtype=np.float32))
