"""A folder of class folders, or a table, parted into train and val."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from davit.data import DataError, open_dataset
from davit.data.__main__ import main as command
from davit.data.split import split_pictures
from tests.engine.runs import SHORT, run_here

Pictures = Callable[..., Path]


@pytest.fixture
def folder(pictures: Pictures) -> Path:
    """Classes of 30, 9 and 2 pictures."""
    counts = {"ant": 30, "bee": 9, "crow": 2}
    return pictures(*(f"all/{name}/{i}.png" for name, count in counts.items() for i in range(count))) / "all"


def parts_of(out: Path) -> dict[str, set[str]]:
    """The names below the classes' folders, by split."""
    return {split.name: {file.relative_to(split).as_posix() for file in split.glob("*/*")} for split in out.iterdir()}


@pytest.mark.parametrize("val", [0.1, 0.2, 0.5])
def test_each_class_has_its_share(folder: Path, tmp_path: Path, val: float) -> None:
    found = split_pictures(folder, tmp_path / "out", val=val)
    parts = parts_of(tmp_path / "out")
    everything = {file.relative_to(folder).as_posix() for file in folder.glob("*/*")}
    assert parts["train"] | parts["val"] == everything and not parts["train"] & parts["val"]
    counts = Counter(name.partition("/")[0] for name in parts["val"])
    assert counts == {"ant": round(30 * val), "bee": max(1, round(9 * val)), "crow": 1}
    assert found.counts["val"] == counts
    file = next((tmp_path / "out/val/ant").iterdir())
    assert file.is_symlink() and file.read_bytes() == (folder / "ant" / file.name).read_bytes()


def test_a_class_of_one_picture_is_refused_by_name(folder: Path, pictures: Pictures, tmp_path: Path) -> None:
    pictures("all/dog/1.png")
    with pytest.raises(DataError, match="dog"):
        split_pictures(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_seed_says_which(folder: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        split_pictures(folder, tmp_path / name, seed=seed)
    a, b, c = (parts_of(tmp_path / name) for name in "abc")
    assert a == b != c


def test_three_parts_of_copies(folder: Path, tmp_path: Path) -> None:
    split_pictures(folder, tmp_path / "out", val=0.2, test=0.1, copy=True)
    parts = parts_of(tmp_path / "out")
    counts = {split: Counter(name.partition("/")[0] for name in names) for split, names in parts.items()}
    assert counts["val"]["ant"] == 6 and counts["test"]["ant"] == 3 and counts["test"]["bee"] == 1
    assert sum(map(len, parts.values())) == 41
    assert not any(file.is_symlink() for file in (tmp_path / "out").rglob("*"))


def test_groups_are_kept_together(pictures: Pictures, tmp_path: Path) -> None:
    root = pictures(*(f"all/{name}/p{i // 4}_{i}.png" for name in ("ant", "bee") for i in range(40)))
    found = split_pictures(root / "all", tmp_path / "out", group_pattern=r"p(\d+)_")
    parts = parts_of(tmp_path / "out")
    patients = {split: {name.partition("/")[2].partition("_")[0] for name in names} for split, names in parts.items()}
    assert not patients["train"] & patients["val"]
    assert found.groups == 10 and len(parts["val"]) == 16  # a patient has four pictures of each class


def test_files_of_the_same_content_go_together(pictures: Pictures, tmp_path: Path) -> None:
    root = pictures(*(f"all/ant/{i}.png" for i in range(20)))
    for i in range(20):
        (root / "all/ant" / f"again{i}.png").write_bytes((root / "all/ant" / f"{i}.png").read_bytes())
    pictures(*(f"all/bee/{i}.png" for i in range(3)))  # which are those of ant
    found = split_pictures(root / "all", tmp_path / "out")
    contents = {
        split: {file.read_bytes() for file in (tmp_path / "out" / split).rglob("*.png")} for split in ("train", "val")
    }
    assert not contents["train"] & contents["val"]
    assert found.alike == 23


def test_a_table_of_names_without_suffix(pictures: Pictures, tmp_path: Path) -> None:
    root = pictures(*(f"train_images/{i:03x}a.png" for i in range(20)))
    rows = [f"{i:03x}a,{i % 2},s{i // 5}" for i in range(20)]
    (root / "train.csv").write_text("\n".join(["id_code,diagnosis,site", *rows]) + "\n")
    split_pictures(root / "train.csv", tmp_path / "out", val=0.25, group_key="site")
    parts = parts_of(tmp_path / "out")
    assert len(parts["val"]) == 5 and sum(map(len, parts.values())) == 20
    sites = {split: {int(name.partition("/")[2][:3], 16) // 5 for name in names} for split, names in parts.items()}
    assert not sites["train"] & sites["val"]
    for name in parts["train"] | parts["val"]:
        label, _, file = name.partition("/")
        assert int(file[:3], 16) % 2 == int(label)


def test_train_without_val_is_parted(pictures: Pictures, tmp_path: Path) -> None:
    root = pictures(*(f"all/train/{name}/{i}.png" for name in "ab" for i in range(5)), "all/test/1.png")
    with pytest.raises(DataError, match="davit data split"):
        open_dataset(root / "all", "validation")
    split_pictures(root / "all", tmp_path / "out")
    assert {split: len(names) for split, names in parts_of(tmp_path / "out").items()} == {"train": 8, "val": 2}
    with pytest.raises(DataError):
        split_pictures(tmp_path / "out", tmp_path / "again")


def test_the_command_and_the_error_that_names_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run_here(folder, *SHORT, cwd=tmp_path, status=2)
    assert "davit data split" in done.stderr
    out = tmp_path / "a new" / "out"
    assert command(["split", str(folder), str(out), "--val", "0.3", "--seed", "4"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    run_here(out, *SHORT, "--epochs", "1", cwd=tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ["--val", "0"],
        ["--val", "1"],
        ["--val", "0.6", "--test", "0.4"],
        ["--group-pattern", "("],
        ["--group-pattern", "x"],
        ["--group-key", "site"],
        ["--group-key", "site", "--group-pattern", "."],
    ],
)
def test_mistakes_write_nothing(folder: Path, tmp_path: Path, words: list[str]) -> None:
    assert command(["split", str(folder), str(tmp_path / "out"), *words]) == 2
    assert command(["split", str(folder), str(folder / "out")]) == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    assert command(["split", str(folder), str(tmp_path / "full")]) == 2
    assert sorted(place.name for place in tmp_path.iterdir()) == ["all", "full"]
