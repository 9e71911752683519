"""Time what the CPU path chooses between.

Linear layers, MLPs and window attention at the sizes of DaViT_tiny's four stages; channel attention with gradients by
q, k and v or by the Gram matrix; blocks of few positions, with threads that share rows or columns; the size of the
parts that a batch is cut into; and the size of the input from which kernels run blocks.

    python benchmarks/cpu_choices.py            # batch 8, 224 px, PyTorch's number of threads
    python benchmarks/cpu_choices.py --threads 1 --clock cpu

Candidates take turns within a round; times are medians over the rounds. Writes results/cpu_choices.{json,md}.
"""

import argparse
import copy
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from measure import CLOCKS, RESULTS, table, takes_bfloat16, write_report

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import davit
from davit.kernels import conditions, modules, ops, training
from davit.kernels.cpu import native, onednn
from davit.model import ChannelAttention, DualAttentionBlock
from davit.parsing import Parser, RawHelp
from davit.variants import VARIANTS
from davit.windows import window_partition, window_unpartition

#: Images, side and channels, from 416 positions for each channel down to 0.5.
CHANNEL_MAPS = (
    *((1, 200, 96), (1, 100, 192), (8, 56, 96), (8, 56, 128), (2, 56, 128), (2, 48, 192)),
    *((2, 40, 384), (8, 28, 192), (8, 28, 256), (8, 14, 384)),
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Step = Callable[[], Any]


def timed(candidates: dict[str, Step], rounds: int, clock: str) -> dict[str, float]:
    """Time candidates in turn; return the milliseconds of each."""
    now = CLOCKS[clock]
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 2):
        for name, step in candidates.items():
            start = now()
            step()
            if number >= 2:  # the first two warm up
                seconds[name].append(now() - start)
    return {name: 1e3 * statistics.median(found) for name, found in seconds.items()}


def linear_layers(rows: int, width_in: int, width_out: int, dtype: torch.dtype) -> dict[str, Step]:
    """Compute one linear layer in each of the possible ways."""
    x, weight = torch.randn(rows, width_in, dtype=dtype), torch.randn(width_out, width_in, dtype=dtype)
    bias = torch.randn(width_out, dtype=dtype)
    image, kernel = x.view(1, rows, 1, width_in).permute(0, 3, 1, 2), weight[:, :, None, None]
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)

    def by_packed(weight: torch.Tensor) -> torch.Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    ways = {
        "F.linear": lambda: F.linear(x, weight, bias),
        "oneDNN": lambda: onednn.linear(x, weight, bias),
        "oneDNN, packed": lambda: by_packed(packed),
        "packed each call": lambda: by_packed(torch.ops.mkldnn._reorder_linear_weight(weight, rows)),
        "1x1 convolution": lambda: F.conv2d(image, kernel, bias),
        "oneDNN + GELU": lambda: onednn.linear(x, weight, bias, "gelu"),
    }
    return ways | ({"native": lambda: native.linear(x, weight, bias)} if native.has_products(dtype) else {})


def mlps(rows: int, C: int, dtype: torch.dtype) -> dict[str, Step]:
    """Compute a norm, an MLP and its residual in each of the possible ways."""
    x, norm_weight, norm_bias = torch.randn(rows, C).to(dtype), torch.ones(C, dtype=dtype), torch.zeros(C, dtype=dtype)
    weight1, weight2 = torch.randn(4 * C, C).to(dtype) * C**-0.5, torch.randn(C, 4 * C).to(dtype) * C**-0.5
    bias1, bias2 = torch.zeros(4 * C, dtype=dtype), torch.zeros(C, dtype=dtype)
    part = max(64, onednn.PART_BYTES // (4 * C * x.element_size()))

    def plain() -> torch.Tensor:
        return x + F.linear(
            F.gelu(F.linear(F.layer_norm(x, (C,), norm_weight, norm_bias), weight1, bias1)), weight2, bias2
        )

    def by_onednn() -> torch.Tensor:
        y = F.layer_norm(x, (C,), norm_weight, norm_bias)
        parts = [
            onednn.linear_add(onednn.linear(y_part, weight1, bias1, "gelu"), weight2, bias2, x_part)
            for x_part, y_part in zip(x.split(part), y.split(part), strict=True)
        ]
        return torch.cat(parts)

    norm = native.NormArgs(norm_weight, norm_bias, 1e-5)
    ways: dict[str, Step] = {"plain": plain, "oneDNN": by_onednn}
    if native.has_products(dtype):
        ways["native"] = lambda: native.mlp(x, norm, weight1, bias1, weight2, bias2).add_(x)
    return ways


def window_products(batch: int, side: int, heads: int, dim: int, dtype: torch.dtype) -> dict[str, Step]:
    """Compute window attention from the map of q, k and v, with and without its backward pass."""
    window = 7
    qkv = torch.randn(batch, side, side, 3 * heads * dim, dtype=dtype, requires_grad=True)
    grad = torch.randn(batch, side, side, heads * dim, dtype=dtype)

    def fused() -> torch.Tensor:
        windows, tiling = window_partition(qkv, window, None)
        q, k, v = windows.view(len(windows), window**2, 3, heads, dim).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(windows), window**2, -1)
        return window_unpartition(x, window, tiling, (side, side))

    def both(attend: Step) -> Step:
        return lambda: torch.autograd.grad(attend(), qkv, grad)

    ways: dict[str, Step] = {
        "plain": lambda: ops.window_formula(qkv, None, window, heads),
        "PyTorch's": fused,
        "native": lambda: ops.window_attention(qkv, None, window, heads),
    }
    forward: dict[str, Step] = {f"{name}, forward": lambda way=way: way().detach() for name, way in ways.items()}
    return forward | {f"{name}, both": both(way) for name, way in ways.items()}


