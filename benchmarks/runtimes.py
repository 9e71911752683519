#!/usr/bin/env python3
"""Compare runtimes on this machine's CPU: PyTorch with our kernels, torch.compile, ONNX Runtime, OpenVINO, also int8.

python benchmarks/runtimes.py speed                         # DaViT_tiny at 224, batch 1 and 8, two threads
python benchmarks/runtimes.py int8 CHECKPOINT DATA --name digits    # drop, size and p50 of each int8 export
make demo-det && python benchmarks/runtimes.py int8 output/demo-det/epoch_3.pth data/scenes --name "digit scenes" \
    --config mmdet/configs/davit_nano_maskrcnn_digits.py --formats onnx xml

Runs take turns, one of each runtime at a time in an order drawn anew, so that what else the machine does meets all of
them; a pause lets the threads of the last one sleep. Ratios are of medians over these turns. OMP_WAIT_POLICY=passive
slows PyTorch alone, as the other runtimes have threads of their own: `speed` refuses to run with it. Each call adds
its rows to benchmarks/results/runtimes.json and writes runtimes.md anew.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import davit
from davit.export import ExportOptions, export
from davit.export.int8.quantize import quantize
from davit.export.options import Int8Options
from davit.files import write_bytes
from davit.parsing import Parser, RawHelp
from davit.runtimes import open_exported

RESULTS = Path(__file__).parent / "results"
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8")
PAUSE = 0.1  # seconds; threads of ONNX Runtime and OpenVINO spin for a while after a run
SCORES = {"top1": "top-1", "ap50": "AP50, boxes", "mask_ap50": "AP50, masks"}
FORMATS = {"onnx": "ONNX Runtime", "xml": "OpenVINO", "pt2": "torch.export"}

log = logging.getLogger(__name__)


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = Parser(description=__doc__, formatter_class=RawHelp)
    commands = parser.add_subparsers(dest="command", required=True)
    speed = commands.add_parser("speed")
    speed.add_argument("--model", default="DaViT_tiny", help="model to measure")
    speed.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    speed.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="batch sizes to measure")
    speed.add_argument("--turns", type=int, default=31, help="measurements of each runtime")
    speed.add_argument("--threads", type=int, default=2, help="threads that compute")
    int8 = commands.add_parser("int8")
    int8.add_argument("checkpoint", help="checkpoint to export")
    int8.add_argument("data", help="data set to calibrate and evaluate with")
    int8.add_argument("--name", required=True, help="name of the rows in the table")
    int8.add_argument("--calibration", type=int, default=128, help="training images to calibrate with")
    int8.add_argument("--config", help="config of a detector's checkpoint")
    int8.add_argument(
        "--formats", nargs="+", choices=list(FORMATS), default=["onnx", "xml", "pt2"], help="formats to compare"
    )
    args = parser.parse_args()
    rows = _speed(args) if args.command == "speed" else _int8(args)
    _write(args.command, rows)
    return 0


def _speed(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time one model of random weights in every runtime."""
    if os.environ.get("OMP_WAIT_POLICY", "").lower() == "passive":
        raise SystemExit("OMP_WAIT_POLICY=passive slows PyTorch alone: unset it to compare runtimes.")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = davit.create_model(args.model, num_classes=10).eval()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        noted = {"model": args.model, "img_size": args.size, "crop_pct": 1.0}
        torch.save(
            {"state_dict": model.state_dict(), "args": noted, "class_names": list("abcdefghij")}, root / "m.pth"
        )
        data = _noise(root / "data", args.size)
        runs: dict[str, Callable[[Tensor], object]] = {"PyTorch, our kernels": model}
        runs["PyTorch, plain modules"] = davit.plain(davit.create_model(args.model, num_classes=10).eval())
        compiled = torch.compile(davit.plain(davit.create_model(args.model, num_classes=10).eval()), dynamic=False)
        runs["torch.compile"] = compiled  # compiled for each batch by itself, in the turns that do not count
        for suffix in ("onnx", "xml"):
            path = export(root / "m.pth", root / f"float.{suffix}", ExportOptions(check=False)).path
            runs[f"{FORMATS[suffix]}, float32"] = open_exported(path, threads=args.threads)
            small = root / f"int8.{suffix}"
            quantize(path, small, Int8Options(str(data), max_drop=100, calibration=8))
            runs[f"{FORMATS[suffix]}, int8"] = open_exported(small, threads=args.threads)
        return [row for batch in args.batches for row in _timed(runs, batch, args)]


