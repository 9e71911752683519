from __future__ import annotations

import errno
import logging
import os
import pickle
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from timm.data.readers.reader_image_folder import ReaderImageFolder

from davit.commands import USER_ERROR, run_cli
from davit.data import DataError, EpochSampler, check_classes, load_rgb, open_dataset, train_transform
from davit.data.listing import absent, natural_key, readable_suffixes

MakeFolder = Callable[..., Path]
Pictures = Callable[..., Path]


@contextmanager
def refused(*parts: str) -> Iterator[None]:
    """The body raises a `DataError` that names each of these."""
    with pytest.raises(DataError) as caught:
        yield
    assert [part for part in parts if part not in str(caught.value)] == []


def test_order_and_classes_equal_timms(pictures: Pictures):
    classes = ("n10", "n9", "Zebra", "apple", "n01443537", "class 2", "class 10", "ümlaut")
    names = ("10.png", "9.png", "B.PNG", "a.JPEG", "img2.jpg", "img10.jpeg")
    root = pictures(*(f"train/{label}/{name}" for label in classes for name in names))
    ours = open_dataset(root, "train")
    timms = ReaderImageFolder(str(root / "train"))
    assert ours.class_to_idx == timms.class_to_idx
    assert ours.filenames() == timms.filenames()
    assert ours.source.targets() == [ours[i][1] for i in range(len(ours))] == [target for _, target in timms.samples]
    assert ours.class_names[0] == "apple"
    assert ours.filename(0) == timms.filename(0)


def test_nested_folders_are_classes_by_their_own_name_as_timms(pictures: Pictures):
    root = pictures("train/animal/cat/1.png", "train/animal/dog/1.png", "train/plant/oak/1.png")
    assert open_dataset(root, "train").class_to_idx == ReaderImageFolder(str(root / "train")).class_to_idx
    pictures("train/plant/cat/1.png")
    with refused("'cat'", "animal/cat", "plant/cat"):
        open_dataset(root, "train")


def test_suffixes_in_any_case_and_hidden_files(pictures: Pictures):
    names = ["a.JPEG", "b.png", "c.webp", "d.BMP", "e.tif", "f.ppm", "g.Jpg", "h.gif", "i.TIFF"]
    root = pictures("train/.cache/a.png", *(f"train/x/{name}" for name in names))
    for other in ("._a.JPEG", ".b.png", "notes.txt", "Thumbs.db"):
        (root / "train" / "x" / other).write_bytes(b"not an image")
    dataset = open_dataset(root, "train")
    assert dataset.filenames() == [f"x/{name}" for name in names]
    assert dataset.class_names == ["x"]


def test_the_validation_split_is_found_under_its_names_an_exact_one_first(pictures: Pictures):
    for name in ("eval", "valid", "val"):
        assert open_dataset(pictures(f"{name}/{name}/1.png"), "validation").class_names == [name]
    root = pictures("validation/x/1.png", "fold3/y/1.png")
    assert [open_dataset(root, split).class_names for split in ("val", "validation", "fold3")] == [
        ["val"],
        ["x"],
        ["y"],
    ]
    assert len(open_dataset(root / "fold3", ".")) == 1
    with pytest.raises(DataError):
        open_dataset(None, "train")


def test_what_is_no_picture_is_counted_by_suffix(pictures: Pictures, caplog: pytest.LogCaptureFixture):
    """Case 5: files without suffix count by their content, HEIC where its package is installed."""
    root = pictures(*(f"{split}/{label}/{n}.png" for split in ("train", "val") for label in "xy" for n in range(3)))
    for folder in (root / split / label for split in ("train", "val") for label in "xy"):
        for number in range(5):
            (folder / f"IMG_{number}.HEIC").write_bytes(bytes(100))
        for number in range(4):
            (folder / f"copy{number}").write_bytes((folder / "0.png").read_bytes())
    with caplog.at_level(logging.WARNING):
        dataset = open_dataset(root, "train")
    heic = 10 if ".heic" in readable_suffixes() else 0
    assert len(dataset) == 6 + 8 + heic
    said = [record.getMessage() for record in caplog.records]
    assert said == [] if heic else ("10 .heic" in said[0] and len(said) == 1)
    assert dataset.filenames() == sorted(dataset.filenames(), key=natural_key)


