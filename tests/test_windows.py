"""Windows are cut and put back without loss, padded with what is asked for, the same way for exporters."""

import pytest
import torch
import torch.nn.functional as F

from davit import windows
from davit.model import WindowAttention
from davit.windows import pad_odd, window_partition, window_unpartition

SIZES = [(1, 1), (7, 7), (8, 8), (14, 21), (6, 20), (15, 13), (3, 30)]


@pytest.fixture
def exporting(monkeypatch):
    """Take the path of torch.export with a dynamic size."""
    monkeypatch.setattr(windows, "_is_symbolic", lambda size: True)


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("window", [1, 4, 7])
@pytest.mark.parametrize("size", SIZES)
def test_round_trip(size, window):
    x = noise(2, *size, 5)
    cut, tiling = window_partition(x, window, None)
    rows, columns = (-(-length // window) for length in size)
    assert tiling == (rows, columns)
    assert cut.shape == (2 * rows * columns, window * window, 5)
    restored = window_unpartition(cut, window, tiling, size)
    assert torch.equal(restored, x)
    assert restored.is_contiguous()


def test_windows_are_the_squares_of_the_map_row_by_row():
    x = noise(2, 8, 12, 3)
    cut, _ = window_partition(x, 4, None)
    squares = [x[b, i : i + 4, j : j + 4].reshape(16, 3) for b in (0, 1) for i in (0, 4) for j in (0, 4, 8)]
    assert torch.equal(cut, torch.stack(squares))


@pytest.mark.parametrize("fill", [None, torch.tensor([1.0, -2.0, 3.0])])
def test_padding_is_right_and_bottom_and_holds_the_fill(fill):
    cut, tiling = window_partition(noise(1, 5, 6, 3), 4, fill)
    whole = window_unpartition(cut, 4, tiling, (8, 8))
    expected = torch.zeros(3) if fill is None else fill
    assert torch.equal(whole[:, :5, :6], noise(1, 5, 6, 3))
    assert torch.equal(whole[:, 5:], expected.expand(1, 3, 8, 3))
    assert torch.equal(whole[:, :, 6:], expected.expand(1, 8, 2, 3))


@pytest.mark.parametrize("bias", [True, False])
def test_filling_with_the_bias_equals_padding_before_the_linear_layer(bias):
    torch.manual_seed(0)
    linear = torch.nn.Linear(6, 18, bias=bias)
    x = noise(2, 9, 5, 6)
    filled, tiling = window_partition(linear(x), 7, linear.bias)
    padded, _ = window_partition(linear(F.pad(x, (0, 0, 0, 2, 0, 5))), 7, None)
    assert tiling == (2, 1)
    torch.testing.assert_close(filled, padded, rtol=0, atol=1e-6)


def test_the_fill_takes_the_number_format_of_the_map():
    """Under autocast the map is half precision and the bias is not."""
    cut, _ = window_partition(noise(1, 3, 3, 2).bfloat16(), 4, torch.ones(2))
    assert cut.dtype == torch.bfloat16


@pytest.mark.parametrize("size", SIZES)
def test_pad_odd(size):
    x = noise(2, *size, 5)
    even = pad_odd(x)
    assert even.shape[1:3] == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert torch.equal(even[:, : size[0], : size[1]], x)
    assert not even[:, size[0] :].any() and not even[:, :, size[1] :].any()


@pytest.mark.parametrize("size", SIZES)
def test_symbolic_padding_of_odd_sizes_reaches_no_convolution(size, exporting):
    x = noise(2, *size, 5)
    weight = noise(3, 5, 2, 2)
    even = F.pad(x, (0, 0, 0, size[1] % 2, 0, size[0] % 2))
    plain, symbolic = (F.conv2d(m.permute(0, 3, 1, 2), weight, stride=2) for m in (even, pad_odd(x)))
    torch.testing.assert_close(symbolic, plain)


@pytest.mark.parametrize("size", SIZES)
def test_symbolic_windows_hold_the_plain_ones(size, monkeypatch):
    x, fill = noise(2, *size, 5), noise(5)
    plain, (rows, columns) = window_partition(x, 7, fill)
    monkeypatch.setattr(windows, "_is_symbolic", lambda size: True)
    symbolic, (more_rows, more_columns) = window_partition(x, 7, fill)
    assert more_rows > rows and more_columns > columns
    grid = symbolic.reshape(2, more_rows, more_columns, 49, 5)
    assert torch.equal(grid[:, :rows, :columns].flatten(0, 2), plain)
    assert torch.equal(grid[:, rows:], fill.expand_as(grid[:, rows:]))
    assert torch.equal(window_unpartition(symbolic, 7, (more_rows, more_columns), size), x)


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_symbolic_attention_equals_the_plain_one(size, qkv_bias, monkeypatch):
    torch.manual_seed(0)
    attention = WindowAttention(12, 3, 7, qkv_bias)
    x = noise(2, *size, 12)
    plain = attention(x)
    monkeypatch.setattr(windows, "_is_symbolic", lambda size: True)
    torch.testing.assert_close(attention(x), plain, rtol=1e-5, atol=1e-6)
