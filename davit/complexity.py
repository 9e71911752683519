"""What a model costs, by part and in one convention: ``python -m davit.complexity --model DaViT_tiny``.

Parameters, multiply-adds and activations of one image, counted by fvcore on the operations that really run,
with thop's count of multiply-adds beside them.
"""

import argparse
import copy
import dataclasses
import json
import math
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import nn

from .model import DualAttentionBlock, DualAttentionStages, WindowAttention
from .pyramid import DaViTPyramid
from .registry import create_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # importing them uses what torch and setuptools are about to remove
    import thop
    from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
    from fvcore.nn.jit_handles import get_shape

CONVENTION = (
    "Costs are those of one image. FLOPs are multiply-adds (a multiplication with its addition is one), as "
    "fvcore counts them: convolutions, linear layers, both products of every attention, fused or not, and "
    "norms at 5 an element (4 without weight and bias, 2 or 1 for a batch norm). Activations are the output "
    "elements of convolutions, linear layers and the attentions' products, not of norms and elementwise "
    "operations. Parameters count whether they are trained or not."
)
THOP_DIFFERENCE = (
    "thop counts modules of the classes that it knows, fvcore operations; so thop leaves out the products of "
    "the attentions, which are no modules, and norms of a class of their own, and puts a LayerNorm at 4 an "
    "element instead of 5. Convolutions and linear layers count alike."
)

Handle = Callable[[list[Any], list[Any]], int]


@dataclass(frozen=True)
class Part:
    """A part's share; the shares add up to the whole.

    Attributes:
        stage: '' for what belongs to none.
        flops: multiply-adds.
    """

    stage: str
    name: str
    parameters: int
    flops: int
    activations: int


