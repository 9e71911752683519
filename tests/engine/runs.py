"""train.py as a user runs it, on a model that trains in seconds."""

import contextlib
import csv
import hashlib
import io
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from davit import DaViT, create_model
from davit.engine import run_log
from davit.engine.train import main

Completed = subprocess.CompletedProcess[str]
Train = Callable[..., Completed]
"""The fixture `train`."""

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL = {"embed_dims": [8, 16], "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
SMALL_WORDS = [f"{name}={value}".replace(" ", "") for name, value in SMALL.items()]
SMALL_MODEL = ["--model", "DaViT_nano", "--img-size", "16", "--model-kwargs", *SMALL_WORDS]
SHORT = [
    *("--epochs", "2", "--warmup-epochs", "1", "--cooldown-epochs", "0", "--batch-size", "8", "--workers", "0"),
    *("--output", "runs", "--experiment", "a"),
]


def small_model(num_classes: int = 3, seed: int = 0, **options: Any) -> DaViT:
    """The small model with random weights, and a head that does not give all images one answer."""
    torch.manual_seed(seed)
    model = create_model("DaViT_nano", num_classes=num_classes, **{**SMALL, **options})
    assert isinstance(model, DaViT)
    torch.nn.init.normal_(model.head.weight)
    return model


def environment(**more: str) -> dict[str, str]:
    """The environment of a run: one thread, the repository importable, no GPU."""
    ours = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **ours, **more}


def train_command(data: Path, *flags: str, processes: int = 0) -> list[str]:
    """The words of a run of the small model; ``processes`` of 1 or more go through torchrun."""
    launcher = [sys.executable, "-u"]
    if processes:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [*launcher, str(REPOSITORY / "train.py"), str(data), *SMALL_MODEL, *flags]


def run(command: Sequence[str], cwd: Path, status: int | None = 0, **more: str) -> Completed:
    """Run to the end, and check the status unless it is None."""
    done = subprocess.run(
        list(command), cwd=cwd, env=environment(**more), timeout=300, capture_output=True, text=True, check=False
    )
    assert status is None or done.returncode == status, done.stderr
    return done


def run_here(data: Path, *flags: str, cwd: Path, curves: bool = False, status: int | None = 0) -> Completed:
    """Run train.py on the small model within this process: a second rather than six.

    Args:
        curves: draw them too, which takes as long as an epoch.
        status: with which it has to end; None for any.
    """
    words = train_command(data, *flags)[3:]
    out, err = io.StringIO(), io.StringIO()
    handlers, before = logging.root.handlers[:], Path.cwd()
    os.chdir(cwd)
    try:
        drawing = contextlib.nullcontext() if curves else mock.patch.object(run_log, "draw_curves")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), drawing:
            ended = main(words)
    except SystemExit as leave:  # argparse
        ended = int(leave.code or 0)
    finally:
        os.chdir(before)
        logging.root.handlers[:] = handlers
    assert status is None or ended == status, err.getvalue()
    return subprocess.CompletedProcess(words, ended, out.getvalue(), err.getvalue())


def summary(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's summary.csv."""
    return list(csv.DictReader((folder / "summary.csv").open()))


def weights_hash(checkpoint: Path) -> str:
    """A hash of every weight, moving average and optimizer moment in a state."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    digest = hashlib.sha256()
    for part in ("state_dict", "state_dict_ema"):
        for name, tensor in sorted(state.get(part, {}).items()):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    for number, moments in sorted(state["optimizer"]["state"].items()):
        for name, value in sorted(moments.items()):
            digest.update(f"{number}{name}".encode() + torch.as_tensor(value).contiguous().numpy().tobytes())
    return digest.hexdigest()
