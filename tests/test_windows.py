"""Windows are cut and put back without loss, padded with what is asked for, the same way for exporters."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from davit import windows
from davit.windows import pad_odd, window_partition, window_unpartition

any_map = given(size=st.tuples(st.integers(1, 30), st.integers(1, 30)), window=st.integers(1, 9))
some = settings(deadline=None, max_examples=25, derandomize=True)


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def symbolic(function, *arguments):
    """Call a function on the path of torch.export with a dynamic size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "_is_symbolic", lambda size: True)
        return function(*arguments)


@some
@any_map
def test_windows_are_the_padded_squares_of_the_map_and_go_back(size, window):
    x, fill = noise(2, *size, 3), noise(3)
    for filled in (None, fill):
        cut, tiling = window_partition(x, window, filled)
        assert tiling == tuple(-(-length // window) for length in size)
        padded = (torch.zeros(3) if filled is None else fill).repeat(2, *(n * window for n in tiling), 1)
        padded[:, : size[0], : size[1]] = x
        rows, columns = (range(0, n * window, window) for n in tiling)
        squares = [
            padded[b, i : i + window, j : j + window].flatten(0, 1) for b in (0, 1) for i in rows for j in columns
        ]
        assert torch.equal(cut, torch.stack(squares))
        restored = window_unpartition(cut, window, tiling, size)
        assert torch.equal(restored, x) and restored.is_contiguous()


@pytest.mark.parametrize("bias", [True, False])
def test_filling_with_the_bias_equals_padding_before_the_linear_layer(bias):
    torch.manual_seed(0)
    linear = torch.nn.Linear(6, 18, bias=bias)
    x = noise(2, 9, 5, 6)
    filled, tiling = window_partition(linear(x), 7, linear.bias)
    padded, _ = window_partition(linear(F.pad(x, (0, 0, 0, 2, 0, 5))), 7, None)
    assert tiling == (2, 1)
    torch.testing.assert_close(filled, padded, rtol=0, atol=1e-6)


@some
@any_map
def test_pad_odd(size, window):
    x = noise(2, *size, 5)
    even = pad_odd(x)
    assert torch.equal(even, F.pad(x, (0, 0, 0, size[1] % 2, 0, size[0] % 2)))
    weight = noise(3, 5, 2, 2)  # a convolution reads no more of the padding for exporters
    plain, exported = (F.conv2d(m.permute(0, 3, 1, 2), weight, stride=2) for m in (even, symbolic(pad_odd, x)))
    torch.testing.assert_close(exported, plain)


@some
@any_map
def test_windows_of_exporters_hold_the_plain_ones(size, window):
    x, fill = noise(2, *size, 5), noise(5)
    plain, (rows, columns) = window_partition(x, window, fill)
    exported, tiling = symbolic(window_partition, x, window, fill)
    assert tiling[0] > rows and tiling[1] > columns
    grid = exported.reshape(2, *tiling, window**2, 5)
    assert torch.equal(grid[:, :rows, :columns].flatten(0, 2), plain)
    assert torch.equal(grid[:, rows:], fill.expand_as(grid[:, rows:]))
    assert torch.equal(symbolic(window_unpartition, exported, window, tiling, size), x)
