"""The report of an evaluation: its tables against a plain count, and its images at few and many classes."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from davit.data import PictureDataset, eval_transform, open_dataset
from davit.engine.records import Outcomes
from davit.engine.report import Report, check_folder, confusion, per_class, worst_of, write_report
from davit.engine.report_figures import draw_confusion


def outcomes_of(targets: list[int], predicted: list[int], loss: list[float] | None = None) -> Outcomes:
    count = len(targets)
    target, answer = np.array(targets), np.array(predicted)
    losses = np.array(loss if loss is not None else [1.0] * count, dtype=np.float32)
    ones = np.ones(count, dtype=bool)
    sure = np.full(count, 0.5, dtype=np.float32)
    return Outcomes(np.arange(count), target, answer, sure, losses, target == answer, ones, answer >= 0)


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def dataset(pictures: Path) -> PictureDataset:
    return open_dataset(pictures, "val", transform=eval_transform(img_size=16))


def report_on(dataset: PictureDataset, predicted: list[int], names: list[str], **options: Any) -> Report:
    targets = [dataset.source.open(index)[1] for index in range(len(dataset))]
    normal = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return Report(outcomes_of(targets, predicted), dataset, names, range(len(names)), normal, {"top1": 1.0}, **options)


def test_the_tables_are_a_plain_count(dataset: PictureDataset, tmp_path: Path) -> None:
    names = ["blue", "green", "red", "none, really"]  # the last has no image, and a comma
    predicted = [0, 0, 1, 0, 3, 1, 1, 1, 2, 2, 2, -1, 0]  # blue x 5, green x 4, red x 4
    write_report(tmp_path, report_on(dataset, predicted, names))
    rows = {row["class"]: row for row in read(tmp_path / "per_class.csv")}
    assert {
        name: (row["support"], row["correct"], row["accuracy"], row["predicted"]) for name, row in rows.items()
    } == {
        "blue": ("5", "3", "60", "4"),
        "green": ("4", "3", "75", "4"),
        "red": ("4", "2", "50", "3"),
        "none, really": ("0", "0", "", "1"),
    }
    assert [rows[name]["precision"] for name in names] == ["75", "75", "66.6667", "0"]
    assert (rows["blue"]["taken_for"], rows["red"]["taken_for"], rows["none, really"]["taken_for"]) == (
        "green",
        "blue",
        "",
    )
    with (tmp_path / "confusion.csv").open(newline="") as stream:
        table = list(csv.reader(stream))
    assert table[0] == ["class", *names, "(not finite)"]
    assert [list(map(int, row[1:])) for row in table[1:]] == [
        [3, 1, 0, 1, 0],
        [0, 3, 1, 0, 0],
        [1, 0, 2, 0, 1],
        [0, 0, 0, 0, 0],
    ]
    pictures = read(tmp_path / "pictures.csv")
    assert [row["file"] for row in pictures] == dataset.filenames()
    right = [int(a == b) for a, b in zip([0] * 5 + [1] * 4 + [2] * 4, predicted, strict=True)]
    assert [int(row["right"]) for row in pictures] == right
    assert json.loads((tmp_path / "summary.json").read_text()) == {"top1": 1.0}
    for name in ("confusion.png", "reliability.png", "worst_1.png"):
        with Image.open(tmp_path / name) as image:
            assert min(image.size) > 100
    assert not list(tmp_path.glob(".*"))
    assert {row["class"] for row in read(tmp_path / "worst.csv")} == set(names[:3])


def test_the_worst_are_wrong_ones_by_the_probability_of_their_class_then_right_ones_and_ties_by_order() -> None:
    outcomes = outcomes_of([0] * 7 + [1], [1, 0, 1, 1, 0, 1, 0, 0], [2.0, 0.5, 3.0, 2.0, 0.9, float("nan"), 0.5, 9.0])
    assert worst_of(outcomes, 0) == [5, 2, 0, 3, 4, 1, 6]
    assert worst_of(outcomes, 0, 2) == [5, 2]
    assert worst_of(outcomes, 2) == []


def test_more_classes_than_a_matrix_is_written_of(dataset: PictureDataset, tmp_path: Path) -> None:
    names = [f"class {number}" for number in range(2001)]
    write_report(tmp_path, report_on(dataset, [0] * 5 + [2000] * 4 + [2] * 4, names))
    assert read(tmp_path / "confusion.csv") == [
        {"class": "class 0", "predicted": "class 0", "count": "5"},
        {"class": "class 1", "predicted": "class 2000", "count": "4"},
        {"class": "class 2", "predicted": "class 2", "count": "4"},
    ]


def test_an_earlier_report_is_replaced_only_if_asked_for(
    dataset: PictureDataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "a/b"
    check_folder(folder, overwrite=False)
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("x")
    check_folder(folder, overwrite=False)
    for name in ("slices.csv", "worst_12.png"):
        (folder / name).write_text("old")
    with pytest.raises(ValueError, match="--overwrite"):
        check_folder(folder, overwrite=False)
    check_folder(folder, overwrite=True)
    assert (folder / "worst_12.png").exists()
    write_report(folder, report_on(dataset, [0] * 13, ["blue", "green", "red"]))
    assert not (folder / "worst_12.png").exists() and not (folder / "slices.csv").exists()
    assert (folder / "mine.txt").read_text() == "x" and "2 files" in caplog.text
    with pytest.raises(ValueError, match="is a file"):
        check_folder(folder / "mine.txt", overwrite=True)


@pytest.mark.parametrize("count", [1, 2, 10, 21, 201])
def test_the_matrix_is_drawn_at_any_number_of_classes(count: int) -> None:
    draw = np.random.default_rng(0)
    targets = draw.integers(0, count, 500)
    outcomes = outcomes_of(targets.tolist(), draw.integers(0, count, 500).tolist())
    names = [f"class number {number}" for number in range(count)]
    figure = draw_confusion(confusion(outcomes, count), names, range(count))
    axes = figure.axes[0]
    assert len(axes.get_yticklabels()) == min(count, 200)
    assert axes.get_yticklabels()[0].get_text().startswith(names[0][:8])
    figure.draw_without_rendering()
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert drawn.x0 >= 0 and drawn.x1 <= width and drawn.y0 >= 0 and drawn.y1 <= height  # nothing is cut off


def test_competing_classes_alone_are_in_the_tables() -> None:
    rows = per_class(outcomes_of([1, 3, 3], [3, 3, 1]), list("abcd"), [1, 3])
    assert [(row["class"], row["support"], row["correct"]) for row in rows] == [("b", 1, 0), ("d", 2, 1)]
