from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from davit.data import DataError, digits_root, open_dataset, write_digits


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits") / "digits")


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


def test_a_second_call_writes_nothing(digits: Path):
    before = {file: file.stat().st_mtime_ns for file in digits.rglob("*.png")}
    assert write_digits(digits) == digits
    assert {file: file.stat().st_mtime_ns for file in digits.rglob("*.png")} == before


@pytest.mark.parametrize("damage", ["missing", "empty file"])
def test_a_damaged_folder_is_reported(tmp_path: Path, digits: Path, damage: str):
    copy = tmp_path / "copy"
    shutil.copytree(digits, copy)
    victim = next(copy.glob("val/3/*.png"))
    victim.unlink() if damage == "missing" else victim.write_bytes(b"")
    with pytest.raises(DataError, match=r"val holds 359 of 360.*Remove the folder"):
        write_digits(copy)


def test_another_folder_is_not_touched(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="not the whole digits data set"):
        write_digits(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_concurrent_writers_agree(tmp_path: Path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_digits, args=(tmp_path / "deep" / "digits",)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert [entry.name for entry in (tmp_path / "deep").iterdir()] == ["digits"]
    write_digits(tmp_path / "deep" / "digits")


def _write_and_be_killed(root: Path) -> None:
    save, left = Image.Image.save, iter(range(300))

    def save_some(*args: Any, **kwargs: Any) -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        save(*args, **kwargs)

    Image.Image.save = save_some  # type: ignore[method-assign]
    write_digits(root)


def test_a_killed_writer_leaves_nothing_half_done(tmp_path: Path):
    root = tmp_path / "digits"
    writer = multiprocessing.get_context("fork").Process(target=_write_and_be_killed, args=(root,))
    writer.start()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    assert not root.exists()
    (leftover,) = tmp_path.iterdir()
    assert leftover.name.startswith(".")
    os.utime(leftover, (0, 0))  # long ago
    write_digits(root)
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits"]


def test_an_empty_folder_is_filled(tmp_path: Path):
    assert len(list(write_digits(tmp_path).rglob("*.png"))) == 1797


def test_where_the_digits_live(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("DAVIT_DATA_DIR", raising=False)
    assert digits_root() == Path("data/digits")
    monkeypatch.setenv("DAVIT_DATA_DIR", str(tmp_path))
    assert write_digits() == tmp_path / "digits"