def test_files_that_are_absent(pictures: Pictures):
    """In the order in which they were asked for, whether their folder is there or not."""
    root = pictures("a/there.png")
    there, gone, nowhere = (root / name for name in ("a/there.png", "a/gone", "b/nowhere"))
    assert absent([nowhere, there, gone]) == [nowhere, gone]


def test_links_and_names_that_are_not_utf8(pictures: Pictures):
    root = pictures("elsewhere/x/1.png")
    os.rename(root / "elsewhere/x/1.png", os.fsencode(root / "elsewhere/x") + b"/\xff\xe9.png")  # noqa: PTH104
    (root / "train").mkdir()
    (root / "train" / "x").symlink_to(root / "elsewhere" / "x")
    image, target = open_dataset(root, "train")[0]
    assert (image.mode, target) == ("RGB", 0)


# Every wrong folder says what is wrong


@pytest.mark.parametrize(
    ("files", "folder", "split", "named"),
    [
        ([], "nowhere", "train", ["nowhere"]),
        (["data.png"], "data.png", "train", ["data.png", "train/"]),
        (["train/x/1.png", "val/x/1.png", "test/x/1.png"], "", "holdout", ["'holdout'"]),
        (["test/x/1.png", "train/x/1.png"], "", "validation", ["'validation'", "validation/", "val/", "test, train"]),
        (["train/ant/1.png", "train/bee/1.png"], "train", "train", ["'train'", "ant, bee", "'.'"]),
        (["train/1.png"], "", "train", ["train", "1 "]),
        (["train/x/1.psd"], "", "train", ["1 ", "x", ".jpeg"]),
        (["train/ant/1.png", "train/crow/readme.txt", "train/dove/readme.txt"], "", "train", ["train", "crow, dove"]),
    ],
)
def test_a_wrong_folder_is_named_with_what_it_holds(
    files: list[str], folder: str, split: str, named: list[str], pictures: Pictures, tmp_path: Path
):
    for file in files:
        if Path(file).suffix == ".png":
            pictures(file)
        else:
            (tmp_path / file).parent.mkdir(parents=True)
            (tmp_path / file).write_text("no image")
    with refused(*named):
        open_dataset(tmp_path / folder, split)


def test_what_is_left_out_is_warned_of(pictures: Pictures, make_folder: MakeFolder, caplog: pytest.LogCaptureFixture):
    """Images beside the class folders, and folders that the class map does not name."""
    root = make_folder()
    pictures("train/stray.png")
    with caplog.at_level(logging.WARNING):
        dataset = open_dataset(root, "train", class_map={"bee": 5})
    assert (len(dataset), dataset[0][1]) == (20, 5)
    strays, unmapped = caplog.records
    assert isinstance(strays.args, tuple) and {root / "train", 1, "stray.png"} <= {*strays.args}
    assert unmapped.args == (root / "train", "ant")
    assert open_dataset(root, "train").class_names == ["ant", "bee"]


def test_an_unreadable_folder(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch):
    root, scandir = make_folder(), os.scandir

    def refuse(path: Path):
        if Path(path).name == "bee":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with refused("bee", "Permission denied"):
        open_dataset(root, "train")


# Classes


def test_splits_with_different_classes(pictures: Pictures):
    root = pictures("train/ant/1.png", "train/wasp/1.png", "val/ant/1.png", "val/bee/1.png", "val/crow/1.png")
    train, val = open_dataset(root, "train"), open_dataset(root, "validation")
    with refused("2 classes", "3", "wasp", "bee, crow"):
        check_classes(train, val)


def test_class_count_other_than_the_models(make_folder: MakeFolder):
    root = make_folder()
    train, val = open_dataset(root, "train"), open_dataset(root, "validation")
    check_classes(train, val, 2)
    check_classes(train, val)
    for wrong in (1, 3, 1000):
        for splits in ((train, val), (None, val)):
            with refused("2 classes", "ant, bee", str(wrong), "num_classes=2", "class_map="):
                check_classes(*splits, wrong)
    with pytest.raises(DataError) as caught:  # weights for other classes: another number would not fit them
        check_classes(None, val, 3, ("cat", "cow", "dog"))
    assert "cat, cow, dog" in str(caught.value) and "num_classes" not in str(caught.value)