def channel_layers(batch: int, side: int, C: int, dtype: torch.dtype) -> dict[str, Step]:
    """Compute norm, channel attention and projection of a map, with gradients, in each of the possible ways."""
    block = DualAttentionBlock(C, ChannelAttention(C, C // 32, True), None, 0.0, False, torch.nn.LayerNorm).to(dtype)
    x = torch.randn(batch, side, side, C, dtype=dtype, requires_grad=True)
    grad, leaves = torch.randn_like(x), [x, *block.norm1.parameters(), *block.attn.parameters()]

    def plainly() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(block.attn(block.norm1(x)), leaves, grad)

    def by(gram: bool) -> tuple[torch.Tensor, ...]:
        with patch.object(training, "gram_is_faster", lambda *_: gram):
            return torch.autograd.grad(modules.attend_in_training(block, x), leaves, grad)

    return {"plain": plainly, "q, k and v": lambda: by(gram=False), "Gram matrix": lambda: by(gram=True)}


def engines(batch: int) -> dict[str, Step]:
    """Run DaViT_tiny by its modules, by oneDNN (as without a compiler at installation) and by native.cpp."""
    model, plain = davit.create_model("DaViT_tiny").eval(), davit.create_model("DaViT_tiny", accelerate=False).eval()
    image = torch.randn(batch, 3, 224, 224)

    def by_onednn() -> None:
        with patch.object(native, "LIBRARY", None):
            model(image)

    return {"modules": lambda: plain(image), "oneDNN": by_onednn, "native": lambda: model(image)}


def few_positions(side: int, C: int, dtype: torch.dtype) -> dict[str, Step]:
    """Infer blocks of one small map in turn, as many as the last cache cannot hold the weights of."""
    count = max(2, 64 * 2**20 // (12 * C * C * dtype.itemsize))
    blocks = [copy.deepcopy(_block(C, dtype)) for _ in range(count)]
    given = [modules.block_arguments(block) for block in blocks]
    x = torch.randn(1, side, side, C).to(dtype)

    def by_rows() -> list[torch.Tensor]:
        return [native.infer_block(x, *one, native.pack_block(one[0], one[2])) for one in given]

    def by_columns() -> list[torch.Tensor]:
        return [native.infer_block(x, *one) for one in given]

    def by_layers() -> list[torch.Tensor]:
        way = modules.WAYS["onednn" if dtype == torch.float32 else "spans"]
        return [way(block, x) for block in blocks]

    return {"PyTorch or oneDNN": by_layers, "threads share rows": by_rows, "threads share columns": by_columns}


def _block(C: int, dtype: torch.dtype) -> DualAttentionBlock:
    attention = ChannelAttention(C, C // 32, qkv_bias=True)
    block = DualAttentionBlock(C, attention, 4.0, 0.0, False, torch.nn.LayerNorm).to(dtype)
    return block.eval().requires_grad_(False)


def part_sizes(batch: int) -> dict[str, Step]:
    """Run DaViT_tiny by oneDNN's products, with the batch cut into parts of several sizes."""
    model = davit.create_model("DaViT_tiny").eval()
    image = torch.randn(batch, 3, 224, 224)

    def with_parts(megabytes: int) -> Step:
        def step() -> None:
            with (
                patch.object(onednn, "PART_BYTES", megabytes << 20),
                patch.multiple(native, MIN_ROWS=1 << 40, FEW_POSITIONS=0),
            ):
                model(image)

        return step

    return {f"{megabytes} MB": with_parts(megabytes) for megabytes in (1, 2, 4, 8, 16, 32, 1024)}


def small_inputs(side: int) -> dict[str, Step]:
    """Train DaViT_nano for one step on small pictures: plain, by kernels around PyTorch's layers, by our Functions."""
    model = davit.create_model("DaViT_nano", num_classes=10)
    stock = davit.plain(copy.deepcopy(model))
    image = torch.randn(64, 3, side, side)

    def with_least(work: int) -> Step:
        def step() -> None:
            with patch.object(conditions, "MIN_WORK_TO_TRAIN", work):
                model(image).sum().backward()

        return step

    return {"plain": lambda: stock(image).sum().backward(), "spans": with_least(1 << 62), "training": with_least(0)}


def dtypes_to_time(asked: Sequence[str] | None) -> list[torch.dtype]:
    """Choose the dtypes asked for; otherwise all that this processor is fast in."""
    names = list(asked or DTYPES)
    if "bfloat16" in names and not takes_bfloat16("cpu", asked is not None, "--dtypes float32 bfloat16"):
        names.remove("bfloat16")
    return [DTYPES[name] for name in names]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=RawHelp)
    parser.add_argument("--batch", type=int, default=8, help="images in a batch")
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
        choices=tuple(DTYPES),
        help="dtypes to measure (default: all; on a CPU without instructions for bfloat16 float32)",
    )
    parser.add_argument("--folder", type=Path, default=RESULTS, help="folder to write the results into")
    options = parser.parse_args(arguments)
    if options.batch < 1 or options.rounds < 1:
        parser.error("--batch and --rounds must be 1 or more")
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    variant = VARIANTS["DaViT_tiny"].model_kwargs()
    stages = list(zip((56, 28, 14, 7), variant["embed_dims"], variant["num_heads"], strict=True))
    sections, data = [], []
    for dtype in dtypes_to_time(options.dtypes):
        rows = []
        for side, C, _ in stages:
            for width_in, width_out in ((C, 3 * C), (C, C), (C, 4 * C), (4 * C, C)):
                with torch.no_grad():
                    step = linear_layers(options.batch * side * side, width_in, width_out, dtype)
                    rows.append((f"{options.batch * side * side} x {width_in} to {width_out}", step))
        sections.append(section(f"Linear layers, {dtype}, ms", rows, options, data, total=True))
        with torch.no_grad():
            rows = [
                (f"{options.batch * side**2} x {C}", mlps(options.batch * side**2, C, dtype)) for side, C, _ in stages
            ]
        sections.append(section(f"Norm and MLP, {dtype}, ms", rows, options, data, total=True))
        rows = [
            (f"stage {i + 1}", window_products(options.batch, side, heads, C // heads, dtype))
            for i, (side, C, heads) in enumerate(stages)
        ]
        sections.append(section(f"Window attention, {dtype}, ms", rows, options, data, grad=True, total=True))
        rows = [
            (f"{images} x {side} x {side} x {C}", channel_layers(images, side, C, dtype))
            for images, side, C in CHANNEL_MAPS
        ]
        heading = f"Norm and channel attention, forward and backward, {dtype}, ms"
        sections.append(section(heading, rows, options, data, grad=True))
        rows = [
            (f"{side} x {side} x {C}", few_positions(side, C, dtype))
            for side, C in (
                (4, 192),
                (10, 192),
                (16, 192),
                (4, 384),
                (7, 384),
                (14, 384),
                (3, 768),
                (7, 768),
                (12, 768),
            )
        ]
        sections.append(section(f"Blocks of one small map, weights read anew, {dtype}, ms", rows, options, data))
        if dtype == torch.float32:
            rows = [(f"batch {options.batch}", part_sizes(options.batch))]
            heading = f"Parts of the batch, inference of DaViT_tiny by oneDNN, {dtype}, ms"
            sections.append(section(heading, rows, options, data))
            rows = [(f"batch {options.batch}", engines(options.batch))]
            heading = f"Inference of DaViT_tiny by each engine, {dtype}, ms"
            sections.append(section(heading, rows, options, data))
    rows = [(f"{side} px", small_inputs(side)) for side in (32, 64, 128)]
    sections.append(section("Small inputs, training of DaViT_nano, batch 64, ms", rows, options, data, grad=True))
    path = write_report("cpu_choices", "What the CPU path chose between", sections, data, options.folder)
    sys.stdout.write(path.read_text())
    return 0


def section(
    heading: str,
    rows: Sequence[tuple[str, dict[str, Step]]],
    options: argparse.Namespace,
    data: list[Any],
    grad: bool = False,
    total: bool = False,
) -> tuple[str, str]:
    """Time the rows; return a heading and a table, with ``total`` the sums in its last line."""
    found = []
    for name, candidates in rows:
        with torch.set_grad_enabled(grad):
            found.append((name, timed(candidates, options.rounds, options.clock)))
        data.append({"section": heading, "case": name, "ms": {k: round(v, 3) for k, v in found[-1][1].items()}})
    names = list(found[0][1])
    sums = {name: sum(row[name] for _, row in found) for name in names}
    shown = [*found, ("sum", sums)] if total else found
    lines = [[case, *(f"{row[name]:.2f}" for name in names)] for case, row in shown]
    return heading, table(["", *names], lines)


if __name__ == "__main__":
    raise SystemExit(main())
