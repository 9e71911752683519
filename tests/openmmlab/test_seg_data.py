"""Masks checked before a run, labels to ignore, and ADE20K's zero."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from PIL import Image

from davit.data import DataError
from davit.data.masks import as_trained
from davit.openmmlab import masks as checks
from davit.openmmlab.cli import train_main as train
from davit.openmmlab.config import set_classes
from davit.openmmlab.datasets import check_dataset
from tests.openmmlab.conftest import CLASSES, SEG, SEGMENTOR, Go, config, save, write_masks

FOLDERS = {"img_path": "images/train", "seg_map_path": "masks/train"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_masks(tmp_path / "set", train=4, val=2)


def check(data: Path, file: Path = SEGMENTOR, *, split: str = "train", labelled: bool = True, **changes: Any) -> None:
    """Check a split as train.py would, with some arguments of the data set changed."""
    init_default_scope("mmseg")
    import davit.openmmlab.segmentation  # noqa: F401  (what the config's custom_imports does)

    cfg = config(file)
    dataset = cfg[f"{split}_dataloader"].dataset
    dataset.data_root = str(data)
    if "classes" in changes:
        set_classes(cfg, changes.pop("classes"))
    for name, value in changes.items():  # update() would merge dicts
        dataset[name] = value
    check_dataset(dataset, split, cfg.model, labelled)


def refused(data: Path, *named: Any, **words: Any) -> None:
    """The check fails, and names these."""
    with pytest.raises(DataError) as error:
        check(data, **words)
    assert all(str(word) in str(error.value) for word in named), error.value


def mask(data: Path) -> Path:
    return data / "masks" / "train" / "001.png"


LABELS = np.random.default_rng(0).integers(0, 3, (48, 64)).astype(np.uint8)


@pytest.mark.parametrize(
    ("pixels", "mode", "named"),
    [
        (LABELS[:24], None, ["64 x 24", "64 x 48"]),
        (np.where(LABELS == 2, 7, LABELS * 3), None, ["3, 7", "0 to 2", "ignored_labels=[3]"]),
        (LABELS, "P", ["palette"]),
        (LABELS, "RGB", ["RGB"]),
        (LABELS, "I;16", ["16 bits"]),
    ],
)
def test_a_mask_that_does_not_fit_is_named(data: Path, pixels: Any, mode: str | None, named: list[str]) -> None:
    save(pixels, mask(data), mode)
    refused(data, mask(data), *named)


def test_a_mask_that_cannot_be_read_is_named(data: Path) -> None:
    save(LABELS, mask(data))
    mask(data).write_bytes(mask(data).read_bytes()[:-400])
    refused(data, mask(data))
    mask(data).write_bytes(b"no image")
    refused(data, mask(data))
    mask(data).unlink()
    refused(data, mask(data))
    shutil.rmtree(data / "masks" / "train")
    refused(data, mask(data))
    check(data, labelled=False)


def test_pictures_that_are_broken_or_not_there(data: Path) -> None:
    broken = data / "images" / "train" / "002.png"
    broken.write_bytes(b"no image")
    refused(data, broken)
    refused(data / "elsewhere", data / "elsewhere", "--data-root")
    refused(data, ".jpg", "4 of .png", "train_dataloader.dataset.img_suffix=.png", img_suffix=".jpg")
    shutil.rmtree(data / "images" / "train")
    (data / "images" / "train").mkdir()
    refused(data, data / "images/train", ".png", "no files")


def test_a_list_of_pictures(data: Path) -> None:
    (data / "list.txt").write_text("000\n001\nnowhere\n")
    refused(data, "nowhere.png", ann_file="list.txt")
    (data / "list.txt").write_text("000\n001\n")
    check(data, ann_file="list.txt")
    (data / "list.txt").write_text("")
    refused(data, "list.txt", ann_file="list.txt")
    refused(data, "other.txt", ann_file="other.txt")


def test_classes_and_heads_must_agree(data: Path) -> None:
    refused(data, "model.decode_head", "3 classes", "2", metainfo={"classes": ("one", "two")})
    refused(data, "label 2", "0 to 1", "reduce_zero_label=True", classes=("one", "two"))
    refused(data, "--classes", metainfo={})
    for file in (data / "masks" / "train").iterdir():
        save(np.zeros((48, 64)), file)
    refused(data, "reduce_zero_label=True", "4 masks", reduce_zero_label=True)  # nothing is left to learn
    weighted = {"file": SEG / "upernet_davit_nano_digits.py", "classes": CLASSES, "data_prefix": FOLDERS}
    refused(data, "decode_head.loss_decode.class_weight", "11", "3", **weighted)
    weighted["file"] = SEG / "upernet_davit_512x512_160k_ade20k.py"
    refused(data, "ADE20KDataset", "upernet_davit_folders.py", **weighted)


def test_a_palette_is_fine_where_it_is_the_rule(data: Path) -> None:
    init_default_scope("mmseg")
    from mmseg.datasets import PascalVOCDataset

    for file in (data / "masks" / "train").iterdir():
        save(np.asarray(Image.open(file)), file, "P")
    (data / "list.txt").write_text("000\n001\n")
    dataset = {"type": "PascalVOCDataset", "ann_file": "list.txt", "img_suffix": ".png", "data_root": str(data)}
    model = {"decode_head": {"num_classes": len(PascalVOCDataset.METAINFO["classes"])}}
    check_dataset({**dataset, "data_prefix": FOLDERS}, "train", model)


def test_a_rotated_photograph_fits_its_mask(data: Path) -> None:
    """OpenCV rotates an image as its EXIF says, so its mask is as wide as the stored image is high."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for folder in ("images", "masks"):
        shutil.rmtree(data / folder / "train")
    save(np.zeros((48, 64, 3)), data / "images/train/a.jpg", exif=exif)
    save(np.zeros((64, 48)), data / "masks/train/a.png")
    check(data, img_suffix=".jpg")
    save(np.zeros((48, 64)), data / "masks/train/a.png")
    refused(data, "64 x 48", "48 x 64", img_suffix=".jpg")


