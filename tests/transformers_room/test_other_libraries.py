"""Run the programs of docs/other_libraries.md, with a small model and small images."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import davit
from tests.test_docs import FENCE, REPOSITORY

pytestmark = pytest.mark.long

SMALLER = {"DaViT_tiny": "DaViT_nano", "640": "160", "min_size=800": "min_size=96", "=512": "=128"}
DOCUMENT = (REPOSITORY / "docs" / "other_libraries.md").read_text(encoding="utf-8")
PROGRAMS = [text for language, text in FENCE.findall(DOCUMENT) if language == "python"]
MAKES_THE_DETECTOR = next(text for text in PROGRAMS if 'save_pretrained("detector")' in text)
CONFIG = "mmdet/configs/davit_nano_maskrcnn_digits.py"


def title(program: str) -> str:
    libraries = re.findall(r"^(?:import|from) (\w+)", program, re.MULTILINE)
    return "-".join(dict.fromkeys(name for name in libraries if name not in ("torch", "numpy", "PIL", "collections")))


def needs(program: str) -> None:
    """Skip where a library of the program is not installed."""
    for name in title(program).split("-"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    if "CHECKPOINT" in program and importlib.util.find_spec("mmdet") is None:
        pytest.skip("MMDetection is not installed")


def run(program: str) -> dict[str, Any]:
    for large, small in SMALLER.items():
        program = program.replace(large, small)
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(program, "docs/other_libraries.md", "exec"), names)
    return names


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write FILE and picture.jpg, which the programs name."""
    place = tmp_path_factory.mktemp("programs")
    torch.manual_seed(0)
    weights = davit.create_model("DaViT_nano", num_classes=3).state_dict()
    torch.save({"state_dict": weights, "class_names": ["cat", "dog", "eel"]}, place / "FILE")
    noise = np.random.default_rng(0).integers(0, 255, (150, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(place / "picture.jpg")
    return place


@pytest.fixture(scope="module")
def detector(folder: Path) -> Path:
    needs(MAKES_THE_DETECTOR)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(MAKES_THE_DETECTOR)
    return folder / "detector"


@pytest.fixture
def mmdetection(folder: Path) -> None:
    """Write CONFIG.py, and CHECKPOINT of a detector that learned nothing."""
    from davit.openmmlab.config import read_config  # isort: skip  # before mmdet
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    cfg = read_config(REPOSITORY / CONFIG)
    init_default_scope("mmdet")
    meta = {"dataset_meta": {"classes": tuple("0123456789"), "palette": [(i, i, i) for i in range(10)]}}
    torch.save({"state_dict": MODELS.build(cfg.model).state_dict(), "meta": meta}, folder / "CHECKPOINT")
    Config.fromfile(REPOSITORY / CONFIG).dump(folder / "CONFIG.py")


@pytest.mark.parametrize("program", PROGRAMS, ids=title)
def test_a_program_runs(
    program: str, folder: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    needs(program)
    if "CHECKPOINT" in program:
        request.getfixturevalue("mmdetection")
        program = program.replace("CONFIG", "CONFIG.py")
    if '"detector"' in program:
        request.getfixturevalue("detector")
    monkeypatch.chdir(folder)
    names = {} if program is MAKES_THE_DETECTOR else run(program)
    if "losses" in names:
        assert all(torch.isfinite(loss) for loss in names["losses"].values())
        assert all(parameter.grad is not None for parameter in names["model"].parameters())
    if "smp" in names:
        assert davit.kernels.why_plain(names["model"]) == {}
        assert torch.isfinite(names["loss"])
    if "sv" in names:
        assert isinstance(names["detections"], names["sv"].Detections)


def test_every_library_has_a_program() -> None:
    shown = {name for program in PROGRAMS for name in title(program).split("-")}
    assert shown >= {"transformers", "torchvision", "segmentation_models_pytorch", "sahi", "supervision"}
