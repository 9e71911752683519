"""Check findings about data folders and configs: good ones, and ones with each fault."""

import itertools
import json
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from davit.commands import called_as
from davit.data.layouts import find_layout
from davit.doctor import Finding
from davit.doctor.__main__ import main
from davit.doctor.configs import examine_config
from davit.doctor.folders import examine_folder


def picture(file: Path, seed: int = 0) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 11, 3), dtype=np.uint8)).save(file)
    return file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes: 4 images of training and 2 of validation."""
    root = tmp_path / "data"
    for split, each in (("train", 2), ("val", 1)):
        for number in range(each):
            for name in ("ant", "bee"):
                picture(root / split / name / f"{number}.png", number)
    return root


def examine(root: Path, limit: int | None = None) -> list[Finding]:
    return list(examine_folder(root, limit))


def faults(findings: list[Finding]) -> list[tuple[str, str, str]]:
    return [(finding.level, finding.subject, finding.text) for finding in findings if finding.level != "ok"]


def test_a_good_folder(folder: Path) -> None:
    findings = examine(folder)
    assert faults(findings) == []
    subjects = ["layout", "train", "validation", "classes", "train", "validation", "command"]
    assert [finding.subject for finding in findings] == subjects
    assert "4 images in 2 classes" in findings[1].text and "all 4 files" in findings[4].text
    assert findings[0].text.startswith("class folders") and f"train.py {folder}" in findings[-1].text


def test_the_command_is_the_one_that_the_user_has(folder: Path, tmp_path: Path) -> None:
    """Who typed `davit doctor` may have no clone with train.py in it."""
    masks = tmp_path / "masks"
    for split, kind in itertools.product(("train", "val"), ("images", "masks")):
        for number in range(2):
            (masks / kind / split).mkdir(parents=True, exist_ok=True)
            pixels = np.full((40, 40) if kind == "masks" else (40, 40, 3), number, np.uint8)
            Image.fromarray(pixels).save(masks / kind / split / f"{number}.png")
    for program in ("davit", "python -m davit"):
        with called_as(f"{program} doctor"):
            assert examine(folder)[-1].text.startswith(f"{program} train {folder} ")
            text = examine(masks)[-1].text
        assert text.startswith(f"{program} seg train upernet_davit_folders --data-root {masks}")
    assert examine(masks)[-1].text.startswith("python mmseg/tools/train.py mmseg/configs/upernet_davit_folders.py ")


def test_the_command_fits_a_small_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch that is smaller than a batch is an error of train.py; few images are for fine-tuning."""
    assert "--batch-size 1" in examine(folder)[-1].text
    for number in range(2, 12):
        for name in ("ant", "bee"):
            picture(folder / "train" / name / f"{number}.png", number)
    assert examine(folder)[-1].text.endswith("-c finetune --pretrained --batch-size 8")
    monkeypatch.setattr("davit.doctor.folders._FEW", 24)
    assert examine(folder)[-1].text.endswith("--model DaViT_tiny --batch-size 8")
    monkeypatch.undo()
    for number in range(12, 16):
        for name in ("ant", "bee"):
            picture(folder / "train" / name / f"{number}.png", number)
    assert "--batch-size" not in examine(folder)[-1].text


def test_what_is_missing(folder: Path) -> None:
    """The folder, a class, the same classes in both splits, a split."""
    ((level, _, text),) = faults(examine(folder / "nowhere"))
    assert level == "error" and str(folder / "nowhere") in text
    (folder / "train" / "cat").mkdir()
    assert any(subject == "train" and "cat" in text for _, subject, text in faults(examine(folder)))
    (folder / "train" / "cat").rmdir()
    (folder / "val" / "bee").rename(folder / "val" / "wasp")
    ((level, subject, text),) = faults(examine(folder))
    assert (level, subject) == ("error", "classes") and "bee" in text and "wasp" in text
    shutil.rmtree(folder / "val")
    ((level, subject, _),) = faults(examine(folder))
    assert (level, subject) == ("error", "validation")


