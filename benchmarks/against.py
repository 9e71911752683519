"""Compare the speed of this checkout with that of another: the same steps in turn, each in a process of its own.

    git worktree add ../base COMMIT && cp davit/kernels/cpu/_native_* ../base/davit/kernels/cpu/
    python benchmarks/against.py ../base --rounds 15

A ratio is the other's time over ours, round by round: above 1 this checkout is faster. The other needs its compiled
functions beside its source: copied where the C++ is the same, else built there by `make setup`.
Writes results/against.{json,md}.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: MODEL/DTYPE/MODE/EXECUTION/BATCH/SIZE; EXECUTION plain: without kernels.
CASES = (
    "DaViT_tiny/float32/inference/eager/8/224",
    "DaViT_tiny/bfloat16/inference/eager/8/224",
    "DaViT_tiny/float32/inference/compile/8/224",
    "DaViT_tiny/bfloat16/inference/compile/8/224",
    "DaViT_tiny/float32/training/eager/8/224",
    "DaViT_tiny/amp/training/eager/8/224",
    "DaViT_tiny/float32/training/compile/8/224",
    "DaViT_tiny/float32/inference/plain/8/224",
    "DaViT_tiny/float32/training/plain/8/224",
    "DaViT_nano/float32/inference/eager/1/32",
    "DaViT_nano/float32/inference/eager/64/32",
    "DaViT_nano/float32/training/eager/64/32",
)
HERE = Path(__file__).resolve()


def serve(checkout: str, case: str) -> None:
    """Answer every line of standard input with the seconds of one step of a checkout's model, and the peak memory."""
    sys.path.insert(0, checkout)
    import resource

    import torch

    import davit

    assert Path(davit.__file__).is_relative_to(checkout), davit.__file__
    name, dtype, mode, execution, batch, size = case.split("/")
    off = {"accelerate": False} if hasattr(davit, "accelerate") else {"fused": "off"}  # as it was until c3feb10
    torch.manual_seed(0)
    model: Any = davit.create_model(name, **(off if execution == "plain" else {}))
    own = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    model = model.to(own).train(mode == "training")
    if execution == "compile":
        from torch._inductor import config

        config.freezing = mode == "inference"
        model.compile()
    image = torch.randn(int(batch), 3, int(size), int(size), dtype=own)

    def step() -> None:
        with torch.set_grad_enabled(mode == "training"):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "amp"):
                loss = model(image).float().square().mean()
            if mode == "training":
                model.zero_grad()
                loss.backward()

    for _ in range(3):
        step()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
        sys.stdout.write(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]) + "\n")
        sys.stdout.flush()


def compare(checkouts: Sequence[Path], case: str, rounds: int) -> list[list[tuple[float, int]]]:
    """Seconds and peak memory (KiB) of each checkout, round by round; the first round warms up."""
    words = [sys.executable, str(HERE), "--case", case, "--serve"]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    running = [subprocess.Popen([*words, str(checkout)], env=environment, **pipes) for checkout in checkouts]
    found: list[list[tuple[float, int]]] = [[] for _ in running]
    try:
        for process in running:
            while (line := process.stdout.readline()) != "ready\n":
                if not line:
                    raise RuntimeError(f"{case}: the process of {checkouts[running.index(process)]} ended")
        for _ in range(rounds + 1):
            for process, values in zip(running, found, strict=True):
                process.stdin.write("step\n")
                process.stdin.flush()
                values.append(tuple(json.loads(process.stdout.readline())))
    finally:
        for process in running:
            process.stdin.close()
            process.wait(timeout=60)
    return [values[1:] for values in found]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, nargs="?", help="folder of the other checkout")
    parser.add_argument(
        "--rounds", type=int, default=15, help="measurements of each case, taken in turns (default: %(default)s)"
    )
    parser.add_argument(
        "--cases", nargs="+", default=list(CASES), metavar="CASE", help="cases to measure (default: all)"
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=HERE.parent / "results",
        help="folder to write the results into (default: benchmarks/results)",
    )
    parser.add_argument("--serve", metavar="CHECKOUT", help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(options.serve, options.case)
        return 0
    if options.other is None or not (options.other / "davit/__init__.py").is_file():
        parser.error(f"{options.other} holds no davit/: name the folder of another checkout")
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds} must be 1 or more")
    from measure import table, write_report

    commit = subprocess.run(
        ["git", "-C", str(options.other), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    rows, data = [], []
    for case in options.cases:
        theirs, ours = compare([options.other.resolve(), HERE.parents[1]], case, options.rounds)
        ratios = sorted(other / own for (other, _), (own, _) in zip(theirs, ours, strict=True))
        medians = [statistics.median(seconds for seconds, _ in values) for values in (theirs, ours)]
        peaks = [values[-1][1] / 1024 for values in (theirs, ours)]
        rows.append(
            [
                f"`{case}`",
                *(f"{1e3 * seconds:.1f}" for seconds in medians),
                f"{statistics.median(ratios):.2f}",
                f"{ratios[0]:.2f} to {ratios[-1]:.2f}",
                *(f"{peak:.0f}" for peak in peaks),
            ]
        )
        data.append({"case": case, "theirs": theirs, "ours": ours})
        sys.stderr.write(" | ".join(rows[-1]) + "\n")
    header = ["case", f"{commit}, ms", "ours, ms", "ratio", "of the rounds", f"{commit}, peak MiB", "ours, peak MiB"]
    heading = f"Against {commit or options.other.name}, {options.rounds} rounds, wall time"
    path = write_report(
        "against", "This checkout against another", [(heading, table(header, rows))], data, options.folder
    )
    sys.stdout.write(path.read_text())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
