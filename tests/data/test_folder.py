from __future__ import annotations

import errno
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data.readers.reader_image_folder import ReaderImageFolder

from davit.data import DataError, check_classes, open_dataset
from davit.data.folder import absent

MakeFolder = Callable[..., Path]
WritePicture = Callable[..., None]


def test_order_and_classes_equal_timms(tmp_path: Path, write_picture: WritePicture):
    for name in ("n10", "n9", "Zebra", "apple", "n01443537", "class 2", "class 10", "ümlaut"):
        for file in ("10.png", "9.png", "B.PNG", "a.JPEG", "img2.jpg", "img10.jpeg"):
            write_picture(tmp_path / "train" / name / file, 1)
    ours = open_dataset(tmp_path, "train")
    timms = ReaderImageFolder(str(tmp_path / "train"))
    assert ours.class_to_idx == timms.class_to_idx
    assert ours.filenames() == timms.filenames()
    assert [ours[i][1] for i in range(len(ours))] == [target for _, target in timms.samples]
    assert ours.class_names[0] == "apple"
    assert ours.filename(0) == timms.filename(0)


def test_nested_folders_are_classes_by_their_own_name_as_timms(tmp_path: Path, write_picture: WritePicture):
    for file in ("animal/cat/1.png", "animal/dog/1.png", "plant/oak/1.png"):
        write_picture(tmp_path / "train" / file, 1)
    assert (
        open_dataset(tmp_path, "train").class_to_idx
        == ReaderImageFolder(str(tmp_path / "train")).class_to_idx
    )
    write_picture(tmp_path / "train" / "plant/cat/1.png", 1)
    with pytest.raises(DataError, match=r"named as class 'cat': animal/cat and plant/cat"):
        open_dataset(tmp_path, "train")


def test_suffixes_in_any_case_and_hidden_files(tmp_path: Path, write_picture: WritePicture):
    names = ["a.JPEG", "b.png", "c.webp", "d.BMP", "e.tif", "f.ppm", "g.Jpg", "h.gif", "i.TIFF"]
    for name in names:
        write_picture(tmp_path / "train" / "x" / name, 1)
    write_picture(tmp_path / "train" / ".cache" / "a.png", 1)
    for other in ("._a.JPEG", ".b.png", "notes.txt", "Thumbs.db"):
        (tmp_path / "train" / "x" / other).write_bytes(b"not a picture")
    dataset = open_dataset(tmp_path, "train")
    assert dataset.filenames() == [f"x/{name}" for name in names]
    assert dataset.class_names == ["x"]


@pytest.mark.parametrize("there", ["val", "validation", "valid", "eval"])
def test_the_validation_split_is_found_under_its_names(
    there: str, tmp_path: Path, write_picture: WritePicture
):
    write_picture(tmp_path / there / "x" / "1.png", 1)
    assert len(open_dataset(tmp_path, "validation")) == 1


def test_an_exact_name_comes_first(tmp_path: Path, write_picture: WritePicture):
    write_picture(tmp_path / "val" / "x" / "1.png", 1)
    for i in range(2):
        write_picture(tmp_path / "validation" / "x" / f"{i}.png", 1)
    assert (len(open_dataset(tmp_path, "val")), len(open_dataset(tmp_path, "validation"))) == (1, 2)
    write_picture(tmp_path / "fold3" / "x" / "1.png", 1)
    assert len(open_dataset(tmp_path, "fold3")) == 1


