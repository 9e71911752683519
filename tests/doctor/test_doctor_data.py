"""Findings about data folders and configs, good ones and ones with each fault."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from davit.doctor import Finding
from davit.doctor.__main__ import main
from davit.doctor.configs import examine_config
from davit.doctor.folders import _spread, examine_folder


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


def faults(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.level, finding.text) for finding in findings if finding.level != "ok"]


def test_a_good_folder(folder: Path) -> None:
    findings = examine(folder)
    assert faults(findings) == []
    texts = [finding.text for finding in findings]
    assert "4 pictures in 2 classes, 2 to 2 a class" in texts
    assert "the same 2 in train and val" in texts
    assert "all 4 files were opened and can be read" in texts


def test_a_missing_folder(tmp_path: Path) -> None:
    ((level, text),) = faults(examine(tmp_path / "nowhere"))
    assert level == "error" and "nowhere does not exist" in text


def test_missing_splits(folder: Path) -> None:
    shutil.rmtree(folder / "val")
    ((level, text),) = faults(examine(folder))
    assert level == "error" and "no split 'validation'" in text


def test_other_classes_in_val(folder: Path) -> None:
    (folder / "val" / "bee").rename(folder / "val" / "wasp")
    ((level, text),) = faults(examine(folder))
    assert level == "error" and "bee" in text and "wasp" in text


def test_an_empty_class(folder: Path) -> None:
    (folder / "train" / "cat").mkdir()
    assert any("empty class folder" in text and "cat" in text for _, text in faults(examine(folder)))


def test_strays_and_imbalance(folder: Path) -> None:
    picture(folder / "train" / "stray.png")
    for number in range(50):
        picture(folder / "train" / "ant" / f"more{number}.png")
    found = faults(examine(folder))
    assert [level for level, _ in found] == ["warning", "warning"]
    assert "1 pictures outside any class folder" in found[0][1]
    assert "2 to 52 a class (bee has least, ant most)" in found[1][1]


def test_unreadable_files_are_named(folder: Path) -> None:
    (folder / "train" / "ant" / "0.png").write_bytes(b"")
    (folder / "val" / "bee" / "0.png").write_bytes(b"text")
    found = faults(examine(folder))
    assert [level for level, _ in found] == ["error", "error"]
    assert "ant/0.png: empty file" in found[0][1]
    assert "bee/0.png: not a picture" in found[1][1]


def test_many_unreadable_files_are_counted(folder: Path) -> None:
    for number in range(30):
        (folder / "train" / "ant" / f"bad{number}.png").write_bytes(b"text")
    found = faults(examine(folder))
    assert len(found) == 21 and "and 10 more" in found[-1][1]


def test_a_sample_is_said_to_be_one(folder: Path) -> None:
    texts = [finding.text for finding in examine(folder, limit=3)]
    assert "3 of 4 files were opened and can be read" in texts


def test_a_sample_is_spread_evenly() -> None:
    files = [str(number) for number in range(100)]
    assert _spread(files, 4) == ["0", "25", "50", "75"]
    assert _spread(files, None) is files and _spread(files, 100) is files


# --- COCO and ADE20K ---


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    root = tmp_path / "coco"
    for number in (1, 2):
        picture(root / "train2017" / f"{number}.jpg")
    contents = {
        "images": [{"id": number, "file_name": f"{number}.jpg"} for number in (1, 2)],
        "annotations": [{"image_id": 1, "category_id": 7}],
        "categories": [{"id": 7, "name": "bee"}],
    }
    (root / "annotations").mkdir()
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(contents))
    return root


def test_coco(coco: Path) -> None:
    findings = examine(coco)
    assert faults(findings) == []
    assert findings[0].text == "2 pictures, 1 objects, 1 categories"


def test_faults_of_coco(coco: Path) -> None:
    file = coco / "annotations" / "instances_train2017.json"
    contents = json.loads(file.read_text())
    contents["annotations"].append({"image_id": 99, "category_id": 7})
    file.write_text(json.dumps(contents))
    (coco / "train2017" / "2.jpg").unlink()
    (coco / "annotations" / "instances_val2017.json").write_text('{"images": []}')
    texts = [text for _, text in faults(examine(coco))]
    assert len(texts) == 3
    assert "1 objects of pictures or classes" in texts[0]
    assert "1 of 2 pictures are not in" in texts[1] and "2.jpg" in texts[1]
    assert "is no COCO annotation" in texts[2]


def test_ade(tmp_path: Path) -> None:
    root = tmp_path / "ade"
    for split in ("training", "validation"):
        for number in (1, 2):
            picture(root / "images" / split / f"{number}.jpg")
            picture(root / "annotations" / split / f"{number}.png")
    assert faults(examine(root)) == []
    (root / "annotations" / "training" / "2.png").unlink()
    (root / "annotations" / "validation" / "1.png").write_bytes(b"text")
    texts = [text for _, text in faults(examine(root))]
    assert "of 2 pictures and 1 masks 1 stand alone (2)" in texts[0]
    assert "1.png: not a picture" in texts[1]
    shutil.rmtree(root / "images" / "training")
    assert any("no pictures (.jpg)" in text for _, text in faults(examine(root)))


# --- configs ---


@pytest.mark.parametrize("name", ["digits.yaml", "davit_tiny_224.yaml"])
def test_our_recipes(repository: Path, name: str) -> None:
    assert faults(list(examine_config(repository / "configs" / name, None))) == []


@pytest.mark.parametrize(
    "recipe, text",
    [
        ("modle: DaViT_tiny", "did you mean 'model'"),
        ("model: DaViT_tony", "DaViT_tiny"),
        ("model_kwargs: {no_such: 1}", "no_such"),
    ],
)
def test_a_wrong_recipe(tmp_path: Path, recipe: str, text: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe)
    found = faults(list(examine_config(file, None)))
    assert any(level == "error" and text in said for level, said in found)


def test_a_recipe_with_its_data(tmp_path: Path, folder: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"model: DaViT_nano\ndata_dir: {folder}\nnum_classes: 3\n")
    ((level, text),) = faults(list(examine_config(file, None)))
    assert level == "error" and "num_classes is 3" in text and "has 2" in text


class _Config(dict[str, Any]):
    """Enough of mmengine's."""