@dataclass(frozen=True)
class Complexity:
    """Costs of one image, in the units that `CONVENTION` states.

    Attributes:
        model: the class of the model, or the name it was built by.
        input_shape: (C, H, W).
        flops: multiply-adds.
        thop_flops: thop's count of the same; see `THOP_DIFFERENCE`.
        operators: ``flops`` by kind of operation.
        skipped: operations not counted as FLOPs, with the number of their calls.
        parts: shares of stages and of what is in them. In a DaViT an attention or MLP includes the norm in
            front of it, and a block's two position encodings are a part of their own.
    """

    model: str
    input_shape: tuple[int, int, int]
    parameters: int
    flops: int
    activations: int
    thop_flops: int
    operators: dict[str, int]
    skipped: dict[str, int]
    parts: tuple[Part, ...]
    convention: str = CONVENTION
    thop_difference: str = THOP_DIFFERENCE

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)

    def to_table(self) -> str:
        """Text for a terminal: the parts, the totals, and the convention in sentences."""
        total = Part("", "total", self.parameters, self.flops, self.activations)
        cells = [["stage", "part", "parameters", "FLOPs", "activations"]] + [
            [row.stage, row.name, f"{row.parameters:,}", f"{row.flops:,}", f"{row.activations:,}"]
            for row in (*self.parts, total)
        ]
        widths = [max(len(row[column]) for row in cells) for column in range(5)]
        lines = [
            "  ".join(
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in cells
        ]
        rule = "-" * len(lines[0])
        title = f"{self.model}, input {' x '.join(map(str, self.input_shape))}"
        operators = ", ".join(f"{name} {count:,}" for name, count in self.operators.items())
        skipped = ", ".join(f"{name} ({calls})" for name, calls in self.skipped.items()) or "none"
        sentences = (
            f"FLOPs by operation: {operators}.",
            f"Not counted as FLOPs (calls): {skipped}.",
            self.convention,
            f"thop: {self.thop_flops:,} FLOPs. {self.thop_difference}",
        )
        notes = [textwrap.fill(sentence, width=110) for sentence in sentences]
        return "\n".join([title, lines[0], rule, *lines[1:-1], rule, lines[-1], "", *notes])


def complexity(model: nn.Module, input_shape: Sequence[int], name: str | None = None) -> Complexity:
    """Count a model's parameters, multiply-adds and activations for one image.

    The counting runs in evaluation mode, on a copy that shares the model's tensors; the model stays as it is.

    Args:
        model: a DaViT, a `DaViTPyramid`, or any model that reads a batch of images.
        input_shape: (C, H, W) of the image.
        name: what to call the model in the result.

    Raises:
        ValueError: the shape is not (C, H, W), or the model cannot read an image of this shape.
    """
    shape = _checked_shape(input_shape)
    model = unwrap_model(model)
    counted = _copy_sharing_tensors(model).eval()
    image = _zeros(counted, shape)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            counted(image)
        except (RuntimeError, ValueError, AssertionError, IndexError, TypeError) as error:
            raise ValueError(
                f"{name or type(model).__name__} cannot read an image of (C, H, W) = {shape}: "
                f"{error or type(error).__name__}"
            ) from error
        flops = count_flops(counted, image)
        activations = _quiet(ActivationCountAnalysis(counted, image).set_op_handle(**_ACTIVATION_HANDLES))
        flops_of, activations_of = flops.by_module(), activations.by_module()
        thop_flops, _ = thop.profile(counted, inputs=(image,), verbose=False)  # last: it leaves buffers behind
    return Complexity(
        model=name or type(model).__name__,
        input_shape=shape,
        parameters=sum(p.numel() for p in model.parameters()),
        flops=int(flops.total()),
        activations=int(activations.total()),
        thop_flops=int(thop_flops),
        operators={name: int(count) for name, count in flops.by_operator().most_common()},
        skipped=dict(flops.unsupported_ops().most_common()),
        parts=_parts(model, flops_of, activations_of),
    )


def count_flops(model: nn.Module, image: torch.Tensor) -> FlopCountAnalysis:
    """fvcore's count of a forward pass, with the operations that it does not know itself."""
    return _quiet(FlopCountAnalysis(model, image).set_op_handle(**_FLOP_HANDLES))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0, or 2 with one paragraph on stderr."""
    parser = argparse.ArgumentParser(prog="python -m davit.complexity", description=__doc__)
    parser.add_argument("--model", default="DaViT_tiny", help="a variant of DaViT, or any model that timm knows")
    parser.add_argument(
        "--input", type=int, nargs=3, metavar=("C", "H", "W"), help="default: the model's own input size"
    )
    parser.add_argument("--num-classes", type=int, help="width of the head (default: the model's own)")
    parser.add_argument("--format", choices=("table", "json"), default="table")
    options = parser.parse_args(arguments)
    arguments_of_model = {} if options.num_classes is None else {"num_classes": options.num_classes}
    try:
        if options.input is not None and _checked_shape(options.input)[0] != 3:
            arguments_of_model["in_chans"] = options.input[0]
        model = create_model(options.model, **arguments_of_model)
        result = complexity(model, options.input or _own_input(model), options.model)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write((result.to_json() if options.format == "json" else result.to_table()) + "\n")
    return 0


def _own_input(model: nn.Module) -> Sequence[int]:
    return model.pretrained_cfg["input_size"]  # type: ignore[index,return-value]


def _checked_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3 or any(not isinstance(size, int) or size < 1 for size in shape):
        raise ValueError(
            f"input shape {tuple(shape)} must be (channels, height, width) of one image: three whole "
            "numbers, each 1 or more, such as (3, 224, 224)."
        )
    return shape[0], shape[1], shape[2]


def _copy_sharing_tensors(model: nn.Module) -> nn.Module:
    """Modules and hooks of its own, so that what the counters add or leave behind is never the user's."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def _zeros(model: nn.Module, shape: tuple[int, int, int]) -> torch.Tensor:
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    return torch.zeros(1, *shape, dtype=like.dtype, device=like.device)


def _quiet(analysis: Any) -> Any:
    """What is skipped is in the result instead of the log."""
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)


def _fused_attention(inputs: list[Any], outputs: list[Any]) -> tuple[int, int, int, int]:
    """Batch (times heads), queries, keys and the summed width of both products."""
    query, key, value = (get_shape(tensor) for tensor in inputs[:3])
    batch = math.prod(get_shape(outputs[0])[:-2])
    return batch, query[-2], key[-2], query[-1] + value[-1]


