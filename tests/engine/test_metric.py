"""A kept value has a name: epochs are compared by one metric alone, and the best one is right by it."""

from pathlib import Path

import pytest
import torch

from davit.engine.run_folder import BEST, LAST, read_state
from tests.engine.runs import SHORT, Train, summary

RUN = [*SHORT, "--epochs", "3", "--lr", "3e-3", "--checkpoint-hist", "9"]
MORE = ["--epochs", "5", "--auto-resume"]


def best_of(folder: Path, metrics: list[str]) -> int:
    """The best epoch by the summary, each by its own column; the earliest of several."""
    values = [float(row[metric]) for row, metric in zip(summary(folder), metrics, strict=True)]
    sign = 1 if metrics[0].endswith("loss") else -1
    return min(range(len(values)), key=lambda epoch: (sign * values[epoch], epoch))


@pytest.mark.parametrize(
    ("before", "now", "metrics"),
    [
        ([], ["--eval-metric", "loss"], ["eval_loss"] * 5),
        (["--eval-metric", "loss"], [], ["eval_top1"] * 5),
        (["--eval-metric", "loss"], ["--eval-metric", "top5"], ["eval_top5"] * 5),
        ([], ["--model-ema", "--model-ema-decay", "0.5"], ["eval_top1"] * 3 + ["ema_top1"] * 2),
        (["--model-ema", "--eval-metric", "loss"], ["--eval-metric", "loss"], ["ema_loss"] * 3 + ["eval_loss"] * 2),
    ],
)
def test_another_metric_judges_the_kept_epochs_anew(
    train: Train, tmp_path: Path, before: list[str], now: list[str], metrics: list[str]
) -> None:
    train(*RUN, *before)
    result = train(*RUN, *MORE, *now)
    folder = tmp_path / "runs/a"
    best = best_of(folder, metrics)
    assert read_state(folder / BEST)["epoch"] == best + 1
    assert f"at epoch {best};" in result.stderr
    assert metrics[-1] in result.stderr
    kept = read_state(folder / LAST)["kept"]
    rows = summary(folder)
    assert kept == {epoch: pytest.approx(float(rows[epoch][metrics[epoch]])) for epoch in kept}
    assert {*kept} == {0, 1, 2, 3}  # of the end of the last epoch, before it is kept itself


def test_an_old_state_does_not_tell_other_metrics(train: Train, tmp_path: Path) -> None:
    train(*RUN)
    folder = tmp_path / "runs/a"
    best = (folder / BEST).read_bytes()
    state = read_state(folder / LAST)
    for name in ("metric_name", "results"):
        del state[name]
    (folder / LAST).unlink()
    torch.save(state, folder / LAST)
    result = train(*RUN, *MORE, "--eval-metric", "loss")
    assert any("aside" in line and "0, 1, 2" in line for line in result.stderr.splitlines())
    kept = read_state(folder / LAST)["kept"]
    assert {*kept} == {3}
    assert best in [file.read_bytes() for file in folder.glob("*.aside.pth.tar")]
    rows = summary(folder)
    expected = min((3, 4), key=lambda epoch: float(rows[epoch]["eval_loss"]))
    assert read_state(folder / BEST)["epoch"] == expected + 1


def test_a_plateau_does_not_compare_values_of_two_metrics(train: Train, tmp_path: Path) -> None:
    flags = ["--sched", "plateau", "--patience-epochs", "0", "--warmup-epochs", "0", "--decay-rate", "0.5"]
    train(*RUN, *flags, "--eval-metric", "loss")  # values about 1, and top-1 in percent is above
    train(*RUN, *flags, *MORE)
    rule = read_state(tmp_path / "runs/a" / LAST)["plateau"]["rule"]
    rows = summary(tmp_path / "runs/a")
    assert rule["mode"] == "max"
    assert rule["best"] == max(float(row["eval_top1"]) for row in rows[3:])