def test_a_config_of_openmmlab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its data sets are checked as the tools check them; one that two splits share, once."""
    shared_by_two = {"type": "CocoDataset", "data_root": "good"}
    config = _Config(
        default_scope="mmdet",
        model={"type": "RetinaNet"},
        train_dataloader=[{"type": "CocoDataset", "data_root": "bad"}],
        val_dataloader=[shared_by_two],
        test_dataloader=[dict(shared_by_two)],
    )
    scopes, checked = [], []

    def check_dataset(dataset: dict[str, str], split: str, model: dict[str, str]) -> None:
        checked.append((dataset["data_root"], split, model["type"]))
        if dataset["data_root"] == "bad":
            raise ValueError("annotations are missing")

    modules = {
        "davit.openmmlab.config": SimpleNamespace(read_config=lambda _: config, datasets_of=iter),
        "davit.openmmlab.datasets": SimpleNamespace(check_dataset=check_dataset),
        "mmengine.registry": SimpleNamespace(init_default_scope=scopes.append),
    }
    monkeypatch.setattr("importlib.import_module", modules.__getitem__)
    findings = list(examine_config(tmp_path / "one.py", None))
    assert [(finding.level, finding.subject) for finding in findings] == [
        *(("ok", "config"), ("error", "train"), ("ok", "val")),
    ]
    assert findings[1].text == "annotations are missing"
    assert checked == [("bad", "train", "RetinaNet"), ("good", "val", "RetinaNet")]
    assert scopes == ["mmdet"]


def test_a_config_of_ours_names_what_is_missing(repository: Path) -> None:
    pytest.importorskip("davit.openmmlab.datasets", reason="needs OpenMMLab's packages: mmdet/README.md")
    file = repository / "mmdet" / "configs" / "davit_retinanet_1x_coco.py"
    if (repository / "mmdet" / "data" / "coco").exists():
        pytest.skip("COCO is there")
    findings = list(examine_config(file, None))
    assert [finding.level for finding in findings] == ["ok", "error", "error"]
    assert "instances_train2017.json" in findings[1].text and "instances_val2017.json" in findings[2].text


@pytest.mark.parametrize(
    "fault, level, text",
    [(ImportError("no mmengine"), "warning", "no mmengine"), (SyntaxError("bad"), "error", "SyntaxError: bad")],
)
def test_a_config_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception, level: str, text: str
) -> None:
    def fail(_: str) -> None:
        raise fault

    monkeypatch.setattr("importlib.import_module", fail)
    ((found, said),) = faults(list(examine_config(tmp_path / "one.py", None)))
    assert found == level and text in said


# --- the command ---


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is looked at in test_machine.py."""
    monkeypatch.setattr("davit.doctor.__main__.examine_machine", lambda _: iter([Finding("ok", "machine", "good")]))


@pytest.mark.usefixtures("quick")
def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(folder)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["ok", "machine", "good"] and out[-1] == "6 ok, 0 warnings, 0 errors"
    (folder / "train" / "ant" / "0.png").write_bytes(b"")
    assert main([str(folder), "--all"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert any(line.startswith("error   train") and "0.png" in line for line in out)
    assert any(line.strip().startswith("-> repair or remove it") for line in out)


@pytest.mark.usefixtures("quick")
def test_the_command_in_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(folder / "val")
    assert main([str(folder), "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert {"level", "subject", "text", "remedy"} == set(findings[0])
    assert [one["subject"] for one in findings if one["level"] == "error"] == ["validation"]


def test_a_wrong_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        main(["--sample", "0"])
    assert leave.value.code == 2
