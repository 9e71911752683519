"""Make the trials of running trainings: kills, disks, damage, data that change.

A trial trains the small model of `lives` in processes of its own. What it must end with is what a run that nothing
disturbed ended with.
"""

from __future__ import annotations

import ctypes
import errno
import io
import logging
import os
import random
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from davit import files
from davit.checkpoint import __main__ as checkpoint_cli
from davit.engine import run_log
from davit.engine.run_folder import LAST, read_state
from davit.engine.train import main as train
from davit.engine.validate import main as validate
from davit.predict.cli import main as predict
from davit.visualize import __main__ as visualize

from .attack import Trial, kind
from .lives import CLASSES, EPOCHS, FOLDER, STEPS, Setting, begun, fingerprint, last_hash, live, reference, write_data
from .trials import _damaged, _place

_ALL = STEPS * EPOCHS
_SECONDS = 180  # of a trial in which a run is trained
_MEGABYTES = 3000  # several processes, and address space that threads only reserve


class BrokenError(Exception):
    """A guarantee did not hold."""


def _require(holds: bool, text: str) -> None:
    if not holds:
        raise BrokenError(text)


def _tail(output: Path) -> str:
    return " ".join(output.read_text(errors="replace").splitlines()[-5:])


# ---- kills ----


def kill_often(lab: Path, setting: Setting, lives: int, seed: int, terminate: float = 0.25) -> int:
    """Train in several lives, each killed or told to stop at a drawn moment, then to the end; return the kills.

    Args:
        terminate: share of the lives that get SIGTERM, in all processes, rather than SIGKILL in one or all.

    Raises:
        BrokenError: the run does not end as one that nothing disturbed, or a life ends with a wrong status.
    """
    rng = random.Random(seed)
    expected = reference(lab, setting)
    words, output, kills = [str(write_data(lab)), *setting.words()], Path("output.txt"), 0
    for life in range(lives):
        steps = rng.choice((0, *range(1, max(2, 2 * _ALL // (lives + 1)))))
        moment = (steps, rng.uniform(0, 0.08) if steps else rng.uniform(0, 1))
        number = signal.SIGTERM if rng.random() < terminate else signal.SIGKILL
        every = tuple(range(setting.processes))
        ranks = every if number == signal.SIGTERM else rng.choice([*((rank,) for rank in every), every])
        workers = ["--workers", rng.choice(("0", "0", "2")), *(["--auto-resume"] if life else [])]
        ended = live([*words, *workers], setting, output, moment=moment, number=number, ranks=ranks)
        killed = any(status == -signal.SIGKILL for status in ended)
        kills += killed
        if number == signal.SIGTERM:  # before its folder is open a run ends as any program does
            _require({*ended} <= {0, 75, -signal.SIGTERM, -signal.SIGKILL}, f"ended by {ended}: {_tail(output)}")
        elif not killed:
            _require({*ended} == {0}, f"ended by {ended}: {_tail(output)}")
    output.unlink()
    ended = live([*words, "--auto-resume"], setting, output)
    _require({*ended} == {0}, f"the last life ended by {ended}: {_tail(output)}")
    _require("Traceback" not in output.read_text(errors="replace"), _tail(output))
    found = fingerprint(FOLDER)
    differing = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
    _require(not differing, f"{differing} are not those of a run that was never killed")
    return kills


@kind("kills", 0.015)
def kills(rng: random.Random, lab: Path) -> Iterator[Trial]:
    """A run of one process or two that is killed or stopped one to six times at drawn moments."""
    while True:
        setting = Setting(rng.choice((1, 2)), rng.random() < 0.75)
        lives, seed = rng.randint(1, 6), rng.randrange(2**32)

        def work(setting: Setting = setting, lives: int = lives, seed: int = seed) -> int:
            kill_often(lab, setting, lives, seed)
            return 0

        yield Trial(f"{setting} {lives} lives, seed {seed}", work, (0,), seconds=_SECONDS, megabytes=_MEGABYTES)


# ---- disks ----


def _libc(name: str, *words: Any) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*words):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def mount_small(place: Path, options: str, flags: int = 0) -> bool:
    """Mount a tmpfs that this process and its children see alone; return False where mounting is not allowed."""
    place.mkdir(parents=True, exist_ok=True)
    try:
        _libc("unshare", 0x00020000)  # CLONE_NEWNS
        _libc("mount", b"none", b"/", None, 0x4000 | 0x40000, None)  # MS_REC | MS_PRIVATE
        _libc("mount", b"tmpfs", bytes(place), b"tmpfs", flags, options.encode())
    except OSError:
        return False
    return True


def remount(place: Path, options: str, flags: int = 0) -> None:
    """Change a mounted tmpfs."""
    _libc("mount", b"tmpfs", bytes(place), b"tmpfs", 0x20 | flags, options.encode())  # MS_REMOUNT


def _words(lab: Path, setting: Setting, *more: str) -> list[str]:
    return [str(write_data(lab)), *setting.words(), "--output", str(Path("disk/runs")), *more]


def _states_are_whole(folder: Path) -> None:
    for file in folder.glob("*.pth.tar"):
        read_state(file)


def _ends_right(lab: Path, setting: Setting, output: Path) -> None:
    """Go on in a folder, and require the end of a run that nothing disturbed."""
    expected = reference(lab, setting)
    ended = live(_words(lab, setting, "--auto-resume"), setting, output)
    _require({*ended} == {0}, f"resumed, it ended by {ended}: {_tail(output)}")
    found = last_hash(Path("disk") / FOLDER)
    _require(found == expected[LAST], "the resumed run is not the one that was never disturbed")


def _quota(allowed: int) -> Callable[[Any, Any], int | None]:
    """Make a write that fails once so many bytes are written in a process, as where a quota is used up."""
    written, write = 0, files._RawFile.write

    def limited(self: Any, data: Any) -> int | None:
        nonlocal written
        written += len(data)
        if written > allowed:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return write(self, data)

    return limited


def _full(rng: random.Random, lab: Path, setting: Setting) -> Callable[[], int]:
    way = rng.choice(("size", "size", "size", "inodes", "limit", "quota"))
    size, inodes, allowed = rng.randint(4, 2200), rng.randint(2, 24), rng.randint(1, 2_500_000)
    largest = rng.randint(1, 320_000)

    def work() -> int:
        output, disk = Path("output.txt"), Path("disk")
        options = {"size": f"size={size}k", "inodes": f"nr_inodes={inodes},size=64m"}.get(way)
        if options and not mount_small(disk, options):
            return 4
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if way == "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, limits[1]))
        with mock.patch.object(files._RawFile, "write", _quota(allowed if way == "quota" else 2**62)):
            ended = live(_words(lab, setting), setting, output)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        text = output.read_text(errors="replace")
        _require({*ended} <= {0, 4, -9}, f"ended by {ended}: {_tail(output)}")
        _require("Traceback" not in text, f"a traceback: {_tail(output)}")
        if (disk / FOLDER).exists():
            _states_are_whole(disk / FOLDER)
        if options:
            remount(disk, "size=64m,nr_inodes=1000")
        output.unlink(missing_ok=True)
        _ends_right(lab, setting, output)
        return 4 if 4 in ended else 0

    shown = {"size": size, "inodes": inodes, "limit": largest, "quota": allowed}
    work.__doc__ = f"{way} {shown[way]}"
    return work


def _read_only(rng: random.Random, lab: Path, setting: Setting) -> Callable[[], int]:
    way = rng.choice(("mount", "folder", "file", "later"))
    steps = rng.randint(1, _ALL - 1)

    def work() -> int:
        output, disk = Path("output.txt"), Path("disk")
        words = _words(lab, setting)
        if way == "file":
            disk.write_text("")
            ended = live(words, setting, output)
        elif way == "mount":
            if not mount_small(disk, "size=64m", 1):  # MS_RDONLY
                return 2
            ended = live(words, setting, output)
        elif way == "later":  # as by an administrator; the lock's open file must not keep it from happening

            def inside(done: int) -> None:
                if done == steps:
                    (disk / FOLDER / ".lock").unlink(missing_ok=True)
                    shutil.rmtree(disk / "runs", ignore_errors=True)
                    (disk / "runs").write_text("a file in its place")

            disk.mkdir()
            ended = live(words, setting, output, inside=inside if setting.processes == 1 else None)
            if setting.processes > 1:
                return 2 if ended == [0, 0] else max(ended)
        else:
            (disk / "runs").mkdir(parents=True)
            (disk / "runs").chmod(0o555)
            if os.getuid() == 0:
                for place in (*Path.cwd().parents,):
                    if place.stat().st_uid == 0 and not place.stat().st_mode & 0o001:
                        place.chmod(place.stat().st_mode | 0o011)
                output.touch()
                output.chmod(0o666)
                os.setresuid(65534, 65534, 65534)
            ended = live(words, setting, output)
        text = output.read_text(errors="replace")
        _require({*ended} <= {2, -9} and 2 in ended, f"ended by {ended}: {_tail(output)}")
        _require("Traceback" not in text, f"a traceback: {_tail(output)}")
        return 2

    work.__doc__ = f"read-only {way} {steps}"
    return work


def _vanishing(rng: random.Random, lab: Path, setting: Setting) -> Callable[[], int]:
    way = rng.choice(("removed", "renamed", "all", "states", "lock", "last"))
    steps, later = rng.randint(0, _ALL - 1), rng.uniform(0, 0.06)

    def work() -> int:
        expected = reference(lab, setting)
        output, folder = Path("output.txt"), Path("disk") / FOLDER

        def meddle() -> None:
            time.sleep(later)
            if way == "removed":
                shutil.rmtree(folder, ignore_errors=True)
            elif way == "renamed" and folder.exists():
                folder.rename(folder.with_name("b"))
            elif way == "all":
                shutil.rmtree("disk", ignore_errors=True)
            elif way == "states":
                for file in folder.glob("*.pth.tar"):
                    file.unlink(missing_ok=True)
            elif way == "lock":
                (folder / ".lock").unlink(missing_ok=True)
            else:
                (folder / LAST).unlink(missing_ok=True)

        def inside(done: int) -> None:
            if done == steps and int(os.environ.get("RANK", 0)) == 0:
                threading.Thread(target=meddle).start()

        if steps == 0:
            threading.Thread(target=meddle).start()
        ended = live(_words(lab, setting), setting, output, inside=inside)
        text = output.read_text(errors="replace")
        _require("Traceback" not in text, f"a traceback: {_tail(output)}")
        # a folder that vanishes while a file is written into it may end the run, with a line that says so
        _require({*ended} <= {0, 2, -9} and {*ended} != {-9}, f"ended by {ended}: {_tail(output)}")
        if {*ended} != {0}:
            _ends_right(lab, setting, output)
        elif (folder / LAST).exists():
            _require(last_hash(folder) == expected[LAST], "it ended otherwise than undisturbed")
        return max(ended)

    work.__doc__ = f"{way} after {steps} steps and {later:.3f} s"
    return work


def _shared_memory(rng: random.Random, lab: Path, setting: Setting) -> Callable[[], int]:
    size, workers = rng.choice((0, 4, 16, 32, 64, 400)), rng.choice(("1", "2"))
    size = size or rng.randint(1, 64)

    def work() -> int:
        output = Path("output.txt")
        if not mount_small(Path("/dev/shm"), f"size={size}k"):
            return 2
        ended = live(_words(lab, setting, "--workers", workers), setting, output)
        text = output.read_text(errors="replace")
        _require("Traceback" not in text, f"a traceback: {_tail(output)}")
        _require({*ended} <= {0, 2, -9} and {*ended} != {-9}, f"ended by {ended}: {_tail(output)}")
        if 2 in ended:
            _require("/dev/shm" in text, f"it does not name /dev/shm: {_tail(output)}")
        return max(ended)

    work.__doc__ = f"/dev/shm of {size} KB, {workers} workers"
    return work


def _results(rng: random.Random, lab: Path, _: Setting) -> Callable[[], int]:
    size = rng.choice((4, 8, 16, 64, 64, 512))
    command = rng.choice(("validate", "predict", "visualize", "convert", "data"))

    def work() -> int:
        disk = Path("disk")
        if not mount_small(disk, f"size={size}k,nr_inodes={8 if size > 64 else 32}"):
            return 4
        (disk / "filled").write_bytes(b"x" * max(0, size * 1024 - 4096))
        picture, model = str(lab / "good.png"), str(lab / "model.pth.tar")
        if command == "validate":
            words = [
                str(lab / "data"),
                "--checkpoint",
                model,
                "--workers=0",
                "--results-file",
                "disk/results.csv",
            ]
            return validate(words)
        if command == "predict":
            words = [picture, "--checkpoint", model, "--workers=0", "--output", "disk/out.csv"]
            return predict(words)
        if command == "visualize":
            return visualize.main([picture, "--checkpoint", model, "--out", "disk/seen.png"])
        if command == "convert":
            return checkpoint_cli.main(["convert", model, "disk/out.safetensors"])
        from davit.data import __main__ as data_cli

        return data_cli.main(["digits", "disk/digits"])

    work.__doc__ = f"{command} onto a disk of {size} KB with a block left"
    return work


@kind("disks", 0.03)
def disks(rng: random.Random, lab: Path) -> Iterator[Trial]:
    """Full disks and quotas, read-only and vanishing folders, a small /dev/shm, under runs and other commands."""
    while True:
        setting = Setting(rng.choice((1, 1, 2)), rng.random() < 0.5)
        make = rng.choice((_full, _full, _full, _read_only, _vanishing, _vanishing, _shared_memory, _results))
        work = make(rng, lab, setting)
        statuses = (0, 2, 4)
        yield Trial(f"{work.__doc__}, {setting}", work, statuses, seconds=_SECONDS, megabytes=_MEGABYTES)


# ---- damage ----

_ODD: tuple[Any, ...] = (
    None,
    -1,
    0,
    1,
    2**40,
    2**70,
    0.5,
    float("nan"),
    float("inf"),
    "x",
    "",
    b"x",
    True,
    [],
    {},
    [1],
)
_ODD += ({"a": 1}, {1: 2}, [[1]], (1, 2), torch.zeros(2), torch.zeros(0), torch.tensor(float("nan")), set())


def _with_odd_value(rng: random.Random, file: Path) -> str:
    """Put an odd value somewhere into a state; return where."""
    state = torch.load(file, weights_only=True)
    place, path = state, []
    while True:
        key = rng.choice(sorted(place, key=str) if isinstance(place, dict) else range(len(place)))
        path.append(str(key))
        inner = place[key]
        if isinstance(inner, dict | list) and inner and rng.random() < 0.7:
            place = inner
            continue
        if rng.random() < 0.15 and isinstance(place, dict):
            del place[key]
            path.append("removed")
        else:
            place[key] = rng.choice(_ODD)
            path.append(f"= {str(place[key])[:20]}")
        break
    stream = io.BytesIO()
    torch.save(state, stream)
    file.unlink()
    file.write_bytes(stream.getvalue())
    return " ".join(path)


def _harm(rng: random.Random, folder: Path) -> tuple[str, bool]:
    """Damage states of a run; return what was done, and whether the end must be the same all the same."""
    names = sorted(file.name for file in folder.glob("*.pth.tar"))
    chosen = rng.sample(names, rng.randint(1, len(names))) if rng.random() < 0.7 else [LAST]
    way = rng.choice(("bytes", "bytes", "cut", "empty", "zeros", "swap", "special", "gone", "value", "value", "value"))
    if way == "value":
        return f"value {_with_odd_value(rng, folder / LAST)}", False
    if way == "swap":
        one, two = rng.choice(names), rng.choice(names)
        first, second = (folder / one).read_bytes(), (folder / two).read_bytes()
        for name, data in ((one, second), (two, first)):
            (folder / name).unlink()
            (folder / name).write_bytes(data)
        return f"swap {one} {two}", True
    for name in chosen:
        data = (folder / name).read_bytes()
        (folder / name).unlink()
        if way == "bytes":
            (folder / name).write_bytes(_damaged(rng, data))
        elif way == "cut":
            (folder / name).write_bytes(data[: rng.randrange(len(data))])
        elif way == "empty":
            (folder / name).write_bytes(b"")
        elif way == "zeros":
            at = rng.randrange(len(data))
            (folder / name).write_bytes(data[:at] + bytes(min(4096, len(data) - at)) + data[at + 4096 :])
        elif way == "special":
            _place(folder / name, data, rng.choice(("fifo", "folder", "socket", "device", "link")))
    return f"{way} {chosen}", True


@kind("damage", 0.06)
def damage(rng: random.Random, lab: Path) -> Iterator[Trial]:
    """States damaged, cut, exchanged, removed or with odd values: a run continues from a whole one, or says so."""
    setting = Setting(1, True)
    while True:
        steps = rng.choice((3, STEPS, STEPS + 1, 2 * STEPS + 3))
        number = rng.choice((signal.SIGTERM, signal.SIGKILL))
        seed = rng.randrange(2**32)

        def work(steps: int = steps, number: int = number, seed: int = seed) -> int:
            expected = reference(lab, setting)
            shutil.copytree(begun(lab, setting, steps, number), FOLDER)
            before = {file.name: file.lstat().st_mtime_ns for file in FOLDER.glob("*.pth.tar")}
            done, same = _harm(random.Random(seed), FOLDER)
            sys.stdout.write(f"{done}; there were {sorted(before)}\n")
            with mock.patch.object(run_log, "draw_curves"):
                status = train([str(write_data(lab)), *setting.words(), "--auto-resume"])
            if status == 0 and same:
                _require(last_hash(FOLDER) == expected[LAST], f"after {done} it ended otherwise than undamaged")
            return status

        statuses = (0, 2, 3)
        yield Trial(f"states of step {steps}, signal {int(number)}, seed {seed}", work, statuses, seconds=60)


# ---- data that change ----


def _exchange(one: Path, two: Path) -> None:
    aside = one.with_name(".aside")
    one.rename(aside)
    two.rename(one)
    aside.rename(two)


def _change(rng: random.Random, root: Path) -> tuple[str, bool]:
    """Change a data set; return what was done, and whether a run must notice it."""
    split = rng.choice(("train", "train", "val"))
    folder = root / split
    pick = {name: sorted((folder / name).iterdir()) for name in CLASSES}
    one, two = rng.choice(pick["a"]), rng.choice(pick["b"])
    new = f"z{rng.randrange(1000)}"
    way = rng.choice(
        (
            *("same", "same", "class renamed", "class renamed", "class removed", "class added", "classes exchanged"),
            *("file removed", "file added", "file renamed", "file replaced", "files exchanged", "files doubled"),
            *("files removed", "one class's files exchanged", "file cut", "form"),
        )
    )
    if way == "same":
        for file in root.rglob("*.png"):
            os.utime(file, (0, 0))
        return "touched", False
    if way == "class renamed":
        for one_split in ("train", "val") if rng.random() < 0.7 else (split,):
            (root / one_split / "a").rename(root / one_split / new)
    elif way == "class removed":
        shutil.rmtree(folder / "a")
    elif way == "class added":
        for one_split in ("train", "val"):
            shutil.copytree(root / one_split / "a", root / one_split / rng.choice((new, "A0")))
            break
    elif way == "classes exchanged":
        for one_split in ("train", "val") if rng.random() < 0.5 else (split,):
            _exchange(root / one_split / "a", root / one_split / "b")
    elif way == "file removed":
        one.unlink()
    elif way == "file added":
        shutil.copy(one, folder / "b" / f"{new}.png")
    elif way == "file renamed":
        one.rename(one.with_name(f"{new}.png"))
    elif way == "file replaced":
        Image.fromarray(np.full((20, 24, 3), rng.randrange(256), np.uint8)).save(one)
    elif way == "files exchanged":
        _exchange(one, two)
    elif way == "files doubled":
        for file in pick["a"]:
            shutil.copy(file, file.with_name(f"{file.stem}-copy.png"))
    elif way == "files removed":
        for file in rng.sample(pick["a"], len(pick["a"]) // 2):
            file.unlink()
    elif way == "one class's files exchanged":
        other = next(file for file in pick["a"] if file != one)
        _exchange(one, other)
    elif way == "file cut":
        one.write_bytes(one.read_bytes()[:200])
    else:  # the same images in the same order under other names
        for name in CLASSES:
            for file in pick[name]:
                file.rename(file.with_name(f"p{file.name}"))
    return f"{way} in {split}", True


@kind("changed data", 0.04)
def changed_data(rng: random.Random, lab: Path) -> Iterator[Trial]:
    """Classes and files renamed, removed, added, replaced, exchanged: refused or named; the same data go on alike."""
    setting = Setting(1, True)
    while True:
        steps = rng.choice((3, STEPS, STEPS + 1, 2 * STEPS + 3))
        number = rng.choice((signal.SIGTERM, signal.SIGKILL))
        seed, accepts = rng.randrange(2**32), rng.random() < 0.25

        def work(steps: int = steps, number: int = number, seed: int = seed, accepts: bool = accepts) -> int:
            expected = reference(lab, setting)
            shutil.copytree(begun(lab, setting, steps, number), FOLDER)
            shutil.copytree(write_data(lab), "data")
            done, changes = _change(random.Random(seed), Path("data"))
            sys.stdout.write(f"{done}\n")
            said = _Said()
            for name in ("davit.engine.data_facts", "davit.engine.resume", "davit.engine.build"):
                logging.getLogger(name).addHandler(said)
            more = ["--accept-changed-data"] if accepts else []
            with mock.patch.object(run_log, "draw_curves"):
                status = train(["data", *setting.words(), "--auto-resume", *more])
            if not changes:
                _require(status == 0 and last_hash(FOLDER) == expected[LAST], "the same data go on otherwise")
                _require(not said.lines, f"the same data are said to differ: {said.lines}")
            elif status == 0:
                _require(bool(said.lines), f"nothing was said after {done}")
            return status

        yield Trial(f"data after step {steps}, {accepts=}, seed {seed}", work, (0, 2), seconds=60)


class _Said(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
