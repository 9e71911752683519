"""Measure images per second, latency and peak memory, ours against named peers, by turns in separate processes.

    python benchmarks/throughput.py --suite targets                      # the comparisons of docs/performance.md
    python benchmarks/throughput.py --device cuda --suite all            # everything that a CUDA machine can show
    python benchmarks/throughput.py --cases DaViT_tiny/float32/eager davit_tiny/float32/eager --mode training

Every case runs in a process of its own, two steps a turn, the second timed: A B C, A B C, ... The first case is the
reference: ratios are its time over the case's time in the same round, so above 1 is faster than the reference.

A suite leaves bfloat16 out on a CPU that has no instructions for it, and says so; --bfloat16 insists.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from measure import (
    CLOCKS,
    MODES,
    RESULTS,
    TASKS,
    Case,
    as_data,
    compare,
    comparison_table,
    parsed_case,
    size_argument,
    takes_bfloat16,
    write_report,
)

from davit.parsing import Parser, RawHelp

BFLOAT16 = ("bfloat16", "amp")  # the dtypes whose products are in bfloat16
PEERS = {
    "tiny": ("davit_tiny", "swin_tiny_patch4_window7_224", "convnext_tiny"),
    "small": ("davit_small", "swin_small_patch4_window7_224", "convnext_small"),
    "base": ("davit_base", "swin_base_patch4_window7_224", "convnext_base"),
}


def cpu_targets(common: dict[str, Any]) -> list[tuple[str, list[Case]]]:
    """List comparisons; the first case of each, timm's port in eager float32, is the reference."""
    infer = ["davit_tiny/float32/eager", "DaViT_tiny:plain/float32/eager", "DaViT_tiny/float32/eager"]
    infer += ["davit_tiny/bfloat16/eager", "DaViT_tiny:plain/bfloat16/eager", "DaViT_tiny/bfloat16/eager"]
    compiled = [
        f"{model}/{dtype}/compile" for dtype in ("float32", "bfloat16") for model in ("davit_tiny", "DaViT_tiny")
    ]
    train = [
        f"{model}/{dtype}/eager"
        for dtype in ("float32", "amp")
        for model in ("davit_tiny", "DaViT_tiny:plain", "DaViT_tiny")
    ]
    peers = ["davit_tiny/float32/eager", *(f"{peer}/float32/eager" for peer in ("DaViT_tiny", *PEERS["tiny"][1:]))]
    return [
        ("Inference", cases(infer, common, mode="inference")),
        ("Inference, compiled", cases(["davit_tiny/float32/eager", *compiled], common, mode="inference")),
        ("Training", cases(train, common, mode="training")),
        ("Inference, other architectures", cases(peers, common, mode="inference")),
        ("Training, other architectures", cases(peers, common, mode="training")),
    ]


def cuda_targets(common: dict[str, Any], everything: bool) -> list[tuple[str, list[Case]]]:
    sections = []
    for size, peers in PEERS.items() if everything else [("tiny", PEERS["tiny"])]:
        ours = f"DaViT_{size}"
        for mode, dtype in (("inference", "bfloat16"), ("training", "amp")):
            names = [f"{peers[0]}/{dtype}/eager"]
            names += [
                f"{model}/{dtype}/{way}" for way in ("eager", "compile") for model in (ours, f"{ours}:plain", *peers)
            ]
            sections.append((f"{size}, {mode}", cases(list(dict.fromkeys(names)), common, mode=mode)))
    large = {**common, "task": "pyramid", "size": (800, 1333), "batch": 8}
    names = [
        f"{model}/bfloat16/{way}"
        for way in ("eager", "compile")
        for model in ("davit_tiny", "DaViT_tiny", "DaViT_tiny:plain")
    ]
    sections.append(("pyramid at 800 x 1333, inference", cases(names, large, mode="inference")))
    return sections


def cases(names: Sequence[str], common: dict[str, Any], **more: Any) -> list[Case]:
    return [parsed_case(name, **{**common, **more}) for name in names]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=RawHelp)
    parser.add_argument("--suite", choices=("targets", "all"), help="measure a list of comparisons instead of --cases")
    parser.add_argument(
        "--cases",
        nargs="+",
        default=[],
        metavar="MODEL/DTYPE/EXECUTION",
        help="cases to measure; the first is the reference",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device to measure on")
    parser.add_argument("--mode", choices=MODES, default="inference", help="what to measure")
    parser.add_argument(
        "--task", choices=TASKS, default="classify", help="output of the model: logits, or the maps of a backbone"
    )
    parser.add_argument("--batch", type=int, help="images in a batch (default: 8 on the CPU, 256 on CUDA)")
    parser.add_argument(
        "--size",
        type=size_argument,
        default=(224, 224),
        metavar="PIXELS",
        help="side, or height and width, of the images, such as 224 or 800x1333",
    )
    parser.add_argument("--threads", type=int, default=0, help="threads that compute; 0 is PyTorch's choice")
    parser.add_argument(
        "--channels-last", action="store_true", help="use the channels-last memory format for images and weights"
    )
    parser.add_argument(
        "--clock",
        choices=tuple(CLOCKS),
        default="wall",
        help="measure wall time, or processor time, which other programs on the machine disturb less",
    )
    parser.add_argument(
        "--bfloat16",
        action="store_true",
        help="with --suite: measure bfloat16 also on a CPU without instructions for it",
    )
    parser.add_argument("--rounds", type=int, default=15, help="measurements of each case, taken in turns")
    parser.add_argument("--only", help="with --suite: measure only the comparisons whose heading contains this")
    parser.add_argument("--name", default="throughput", help="the results are written into NAME.json and NAME.md")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="folder to write the results into")
    options = parser.parse_args(arguments)
    common = {
        "device": options.device,
        "batch": options.batch or (8 if options.device == "cpu" else 256),
        "size": options.size,
        "threads": options.threads,
        "channels_last": options.channels_last,
        "clock": options.clock,
    }
    if (options.batch is not None and options.batch < 1) or options.rounds < 1:
        parser.error("--batch and --rounds must be 1 or more")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no CUDA device that PyTorch can use, so nothing was measured")
    try:
        if options.suite:
            targets = cpu_targets(common) if options.device == "cpu" else cuda_targets(common, options.suite == "all")
        else:
            targets = [("", cases(options.cases, common, mode=options.mode, task=options.task))]
    except ValueError as error:
        parser.error(str(error))
    if options.only:
        targets = [target for target in targets if options.only.lower() in target[0].lower()]
    if not targets or not all(listed for _, listed in targets):
        parser.error("nothing to measure: give --suite or --cases")
    if any(case.dtype in BFLOAT16 for _, listed in targets for case in listed):
        if not takes_bfloat16(options.device, options.bfloat16 or not options.suite, "--bfloat16"):
            targets = [
                (heading, [case for case in listed if case.dtype not in BFLOAT16]) for heading, listed in targets
            ]
    return run(targets, options)


def run(targets: list[tuple[str, list[Case]]], options: argparse.Namespace) -> int:
    sections, data = [], {}
    for heading, listed in targets:
        sys.stderr.write(f"== {heading or 'cases'}; load {os.getloadavg()[0]:.1f}\n")
        results = compare(listed, listed[0], options.rounds, lambda line: sys.stderr.write(line + "\n") and None)
        if not results:
            return 1
        sections.append(
            (
                f"{heading} (batch {listed[0].batch}, {options.rounds} rounds, {options.clock} time)",
                comparison_table(results),
            )
        )
        data[heading or "cases"] = as_data(results)
        path = write_report(options.name, "Throughput", sections, data, options.folder)
    sys.stdout.write(path.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
