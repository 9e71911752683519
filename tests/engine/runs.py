"""train.py as a user runs it, on a model that trains in seconds."""

import contextlib
import csv
import hashlib
import io
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import torch

from davit.engine import run_log
from davit.engine.train import main

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL_MODEL = [
    *("--model", "DaViT_nano", "--img-size", "16"),
    *("--model-kwargs", "embed_dims=[8,16]", "depths=[1,1]", "num_heads=[1,2]", "window_size=2"),
]


def environment(**more: str) -> dict[str, str]:
    """The environment of a run: one thread, the repository importable, no GPU."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
        "CUDA_VISIBLE_DEVICES": "",
        **more,
    }


def train_command(data: Path | None, *flags: str, processes: int = 0) -> list[str]:
    """The words of a run of the small model; ``processes`` of 1 or more go through torchrun."""
    launcher = [sys.executable, "-u"]
    if processes:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    words = [str(data)] if data is not None else []
    return [*launcher, str(REPOSITORY / "train.py"), *words, *SMALL_MODEL, *flags]


def run(command: Sequence[str], cwd: Path, timeout: float = 300, **more: str) -> subprocess.CompletedProcess[str]:
    """Run to the end; the caller checks the status."""
    return subprocess.run(
        list(command), cwd=cwd, env=environment(**more), timeout=timeout, capture_output=True, text=True, check=False
    )


def run_here(data: Path | None, *flags: str, cwd: Path, curves: bool = False) -> subprocess.CompletedProcess[str]:
    """Run train.py on the small model within this process: a second rather than six.

    Args:
        curves: draw them too, which takes as long as an epoch.
    """
    words = train_command(data, *flags)[3:]
    out, err = io.StringIO(), io.StringIO()
    handlers, before = logging.root.handlers[:], Path.cwd()
    os.chdir(cwd)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(out))
            stack.enter_context(contextlib.redirect_stderr(err))
            if not curves:
                stack.enter_context(mock.patch.object(run_log, "draw_curves"))
            status = main(words)
    except SystemExit as leave:  # argparse
        status = int(leave.code or 0)
    finally:
        os.chdir(before)
        logging.root.handlers[:] = handlers
    return subprocess.CompletedProcess(words, status, out.getvalue(), err.getvalue())


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
