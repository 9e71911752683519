#!/usr/bin/env python3
"""Measure what starting costs: imports and ``--help``, in processor time: ``python benchmarks/start_up.py [-n 7]``.

Each is a process of its own. What `import davit` takes is given beyond `import timm`, which loads PyTorch. Rounds are
interleaved, so that other programs on the machine touch all alike.
"""

import os
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median

from davit.parsing import Parser, RawHelp

CONSOLE = "import sys; from davit_command import main; sys.exit(main(sys.argv[1:]))"  # as pip's script has it
PROCESSES = {
    "python": ["-c", ""],
    "import timm": ["-c", "import timm"],
    "import timm, davit": ["-c", "import timm, davit"],
    **{
        f"davit {words}": ["-c", CONSOLE, *words.split()]
        for words in (
            "--help",
            "train --help",
            "validate --help",
            "predict --help",
            "doctor --help",
            "det train --help",
        )
    },
}


def processor_time(words: list[str]) -> float:
    """Run Python on some words; return seconds of user and system time."""
    root = str(Path(__file__).resolve().parents[1])
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {**os.environ, "PYTHONPATH": root}
    subprocess.run([sys.executable, *words], check=True, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=RawHelp)
    parser.add_argument("-n", type=int, default=7, help="measurements of each start")
    rounds = parser.parse_args().n
    times: dict[str, list[float]] = {name: [] for name in PROCESSES}
    for _ in range(rounds):
        for name, words in PROCESSES.items():
            times[name].append(processor_time(words))
    print(f"| process | processor time, s, median of {rounds} | least | most |\n|---|---:|---:|---:|")
    for name, found in times.items():
        print(f"| `{name}` | {median(found):.2f} | {min(found):.2f} | {max(found):.2f} |")
    beyond = [both - timm for both, timm in zip(times["import timm, davit"], times["import timm"], strict=True)]
    print(f"| `import davit` beyond timm | {median(beyond):.2f} | {min(beyond):.2f} | {max(beyond):.2f} |")


if __name__ == "__main__":
    main()
