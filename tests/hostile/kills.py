"""Kill runs of two processes, with accumulation and EMA, at drawn moments, and compare what they end with.

    python -m tests.hostile.kills -n 100 --seed 21 --results benchmarks/results/kills.md

Each run is killed several times, by SIGKILL to one process or both, until so many kills have hit; a moment is a number
of steps done and up to 0.08 s after them, or up to 1 s after the start. Each run must end with the hashes of weights,
average, moments, schedule, kept checkpoints and summary of a run that was never killed.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from .lives import EPOCHS, STEPS, Setting, reference
from .runs import BrokenError, kill_often
from .trials import build_lab

LIVES = 9  # of a run before its last


def kill(number: int, seed: int, folder: Path) -> Counter[str]:
    """Kill until `number` kills have hit; return how many did, of how many runs, and how many of these ended wrong."""
    rng, counts = random.Random(seed), Counter[str]()
    lab, setting = build_lab(folder), Setting(processes=2, hard=True)
    reference(lab, setting)
    before = Path.cwd()
    while counts["kills"] < number:
        scratch = folder / f"run-{counts['runs']}"
        scratch.mkdir()
        os.chdir(scratch)
        counts["runs"] += 1
        try:
            lives = min(LIVES, number - counts["kills"])
            counts["kills"] += kill_often(lab, setting, lives, rng.randrange(2**32), terminate=0)
        except BrokenError as fault:
            counts["broken"] += 1
            sys.stderr.write(f"FAILED {fault}\n")
            if counts["broken"] > 2:
                break
        finally:
            os.chdir(before)
    return counts


def main() -> int:
    """Kill as the command line says; return 1 where a run ended otherwise than undisturbed."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.kills", description=__doc__.partition("\n")[0])
    parser.add_argument("-n", type=int, default=100, help="number of kills (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, metavar="FILE", help="write the outcome there")
    options = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        counts = kill(options.n, options.seed, Path(folder))
    seconds = time.monotonic() - begun
    text = (
        f"{counts['kills']} kills (SIGKILL) of {counts['runs']} runs of two processes, {EPOCHS} epochs of {STEPS} "
        f"steps each, with accumulation over 2 micro-batches and EMA: {counts['runs'] - counts['broken']} runs ended "
        f"bit for bit as the one that was never killed, {counts['broken']} did not. {seconds:.0f} s.\n"
    )
    sys.stdout.write(text)
    if options.results is not None:
        head = f"# Kills\n\n`python -m tests.hostile.kills -n {options.n} --seed {options.seed}`\n\n"
        where = f"{platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}, gloo.\n"
        options.results.write_text(f"{head}{text}\n{where}", encoding="utf-8")
    return 1 if counts["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
