"""A folder of class folders, or a table, parted into train and val."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from davit.data import DataError, open_dataset
from davit.data.__main__ import main as command
from davit.data.split import _assign, split_pictures
from tests.engine.runs import SHORT, run_here

Pictures = Callable[..., Path]


@pytest.fixture
def folder(pictures: Pictures) -> Path:
    """Classes of 30, 9 and 2 images."""
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
    assert found.groups == 10 and len(parts["val"]) == 16  # a patient has four images of each class


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
    assert sorted(found.contradicting) == [(f"bee/{i}.png", f"ant/{i}.png") for i in range(3)]


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


# ---- several labels per image ----


def labelled(pictures: Pictures, rows: dict[str, str]) -> Path:
    """Images with a table of their labels."""
    root = pictures(*(f"all/{name}" for name in rows)) / "all"
    (root / "labels.csv").write_text("path,labels\n" + "".join(f"{name},{text}\n" for name, text in rows.items()))
    return root


def drawn_labels(count: int, seed: int) -> dict[str, str]:
    draw = np.random.default_rng(seed)
    frequent = [0.5, 0.3, 0.2, 0.1, 0.1, 0.05, 0.02]
    rows = (";".join(f"l{at}" for at, share in enumerate(frequent) if draw.random() < share) for _ in range(count))
    return {f"{number:03d}.png": row for number, row in enumerate(rows)}


def sets_of(out: Path) -> dict[str, dict[str, set[str]]]:
    """The labels of each image of each split, as training reads them."""
    found = {}
    for split in ("train", "val", "test"):
        if (out / split).is_dir():
            dataset = open_dataset(out, split, task="multilabel")
            names, sets = dataset.class_names, dataset.label_sets
            assert sets is not None
            found[split] = {name: {names[at] for at in sets[n]} for n, name in enumerate(dataset.filenames())}
    return found


@pytest.mark.parametrize(("seed", "shares"), [(0, {"val": 0.2}), (1, {"val": 0.2, "test": 0.1}), (2, {"val": 0.5})])
def test_each_of_several_labels_has_its_share(
    pictures: Pictures, tmp_path: Path, seed: int, shares: dict[str, Any]
) -> None:
    rows = drawn_labels(300, seed)
    root = labelled(pictures, rows)
    split_pictures(root, tmp_path / "out", seed=seed, **shares)
    parts = sets_of(tmp_path / "out")
    whole = {name.rpartition("/")[2]: labels for part in parts.values() for name, labels in part.items()}
    assert whole == {name: set(filter(None, text.split(";"))) for name, text in rows.items()}
    assert sum(map(len, parts.values())) == len(rows)
    for split, share in shares.items():
        assert abs(len(parts[split]) - share * len(rows)) <= 2
        held = Counter(label for labels in parts[split].values() for label in labels or {""})
        for label, total in Counter(label for labels in whole.values() for label in labels or {""}).items():
            assert abs(held[label] - share * total) <= 2, label
            assert held[label] and held[label] < total
    split_pictures(root, tmp_path / "again", seed=seed, **shares)
    assert sets_of(tmp_path / "again") == parts


def test_a_label_is_in_both_parts_wherever_it_can_be() -> None:
    """Of small random tables all partings are tried."""
    for seed in range(60):
        draw = np.random.default_rng(seed)
        labels = [tuple({f"l{at}" for at in draw.integers(0, 5, draw.integers(1, 4))}) for _ in range(8)]
        names = {label for own in labels for label in own}

        def lacking(parts: Sequence[str], labels: list[tuple[str, ...]] = labels, names: set[str] = names) -> int:
            held = {(part, label) for part, own in zip(parts, labels, strict=True) for label in own}
            return sum((part, label) not in held for part in ("train", "val") for label in names)

        parts = _assign(labels, [str(n) for n in range(8)], {"val": 0.3}, seed, even_out=True)
        single = {label for label, count in Counter(label for own in labels for label in own).items() if count == 1}
        assert all(part != "val" or single.isdisjoint(own) for part, own in zip(parts, labels, strict=True))
        fixed = [n for n, own in enumerate(labels) if not single.isdisjoint(own)]  # what training alone must have
        tried = (one for one in itertools.product(("train", "val"), repeat=8) if all(one[n] == "train" for n in fixed))
        assert lacking(parts) == min(map(lacking, tried)), seed


def test_labels_in_columns_keep_their_classes(pictures: Pictures, tmp_path: Path) -> None:
    root = pictures(*(f"all/{number}.png" for number in range(12))) / "all"
    rows = [f"{number}.png,{number % 2},{int(number > 8)},0" for number in range(12)]
    (root / "all.csv").write_text("\n".join(["path,a;b,rare,never", *rows]))
    assert command(["split", str(root / "all.csv"), str(tmp_path / "out"), "--task", "multilabel"]) == 0
    train = open_dataset(tmp_path / "out", "train", task="multilabel")
    val = open_dataset(tmp_path / "out", "validation", task="multilabel")
    assert train.class_names == val.class_names == ["a;b", "rare", "never"]
    counts = [dataset.counts() for dataset in (train, val)]
    assert counts[0] is not None and counts[1] is not None
    assert (counts[0] + counts[1]).tolist() == [6, 3, 0] and counts[1].tolist() == [1, 1, 0]


def test_a_lonely_label_is_named_and_trained_on(
    pictures: Pictures, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = labelled(pictures, {**{f"{n}.png": "cat;dog" if n % 2 else "cat" for n in range(20)}, "x.png": "cat;owl"})
    with caplog.at_level("WARNING"):
        assert command(["split", str(root), str(tmp_path / "out")]) == 0
    assert any("owl" in record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert "train/x.png" in (tmp_path / "out/labels.csv").read_text()


def test_what_is_parted_trains(pictures: Pictures, tmp_path: Path) -> None:
    root = labelled(pictures, {f"{n}.png": ("a;b", "b", "", "c;a")[n % 4] for n in range(40)})
    split_pictures(root, tmp_path / "out", copy=True)
    run_here(tmp_path / "out", *SHORT, "--task", "multilabel", "--epochs", "1", cwd=tmp_path)
