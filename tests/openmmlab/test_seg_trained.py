"""Segmentors trained from nothing on two CPU cores: CamVid, and the scenes of `make demo-seg`."""

import json
from pathlib import Path

import pytest

import davit.openmmlab  # noqa: F401  (before mmseg)
from davit.data import write_scenes
from davit.openmmlab.cli import train_main as run_train
from tests.openmmlab.segs import CONFIGS


def last_miou(folder: Path) -> float:
    (file,) = folder.glob("*/vis_data/scalars.json")
    found = [json.loads(line) for line in file.read_text().splitlines()]
    return [line["mIoU"] for line in found if "mIoU" in line][-1]


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_camvid_from_scratch(shared: Path, tmp_path: Path) -> None:
    """0.30 on the 26 validation pictures; a picture of nothing but road would give 0.03."""
    data = shared / "data" / "camvid" / "CamVid"
    words = [str(CONFIGS / "upernet_davit_nano_camvid.py"), "--data-root", str(data), "--work-dir", str(tmp_path)]
    assert run_train([*words, "--seed", "0"]) == 0
    assert last_miou(tmp_path) >= 30


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_digit_scenes_from_scratch(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "scenes")
    words = [
        str(CONFIGS / "upernet_davit_nano_digits.py"),
        "--data-root",
        str(data),
        "--work-dir",
        str(tmp_path / "run"),
    ]
    assert run_train([*words, "--seed", "0"]) == 0
    assert last_miou(tmp_path / "run") >= 55
