"""Time a block of Florence-2's channel attention by its modules and by kernels, and DaViT's beside it.

    python benchmarks/florence2.py                  # the stages of Florence-2-base, one image of 768 px
    python benchmarks/florence2.py --size 384 --clock cpu --threads 1

Modules and kernels take turns within a round. A cell is the median over the rounds of modules' time over kernels',
and the range of that ratio. Writes results/florence2.{json,md}.
"""

import copy
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from measure import CLOCKS, DTYPES, RESULTS, table, takes_bfloat16, write_report

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from davit import VARIANTS, accelerate
from davit.model import ChannelAttention, ChannelAttentionQK, DualAttentionBlock
from davit.parsing import Parser, RawHelp

KINDS = {"Florence-2's": ChannelAttentionQK, "DaViT's": ChannelAttention}


def steps(kind: str, side: int, C: int, dtype: torch.dtype, train: bool) -> dict[str, Callable[[], torch.Tensor]]:
    """Run one block, or one block with its backward pass, by its modules and by kernels."""
    modules = DualAttentionBlock(C, KINDS[kind](C, C // 32, True), 4.0, 0.0, False, torch.nn.LayerNorm).to(dtype)
    modules.train(train)
    x = torch.randn(1, side, side, C).to(dtype).requires_grad_(train)
    grad = torch.randn(1, side, side, C).to(dtype)

    def step(block: torch.nn.Module) -> Callable[[], torch.Tensor]:
        def infer() -> torch.Tensor:
            with torch.no_grad():
                return block(x)

        return (lambda: torch.autograd.grad(block(x), [x, *block.parameters()], grad)[0]) if train else infer

    return {"modules": step(modules), "kernels": step(accelerate(copy.deepcopy(modules)))}


def timed(ways: dict[str, Callable[[], torch.Tensor]], rounds: int, clock: str) -> dict[str, list[float]]:
    """Time the ways in turn, after one round that warms up; return milliseconds."""
    now, seconds = CLOCKS[clock], {name: [] for name in ways}  # type: ignore[var-annotated]
    for number in range(rounds + 1):
        for name, way in ways.items():
            start = now()
            way()
            if number:
                seconds[name].append(1e3 * (now() - start))
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=RawHelp)
    parser.add_argument("--size", type=int, default=768, help="side of the image in pixels")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each case, taken in turns")
    parser.add_argument("--threads", type=int, default=0, help="threads that compute; 0 is PyTorch's choice")
    parser.add_argument(
        "--clock",
        choices=tuple(CLOCKS),
        default="wall",
        help="measure wall time, or processor time, which other programs on the machine disturb less",
    )
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=("float32", "bfloat16"),
        default=["float32", "bfloat16"],
        help="dtypes to measure",
    )
    parser.add_argument(
        "--widths",
        nargs="+",
        type=int,
        default=VARIANTS["DaViT_base_fl"].embed_dims,
        help="channels of the blocks to measure",
    )
    parser.add_argument("--folder", type=Path, default=RESULTS, help="folder to write the results into")
    options = parser.parse_args(arguments)
    if options.size < 1 or options.rounds < 1:
        parser.error("--size and --rounds must be 1 or more")
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    sections, data = [], []
    for name in options.dtypes:
        if name == "bfloat16" and not takes_bfloat16("cpu", False, "--dtypes bfloat16"):
            continue
        for train in (False, True):
            rows = []
            for stage, C in enumerate(options.widths):
                side = -(-options.size // (4 << stage))
                row = [f"{side} x {side} x {C}"]
                for kind in KINDS:
                    found = timed(steps(kind, side, C, DTYPES[name], train), options.rounds, options.clock)
                    ratios = [a / b for a, b in zip(found["modules"], found["kernels"], strict=True)]
                    entry = {"dtype": name, "train": train, "map": row[0], "kind": kind, **found}
                    data.append(entry)
                    row.append(f"{statistics.median(found['modules']):.1f}, {statistics.median(found['kernels']):.1f}")
                    row.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
                rows.append(row)
            header = ["map", *(text for kind in KINDS for text in (f"{kind}: modules, kernels, ms", "ratio"))]
            what = "forward and backward" if train else "inference"
            sections.append((f"A block of channel attention, {what}, {name}", table(header, rows)))
    path = write_report("florence2", "Florence-2's channel attention on the CPU", sections, data, options.folder)
    sys.stdout.write(path.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