def test_files_outside_of_classes_and_imbalance(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    picture(folder / "train" / "stray.png")
    for number in range(50):
        picture(folder / "train" / "ant" / f"more{number}.png")
    outside, unequal = faults(examine(folder))
    assert outside[:2] == unequal[:2] == ("warning", "train")
    assert "stray.png" in outside[2] and "2 to 52" in unequal[2]
    assert caplog.records == []  # it is a finding instead


def test_how_unbalanced_a_folder_is(folder: Path) -> None:
    for number in range(2, 66):
        picture(folder / "train" / "bee" / f"{number}.png", number)
    ((level, subject, text),) = faults(examine(folder))
    assert (level, subject) == ("warning", "train")
    assert "2 to 66 a class" in text and "33 times" in text and "ant 2" in text
    assert any("--class-weights auto" in finding.remedy for finding in examine(folder))


def test_several_labels_are_counted(tmp_path: Path) -> None:
    rows = ["path,labels"]
    for split in ("train", "val"):
        for number in range(24):
            picture(tmp_path / split / f"{number}.png", number)
            labels = ["ant"] if number else ["ant", "bee"]
            rows.append(f"{split}/{number}.png,{';'.join(labels if number < 22 else [])}")
    rows = [row.replace("ant;bee", "ant") if row.startswith("val") else row for row in rows]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    findings = examine(tmp_path)
    (train,) = [finding for finding in findings if finding.subject == "train" and "labels per image" in finding.text]
    assert "1 to 22 a class" in train.text and "2 images without any" in train.text
    assert any("bee" in text and "val" in text for _, subject, text in faults(findings) if subject == "classes")
    assert "--task multilabel" in findings[-1].text


@pytest.mark.parametrize(
    "lines",
    [
        ["path,labels", "{}/0.png,ant", "{}/1.png,", "{}/2.png,bee"],
        ["path,labels", "{}/0.png,ant;bee", "{}/1.png,ant", "{}/2.png,bee"],
        ["path,ant,bee", "{}/0.png,1,0", "{}/1.png,0,0", "{}/2.png,1,1"],
    ],
)
def test_none_or_several_labels_are_read_as_such(tmp_path: Path, lines: list[str]) -> None:
    for split in ("train", "val"):
        for number in range(3):
            picture(tmp_path / split / f"{number}.png", number)
        (tmp_path / f"{split}.csv").write_text("\n".join(line.format(split) for line in lines))
    findings = examine(tmp_path)
    assert not [text for level, _, text in faults(findings) if level == "error"]
    assert "--task multilabel" in findings[-1].text


def test_an_empty_cell_in_val_alone_tells_the_task_of_both(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for number in range(3):
            picture(tmp_path / split / f"{number}.png", number)
    (tmp_path / "train.csv").write_text("path,labels\ntrain/0.png,ant\ntrain/1.png,bee\ntrain/2.png,bee")
    (tmp_path / "val.csv").write_text("path,labels\nval/0.png,ant\nval/1.png,\nval/2.png,bee")
    findings = examine(tmp_path)
    assert not [text for level, _, text in faults(findings) if level == "error"]
    assert "--task multilabel" in findings[-1].text


def test_unreadable_files_are_named(folder: Path) -> None:
    (folder / "train" / "ant" / "0.png").write_bytes(b"")
    (folder / "val" / "bee" / "0.png").write_bytes(b"text")
    train, val = faults(examine(folder))
    assert train[:2] == ("error", "train") and "ant/0.png" in train[2]
    assert val[:2] == ("error", "validation") and "bee/0.png" in val[2]


def test_many_faults_and_a_disk_that_fails(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        (folder / "train" / "ant" / f"bad{number}.png").write_bytes(b"text")
    found = faults(examine(folder))
    assert len(found) == 21 and "10 more" in found[-1][2]
    monkeypatch.setattr("davit.data.PictureDataset.read", Mock(side_effect=OSError(5, "Input/output error")))
    val = [text for _, subject, text in faults(examine(folder)) if subject == "validation"]
    assert len(val) == 2 and all("Input/output error" in text for text in val)


def test_a_sample_is_spread_evenly(folder: Path) -> None:
    for name in ("ant/1.png", "bee/1.png"):  # the second and the last of four
        (folder / "train" / name).write_bytes(b"text")
    findings = examine(folder, limit=2)
    assert faults(findings) == [] and any("2 of 4 files" in finding.text for finding in findings)


def test_files_of_other_kinds_and_one_class(folder: Path) -> None:
    """What a run leaves out is counted by suffix; one class alone teaches nothing."""
    for number in range(3):
        (folder / "train" / "ant" / f"IMG_{number}.xyz").write_bytes(bytes(100))
    (folder / "train" / "ant" / "notes").write_text("no image")
    (folder / "train" / "ant" / "IMG_9").write_bytes((folder / "train" / "ant" / "0.png").read_bytes())
    ((level, subject, text),) = faults(examine(folder))
    assert (level, subject) == ("warning", "train") and all(
        word in text for word in ("4 ", "3 .xyz", "1 without suffix")
    )
    assert any("5 images" in finding.text for finding in examine(folder))
    for split in ("train", "val"):
        shutil.rmtree(folder / split / "bee")
    assert ("error", "classes") in [one[:2] for one in faults(examine(folder))]


def test_tables_and_shards(folder: Path, tmp_path: Path) -> None:
    """A csv beside the folders of images, and shards, one of them cut off."""
    for split in ("train", "val"):
        files = sorted((folder / split).rglob("*.png"))
        rows = "".join(f"{file},{file.parent.name}\n" for file in files)
        (tmp_path / "tables").mkdir(exist_ok=True)
        (tmp_path / "tables" / f"{split}.csv").write_text(f"path,label\n{rows}")
        (tmp_path / "shards").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "shards" / f"{split}.tar", "w") as shard:
            for file in files:
                shard.add(file, f"{file.parent.name}/{file.name}")
    for root in (tmp_path / "tables", tmp_path / "shards"):
        findings = examine(root)
        assert faults(findings) == [] and "4 images in 2 classes" in findings[1].text
        assert f"train.py {root}" in findings[-1].text
    shard = tmp_path / "shards" / "train.tar"
    shard.write_bytes(shard.read_bytes()[:1900])
    assert ("error", "train") in [one[:2] for one in faults(examine(tmp_path / "shards"))]


def test_bits_and_bands(folder: Path, tmp_path: Path) -> None:
    """12 bits stored as 16 are named with the flag; images of 6 bands are read, with their mean and std."""
    draws = np.random.default_rng(0)
    for file in sorted(folder.rglob("*.png")):
        Image.fromarray(draws.integers(0, 4096, (9, 11), dtype=np.uint16)).save(file)
    for (level, _, text), split in zip(faults(examine(folder)), ("train", "validation"), strict=True):
        assert level == "warning" and "16 bits" in text, split
    assert [finding.remedy for finding in examine(folder) if "--bit-depth 12" in finding.remedy]
    assert "--bit-depth 12" in examine(folder)[-1].text
    for file in sorted(folder.rglob("*.png")):
        np.save(file.with_suffix(".npy"), np.full((9, 11, 6), 51 * np.arange(6), dtype=np.uint8))
        file.unlink()
    findings = examine(folder)
    assert faults(findings) == []
    told = next(finding.text for finding in findings if "--in-chans" in finding.text)
    flags = "--in-chans 6 --mean 0 0.2 0.4 0.6 0.8 1 --std 1 1 1 1 1 1"  # constant bands
    assert told.endswith(flags)
    assert f"-c finetune --pretrained {flags} --batch-size" in findings[-1].text
    np.save(folder / "val" / "bee" / "1.npy", np.zeros((9, 11, 7), dtype=np.uint8))
    assert any(level == "error" and "6 and 7" in text for level, _, text in faults(examine(folder)))


# --- detection ---


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    root = tmp_path / "coco"
    for number in (1, 2):
        picture(root / "train2017" / f"{number}.jpg")
    contents = {
        "images": [{"id": number, "file_name": f"{number}.jpg", "width": 11, "height": 9} for number in (1, 2)],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}],
        "categories": [{"id": 7, "name": "bee"}],
    }
    write(root / "annotations" / "instances_train2017.json", contents)
    return root


