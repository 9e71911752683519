"""Cut maps into windows in ONNX: as many as are needed, where torch.export needs one row and column more.

While a model is traced, `davit.model` calls two operators in place of the functions of `davit.windows`. To
torch.export the number of windows is a number of which nothing is known, so that it need not prove that it is not 1.
In ONNX each operator is a handful of nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import onnxscript
import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import has_static_value

from .. import model, windows

op = onnxscript.opset20


@torch.library.custom_op("davit_export::partition", mutates_args=())
def _partition(x_BHWC: Tensor, window: int) -> Tensor:
    return windows.window_partition(x_BHWC, window)[0].clone()


@_partition.register_fake
def _(x_BHWC: Tensor, window: int) -> Tensor:
    number = torch.library.get_ctx().new_dynamic_size(min=1)
    return x_BHWC.new_empty(number, window * window, x_BHWC.shape[3])


@torch.library.custom_op("davit_export::unpartition", mutates_args=())
def _unpartition(x_MNC: Tensor, like_BHWC: Tensor, window: int) -> Tensor:
    height, width = like_BHWC.shape[1:3]
    tiling = (-(-height // window), -(-width // window))
    return windows.window_unpartition(x_MNC, window, tiling, (height, width)).clone()


@_unpartition.register_fake
def _(x_MNC: Tensor, like_BHWC: Tensor, window: int) -> Tensor:
    return x_MNC.new_empty(*like_BHWC.shape[:3], x_MNC.shape[2])


def _cut(x_BHWC: Tensor, window: int, fill_C: Tensor | None = None) -> tuple[Tensor, Any]:
    if fill_C is not None or has_static_value(x_BHWC.shape[1] * x_BHWC.shape[2]):
        return windows.window_partition(x_BHWC, window, fill_C)
    return torch.ops.davit_export.partition(x_BHWC, window), x_BHWC  # the map, in place of its tiling


def _put_back(x_MNC: Tensor, window: int, tiling: Any, size: tuple[int, int]) -> Tensor:
    if not isinstance(tiling, Tensor):
        return windows.window_unpartition(x_MNC, window, tiling, size)
    return torch.ops.davit_export.unpartition(x_MNC, tiling, window)


@contextmanager
def exact_windows() -> Iterator[None]:
    """Let `davit.model` cut maps by the operators that `TRANSLATIONS` knows."""
    with mock.patch.multiple(model, window_partition=_cut, window_unpartition=_put_back):
        yield


def _ints(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def _tiling(x_BHWC: Any, window: int) -> tuple[Any, Any, Any]:
    """Compute (H, W), the numbers of rows and columns of windows, and their product with the window."""
    size = op.Slice(op.Shape(x_BHWC), _ints(1), _ints(3), _ints(0))
    tiling = op.Div(op.Add(size, _ints(window - 1)), _ints(window))
    return size, tiling, op.Mul(tiling, _ints(window))


def _split(size: Any) -> tuple[Any, Any]:
    return op.Slice(size, _ints(0), _ints(1), _ints(0)), op.Slice(size, _ints(1), _ints(2), _ints(0))


def _onnx_partition(x_BHWC: Any, window: int) -> Any:
    channels = int(x_BHWC.shape[3])
    size, tiling, padded = _tiling(x_BHWC, window)
    rows, columns = _split(tiling)
    pads = op.Concat(_ints(0, 0, 0, 0, 0), op.Sub(padded, size), _ints(0), axis=0)
    x = op.Pad(x_BHWC, pads)
    x = op.Reshape(x, op.Concat(_ints(0), rows, _ints(window), columns, _ints(window, channels), axis=0))
    return op.Reshape(op.Transpose(x, perm=[0, 1, 3, 2, 4, 5]), _ints(-1, window * window, channels))


def _onnx_unpartition(x_MNC: Any, like_BHWC: Any, window: int) -> Any:
    channels = int(x_MNC.shape[2])
    size, tiling, padded = _tiling(like_BHWC, window)
    x = op.Reshape(x_MNC, op.Concat(_ints(-1), tiling, _ints(window, window, channels), axis=0))
    x = op.Transpose(x, perm=[0, 1, 3, 2, 4, 5])
    x = op.Reshape(x, op.Concat(_ints(-1), padded, _ints(channels), axis=0))
    return op.Slice(x, _ints(0, 0), size, _ints(1, 2))


TRANSLATIONS = {
    torch.ops.davit_export.partition.default: _onnx_partition,
    torch.ops.davit_export.unpartition.default: _onnx_unpartition,
}
