"""Check findings about data folders and configs: good ones, and ones with each fault."""

import json
import shutil
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

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
    """Two classes: 4 pictures of training and 2 of validation."""
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
    assert [finding.subject for finding in findings] == ["train", "validation", "classes", "train", "validation"]
    assert "4 pictures in 2 classes" in findings[0].text and "all 4 files" in findings[3].text


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
    assert "1 pictures" in outside[2] and "2 to 52" in unequal[2]
    assert caplog.records == []  # it is a finding instead


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
    monkeypatch.setattr("davit.doctor.folders.load_rgb", Mock(side_effect=OSError(5, "Input/output error")))
    val = [text for _, subject, text in faults(examine(folder)) if subject == "validation"]
    assert len(val) == 2 and all("Input/output error" in text for text in val)


def test_a_sample_is_spread_evenly(folder: Path) -> None:
    for name in ("ant/1.png", "bee/1.png"):  # the second and the last of four
        (folder / "train" / name).write_bytes(b"text")
    findings = examine(folder, limit=2)
    assert faults(findings) == [] and any("2 of 4 files" in finding.text for finding in findings)


# --- COCO and ADE20K ---


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
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(contents))
    return root


def test_coco(coco: Path) -> None:
    findings = examine(coco)
    assert faults(findings) == []
    assert [word for word in findings[0].text.split() if word.isdigit()] == ["2", "1", "1"]
    file = coco / "annotations" / "instances_train2017.json"
    contents = json.loads(file.read_text())
    contents["annotations"].append({**contents["annotations"][0], "id": 99, "image_id": 99})
    file.write_text(json.dumps(contents))
    (coco / "train2017" / "2.jpg").unlink()
    (coco / "annotations" / "instances_val2017.json").write_text('{"images": []}')
    found = faults(examine(coco))
    assert [subject for _, subject, _ in found] == ["train2017", "train2017", "val2017"]
    assert (
        "image_id 99" in found[0][2] and all("1 of 2" in text for _, _, text in found[:2]) and "2.jpg" in found[1][2]
    )
    assert "'annotations'" in found[2][2]


def test_ade(tmp_path: Path) -> None:
    root = tmp_path / "ade"
    for split in ("training", "validation"):
        for number in (1, 2):
            picture(root / "images" / split / f"{number}.jpg")
            picture(root / "annotations" / split / f"{number}.png")
    assert faults(examine(root)) == []
    (root / "annotations" / "training" / "2.png").unlink()
    (root / "annotations" / "validation" / "1.png").write_bytes(b"text")
    unpaired, broken = faults(examine(root))
    assert unpaired[1] == "training" and "(2)" in unpaired[2]
    assert broken[1] == "validation" and "1.png" in broken[2]
    shutil.rmtree(root / "images" / "training")
    assert faults(examine(root))[0][:2] == ("error", "training")


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
    assert out[0].split() == ["ok", "machine", "good"] and out[-1].split()[0] == "6"
    (folder / "train" / "ant" / "0.png").write_bytes(b"")
    assert main([str(folder), "--all"]) == 1
    out = capsys.readouterr().out.splitlines()
    (place,) = (number for number, line in enumerate(out) if line.startswith("error"))
    assert "0.png" in out[place] and out[place + 1].strip().startswith("->")
    assert main([str(folder), "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert {"level", "subject", "text", "remedy"} == set(findings[0])
    assert [one["subject"] for one in findings if one["level"] == "error"] == ["train"]
    with pytest.raises(SystemExit) as leave:
        main(["--sample", "0"])
    assert leave.value.code == 2
