"""Quantize programs of torch.export by torchao's PT2E."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchao.quantization.pt2e import MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec
from torchao.quantization.pt2e.quantizer import Quantizer as Annotator

from ...runtimes import KEY, Metadata
from ..pt2 import state_sizes
from ..tracing import EXAMPLE, PROVEN_LEAST
from .groups import HEAD, Groups, group_of

TOOL = "torchao"
SLOW = ("attention products",)  # whose two factors are computed: nothing is stored in int8
_ACTIVATION = QuantizationSpec(
    dtype=torch.uint8,
    quant_min=0,
    quant_max=255,
    qscheme=torch.per_tensor_affine,
    observer_or_fake_quant_ctr=MinMaxObserver.with_args(eps=2**-12),
)
_WEIGHT = QuantizationSpec(
    dtype=torch.int8,
    quant_min=-127,
    quant_max=127,
    qscheme=torch.per_channel_symmetric,
    ch_axis=0,
    observer_or_fake_quant_ctr=PerChannelMinMaxObserver.with_args(eps=2**-12),
)
_CONVOLUTIONS = (torch.ops.aten.conv2d.default,)
_LINEAR = (torch.ops.aten.linear.default,)
_PRODUCTS = (torch.ops.aten.matmul.default, torch.ops.aten.bmm.default)


class Quantizer:
    """Quantizes groups of operations of a float program.

    Attributes:
        groups: name of a group to the names of its operations.
    """

    def __init__(self, path: Path, batches: Sequence[Tensor], work: Path) -> None:
        self._path = path
        self._batches = batches
        self.groups = _groups(self._read().graph)

    def _read(self) -> Any:
        return torch.export.load(str(self._path)).module(check_guards=False)

    def write(self, chosen: Sequence[str], out: Path, metadata: Metadata) -> None:
        """Write the program with the chosen groups in int8."""
        names = {name for group in chosen for name in self.groups[group]}
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            model = prepare_pt2e(self._read(), _Chosen(names))
            for batch in self._batches:
                model(batch)
            model = convert_pt2e(model)
            _drop_unused(model)
            free = _free(metadata)
            example = self._batches[0][:2]
            if free is not None:  # of a size for which free ones can be proven
                count, *sides = EXAMPLE
                shape = [metadata.bands, *sides] if metadata.layout == "NCHW" else [*sides, metadata.bands]
                example = example.new_zeros((count, *shape))
            program = torch.export.export(model, (example,), dynamic_shapes=free)
        for node in program.graph.nodes:
            for note in [note for note in node.meta if note not in ("val", "tensor_meta")]:
                node.meta.pop(note)
        program.example_inputs = None
        state_sizes(program, metadata)
        torch.export.save(program, str(out), extra_files={KEY: metadata.to_json()})


class _Chosen(Annotator):
    """Marks the inputs and the weight of chosen operations."""

    def __init__(self, names: set[str]) -> None:
        super().__init__()
        self._names = names

    def annotate(self, model: Any) -> Any:
        for node in model.graph.nodes:
            if node.name in self._names:
                image, weight = node.args[:2]
                node.meta["quantization_annotation"] = QuantizationAnnotation(
                    input_qspec_map={image: _ACTIVATION, weight: _WEIGHT}, _annotated=True
                )
        return model

    def validate(self, model: Any) -> None:
        pass


def _drop_unused(model: Any) -> None:
    """Drop the float weights that stand in int8 now: they would be written beside them."""
    used = {node.target for node in model.graph.nodes if node.op == "get_attr"}
    stored = (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    for name in [name for kind in stored for name, _ in kind if name not in used]:
        owner, _, leaf = name.rpartition(".")
        delattr(model.get_submodule(owner), leaf)


def _free(metadata: Metadata) -> Any:
    """Say which axes of the input are free, as the float program has them."""
    order = ("batch", None, "height", "width") if metadata.layout == "NCHW" else ("batch", "height", "width", None)
    axes = {}
    for place, name in enumerate(order):
        least, most = metadata.axes.get(name, (1, None)) if name else (1, 1)
        if name is not None and least != most:
            proven = least if name == "batch" else max(least, PROVEN_LEAST)
            axes[place] = torch.export.Dim(name, min=proven, max=most)
    return ((axes),) if axes else None


def _groups(graph: Any) -> Groups:
    nodes = [one for one in graph.nodes if one.op == "call_function"]
    linear = [one for one in nodes if one.target in _LINEAR]
    convolutions = [one for one in nodes if one.target in _CONVOLUTIONS]
    found: dict[str, list[str]] = {}
    for one in nodes:
        if one.target not in (*_CONVOLUTIONS, *_LINEAR, *_PRODUCTS):
            continue
        group = group_of(
            is_convolution=one.target in _CONVOLUTIONS,
            is_first=one is convolutions[0],
            is_depthwise=len(one.args) > 6 and one.args[6] > 1,
            has_weight=one.target in _LINEAR,
            behind_gelu=_comes_from_gelu(one.args[0]),
            is_head=one is linear[-1],
        )
        found.setdefault(group, []).append(one.name)
    assert HEAD in found, found
    return {name: tuple(names) for name, names in found.items()}


def _comes_from_gelu(node: Any) -> bool:
    while getattr(node, "target", None) in (torch.ops.aten.dropout.default, torch.ops.aten.clone.default):
        node = node.args[0]
    return getattr(node, "target", None) is torch.ops.aten.gelu.default
