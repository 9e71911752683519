"""Segmentors trained from nothing on two CPU cores: CamVid, and the scenes of `make demo-seg`."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from davit.data import write_scenes
from tests.openmmlab.conftest import SEG, SEG_TOOLS


def train(config: str, data: Path, folder: Path) -> float:
    """The last mIoU that a run of the tool wrote."""
    tool = [sys.executable, str(SEG_TOOLS / "train.py"), str(SEG / config)]
    subprocess.run([*tool, "--data-root", str(data), "--work-dir", str(folder), "--seed", "0"], check=True)
    (file,) = folder.glob("*/vis_data/scalars.json")
    found = [json.loads(line) for line in file.read_text().splitlines()]
    return [line["mIoU"] for line in found if "mIoU" in line][-1]


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_camvid_from_scratch(shared: Path, tmp_path: Path) -> None:
    """0.30 on the 26 validation pictures; a picture of nothing but road would give 0.03."""
    data = shared / "data" / "camvid" / "CamVid"
    assert train("upernet_davit_nano_camvid.py", data, tmp_path) >= 30


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_digit_scenes_from_scratch(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "scenes")
    assert train("upernet_davit_nano_digits.py", data, tmp_path / "run") >= 55
