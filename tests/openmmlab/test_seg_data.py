"""Masks checked before a run, labels to ignore, and ADE20K's zero."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmengine.registry import init_default_scope
from PIL import Image

import davit.openmmlab  # noqa: F401  (before mmseg)
from davit.data import DataError
from davit.openmmlab import masks
from davit.openmmlab.cli import train_main as run_train
from davit.openmmlab.config import read_config, set_classes
from davit.openmmlab.datasets import check_dataset
from tests.openmmlab.segs import CONFIG, CONFIGS, write_set


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_set(tmp_path / "set", train=4, val=2)


def check(data: Path, split: str = "train", config: Path = CONFIG, **changes: Any) -> None:
    init_default_scope("mmseg")
    import davit.openmmlab.segmentation  # noqa: F401  (what the config's custom_imports does)

    cfg = read_config(config)
    dataset = cfg[f"{split}_dataloader"].dataset
    dataset.data_root = str(data)
    labelled = changes.pop("labelled", True)
    if "classes" in changes:
        set_classes(cfg, changes.pop("classes"))
    for name, value in changes.items():
        dataset[name] = value
    check_dataset(dataset, split, cfg.model, labelled)


def mask(data: Path, name: str = "001.png") -> Path:
    return data / "masks" / "train" / name


def save(labels: Any, file: Path, mode: str | None = None) -> None:
    image = Image.fromarray(labels)
    (image.convert(mode) if mode else image).save(file)


def change_size(data: Path) -> str:
    save(np.zeros((24, 64), dtype=np.uint8), mask(data))
    return "64 x 24 pixels, its picture"


def change_label(data: Path) -> str:
    labels = np.asarray(Image.open(mask(data))).copy()
    labels[5, 5:9] = [3, 3, 7, 9]
    save(labels, mask(data))
    return "holds labels 3, 7, 9"


def change_to_palette(data: Path) -> str:
    save(np.asarray(Image.open(mask(data))), mask(data), "P")
    return "is a palette picture"


def change_to_rgb(data: Path) -> str:
    save(np.asarray(Image.open(mask(data))), mask(data), "RGB")
    return "is of RGB colours"


def change_to_16_bits(data: Path) -> str:
    Image.fromarray(np.full((48, 64), 300, dtype=np.uint16)).save(mask(data))
    return "is of 16 bits"


def remove_mask(data: Path) -> str:
    mask(data).unlink()
    return "masks are missing"


def break_mask(data: Path) -> str:
    mask(data).write_bytes(b"no picture")
    return "is not a readable picture"


def cut_mask(data: Path) -> str:
    draws = np.random.default_rng(0)
    save(draws.integers(0, 3, (48, 64)).astype(np.uint8), mask(data))
    mask(data).write_bytes(mask(data).read_bytes()[:-400])
    return "cannot be read to its end"


def remove_masks(data: Path) -> str:
    shutil.rmtree(data / "masks" / "train")
    return "masks are missing"


@pytest.mark.parametrize(
    "damage",
    [
        change_size,
        change_label,
        change_to_palette,
        change_to_rgb,
        change_to_16_bits,
        remove_mask,
        break_mask,
        cut_mask,
    ],
)
def test_a_bad_mask_is_named(data: Path, damage: Callable[[Path], str]) -> None:
    problem = damage(data)
    with pytest.raises(DataError) as error:
        check(data)
    assert problem in str(error.value)
    assert str(mask(data)) in str(error.value)


def test_missing_masks_folder(data: Path) -> None:
    problem = remove_masks(data)
    with pytest.raises(DataError, match=problem):
        check(data)


def test_a_broken_picture_is_named(data: Path) -> None:
    file = data / "images" / "train" / "002.png"
    file.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"002.png is not a readable picture"):
        check(data)


def test_a_missing_folder_and_an_empty_one(data: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*elsewhere.*--data-root"):
        check(data / "elsewhere")
    for file in (data / "images" / "train").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"holds no picture whose name ends with '.png'; there are no files"):
        check(data)


def test_another_suffix_is_offered(data: Path) -> None:
    with pytest.raises(DataError, match=r"ends with '.jpg'; there are 4 of .png. Set img_suffix"):
        check(data, img_suffix=".jpg")


def test_a_list_of_pictures(data: Path) -> None:
    (data / "list.txt").write_text("000\n001\nnowhere\n")
    with pytest.raises(DataError, match=r"the list of pictures names .*nowhere.png: not there"):
        check(data, ann_file="list.txt")
    (data / "list.txt").write_text("000\n001\n")
    check(data, ann_file="list.txt")
    (data / "list.txt").write_text("")
    with pytest.raises(DataError, match=r"is empty"):
        check(data, ann_file="list.txt")
    with pytest.raises(DataError, match=r"there is no list of pictures"):
        check(data, ann_file="other.txt")


def test_classes_and_heads_must_agree(data: Path) -> None:
    with pytest.raises(DataError, match=r"model.decode_head has 3 classes, the data set 2"):
        check(data, metainfo={"classes": ("one", "two")})
    with pytest.raises(DataError, match=r"holds label 2, .* the 2 classes are 0 to 1"):
        check(data, classes=("one", "two"))
    with pytest.raises(DataError, match=r"the data set has no classes"):
        check(data, metainfo={})


def test_weights_and_classes_must_agree(data: Path) -> None:
    config = CONFIGS / "upernet_davit_nano_digits.py"
    where = {"data_prefix": {"img_path": "images/train", "seg_map_path": "masks/train"}}
    with pytest.raises(DataError, match=r"decode_head.loss_decode.class_weight has 11 weights for 3 classes"):
        check(data, config=config, classes=("ground", "disc", "bar"), **where)
    check(data, config=config, ignored_labels=[], **where)


def test_names_that_are_not_ade20ks(data: Path) -> None:
    config = CONFIGS / "upernet_davit_512x512_160k_ade20k.py"
    with pytest.raises(DataError, match=r"ADE20KDataset: .*upernet_davit_folders.py"):
        check(data, config=config, classes=("ground", "disc", "bar"))


def test_a_palette_is_fine_where_it_is_the_rule(data: Path) -> None:
    change_to_palette(data)
    for file in (data / "masks" / "train").iterdir():
        labels = np.asarray(Image.open(file))
        save(np.where(labels == 255, 255, labels).astype(np.uint8), file, "P")
    init_default_scope("mmseg")
    from mmseg.datasets import PascalVOCDataset

    (data / "list.txt").write_text("000\n001\n")
    dataset = {
        **{"type": "PascalVOCDataset", "ann_file": "list.txt", "img_suffix": ".png", "data_root": str(data)},
        "data_prefix": {"img_path": "images/train", "seg_map_path": "masks/train"},
    }
    model = {"decode_head": {"num_classes": len(PascalVOCDataset.METAINFO["classes"])}}
    check_dataset(dataset, "train", model)


def test_a_turned_photograph_fits_its_mask(data: Path) -> None:
    """OpenCV turns a picture as its EXIF says, so its mask is as wide as the stored picture is high."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for folder in ("images", "masks"):
        shutil.rmtree(data / folder / "train")
        (data / folder / "train").mkdir()
    Image.fromarray(np.zeros((48, 64, 3), dtype=np.uint8)).save(data / "images/train/a.jpg", exif=exif)
    save(np.zeros((64, 48), dtype=np.uint8), data / "masks/train/a.png")
    check(data, img_suffix=".jpg")
    save(np.zeros((48, 64), dtype=np.uint8), data / "masks/train/a.png")
    with pytest.raises(DataError, match=r"64 x 48 pixels, its picture .* 48 x 64"):
        check(data, img_suffix=".jpg")


