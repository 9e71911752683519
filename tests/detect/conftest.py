"""Provide digit scenes in small numbers, and detectors that train in seconds."""

import contextlib
import io
import json
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import pytest

from davit.cli import main
from davit.data import scenes as all_scenes
from davit.data import write_scenes
from davit.engine import run_log

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("pycocotools", reason="pycocotools is not installed")

Run = Callable[..., subprocess.CompletedProcess[str]]

FEWER = mock.patch.dict(all_scenes.COUNTS, train=10, val=6)

#: A head of 0.2 M parameters.
NARROW = {
    "num_queries": 20,
    "decoder_layers": 2,
    "encoder_hidden_dim": 32,
    "d_model": 32,
    "decoder_in_channels": "[32,32,32]",
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_denoising": 10,
    "hidden_expansion": 0.5,
}
TINY_BACKBONE = ["embed_dims=[8,16,24,32]", "depths=[1,1,1,1]", "num_heads=[1,2,2,2]", "window_size=4"]
TINY = [
    *("--model", "DaViT_nano", "--model-kwargs", *TINY_BACKBONE),
    *("--head-kwargs", *(f"{name}={value}" for name, value in NARROW.items())),
    *("--img-size", "64", "--batch-size", "2", "--workers", "0", "--output", "runs", "--experiment", "a"),
]


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first scenes, in COCO's form."""
    with FEWER:
        return write_scenes(tmp_path_factory.mktemp("scenes") / "coco")


def part_of(scenes: Path, out: Path, train: int, val: int, of_val: str = "val2017") -> Path:
    """The first scenes of each split, in a folder of their own."""
    for split, count, origin in (("train2017", train, "train2017"), ("val2017", val, of_val)):
        contents = json.loads((scenes / f"annotations/instances_{origin}.json").read_text())
        contents["images"] = contents["images"][:count]
        kept = {image["id"] for image in contents["images"]}
        contents["annotations"] = [one for one in contents["annotations"] if one["image_id"] in kept]
        (out / split).mkdir(parents=True)
        for image in contents["images"]:
            shutil.copy(scenes / origin / image["file_name"], out / split)
        (out / "annotations").mkdir(exist_ok=True)
        (out / f"annotations/instances_{split}.json").write_text(json.dumps(contents))
    return out


@pytest.fixture(scope="session")
def few(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scenes to train on, five to evaluate on."""
    return part_of(scenes, tmp_path_factory.mktemp("few"), 6, 5)


@pytest.fixture(scope="session")
def eight(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight scenes, which are those of the validation too."""
    return part_of(scenes, tmp_path_factory.mktemp("eight"), 8, 8, "train2017")


def davit(words: Sequence[object], cwd: Path, status: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Run `davit` within this process, in a folder; curves are not drawn."""
    out, err = io.StringIO(), io.StringIO()
    handlers, before = logging.root.handlers[:], Path.cwd()
    os.chdir(cwd)
    try:
        drawing = mock.patch.object(run_log, "draw_curves")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), drawing:
            ended = main([str(word) for word in words])
    except SystemExit as leave:  # argparse
        ended = int(leave.code or 0)
    finally:
        os.chdir(before)
        logging.root.handlers[:] = handlers
    assert status is None or ended == status, err.getvalue()
    return subprocess.CompletedProcess([], ended, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session", params=["dfine", "rtdetrv2"])
def trained(request: pytest.FixtureRequest, few: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run of each head."""
    cwd = tmp_path_factory.mktemp(request.param)
    davit(["det", "train", few, "--head", request.param, *TINY, "--epochs", 2, "--model-ema"], cwd)
    return cwd / "runs/a"
