"""Try hostile input of several kinds, each trial in a process of its own, and count what held.

    python -m tests.hostile.attack -n 2000 --seed 1 --results benchmarks/results/hostile.md

A kind is a function that yields trials for ever, registered by `kind`: input in `trials.py`, running trainings in
`runs.py`, other commands in `commands.py`, the page in `routes.py`.
A trial fails if it hangs, takes too much memory, ends by a signal or with a traceback, has another exit status than
those it may have, prints what it must not, or runs code that its file holds. The seed and the number say a trial
again.

Each trial is a fork of a process that has imported all that its kind needs and has computed nothing, so that no time
goes into imports. What is read while a module is imported (variables as OMP_NUM_THREADS) is thereby the same for all
trials, and that the commands start at all is not tried here, but by the other tests, which start them as users do.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import math
import multiprocessing
import os
import platform
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
CANARY = "canary"  # the file that code within a trial's input would write
PATIENCE = 10


@dataclass(frozen=True)
class Trial:
    """One attempt.

    Attributes:
        name: says what is tried, for the list of failures.
        work: runs in a forked process, in a scratch folder, and returns an exit status.
        statuses: those that are right.
        prints, hides: words that the output must hold, and must not.
        seconds: of the processor for each of its processes. In `PATIENCE` times as many it must have ended, however
            busy the machine is.
        megabytes: above what an ordinary image takes to predict.
    """

    name: str
    work: Callable[[], int | None]
    statuses: tuple[int, ...] = (0, 2)
    prints: tuple[str, ...] = ()
    hides: tuple[str, ...] = ()
    seconds: float = 60
    megabytes: int = 1000


@dataclass
class Tally:
    """What became of the trials of a kind."""

    held: int = 0
    failed: list[str] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    seconds: float = 0.0  # of the processor, for all
    largest: float = 0.0


Maker = Callable[[random.Random, Path], Iterator[Trial]]
KINDS: dict[str, tuple[float, Maker]] = {}
_COSTS = {"kills": 5, "disks": 3, "damage": 2, "changed data": 2}  # seconds a trial; others cost less
_PREPARE: dict[str, Callable[[Path], object]] = {}


def kind(name: str, share: float, prepare: Callable[[Path], object] | None = None) -> Callable[[Maker], Maker]:
    """Register trials under a name, with their share of the number of all trials.

    Args:
        prepare: called once with the lab, in the process that is forked, to import what all trials need.
    """

    def register(make: Maker) -> Maker:
        KINDS[name] = share, make
        if prepare is not None:
            _PREPARE[name] = prepare
        return make

    return register


def once(folder: Path, make: Callable[[Path], object]) -> Path:
    """Let one of several processes fill a folder: it is there whole, or not at all."""
    if not folder.exists():
        scratch = folder.with_name(f".{folder.name}-{os.getpid()}")
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        make(scratch)
        try:
            scratch.rename(folder)
        except OSError:  # another was faster
            if not folder.exists():
                raise
            shutil.rmtree(scratch)
    return folder


def attempt(trial: Trial, scratch: Path, base: float = 0) -> tuple[str | None, int, float, float]:
    """Run a trial; return why it failed, if it did, its status, seconds of the processor, megabytes above `base`."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    output, begun = scratch.with_suffix(".txt"), time.monotonic()
    child = os.fork()
    if child == 0:
        _run(trial, scratch, output)
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended or time.monotonic() > begun + PATIENCE * trial.seconds:
            break
        time.sleep(0.005)
    if not ended:
        os.kill(child, signal.SIGKILL)
        _, status, usage = os.wait4(child, 0)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it started and left
    seconds, megabytes = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024 - base
    text = output.read_text(errors="replace") if output.exists() else ""
    code = os.waitstatus_to_exitcode(status)
    return _judge(trial, code, text, bool(ended), megabytes, scratch), code, seconds, megabytes


def _run(trial: Trial, scratch: Path, output: Path) -> None:
    """Run the work in this forked process, and end it."""
    status: int | None = 1
    try:
        os.setsid()
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + (3 * trial.megabytes << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(trial.seconds), resource.RLIM_INFINITY))
        descriptor = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        for standard in (1, 2):
            os.dup2(descriptor, standard)
        sys.stdout = open(1, "w", closefd=False, buffering=1)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
        os.chdir(scratch)
        status = trial.work()
    except SystemExit as leave:
        status = leave.code if isinstance(leave.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status or 0)


def _judge(trial: Trial, code: int, text: str, ended: bool, megabytes: float, scratch: Path) -> str | None:
    last = " ".join(text.strip().splitlines()[-1:])[:300]
    if (scratch / CANARY).exists():
        return "code of the input was run"
    if not ended:
        return f"no end after {PATIENCE * trial.seconds:g} s"
    if code == -signal.SIGXCPU:
        return f"no end after {trial.seconds:g} s of the processor"
    if code < 0:
        return f"signal {-code}: {last}"
    if "Traceback (most recent call last)" in text:
        return f"traceback, status {code}: {last}"
    if code not in trial.statuses:
        return f"status {code}: {last}"
    if megabytes > trial.megabytes:
        return f"{megabytes:.0f} MB"
    if missing := [word for word in trial.prints if word not in text]:
        return f"does not print {missing[0]!r}: {last}"
    if shown := [word for word in trial.hides if word in text]:
        return f"prints {shown[0]!r}: {last}"
    return None