def test_labels_of_a_large_set_are_sampled(data: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr(masks, "ALL", 3)
    with caplog.at_level("INFO"):
        check(data)
    assert "4 pictures" in caplog.text
    assert "labels of 3 masks spread over them checked: 2.08 % of the pixels are ignored" in caplog.text
    change_size(data)  # sizes are looked at in all
    with pytest.raises(DataError, match=r"001.png"):
        check(data)


def test_nothing_to_learn_from(data: Path) -> None:
    for file in (data / "masks" / "train").iterdir():
        save(np.zeros((48, 64), dtype=np.uint8), file)
    with pytest.raises(DataError, match=r"every pixel of the 4 masks .* is ignored .*the masks hold 0"):
        check(data, reduce_zero_label=True)


def test_without_masks(data: Path) -> None:
    remove_masks(data)
    check(data, labelled=False)


def test_train_stops_before_it_starts(data: Path, tmp_path: Path, capfd: Any) -> None:
    change_label(data)
    words = [str(CONFIG), "--data-root", str(data), "--work-dir", str(tmp_path / "run")]
    assert run_train(words) == 2
    assert str(mask(data)) in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_batch_of_one_is_refused(data: Path, tmp_path: Path, capfd: Any) -> None:
    words = [str(CONFIG), "--data-root", str(data), "--work-dir", str(tmp_path / "run")]
    assert run_train([*words, "--options", "train_dataloader.batch_size=1"]) == 2
    assert "train_dataloader.batch_size=1: the decode head pools" in capfd.readouterr().err


def test_ignored_labels_become_255(data: Path) -> None:
    """CamVid's void, 11 where eleven classes are 0 to 10."""
    from davit.openmmlab.segmentation import MaskFolders

    labels = np.asarray(Image.open(mask(data))).copy()
    labels[5, 5:9] = 3
    save(labels, mask(data))
    with pytest.raises(DataError, match=r"holds label 3, .* ignored_labels=\[3\]"):
        check(data)
    check(data, ignored_labels=[3])
    dataset = MaskFolders(
        ignored_labels=[3],
        data_root=str(data),
        img_suffix=".png",
        data_prefix={"img_path": "images/train", "seg_map_path": "masks/train"},
        pipeline=[{"type": "mmseg.LoadAnnotations"}],
    )
    read = dataset[1]["gt_seg_map"]
    assert np.array_equal(read, np.where(labels == 3, 255, labels))


def test_ade20ks_zero(shared: Path, tmp_path: Path) -> None:
    """The raw masks, 0 for "other" and 1..150, through the config's own pipeline, against a count of the files."""
    from mmseg.registry import DATASETS

    sample = shared / "data" / "ade20k-sample" / "sampleData"
    for kind, suffix in (("images", ".jpg"), ("annotations", ".png")):
        (tmp_path / kind / "validation").mkdir(parents=True)
        for file in sample.rglob(f"*{suffix}"):
            shutil.copy(file, tmp_path / kind / "validation" / file.name)
    check(tmp_path, "val", CONFIGS / "upernet_davit_512x512_160k_ade20k.py")
    cfg = read_config(CONFIGS / "upernet_davit_512x512_160k_ade20k.py")
    cfg.val_dataloader.dataset.data_root = str(tmp_path)
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    assert len(dataset) == 3
    for item in dataset:
        found = item["data_samples"]
        raw = np.asarray(Image.open(found.seg_map_path))
        labels = found.gt_sem_seg.data.numpy()
        assert labels.shape == (1, *raw.shape)  # at full size, though the picture was resized
        assert max(item["inputs"].shape[1:]) <= 2048
        assert min(item["inputs"].shape[1:]) == 512
        counts = np.bincount(raw.ravel(), minlength=256)
        expected = np.zeros(256, dtype=int)
        expected[:150], expected[255] = counts[1:151], counts[0]
        assert np.array_equal(np.bincount(labels.ravel(), minlength=256), expected)
        assert np.array_equal(masks.as_trained(raw, True), labels[0])


def test_as_trained() -> None:
    labels = np.array([0, 1, 2, 11, 255])
    assert masks.as_trained(labels, False).tolist() == [0, 1, 2, 11, 255]
    assert masks.as_trained(labels, True).tolist() == [255, 0, 1, 10, 255]
    assert masks.as_trained(labels, False, {11: 255, 0: 1, 1: 0}).tolist() == [1, 0, 2, 255, 255]
