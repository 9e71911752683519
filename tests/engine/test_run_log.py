"""summary.csv equals that of an uninterrupted run, curves show the numbers, and the other records of a run."""

import argparse
import csv
import enum
import errno
import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from davit import files
from davit.engine import run_log
from davit.engine.curves import draw_curves
from davit.engine.run_log import RunLog, plain, write_args, write_bad_images

Row = dict[str, float]


def row(epoch: int, **more: float) -> Row:
    draw = np.random.default_rng(epoch)
    return {
        "epoch": epoch,
        "train_loss": 2.3 / (epoch + 1) + float(draw.random()) / 3,
        "eval_loss": 2.1 / (epoch + 1),
        "eval_top1": 100 * (1 - 0.9 / (epoch + 1)),
        "eval_top5": 100 * (1 - 0.5 / (epoch + 1)),
        "lr": 5e-4 * 0.9**epoch,
        "grad_norm": 1 + 1 / (epoch + 3),
        "images_per_second": 812.0 + epoch,
        "data_share": 0.03,
        **more,
    }


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without curves, which take a good part of a second."""
    monkeypatch.setattr(run_log, "draw_curves", lambda csv_files, out: None)


def record(folder: Path, epochs: range, resume_epoch: int = 0, **more: float) -> None:
    log = RunLog(folder, config={}, resume_epoch=resume_epoch)
    for epoch in epochs:
        log.epoch(row(epoch, **more))
    log.finish()


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "summary.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


# -- summary.csv


@pytest.mark.usefixtures("quick")
def test_summary_has_a_row_for_each_epoch_with_the_same_bits(tmp_path: Path) -> None:
    numbers = {"third": 1 / 3, "tiny": 5e-324, "nan": math.nan, "inf": -math.inf, "count": 7}
    numbers["numpy"] = np.float32(0.1)
    numbers["tensor"] = torch.tensor(0.25)
    log = RunLog(tmp_path, config={})
    log.epoch({"epoch": 0, **numbers})
    log.epoch({"epoch": 1, **numbers})
    rows = read(tmp_path)
    assert [r["epoch"] for r in rows] == ["0", "1"]
    assert rows[0]["count"] == "7"
    for name, value in numbers.items():
        assert float(rows[1][name]) == float(value) or name == "nan"
    assert math.isnan(float(rows[0]["nan"]))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("written", "resume_epoch"), [(1, 0), (1, 1), (3, 0), (3, 2), (3, 3), (5, 1), (8, 3), (8, 8)])
def test_resumed_summary_equals_an_uninterrupted_one(tmp_path: Path, written: int, resume_epoch: int) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    record(whole, range(8))
    record(broken, range(written))
    record(broken, range(resume_epoch, 8), resume_epoch=resume_epoch)
    assert (broken / "summary.csv").read_bytes() == (whole / "summary.csv").read_bytes()


@pytest.mark.usefixtures("quick")
def test_rows_not_yet_reached_are_gone_as_soon_as_the_run_resumes(tmp_path: Path) -> None:
    record(tmp_path, range(5))
    RunLog(tmp_path, config={}, resume_epoch=2)
    assert [r["epoch"] for r in read(tmp_path)] == ["0", "1"]
    RunLog(tmp_path, config={}, resume_epoch=0)
    assert not (tmp_path / "summary.csv").exists()


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
@pytest.mark.parametrize("damage", ["a,b\n1,2\n", "epoch,x\nten,1\n", "epoch,x\n1,2,3\n", b"epoch\n\xff\n"])
def test_unreadable_summary_is_set_aside(
    tmp_path: Path, damage: str | bytes, caplog: pytest.LogCaptureFixture
) -> None:
    content = damage if isinstance(damage, bytes) else damage.encode()
    (tmp_path / "summary.csv").write_bytes(content)
    record(tmp_path, range(3, 4), resume_epoch=3)
    assert [r["epoch"] for r in read(tmp_path)] == ["3"]
    assert (tmp_path / "summary-unreadable.csv").read_bytes() == content
    assert "summary-unreadable.csv" in caplog.text


@pytest.mark.usefixtures("quick")
def test_full_disk_is_raised_and_the_old_summary_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(tmp_path, config={})
    log.epoch(row(0))
    before = (tmp_path / "summary.csv").read_bytes()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files._RawFile, "write", full)
    with pytest.raises(OSError) as caught:
        log.epoch(row(1))
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(OSError):
        write_args(tmp_path, {"lr": 1.0})
    assert (tmp_path / "summary.csv").read_bytes() == before
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["summary.csv"]


# -- curves.png


def pixels(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def strong_colours(image: np.ndarray) -> set[tuple[int, ...]]:
    """The saturated colours of some extent: those of curves, rather than of text, axes and blends."""
    found, counts = np.unique(image.reshape(-1, 3), axis=0, return_counts=True)
    return {tuple(c) for c, n in zip(found.tolist(), counts, strict=True) if n > 150 and max(c) - min(c) > 80}


def test_curves_are_drawn_each_epoch_and_change_with_the_numbers(tmp_path: Path) -> None:
    log = RunLog(tmp_path, config={})
    pictures = []
    for epoch in range(2):
        log.epoch(row(epoch))
        pictures.append(pixels(tmp_path / "curves.png"))
    assert pictures[0].shape == pictures[1].shape
    height, width, _ = pictures[0].shape
    assert height > 700
    assert width > 1000
    # the first epoch is a dot on each panel, the second a line
    drawn = [(abs(p - 255).sum(2) > 100).sum() for p in pictures]
    assert drawn[0] > 5000
    assert (abs(pictures[1] - pictures[0]).sum(2) > 100).sum() > 2000
    assert len(strong_colours(pictures[1])) >= 2
    for y in (slice(0, height // 2), slice(height // 2, height)):
        for x in (slice(0, width // 2), slice(width // 2, width)):
            assert strong_colours(pictures[1][y, x])  # each of the four panels has a curve


def test_panels_without_numbers_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "four").mkdir()
    (tmp_path / "two").mkdir()
    for name, columns in (("four", None), ("two", {"epoch", "train_loss", "lr"})):
        rows = [row(epoch) for epoch in range(4)]
        kept = [{k: v for k, v in r.items() if columns is None or k in columns} for r in rows]
        lines = [",".join(kept[0]), *(",".join(str(v) for v in r.values()) for r in kept)]
        (tmp_path / name / "summary.csv").write_text("\n".join(lines) + "\n")
        draw_curves([tmp_path / name / "summary.csv"], tmp_path / f"{name}.png")
    assert pixels(tmp_path / "four.png").shape[0] > 1.5 * pixels(tmp_path / "two.png").shape[0]


@pytest.mark.usefixtures("quick")
def test_several_runs_in_one_picture(tmp_path: Path) -> None:
    summaries = []
    for number, name in enumerate(("a/run", "b/run", "c")):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        record(folder, range(4 + number), train_loss=1.0 + number, grad_norm=50.0**number)
        summaries.append(folder / "summary.csv")
    draw_curves(summaries, tmp_path / "all.png")
    draw_curves(summaries[:2], tmp_path / "two.png")
    assert len(strong_colours(pixels(tmp_path / "all.png"))) > len(strong_colours(pixels(tmp_path / "two.png"))) >= 2


@pytest.mark.parametrize("content", ["epoch,speed\n0,1\n", "", "x\n1\n"])
def test_nothing_to_draw_is_an_error_that_names_the_file(tmp_path: Path, content: str) -> None:
    file = tmp_path / "summary.csv"
    file.write_text(content)
    with pytest.raises(ValueError) as caught:
        draw_curves([file], tmp_path / "out.png")
    assert str(file) in str(caught.value)


def test_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"summary\.csv"):
        draw_curves([], tmp_path / "out.png")


def test_numbers_that_cannot_be_drawn_do_not_matter(tmp_path: Path, quick: None) -> None:
    record(tmp_path, range(2), train_loss=math.nan, eval_loss=math.inf, grad_norm=0.0, data_share=0.0)
    draw_curves([tmp_path / "summary.csv"], tmp_path / "curves.png")
    assert strong_colours(pixels(tmp_path / "curves.png"))


def test_failure_to_draw_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    log = RunLog(tmp_path, config={})
    monkeypatch.setattr(run_log, "draw_curves", full)
    log.epoch(row(0))
    assert [r["epoch"] for r in read(tmp_path)] == ["0"]
    assert "curves.png" in caplog.text and "No space left" in caplog.text


# -- TensorBoard and wandb


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


@pytest.mark.usefixtures("quick")
def test_tensorboard_has_each_epoch_once_after_a_resume(tmp_path: Path) -> None:
    first = RunLog(tmp_path, tensorboard=True, config={"lr": 1})
    for epoch in range(4):
        first.epoch(row(epoch, train_loss=10.0 + epoch))
    second = RunLog(tmp_path, tensorboard=True, config={"lr": 1}, resume_epoch=2)
    for epoch in (2, 3):
        second.epoch(row(epoch, train_loss=20.0 + epoch))
    second.finish()
    found = scalars(tmp_path / "tensorboard")
    assert found["train/loss"] == {0: 10.0, 1: 11.0, 2: 22.0, 3: 23.0}
    assert {"eval/top1", "eval/loss", "run/lr", "run/grad_norm", "run/images_per_second"} <= found.keys()


class FakeWandb(types.ModuleType):
    """The calls of wandb that are used, with wandb's own refusal of unknown arguments left to the real one."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.inits: list[dict[str, Any]] = []
        self.rows: list[Row] = []
        self.metrics: list[Any] = []
        self.summary: dict[str, Any] = {}
        self.finished = 0

    def init(self, **options: Any) -> "FakeWandb":
        self.inits.append(options)
        return self

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.metrics.append((name, step_metric))

    def log(self, row: Row) -> None:
        if row["epoch"] == 1:
            raise ConnectionError("the network is gone")
        self.rows.append(row)

    def finish(self) -> None:
        self.finished += 1


