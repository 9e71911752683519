"""How far probabilities can be trusted: ECE by another formula, and the temperature against a search."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import davit
from davit.engine import calibration
from davit.engine.calibration import ece, file_beside, fingerprint, fit, fit_temperature, reliability, temperature_for
from davit.engine.distributed import World
from davit.engine.records import Outcomes, Records, interval_of_mean, wilson
from tests.engine.runs import SMALL, small_model

ALONE = World(0, 0, 1, torch.device("cpu"))


def drawn(count: int, classes: int, seed: int = 0, sharpness: float = 3.0) -> tuple[Tensor, Tensor]:
    """Logits that are too sure by a factor of `sharpness`, and targets drawn as they should be."""
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(count, classes, generator=generator)
    targets = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return sharpness * logits, targets


def recorded(logits: Tensor, targets: Tensor, scored: Tensor | None = None, finite: Tensor | None = None) -> Records:
    records = Records(keep_logits=True)
    everything = torch.ones(len(targets), dtype=torch.bool)
    for part in torch.arange(len(targets)).split(7):
        predicted = logits[part].argmax(1)
        records.add(
            part,
            logits[part],
            targets[part],
            F.cross_entropy(logits[part], targets[part], reduction="none"),
            target=targets[part],
            predicted=predicted,
            right=predicted == targets[part],
            scored=(everything if scored is None else scored)[part],
            finite=(everything if finite is None else finite)[part],
        )
    return records


def ece_by_hand(probabilities: np.ndarray, targets: np.ndarray, bins: int = 15) -> float:
    """Image by image: gather those between two edges, and weigh the gap of their means."""
    groups: dict[int, list[tuple[float, bool]]] = {}
    edges = torch.linspace(0, 1, bins + 1).tolist()
    for row, target in zip(probabilities, targets, strict=True):
        sure = float(row.max())
        group = max(at for at in range(bins + 1) if edges[at] <= sure)  # exactly 1 is a group of its own
        groups.setdefault(group, []).append((sure, int(row.argmax()) == target))
    gaps = [
        len(group) * abs(sum(right for _, right in group) / len(group) - sum(sure for sure, _ in group) / len(group))
        for group in groups.values()
    ]
    return sum(gaps) / len(targets)


@pytest.mark.parametrize(
    ("classes", "count", "sharpness"), [(2, 50, 1.0), (5, 400, 3.0), (10, 333, 40.0), (40, 90, 1.0)]
)
def test_ece_by_another_formula_and_by_torchmetrics_where_it_is(classes: int, count: int, sharpness: float) -> None:
    logits, targets = drawn(count, classes, seed=classes, sharpness=sharpness)
    logits[:3] = 1.0  # ties
    logits[3:6] = 100 * F.one_hot(targets[3:6], classes).float()  # a confidence of exactly 1
    outcomes = recorded(logits, targets).gather(ALONE)
    found = ece(reliability(outcomes.confidence, outcomes.right))
    assert found == pytest.approx(ece_by_hand(logits.softmax(1).numpy(), targets.numpy()), abs=1e-6)
    try:
        from torchmetrics.functional.classification import multiclass_calibration_error
    except ImportError:
        return
    theirs = float(multiclass_calibration_error(logits.softmax(1), targets, classes, n_bins=15, norm="l1"))
    assert found == pytest.approx(theirs, abs=1e-6)


def test_reliability_of_nothing_and_at_the_edges() -> None:
    assert math.isnan(ece(reliability(np.zeros(0, np.float32), np.zeros(0, bool))))
    sure = np.array([0.0, 1 / 3, 0.5, 1.0, 1.0], dtype=np.float32)
    bins = reliability(sure, np.array([0, 1, 1, 1, 0], dtype=bool), bins=2)
    assert [(one.low, one.high, one.count) for one in bins] == [(0, 0.5, 2), (0.5, 1, 1), (1, 1, 2)]
    assert bins[2].accuracy == 0.5 and bins[0].confidence == pytest.approx(1 / 6)


@pytest.mark.parametrize(("classes", "sharpness"), [(2, 0.2), (3, 1.0), (10, 3.0), (100, 8.0)])
def test_the_temperature_is_where_the_cross_entropy_is_least(classes: int, sharpness: float) -> None:
    logits, targets = drawn(3000, classes, sharpness=sharpness)
    found = fit_temperature(logits, targets)

    def loss(temperature: float) -> float:
        return float(F.cross_entropy(logits.double() / temperature, targets))

    assert found == pytest.approx(sharpness, rel=0.15)
    assert all(loss(found) <= loss(found * factor) for factor in (0.5, 0.9, 0.99, 0.999, 1.001, 1.01, 1.1, 2))


def test_temperatures_of_answers_all_right_all_wrong_and_of_chance() -> None:
    targets = torch.arange(6) % 3
    right = F.one_hot(targets, 3).float()
    assert fit_temperature(right, targets) == 0.05
    assert fit_temperature(-right, targets) == 20
    assert fit_temperature(torch.zeros(6, 3), targets) == 1


def test_processes_together_find_what_one_does() -> None:
    logits, targets = drawn(200, 5)
    halves = [(logits[part::2], targets[part::2]) for part in (0, 1)]

    def total_of_both(scale: float) -> Tensor:
        return sum((calibration._slope(*half, scale) for half in halves), torch.zeros(2, dtype=torch.float64))

    for scale in (0.1, 1.0, 3.0):
        assert torch.allclose(total_of_both(scale), calibration._slope(logits, targets, scale), rtol=1e-12)


def test_what_is_held_is_not_what_it_was_fitted_on() -> None:
    logits, targets = drawn(301, 4)
    scored, finite = torch.rand(301) > 0.1, torch.ones(301, dtype=torch.bool)
    logits[9], finite[9] = math.nan, False
    records = recorded(logits, targets, scored, finite)
    usable = scored & finite
    even = torch.arange(301) % 2 == 0

    temperature, pictures, before, after = fit(records, "half", ALONE)
    assert pictures == int((usable & even).sum()) and before.count == after.count == int((usable & ~even).sum())
    assert temperature == fit_temperature(logits[usable & even], targets[usable & even])
    held = usable & ~even
    assert before.nll == pytest.approx(float(F.cross_entropy(logits[held], targets[held])), rel=1e-5)
    assert after.nll == pytest.approx(float(F.cross_entropy(logits[held] / temperature, targets[held])), rel=1e-5)
    assert after.nll < before.nll and after.ece < before.ece

    whole, pictures, before, after = fit(records, "all", ALONE)
    assert pictures == before.count == after.count == int(usable.sum())
    assert whole == fit_temperature(logits[usable], targets[usable]) != temperature
    other = fit_temperature(logits[held], targets[held])
    crossed = torch.where(even, other, temperature)[:, None]
    expected = F.cross_entropy((logits / crossed)[usable], targets[usable])
    assert after.nll == pytest.approx(float(expected), rel=1e-5)

    with pytest.raises(ValueError, match="fit-temperature"):
        fit(recorded(logits[:1], targets[:1]), "half", ALONE)


def test_a_fingerprint_changes_with_a_step_and_not_with_the_way_a_model_is_run() -> None:
    model = small_model()
    before = fingerprint(model)
    assert fingerprint(davit.plain(small_model())) == before == fingerprint(model.train())
    with torch.no_grad():
        model.head.bias[0] += 1e-6
    assert fingerprint(model) != before


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    file = tmp_path / "m.pth"
    args = {"model": "DaViT_nano", "model_kwargs": SMALL, "num_classes": 3, "img_size": 16}
    torch.save({"state_dict": small_model().state_dict(), "args": args}, file)
    return file


def test_predictions_use_the_temperature_beside_the_checkpoint(
    checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    raw = davit.load(checkpoint)
    assert raw.temperature == 1 and "temperature" not in caplog.text
    logits = raw.predict(pixels).probabilities.log()
    file_beside(checkpoint).write_text(json.dumps({"temperature": 2.5, "weights": fingerprint(raw.model)}))

    found = davit.load(checkpoint)
    assert found.temperature == 2.5 and file_beside(checkpoint).name in caplog.text
    assert torch.allclose(found.predict(pixels).probabilities, (logits / 2.5).softmax(0), atol=1e-6)
    assert found.predict(pixels).index == raw.predict(pixels).index
    asked = davit.load(checkpoint, temperature=1)
    assert torch.equal(asked.predict(pixels).probabilities, raw.predict(pixels).probabilities)
    with pytest.raises(ValueError, match="temperature"):
        davit.load(checkpoint, temperature=0)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "3", "null", "[" * 5000, '{"temperature": 2}', '{"weights": "x"}'),
        *(f'{{"temperature": {value}, "weights": "x"}}' for value in ('"2"', "-1", "NaN", "2", "true", "1e999")),
    ],
)
def test_a_file_of_other_weights_or_a_damaged_one_is_named_and_not_used(
    checkpoint: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    file_beside(checkpoint).write_text(text)
    assert temperature_for(None, checkpoint, small_model()) == 1
    assert file_beside(checkpoint).name in caplog.text and "--fit-temperature" in caplog.text


def test_the_interval_is_that_of_scipy() -> None:
    from scipy.stats import binomtest

    for right, count in ((0, 5), (5, 5), (3, 7), (360, 1000), (1, 1)):
        low, high = binomtest(right, count).proportion_ci(0.95, "wilson")
        assert wilson(right, count) == pytest.approx((low, high), abs=1e-12)
    assert wilson(0, 0) == (0, 1)
    assert all(math.isnan(end) for end in interval_of_mean(np.ones(1)))
    assert interval_of_mean(np.array([0.0, 1.0])) == pytest.approx((0.5 - 0.979982, 0.5 + 0.979982), abs=1e-5)


def test_outcomes_of_no_pictures() -> None:
    found = Records().gather(ALONE)
    assert len(found) == 0 and isinstance(found, Outcomes)
