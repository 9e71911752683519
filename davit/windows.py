"""Cut a map into windows and put it back, for any size, in eager mode and in every exporter.

torch.export with a dynamic size cannot branch on it, and its solver must prove every size that occurs. The functions
named ``_symbolic_...`` compute the same values with sizes that it can prove. They are used for that alone, since they
pad more than is needed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import has_static_value


def pad_odd(x_BHWC: Tensor) -> Tensor:
    """Zero-pad odd sizes by one at the bottom and at the right, for a 2x2 convolution of stride 2."""
    odd_H, odd_W = x_BHWC.shape[1] % 2, x_BHWC.shape[2] % 2
    if _is_symbolic(odd_H + odd_W):
        return F.pad(x_BHWC, [0, 0, 0, 1, 0, 1])  # the convolution does not read a row added to an even size
    return F.pad(x_BHWC, [0, 0, 0, odd_W, 0, odd_H]) if odd_H + odd_W > 0 else x_BHWC


def window_partition(x_BHWC: Tensor, window: int, fill_C: Tensor | None = None) -> tuple[Tensor, tuple[int, int]]:
    """Cut a map into windows of ``window`` x ``window`` positions.

    If needed, the map is padded at the right and the bottom with ``fill_C`` (None: zeros).

    Returns:
        The windows (M, N, C), and the numbers of rows and columns of windows, for `window_unpartition`.
    """
    B, H, W, C = x_BHWC.shape
    fill = x_BHWC.new_zeros(C) if fill_C is None else fill_C.to(x_BHWC.dtype)
    if _is_symbolic(H * W):
        return _symbolic_partition(x_BHWC, window, fill)
    rows, columns = (H + window - 1) // window, (W + window - 1) // window
    x = _pad(x_BHWC, rows * window - H, columns * window - W, fill)
    x = x.reshape(B, rows, window, columns, window, C).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(B * rows * columns, window * window, C), (rows, columns)


def window_unpartition(x_MNC: Tensor, window: int, tiling: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Put windows back as a (B, H, W, C) map of ``size`` = (H, W), without the padding."""
    rows, columns = tiling
    batch, C = x_MNC.shape[0] // (rows * columns), x_MNC.shape[2]
    x = x_MNC.reshape(batch, rows, columns, window, window, C).permute(0, 1, 3, 2, 4, 5)
    x = x.reshape(batch, rows * window, columns * window, C)
    if _is_symbolic(size[0] * size[1]):
        return _symbolic_crop(x, size)
    if size[0] < rows * window or size[1] < columns * window:
        x = x[:, : size[0], : size[1]].contiguous()
    return x


@torch.jit.unused
def _is_compiled_symbol(size: int) -> bool:
    return torch.compiler.is_compiling() and not has_static_value(size)


def _is_symbolic(size: int) -> bool:
    return False if torch.jit.is_scripting() else _is_compiled_symbol(size)


def _pad(x_BHWC: Tensor, pad_H: int, pad_W: int, fill_C: Tensor) -> Tensor:
    B, H, W, C = x_BHWC.shape
    if pad_W > 0:
        x_BHWC = torch.cat([x_BHWC, fill_C.expand(B, H, pad_W, C)], dim=2)
    if pad_H > 0:
        x_BHWC = torch.cat([x_BHWC, fill_C.expand(B, pad_H, W + pad_W, C)], dim=1)
    return x_BHWC


@torch.jit.unused
def _symbolic_partition(x_BHWC: Tensor, window: int, fill_C: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Cut with one more row and column of windows than needed: an export would fix a number of windows that is 1."""
    x = _pad(x_BHWC, 2 * window - 1, 2 * window - 1, fill_C)
    x_BRSCww = x.unfold(1, window, window).unfold(2, window, window)
    B, rows, columns, C = x_BRSCww.shape[:4]
    x_BRSwwC = x_BRSCww.permute(0, 1, 2, 4, 5, 3).clone(memory_format=torch.contiguous_format)
    return x_BRSwwC.view(B * rows * columns, window * window, C), (rows, columns)


@torch.jit.unused
def _symbolic_crop(x_BHWC: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop without slicing, which asserts that the map is large enough: the solver cannot prove that."""
    for dim, length in ((1, size[0]), (2, size[1])):
        x_BHWC = x_BHWC.index_select(dim, torch.arange(length, device=x_BHWC.device))
    return x_BHWC
