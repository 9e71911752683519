"""summary.csv equals that of an uninterrupted run, curves show the numbers, and the other records of a run."""

import argparse
import enum
import errno
import math
import os
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock, call

import numpy as np
import pytest
import torch
import yaml

from davit.engine import run_log
from davit.engine.curves import draw_curves
from davit.engine.run_log import RunLog, plain, write_args, write_bad_images
from tests.engine.runs import summary

Row = dict[str, float]


def row(epoch: int, **more: float) -> Row:
    draw = np.random.default_rng(epoch)
    return {
        **{"epoch": epoch, "train_loss": 2.3 / (epoch + 1) + float(draw.random()) / 3, "eval_loss": 2.1 / (epoch + 1)},
        **{"eval_top1": 100 * (1 - 0.9 / (epoch + 1)), "eval_top5": 100 * (1 - 0.5 / (epoch + 1))},
        **{"lr": 5e-4 * 0.9**epoch, "grad_norm": 1 + 1 / (epoch + 3)},
        **{"images_per_second": 812.0 + epoch, "data_share": 0.03, **more},
    }


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without curves, which take a good part of a second."""
    monkeypatch.setattr(run_log, "draw_curves", lambda csv_files, out: None)


def record(folder: Path, epochs: range, resume_epoch: int = 0, **more: float) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    log = RunLog(folder, config={}, resume_epoch=resume_epoch)
    for epoch in epochs:
        log.epoch(row(epoch, **more))
    log.finish()
    return folder / "summary.csv"


# -- summary.csv


@pytest.mark.usefixtures("quick")
def test_summary_has_a_row_for_each_epoch_with_the_same_bits(tmp_path: Path) -> None:
    numbers = {"third": 1 / 3, "tiny": 5e-324, "nan": math.nan, "inf": -math.inf, "count": 7}
    numbers |= {"numpy": np.float32(0.1), "tensor": torch.tensor(0.25)}
    log = RunLog(tmp_path, config={})
    log.epoch({"epoch": 0, **numbers})
    log.epoch({"epoch": 1, **numbers})
    rows = summary(tmp_path)
    assert [r["epoch"] for r in rows] == ["0", "1"]
    assert rows[0]["count"] == "7"
    for name, value in numbers.items():
        assert float(rows[1][name]) == pytest.approx(float(value), abs=0, rel=0, nan_ok=True)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("written", "resume_epoch"), [(1, 0), (1, 1), (3, 0), (5, 1), (8, 3), (8, 8)])
def test_resumed_summary_equals_an_uninterrupted_one(tmp_path: Path, written: int, resume_epoch: int) -> None:
    whole, broken = record(tmp_path / "whole", range(8)), record(tmp_path / "broken", range(written))
    RunLog(tmp_path / "broken", config={}, resume_epoch=resume_epoch)
    # rows not yet reached are gone as soon as the run resumes
    assert not broken.exists() if resume_epoch == 0 else len(summary(broken.parent)) == resume_epoch
    record(tmp_path / "broken", range(resume_epoch, 8), resume_epoch=resume_epoch)
    assert broken.read_bytes() == whole.read_bytes()


@pytest.mark.usefixtures("quick")
def test_new_and_missing_columns(tmp_path: Path) -> None:
    log = RunLog(tmp_path, config={})
    log.epoch({"epoch": 0, "train_loss": 3.0, "eval_top1": 1.0})
    log.epoch({"epoch": 1, "train_loss": 2.0})
    log.epoch({"ema_top1": 5.0, "epoch": 2, "train_loss": 1.0})
    text = (tmp_path / "summary.csv").read_text()
    assert text == "epoch,train_loss,eval_top1,ema_top1\n0,3.0,1.0,\n1,2.0,,\n2,1.0,,5.0\n"
    RunLog(tmp_path, config={}, resume_epoch=2)
    assert (tmp_path / "summary.csv").read_text() == "epoch,train_loss,eval_top1\n0,3.0,1.0\n1,2.0,\n"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("damage", [b"a,b\n1,2\n", b"epoch,x\nten,1\n", b"epoch,x\n1,2,3\n", b"epoch\n\xff\n"])
def test_unreadable_summary_is_set_aside(tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "summary.csv").write_bytes(damage)
    record(tmp_path, range(3, 4), resume_epoch=3)
    assert [r["epoch"] for r in summary(tmp_path)] == ["3"]
    assert (tmp_path / "summary-unreadable.csv").read_bytes() == damage
    assert "summary-unreadable.csv" in caplog.text


def test_a_full_disk_is_raised_with_the_old_summary_whole_and_a_failure_to_draw_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full_disk = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(run_log, "draw_curves", full_disk)
    log = RunLog(tmp_path, config={})
    log.epoch(row(0))
    assert [r["epoch"] for r in summary(tmp_path)] == ["0"]
    assert "curves.png" in caplog.text and "No space left" in caplog.text
    before = (tmp_path / "summary.csv").read_bytes()
    monkeypatch.setattr(os, "fsync", full_disk)
    for write in (lambda: log.epoch(row(1)), lambda: write_args(tmp_path, {"lr": 1.0})):
        with pytest.raises(OSError) as caught:
            write()
        assert caught.value.errno == errno.ENOSPC
    assert (tmp_path / "summary.csv").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.csv"]


# -- curves.png


def test_curves_are_drawn_each_epoch_and_change_with_the_numbers(tmp_path: Path) -> None:
    log = RunLog(tmp_path, config={})
    pictures = []
    for epoch in range(2):
        log.epoch(row(epoch))
        pictures.append((tmp_path / "curves.png").read_bytes())
    assert pictures[0] != pictures[1]
    draw_curves([tmp_path / "summary.csv"], tmp_path / "curves.svg")
    drawn = (tmp_path / "curves.svg").read_text()
    for scale in ("loss", "accuracy [%]", "learning rate", "gradient norm", "images/s", "waiting for data"):
        assert scale in drawn


@pytest.mark.parametrize(("best", "is_drawn"), [(100, False), (99, True)])
def test_a_top5_of_few_classes_is_not_drawn(tmp_path: Path, best: int, is_drawn: bool) -> None:
    rows = [f"{epoch},{40 + epoch},{100 if epoch else best}" for epoch in range(3)]
    (tmp_path / "summary.csv").write_text("\n".join(["epoch,eval_top1,eval_top5", *rows]) + "\n")
    draw_curves([tmp_path / "summary.csv"], tmp_path / "curves.svg")
    drawn = (tmp_path / "curves.svg").read_text()
    assert "top-1" in drawn and ("top-5" in drawn) == is_drawn


@pytest.mark.parametrize("content", ["epoch,speed\n0,1\n", "", "x\n1\n", None])
def test_nothing_to_draw_is_an_error_that_names_the_file(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "summary.csv"
    file.write_text(content or "")
    with pytest.raises(ValueError) as caught:
        draw_curves([] if content is None else [file], tmp_path / "out.png")
    assert ("summary.csv" if content is None else str(file)) in str(caught.value)


# -- TensorBoard and wandb


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


@pytest.mark.usefixtures("quick")
def test_tensorboard_has_each_epoch_once_after_a_resume(tmp_path: Path) -> None:
    for begin, loss in ((0, 10.0), (2, 20.0)):
        log = RunLog(tmp_path, tensorboard=True, config={"lr": 1}, resume_epoch=begin)
        for epoch in range(begin, 4):
            log.epoch(row(epoch, train_loss=loss + epoch))
    log.finish()
    found = scalars(tmp_path / "tensorboard")
    assert found["train/loss"] == {0: 10.0, 1: 11.0, 2: 22.0, 3: 23.0}
    assert {"eval/top1", "eval/loss", "run/lr", "run/grad_norm", "run/images_per_second"} <= found.keys()


@pytest.mark.usefixtures("quick")
def test_wandb_gets_rows_and_resumes_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = Mock()
    run = fake.init.return_value
    run.log.side_effect = [None, ConnectionError("the network is gone"), None]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    log = RunLog(tmp_path, wandb=True, config={"data": Path("x")})
    for epoch in range(3):
        log.epoch(row(epoch))
    log.finish()
    assert [call.args[0]["epoch"] for call in run.log.call_args_list] == [0, 1, 2]
    assert "the network is gone" in caplog.text
    assert call("*", step_metric="epoch") in run.define_metric.call_args_list
    run.finish.assert_called_once_with()
    RunLog(tmp_path, wandb=True, config={}, resume_epoch=3)
    first, second = (call.kwargs for call in fake.init.call_args_list)
    assert first["config"] == {"data": "x"}
    assert second["id"] == first["id"] != ""


@pytest.mark.parametrize(
    ("module", "found", "option", "words"),
    [
        ("wandb", None, "wandb", ["--log-wandb", "davit-torch[wandb]"]),
        (
            "wandb",
            Mock(init=Mock(side_effect=ConnectionError("no account"))),
            "wandb",
            ["--log-wandb", "no account", "WANDB_MODE=offline"],
        ),
        ("torch.utils.tensorboard", None, "tensorboard", ["--log-tensorboard", "davit-torch[tensorboard]"]),
    ],
)
def test_a_logger_that_is_absent_or_cannot_start_is_an_error_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, found: Any, option: str, words: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, found)
    with pytest.raises(ValueError) as caught:
        RunLog(tmp_path, config={}, **{option: True})
    assert all(word in str(caught.value) for word in words)


# -- the other files


class Colour(str, enum.Enum):
    RED = "red"


def test_args_are_plain_yaml_in_the_order_given(tmp_path: Path) -> None:
    plain_already = {"model": "DaViT_nano", "lr": 1e-5, "nothing": None, "yes": True, "text": "1e-3"}
    inner = argparse.Namespace(a=1)
    converted = {
        **{"data_dir": (Path("/data/é"), "/data/é"), "betas": ((0.9, 0.999), [0.9, 0.999]), "seed": (np.int64(3), 3)},
        **{"decay": (np.float64(0.05), 0.05), "dtype": (torch.bfloat16, "torch.bfloat16")},
        **{"device": (torch.device("cpu"), "cpu"), "colour": (Colour.RED, "red"), "names": ({"b", "a"}, ["a", "b"])},
        **{"kwargs": ({"dims": [8], "inner": inner}, {"dims": [8], "inner": {"a": 1}}), "one": (torch.tensor(2), 2)},
    }
    write_args(tmp_path, {**plain_already, **{name: value for name, (value, _) in converted.items()}})
    read_back = yaml.safe_load((tmp_path / "args.yaml").read_text(encoding="utf-8"))
    assert list(read_back) == [*plain_already, *converted]
    assert read_back == {**plain_already, **{name: expected for name, (_, expected) in converted.items()}}
    assert type(plain(np.float64(1))) is float
    assert type(plain(Colour.RED)) is str


def test_bad_images_are_listed_sorted(tmp_path: Path) -> None:
    odd = b"caf\xe9.png".decode(errors="surrogateescape")
    write_bad_images(tmp_path, {"b/2.png": "truncated, at 12", 'a/"1".png': "empty", odd: "no image"})
    assert (tmp_path / "bad_images.csv").read_bytes() == (
        b'file,reason\n"a/""1"".png",empty\nb/2.png,"truncated, at 12"\ncaf\\xe9.png,no image\n'
    )
