"""What a run stands on is part of its state: other classes and files are refused or named, never taken in silence."""

import io
import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributed import HashStore

from davit.data import PictureDataset, open_dataset
from davit.engine import build
from davit.engine.build import Data
from davit.engine.data_facts import facts_of
from davit.engine.distributed import World
from davit.engine.run_folder import LAST, read_state
from davit.engine.steps import Stepper
from tests.engine.runs import SHORT, Completed, Train, run_here, summary, weights_hash
from tests.forms import FORMS

RUN = [*SHORT, "--epochs", "2", "--lr", "1e-3", "--recovery-interval", "1"]  # epochs of 6 steps
ACCEPT = "--accept-changed-data"
WITHIN, BETWEEN = 8, 6  # steps after which a run is stopped: in epoch 1, and before it


@pytest.fixture
def data(tmp_path: Path, pictures: Path) -> Path:
    """A copy of the images that a test may change."""
    return Path(shutil.copytree(pictures, tmp_path / "data"))


@pytest.fixture
def stopped(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Run on that data until so many steps are done."""

    def stop(steps: int, *flags: str) -> None:
        done, step = [0], Stepper.step

        def counted(self: Stepper, *rest: Any) -> Any:
            if done[0] == steps:
                raise ValueError("stopped")
            done[0] += 1
            return step(self, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(Stepper, "step", counted)
            run_here(data, *RUN, *flags, cwd=tmp_path, status=2)
        state = read_state(tmp_path / "runs/a" / LAST)
        assert (state["epoch"], state["step"]) == divmod(steps, 6)

    return stop


@pytest.fixture
def go_on(data: Path, tmp_path: Path) -> Callable[..., Completed]:
    return partial(run_here, data, *RUN, "--auto-resume", cwd=tmp_path)


def rename_first(data: Path) -> None:
    """Rename so that the classes are exchanged: green 0, red 1, zebra 2."""
    for split in ("train", "val"):
        (data / split / "blue").rename(data / split / "zebra")


def rename_in_place(data: Path) -> None:
    for split in ("train", "val"):
        (data / split / "green").rename(data / split / "grey")


def exchange(data: Path) -> None:
    """Give two folders each other's names."""
    for split in ("train", "val"):
        for one, two in (("blue", "x"), ("red", "blue"), ("x", "red")):
            (data / split / one).rename(data / split / two)


def remove_class(data: Path) -> None:
    for split in ("train", "val"):
        shutil.rmtree(data / split / "green")


def add_class(data: Path) -> None:
    for split in ("train", "val"):
        shutil.copytree(data / split / "green", data / split / "aqua")


@pytest.mark.parametrize("steps", [WITHIN, BETWEEN])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (rename_first, ["blue", "zebra", "0 was blue and is green"]),
        (rename_in_place, ["green", "grey"]),
        (remove_class, ["green", "3", "2", "--initial-checkpoint"]),
        (add_class, ["aqua", "3", "4", "--initial-checkpoint"]),
    ],
)
def test_other_classes_are_refused(
    data: Path, tmp_path: Path, stopped: Any, go_on: Any, change: Any, named: list[str], steps: int
) -> None:
    stopped(steps)
    before = weights_hash(tmp_path / "runs/a" / LAST)
    change(data)
    refused = go_on(status=2)
    for word in named:
        assert word in refused.stderr
    assert weights_hash(tmp_path / "runs/a" / LAST) == before
    if change in (remove_class, add_class):  # the head has another number of outputs
        go_on(ACCEPT, status=2)
        return
    accepted = go_on(ACCEPT)
    for word in named:
        assert word in accepted.stderr
    assert read_state(tmp_path / "runs/a" / LAST)["epoch"] == 2
    assert ACCEPT not in go_on().stderr  # the new classes are the state's own by now


@pytest.mark.parametrize("steps", [WITHIN, BETWEEN])
def test_exchanged_classes_of_the_same_file_names_are_refused(
    data: Path, tmp_path: Path, stopped: Any, go_on: Any, steps: int
) -> None:
    """The list of files is the same, and the images tell."""
    stopped(steps)
    exchange(data)
    refused = go_on(status=2)
    for word in ("blue holds those of red", "red holds those of blue", ACCEPT):
        assert word in refused.stderr
    assert "exchanged" in go_on(ACCEPT).stderr
    assert "exchanged" not in go_on().stderr


@pytest.mark.parametrize("form", FORMS)
def test_the_same_pictures_in_another_form_are_the_same(
    data: Path, tmp_path: Path, stopped: Any, train: Train, form: str
) -> None:
    train(*RUN, "--experiment", "whole")
    stopped(WITHIN)
    run_here(FORMS[form](data, tmp_path / "form"), *RUN, "--auto-resume", cwd=tmp_path)
    assert weights_hash(tmp_path / "runs/a" / LAST) == weights_hash(tmp_path / "runs/whole" / LAST)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_replaced_picture_is_named(data: Path, tmp_path: Path, stopped: Any, go_on: Any, split: str) -> None:
    stopped(WITHIN)
    Image.new("RGB", (16, 16), "black").save(data / split / "red/2.png")
    (line,) = [line for line in go_on().stderr.splitlines() if "red/2.png" in line]
    assert split in line
    assert read_state(tmp_path / "runs/a" / LAST)["updates"] == 12


