"""Put a classifier behind the page: a small one with random weights."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import davit
from davit import create_model
from davit.app import ClassifierReader
from tests.conftest import randomise

KWARGS = {"embed_dims": [8, 16], "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
CLASSES = ["ant", "bee", "cat"]


@pytest.fixture(scope="session", autouse=True)
def _temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Gradio remembers the folder that it was first given, and makes it again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("page")))
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = randomise(create_model("DaViT_nano", num_classes=3, **KWARGS), 0)
    file = tmp_path_factory.mktemp("checkpoint") / "model.pth.tar"
    args = {"model": "DaViT_nano", "img_size": 32, "model_kwargs": KWARGS}
    torch.save({"state_dict": model.state_dict(), "args": args, "class_names": CLASSES}, file)
    return file


@pytest.fixture(scope="session")
def reader(checkpoint: Path) -> ClassifierReader:
    return ClassifierReader(davit.load(checkpoint))


@pytest.fixture(scope="session")
def serving(checkpoint: Path, repository: Path) -> Callable[[Path], AbstractContextManager[tuple[Any, str]]]:
    """``with serving(folder) as (process, address)``: the command in a process of its own, temporary files there."""

    @contextmanager
    def serve(folder: Path) -> Iterator[tuple[Any, str]]:
        words = ["-m", "davit.app", "--checkpoint", str(checkpoint), "--port", "0", "--max-megabytes", "1"]
        env = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
        more: dict[str, Any] = {"cwd": folder, "env": env, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen([sys.executable, *words], preexec_fn=hear_hangups, **more) as process:
            said = ""
            while "the page is at" not in said:
                line = process.stderr.readline()
                assert line, f"the page did not start: {said}"
                said += line
            yield process, re.findall(r"the page is at (\S+)", said)[0]
            process.terminate()

    def hear_hangups() -> None:
        """Even where the tests run under nohup."""
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    return serve