def test_files_that_are_absent(tmp_path: Path):
    """In the order in which they were asked for, whether their folder is there or not."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "here").touch()
    here, gone, nowhere = (tmp_path / name for name in ("a/here", "a/gone", "b/nowhere"))
    assert absent([nowhere, here, gone]) == [nowhere, gone]


def test_links_are_followed(tmp_path: Path, write_picture: WritePicture):
    write_picture(tmp_path / "elsewhere" / "x" / "1.png", 1)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "x").symlink_to(tmp_path / "elsewhere" / "x")
    assert open_dataset(tmp_path, "train").filenames() == ["x/1.png"]


def test_names_that_are_not_utf8(tmp_path: Path, write_picture: WritePicture):
    write_picture(tmp_path / "train" / "x" / "1.png", 1)
    os.rename(tmp_path / "train/x/1.png", os.fsencode(tmp_path / "train" / "x") + b"/\xff\xe9.png")  # noqa: PTH104
    image, target = open_dataset(tmp_path, "train")[0]
    assert (image.mode, target) == ("RGB", 0)


# Every wrong folder says what is wrong


def test_missing_root_and_file_as_root(tmp_path: Path):
    with pytest.raises(DataError, match=r"nowhere does not exist"):
        open_dataset(tmp_path / "nowhere", "train")
    (tmp_path / "data.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"data\.zip is a file"):
        open_dataset(tmp_path / "data.zip", "train")
    with pytest.raises(DataError, match="no data folder"):
        open_dataset(None, "train")


def test_missing_split_lists_what_is_there(make_folder: MakeFolder):
    root = make_folder()
    (root / "test").mkdir()
    with pytest.raises(
        DataError, match=r"no split 'holdout' \(holdout/\); it holds the folders test, train, val"
    ):
        open_dataset(root, "holdout")
    for file in sorted((root / "val").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    (root / "val").rmdir()
    with pytest.raises(DataError, match=r"no split 'validation' \(validation/ or val/ or .*test, train"):
        open_dataset(root, "validation")


def test_a_root_that_holds_the_classes_itself(make_folder: MakeFolder):
    root = make_folder()
    with pytest.raises(DataError, match=r"no split 'train'.*\(ant, bee\) hold pictures.*'\.'"):
        open_dataset(root / "train", "train")
    assert len(open_dataset(root / "train", ".")) == 40


def test_a_split_without_class_folders(tmp_path: Path, write_picture: WritePicture):
    write_picture(tmp_path / "train" / "1.png", 1)
    with pytest.raises(DataError, match=r"no class folders \(1 pictures lie in it"):
        open_dataset(tmp_path, "train")


def test_pictures_beside_class_folders_are_left_out_aloud(
    make_folder: MakeFolder, caplog: pytest.LogCaptureFixture, write_picture: WritePicture
):
    root = make_folder()
    write_picture(root / "train" / "stray.png", 1)
    with caplog.at_level(logging.WARNING):
        dataset = open_dataset(root, "train")
    assert (len(dataset), dataset.class_names) == (40, ["ant", "bee"])
    assert "1 pictures outside any class folder" in caplog.text


def test_empty_class_folders_are_named(make_folder: MakeFolder):
    root = make_folder()
    for name in ("crow", "dove"):
        (root / "train" / name).mkdir()
    (root / "train" / "dove" / "readme.txt").write_text("soon")
    with pytest.raises(DataError, match=r"train: empty class folders crow, dove"):
        open_dataset(root, "train")


def test_no_pictures_at_all(tmp_path: Path):
    (tmp_path / "train" / "x").mkdir(parents=True)
    (tmp_path / "train" / "x" / "1.heic").write_bytes(b"x")
    with pytest.raises(
        DataError, match=r"no pictures in its 1 class folders \(x\); files ending in .*\.jpeg"
    ):
        open_dataset(tmp_path, "train")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_an_unreadable_folder(make_folder: MakeFolder):
    root = make_folder()
    (root / "train" / "bee").chmod(0)
    try:
        with pytest.raises(DataError, match=r"bee cannot be read \(Permission denied\)"):
            open_dataset(root, "train")
    finally:
        (root / "train" / "bee").chmod(0o755)


def test_an_unreadable_folder_as_the_system_reports_it(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch
):
    root = make_folder()
    scandir = os.scandir

    def refuse(path: Path):
        if Path(path).name == "bee":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"bee cannot be read \(Permission denied\): whoever runs this"):
        open_dataset(root, "train")


# Classes


def test_splits_with_different_classes(make_folder: MakeFolder, write_picture: WritePicture):
    root = make_folder()
    write_picture(root / "val" / "crow" / "1.png", 1)
    (root / "train" / "bee").rename(root / "train" / "wasp")
    train, val = open_dataset(root, "train"), open_dataset(root, "validation")
    with pytest.raises(DataError, match=r"2 classes and val 3.*only in train: wasp; only in val: bee, crow"):
        check_classes(train, val)


def test_class_count_other_than_the_models(make_folder: MakeFolder):
    root = make_folder()
    train, val = open_dataset(root, "train"), open_dataset(root, "validation")
    check_classes(train, val, 2)
    check_classes(train, val)
    for wrong in (1, 3, 1000):
        with pytest.raises(
            DataError, match=rf"2 classes \(ant, bee\) and the model {wrong}: pass --num-classes 2"
        ):
            check_classes(train, val, wrong)
    with pytest.raises(DataError, match="--class-map"):
        check_classes(None, val, 1000)


@pytest.mark.parametrize("kind", ["txt", "pkl", "dict"])
def test_class_maps(kind: str, make_folder: MakeFolder, tmp_path: Path):
    root = make_folder(classes=("ant", "bee", "crow"))
    mapping: dict[str, int] = {"bee": 0, "unseen": 1, "ant": 2, "crow": 3}
    class_map: object = mapping
    if kind == "txt":
        class_map = tmp_path / "map.txt"
        Path(class_map).write_text("bee\nunseen\nant\ncrow\n")
    elif kind == "pkl":
        class_map = tmp_path / "map.pkl"
        Path(class_map).write_bytes(pickle.dumps(mapping))
    dataset = open_dataset(root, "train", class_map=class_map)
    assert dataset.class_to_idx == mapping
    assert [dataset[i][1] for i in range(len(dataset))] == [
        mapping[name.split("/")[0]] for name in dataset.filenames()
    ]
    check_classes(dataset, open_dataset(root, "val", class_map=class_map), 1000)
    with pytest.raises(DataError, match="has 4 classes"):
        check_classes(dataset, None, 3)


def test_a_class_map_leaves_other_folders_out_aloud(
    make_folder: MakeFolder, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        dataset = open_dataset(make_folder(), "train", class_map={"bee": 5})
    assert (len(dataset), dataset[0][1]) == (20, 5)
    assert "not in the class map are left out: ant" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("map.csv", b"ant,0", "cannot be used"),
        ("map.pkl", b"not a pickle", "map.pkl"),
        ("map.pkl", b"cos\nsystem\n(S'touch pwned'\ntR.", "map.pkl"),
        ("map.pkl", pickle.dumps(["ant"]), "expected a dict"),
        ("map.pkl", pickle.dumps({"ant": "first"}), "index of 0 or more"),
        ("map.pkl", pickle.dumps({"ant": -1}), "index of 0 or more"),
        ("map.txt", b"wolf\nyak\n", "none of its class folders"),
    ],
)
def test_bad_class_maps(
    name: str,
    content: bytes,
    message: str,
    make_folder: MakeFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_dataset(make_folder(), "train", class_map=tmp_path / name)
    assert not (tmp_path / "pwned").exists()


def test_a_missing_class_map(make_folder: MakeFolder):
    with pytest.raises(DataError, match="Cannot locate"):
        open_dataset(make_folder(), "train", class_map="absent.txt")


# Data sets by name


def test_a_torchvision_folder(make_folder: MakeFolder):
    root = make_folder()
    dataset = open_dataset(root, "train", dataset="torch/image_folder")
    plain = open_dataset(root, "train")
    assert dataset.filenames() == plain.filenames()
    assert dataset.class_to_idx == plain.class_to_idx
    for i in (0, 25, 39):
        assert np.array_equal(np.asarray(dataset[i][0]), np.asarray(plain[i][0]))
        assert dataset[i][1] == plain[i][1]


def test_a_torchvision_data_set(tmp_path: Path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    from torchvision.datasets import CIFAR10

    rows = np.random.default_rng(0).integers(0, 256, (5, 3072), dtype=np.uint8)
    batch = pickle.dumps({"data": rows, "labels": [3, 1, 4, 1, 5]})
    names = {"label_names": [f"kind{i}" for i in range(10)]}
    for name, _ in CIFAR10.train_list + CIFAR10.test_list:
        (folder / name).write_bytes(batch)
    (folder / "batches.meta").write_bytes(pickle.dumps(names))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CIFAR10, "_check_integrity", lambda self: True)
        patch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
        train = open_dataset(tmp_path, "train", dataset="torch/cifar10")
        val = open_dataset(tmp_path, "validation", dataset="torch/cifar10")
    assert (len(train), len(val), len(train.class_names)) == (25, 5, 10)
    check_classes(train, val, 10)
    image, target = val[2]
    assert (image.mode, image.size, target) == ("RGB", (32, 32), 4)
    assert np.array_equal(np.asarray(image).transpose(2, 0, 1).ravel(), rows[2])
    assert isinstance(image, Image.Image)


@pytest.mark.parametrize(
    "name", ["torch/nonsense", "torch/cifar10", "hfds/no/such/set", "wds/x", "tfds/mnist"]
)
def test_a_named_data_set_that_cannot_be_opened(name: str, tmp_path: Path):
    with pytest.raises(DataError, match=f"--dataset {name}"):
        open_dataset(tmp_path / "absent.tar", "train", dataset=name)


def test_a_name_without_a_kind(make_folder: MakeFolder):
    assert len(open_dataset(make_folder(), "train", dataset="ImageFolder")) == 40
    with pytest.raises(DataError, match=r"--dataset imagenet is unknown; leave it empty"):
        open_dataset(make_folder(), "train", dataset="imagenet")


def test_options_without_effect_are_refused(make_folder: MakeFolder, tmp_path: Path):
    with pytest.raises(DataError, match="takes no download, input_key"):
        open_dataset(make_folder(), "train", download=True, input_key="jpg")
    with pytest.raises(DataError, match="cannot take a class map"):
        open_dataset(tmp_path, "train", dataset="torch/cifar10", class_map={"a": 0})