def write(file: Path, contents: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(contents))


def test_coco(coco: Path) -> None:
    findings = examine(coco)
    assert faults(findings) == []
    assert [word for word in findings[1].text.split() if word.isdigit()] == ["2", "1", "1"]
    file = coco / "annotations" / "instances_train2017.json"
    contents = json.loads(file.read_text())
    contents["annotations"].append({**contents["annotations"][0], "id": 2, "image_id": 99})
    write(file, contents)
    write(coco / "annotations" / "instances_val2017.json", {"images": [], "categories": []})
    found = faults(examine(coco))
    assert [(level, subject) for level, subject, _ in found] == [("error", "train"), ("error", "val")]
    assert "99" in found[0][2] and "'annotations'" in found[1][2]
    write(file, {**contents, "annotations": contents["annotations"][:1]})
    (coco / "train2017" / "2.jpg").unlink()
    assert any(subject == "train" and "2.jpg" in text for _, subject, text in faults(examine(coco)))


def test_roboflow(coco: Path) -> None:
    """Its unused parent is no class; its folder and the README's own layout are known for what they are."""
    contents = json.loads((coco / "annotations" / "instances_train2017.json").read_text())
    contents["categories"] = [
        {"id": 0, "name": "insects", "supercategory": "none"},
        *({"id": number, "name": name, "supercategory": "insects"} for number, name in ((7, "bee"), (8, "ant"))),
    ]
    contents["annotations"] += [{**contents["annotations"][0], "id": 2, "category_id": 8}]
    for folder in ("train", "valid", "test"):
        for number in (1, 2):
            picture(coco / "export" / folder / f"{number}.jpg")
        write(coco / "export" / folder / "_annotations.coco.json", contents)
        write(coco / "mydata" / f"{folder}.json", contents)
    shutil.copytree(coco / "train2017", coco / "mydata" / "images")
    for root in (coco / "export", coco / "mydata"):
        findings = examine(root)
        assert [level for level, _, _ in faults(findings)] == ["warning"]  # that of the parent
        assert ("classes", "2: bee, ant") in [(finding.subject, finding.text) for finding in findings]
        assert [finding.subject for finding in findings].count("train") == 3
        assert findings[-1].text.endswith(f"davit_retinanet_1x_coco.py --data-root {root}")


