"""Labels that teach nothing, and orders of classes that differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from davit.data import DataError, check_classes, check_labels, in_other_order, open_dataset

Pictures = Callable[..., Path]


def splits(root: Path, **options):
    return open_dataset(root, "train", **options), open_dataset(root, "val", **options)


def test_one_class_alone_is_refused(pictures: Pictures) -> None:
    root = pictures("train/ant/1.png", "train/ant/2.png", "val/ant/1.png")
    for options in ({}, {"class_map": {"ant": 1, "bee": 0}}):
        with pytest.raises(DataError, match="ant"):
            check_labels(*splits(root, **options))
    (root / "train.csv").write_text("train/ant/1.png,1\n")
    (root / "val.csv").write_text("val/ant/1.png,1\n")
    with pytest.raises(DataError):
        check_labels(*splits(root, dataset="csv"))


def test_classes_without_pictures_in_a_split_are_named(pictures: Pictures, caplog: pytest.LogCaptureFixture) -> None:
    root = pictures("train/ant/1.png", "train/bee/1.png", "val/ant/1.png", "val/crow/1.png")
    train, val = splits(root, class_map={"ant": 0, "bee": 1, "crow": 2, "dodo": 3})
    check_classes(train, val, 4)
    check_labels(train, val)
    first, second = (record.getMessage() for record in caplog.records)
    assert "2 of 4" in first and "crow, dodo" in first and "bee" not in first
    assert "bee" in second and "ant" not in second


def test_nothing_is_said_where_every_class_is_everywhere(pictures: Pictures, caplog: pytest.LogCaptureFixture) -> None:
    check_labels(*splits(pictures("train/ant/1.png", "train/bee/1.png", "val/ant/1.png", "val/bee/1.png")))
    assert not caplog.records


def test_indices_leave_classes_out_and_keep_their_numbers(pictures: Pictures, caplog) -> None:
    root = pictures("1.png", "2.png", "3.png")
    (root / "train.csv").write_text("1.png,0\n2.png,2\n")
    (root / "val.csv").write_text("3.png,2\n")
    train, val = splits(root)
    check_classes(train, val, 3)
    check_labels(train, val)
    assert train.class_names == ["0", "1", "2"] and val[0][1] == 2
    assert "1 of 3" in caplog.text
    with pytest.raises(DataError):
        check_classes(train, val, 2)


@pytest.mark.parametrize(
    ("trained", "names", "differs"),
    [
        (["a", "b"], ["b", "a"], True),
        (["a", "b"], ["a", "b"], False),
        (["a", "b"], ["a", "c"], False),
        (["a", "b", "c"], ["b", "a"], False),
        (["a", "a"], ["a", "a"], False),
        (None, ["a"], False),
    ],
)
def test_the_same_names_in_another_order(trained, names, differs) -> None:
    assert bool(in_other_order(trained, names)) is differs


def test_pictures_under_other_class_indices(pictures: Pictures) -> None:
    dataset = open_dataset(pictures("train/ant/1.png", "train/bee/1.png", "train/crow/1.png"), "train")
    other = dataset.numbered(["crow", "ant", "bee"])
    assert other.source.targets() == [1, 2, 0] == [other[index][1] for index in range(3)]
    assert other.class_names == ["crow", "ant", "bee"] and other.filenames() == dataset.filenames()
    assert other.source.path(0) == dataset.source.path(0) and len(other) == 3


def test_names_by_index_where_a_class_map_has_gaps(pictures: Pictures) -> None:
    root = pictures("train/ant/1.png", "train/bee/1.png")
    assert open_dataset(root, "train", class_map={"ant": 2, "bee": 0}).class_names == ["bee", "class 1", "ant"]
