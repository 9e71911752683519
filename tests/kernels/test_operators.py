"""Every operator against its plain formula in float64: values, gradients, layouts, order of sums.

Here by native.cpp; on CUDA, and in the process that test_interpreter.py starts, by Triton.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from davit.kernels import ops
from davit.kernels.training import GeluLinear
from davit.kernels.triton import channel, encoding, support
from tests.kernels.conftest import DEVICE, assert_close, double, noise

OPERATORS = {
    "window": (ops.window_attention, ops.window_formula),
    "channel": (ops.channel_attention, ops.channel_formula),
    "channel_qk": (ops.channel_attention, ops.channel_formula),
    "encoding": (ops.encode_and_norm, ops.encode_and_norm_formula),
    "gelu": (GeluLinear.apply, GeluLinear.formula),
}
#: For each operator sizes of its map, and what else it takes: heads, channels of a head and window; groups and their
#: channels; channels; channels read and written.
CASES = [
    ("window", (2, 7, 9), (2, 32, 7)),  # padded
    ("window", (1, 3, 5), (2, 12, 4)),  # smaller than a window
    ("window", (1, 8, 4), (1, 16, 4)),  # tiled
    ("window", (1, 1, 1), (3, 4, 7)),
    ("window", (1, 3, 2), (1, 8, 1)),  # one position of a window
    ("window", (1, 9, 11), (1, 16, 10)),
    ("window", (0, 5, 5), (1, 16, 4)),
    ("channel", (2, 13, 11), (2, 32)),  # two blocks of positions
    ("channel", (1, 3, 5), (2, 12)),
    ("channel", (1, 12, 11), (1, 24)),
    ("channel", (0, 5, 5), (1, 16)),
    ("channel_qk", (2, 13, 11), (2, 32)),
    ("channel_qk", (1, 3, 5), (2, 12)),
    ("channel_qk", (0, 5, 5), (1, 16)),
    ("encoding", (1, 9, 17), (70,)),  # several strips
    ("encoding", (1, 2, 5), (160,)),
    ("encoding", (1, 1, 1), (24,)),
    ("encoding", (2, 5, 1), (12,)),
    ("encoding", (1, 3, 4), (3,)),
    ("encoding", (0, 5, 5), (16,)),
    ("gelu", (1, 2, 3), (20, 8)),
]
FIRST = {name: next(case for case in CASES if case[0] == name) for name in OPERATORS}
SMALL = {
    "window": ((2, 3, 5), (1, 16, 4)), "channel": ((2, 3, 5), (1, 16)), "encoding": ((2, 3, 5), (16,)),
    "channel_qk": ((2, 3, 5), (1, 16)), "gelu": ((2, 3, 5), (16, 8)),
}  # fmt: skip
some = settings(deadline=None, max_examples=16, derandomize=True)
batch, side, heads = st.integers(0, 2), st.integers(1, 17), st.integers(1, 3)
dtypes = st.sampled_from([torch.float32, torch.bfloat16])


def inputs(name, shape, sizes, dtype=torch.float32, absent=False, x=None):
    """An operator's arguments; with ``absent`` without biases and the norm's weight."""
    width = 3 * sizes[0] * sizes[1] if name in ("window", "channel", "channel_qk") else sizes[0]
    x = noise((*shape, width), dtype) if x is None else x

    def optional(size, seed):
        return None if absent else noise((size,), dtype, seed)

    if name == "window":
        return [x, optional(width, 1), sizes[2], sizes[0]]
    if name == "channel":
        return [x, sizes[0]]
    if name == "channel_qk":
        return [x, sizes[0], True]
    if name == "encoding":
        return [x, noise((width, 1, 3, 3), dtype, 1), *(optional(width, seed) for seed in (2, 3, 4)), 1e-3, dtype]
    return [x, noise((sizes[1], width), dtype, 1), optional(sizes[1], 2)]


def exact(arguments):
    """The same arguments in float64."""
    wide = [double(a) if isinstance(a, torch.Tensor) else a for a in arguments]
    return [torch.float64 if isinstance(a, torch.dtype) else a for a in wide]


def outputs_of(function, arguments):
    """The two first outputs; those after them are for the backward pass."""
    outputs = function(*arguments)
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs[:2])


def leaves_of(arguments):
    return [a for a in arguments if isinstance(a, torch.Tensor)]


def gradients_of(outputs, leaves, grads):
    """The gradients of as many outputs as there are gradients."""
    pairs = [(o, g.to(o).expand_as(o)) for o, g in zip(outputs, grads, strict=False) if o.requires_grad]
    return torch.autograd.grad([o for o, _ in pairs], leaves, [g for _, g in pairs], allow_unused=True)


def check(name, shape, sizes, dtype=torch.float32, **options):
    """Compare an operator with its formula in float64, forward and backward."""
    operator, formula = OPERATORS[name]
    arguments = inputs(name, shape, sizes, dtype, **options)
    wide = exact(arguments)
    found, expected = outputs_of(operator, arguments), outputs_of(formula, wide)
    grads = [noise(o.transpose(1, 2).shape, dtype, i).transpose(1, 2).detach() for i, o in enumerate(expected)]
    assert found[0].dtype == dtype
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, dtype)
    grads = grads[:1] if name.startswith("channel") else grads  # of the attention there are none
    right = gradients_of(expected, leaves_of(wide), grads)
    for one, other in zip(gradients_of(found, leaves_of(arguments), grads), right, strict=True):
        if name.startswith("channel"):  # of q, k and v apart
            for part, right_part in zip(one.chunk(3, dim=-1), other.chunk(3, dim=-1), strict=True):
                assert_close(part, right_part, dtype)
        else:
            assert_close(one, other, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", OPERATORS)
def test_each_kernel_equals_float64(name, dtype):
    check(*FIRST[name], dtype=dtype)


@pytest.mark.parametrize("case", [case for case in CASES if case not in FIRST.values()], ids=str)
def test_kernels_equal_float64(case):
    check(*case)


@some
@given(batch, side, side, heads, st.sampled_from([16, 32, 48, 64]), st.integers(2, 16), dtypes, st.booleans())
def test_windows_of_any_size_equal_float64(B, H, W, G, D, window, dtype, absent):
    check("window", (B, H, W), (G, D, window), dtype, absent=absent)


@some
@given(
    st.sampled_from(["channel", "channel_qk"]), batch, st.integers(2, 40), side, heads,
    st.sampled_from([16, 32, 48, 128]), dtypes,
)  # fmt: skip
def test_channels_of_any_size_equal_float64(name, B, H, W, G, D, dtype):
    check(name, (B, H, W), (G, D), dtype)


@some
@given(batch, st.integers(1, 45), st.integers(1, 90), st.sampled_from([16, 48, 96, 768]), dtypes, st.booleans())
def test_encodings_of_any_size_equal_float64(B, H, W, C, dtype, absent):
    check("encoding", (B, H, W), (C,), dtype, absent=absent)


@pytest.mark.long
@pytest.mark.skipif(
    DEVICE == "cpu" and not support.INTERPRETED, reason="not by Triton: formulas in two bytes are coarser"
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_kernels_in_two_bytes(case, dtype):
    check(*case, dtype=dtype)


@pytest.mark.parametrize("name", ["window", "encoding", "gelu"])
def test_biases_and_norm_weights_may_be_absent(name):
    check(name, *SMALL[name], absent=True)


@pytest.mark.parametrize("output", [0, 1], ids=["y", "normed"])
@pytest.mark.parametrize("absent", [False, True])
def test_encodings_with_one_gradient(absent, output):
    arguments = inputs("encoding", *SMALL["encoding"], absent=absent)
    wide, results = exact(arguments), []
    for function, values in zip(OPERATORS["encoding"], (arguments, wide), strict=True):
        results.append(gradients_of([outputs_of(function, values)[output].sin()], leaves_of(values), [torch.ones(1)]))
    for one, other in zip(*results, strict=True):
        assert_close(one, other, torch.float32)


@pytest.mark.parametrize("name", OPERATORS)
def test_kernels_read_any_layout(laid_out, name):
    shape, sizes = SMALL[name]
    channels = {"window": 48, "channel": 48, "channel_qk": 48, "encoding": 16, "gelu": 16}[name]
    check(name, shape, sizes, x=laid_out(channels))


@pytest.mark.parametrize("programs", [1, 2, 100000])
@pytest.mark.parametrize("name", ["channel", "channel_qk", "encoding"])
def test_sums_may_be_cut_into_any_number_of_parts(monkeypatch, name, programs):
    for module in (channel, encoding):
        monkeypatch.setattr(module, "MANY_PROGRAMS", programs)
    monkeypatch.setattr(channel, "BLOCK", 16)
    check(name, (1, 7, 9), SMALL[name][1])


def test_parameters_may_be_in_float32_under_autocast():
    """The bias of the map of q, k and v; a residual stream with its norm for a linear layer in bfloat16."""
    qkv, bias = noise((1, 3, 4, 48), torch.bfloat16), noise((48,), seed=1)
    ops.window_attention(qkv, bias, 4, 1).sum().backward()
    assert (qkv.grad.dtype, bias.grad.dtype) == (torch.bfloat16, torch.float32)
    assert bias.grad[16:].any() and not bias.grad[:16].any()  # queries of padded positions are cropped
    leaves = [noise((1, 3, 4, 24)), *(noise(s, seed=i) for i, s in enumerate([(24, 1, 3, 3), (24,), (24,), (24,)]))]
    y, normed, *_ = ops.encode_and_norm(*leaves, 1e-5, torch.bfloat16)
    expected = ops.encode_and_norm_formula(*(t.double() for t in leaves), 1e-5, torch.float64)
    assert_close(y, expected[0], torch.float32)
    assert_close(normed, expected[1], torch.bfloat16)
    (y.sum() + normed.float().sin().sum()).backward()
    assert [t.grad.dtype for t in leaves] == 5 * [torch.float32]


@pytest.mark.parametrize("name", OPERATORS)
def test_results_are_repeatable(name):
    arguments = inputs(name, *SMALL[name])
    grads = [
        gradients_of(outputs_of(OPERATORS[name][0], arguments), leaves_of(arguments), 2 * [torch.ones(1)])
        for _ in range(2)
    ]
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


@pytest.mark.parametrize("name", ["window", "channel", "channel_qk", "encoding"])
def test_operators_are_well_formed(name):
    arguments = inputs(name, *SMALL[name])
    torch.library.opcheck(OPERATORS[name][0], arguments)
    plain = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]
    if name == "window":
        torch.library.opcheck(ops.window_attention_backward, (plain[0][..., :16], *plain))
    elif name.startswith("channel"):
        out, attention = ops.channel_attention(*plain)
        torch.library.opcheck(ops.channel_attention_backward, (out, plain[0], attention, *plain[1:]))
    else:
        y, normed, mean, rstd = ops.encode_and_norm(*plain)
        for grads in ((y, normed), (None, normed), (y, None)):
            torch.library.opcheck(ops.encode_and_norm_backward, (*grads, plain[0], plain[1], plain[3], y, mean, rstd))


@pytest.mark.parametrize("name", OPERATORS)
def test_gradients_of_gradients(name):
    arguments = inputs(name, *SMALL[name])
    wide, results = exact(arguments), []
    for function, values in zip(OPERATORS[name], (arguments, wide), strict=True):
        leaves, outputs = leaves_of(values), outputs_of(function, values)
        loss = sum((o.square() + o.sin()).sum() for o in (outputs[:1] if name.startswith("channel") else outputs))
        first = torch.autograd.grad(loss, leaves, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), leaves, allow_unused=True))
    for one, other in zip(*results, strict=True):
        assert_close(one, other, torch.float32)


@pytest.mark.parametrize("name", ["window", "channel", "channel_qk", "encoding"])
def test_without_triton_operators_compute_the_same(without_kernels, name):
    """As a program that was exported on CUDA does on a machine without it."""
    without_kernels()
    check(name, *SMALL[name])
