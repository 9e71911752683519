"""Images with any number of labels, in each form in which people have them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from davit.data import (
    DataError,
    EpochSampler,
    EvalLoader,
    PictureDataset,
    TrainLoader,
    balanced_weights,
    check_labels,
    labels_numbered,
    open_dataset,
)
from davit.data.__main__ import main as data_command
from davit.data.label_sets import LabelSets, joined, taken_apart
from davit.data.tables import SeveralLabelsError
from tests.forms import write_tar

LABELS = {"a.png": ["cat", "dog"], "b.png": [], "c.png": ["bird"], "d.png": ["dog"]}


def png(path: Path, value: int = 0) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), value).save(path)
    return path.read_bytes()


def found(dataset: PictureDataset) -> dict[str, list[str]]:
    """The labels of each image by name, from the rows that a loss gets."""
    assert dataset.label_sets is not None
    names = dataset.class_names
    rows = {Path(dataset.filename(at)).name: np.asarray(dataset[at][1]) for at in range(len(dataset))}
    return {name: [names[index] for index in np.flatnonzero(row)] for name, row in rows.items()}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for number, name in enumerate(LABELS):
            png(tmp_path / split / name, number)
    return tmp_path


def rows(prefix: str = "", between: str = ";") -> str:
    return "".join(f"{prefix}{name},{between.join(labels)}\n" for name, labels in LABELS.items())


@pytest.mark.parametrize(
    "text",
    [
        "path,labels\n" + rows("train/"),
        rows("train/"),
        "\ufeffpath;labels\n" + rows("train/", ",").replace(".png,", ".png;"),
        "image\ttags\n" + rows("train/").replace(".png,", ".png\t"),
        "filename,cat,dog,bird,width\n"
        + "".join(
            f"train/{name},{int('cat' in has)},{'1' if 'dog' in has else ''},{float('bird' in has)},{8 + len(has)}\n"
            for name, has in LABELS.items()
        ),
        "path,labels\ntrain/a.png,cat\ntrain/b.png,\ntrain/a.png,dog\ntrain/c.png,bird\ntrain/d.png,dog;dog\n",
        "path,labels,split\n"
        + "".join(f'train/{n},"{"; ".join(has)}",train\n' for n, has in LABELS.items())
        + "val/a.png,cat,val\n",
        "path,labels\n" + rows("train/") + rows("val/"),
    ],
)
def test_a_table_of_any_writing(root: Path, text: str) -> None:
    (root / "labels.csv").write_text(text)
    assert found(open_dataset(root, "train", task="multilabel")) == LABELS


@pytest.mark.parametrize("between", ["|", ", ", "/", " "])
def test_another_sign_between_labels_is_warned_of(root: Path, between: str, caplog: pytest.LogCaptureFixture) -> None:
    text = "path,labels\n" + "".join(f'train/{name},"{between.join(has)}"\n' for name, has in LABELS.items())
    (root / "train.csv").write_text(f"{text}train/e.png,cat\n")
    dataset = open_dataset(root, "train", task="multilabel")
    assert f"cat{between}dog" in dataset.class_names
    assert "write ';' between them" in caplog.text


def test_bands_of_pictures_with_several_labels_are_measured(root: Path) -> None:
    (root / "train.csv").write_text("path,labels\ntrain/a.png,cat;dog\ntrain/c.png,cat\n")
    assert data_command(["stats", str(root), "--in-chans", "1", "-j", "0"]) == 0


def test_names_that_hold_signs_are_not_warned_of(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "train.csv").write_text('path,labels\ntrain/a.png,big cat;"big, old dog"\ntrain/b.png,cat\n')
    open_dataset(root, "train", task="multilabel")
    assert "between them" not in caplog.text


def test_folders_of_pictures_beside_a_table_of_their_names(root: Path) -> None:
    (root / "train" / "b.png").rename(root / "train" / "e.png")
    text = "path,labels\n" + rows().replace("b.png", "e.png")
    (root / "labels.csv").write_text(text + "b.png,cat\n")
    assert found(open_dataset(root, "train", task="multilabel")) == {
        "a.png": ["cat", "dog"], "c.png": ["bird"], "d.png": ["dog"], "e.png": []
    }  # fmt: skip
    assert found(open_dataset(root, "validation", task="multilabel"))["b.png"] == ["cat"]


@pytest.mark.parametrize("place", ["{}.csv", "{}/labels.csv"])
def test_a_table_for_each_split(root: Path, place: str) -> None:
    for split in ("train", "val"):
        (root / split / "more").mkdir()  # folders of images are no classes here
        (root / place.format(split)).write_text("path,labels\n" + rows())
    assert found(open_dataset(root, "train", task="multilabel")) == LABELS


def test_parquet_with_lists(root: Path) -> None:
    pyarrow: Any = pytest.importorskip("pyarrow")
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    data = [(root / "train" / name).read_bytes() for name in LABELS]
    pictures = [{"bytes": one, "path": name} for one, name in zip(data, LABELS, strict=True)]
    table = pyarrow.table({"image": pictures, "labels": list(LABELS.values())})
    parquet.write_table(table, root / "train.parquet")
    assert found(open_dataset(root / "train.parquet", ".", task="multilabel")) == LABELS
    with pytest.raises(DataError) as raised:
        open_dataset(root / "train.parquet", ".")
    assert isinstance(raised.value.__cause__, SeveralLabelsError)


def test_parquet_of_datasets_names_its_indices(root: Path) -> None:
    pyarrow: Any = pytest.importorskip("pyarrow")
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    names = ["bird", "cat", "dog", "horse"]
    data = [{"bytes": (root / "train" / name).read_bytes(), "path": name} for name in LABELS]
    label = {"_type": "Sequence", "feature": {"_type": "ClassLabel", "names": names}}
    about = {"info": {"features": {"image": {"_type": "Image"}, "labels": label}}}
    schema = pyarrow.schema(
        [
            ("image", pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])),
            ("labels", pyarrow.list_(pyarrow.int64())),
        ],
        metadata={b"huggingface": json.dumps(about).encode()},
    )
    indices = [[names.index(one) for one in has] for has in LABELS.values()]
    parquet.write_table(pyarrow.table({"image": data, "labels": indices}, schema=schema), root / "train.parquet")
    dataset = open_dataset(root / "train.parquet", ".", task="multilabel")
    assert found(dataset) == LABELS
    assert dataset.class_names == names


@pytest.mark.parametrize("field", ["labels", "label", "mine"])
def test_shards_with_lists_in_json(root: Path, field: str) -> None:
    members = []
    for name, labels in LABELS.items():
        members += [(f"{name[0]}.json", json.dumps({field: labels}).encode()), (name, png(root / name))]
    write_tar(root / "train.tar", members)
    keys = {"target_key": field} if field == "mine" else {}
    assert found(open_dataset(root / "train.tar", ".", task="multilabel", **keys)) == LABELS


def test_shards_with_texts(root: Path) -> None:
    members = []
    for name, labels in LABELS.items():
        members += [(f"{name[0]}.cls", "\n".join(labels).encode()), (name, png(root / name))]
    write_tar(root / "train.tar", members)
    assert found(open_dataset(root / "train.tar", ".", task="multilabel")) == LABELS


@pytest.mark.parametrize(
    "text",
    [
        "path,labels\na.png,cat;horse\n",  # unknown to the class map
        "path,cat,dog\na.png,1,-1\nb.png,0,1\n",  # not known
        "path,labels\n,cat\n",
        "path,labels\na.png,\nb.png,\n",  # no label at all
        "path,cat,cat\na.png,1,0\n",
    ],
)
def test_mistakes_are_named(root: Path, text: str) -> None:
    (root / "train" / "labels.csv").write_text(text)
    class_map = {"cat": 0, "dog": 1} if "horse" in text else None
    with pytest.raises(DataError):
        open_dataset(root, "train", task="multilabel", class_map=class_map)


def test_a_class_map_gives_the_indices(root: Path) -> None:
    (root / "train" / "labels.csv").write_text("path,dog,cat,size\na.png,1,1,3\nb.png,1,0,4\n")
    dataset = open_dataset(root, "train", task="multilabel", class_map={"cat": 0, "none": 1, "dog": 2})
    assert [np.asarray(dataset[at][1]).tolist() for at in range(2)] == [[1, 0, 1], [0, 0, 1]]


def test_several_labels_are_seen_without_the_task(root: Path) -> None:
    (root / "train" / "labels.csv").write_text("path,labels\n" + rows().replace("b.png,", "b.png,cat"))
    with pytest.raises(DataError, match="multilabel"):
        open_dataset(root, "train")
    (root / "train" / "labels.csv").write_text("path,labels\na.png,salt; pepper\nb.png,other\n")  # a name
    assert open_dataset(root, "train").class_names == ["other", "salt; pepper"]


@pytest.mark.parametrize("dataset", ["", "torch/cifar10"])
def test_what_has_no_table_is_refused(root: Path, dataset: str) -> None:
    with pytest.raises(DataError):
        open_dataset(root, "train", task="multilabel", dataset=dataset)


def test_val_may_lack_classes_and_not_have_others(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "train.csv").write_text("path,labels\n" + rows("train/"))
    (root / "val.csv").write_text("path,labels\nval/a.png,dog\nval/b.png,\n")
    train, val = (open_dataset(root, split, task="multilabel") for split in ("train", "validation"))
    numbered = labels_numbered(val, train.class_names, "train")
    assert [np.asarray(numbered[at][1]).tolist() for at in range(2)] == [[0, 0, 1], [0, 0, 0]]
    check_labels(train, numbered)
    assert "bird" in caplog.text and "cat" in caplog.text
    (root / "val.csv").write_text("path,labels\nval/a.png,dgo\n")
    with pytest.raises(DataError, match="dgo"):
        labels_numbered(open_dataset(root, "validation", task="multilabel"), train.class_names, "train")


def test_batches_hold_rows(root: Path) -> None:
    (root / "labels.csv").write_text("path,labels\n" + rows("train/"))
    dataset = open_dataset(root, "train", task="multilabel")
    dataset.transform = lambda picture: __import__("torch").zeros(2, 3, 4, 4)  # two splits
    dataset.width = 5
    (batch,) = EvalLoader(dataset, batch_size=4).batches()
    assert batch.targets.shape == (8, 5)
    assert batch.targets[:4].equal(batch.targets[4:])
    assert batch.targets.sum().item() == 2 * 4
    sampler = EpochSampler(4, batch_size=2)
    assert next(iter(TrainLoader(dataset, sampler).batches(0))).targets.shape == (4, 5)


def test_label_sets() -> None:
    sets = LabelSets([[2, 0, 2], [], [1]])
    assert [sets[at] for at in range(3)] == [[0, 2], [], [1]]
    assert (sets.without, sets.counts(4).tolist()) == (1, [1, 1, 1, 0])
    assert [sets.renumbered({0: 3})[at] for at in range(3)] == [[2, 3], [], [1]]
    assert taken_apart(joined(["b", "a", "b"])) == ("b", "a")
    assert taken_apart(joined([])) == () == taken_apart(None)
    assert joined([])


# ---- the balanced order ----


def test_balanced_shows_each_class_equally_often() -> None:
    classes = np.repeat([0, 1, 2], [90, 9, 1])
    weights = 1 / np.bincount(classes)[classes]
    sampler = EpochSampler(100, batch_size=10, seed=3, weights=weights)
    for epoch in range(3):
        index, repeat = sampler.order(epoch)
        seen = np.bincount(classes[index.numpy()], minlength=3)
        assert (np.abs(seen - 100 / 3) < 2).all()
        assert len({*zip(index.tolist(), repeat.tolist(), strict=True)}) == 100  # each with an augmentation of its own
        again = EpochSampler(100, batch_size=10, seed=3, weights=weights).order(epoch)
        assert index.equal(again[0]) and repeat.equal(again[1])
    assert not sampler.order(0)[0].equal(sampler.order(1)[0])


def test_balanced_is_the_same_for_any_number_of_processes() -> None:
    weights = np.arange(1, 33)
    whole = EpochSampler(32, batch_size=8, weights=weights, epoch_repeats=2.5)
    parts = [EpochSampler(32, batch_size=4, rank=r, world_size=2, weights=weights, epoch_repeats=2.5) for r in (0, 1)]
    mixed = zip(*(part.micro_batches(1, 3) for part in parts), strict=True)
    assert [one + two for one, two in mixed] == list(whole.micro_batches(1, 3))
    index, repeat = whole.order(0)
    assert len({*zip(index.tolist(), repeat.tolist(), strict=True)}) == len(index) == 80


def test_balanced_and_repeated_augmentation_are_two_answers() -> None:
    with pytest.raises(ValueError, match="balanced"):
        EpochSampler(32, batch_size=8, weights=[1.0] * 32, repeated_aug=True)


def test_balanced_weights_of_several_labels_and_of_one(root: Path) -> None:
    (root / "labels.csv").write_text("path,labels\n" + rows("train/"))
    weights = balanced_weights(open_dataset(root, "train", task="multilabel"))
    assert weights.tolist() == [1.0, 1.0, 1.0, 0.5]  # a: cat, once; b: none, once; c: bird; d: dog, twice
    (root / "labels.csv").write_text("path,label\ntrain/a.png,x\ntrain/b.png,x\ntrain/c.png,y\n")
    assert balanced_weights(open_dataset(root, "train")).tolist() == [0.5, 0.5, 1.0]
