"""Count what a model costs, part by part: ``python -m davit.complexity --model DaViT_tiny``.

Parameters, multiply-adds and activations are counted by fvcore on the operations that really run on one image.
"""

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

from .commands import exit_status
from .model import DualAttentionBlock, DualAttentionStages, WindowAttention
from .parsing.complexity import complexity_parser
from .parsing.results import give, require_writable
from .pyramid import DaViTPyramid
from .registry import create_model
from .text import without_controls

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # importing it uses what torch is about to remove
    from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
    from fvcore.nn.jit_handles import get_shape

CONVENTION = (
    "Costs are those of one image. FLOPs are multiply-adds (a multiplication with its addition is one), as "
    "fvcore counts them: convolutions, linear layers, both products of every attention, fused or not, and "
    "norms at 5 an element (4 without weight and bias, 2 or 1 for a batch norm). Activations are the output "
    "elements of convolutions, linear layers and the attentions' products, not of norms and elementwise "
    "operations. Parameters count whether they are trained or not."
)

Handle = Callable[[list[Any], list[Any]], int]


@dataclass(frozen=True)
class Part:
    """The share of one part; the shares of all parts add up to the whole.

    Attributes:
        stage: '' for a part that belongs to no stage.
        flops: multiply-adds.
    """

    stage: str
    name: str
    parameters: int
    flops: int
    activations: int


@dataclass(frozen=True)
class Complexity:
    """The costs of one image, in the units that `CONVENTION` states.

    Attributes:
        model: the class of the model, or the name that it was built by.
        input_shape: (C, H, W).
        flops: multiply-adds.
        operators: ``flops`` by kind of operation.
        skipped: operations not counted as FLOPs, with the number of their calls.
        parts: in a DaViT an attention or MLP includes the norm in front of it, and the two position encodings of
            a block are a part of their own.
    """

    model: str
    input_shape: tuple[int, int, int]
    parameters: int
    flops: int
    activations: int
    operators: dict[str, int]
    skipped: dict[str, int]
    parts: tuple[Part, ...]
    convention: str = CONVENTION

    def to_json(self) -> str:
        """Write all attributes as a JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    def to_table(self) -> str:
        """Write the parts, the totals and the convention for a terminal."""
        total = Part("", "total", self.parameters, self.flops, self.activations)
        cells = [("stage", "part", "parameters", "FLOPs", "activations")]
        for part in (*self.parts, total):
            cells.append((part.stage, part.name, f"{part.parameters:,}", f"{part.flops:,}", f"{part.activations:,}"))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        row = "  ".join(f"{{:{side}{width}}}" for side, width in zip("<<>>>", widths, strict=True))
        lines = [row.format(*line) for line in cells]
        rule = "-" * len(lines[0])
        title = f"{self.model}, input {' x '.join(map(str, self.input_shape))}"
        operators = ", ".join(f"{name} {count:,}" for name, count in self.operators.items())
        skipped = ", ".join(f"{name} ({calls})" for name, calls in self.skipped.items()) or "none"
        notes = (f"FLOPs by operation: {operators}.", f"Not counted as FLOPs (calls): {skipped}.", self.convention)
        paragraphs = [textwrap.fill(note, width=110) for note in notes]
        return "\n".join([title, lines[0], rule, *lines[1:-1], rule, lines[-1], "", *paragraphs])


def complexity(model: nn.Module, input_shape: Sequence[int], name: str | None = None) -> Complexity:
    """Count a model's parameters, multiply-adds and activations for one image.

    The counting runs in evaluation mode, on a copy that shares the model's tensors: what the counters add or leave
    behind is never in the model itself.

    Args:
        model: a DaViT, a `DaViTPyramid`, or any model that reads a batch of images.
        input_shape: (C, H, W) of the image.
        name: what to call the model in the result.

    Raises:
        ValueError: the shape is not (C, H, W), or the model cannot read an image of this shape.
    """
    shape = _checked_shape(input_shape)
    model = unwrap_model(model)
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    counted = copy.deepcopy(model, shared).eval()
    like = next((p for p in counted.parameters() if p.is_floating_point()), torch.zeros(()))
    image = torch.zeros(1, *shape, dtype=like.dtype, device=like.device)
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
        parts = _parts(model, flops.by_module(), activations.by_module())
    return Complexity(
        model=name or type(model).__name__,
        input_shape=shape,
        parameters=sum(p.numel() for p in model.parameters()),
        flops=int(flops.total()),
        activations=int(activations.total()),
        operators={name: int(count) for name, count in flops.by_operator().most_common()},
        skipped=dict(flops.unsupported_ops().most_common()),
        parts=parts,
    )


def count_flops(model: nn.Module, image: torch.Tensor) -> FlopCountAnalysis:
    """Count a forward pass by fvcore, with the operations that fvcore itself does not know."""
    return _quiet(FlopCountAnalysis(model, image).set_op_handle(**_FLOP_HANDLES))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what a model costs; return exit status 0, or 2 after one paragraph on stderr."""
    options = complexity_parser().parse_args(arguments)
    options.json |= options.format == "json"
    arguments_of_model = {} if options.num_classes is None else {"num_classes": options.num_classes}
    try:
        require_writable(options.output)
        if options.input is not None and _checked_shape(options.input)[0] != 3:
            arguments_of_model["in_chans"] = options.input[0]
        model = create_model(options.model, **arguments_of_model)
        own_input = model.pretrained_cfg["input_size"]  # type: ignore[index]
        result = complexity(model, options.input or own_input, options.model)  # type: ignore[arg-type]
        document = dataclasses.asdict(result)
        give(options, result.to_table(), document, document["parts"])
    except Exception as error:
        status = exit_status(error)
        if status is None:  # a fault of this program
            raise
        sys.stderr.write(without_controls(f"error: {error}\n"))
        return status
    return 0