def test_classes_in_another_order_by_a_class_map(data: Path, tmp_path: Path, stopped: Any, go_on: Any) -> None:
    stopped(BETWEEN)
    (tmp_path / "map.txt").write_text("red\ngreen\nblue\n")
    refused = go_on("--class-map", str(tmp_path / "map.txt"), status=2)
    assert "0 was blue and is red" in refused.stderr and "--class-map" in refused.stderr
    (tmp_path / "map.txt").write_text("blue\ngreen\nred\n")
    go_on("--class-map", str(tmp_path / "map.txt"))


def remove(split: str, data: Path) -> None:
    (data / split / "red/2.png").unlink()


def add(split: str, data: Path) -> None:
    shutil.copy(data / split / "red/2.png", data / split / "red/99.png")


def rename(split: str, data: Path) -> None:
    (data / split / "red/2.png").rename(data / split / "red/99.png")


def move(split: str, data: Path) -> None:
    """Move an image into another class."""
    (data / split / "red/2.png").rename(data / split / "green/99.png")


def shrink(split: str, data: Path) -> None:
    """Leave fewer steps per epoch than are done."""
    for number in range(4, 16):
        for name in ("blue", "green", "red"):
            (data / split / name / f"{number}.png").unlink(missing_ok=True)


CHANGES = [(remove, "train"), (add, "train"), (rename, "train"), (move, "train"), (shrink, "train")]
CHANGES += [(remove, "val"), (add, "val"), (rename, "val"), (move, "val")]


@pytest.mark.parametrize(("change", "split"), CHANGES)
def test_other_files_within_an_epoch_are_refused(
    data: Path, tmp_path: Path, stopped: Any, go_on: Any, change: Any, split: str
) -> None:
    stopped(WITHIN)
    whole = data.with_name("whole")
    shutil.copytree(data, whole)
    before = weights_hash(tmp_path / "runs/a" / LAST)
    change(split, data)
    refused = go_on(status=2)
    for word in (split, "epoch 1", "step 2", ACCEPT):
        assert word in refused.stderr
    assert weights_hash(tmp_path / "runs/a" / LAST) == before
    accepted = go_on(ACCEPT)
    rows = summary(tmp_path / "runs/a")
    assert [row["epoch"] for row in rows] == ["0", "1"]
    state = read_state(tmp_path / "runs/a" / LAST)
    count = len(list((data / "train").rglob("*.png")))
    assert state["data"][split]["pictures"] == len(list((data / split).rglob("*.png")))
    if split == "train":  # the epoch began again, and has all its images
        assert state["totals"]["samples"] == count // 8 * 8
        assert state["updates"] == 8 + count // 8
    else:  # training continues where it was, and what was measured on other images is set aside
        assert state["updates"] == 12
        assert {*state["kept"]} <= {1} and (tmp_path / "runs/a/checkpoint-0.aside.pth.tar").exists()
        assert read_state(tmp_path / "runs/a/model_best.pth.tar")["epoch"] == 2
    assert ACCEPT not in accepted.stderr.split("Resumed")[1]


@pytest.mark.parametrize(("change", "split"), CHANGES)
def test_other_files_between_epochs_are_warned_of(
    data: Path, tmp_path: Path, stopped: Any, go_on: Any, change: Any, split: str
) -> None:
    stopped(BETWEEN)
    before = len(list((data / split).rglob("*.png")))
    change(split, data)
    now = len(list((data / split).rglob("*.png")))
    (line,) = [line for line in go_on().stderr.splitlines() if f"{split} has {now} images" in line]
    assert str(before) in line or before == now
    assert [row["epoch"] for row in summary(tmp_path / "runs/a")] == ["0", "1"]
    assert (tmp_path / "runs/a/checkpoint-0.aside.pth.tar").exists() == (split == "val")


def test_the_same_data_elsewhere_are_the_same(data: Path, tmp_path: Path, stopped: Any, train: Train) -> None:
    train(*RUN, "--experiment", "whole")
    stopped(WITHIN)
    copy = tmp_path / "copy"
    shutil.copytree(data, copy)
    shutil.rmtree(data)
    for number, file in enumerate(copy.rglob("*.png")):
        os.utime(file, (number, number))
    resumed = run_here(copy, *RUN, "--auto-resume", cwd=tmp_path)
    assert ACCEPT not in resumed.stderr
    assert weights_hash(tmp_path / "runs/a" / LAST) == weights_hash(tmp_path / "runs/whole" / LAST)


