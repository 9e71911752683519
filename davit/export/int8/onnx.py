"""Quantize ONNX models by ONNX Runtime: static, QDQ, 8 bits for each channel of weights and each activation."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from ...runtimes import KEY, Metadata
from .groups import Groups, Places, group_of

TOOL = "onnxruntime"
#: groups that ONNX Runtime computed no faster in int8, in a trial of DaViT_nano at 32 px
SLOW = ("position encodings", "attention products", "stem", "patch embeddings")


class Quantizer:
    """Quantizes groups of nodes of a float model; the ranges of activations are measured once.

    Attributes:
        groups: name of a group to the names of its nodes.
    """

    def __init__(self, path: Path, batches: Sequence[Tensor], work: Path) -> None:
        self._model = work / "prepared.onnx"
        self._ranges = work / "ranges.json"
        self._batches = batches
        quant_pre_process(str(path), str(self._model), skip_symbolic_shape=True)
        graph = onnx.load(str(self._model)).graph
        self._input = graph.input[0].name
        self.groups = _groups(graph)

    def write(self, chosen: Sequence[str], out: Path, metadata: Metadata) -> None:
        """Write the model with the chosen groups in int8."""
        # the ranges of all groups first: a file of ranges serves every choice
        names = [name for group in (chosen if self._ranges.is_file() else self.groups) for name in self.groups[group]]
        with _silent():
            quantize_static(
                str(self._model),
                str(out),
                _Reader(self._input, self._batches),
                quant_format=QuantFormat.QDQ,
                nodes_to_quantize=names,
                op_types_to_quantize=["Conv", "MatMul", "Gemm"],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                reduce_range=True,  # 7 bits: without VNNI sums of products of 8 overflow, on whichever it was measured
                calibration_cache_path=str(self._ranges),
            )
        if names != [name for group in chosen for name in self.groups[group]]:
            self.write(chosen, out, metadata)
            return
        model = onnx.load(str(out))
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, {KEY: metadata.to_json()})
        onnx.save(model, str(out))


@contextmanager
def _silent() -> Iterator[None]:
    """Leave out what ONNX Runtime says by the root logger of each bias that it copies."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


class _Reader(CalibrationDataReader):
    """Hand out the calibration images, as ONNX Runtime asks for them."""

    def __init__(self, name: str, batches: Sequence[Tensor]) -> None:
        self._left = iter([{name: batch.numpy()} for batch in batches])

    def get_next(self) -> Any:
        return next(self._left, None)


def _groups(graph: Any) -> Groups:
    constants = {one.name: tuple(one.dims) for one in graph.initializer}
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    found: dict[str, list[str]] = {}
    is_first, places = True, Places()
    for node in graph.node:
        place = places.follow(node.input, node.output)
        if node.op_type not in ("Conv", "MatMul", "Gemm"):
            continue
        has_weight = len(node.input) > 1 and node.input[1] in constants
        channels = next((one.i for one in node.attribute if one.name == "group"), 1)
        group = group_of(
            is_convolution=node.op_type == "Conv",
            is_first=is_first,
            is_depthwise=channels > 1,
            has_weight=has_weight,
            behind_gelu=made_by.get(node.input[0]) in ("Gelu", "Erf"),
            is_head=node.op_type == "Gemm",
            place=place,
            weight=node.input[1],
        )
        is_first = is_first and node.op_type != "Conv"
        found.setdefault(group, []).append(node.name)
    return {name: tuple(nodes) for name, nodes in found.items()}
