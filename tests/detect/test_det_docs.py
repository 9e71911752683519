"""The commands of docs/detection.md, in their order, on a few scenes, made smaller by flags at the end."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from davit.data import scenes
from tests.detect.conftest import NARROW, TINY_BACKBONE
from tests.detect.conftest import davit as run_davit
from tests.test_docs import LINES
from tests.test_docs_run import reason

pytestmark = pytest.mark.long

COMMANDS = [line for line in LINES if "tests/detect/test_det_docs.py" in reason(line)]
HEAD = ["--head-kwargs", *(f"{name}={value}" for name, value in NARROW.items())]
SMALLER = [*HEAD, "--img-size", "64", "--epochs", "1", "--batch-size", "2", "--workers", "0"]


def run(document: str, pattern: str, cwd: Path, *more: str) -> None:
    """Run the commands of a document in which a pattern is found."""
    found = [line.text for line in COMMANDS if line.document == document and re.search(pattern, line.text)]
    assert found
    for text in found:
        run_davit([*shlex.split(text)[1:], *more], cwd)


def test_the_commands_of_the_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "COUNTS", {"train": 4, "val": 4})
    run("docs/detection.md", "data scenes", tmp_path)
    run("docs/detection.md", "det train", tmp_path, "--model-kwargs", *TINY_BACKBONE, *SMALLER)
    run("docs/detection.md", "(test|demo) .*digits", tmp_path)
    assert len([*(tmp_path / "output/drawn").glob("*.png")]) == 4
    (tmp_path / "output/train/RUN").symlink_to(tmp_path / "output/train/digits")
    data = shutil.copytree(tmp_path / "data/scenes", tmp_path / "DATASET_DIR")
    (data / "val2017").rename(data / "test2017")
    contents = json.loads((data / "annotations/instances_val2017.json").read_text())
    del contents["annotations"]
    (data / "annotations/instances_val2017.json").unlink()
    (data / "annotations/image_info_test2017.json").write_text(json.dumps(contents))
    run("docs/detection.md", "--split test", tmp_path)
    assert (tmp_path / "results.json").is_file()


@pytest.mark.usefixtures("published_tiny")
def test_the_command_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "COUNTS", {"train": 4, "val": 4})
    scenes.write_scenes(tmp_path / "MY_DATA")
    run("README.md", "--pretrained", tmp_path, *SMALLER)
