"""Recipes and configs by name: what wins, what is offered, and how configs inherit from ours."""

import shutil
from pathlib import Path

import pytest

from davit import recipes
from davit.engine.flags import parse_with_config, train_parser

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDERS = {"recipe": "configs", "mmdet": "mmdet/configs", "mmseg": "mmseg/configs"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("kind", FOLDERS)
def test_every_file_is_found_by_all_its_names(kind: str) -> None:
    folder = FOLDERS[kind]
    files = [file for pattern in ("*.yaml", "*.py") for file in (REPOSITORY / folder).glob(pattern)]
    assert {file.stem for file in files} == set(recipes.names_of(kind)) and len(files) > 5
    for file in files:
        for name in (file.stem, file.name, f"configs/{file.name}", f"{folder}/{file.stem}", f"./{folder}/{file.name}"):
            assert recipes.find(name, kind).samefile(file)
        assert recipes.find(file, kind) == file


def test_a_path_that_exists_wins_and_a_folder_does_not(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    assert recipes.find("digits", "recipe").samefile(REPOSITORY / "configs/digits.yaml")
    (tmp_path / "configs").mkdir()
    mine = tmp_path / "configs" / "digits.yaml"
    mine.write_text("lr: 1.0e-4\n")
    assert recipes.find("configs/digits.yaml", "recipe").samefile(mine)
    (tmp_path / "davit_tiny_224").write_text("lr: 1.0e-4\n")
    assert recipes.find("davit_tiny_224", "recipe").samefile(tmp_path / "davit_tiny_224")


@pytest.mark.parametrize(
    ("asked", "kinds", "offered"),
    [
        ("davit_tny_224", ["recipe"], "davit_tiny_224"),
        ("davit_tny_224.yaml", ["recipe"], "davit_tiny_224"),
        ("davit_maskrcn_1x_coco.py", ["mmdet", "mmseg"], "davit_maskrcnn_1x_coco"),
        ("upernet_folders", ["mmdet", "mmseg"], "upernet_davit_folders"),
        ("quux", ["recipe"], "digits"),
        ("elsewhere/davit_tiny_224.yaml", ["recipe"], "davit_tiny_224"),
        ("/davit_tiny_224.yaml", ["recipe"], "davit_tiny_224"),
        ("../configs/davit_tiny_224.yaml", ["recipe"], "davit_tiny_224"),
        ("configs/../digits", ["recipe"], "digits"),
        ("davit_maskrcnn_1x_coco", ["recipe"], "davit"),
        ("", ["recipe"], "folder"),
    ],
)
def test_what_is_not_there_is_refused_with_names_that_are(asked: str, kinds: list[str], offered: str) -> None:
    with pytest.raises(ValueError, match=offered):
        recipes.find(asked, *kinds)


def test_a_data_folder_in_place_of_a_config_is_told_its_flag(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        recipes.find(tmp_path, "mmseg")
    assert f"--data-root {tmp_path}" in str(caught.value) and "upernet_davit_folders" in str(caught.value)
    with pytest.raises(ValueError) as caught:
        recipes.find(tmp_path, "recipe")
    assert "--data-root" not in str(caught.value) and "finetune" in str(caught.value)


def test_names_beside_a_mistyped_path_are_offered(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "first_try.yaml").touch()
    with pytest.raises(ValueError, match="first_try"):
        recipes.find("mine/frst_try.yaml", "recipe")
    with pytest.raises(ValueError, match="first_try"):
        recipes.find("mine/x.yaml", "recipe")


def test_in_a_wheel_they_are_below_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "davit"
    shutil.copytree(REPOSITORY / "configs", package / "configs")
    shutil.copytree(REPOSITORY / "mmdet/configs", package / "configs" / "mmdet")
    monkeypatch.setattr(recipes, "_PACKAGE", package)
    assert recipes.find("configs/davit_tiny_224.yaml", "recipe") == package / "configs/davit_tiny_224.yaml"
    assert recipes.find("mmdet/configs/davit_maskrcnn_1x_coco", "mmdet").parent == package / "configs/mmdet"


def test_the_commands_read_recipes_by_name() -> None:
    assert parse_with_config(train_parser(), ["DIR", "-c", "davit_small_224"]).drop_path == 0.2
    with pytest.raises(ValueError, match="davit_small_224"):
        parse_with_config(train_parser(), ["DIR", "-c", "davit_smal_224"])


def test_configs_of_ones_own_inherit_from_ours_by_name(tmp_path: Path) -> None:
    pytest.importorskip("mmdet")
    from davit.openmmlab.config import read_config

    mine = tmp_path / "mine.py"
    small = 'model = dict(backbone=dict(variant="DaViT_small"))'
    mine.write_text(f'_base_ = "davit::davit_maskrcnn_1x_coco.py"\n{small}\n')
    for name in ("davit_small_maskrcnn_1x_coco", "mmdet/configs/davit_small_maskrcnn_1x_coco.py"):
        assert read_config(name).to_dict() == read_config(mine).to_dict()
    parts = ["davit::_base_/upernet_davit", "davit::_base_/schedule_160k"]
    mine.write_text(f"_base_ = {parts}\n")
    assert read_config(mine).model.backbone.type == "DaViT"
    mine.write_text('_base_ = "davit::davit_maskrcn_1x_coco"\n')
    with pytest.raises(ValueError, match="davit_maskrcnn_1x_coco"):
        read_config(mine)
