"""Make one page of tables from the JSONs of the stages: benchmarks/gpu/tables.py FOLDER writes FOLDER/gpu.md.

Also checks a rehearsal: with --complete the status is 1 unless each stage has every cell, with finite numbers.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from davit.parsing import Parser, RawHelp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from cells import is_finite
from measure import table

STAGES = ("correctness", "kernels", "models", "train", "detect", "real")


def correctness_rows(cells: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    header = ["cell", "error", "of plain", "bound", "the same again", "right"]
    rows = []
    for name, v in cells.items():
        errors = f"{v['error']:.1e}", f"{v['error_plain']:.1e}", f"{v['bound']:.0e}"
        rows.append([name, *errors, *("yes" if v[key] else "NO" for key in ("same_again", "ok"))])
    return header, rows


def kernel_rows(cells: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    header = ["kernel", "pass", "kernel, ms", "plain", "compiled", "over plain", "over compiled", "floor, ms"]
    header += ["of bandwidth", "of rate", "registers, most"]
    rows = []
    for name, v in cells.items():
        if name == "ceilings":
            continue
        registers = max((about.get("registers", 0) for about in v["launches"].values()), default=0)
        for word in ("forward", "both"):
            t = v[word]
            times = [f"{t[key]:.3f}" for key in ("kernel_ms", "plain_ms", "compiled_ms")]
            ratios = [f"{t[key]:.2f}" for key in ("over_plain", "over_compiled")]
            shares = [f"{100 * t[key]:.0f} %" for key in ("bandwidth_share", "rate_share")]
            rows.append([name, word, *times, *ratios, f"{t['floor_ms']:.3f}", *shares, str(registers or "-")])
    return header, rows


def case_rows(cells: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    header = ["case", "images/s", "speed, ratio", "p50, ms", "p99, ms", "peak, MiB", "memory, ratio", "rounds"]
    rows = [
        [
            name, f"{v['images_per_second']:.0f}", f"{v['ratio']:.2f}" if v["ratio"] else "-", f"{v['p50_ms']:.2f}",
            f"{v['p99_ms']:.2f}", f"{v['peak_bytes'] / 2**20:.0f}",
            f"{v['memory_ratio']:.2f}" if v["memory_ratio"] else "-", str(v["rounds"]),
        ]
        for name, v in cells.items()
    ]  # fmt: skip
    return header, rows


def real_rows(cells: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    header = ["model", "epochs", "seconds", "images/s", "share of waiting for data", "peak, MB", "best top-1, %"]
    rows = []
    for name, v in cells.items():
        speed = f"{v['images_per_second']:.0f}", f"{v['data_share']:.2f}", f"{v['peak_memory_mb']:.0f}"
        rows.append([name, str(v["epochs"]), f"{v['seconds']:.0f}", *speed, f"{v['best_top1']:.1f}"])
    return header, rows


ROWS = {"correctness": correctness_rows, "kernels": kernel_rows, "real": real_rows}


def section(stage: str, data: dict[str, Any]) -> str:
    around, cells = data["environment"], data["cells"]
    card = f"{around['gpu']}, driver {around['driver']}"
    versions = ", ".join(f"{key} {around[key]}" for key in ("torch", "triton", "timm", "davit", "source"))
    lines = [f"## {stage}", "", f"{around['date']}; {card}; {versions}."]
    if around["rehearsal"]:
        lines.append("**A rehearsal on the CPU with tiny sizes: the numbers mean nothing.**")
    if top := cells.get("ceilings"):
        rates = top["bytes_per_second"] / 1e12, top["operations_per_second"] / 1e12
        lines += ["", f"Ceilings: a copy moves {rates[0]:.2f} TB/s, a bfloat16 product does {rates[1]:.0f} TFLOP/s."]
    header, rows = ROWS.get(stage, case_rows)(cells)
    if broken := data.get("left_to_pytorch"):
        lines += ["", f"**Computed by PyTorch, since the stage correctness found them broken: {', '.join(broken)}.**"]
    lines += ["", table(header, rows) if rows else "No cell was measured.", ""]
    lines += [f"- failed: {name}: {reason.splitlines()[0][:200]}" for name, reason in data["failed"].items()]
    if data["not_reached"]:
        lines.append(f"- not reached in the time: {'; '.join(data['not_reached'])}")
    return "\n".join(lines).rstrip() + "\n"


def faults(stage: str, data: dict[str, Any]) -> list[str]:
    """List what keeps a stage from being complete."""
    found = [f"{stage}: {name} failed: {reason}" for name, reason in data["failed"].items()]
    found += [f"{stage}: {name} was not reached" for name in data["not_reached"]]
    for name, values in data["cells"].items():
        if not is_finite(values) or not values.get("ok", True):
            found.append(f"{stage}: {name} is not finite, or wrong: {values}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=RawHelp)
    parser.add_argument("folder", type=Path, help="folder of the results")
    parser.add_argument("--complete", action="store_true", help="all stages are done: write the final tables")
    options = parser.parse_args(arguments)
    sections, found = [], []
    for stage in STAGES:
        path = options.folder / f"{stage}.json"
        if path.is_file():
            data = json.loads(path.read_text())
            try:
                sections.append(section(stage, data))
            except (AttributeError, KeyError, TypeError) as error:  # the others are shown all the same
                sections.append(f"## {stage}\n\nNo table: {type(error).__name__}: {error}\n")
                found.append(f"{stage}: {type(error).__name__}: {error}")
            found += faults(stage, data)
        else:
            found.append(f"{stage}: {path} is not there")
    text = "# Measured on a CUDA machine\n\n`benchmarks/gpu/run.sh`; errors by norm, against float64; " + (
        "a ratio is the time of its group's first case over its own, round by round.\n\n" + "\n".join(sections)
    )
    (options.folder / "gpu.md").write_text(text)
    sys.stdout.write(text)
    if options.complete:
        sys.stderr.writelines(f"{line}\n" for line in found)
    return int(bool(options.complete and found))


if __name__ == "__main__":
    sys.exit(main())