def test_yolo(tmp_path: Path) -> None:
    for split in ("train", "val"):
        picture(tmp_path / "images" / split / "1.png")
        (tmp_path / "labels" / split).mkdir(parents=True)
        (tmp_path / "labels" / split / "1.txt").write_text("0 0.1 0.1 0.9 0.1 0.9 0.9\n")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [ant]\n")
    findings = examine(tmp_path)
    assert faults(findings) == [] and "davit_maskrcnn_1x_coco.py" in findings[-1].text
    assert examine(tmp_path / "data.yaml")[1:-1] == findings[1:-1]
    (tmp_path / "labels" / "val" / "1.txt").write_text("0 0.5 0.5 0.1 0.1\n1 0.5 0.5 0.1 0.1\n")
    ((level, subject, text),) = faults(examine(tmp_path))
    assert (level, subject) == ("error", "val") and f"{tmp_path / 'labels' / 'val' / '1.txt'}:2" in text
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: []\n")
    ((level, subject, text),) = faults(examine(tmp_path))
    assert (level, subject) == ("error", "layout") and "names" in text


def test_pictures_that_no_annotation_names(coco: Path) -> None:
    picture(coco / "train2017" / "3.jpg")
    (coco / "train2017" / "4.psd").write_text("")
    unnamed, other = faults(examine(coco))
    assert unnamed[:2] == other[:2] == ("warning", "images") and "3.jpg" in unnamed[2] and "1 .psd" in other[2]


# --- segmentation ---


def masks(root: Path, *places: tuple[str, str], values: tuple[int, ...] = (0, 1)) -> Path:
    """Write images, and masks of these values in stripes."""
    for place, mask in places:
        picture(root / place)
        (root / mask).parent.mkdir(parents=True, exist_ok=True)
        stripes = np.resize(np.array(values, dtype=np.uint8), (9, 11))
        Image.fromarray(stripes).save(root / mask)
    return root


def test_folders_of_masks(tmp_path: Path) -> None:
    places = [
        (f"images/{split}/{name}", f"masks/{split}/1.png") for split, name in (("train", "1.JPG"), ("val", "1.png"))
    ]
    findings = examine(masks(tmp_path, *places))
    assert faults(findings) == []
    assert "upernet_davit_folders.py" in findings[-1].text
    picture(tmp_path / "images" / "train" / "2.jpg")
    ((level, subject, text),) = faults(examine(tmp_path))
    assert (level, subject) == ("error", "train") and "1 of 2" in text and "2.jpg" in text
    (tmp_path / "images" / "train" / "2.jpg").unlink()
    shutil.rmtree(tmp_path / "masks" / "val")
    (tmp_path / "masks" / "val").write_text("")
    assert [*find_layout(tmp_path).splits] == ["train"]