def test_an_absent_folder_is_named_with_what_is_there(pictures: Pictures, tmp_path: Path):
    pictures("flowers/train/ant/1.png", "birds/train/ant/1.png")
    with refused("did you mean", str(tmp_path / "flowers")):
        open_dataset(tmp_path / "flower", "train")
    with refused("birds, flowers", str(tmp_path)):
        open_dataset(tmp_path / "xyz", "train")
    with refused(str(tmp_path / "nowhere")):
        open_dataset(tmp_path / "nowhere" / "xyz", "train")


def test_images_without_class_folders_are_told_where_they_belong(pictures: Pictures, tmp_path: Path):
    pictures("all/1.png", "all/2.png")
    with refused("2 images", str(tmp_path / "all/train/CLASS")):
        open_dataset(tmp_path / "all", "train")


@pytest.mark.parametrize("kind", ["txt", "pkl", "dict"])
def test_class_maps(kind: str, make_folder: MakeFolder, tmp_path: Path):
    root = make_folder(classes=("ant", "bee", "crow"))
    mapping: dict[str, int] = {"bee": 0, "unseen": 1, "ant": 2, "crow": 3}
    class_map: Any = mapping
    if kind != "dict":
        class_map = tmp_path / f"map.{kind}"
        class_map.write_bytes(b"bee\nunseen\nant\ncrow\n" if kind == "txt" else pickle.dumps(mapping))
    dataset = open_dataset(root, "train", class_map=class_map)
    assert dataset.class_to_idx == mapping
    assert dataset.source.targets() == [mapping[name.split("/")[0]] for name in dataset.filenames()]
    check_classes(dataset, open_dataset(root, "val", class_map=class_map), 1000)
    with pytest.raises(DataError, match=r"4 .*3"):
        check_classes(dataset, None, 3)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("map.csv", b"ant,0"),
        ("map.pkl", b"not a pickle"),
        ("map.pkl", b"cos\nsystem\n(S'touch pwned'\ntR."),
        ("map.pkl", pickle.dumps(["ant"])),
        ("map.pkl", pickle.dumps({"ant": "first"})),
        ("map.pkl", pickle.dumps({"ant": -1})),
        ("map.pkl", pickle.dumps({"ant": 10**12})),
        ("map.pkl", pickle.dumps({"ant": 2**70})),
        ("map.pkl", pickle.dumps({"ant": True})),
        ("map.pkl", pickle.dumps({"ant": 0.0})),
        ("map.pkl", pickle.dumps({None: 0})),
        ("map.pkl", pickle.dumps({1: 0, "1": 1})),
        ("map.pkl", pickle.dumps({})),
        ("map.txt", b"ant\nbee\nant\n"),
        ("map.txt", b"\n\n"),
        ("map.txt", "ant\nbee".encode("utf-16")),
        ("map.txt", b"ant\n" + b"x" * 5000),
        ("map.txt", b"wolf\nyak\n"),
        ("absent.txt", None),
    ],
)
def test_bad_class_maps(
    name: str, content: bytes | None, make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with refused(name):
        open_dataset(make_folder(), "train", class_map=tmp_path / name)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "text",
    [
        "ant\nbee\n",
        "\ufeffant\nbee",
        "ant\r\nbee\r\n",
        "\n\nant\n\n bee\t\n\n\n",
        "ant\rbee\r",
        "\ufeffant\r\n\r\nbee",
    ],
)
def test_class_maps_as_editors_write_them(text: str, make_folder: MakeFolder, tmp_path: Path):
    (tmp_path / "map.txt").write_bytes(text.encode())
    dataset = open_dataset(make_folder(classes=("ant", "bee")), "train", class_map=tmp_path / "map.txt")
    assert dataset.class_to_idx == {"ant": 0, "bee": 1}


