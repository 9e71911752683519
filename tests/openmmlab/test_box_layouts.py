"""Detection by --data-root alone: files, folders and classes come from what the folder holds."""

import json
import shutil
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from davit.data import DataError, scenes
from davit.openmmlab import cli, config
from davit.openmmlab.cli import train_main as train
from davit.parsing.openmmlab import add_override_arguments
from tests.openmmlab.conftest import DET, Go, save

MASKRCNN = DET / "davit_maskrcnn_1x_coco.py"
DIGITS = DET / "davit_nano_maskrcnn_digits.py"


def load(file: Path, root: Path, *words: Any, **flags: Any) -> tuple[Config, Namespace]:
    """The config as train.py has it before the run; with format_only=... as test.py has it."""
    parser = ArgumentParser()
    parser.add_argument("config")
    add_override_arguments(parser)
    args = parser.parse_args([str(file), "--data-root", str(root), *map(str, words)])
    vars(args).update(flags or {"no_validate": False})
    return config.load_config(args), args


def files(cfg: Config, *splits: str) -> list[tuple[Path, Path]]:
    """For each split the annotation file and the folder of images."""
    found = []
    for split in splits:
        dataset = cfg[f"{split}_dataloader"].dataset
        root = Path(dataset.data_root)
        found.append((root / dataset.ann_file, root / dataset.data_prefix.img))
    return found


def classes_of(cfg: Config, args: Namespace, split: str = "train", checkpoint: str | None = None) -> tuple[str, ...]:
    """The classes that the run will have, as the heads and the data sets have them."""
    init_default_scope("mmdet")
    cli._settle_classes(args, cfg, split, checkpoint)
    classes = tuple(cfg[f"{split}_dataloader"].dataset.metainfo.classes)
    assert cfg.model.roi_head.bbox_head.num_classes == len(classes)
    return classes


def coco(file: Path, *names: str, pictures: Path | None = None) -> None:
    """Write a json of a cat and a dog on the first image, and black images."""
    contents = {
        "images": [{"id": n, "file_name": name, "width": 20, "height": 10} for n, name in enumerate(names, 1)],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": n, "bbox": [1, 1, 8, 8], "area": 64, "iscrowd": 0} for n in (1, 2)
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(contents))
    for name in names:
        save(torch.zeros(10, 20, 3).numpy(), (pictures or file.parent) / name)


@pytest.fixture
def roboflow(tmp_path: Path) -> Path:
    root = tmp_path / "export"
    for folder in ("train", "valid", "test"):
        coco(root / folder / "_annotations.coco.json", f"{folder}.png")
    return root


def test_roboflow(roboflow: Path) -> None:
    cfg, args = load(MASKRCNN, roboflow)
    train, val, test = (
        (roboflow / one / "_annotations.coco.json", roboflow / one) for one in ("train", "valid", "test")
    )
    assert files(cfg, "train", "val") == [train, val]
    assert Path(cfg.val_evaluator.ann_file) == val[0]
    assert classes_of(cfg, args) == ("cat", "dog")
    cfg, _ = load(MASKRCNN, roboflow, format_only=False)
    assert files(cfg, "test") == [test] and Path(cfg.test_evaluator.ann_file) == test[0]
    shutil.rmtree(roboflow / "test")
    assert files(load(MASKRCNN, roboflow, format_only=False)[0], "test") == [val]
    shutil.rmtree(roboflow / "valid")
    with pytest.raises(DataError, match=r"'val'.*--no-validate"):
        load(MASKRCNN, roboflow)
    assert files(load(MASKRCNN, roboflow, no_validate=True)[0], "train") == [train]


def test_a_test_set_without_annotations_is_for_predictions_alone(roboflow: Path) -> None:
    file = roboflow / "test" / "_annotations.coco.json"
    contents = json.loads(file.read_text())
    file.write_text(json.dumps({**contents, "annotations": []}))
    ((with_labels, _),) = files(load(MASKRCNN, roboflow, format_only=False)[0], "test")
    ((without, _),) = files(load(MASKRCNN, roboflow, format_only=True)[0], "test")
    assert (with_labels.parent.name, without.parent.name) == ("valid", "test")


def test_the_readmes_own_data_set(tmp_path: Path) -> None:
    """Two json beside a folder of all images; what is named on the command line stays."""
    for split in ("train", "val"):
        coco(tmp_path / f"{split}.json", f"{split}.png", pictures=tmp_path / "images")
    cfg, args = load(MASKRCNN, tmp_path)
    pictures = tmp_path / "images"
    assert files(cfg, "train", "val") == [(tmp_path / "train.json", pictures), (tmp_path / "val.json", pictures)]
    assert classes_of(cfg, args) == ("cat", "dog")
    shutil.copy(tmp_path / "val.json", tmp_path / "other.json")
    options = ["--cfg-options", "val_dataloader.dataset.ann_file=other.json"]
    cfg, args = load(MASKRCNN, tmp_path, "--classes", "dog", *options)
    assert files(cfg, "val") == [(tmp_path / "other.json", pictures)] and classes_of(cfg, args) == ("dog",)
    options = ["--cfg-options", "val_dataloader.dataset.data_prefix.img=elsewhere"]
    assert files(load(MASKRCNN, tmp_path, *options)[0], "val") == [(tmp_path / "val.json", tmp_path / "elsewhere")]
    (tmp_path / "val.json").unlink()
    (tmp_path / "other.json").unlink()
    with pytest.raises(DataError):
        load(MASKRCNN, tmp_path)


