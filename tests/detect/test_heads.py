"""A command is told at once whether a path is a detector of this room."""

import json
from pathlib import Path

import pytest

from davit.detect.heads import is_detector, saved_folder


def written(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("model_type", "is_ours"), [("d_fine", True), ("rt_detr_v2", True), ("davit", False), (None, False)]
)
def test_a_saved_folder(tmp_path: Path, model_type: str | None, is_ours: bool) -> None:
    folder = written(tmp_path / "saved", "config.json", json.dumps({"model_type": model_type}))
    assert is_detector(folder) == is_ours == (saved_folder(folder) is not None)


def test_a_run_and_its_checkpoints(tmp_path: Path) -> None:
    run = written(tmp_path / "run", "args.yaml", "head: dfine\n")
    (run / "last.pth.tar").touch()
    assert is_detector(run) and is_detector(run / "last.pth.tar")
    assert not is_detector(run / "args.yaml") and not is_detector(run / "gone.pth.tar")
    classifier = written(tmp_path / "classifier", "args.yaml", "model: DaViT_tiny\n")
    (classifier / "last.pth.tar").touch()
    assert not is_detector(classifier) and not is_detector(classifier / "last.pth.tar")


@pytest.mark.parametrize("text", ["[1, 2]", "{", "", "a: [", "\x00"])
def test_what_is_damaged_is_no_detector(tmp_path: Path, text: str) -> None:
    assert not is_detector(written(tmp_path / "a", "config.json", text))
    assert not is_detector(written(tmp_path / "b", "args.yaml", text))
    assert not is_detector("\x00") and not is_detector("x" * 5000)