@pytest.mark.usefixtures("quick")
def test_wandb_gets_rows_and_resumes_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    log = RunLog(tmp_path, wandb={"project": "davit"}, config={"data": Path("x")})
    for epoch in range(3):
        log.epoch(row(epoch))
    log.finish({"best": 1.5})
    assert [r["epoch"] for r in fake.rows] == [0, 2]
    assert "the network is gone" in caplog.text
    assert fake.inits[0]["project"] == "davit"
    assert fake.inits[0]["config"] == {"data": "x"}
    assert ("*", "epoch") in fake.metrics
    assert fake.summary == {"best": 1.5}
    assert fake.finished == 1
    RunLog(tmp_path, wandb=True, config={}, resume_epoch=3)
    assert fake.inits[1]["id"] == fake.inits[0]["id"] != ""


@pytest.mark.parametrize(
    ("module", "option", "command"),
    [
        ("wandb", {"wandb": True}, "python -m pip install wandb"),
        ("torch.utils.tensorboard", {"tensorboard": True}, "python -m pip install tensorboard"),
    ],
)
def test_absent_package_is_an_error_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, option: dict[str, Any], command: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    (tmp_path / "summary.csv").write_text("epoch\n0\n")
    with pytest.raises(ValueError, match="--log-") as caught:
        RunLog(tmp_path, config={}, **option)
    assert command in str(caught.value)
    assert (tmp_path / "summary.csv").exists()