def test_a_config_whose_files_are_there_keeps_them(few_scenes: Path) -> None:
    cfg, args = load(DIGITS, few_scenes)
    names = [
        (few_scenes / f"annotations/instances_{split}2017.json", few_scenes / f"{split}2017")
        for split in ("train", "val")
    ]
    assert files(cfg, "train", "val") == names and args.classes is None
    cfg, args = load(MASKRCNN, few_scenes)  # a config of COCO's 80 classes
    assert files(cfg, "train", "val") == names and classes_of(cfg, args) == tuple("0123456789")


def test_yolo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its labels become a file in COCO's form, another one when they change; data.yaml itself may be named."""
    monkeypatch.setattr(scenes, "COUNTS", {"train": 2, "val": 1})
    root = scenes.write_scenes(tmp_path / "yolo", "yolo")
    cfg, args = load(MASKRCNN, root)
    ((train_file, pictures), _) = files(cfg, "train", "val")
    contents = json.loads(train_file.read_text())
    assert pictures == root / "images/train" and len(contents["images"]) == 2
    assert classes_of(cfg, args) == tuple("0123456789")
    assert files(load(MASKRCNN, root / "data.yaml")[0], "train", "val") == files(cfg, "train", "val")
    with (root / "labels/train/000000.txt").open("a") as labels:
        labels.write("3 0.5 0.5 0.25 0.25\n")
    ((changed, _),) = files(load(MASKRCNN, root)[0], "train")
    assert changed != train_file
    assert len(json.loads(changed.read_text())["annotations"]) == 1 + len(contents["annotations"])
    (root / "labels/train/000000.txt").write_text("3 0.5 0.5 0.25\n")
    with pytest.raises(DataError, match=r"000000\.txt:1"):
        load(MASKRCNN, root)


def test_errors_name_the_files_of_yolo(go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the file in COCO's form that was made of them: here boxes, for a config that learns masks."""
    monkeypatch.setattr(scenes, "COUNTS", {"train": 2, "val": 1})
    monkeypatch.setenv("DAVIT_CACHE_DIR", str(tmp_path / "kept"))
    root = scenes.write_scenes(tmp_path / "yolo", "yolo")
    for labels in (root / "labels/train").iterdir():
        labels.write_text("3 0.5 0.5 0.25 0.25\n")
    said = go(train, DIGITS, "--data-root", root, status=2).splitlines()[-1]
    assert str(root / "data.yaml") in said and str(root / "labels/train/000000.txt:1") in said
    assert str(tmp_path / "kept") not in said


def test_folders_for_other_tasks_and_none(tmp_path: Path, masks: Path) -> None:
    with pytest.raises(DataError, match="mask folders"):
        load(MASKRCNN, masks)
    with pytest.raises(DataError, match="nowhere"):
        load(MASKRCNN, tmp_path / "nowhere")


def test_the_classes_of_the_checkpoint_are_tested(roboflow: Path, tmp_path: Path) -> None:
    torch.save(
        {"state_dict": {"a": torch.zeros(1)}, "meta": {"dataset_meta": {"classes": ["dog", "cat"]}}},
        tmp_path / "w.pth",
    )
    cfg, args = load(MASKRCNN, roboflow, format_only=False)
    assert classes_of(cfg, args, "test", str(tmp_path / "w.pth")) == ("dog", "cat")


@pytest.mark.long
def test_the_same_scenes_in_each_form_train_to_the_same_weights(
    go: Go, detector: Path, few_scenes: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """COCO's run lengths, Roboflow's export with its parent category, YOLO's polygons: losses, weights and AP."""
    monkeypatch.setattr(scenes, "COUNTS", {"train": 4, "val": 4})
    expected = torch.load(trained / "epoch_2.pth", weights_only=True)
    for form in ("roboflow", "yolo"):
        root, out = scenes.write_scenes(tmp_path / form, form), tmp_path / f"out_{form}"
        go(train, detector, "--data-root", root, "--work-dir", out, "--seed", "1")
        found = torch.load(out / "epoch_2.pth", weights_only=True)
        losses = [one["message_hub"]["log_scalars"]["train/loss"] for one in (found, expected)]
        assert losses[0] == losses[1] and len(losses[0][0]) == 4
        assert all(torch.equal(tensor, expected["state_dict"][name]) for name, tensor in found["state_dict"].items())
        assert scores(out) == scores(trained)


def scores(folder: Path) -> dict[str, float]:
    """The APs of a run of train.py."""
    (file,) = folder.glob("*/vis_data/scalars.json")
    found = [json.loads(line) for line in file.read_text().splitlines()]
    named = {name: value for line in found for name, value in line.items() if "mAP" in name}
    assert len(named) == 12
    return named