def _timed(runs: dict[str, Callable[[Tensor], object]], batch: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    images = torch.randn(batch, 3, args.size, args.size)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    order, draw = list(runs), random.Random(0)
    for turn in range(args.turns + 2):
        draw.shuffle(order)
        for name in order:
            run = runs[name]
            time.sleep(PAUSE)
            started = time.perf_counter()
            with torch.inference_mode():
                run(images)
            if turn >= 2:
                taken[name].append(time.perf_counter() - started)
    ours = statistics.median(taken["PyTorch, our kernels"])
    rows = []
    for name, times in taken.items():
        p50 = statistics.median(times)
        rows.append(
            {
                "runtime": name,
                "model": args.model,
                "size": args.size,
                "batch": batch,
                "p50_ms": round(1e3 * p50, 2),
                "best_ms": round(1e3 * min(times), 2),
                "images_per_second": round(batch / p50, 2),
                "relative_to_ours": round(ours / p50, 3),
                "turns": args.turns,
                "threads": args.threads,
                **_machine(),
            }
        )
        log.info("%s", rows[-1])
    return rows


def _int8(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Quantize a trained model in each format."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for suffix in args.formats:
            asked = ExportOptions(check=False, config=args.config)
            path = export(args.checkpoint, Path(folder) / f"float.{suffix}", asked).path
            options = Int8Options(args.data, max_drop=100, calibration=args.calibration)
            facts = dict(quantize(path, Path(folder) / f"int8.{suffix}", options).int8 or {})
            rows.append({"data": args.name, "runtime": FORMATS[suffix], **facts, **_machine()})
            log.info("%s", rows[-1])
    return rows


def _noise(root: Path, size: int) -> Path:
    """Write a few pictures of noise: speed does not depend on what is in them."""
    from PIL import Image

    for split in ("train", "val"):
        for index, name in enumerate("abcdefghij"):
            place = root / split / name
            place.mkdir(parents=True)
            pixels = torch.randint(
                256, (size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(index)
            )
            Image.fromarray(pixels.numpy()).save(place / "0.png")
    return root


def _machine() -> dict[str, str]:
    """Name the processor and those of its instructions that matter here."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {"processor": platform.processor(), "instructions": ""}
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines) if value}
    has = found.get("flags", "").split()
    return {"processor": found.get("model name", ""), "instructions": " ".join(flag for flag in FLAGS if flag in has)}


def _write(kind: str, rows: list[dict[str, Any]]) -> None:
    file = RESULTS / "runtimes.json"
    kept: dict[str, list[dict[str, Any]]] = json.loads(file.read_text()) if file.is_file() else {}
    keys = ("data", "runtime", "model", "size", "batch")
    new = [tuple(row.get(key) for key in keys) for row in rows]
    old = [row for row in kept.get(kind, []) if tuple(row.get(key) for key in keys) not in new]
    kept[kind] = [*old, *rows]
    write_bytes(file, f"{json.dumps(kept, indent=1)}\n".encode())
    write_bytes(RESULTS / "runtimes.md", _table(kept).encode())


def _table(kept: dict[str, list[dict[str, Any]]]) -> str:
    lines = ["# Runtimes on the CPU", "", "Made by `python benchmarks/runtimes.py`, whose docstring says how.", ""]
    if rows := kept.get("speed"):
        one = rows[-1]
        lines += [
            f"## Speed: {one['processor']} ({one['instructions']}), {one['threads']} threads",
            "",
            "| model | pixels | batch | runtime | p50 ms | images/s | against ours |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            lines.append(
                f"| {row['model']} | {row['size']} | {row['batch']} | {row['runtime']} | {row['p50_ms']} | "
                f"{row['images_per_second']} | {row['relative_to_ours']} |"
            )
        lines.append("")
    if rows := kept.get("int8"):
        lines += [
            "## int8",
            "",
            "Scores are in percent of the validation pictures. Weights have 7 of the 8 bits (torch.export: 8).",
            "The last column names the groups of operations that stay in float.",
            "",
            "| data | runtime | pictures | score | float | int8 | drop | MB | int8 | p50 ms | int8 | in float |",
            "|---|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in rows:
            left = ", ".join(name for name, group in row["groups"].items() if not group["int8"]) or "none"
            for score in row.get("scores", ["top1"]):
                cells = [row["data"], row["runtime"], row["pictures"], SCORES[score]]
                before, after = row[f"{score}_float"], row[score]
                cells += [f"{before:.2f}", f"{after:.2f}", f"{before - after:+.2f}"]
                cells += [f"{row['bytes_float'] / 1e6:.2f}", f"{row['bytes'] / 1e6:.2f}"]
                lines.append(f"| {' | '.join(map(str, [*cells, row['p50_ms_float'], row['p50_ms'], left]))} |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