@pytest.mark.parametrize(("values", "named"), [((0, 255), "255"), ((0,), "0"), ((1, 3), "2")])
def test_masks_that_teach_nothing(tmp_path: Path, values: tuple[int, ...], named: str) -> None:
    """Masks of 0 and 255, of one label, without some of the labels."""
    found = faults(examine(masks(tmp_path, ("img/1.png", "mask/1.png"), values=values)))
    assert found and all(subject == "train" for _, subject, _ in found) and named in found[0][2]
    assert ("error" in {level for level, _, _ in found}) == (values != (1, 3))


def test_a_list_of_classes_beside_the_masks(tmp_path: Path) -> None:
    """Its names are used, and its colours where the masks are coloured."""
    places = [(f"images/{split}/1.png", f"masks/{split}/1.png") for split in ("train", "val")]
    (masks(tmp_path, *places) / "classes.txt").write_text("ground\ncrack\nrust\n")
    found = faults(examine(tmp_path))
    assert [one[:2] for one in found] == [("warning", "train"), ("warning", "val")] and "rust" in found[0][2]
    assert "--classes" not in examine(tmp_path)[-1].text
    (tmp_path / "classes.txt").unlink()
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nground,0,0,0\ncrack,255,0,0\n")
    for _, mask in places:
        Image.fromarray(np.asarray(Image.open(tmp_path / mask))[..., None] * np.uint8([255, 0, 0])).save(
            tmp_path / mask
        )
    assert faults(examine(tmp_path)) == []
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nground,0,0\n")
    assert faults(examine(tmp_path))[0][:2] == ("error", "classes")


def test_suffixes_of_pictures_and_masks(tmp_path: Path) -> None:
    """Each image has its mask, whatever its suffix."""
    names = [("a.jpg", "a.png"), ("b.JPG", "b.png"), ("c.jpeg", "c.png"), ("d.png", "d.png")]
    findings = examine(masks(tmp_path, *((f"img/{one}", f"mask/{mask}") for one, mask in names)))
    assert faults(findings) == [] and any("4 images" in finding.text for finding in findings)


def test_ade(tmp_path: Path) -> None:
    files = [(split, number) for split in ("training", "validation") for number in (1, 2)]
    places = [(f"images/{split}/{number}.jpg", f"annotations/{split}/{number}.png") for split, number in files]
    masks(tmp_path, *places)
    ((level, subject, _), *rest) = faults(examine(tmp_path))
    assert (level, subject, len(rest)) == ("error", "train", 1)  # one label alone: 0 is none there
    masks(tmp_path, *places, values=(0, 1, 150))
    findings = examine(tmp_path)
    assert faults(findings) == [] and "ade20k.py" in findings[-1].text
    (tmp_path / "annotations" / "training" / "2.png").unlink()
    (tmp_path / "annotations" / "validation" / "1.png").write_bytes(b"text")
    unpaired, broken = faults(examine(tmp_path))
    assert unpaired[1] == "train" and "2.jpg" in unpaired[2]
    assert broken[1] == "val" and "1.png" in broken[2]
    shutil.rmtree(tmp_path / "annotations" / "training")
    assert faults(examine(tmp_path))[0][:2] == ("error", "train")


# --- layouts ---


def test_a_folder_of_nothing_known(tmp_path: Path) -> None:
    (tmp_path / "thesis.docx").write_text("")
    ((level, subject, text),) = faults(examine(tmp_path))
    assert (level, subject) == ("error", "layout") and ".docx" in text
    Image.fromarray(np.linspace(0, 4095, 4096).reshape(64, 64).astype(np.uint16)).save(tmp_path / "x12.png")
    _, (level, subject, text) = faults(examine(tmp_path))  # its images are looked at all the same
    assert (level, subject) == ("warning", "images") and "4,095" in text
    (tmp_path / "ant").mkdir()
    (tmp_path / "x12.png").rename(tmp_path / "ant" / "x12.png")  # classes without splits
    findings = examine(tmp_path)
    assert [subject for _, subject, _ in faults(findings)] == ["split", "images", "images"]  # .docx, and the values
    assert f"davit data split {tmp_path} {tmp_path}-split" in findings[-1].text
    assert f"train.py {tmp_path}-split " in findings[-1].text and "--bit-depth 12" in findings[-1].text


def test_two_layouts_in_one_folder(coco: Path) -> None:
    masks(coco, ("train2017/1.jpg", "masks/train2017/1.png"))
    findings = examine(coco)
    assert [finding.subject for finding in findings].count("layout") == 2
    assert "upernet_davit_folders.py" in findings[1].text and "retinanet" in findings[-1].text


