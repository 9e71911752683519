"""--dry-run ends by itself whatever a step takes, and says what it measured; --json of train.py."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from davit.commands import TookTooLong, time_limit
from davit.data import Batch
from davit.engine import dry_run
from davit.engine.dry_run import DryRun, part_of, step_seconds, timed
from davit.engine.steps import Stepper
from tests.engine.runs import SHORT, Train, summary

DRY = [*SHORT, "--dry-run", "--json"]


def measured(train: Train, *flags: str) -> dict[str, Any]:
    done = train(*DRY, *flags)
    assert " MB " in done.stderr and " min for " in done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["dry_run"]
    return found


# ---- the limit ----


def test_what_takes_too_long_is_ended_and_the_rest_is_not() -> None:
    begun = time.perf_counter()
    assert timed(lambda: time.sleep(60), 0.1) is None
    assert time.perf_counter() - begun < 10
    took = timed(lambda: time.sleep(0.01), 60)
    assert took is not None and 0.01 <= took < 10


def test_an_error_that_comes_of_the_alarm_is_the_alarm() -> None:
    def swallow() -> None:
        try:
            time.sleep(60)
        except BaseException as error:
            raise RuntimeError("connection closed") from error

    with pytest.raises(TookTooLong), time_limit(0.05):
        swallow()
    with pytest.raises(RuntimeError), time_limit(60):
        raise RuntimeError("its own")


def test_a_part_of_a_batch_has_all_copies_of_its_images() -> None:
    batch = Batch(torch.arange(12).reshape(12, 1), torch.arange(12), torch.arange(4))
    part = part_of(batch, 2)
    assert part.targets.tolist() == part.images.flatten().tolist() == [0, 1, 4, 5, 8, 9]
    assert part.indices.tolist() == [0, 1]


def sleeping(each: float) -> tuple[list[int], Any]:
    """A step that takes so many seconds an image, and the sizes that it was asked for."""
    asked: list[int] = []

    def step(batches: Sequence[Batch]) -> None:
        asked.append(len(batches[0].indices))
        time.sleep(each * asked[-1])

    return asked, step


def predicted(step: Any, images: int, limit: float) -> tuple[float, int] | None:
    batch = Batch(torch.zeros(images, 1), torch.zeros(images), torch.arange(images))
    return step_seconds(step, batch, images, limit, lambda mine: mine)


def test_a_long_step_is_predicted_by_as_many_images_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "LONGEST_STEP", 0.4)
    asked, step = sleeping(0.02)
    found = predicted(step, 64, 60)
    assert found is not None and found[0] == pytest.approx(64 * 0.02, rel=1)
    assert asked == [2, found[1]] and 2 < found[1] <= 10
    asked, step = sleeping(0.001)
    found = predicted(step, 64, 60)
    assert found is not None and found[1] == 2 and asked == [2], "a short step needs no second trial"
    asked, step = sleeping(1)
    assert predicted(step, 64, 0.05) is None


# ---- train.py ----


def slow(monkeypatch: pytest.MonkeyPatch, each: float, whole: float = 0.0) -> list[int]:
    """Make a step slow by the image, and a whole one by more; return the images of each step."""
    bare = Stepper.step
    asked: list[int] = []

    def step(self: Stepper, batches: Sequence[Batch], *rest: Any) -> Any:
        asked.append(sum(len(batch.indices) for batch in batches))
        time.sleep(each * asked[-1] + (whole if asked[-1] > 6 else 0.0))
        return bare(self, batches, *rest)

    monkeypatch.setattr(Stepper, "step", step)
    return asked


def test_a_quick_step_is_measured_twice(train: Train, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = slow(monkeypatch, 0)
    found = measured(train)
    assert asked == [2, 8, 8]
    assert (found["images_per_step"], found["images_measured"], found["is_least"]) == (8, 8, False)
    assert found["step_seconds"] < 10 and found["peak_memory_mb"] > 10
    total = 2 * (found["step_seconds"] * 6 + found["evaluation_seconds"])
    assert found["hours"] == pytest.approx(total / 3600)
    assert not (tmp_path / "runs").exists()


def test_of_a_long_step_a_part_is_measured(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "LONGEST_STEP", 1.0)
    asked = slow(monkeypatch, 0.2)
    found = measured(train, "--batch-size", "16")
    assert asked == [2] and found["images_measured"] == 2
    assert 16 * 0.2 <= found["step_seconds"] < 16 * 2 and not found["is_least"]
    assert found["evaluation_seconds"] > 0


def test_micro_batches_count_towards_the_step(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "LONGEST_STEP", 1.0)
    asked = slow(monkeypatch, 0.05)
    found = measured(train, "--grad-accum-steps", "6")
    assert max(asked) <= 8, "a micro-batch at most"
    assert (found["images_per_step"], found["images_measured"]) == (48, asked[-1])
    assert found["step_seconds"] >= 48 * 0.05


@pytest.mark.parametrize(("each", "whole"), [(100.0, 0.0), (0.0, 100.0)], ids=["any step", "a whole step"])
def test_a_step_that_does_not_end_is_ended(
    train: Train, monkeypatch: pytest.MonkeyPatch, each: float, whole: float
) -> None:
    monkeypatch.setattr(dry_run, "LIMIT", 2.0)
    slow(monkeypatch, each, whole)
    begun = time.perf_counter()
    found = measured(train)
    assert time.perf_counter() - begun < 30
    assert found["images_measured"] == 0 and found["is_least"] and found["evaluation_seconds"] is None
    assert found["step_seconds"] == 2.0 and found["hours"] == pytest.approx(2 * 6 * 2.0 / 3600)


def test_an_evaluation_that_does_not_end_is_left_out(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "LIMIT", 3.0)
    monkeypatch.setattr("davit.engine.train.Trainer._evaluate_one", lambda *_, **__: time.sleep(100))
    found = measured(train)
    assert found["evaluation_seconds"] is None and found["is_least"] and found["images_measured"] == 8


def test_its_sentence_names_what_was_measured() -> None:
    whole = DryRun(64, 64, 1.5, 3.0, 300, 10.0, False, 900.0)
    part = DryRun(64, 4, 200.0, 3.0, 300, 999.5, False, 500.0)
    least = DryRun(64, 0, 60.0, None, 300, 500.0, True, 500.0)
    assert "1.50 s" in str(whole) and "10.0 hours" in str(whole)
    assert "12 min for 3 epochs" in str(DryRun(64, 64, 1.5, 3.0, 3, 0.2, False, 900.0))
    assert "4 " in str(part) and "64" in str(part) and "200 s" in str(part)
    assert "60 s" in str(least) and "over 500.0 hours" in str(least)


# ---- for programs ----


def test_a_run_is_one_document(train: Train, tmp_path: Path) -> None:
    done = train(*SHORT, "--json")
    found = json.loads(done.stdout)
    assert found["folder"] == str(Path("runs/a")) and found["ended"] == "finished"
    assert (found["epochs_done"], found["epochs"]) == (2, 2)
    rows = summary(tmp_path / "runs/a")
    assert [row["epoch"] for row in found["history"]] == [0, 1]
    for name, cell in rows[1].items():
        assert found["history"][1][name] == pytest.approx(float(cell)), name
    best = found["best"]
    assert best["top1"] == max(row["eval_top1"] for row in found["history"])
    assert (tmp_path / best["checkpoint"]).is_file()
    assert "json: true" not in (tmp_path / "runs/a/args.yaml").read_text()
    assert "Best top1" in done.stderr, "the log is for people"
    assert train(*SHORT, "--overwrite").stdout == ""


def test_the_document_says_why_a_run_ended(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = json.loads(train(*SHORT, "--json", "--stop-epoch", "1").stdout)
    assert (stopped["ended"], stopped["epochs_done"]) == ("stop epoch", 1)
    bare = Stepper.step

    def step(self: Stepper, *words: Any) -> Any:
        result = bare(self, *words)
        result.stop_asked = True
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", step)
        broken = json.loads(train(*SHORT, "--json", "--auto-resume", status=75).stdout)
    assert (broken["ended"], broken["epochs_done"]) == ("interrupted", 1) and len(broken["history"]) == 1
    ended = json.loads(train(*SHORT, "--json", "--auto-resume", "--lr", "0", "--early-stop", "1").stdout)
    assert ended["ended"] in ("early stop", "finished") and ended["epochs_done"] == 2
    assert [row["epoch"] for row in ended["history"]] == [0, 1], "those of before it was resumed are there"


def test_an_epoch_without_an_evaluation_has_nulls(train: Train) -> None:
    found = json.loads(train(*SHORT, "--json", "--val-interval", "2").stdout)
    first, last = found["history"]
    assert first.get("eval_top1") is None and not math.isnan(last["eval_top1"])


def test_speed_is_a_document_too(train: Train) -> None:
    found = json.loads(train(*SHORT, "--json", "--throughput").stdout)
    assert found["images_per_second"] > 0 and found["batch_size"] == 8


def test_a_mistake_prints_nothing_for_programs(train: Train) -> None:
    assert train(*SHORT, "--json", "--initial-checkpoint", "nowhere.pth", status=2).stdout == ""