@pytest.mark.parametrize("kind", ["fifo", "device", "large"])
def test_a_class_map_is_a_regular_file_of_bounded_size(
    kind: str, make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "map.txt"
    if kind == "fifo":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    else:
        monkeypatch.setattr("davit.data.source._MOST_BYTES", 7)
        file.write_text("ant\nbee\n")
    with refused("map.txt"):
        open_dataset(make_folder(classes=("ant", "bee")), "train", class_map=file)


# Data sets by name


def test_a_torchvision_folder(make_folder: MakeFolder):
    root = make_folder()
    dataset = open_dataset(root, "train", dataset="torch/image_folder")
    plain = open_dataset(root, "train")
    assert dataset.filenames() == plain.filenames()
    assert dataset.class_to_idx == plain.class_to_idx
    assert dataset.source.targets() == plain.source.targets()
    for i in (0, 25, 39):
        assert np.array_equal(np.asarray(dataset[i][0]), np.asarray(plain[i][0]))
        assert dataset[i][1] == plain[i][1]


def test_a_torchvision_data_set(tmp_path: Path):
    raw = tmp_path / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, 5, 28, 28) + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, 5) + bytes([3, 1, 4, 1, 5]))
    train, val = (open_dataset(tmp_path, split, dataset="torch/fashion_mnist") for split in ("train", "validation"))
    assert (len(train), len(val), len(train.class_names)) == (5, 5, 10)
    check_classes(train, val, 10)
    image, target = val[2]
    assert (image.mode, image.size, target) == ("RGB", (28, 28), 4)
    assert (np.asarray(image) == pixels[2][..., None]).all()


@pytest.mark.parametrize("name", ["torch/nonsense", "torch/cifar10", "hfds/no/such/set", "hfids/x", "tfds/mnist"])
def test_a_named_data_set_that_cannot_be_opened(name: str, tmp_path: Path):
    with refused(f"dataset={name}"):
        open_dataset(tmp_path / "absent.tar", "train", dataset=name)


def test_names_and_options_without_effect_are_refused(make_folder: MakeFolder):
    root = make_folder()
    assert len(open_dataset(root, "train", dataset="ImageFolder")) == 40
    with refused("imagenet", "torch/", "hfds/"):
        open_dataset(root, "train", dataset="imagenet")
    with refused("dataset_download, input_key"):
        open_dataset(root, "train", dataset_download=True, input_key="jpg")
    with refused("torch/cifar10"):
        open_dataset(root, "train", dataset="torch/cifar10", class_map={"a": 0})


# What a command line says


@pytest.mark.parametrize(
    ("mistake", "flags"),
    [
        (lambda: train_transform(aug_splits=2, no_aug=True), ["--aug-splits 2", "--no-aug"]),
        (lambda: EpochSampler(3, batch_size=8, grad_accum_steps=2), ["--batch-size 8", "--grad-accum-steps 2"]),
        (lambda: open_dataset(None, "train", dataset="torch/x"), ["--dataset torch/x", "--dataset-download"]),
        (lambda: load_rgb("absent.png"), ["absent.png", "--skip-bad-images"]),
    ],
)
def test_arguments_in_messages_are_flags_on_a_command_line(mistake, flags, caplog: pytest.LogCaptureFixture):
    assert run_cli(mistake) == USER_ERROR
    assert [flag for flag in [*flags, "`"] if flag not in caplog.text] == ["`"]


def test_splits_in_upper_case(pictures: Pictures):
    root = pictures("Train/ant/1.png", "Train/bee/1.png", "VAL/ant/1.png")
    assert len(open_dataset(root, "train")) == 2
    assert len(open_dataset(root, "validation")) == 1
    pictures("TRAIN/ant/1.png")
    with refused("Train", "TRAIN"):
        open_dataset(root, "train")


def test_the_folder_within_an_unpacked_archive_is_named(pictures: Pictures):
    root = pictures("mine/train/ant/1.png")
    with refused(str(root / "mine")):
        open_dataset(root, "train")


def test_a_class_map_is_read_and_warned_of_once(pictures: Pictures, caplog: pytest.LogCaptureFixture):
    root = pictures("train/a/1.png", "train/b/1.png")
    (root / "map.txt").write_text("a\n\nb\n")
    with caplog.at_level(logging.WARNING):
        assert open_dataset(root, "train", class_map=root / "map.txt").class_to_idx == {"a": 0, "b": 1}
    assert len([record for record in caplog.records if "map.txt" in record.getMessage()]) == 1