# --- configs ---


@pytest.mark.parametrize(
    "recipe, subject, value",
    [
        ("modle: DaViT_tiny", "recipe", "modle"),
        ("model: DaViT_tony", "model", "DaViT_tiny"),
        ("model_kwargs: {no_such: 1}", "model", "no_such"),
    ],
)
def test_a_wrong_recipe(tmp_path: Path, recipe: str, subject: str, value: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe)
    found = faults(list(examine_config(file, None)))
    assert any((level, about) == ("error", subject) and value in text for level, about, text in found)


def test_a_recipe_with_its_data(tmp_path: Path, folder: Path, repository: Path) -> None:
    assert faults(list(examine_config(repository / "configs" / "davit_tiny_224.yaml", None))) == []
    file = tmp_path / "recipe.yaml"
    file.write_text(f"model: DaViT_nano\ndata_dir: {folder}\nnum_classes: 3\n")
    ((level, subject, text),) = faults(list(examine_config(file, None)))
    assert (level, subject) == ("error", "classes") and "3" in text and "has 2" in text
    shutil.rmtree(folder / "train")
    assert [subject for _, subject, _ in faults(list(examine_config(file, None)))] == ["train"]


def test_a_config_of_openmmlab(coco: Path, tmp_path: Path) -> None:
    """Its data sets are checked as the tools check them; one that two splits share, once."""
    pytest.importorskip("davit.openmmlab.datasets", reason="needs OpenMMLab's packages: mmdet/README.md")
    dataset = {"type": "CocoDataset", "metainfo": {"classes": ("bee",)}, "data_prefix": {"img": "train2017/"}}
    dataset["ann_file"] = "annotations/instances_train2017.json"
    good, bad = ({"dataset": {**dataset, "data_root": str(root)}} for root in (coco, tmp_path / "nowhere"))
    (tmp_path / "detector.py").write_text(
        f"default_scope = 'mmdet'\nmodel = dict(type='RetinaNet', bbox_head=dict(num_classes=1))\n"
        f"train_dataloader = {bad}\nval_dataloader = {good}\ntest_dataloader = {good}\n"
    )
    config, train, val = examine_config(tmp_path / "detector.py", None)
    assert [finding.level for finding in (config, train, val)] == ["ok", "error", "ok"]
    assert (train.subject, val.subject) == ("train", "val")
    assert str(tmp_path / "nowhere") in train.text


def test_a_config_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one.py").write_text("model = dict(")
    ((level, subject, text),) = faults(list(examine_config(tmp_path / "one.py", None)))
    assert (level, subject) == ("error", "config") and "SyntaxError" in text
    monkeypatch.setitem(sys.modules, "mmengine.registry", None)
    ((level, subject, text),) = faults(list(examine_config(tmp_path / "one.py", None)))
    assert (level, subject) == ("warning", "config") and "mmengine" in text


# --- the command ---


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the machine, which is looked at in test_machine.py."""
    monkeypatch.setattr("davit.doctor.__main__.examine_machine", lambda _: iter([Finding("ok", "machine", "good")]))
    assert main([str(folder)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["ok", "machine", "good"] and out[-1].split()[0] == "8"
    (folder / "train" / "ant" / "0.png").write_bytes(b"")
    assert main([str(folder), "--all"]) == 1
    out = capsys.readouterr().out.splitlines()
    (place,) = (number for number, line in enumerate(out) if line.startswith("error"))
    assert "0.png" in out[place] and out[place + 1].strip().startswith("->")
    assert main([str(folder), "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert {"level", "subject", "text", "remedy"} == set(findings[0])
    assert [one["subject"] for one in findings if one["level"] == "error"] == ["train"]
    (folder / "data.yaml").write_text("train: train/ant\nnames: [ant]\n")  # of YOLO, and no recipe
    main([str(folder / "data.yaml"), "--json"])
    assert "YOLO" in next(one["text"] for one in json.loads(capsys.readouterr().out) if one["subject"] == "layout")
    (folder / "data.yaml").write_text("train: train/ant\nnames: []\n")
    main([str(folder / "data.yaml"), "--json"])
    assert "names" in next(one["text"] for one in json.loads(capsys.readouterr().out) if one["subject"] == "layout")
    with pytest.raises(SystemExit) as leave:
        main(["--sample", "0"])
    assert leave.value.code == 2