def test_labels_of_a_large_set_are_sampled(data: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(checks, "ALL", 3)
    with caplog.at_level("INFO"):
        check(data)
    summary = caplog.records[-1].args[1]
    assert (summary.pictures, summary.read, summary.absent) == (4, 3, 0)
    assert summary.ignored == pytest.approx(1 / 48)  # a row
    save(LABELS[:24], mask(data))  # sizes are checked in all
    refused(data, mask(data))


def test_train_stops_before_it_starts(go: Go, data: Path) -> None:
    save(LABELS[:24], mask(data))
    words = [SEGMENTOR, "--data-root", data, "--work-dir", "run"]
    assert str(mask(data)) in go(train, *words, status=2)
    batch = "train_dataloader.batch_size=1"  # which UPerNet's batch norm cannot normalise
    assert batch in go(train, *words, "--options", batch, status=2)
    assert not Path("run").exists()


# -- images and masks as they are called


def warnings_of(caplog: Any) -> str:
    return "\n".join(record.getMessage() for record in caplog.records if record.levelname == "WARNING")


def test_pictures_of_any_suffix(data: Path, caplog: Any) -> None:
    """Where no suffix is given all are read; what is not used is a warning."""
    pictures = data / "images" / "train"
    for number, suffix in enumerate((".jpg", ".JPG", ".jpeg")):
        Image.open(pictures / f"{number:03d}.png").save(pictures / f"{number:03d}{suffix}", "JPEG")
        (pictures / f"{number:03d}.png").unlink()
    (pictures / "notes.txt").write_text("")
    save(LABELS, data / "masks/train/more.png")
    check(data, img_suffix=None)
    assert "1 .txt" in warnings_of(caplog) and "more.png" in warnings_of(caplog)
    caplog.clear()
    check(data)  # which names .png
    assert all(word in warnings_of(caplog) for word in ("2 .jpg", "1 .jpeg", "4 masks", "1 .txt"))
    save(LABELS, pictures / "001.bmp")
    refused(data, "001.bmp and 001.JPG", img_suffix=None)


def test_mmsegs_own_data_sets_say_what_they_leave_out(shared: Path, tmp_path: Path, caplog: Any) -> None:
    sample = shared / "data" / "ade20k-sample" / "sampleData"
    for kind, suffix in (("images", ".jpg"), ("annotations", ".png")):
        (tmp_path / kind / "validation").mkdir(parents=True)
        for file in sample.rglob(f"*{suffix}"):
            shutil.copy(file, tmp_path / kind / "validation" / file.name)
    save(LABELS, tmp_path / "images/validation/a.JPEG")
    check(tmp_path, SEG / "upernet_davit_512x512_160k_ade20k.py", split="val")
    assert "1 .jpeg" in warnings_of(caplog)


# -- labels that teach nothing


def fill(data: Path, pixels: Any, split: str = "train") -> None:
    for file in (data / "masks" / split).iterdir():
        save(pixels, file)


def test_masks_of_0_and_255(go: Go, data: Path, caplog: Any) -> None:
    """They stop a run, and the remedy that is advised lets it train."""
    for split in ("train", "val"):
        fill(data, (LABELS > 0) * 255, split)
    two = ("ground", "crack")
    refused(data, "0/255", "label_map.255=1", classes=two)
    options = [f"{split}_dataloader.dataset.label_map.255=1" for split in ("train", "val")]
    words = [SEGMENTOR, "--data-root", data, "--classes", *two, "--work-dir", "run", "--cfg-options"]
    go(train, *words, *options, "train_cfg.max_iters=1")
    assert Path("run/iter_1.pth").is_file()
    caplog.clear()
    check(data, classes=two, label_map={255: 1})
    assert not warnings_of(caplog)


@pytest.mark.parametrize("scale", [0, 255])
def test_a_single_class_is_refused(data: Path, scale: int) -> None:
    fill(data, (LABELS > 0) * scale)
    refused(data, "'crack'", "--classes background crack", "label_map.255=1", classes=("crack",))


def test_a_class_that_does_not_occur(data: Path, caplog: Any) -> None:
    fill(data, np.where(LABELS == 1, 0, LABELS))
    check(data)
    assert "'disc'" in warnings_of(caplog) and "'bar'" not in warnings_of(caplog)


def test_classes_that_only_validation_has(go: Go, data: Path) -> None:
    fill(data, np.where(LABELS == 1, 0, LABELS))
    said = go(train, SEGMENTOR, "--data-root", data, "--cfg-options", "train_cfg.max_iters=1")
    assert "those of training: 'disc'" in said


@pytest.mark.parametrize(
    "arguments",
    [
        {"label_map": {300: 1}},
        {"label_map": {2: 7}},
        {"label_map": {255: 1}, "reduce_zero_label": True},
        {"colours": [[0, 0, 0]]},
        {"colours": [[0, 0, 0], [1, 2], [3, 4, 5]]},
        {"ignored_labels": ["#12"]},
    ],
)
def test_arguments_that_make_no_labels(data: Path, arguments: dict[str, Any]) -> None:
    refused(data, *([] if "ignored_labels" in arguments else [next(iter(arguments))[:6]]), **arguments)


@pytest.mark.parametrize("ignored", [[[0, 0, 255]], ["#0000ff"]])
def test_coloured_masks(data: Path, ignored: list[Any]) -> None:
    """Training reads the labels that the check counts."""
    from davit.openmmlab.segmentation import MaskFolders

    colours = np.array([[0, 0, 0], [128, 0, 0], [0, 128, 0], [0, 0, 255]])
    strange = LABELS.copy()
    strange[0] = 3
    fill(data, colours[strange])
    coded = {"colours": colours[:3].tolist(), "ignored_labels": ignored}
    refused(data, "colours=", "[128, 0, 0]")
    refused(data, "(0, 0, 255)", colours=coded["colours"])
    check(data, **coded)
    words = {"data_prefix": FOLDERS, "pipeline": [{"type": "mmseg.LoadAnnotations"}]}
    read = MaskFolders(**coded, data_root=str(data), **words)[1]["gt_seg_map"]
    assert np.array_equal(read, np.where(strange == 3, 255, strange)) and read.dtype == np.uint8


def test_ignored_labels_become_255(data: Path) -> None:
    """As CamVid's void, 11 where eleven classes are 0 to 10."""
    from davit.openmmlab.segmentation import MaskFolders

    save(LABELS + 1, mask(data))
    check(data, ignored_labels=[3])
    words = {"img_suffix": ".png", "data_prefix": FOLDERS, "pipeline": [{"type": "mmseg.LoadAnnotations"}]}
    read = MaskFolders(ignored_labels=[3], data_root=str(data), **words)[1]["gt_seg_map"]
    assert np.array_equal(read, np.where(LABELS == 2, 255, LABELS + 1))


def test_ade20ks_zero(shared: Path, tmp_path: Path) -> None:
    """The raw masks, 0 for "other" and 1..150, through the config's own pipeline, against a count of the files."""
    from mmseg.registry import DATASETS

    sample = shared / "data" / "ade20k-sample" / "sampleData"
    for kind, suffix in (("images", ".jpg"), ("annotations", ".png")):
        (tmp_path / kind / "validation").mkdir(parents=True)
        for file in sample.rglob(f"*{suffix}"):
            shutil.copy(file, tmp_path / kind / "validation" / file.name)
    file = SEG / "upernet_davit_512x512_160k_ade20k.py"
    check(tmp_path, file, split="val")
    cfg = config(file)
    cfg.val_dataloader.dataset.data_root = str(tmp_path)
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    assert len(dataset) == 3
    for item in dataset:
        found = item["data_samples"]
        raw = np.asarray(Image.open(found.seg_map_path))
        labels = found.gt_sem_seg.data.numpy()
        assert labels.shape == (1, *raw.shape)  # at full size, though the image was resized
        assert max(item["inputs"].shape[1:]) <= 2048
        assert min(item["inputs"].shape[1:]) == 512
        counts = np.bincount(raw.ravel(), minlength=256)
        expected = np.zeros(256, dtype=int)
        expected[:150], expected[255] = counts[1:151], counts[0]
        assert np.array_equal(np.bincount(labels.ravel(), minlength=256), expected)
        assert np.array_equal(as_trained(raw, True), labels[0])
