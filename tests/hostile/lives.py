"""Train in forked processes that are told to stop or killed, and compare what they end with.

A fork of this process has torch imported, so that a life of a run takes a second rather than six. Each life is a
process of its own all the same, or one for each rank, and what kills it is SIGKILL from another.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import itertools
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from davit.engine import run_log
from davit.engine.run_folder import LAST, PREVIOUS, read_state
from davit.engine.steps import Stepper
from davit.engine.train import main as train
from tests.processes import free_port

from .attack import once

STEPS, EPOCHS = 8, 3  # steps of an epoch
CLASSES = ("a", "b")
FOLDER = Path("runs/a")
_TIMED = {"images_per_second", "data_share", "peak_memory_mb", "seconds"}

_PLAIN = [
    *("--model", "DaViT_nano", "--img-size", "16", "--model-kwargs", "embed_dims=[8,16]", "depths=[1,1]"),
    *("num_heads=[1,2]", "window_size=2", "--epochs", str(EPOCHS), "--warmup-epochs", "1", "--cooldown-epochs", "0"),
    *("--lr", "1e-3", "--workers", "0", "--recovery-interval", "1", "--output", "runs", "--experiment", "a"),
]
_HARD = [
    *("--aa", "rand-m9-mstd0.5-inc1", "--mixup", "0.8", "--cutmix", "1.0", "--reprob", "0.5", "--drop-path", "0.3"),
    *("--model-ema", "--model-ema-decay", "0.9", "--clip-grad", "1.0", "--grad-accum-steps", "2"),
]


@dataclass(frozen=True)
class Setting:
    """A run: of how many processes, and with accumulation, EMA and all that is random, or without."""

    processes: int = 1
    hard: bool = True

    def words(self) -> list[str]:
        """Say the flags; every setting has a global batch of 8."""
        batch = 8 // self.processes // (2 if self.hard else 1)
        return [*_PLAIN, *(_HARD if self.hard else []), "--batch-size", str(batch)]


def write_data(lab: Path) -> Path:
    """Write the images that these runs train on, and return their folder."""

    def write(root: Path) -> None:
        drawn = np.random.default_rng(1)
        for split, count in (("train", STEPS * 4), ("val", 4)):
            for name, index in itertools.product(CLASSES, range(count)):
                file = root / split / name / f"{index:02d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(drawn.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(file)

    return once(lab / "of-runs", write)


def live(
    words: list[str],
    setting: Setting,
    output: Path,
    *,
    moment: tuple[int, float] | None = None,
    number: int = signal.SIGKILL,
    ranks: tuple[int, ...] = (0,),
    inside: Callable[[int], object] | None = None,
) -> list[int]:
    """Train in processes of their own; return how each of them ended, as `Popen.returncode` has it.

    Args:
        output: what they print is added to this file.
        moment: steps done and seconds after them; then the signal `number` is sent to `ranks`. If it kills one, the
            others are ended soon after, as torchrun does.
        inside: called in each process after each step with the number of steps done.
    """
    port, started = free_port(), []
    told, tell = os.pipe()
    for rank in range(setting.processes):
        pid = os.fork()
        if pid == 0:
            os.close(told)
            _be_one(words, setting, rank, port, output, tell if rank == 0 else None, inside)
        started.append(pid)
    os.close(tell)
    if moment is not None and _wait_for(told, *moment):
        for rank in ranks:
            os.kill(started[rank], number)
    ended: dict[int, int] = {}
    while len(ended) < len(started):
        pid, status = os.waitpid(-1, 0)
        if pid in started:
            ended[pid] = os.waitstatus_to_exitcode(status)
            if ended[pid] not in (0, 75):  # as torchrun ends a job
                for other in {*started} - {*ended}:
                    os.kill(other, signal.SIGKILL)
    os.close(told)
    return [ended[pid] for pid in started]


def _wait_for(told: int, steps: int, seconds: float) -> bool:
    """Wait until so many steps are done, and so long; return False if the run has ended before."""
    done = 0
    while done < steps:
        heard = os.read(told, 1)
        if not heard:
            return False
        done += 1
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        if select.select([told], [], [], left)[0] and not os.read(told, 1):
            return False
    return True


def _be_one(
    words: list[str],
    setting: Setting,
    rank: int,
    port: str,
    output: Path,
    tell: int | None,
    inside: Callable[[int], object] | None,
) -> None:
    """Be a process of a run, and end."""
    status = 1
    try:
        with output.open("ab") as stream:
            for standard in (1, 2):
                os.dup2(stream.fileno(), standard)
        if setting.processes > 1:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": setting.processes, "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
        with _counted(tell, inside), mock.patch.object(run_log, "draw_curves"):  # which takes as long as a life
            status = train(words)
    except SystemExit as leave:
        status = leave.code if isinstance(leave.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


@contextlib.contextmanager
def _counted(tell: int | None, inside: Callable[[int], object] | None) -> Iterator[None]:
    done, step = 0, Stepper.step

    def counted(self: Stepper, *rest: Any) -> Any:
        nonlocal done
        result = step(self, *rest)
        done += 1
        if tell is not None:
            os.write(tell, b".")
        if inside is not None:
            inside(done)
        return result

    with mock.patch.object(Stepper, "step", counted):
        yield


def reference(lab: Path, setting: Setting) -> dict[str, str]:
    """Return what a run that nothing disturbed ends with; it is trained once a lab, into `reference_folder`."""

    def write(scratch: Path) -> None:
        trained = _elsewhere(scratch, lambda: live([str(write_data(lab)), *setting.words()], setting, Path("o.txt")))
        assert trained == [0] * setting.processes, (scratch / "o.txt").read_text()

    return fingerprint(once(reference_folder(lab, setting), write) / FOLDER)


def reference_folder(lab: Path, setting: Setting) -> Path:
    """Name the folder in which the undisturbed run of a setting lies."""
    return lab / f"whole-{setting.processes}-{'hard' if setting.hard else 'plain'}"


def begun(lab: Path, setting: Setting, steps: int, number: int) -> Path:
    """Return the folder of a run that a signal ended right after so many steps, to be copied; made once a lab."""
    folder = lab / f"begun-{setting.processes}-{'hard' if setting.hard else 'plain'}-{steps}-{int(number)}"

    def write(scratch: Path) -> None:
        def inside(done: int) -> None:
            if done == steps:
                os.kill(os.getpid(), number)

        words = [str(write_data(lab)), *setting.words()]
        ended = _elsewhere(scratch, lambda: live(words, setting, Path("o.txt"), inside=inside))
        expected = 75 if number == signal.SIGTERM else -number
        assert ended == [expected] * setting.processes, (ended, (scratch / "o.txt").read_text())

    return once(folder, write) / FOLDER


def _elsewhere(folder: Path, work: Callable[[], list[int]]) -> list[int]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        return work()
    finally:
        os.chdir(before)


def fingerprint(folder: Path) -> dict[str, str]:
    """Hash all that a run ends with, file by file, but for times and for the state before the last.

    Of each state: weights, their average, moments, schedule, where it stands, what is kept; and the summary.
    """
    found = {file.name: _hash_of(file) for file in sorted(folder.glob("*.pth.tar")) if file.name != PREVIOUS}
    with (folder / "summary.csv").open(newline="") as stream:
        rows = [{key: cell for key, cell in row.items() if key not in _TIMED} for row in csv.DictReader(stream)]
    return {**found, "summary.csv": repr(rows)}


def last_hash(folder: Path) -> str:
    """Hash the newest state of a run."""
    return _hash_of(folder / LAST)


def _hash_of(file: Path) -> str:
    state = read_state(file)
    digest = hashlib.blake2b()
    for part in ("state_dict", "state_dict_ema", "optimizer", "scheduler", "epoch", "step", "metric", "updates"):
        _add(digest, state.get(part))
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        digest.update(value.contiguous().numpy().tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            digest.update(str(key).encode())
            _add(digest, value[key])
    elif isinstance(value, list | tuple):
        for one in value:
            _add(digest, one)
    else:
        digest.update(repr(value).encode())
