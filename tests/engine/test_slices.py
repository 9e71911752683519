"""Accuracy by what a csv says of each image."""

from pathlib import Path

import numpy as np
import pytest

from davit.data import DataError, PictureDataset, open_dataset
from davit.engine.records import Outcomes, wilson
from davit.engine.slices import ABSENT, EMPTY, accuracy_by_slice, log_slices, read_slices


@pytest.fixture
def dataset(pictures: Path) -> PictureDataset:
    """13 validation images: blue/0 to 4, green/0 to 3, red/0 to 3."""
    return open_dataset(pictures, "val")


def outcomes_of(right: list[int], scored: list[int] | None = None) -> Outcomes:
    count = len(right)
    zeros = np.zeros(count)
    has_label = np.array(scored if scored is not None else [1] * count, dtype=bool)
    return Outcomes(np.arange(count), zeros, zeros, zeros, zeros, np.array(right, dtype=bool), has_label, zeros == 0)


def write(file: Path, *lines: str) -> Path:
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_accuracy_count_and_interval_by_each_value(dataset: PictureDataset, tmp_path: Path) -> None:
    names = dataset.filenames()
    rows = [f"{name},{'ab'[number % 2]},{number // 5}" for number, name in enumerate(names)]
    slices = read_slices(write(tmp_path / "s.csv", "path,camera,day", *reversed(rows)), dataset)
    right = [1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 0, 1, 1]
    found = {(row["column"], row["value"]): row for row in accuracy_by_slice(slices, outcomes_of(right))}
    assert {key: (row["correct"], row["count"]) for key, row in found.items()} == {
        ("camera", "a"): (sum(right[::2]), 7),
        ("camera", "b"): (sum(right[1::2]), 6),
        ("day", "0"): (3, 5),
        ("day", "1"): (3, 5),
        ("day", "2"): (2, 3),
    }
    row = found["camera", "a"]
    assert row["top1"] == 100 * row["correct"] / 7
    assert (row["top1_low"] / 100, row["top1_high"] / 100) == pytest.approx(wilson(row["correct"], 7))


def test_missing_values_pictures_and_rows_are_named(
    dataset: PictureDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(
        tmp_path / "s.csv",
        "place;path;age",
        "in;blue/0.png;",
        ";blue/1.png;7",
        "out;lost/9.png;3",
        "x;;",
        "in;red/3.png",
    )
    slices = read_slices(file, dataset)
    assert "lost/9.png" in caplog.text and "line 5" in caplog.text
    assert "10 of 13" in caplog.text and "blue/2.png" in caplog.text
    rows = accuracy_by_slice(slices, outcomes_of([1] * 13))
    assert [(row["column"], row["value"], row["count"]) for row in rows] == [
        *(("place", "in", 2), ("place", EMPTY, 1), ("place", ABSENT, 10)),
        *(("age", "7", 1), ("age", EMPTY, 2), ("age", ABSENT, 10)),
    ]


def test_pictures_without_a_label_or_that_were_skipped_do_not_count(dataset: PictureDataset, tmp_path: Path) -> None:
    slices = read_slices(
        write(tmp_path / "s.csv", "path,kind", *(f"{name},k" for name in dataset.filenames())), dataset
    )
    outcomes = outcomes_of([1] * 13, [0] * 4 + [1] * 9).only(np.arange(2, 13))
    (row,) = accuracy_by_slice(slices, outcomes)
    assert (row["count"], row["correct"]) == (9, 9)


@pytest.mark.parametrize(
    "form", ["below the split", "below the root", "absolute", "beside the csv", "backslash", "dots"]
)
def test_paths_as_people_write_them(dataset: PictureDataset, pictures: Path, form: str, tmp_path: Path) -> None:
    spelled = {
        "below the split": "green/2.png",
        "below the root": "val/green/2.png",
        "absolute": str(pictures / "val/green/2.png"),
        "beside the csv": "val/green/2.png",
        "backslash": "green\\2.png",
        "dots": "./blue/../green/2.png",
    }[form]
    if form == "beside the csv":
        (tmp_path / "val").symlink_to(pictures / "val")
        dataset, root = open_dataset(tmp_path, "val"), None
    else:
        root = pictures
    slices = read_slices(write(tmp_path / "s.csv", "x,File", f"1,{spelled}"), dataset, root)
    assert [number for number, value in enumerate(slices.values["x"]) if value == "1"] == [7]


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["path"],
        ["path,x"],
        ["blue/0.png,1"],
        ["name,x", "blue/0.png,1"],
        ["path,x,x", "blue/0.png,1,2"],
        ["path,x", "nothing.png,1"],
        ["path,x", "blue/0.png,1", "blue/0.png,2"],
    ],
)
def test_tables_that_cannot_be_used(dataset: PictureDataset, tmp_path: Path, lines: list[str]) -> None:
    with pytest.raises(DataError, match="slices"):
        read_slices(write(tmp_path / "s.csv", *lines), dataset)
    with pytest.raises(DataError, match="slices"):
        read_slices(tmp_path / "nowhere.csv", dataset)


def test_a_column_of_many_values_is_logged_by_its_worst(
    dataset: PictureDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rows = [
        {"column": "id", "value": f"v{n}", "count": 4, "correct": n % 5, "top1": 25.0 * (n % 5)} for n in range(50)
    ]
    for row in rows:
        row["top1_low"], row["top1_high"] = (100 * end for end in wilson(row["correct"], 4))
    log_slices(rows)
    lines = [line for line in caplog.messages if line.startswith("id = ")]
    assert len(lines) == 20 and all("top-1 0" in line or "top-1 25" in line for line in lines)