def test_wandb_that_cannot_start_is_an_error_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(FakeWandb):
        def init(self, **options: Any) -> "FakeWandb":
            raise ConnectionError("no account")

    monkeypatch.setitem(sys.modules, "wandb", Broken())
    with pytest.raises(ValueError) as caught:
        RunLog(tmp_path, wandb=True, config={})
    for word in ("--log-wandb", "no account", "WANDB_MODE=offline"):
        assert word in str(caught.value)


# -- the other files


def test_summary_of_the_whole_run(tmp_path: Path) -> None:
    log = RunLog(tmp_path, config={})
    log.finish({"best_top1": np.float64(98.5), "loss": math.nan, "folder": tmp_path, "epochs": [1, math.inf]})
    with (tmp_path / "summary.json").open() as stream:
        found = json.load(stream, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert found == {"best_top1": 98.5, "loss": None, "folder": str(tmp_path), "epochs": [1, None]}


class Colour(str, enum.Enum):
    RED = "red"


def test_args_are_plain_yaml_in_the_order_given(tmp_path: Path) -> None:
    args = {
        "model": "DaViT_nano",
        "data_dir": Path("/data/é"),
        "betas": (0.9, 0.999),
        "lr": 1e-5,
        "seed": np.int64(3),
        "decay": np.float64(0.05),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "colour": Colour.RED,
        "nothing": None,
        "yes": True,
        "text": "1e-3",
        "kwargs": {"embed_dims": [8, 16], "inner": argparse.Namespace(a=1)},
        "names": {"b", "a"},
        "scalar": torch.tensor(2),
    }
    write_args(tmp_path, args)
    read_back = yaml.safe_load((tmp_path / "args.yaml").read_text(encoding="utf-8"))
    assert list(read_back) == list(args)
    assert read_back == {
        **{name: args[name] for name in ("model", "lr", "nothing", "yes", "text")},
        "data_dir": "/data/é",
        "betas": [0.9, 0.999],
        "seed": 3,
        "decay": 0.05,
        "dtype": "torch.bfloat16",
        "device": "cpu",
        "colour": "red",
        "kwargs": {"embed_dims": [8, 16], "inner": {"a": 1}},
        "names": ["a", "b"],
        "scalar": 2,
    }
    assert type(plain(np.float64(1))) is float
    assert type(plain(Colour.RED)) is str


def test_bad_images_are_listed_sorted(tmp_path: Path) -> None:
    odd = b"caf\xe9.png".decode(errors="surrogateescape")
    write_bad_images(tmp_path, {"b/2.png": "truncated, at 12", 'a/"1".png': "empty", odd: "no picture"})
    assert (tmp_path / "bad_images.csv").read_bytes() == (
        b'file,reason\n"a/""1"".png",empty\nb/2.png,"truncated, at 12"\ncaf\xe9.png,no picture\n'
    )
