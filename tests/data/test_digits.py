from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from davit.data import DataError, open_dataset, write_digits
from davit.data.__main__ import main as command
from davit.data.digits import write_once

FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("data") / "digits")


def test_every_digit_is_there_once_with_its_pixels(digits: Path):
    source = load_digits()
    files = sorted(digits.glob("*/*/*.png"), key=lambda file: file.stem)
    assert [int(file.stem) for file in files] == list(range(1797))
    for file in files:
        index = int(file.stem)
        assert int(file.parent.name) == source.target[index]
        with Image.open(file) as image:
            assert (image.mode, image.size) == ("L", (8, 8))
            np.testing.assert_array_equal(np.asarray(image), np.rint(source.images[index] * 255 / 16))


def test_a_fifth_of_each_class_is_held_out(digits: Path):
    for label in range(10):
        train, val = (len(list((digits / split / str(label)).iterdir())) for split in ("train", "val"))
        assert abs(val - (train + val) / 5) < 1
    assert len(open_dataset(digits, "train")) == 1437
    assert len(open_dataset(digits, "validation")) == 360


@pytest.mark.parametrize("form", ["csv", "tar", "parquet"])
def test_other_forms_hold_the_same_pictures_in_the_same_order(form: str, digits: Path, tmp_path: Path):
    if form == "parquet":
        pytest.importorskip("pyarrow", reason="needs pyarrow")
    root = write_digits(tmp_path / form, form)
    for split, count in (("train", 1437), ("val", 360)):
        folder, other = open_dataset(digits, split), open_dataset(root, split)
        assert (len(other), other.class_to_idx) == (count, folder.class_to_idx)
        assert other.source.targets() == folder.source.targets()
        assert [Path(name).name for name in other.filenames()] == [Path(name).name for name in folder.filenames()]
        assert all((np.asarray(other[i][0]) == np.asarray(folder[i][0])).all() for i in range(0, count, 40))
    victim = next(file for file in root.rglob("*") if file.is_file())
    victim.unlink()
    with pytest.raises(DataError, match=victim.name):
        write_digits(root, form)
    with pytest.raises(ValueError, match="zip"):
        write_digits(tmp_path / "zip", "zip")


def test_the_command_writes_a_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    assert command(["digits", str(tmp_path / "out"), "--as", "tar"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "out")
    assert len(list((tmp_path / "out").glob("train-*.tar"))) == 9
    with pytest.raises(SystemExit):
        command(["scenes", "--as", "tar"])
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    assert command(["digits", str(tmp_path / "taken")]) == 2
    assert "taken" in caplog.text


def test_what_is_there_is_used_also_in_the_folder_of_the_environment(digits: Path, monkeypatch: pytest.MonkeyPatch):
    before = {file: file.stat().st_mtime_ns for file in digits.rglob("*.png")}
    monkeypatch.setenv("DAVIT_DATA_DIR", str(digits.parent))
    assert write_digits(digits) == write_digits() == digits
    assert {file: file.stat().st_mtime_ns for file in digits.rglob("*.png")} == before


def test_a_damaged_or_other_folder_is_reported_and_not_touched(tmp_path: Path, digits: Path):
    copy = shutil.copytree(digits, tmp_path / "copy", copy_function=os.link)
    victim = next(copy.glob("val/3/*.png"))
    victim.unlink()
    for _ in range(2):
        with pytest.raises(DataError, match=r"copy .*359 of 360.*DAVIT_DATA_DIR"):
            write_digits(copy)
        victim.touch()  # an empty file counts no more than none
    with pytest.raises(DataError, match=str(tmp_path)):
        write_digits(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["copy"]


# Written whole or not at all

COUNT = 50


def write_small(root: Path | None, name: str = "small", before_each: Callable[[int], object] = lambda number: None):
    def write(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        for number in range(COUNT):
            before_each(number)
            (folder / str(number)).touch()

    return write_once(name, root, write, lambda folder: "" if len(list(folder.iterdir())) == COUNT else "files")


def test_the_default_folder_and_an_empty_one_are_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DAVIT_DATA_DIR", raising=False)
    assert write_small(None) == Path("data/small")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert len(list(write_small(empty).iterdir())) == COUNT


def test_concurrent_writers_agree(tmp_path: Path):
    writers = [FORK.Process(target=write_small, args=(tmp_path / "deep" / "small",)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["small"]
    write_small(tmp_path / "deep" / "small")


def _write_and_be_killed(root: Path) -> None:
    write_small(root, before_each=lambda number: number == COUNT // 2 and os.kill(os.getpid(), signal.SIGKILL))


def test_a_killed_writer_leaves_nothing_half_done(tmp_path: Path):
    root = tmp_path / "small"
    writer = FORK.Process(target=_write_and_be_killed, args=(root,))
    writer.start()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    assert not root.exists()
    (leftover,) = tmp_path.iterdir()
    assert leftover.name.startswith(".")
    os.utime(leftover, (0, 0))  # long ago
    write_small(root)
    assert [entry.name for entry in tmp_path.iterdir()] == ["small"]
