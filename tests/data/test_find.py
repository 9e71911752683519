"""Which files a split is: by names, patterns, folders in a tar or a column, without guessing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from davit.data import DataError, open_dataset
from davit.data.find import Found, expand, find
from tests.forms import as_csv, as_shards, write_tar

MakeFolder = Callable[..., Path]


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize(
    ("names", "split", "kind", "files"),
    [
        (["t-0.tar", "t-10.tar", "t-9.tar", "train-1.tar"], "t", "wds", ["t-0.tar", "t-9.tar", "t-10.tar"]),
        (["train-0.tar", "val.tar"], "validation", "wds", ["val.tar"]),
        (["in1k-train-0000.tar", "in1k-validation-00.tar"], "validation", "wds", ["in1k-validation-00.tar"]),
        (["train/000000.tar", "valid/0.tar"], "validation", "wds", ["valid/0.tar"]),
        (["train.csv", "val.csv", "images/0.png"], "train", "csv", ["train.csv"]),
        (["train.csv", "train/0.png", "val.csv", "val/0.png"], "validation", "csv", ["val.csv"]),
        (["train.csv", "train_extra.csv", "val.csv"], "train", "csv", ["train.csv"]),
        (["data/train-0-of-1.parquet", "data/test.parquet"], "train", "parquet", ["data/train-0-of-1.parquet"]),
        (["train/ant/0.png", "train.csv", "val/ant/0.png"], "train", "folder", ["train"]),
        (["train/ant/0.png", "notes.csv", "eval/ant/0.png"], "validation", "folder", ["eval"]),
        (["fold3.csv", "fold4.csv"], "fold3", "csv", ["fold3.csv"]),
        (["lists/a.csv"], "lists/a.csv", "csv", ["lists/a.csv"]),
        (["x-000.tar", "x-001.tar", "y.tar"], "x-{000..001}.tar", "wds", ["x-000.tar", "x-001.tar"]),
        (["x-000.tar", "x-001.tar", "y.tar"], "x-*.tar", "wds", ["x-000.tar", "x-001.tar"]),
        ([".train.tar", "train.tar", "val.tar"], "train", "wds", ["train.tar"]),
        (["a.tar", "b.tar"], ".", "wds", ["a.tar", "b.tar"]),
    ],
)  # fmt: skip
def test_a_split_is_found(names: list[str], split: str, kind: str, files: list[str], tmp_path: Path) -> None:
    touch(tmp_path, *names)
    assert find(tmp_path, split) == Found(kind, tuple(tmp_path / file for file in files))


def test_files_that_tell_no_split_must_tell_it_inside(tmp_path: Path) -> None:
    touch(tmp_path, "all.tar")
    for place in (tmp_path, tmp_path / "all.tar"):
        assert find(place, "train") == Found("wds", (tmp_path / "all.tar",), split_required=True)


@pytest.mark.parametrize(
    ("names", "place", "split", "kind"),
    [
        (["train.tar"], "", "validation", None),  # only another split
        (["train.tar"], "train.tar", "validation", None),
        (["train.csv", "train.tar"], "", "train", None),  # two kinds
        (["train-1.csv", "train-2.csv"], "", "train", None),
        (["train.csv"], "", "train", "wds"),
        (["train/a/0.png"], "", "train", "wds"),
        ([], "nowhere", "train", "csv"),
        (["train-0.tar"], "train-{0..2}.tar", "train", None),  # two are not there
        ([], "train-*.tar", "train", None),
        ([], "train-{0..9999999}.tar", "train", None),
        ([], "s3://bucket/train-{0..2}.tar", "train", None),
        ([], "pipe:curl x", "train", None),
    ],
)
def test_a_split_that_is_not_there(names: list[str], place: str, split: str, kind: str | None, tmp_path: Path) -> None:
    touch(tmp_path, *names)
    with pytest.raises(DataError, match="local" if ":" in place else ""):
        find(Path(place) if ":" in place else tmp_path / place, split, kind)


def test_a_run_is_no_data(tmp_path: Path) -> None:
    """Its checkpoints end in .tar and its tables in .csv; a checkpoint beside data is left alone."""
    touch(tmp_path, "run/args.yaml", "run/model_best.pth.tar", "run/summary.csv", "run/bad_images.csv")
    for split in ("train", "."):
        with pytest.raises(DataError) as caught:
            find(tmp_path / "run", split)
        assert "model_best.pth.tar" in str(caught.value) and str(tmp_path / "run") in str(caught.value)
    touch(tmp_path, "train.csv", "model.pth.tar")
    assert find(tmp_path, "train") == Found("csv", (tmp_path / "train.csv",))


def test_two_kinds_are_told_apart_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "train.csv", "train.tar", "train/ant/0.png")
    for kind, file in (("csv", "train.csv"), ("wds", "train.tar"), ("folder", "train"), (None, "train")):
        assert find(tmp_path, "train", kind).files == (tmp_path / file,)


def test_patterns_are_written_out_in_natural_order(tmp_path: Path) -> None:
    touch(
        tmp_path, "val-00.tar", *(f"train-{number:02d}.tar" for number in range(12)), "a[1].tar", "t9.tar", "t10.tar"
    )
    names = [file.name for file in expand(f"{tmp_path}/{{train,val}}-{{00..00}}.tar")]
    assert names == ["train-00.tar", "val-00.tar"]
    assert [file.name for file in expand(f"{tmp_path}/train-{{08..11}}.tar")][:2] == ["train-08.tar", "train-09.tar"]
    assert [file.name for file in expand(f"{tmp_path}/t{{9..10}}.tar")] == ["t9.tar", "t10.tar"]
    assert [file.name for file in expand(f"{tmp_path}/a[1].tar")] == ["a[1].tar"]


def test_names_of_data_sets(make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder()
    table, shards = as_csv(root, tmp_path / "csv"), as_shards(root, tmp_path / "wds")
    wanted = open_dataset(root, "train").source.targets()
    monkeypatch.chdir(tmp_path)
    for place, dataset in (
        (table, "csv"),
        (tmp_path, "csv/csv"),
        (None, f"csv/{table}"),
        (shards, "wds"),
        (shards, "tar"),
        (shards, "WDS/train-*.tar"),
        (None, f"wds/{shards}"),
        ("wds/train-{000000..000008}.tar", ""),
        (tmp_path, "wds/wds/{train,val}-{000000..000008}.tar"),
        (root, "folder"),
    ):
        assert open_dataset(place, "train", dataset=dataset).source.targets() == wanted, dataset


@pytest.mark.parametrize(
    ("members", "split", "names"),
    [
        (
            ["train/a/0.png", "train/b/0.png", "val/a/1.png", "val/b/1.png"],
            "train",
            ["train/a/0.png", "train/b/0.png"],
        ),
        (["x/train/a/0.png", "x/train/b/0.png", "x/val/a/1.png"], "validation", ["x/val/a/1.png"]),
        (["train/0.png", "car/0.png"], ".", ["car/0.png", "train/0.png"]),  # a class called train
    ],
)
def test_splits_as_folders_in_a_tar(members: list[str], split: str, names: list[str], tmp_path: Path) -> None:
    file = write_tar(tmp_path / "all.tar", [(name, b"x") for name in members])
    assert open_dataset(file, split).filenames() == names


@pytest.mark.parametrize("split", ["validation", "test", "fold"])
def test_a_tar_without_the_split(split: str, tmp_path: Path) -> None:
    file = write_tar(tmp_path / "all.tar", [("train/a/0.png", b"x"), ("train/b/0.png", b"x")])
    with pytest.raises(DataError, match=split):
        open_dataset(file, split)
    flat = write_tar(tmp_path / "flat.tar", [("a/0.png", b"x"), ("b/0.png", b"x")])
    with pytest.raises(DataError, match=split):
        open_dataset(flat, split)