def _checked_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3 or any(not isinstance(size, int) or size < 1 for size in shape):
        raise ValueError(
            f"input shape {tuple(shape)} must be (channels, height, width) of one image: three whole "
            "numbers, each 1 or more, such as (3, 224, 224)."
        )
    return shape[0], shape[1], shape[2]


def _quiet(analysis: Any) -> Any:
    """Turn fvcore's warnings off: the result lists what is skipped."""
    return analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)


def _weights_of(inputs: list[Any], outputs: list[Any]) -> int:
    """Count the weights of a fused attention: batch x heads x queries x keys."""
    return math.prod(get_shape(outputs[0])[:-1]) * get_shape(inputs[1])[-2]


def _output_elements(_: list[Any], outputs: list[Any]) -> int:
    return math.prod(get_shape(outputs[0]))


# What fvcore does not know, by operation. A fused attention counts as the two products that it stands for, so
# that the same model has the same cost on every path.
_FUSED = "aten::scaled_dot_product_attention"
_FLOP_HANDLES: dict[str, Handle] = {  # of (q, k, v, ...); of alpha * (b @ c) + beta * a, as (a, b, c, ...)
    _FUSED: lambda inputs, outputs: (
        _weights_of(inputs, outputs) * (get_shape(inputs[1])[-1] + get_shape(inputs[2])[-1])
    ),
    "aten::baddbmm": lambda inputs, _: math.prod(get_shape(inputs[1])) * get_shape(inputs[2])[-1],
}
_ACTIVATION_HANDLES: dict[str, Handle] = {
    _FUSED: lambda inputs, outputs: _weights_of(inputs, outputs) + _output_elements(inputs, outputs),
    "aten::baddbmm": _output_elements,
    "aten::mm": _output_elements,
}


def _parts(model: nn.Module, flops: dict[str, int], activations: dict[str, int]) -> tuple[Part, ...]:
    """Add up the modules of each part; the last part is what is outside of all modules."""
    shares: dict[tuple[str, str], list[int]] = {}
    counted: set[int] = set()
    for module_name, stage, part in _assignment(model):
        parameters = {id(p): p.numel() for p in model.get_submodule(module_name).parameters()}
        share = shares.setdefault((stage, part), [0, 0, 0])
        share[0] += sum(size for key, size in parameters.items() if key not in counted)
        share[1] += int(flops[module_name])
        share[2] += int(activations[module_name])
        counted |= parameters.keys()
    whole = (sum(p.numel() for p in model.parameters()), int(flops[""]), int(activations[""]))
    rest = [total - sum(share[i] for share in shares.values()) for i, total in enumerate(whole)]
    if any(rest):
        shares["", "outside of these"] = rest
    return tuple(Part(stage, part, *share) for (stage, part), share in shares.items())


def _assignment(model: nn.Module) -> Iterator[tuple[str, str, str]]:
    """Yield the names of modules, none inside another, each with its stage and its part."""
    for path, module in model.named_modules():
        if isinstance(module, DualAttentionStages):
            yield from _davit_assignment(module, path + "." if path else "")
            return
    for name, child in model.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleList) and len(child) > 0:
            yield from ((f"{name}.{member}", name, member) for member, _ in child.named_children())
        else:
            yield name, "", name


def _davit_assignment(model: DualAttentionStages, prefix: str) -> Iterator[tuple[str, str, str]]:
    for stage, blocks in enumerate(model.main_blocks):
        yield f"{prefix}patch_embeds.{stage}", f"stage {stage}", "patch embedding"
        paths: dict[str, list[str]] = {
            part: [] for part in ("position encoding", "window attention", "channel attention", "MLP")
        }
        for path, block in blocks.named_modules(prefix=f"{prefix}main_blocks.{stage}"):
            if isinstance(block, DualAttentionBlock):
                attention = "window attention" if isinstance(block.attn, WindowAttention) else "channel attention"
                paths["position encoding"].append(f"{path}.cpe")
                paths[attention] += [f"{path}.norm1", f"{path}.attn"]
                paths["MLP"] += [f"{path}.norm2", f"{path}.mlp"] if block.ffn else []
        yield from ((path, f"stage {stage}", part) for part, members in paths.items() for path in members)
    for name, _ in model.named_children():
        if name not in ("patch_embeds", "main_blocks"):
            yield prefix + name, "", "output norms" if isinstance(model, DaViTPyramid) else "head"


if __name__ == "__main__":
    sys.exit(main())