def _fused_attention_flops(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(_fused_attention(inputs, outputs))


def _fused_attention_activations(inputs: list[Any], outputs: list[Any]) -> int:
    batch, queries, keys, _ = _fused_attention(inputs, outputs)
    return batch * queries * keys + math.prod(get_shape(outputs[0]))


def _product_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """alpha * (b @ c) + beta * a: attention that scales or masks within the product."""
    return math.prod(get_shape(inputs[1])) * get_shape(inputs[2])[-1]


def _output_elements(inputs: list[Any], outputs: list[Any]) -> int:
    return math.prod(get_shape(outputs[0]))


# What fvcore does not know, by operation. A fused attention counts as the two products that it stands for, so
# that the same model has the same cost on every path.
_FLOP_HANDLES: dict[str, Handle] = {
    "aten::scaled_dot_product_attention": _fused_attention_flops,
    "aten::baddbmm": _product_flops,
}
_ACTIVATION_HANDLES: dict[str, Handle] = {
    "aten::scaled_dot_product_attention": _fused_attention_activations,
    "aten::baddbmm": _output_elements,
    "aten::mm": _output_elements,
}


_BLOCK_PARTS = ("position encoding", "window attention", "channel attention", "MLP")


def _parts(model: nn.Module, flops: dict[str, int], activations: dict[str, int]) -> tuple[Part, ...]:
    shares: dict[tuple[str, str], list[int]] = {}
    counted: set[int] = set()
    for module_name, stage, part in _assignment(model):
        parameters = {id(p): p.numel() for p in model.get_submodule(module_name).parameters()}
        share = shares.setdefault((stage, part), [0, 0, 0])
        share[0] += sum(size for key, size in parameters.items() if key not in counted)
        share[1] += int(flops[module_name])
        share[2] += int(activations[module_name])
        counted |= parameters.keys()
    rest = [
        whole - sum(share[i] for share in shares.values())
        for i, whole in enumerate((sum(p.numel() for p in model.parameters()), int(flops[""]), int(activations[""])))
    ]
    if any(rest):
        shares["", "outside of these"] = rest
    return tuple(Part(stage, part, *share) for (stage, part), share in shares.items())


def _assignment(model: nn.Module) -> Iterator[tuple[str, str, str]]:
    """Names of modules, none inside another, with the stage and part that each belongs to."""
    for path, module in model.named_modules():
        if isinstance(module, DualAttentionStages):
            yield from _davit_assignment(module, path + "." if path else "")
            return
    for name, child in model.named_children():
        members = list(child.named_children()) if isinstance(child, nn.Sequential | nn.ModuleList) else []
        if members:
            yield from ((f"{name}.{member}", name, member) for member, _ in members)
        else:
            yield name, "", name


def _davit_assignment(model: DualAttentionStages, prefix: str) -> Iterator[tuple[str, str, str]]:
    for stage, blocks in enumerate(model.main_blocks):
        yield f"{prefix}patch_embeds.{stage}", f"stage {stage}", "patch embedding"
        found: list[tuple[str, str]] = []
        for path, block in blocks.named_modules():
            if isinstance(block, DualAttentionBlock):
                kind = "window attention" if isinstance(block.attn, WindowAttention) else "channel attention"
                found += [
                    ("position encoding", f"{path}.cpe"),
                    (kind, f"{path}.norm1"),
                    (kind, f"{path}.attn"),
                ]
                if block.ffn:
                    found += [("MLP", f"{path}.norm2"), ("MLP", f"{path}.mlp")]
        found.sort(key=lambda item: _BLOCK_PARTS.index(item[0]))
        for part, path in found:
            yield f"{prefix}main_blocks.{stage}.{path}", f"stage {stage}", part
    for name, _ in model.named_children():
        if name not in ("patch_embeds", "main_blocks"):
            yield prefix + name, "", "output norms" if isinstance(model, DaViTPyramid) else "head"


if __name__ == "__main__":
    sys.exit(main())
