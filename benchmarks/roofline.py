"""Count what a variant must compute and move at least, by kind of part, and profile where its time goes.

    python benchmarks/roofline.py                     # the count, for tiny, small, base and large
    python benchmarks/roofline.py --profile DaViT_tiny --batch 8

The count: multiply-adds, and the least bytes of one image in float32 when every part reads its input map and its
weights once and writes its output map once, keeping all else (q, k, v, attention, the MLP's hidden map) in the
cache. Weights are read once a batch, so their bytes are divided by it. Operations per byte say which side of a
machine's own ratio a part lies on.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measure import RESULTS, size_argument, table, write_report

from davit import VARIANTS, create_model
from davit.kernels.cpu import native
from davit.model import DaViT, DualAttentionBlock, WindowAttention
from davit.parsing import Parser, RawHelp

KINDS = {  # what an operation's name contains, first match
    "native.cpp, with products": ("davit_block", "davit_patch_embed", "davit_linear", "davit_mlp"),
    "native.cpp": ("davit",),
    "matrix products": ("linear", "addmm", "::mm", "bmm", "matmul"),
    "convolutions": ("convolution", "conv2d"),
    "LayerNorm": ("layer_norm",),
    "GELU": ("gelu",),
    "softmax": ("softmax",),
    "copies": ("copy", "cat", "clone", "contiguous", "to_copy", "constant_pad", "fill_"),
    "additions, other": ("",),
}


def count(model: DaViT, size: tuple[int, int], batch: int) -> dict[str, tuple[int, int]]:
    """Count (multiply-adds, least bytes) of one image, by part: products and convolutions, without norms."""
    parts: dict[str, list[int]] = defaultdict(lambda: [0, 0])

    def add(part: str, operations: int, elements: int, weights: int) -> None:
        parts[part][0] += operations
        parts[part][1] += 4 * elements + 4 * weights // batch

    H, W = (-(-side // model.patch_embeds[0].proj.stride[0]) for side in size)
    for stage, (embed, blocks) in enumerate(zip(model.patch_embeds, model.main_blocks, strict=True)):
        if stage:
            H, W = -(-H // 2), -(-W // 2)
        conv = embed.proj
        C, N = conv.out_channels, H * W
        read = conv.in_channels * (size[0] * size[1] if stage == 0 else 4 * N)
        add("patch embeddings", N * conv.weight.numel(), read + N * C, conv.weight.numel())
        for block in blocks.modules():
            if isinstance(block, DualAttentionBlock):
                for encoding in block.cpe:
                    add("position encodings", N * 9 * C, 2 * N * C, encoding.proj.weight.numel())
                _count_attention(block, H, W, C, add)
                if block.ffn:
                    weights = block.mlp.fc1.weight.numel() + block.mlp.fc2.weight.numel()
                    add("MLP", N * weights, 2 * N * C, weights)
    if isinstance(model.head, nn.Linear):
        weights = model.head.weight.numel()
        add("head", weights, model.head.in_features + model.head.out_features, weights)
    return {part: (values[0], values[1]) for part, values in parts.items()}


def _count_attention(block: DualAttentionBlock, H: int, W: int, C: int, add) -> None:  # type: ignore[no-untyped-def]
    attn, N = block.attn, H * W
    weights = attn.qkv.weight.numel() + attn.proj.weight.numel()
    if isinstance(attn, WindowAttention):
        side = attn.window_size
        padded = (-(-H // side) * side) * (-(-W // side) * side)
        add("window attention", N * weights + 2 * padded * side * side * C, 2 * N * C, weights)
    else:
        add("channel attention", N * weights + 2 * N * C * (C // attn.num_groups), 2 * N * C, weights)


def counted(names: Sequence[str], batch: int) -> tuple[str, dict[str, object]]:
    rows, data = [], {}
    for name in names:
        side = VARIANTS[name].image_size
        with torch.device("meta"):
            model = create_model(name)
        parts = count(model, (side, side), batch)  # type: ignore[arg-type]
        operations, moved = (sum(values[i] for values in parts.values()) for i in (0, 1))
        for part, (part_operations, part_moved) in [*parts.items(), ("all", (operations, moved))]:
            rows.append(
                [
                    name if part == next(iter(parts)) else "",
                    part,
                    f"{part_operations / 1e6:,.0f}",
                    f"{100 * part_operations / operations:.1f}",
                    f"{part_moved / 1e6:,.1f}",
                    f"{100 * part_moved / moved:.1f}",
                    f"{part_operations / part_moved:.0f}",
                ]
            )
        data[name] = parts
    header = ["variant", "part", "million multiply-adds", "%", "least MB", "%", "multiply-adds a byte"]
    return table(header, rows), data


def profiled(name: str, batch: int, size: tuple[int, int], accelerate: bool, training: bool) -> dict[str, float]:
    """Profile one step on one thread; return milliseconds by kind of operation."""
    torch.manual_seed(0)
    model = create_model(name, **({} if accelerate else {"accelerate": False})).train(training)
    image = torch.randn(batch, 3, *size)

    def step() -> None:
        with torch.set_grad_enabled(training):
            output = model(image)
            if training:
                output.square().mean().backward()

    for _ in range(2):
        step()
    call = native.call

    def named(function: str, *arguments: Any) -> None:
        with record_function(function):
            call(function, *arguments)

    with patch.object(native, "call", named), profile(activities=[ProfilerActivity.CPU]) as measured:
        step()
    kinds = dict.fromkeys(KINDS, 0.0)
    for event in measured.key_averages():
        kind = next(kind for kind, words in KINDS.items() if any(word in event.key for word in words))
        kinds[kind] += event.self_cpu_time_total / 1e3
    return kinds


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=RawHelp)
    names = ("DaViT_tiny", "DaViT_small", "DaViT_base", "DaViT_large")
    parser.add_argument(
        "--models", nargs="+", default=names, choices=tuple(VARIANTS), metavar="VARIANT", help="variants to count"
    )
    parser.add_argument("--profile", metavar="VARIANT", help="also time a step of this variant, by kind of operation")
    parser.add_argument("--peer", default="davit_tiny", help="model of timm to profile beside it")
    parser.add_argument("--batch", type=int, default=8, help="images in a batch")
    parser.add_argument("--size", type=size_argument, default=(224, 224), help="height and width of the images")
    parser.add_argument("--name", default="roofline", help="the results are written into NAME.json and NAME.md")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="folder to write the results into")
    options = parser.parse_args(arguments)
    text, data = counted(options.models, options.batch)
    sections = [(f"The count, for one image of a batch of {options.batch}", text)]
    if options.profile:
        torch.set_num_threads(1)
        for training in (False, True):
            subjects = {
                f"`{options.peer}`": (options.peer, True),
                f"`{options.profile}:plain`": (options.profile, False),
                f"`{options.profile}`": (options.profile, True),
            }
            times = {
                label: profiled(name, options.batch, options.size, accelerate, training)
                for label, (name, accelerate) in subjects.items()
            }
            rows = [[kind, *(f"{kinds[kind]:.0f}" for kinds in times.values())] for kind in KINDS]
            rows.append(["all", *(f"{sum(kinds.values()):.0f}" for kinds in times.values())])
            what = "A training step" if training else "Inference"
            sections.append((f"{what}, ms by kind of operation, one thread, float32", table(["kind", *times], rows)))
            data["training" if training else "inference"] = times
    sys.stdout.write(write_report(options.name, "Operations, bytes, time", sections, data, options.folder).read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
