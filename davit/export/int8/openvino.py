"""Quantize OpenVINO's models by NNCF."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nncf
import openvino
from torch import Tensor

from ...runtimes import KEY, Metadata
from .groups import Groups, Places, group_of

TOOL = "nncf"
SLOW: tuple[str, ...] = ()
#: kinds of operations that NNCF would quantize too
_FLOAT = [
    *("Add", "Subtract", "Multiply", "Divide", "Power", "Sqrt", "MVN", "Softmax", "Gelu", "ReduceMean", "ReduceSum"),
    *("Squeeze", "Pad", "Gather", "Concat", "Interpolate"),
]


class Quantizer:
    """Quantizes groups of operations of a float model.

    Attributes:
        groups: name of a group to the names of its operations.
    """

    def __init__(self, path: Path, batches: Sequence[Tensor], work: Path) -> None:
        self._path = path
        self._batches = batches
        self.groups = _groups(self._read())

    def _read(self) -> Any:
        return openvino.Core().read_model(str(self._path), str(self._path.with_suffix(".bin")))

    def write(self, chosen: Sequence[str], out: Path, metadata: Metadata) -> None:
        """Write the model with the chosen groups in int8."""
        logging.getLogger("nncf").setLevel(logging.ERROR)
        left = [name for group, names in self.groups.items() if group not in chosen for name in names]
        model = nncf.quantize(
            self._read(),
            nncf.Dataset(self._batches, lambda batch: batch.numpy()),
            subset_size=len(self._batches),
            model_type=nncf.ModelType.TRANSFORMER,
            ignored_scope=nncf.IgnoredScope(names=left, types=_FLOAT, validate=False),
            # weights of 7 bits: sums of products of 8 bits overflow on processors without VNNI, whichever measured
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE),
        )
        model.set_rt_info(metadata.to_json(), [KEY])
        openvino.save_model(model, str(out), compress_to_fp16=False)


def _groups(model: Any) -> Groups:
    found: dict[str, list[str]] = {}
    products = ("Convolution", "GroupConvolution", "MatMul")
    operations = [one for one in model.get_ordered_ops() if one.get_type_name() in products]
    with_weight = [one for one in operations if _is_constant(one.input_value(1).get_node())]
    convolutions = [one for one in operations if one.get_type_name() != "MatMul"]
    places = Places()
    place = {
        one.get_friendly_name(): places.follow(
            [value.get_source_output().get_node().get_friendly_name() for value in one.inputs()],
            [one.get_friendly_name()],
        )
        for one in model.get_ordered_ops()
        if one.get_type_name() not in ("Constant", "Parameter")
    }
    for one in operations:
        group = group_of(
            is_convolution=one.get_type_name() != "MatMul",
            is_first=one is convolutions[0],
            is_depthwise=one.get_type_name() == "GroupConvolution",
            has_weight=one in with_weight,
            behind_gelu=one.input_value(0).get_node().get_type_name() == "Gelu",
            is_head=one is with_weight[-1],
            place=place[one.get_friendly_name()],
            weight=_name_of_weight(one),
        )
        found.setdefault(group, []).append(one.get_friendly_name())
    return {name: tuple(nodes) for name, nodes in found.items()}


def _name_of_weight(operation: Any) -> str:
    """Name the constant that a second factor is, or is made of."""
    node = operation.input_value(1).get_node()
    while node.get_type_name() != "Constant" and node.inputs():
        node = node.input_value(0).get_node()
    return str(node.get_friendly_name())


def _is_constant(node: Any) -> bool:
    if node.get_type_name() == "Constant":
        return True
    inputs = node.inputs()
    return bool(inputs) and all(_is_constant(one.get_source_output().get_node()) for one in inputs)