def attack(
    number: int, seed: int, kinds: list[str], folder: Path, say: bool = False, jobs: int = 1
) -> Iterator[dict[str, Tally]]:
    """Run about `number` trials, of each kind its share, in `jobs` processes; yield all tallies after each kind."""
    from . import commands, routes, runs, trials  # noqa: F401 (each registers its kinds)

    lab = trials.build_lab(folder)
    total = sum(KINDS[name][0] for name in kinds)
    long_first = sorted(kinds, key=lambda name: -KINDS[name][0] * _COSTS.get(name, 0.3))
    work = [(name, max(1, round(number * KINDS[name][0] / total)), seed, lab, say) for name in long_first]
    tallies: dict[str, Tally] = {}
    fork = multiprocessing.get_context("fork")
    running: dict[Connection, multiprocessing.Process] = {}
    try:
        while work or running:
            while work and len(running) < jobs:
                told, tell = fork.Pipe(duplex=False)
                process = fork.Process(target=_attack_one, args=(tell, *work.pop(0)))
                process.start()
                tell.close()
                running[told] = process
            for told in wait(list(running)):
                name, tally = told.recv()  # EOFError where a kind itself is at fault
                tallies[name] = tally
                running.pop(told).join()
                yield {name: tallies[name] for name in KINDS if name in tallies}
    finally:
        for process in running.values():
            process.terminate()


def _attack_one(tell: Connection, name: str, count: int, seed: int, lab: Path, say: bool) -> None:
    """Run trials of one kind, in a process of its own, and send their tally."""
    from .trials import predict_good

    tally, scratch = Tally(), lab.parent / f"scratch-{name.replace(' ', '-')}"
    if name in _PREPARE:
        _PREPARE[name](lab)
    base = attempt(Trial("an ordinary image", lambda: predict_good(lab), megabytes=10_000), scratch)[3]
    for trial in itertools.islice(KINDS[name][1](random.Random(f"{seed} {name}"), lab), count):
        failure, code, seconds, megabytes = attempt(trial, scratch, base)
        tally.statuses[code] = tally.statuses.get(code, 0) + 1
        tally.seconds, tally.largest = tally.seconds + seconds, max(tally.largest, megabytes)
        if failure is None:
            tally.held += 1
        else:
            tally.failed.append(f"{name}: {trial.name}: {failure}")
            if say:
                sys.stderr.write(f"FAILED {tally.failed[-1]}\n")
    if say:
        sys.stderr.write(f"{name}: {tally.held} held, {len(tally.failed)} failed, {tally.seconds:.0f} s\n")
    tell.send((name, tally))


def table(tallies: dict[str, Tally]) -> str:
    """Write tried, held and failed of each kind as a table of Markdown."""
    lines = [
        "| kind | tried | held | failed | exit statuses | processor, s a trial | most memory, MB |",
        "|---|---:|---:|---:|---|---:|---:|",
    ]
    for name, tally in tallies.items():
        statuses = ", ".join(f"{status}: {count}" for status, count in sorted(tally.statuses.items()))
        tried, failed = tally.held + len(tally.failed), len(tally.failed)
        lines.append(
            f"| {name} | {tried} | {tally.held} | {failed} | {statuses} | {tally.seconds / tried:.1f} "
            f"| {tally.largest:.0f} |"
        )
    held, failed = (sum(counts) for counts in zip(*((t.held, len(t.failed)) for t in tallies.values()), strict=True))
    return "\n".join([*lines, f"| all | {held + failed} | {held} | {failed} | | | |"])


def main() -> int:
    """Attack as the command line says; return 1 where a trial failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.attack", description=__doc__)
    parser.add_argument("-n", type=int, default=200, help="number of trials (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="kinds that are tried at once (default %(default)s)")
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="default: all")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write the table there")
    options = parser.parse_args()
    from . import commands, routes, runs, trials  # noqa: F401 (each registers its kinds)

    kinds = options.kinds or list(KINDS)
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    ).stdout.strip()
    tallies: dict[str, Tally] = {}
    with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
        for tallies in attack(options.n, options.seed, kinds, Path(folder), say=True, jobs=options.jobs):
            if options.results is not None:  # after each kind, for a night that is cut short
                _write(options.results, tallies, f"-n {options.n} --seed {options.seed} --jobs {options.jobs}", commit)
    sys.stdout.write(table(tallies) + "\n")
    return 1 if any(tally.failed for tally in tallies.values()) else 0


def _write(file: Path, tallies: dict[str, Tally], words: str, commit: str) -> None:
    listed = "".join(f"- {line}\n" for tally in tallies.values() for line in tally.failed)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        "# Hostile trials\n\n"
        f"`python -m tests.hostile.attack {words}`, {datetime.now(timezone.utc):%Y-%m-%d}; {platform.machine()}, "
        f"{os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}; at {commit}.\n\n"
        "Each trial is a process of its own with a limit on time and memory; a trial of routes is 25 requests. It "
        "fails if it hangs, ends by a signal or with a traceback, has a wrong exit status, takes too much memory, "
        "blames a file of the user's for a flag, runs code that a file holds, or breaks what its kind promises: a run "
        "that was killed, whose disk was full or whose states were damaged ends as one that nothing disturbed.\n\n"
        f"{table(tallies)}\n" + (f"\nFailed:\n\n{listed}" if listed else ""),
        encoding="utf-8",
    )


if __name__ == "__main__":
    # the module is imported by `trials` under its own name, and there is one table of kinds
    from tests.hostile.attack import main as run

    sys.exit(run())