def test_files_changed_before_an_epochs_evaluation(
    data: Path, tmp_path: Path, go_on: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its steps are done, so the order of its images no longer matters."""
    evaluate = build.evaluate

    def interrupted(*words: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*words, **options)

    with monkeypatch.context() as patch:
        patch.setattr(build, "evaluate", interrupted)
        run_here(data, *RUN, cwd=tmp_path, status=75)
    shrink("train", data)
    assert "12 images" in go_on().stderr
    state = read_state(tmp_path / "runs/a" / LAST)
    assert (state["epoch"], state["updates"]) == (2, 6 + 1)


def test_a_schedule_of_updates_is_laid_out_for_the_new_length(
    data: Path, tmp_path: Path, stopped: Any, go_on: Any
) -> None:
    flags = ["--sched-on-updates", "--warmup-epochs", "0", "--min-lr", "0"]
    stopped(BETWEEN, *flags)
    shrink("train", data)  # one step an epoch
    go_on(*flags)
    assert float(summary(tmp_path / "runs/a")[-1]["lr"]) == pytest.approx(0)  # the end of the schedule


def test_pictures_prepared_in_another_way_are_named(stopped: Any, go_on: Any) -> None:
    stopped(WITHIN)
    assert [line for line in go_on("--crop-pct", "0.5", "--mean", "0.5").stderr.splitlines() if "mean" in line]


def test_a_state_without_facts_resumes_as_before(data: Path, tmp_path: Path, stopped: Any, train: Train) -> None:
    """As one of an earlier version."""
    train(*RUN, "--experiment", "whole")
    stopped(WITHIN)
    file = tmp_path / "runs/a" / LAST
    state = read_state(file)
    for name in ("data", "results", "metric_name", "parameters", "num_epochs", "steps_per_epoch"):
        del state[name]
    del state["args"]["accept_changed_data"]
    torch.save(state, file)
    result = run_here(data, *RUN, "--auto-resume", cwd=tmp_path)
    assert result.stderr.count("earlier version") == 1
    assert weights_hash(file) == weights_hash(tmp_path / "runs/whole" / LAST)


# -- the facts themselves


class Listed:
    """A source of names alone."""

    def __init__(self, names: list[str], targets: list[int] | None) -> None:
        self._names, self.labels = names, targets
        self.class_to_idx = {"a": 0, "b": 1}
        self.opened = 0

    def __len__(self) -> int:
        return len(self._names)

    def names(self) -> list[str]:
        assert self.labels is not None, "a name may cost opening the image"
        return self._names

    def filename(self, index: int) -> str:
        return self.names()[index]

    def path(self, index: int) -> str:
        return self._names[index]

    def targets(self) -> list[int] | None:
        return self.labels

    def open(self, index: int) -> Any:
        self.opened += 1
        return io.BytesIO(self._names[index].encode(errors="surrogateescape")), 0


ALONE = World(0, 0, 1, torch.device("cpu"), HashStore())


def noted(source: Listed) -> Any:
    split = PictureDataset(source)
    return facts_of(Data(split, split, ["a", "b"], 2), ALONE)["train"]


def hashed(names: list[str], targets: list[int] | None) -> Any:
    return noted(Listed(names, targets))


def test_names_their_order_and_their_classes_make_the_facts() -> None:
    names, targets = ["a/1", "a/2", "b/\udcff.png"], [0, 0, 1]
    same = hashed(names, targets)
    assert hashed(list(names), list(targets)) == same
    others = [
        (["a/2", "a/1", names[2]], targets),
        (names, [0, 1, 1]),
        (names[:2], targets[:2]),
        (["a/1a", "/2", "b"], targets),
    ]
    assert same not in [hashed(*other) for other in others]
    untold = hashed(names, None)
    assert (untold["pictures"], untold["files"], len(untold["contents"])) == (3, None, 3)


def test_contents_are_those_of_every_class_and_never_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    source = Listed([str(number) for number in range(100_000)], [number // 2000 for number in range(100_000)])
    source.open = lambda index: (io.BytesIO(b"a"), source.labels[index])  # type: ignore[method-assign]
    found = noted(source)["contents"]
    assert len(found) <= 128
    assert {target for target, _ in found} == {*range(50)} and "" not in {content for _, content in found}
    hashed([*source.names()], source.labels)
    source.open = lambda index: (tmp_path / ("fifo" if index % 2 else "absent"), 0)  # type: ignore[method-assign]
    assert {content for _, content in noted(source)["contents"]} == {""}


def test_processes_that_see_other_files_are_told(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, val = (open_dataset(pictures, split) for split in ("train", "val"))
    found = Data(train, val, train.class_names, 3)
    theirs = {**facts_of(found, ALONE), "val": {"pictures": 12, "classes": "other", "files": "other"}}
    del theirs["train"]["contents"]
    monkeypatch.setattr(World, "gather", lambda self, value: [value, theirs])
    with pytest.raises(ValueError) as refused:
        facts_of(found, ALONE)
    assert all(word in str(refused.value) for word in ("process 1", "val", "12", "13"))


def test_a_million_names_take_a_moment() -> None:
    names = [f"n{number // 1300:08d}/n{number // 1300:08d}_{number}.JPEG" for number in range(1_000_000)]
    split = PictureDataset(Listed(names, np.arange(1_000_000).tolist()))
    begun = time.process_time()
    facts_of(Data(split, split, [], 1000), ALONE)
    assert time.process_time() - begun < 10  # two splits; about one second
    assert split.source.opened <= 4 * 128  # type: ignore[attr-defined]
