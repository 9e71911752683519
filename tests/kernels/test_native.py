"""The functions of native.cpp against float64: values, gradients, layouts, threads; and how they are found."""

import ctypes
import functools
import logging
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch._inductor.config
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from davit import DaViT, accelerate, plain
from davit.kernels import ops
from davit.kernels.cpu import library, native
from davit.kernels.modules import block_arguments
from davit.model import ChannelAttention, ChannelAttentionQK, DualAttentionBlock, WindowAttention
from tests.kernels.conftest import assert_close, double, noise, relative

pytestmark = pytest.mark.skipif(
    native.LIBRARY is None or torch.cuda.is_available(), reason="no compiled functions for this processor"
)

DTYPES = [torch.float32, torch.bfloat16]
FAR_OUT = torch.cat([torch.linspace(-20, 20, 16001), torch.tensor([0.0, -0.0, 1e-30, -1e30, 1e30, 3e38, -1e-6, -5.6])])
some = settings(deadline=None, max_examples=16, derandomize=True)
needs_pairs = pytest.mark.skipif(not native.has_products(torch.bfloat16), reason="no products of bfloat16 here")
WITH_PRODUCTS = [torch.float32, pytest.param(torch.bfloat16, marks=needs_pairs)]


def assert_all_close(actual, expected, dtype):
    for one, other in zip(actual, expected, strict=True):
        assert_close(one, other, dtype)


# --- values and gradients ---


def vectors(C):
    return [noise(shape, seed=i + 5) for i, shape in enumerate([(C, 1, 3, 3), (C,), (C,), (C,)])]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gelu_equals_float64_far_out(dtype):
    """In float32 nearer than PyTorch's own, whose 1 + erf cancels where x is far below 0."""
    x = F.pad(FAR_OUT, (0, -len(FAR_OUT) % 16)).to(dtype)
    grad = torch.ones_like(x)
    grad_x, activated, _ = native.gelu_backward(grad.clone(), x)
    exact = x.double()
    if dtype == torch.float32:
        tail = (exact < -1) & (exact > -12)  # beyond, the density leaves float32's range
        right = 0.5 * exact * torch.special.erfc(-exact / 2**0.5)
        relative = (activated - right).abs() / right.abs()
        assert (relative <= 5e-7 * (1 + exact.square()))[tail].all()  # of e^(-x^2 / 2) no more is to be had
    torch.testing.assert_close(activated.double(), F.gelu(exact), rtol=0.005, atol=1e-6)
    expected = torch.ops.aten.gelu_backward(grad.double(), exact)
    torch.testing.assert_close(grad_x.double(), expected, rtol=0.006, atol=2e-6)


@pytest.mark.parametrize("dtype", WITH_PRODUCTS, ids=str)
def test_gelu_of_an_mlp_equals_float64_far_out(dtype):
    """Through layers that multiply by 1; values come in by the bias, which is added after the product."""
    one, nothing = torch.eye(32, dtype=dtype), torch.zeros(1, 32, dtype=dtype)

    def gelu(values):
        values = F.pad(values, (0, 32 - len(values))).to(dtype)
        return native.mlp(nothing, native.NormArgs(None, None, 1e-5), one, values, one, None)[0]

    found = torch.cat([gelu(values)[: len(values)] for values in FAR_OUT.split(32)]).double()
    exact = F.gelu(FAR_OUT.to(dtype).double())
    torch.testing.assert_close(found, exact, rtol=3e-7 if dtype == torch.float32 else 0.005, atol=1.5e-7)
    for bad in (float("nan"), float("inf")):
        assert not gelu(torch.full((32,), bad)).isfinite().any()


def layers(C, E, dtype):
    """Weight and bias of a norm and of two layers."""
    shapes = [(C,), (C,), (E, C), (E,), (C, E), (C,)]
    return [(noise(shape, seed=i).detach() * shape[-1] ** -0.5).to(dtype) for i, shape in enumerate(shapes)]


#: Rows in two axes, channels read, channels written or hidden; also no rows, several tasks and parts, cut panels.
any_product = given(
    st.tuples(st.integers(0, 3), st.integers(1, 130)), st.sampled_from([32, 64, 96, 128]),
    st.sampled_from([32, 96, 160, 288, 544]), st.sampled_from([d for d in DTYPES if native.has_products(d)] or DTYPES),
)  # fmt: skip


@some
@any_product
def test_products_and_their_gradients_equal_float64(rows, C, E, dtype):
    x, grad, grad_wide = (noise((*rows, c), dtype, i).detach() for i, c in enumerate((C, C, E)))
    norm_weight, norm_bias, weight1, bias1, weight2, bias2 = layers(C, E, dtype)
    norm = native.NormArgs(norm_weight, norm_bias, 1e-3)
    exact = [double(t) for t in (x, norm_weight, norm_bias, weight1, bias1, weight2, bias2)]
    normed = F.layer_norm(exact[0], (C,), exact[1], exact[2], 1e-3)
    hidden = F.linear(normed, *exact[3:5])
    activated = F.gelu(hidden)
    expected = F.linear(activated, *exact[5:7])
    mean = exact[0].mean(-1)
    rstd = ((exact[0] - mean[..., None]).square().mean(-1) + 1e-3).rsqrt()

    assert_close(native.linear(x, weight1, bias1), F.linear(exact[0], *exact[3:5]), dtype)
    found = native.linear(x, weight1, None, norm=native.NormArgs(None, None, 1e-3))
    assert_close(found, F.linear(F.layer_norm(exact[0], (C,), eps=1e-3), exact[3]), dtype)
    assert_close(native.linear(x, weight1, bias1, norm), hidden, dtype)
    assert_close(native.mlp(x, norm, weight1, bias1, weight2, bias2), expected, dtype)
    kept, out = x.new_empty(*rows, E), torch.empty_like(x)
    norm = norm._replace(mean=torch.empty(rows), rstd=torch.empty(rows))
    assert native.mlp(x, norm, weight1, bias1, weight2, bias2, kept, out) is out
    assert_all_close((out, kept), (expected, hidden), dtype)
    assert_all_close((norm.mean, norm.rstd), (mean, rstd), torch.float32)

    assert_close(native.linear(grad_wide, weight1, None, transposed=True), grad_wide.double() @ exact[3], dtype)
    found = native.linear_backward(grad_wide, x, norm, weight1)
    right = torch.autograd.grad(hidden, [exact[4], *exact[:3]], grad_wide.double(), retain_graph=True)
    assert_all_close(found, (normed, *right), dtype)
    grad_hidden, *found = native.mlp_backward(grad, x, norm, weight1, weight2, hidden.detach().to(dtype))
    leaves = [hidden, exact[4], exact[6], *exact[:3]]
    right = torch.autograd.grad(expected, leaves, grad.double())
    assert_all_close((grad_hidden, *found), (right[0], activated, normed, *right[1:]), dtype)


BLOCKS = {  # batch, height, width, channels, heads or groups, window (0: channel attention), options
    "window 7, padded": (2, 9, 15, 64, 2, 7, {}),
    "several images at a time, and the rest": (5, 90, 90, 32, 1, 7, {}),
    "smaller than a window, no bias": (2, 3, 5, 64, 2, 4, {"qkv_bias": False}),
    "window 16, as large as may be": (1, 16, 17, 32, 1, 16, {}),
    "windows without an MLP": (1, 14, 14, 96, 3, 7, {"mlp_ratio": None}),
    "heads of 16, an odd number": (1, 15, 14, 112, 7, 7, {"mlp_ratio": 2.0}),
    "wide heads": (1, 8, 8, 192, 1, 4, {}),
    "few positions, a hidden map of several parts": (1, 12, 20, 256, 8, 7, {}),
    # few positions for many channels; the rest uses the Gram matrix, in bfloat16 from twice the positions on
    "channels, one unit": (3, 5, 5, 96, 3, 0, {"qkv_bias": False}),
    "channels, several units": (2, 12, 10, 256, 4, 0, {}),
    "channels, one position": (7, 1, 1, 64, 2, 0, {}),
    "channels, groups of 128": (1, 9, 9, 256, 2, 0, {}),
    "channels, groups of 16": (2, 9, 11, 112, 7, 0, {}),
    "Gram matrix, a third panel cut short": (2, 37, 31, 160, 5, 0, {}),
    "Gram matrix, many units": (1, 170, 153, 32, 1, 0, {"qkv_bias": False}),
    "Gram matrix, several images at a time": (5, 90, 90, 32, 1, 0, {}),
    "Gram matrix, groups of 16": (2, 15, 17, 112, 7, 0, {}),
    "Gram matrix, groups of 96": (1, 24, 23, 192, 2, 0, {}),
    "Gram matrix without an MLP": (1, 17, 14, 96, 3, 0, {"mlp_ratio": None}),
    # Florence-2's function: q, k and v in other places, another scale
    "queries and keys, one unit": (3, 5, 5, 96, 3, 0, {"qk": True}),
    "queries and keys, several units": (2, 12, 10, 256, 4, 0, {"qk": True, "qkv_bias": False}),
    "queries and keys, groups of 128": (1, 9, 9, 256, 2, 0, {"qk": True}),
    "queries and keys, Gram matrix": (2, 37, 31, 160, 5, 0, {"qk": True}),
    "queries and keys, Gram matrix, groups of 96": (1, 24, 23, 192, 2, 0, {"qk": True, "mlp_ratio": None}),
    "queries and keys, Gram matrix, many units": (1, 170, 153, 32, 1, 0, {"qk": True}),
}


def block_of(C, heads, window, dtype=torch.float32, qkv_bias=True, mlp_ratio=4.0, qk=False):
    """With parameters that all matter."""
    among_channels = ChannelAttentionQK if qk else ChannelAttention
    attention = WindowAttention(C, heads, window, qkv_bias) if window else among_channels(C, heads, qkv_bias)
    block = DualAttentionBlock(C, attention, mlp_ratio, 0.0, False, torch.nn.LayerNorm)
    for i, parameter in enumerate(block.parameters()):
        fan = parameter[0].numel() if parameter.dim() > 1 else 4
        parameter.data = noise(parameter.shape, seed=i).detach() * fan**-0.5
    return block.to(dtype).eval().requires_grad_(False)


@pytest.mark.parametrize("dtype", WITH_PRODUCTS, ids=str)
@pytest.mark.parametrize("case", BLOCKS)
def test_blocks_equal_float64(case, dtype):
    B, H, W, C, heads, window, options = BLOCKS[case]
    if dtype == torch.bfloat16 and C // heads % 32:
        pytest.skip("no such products of bfloat16")
    block, x = block_of(C, heads, window, dtype, **options), noise((B, H, W, C), dtype).detach()
    exact = block_of(C, heads, window, dtype, **options).double()
    given = x.clone()
    found = native.infer_block(x, *block_arguments(block))
    assert found.dtype == dtype and torch.equal(x, given)
    weights, *rest = block_arguments(block)
    packed = native.pack_block(weights, heads)
    vectors = [None if i in native.MATRICES else p for i, p in enumerate(weights)]
    by_packed = native.infer_block(x, vectors, *rest, packed)
    assert torch.equal(by_packed, found) or B * H * W <= native.FEW_POSITIONS  # these add in another order
    expected = exact(x.double())
    plain_error = relative(block(x), expected)
    for output in (found, by_packed):
        assert relative(output, expected) < (
            max(2e-6, 1.5 * plain_error) if dtype == torch.float32 else 1.1 * plain_error
        )


@needs_pairs
def test_norms_of_a_block_may_stay_in_float32():
    block, x = block_of(64, 2, 7), noise((2, 9, 9, 64), torch.bfloat16).detach()
    rounded, kept = (block_of(64, 2, 7, torch.bfloat16) for _ in range(2))
    expected = block.double()(x.double())
    kept.norm1, kept.norm2 = block.norm1.float(), block.norm2.float()
    errors = [relative(native.infer_block(x, *block_arguments(one)), expected) for one in (rounded, kept)]
    assert errors[1] < errors[0] and errors[1] < 0.02


def test_threads_of_python_share_no_memory_of_blocks():
    small, large = noise((1, 7, 7, 96)).detach(), noise((1, 28, 28, 96)).detach()
    given = block_arguments(block_of(96, 3, 0))
    expected = native.infer_block(large, *given)
    native.infer_block(small, *given)  # in memory that is larger than it needs
    with ThreadPoolExecutor(3) as pool:
        for found in pool.map(lambda _: native.infer_block(large, *given), range(9)):
            assert torch.equal(found, expected)


def test_products_of_any_layout():
    norm_weight, norm_bias, weight1, bias1, weight2, bias2 = layers(64, 96, torch.float32)
    norm, x = native.NormArgs(norm_weight, norm_bias, 1e-5), noise((2, 64, 5, 7)).detach().permute(0, 2, 3, 1)
    transposed1, transposed2 = weight1.t().contiguous().t(), weight2.t().contiguous().t()
    expected = native.mlp(x.contiguous(), norm, weight1, bias1, weight2, bias2)
    assert torch.equal(native.mlp(x, norm, transposed1, bias1, transposed2, bias2), expected)
    expected = native.linear(x.contiguous(), weight1, bias1)
    assert torch.equal(native.linear(x, transposed1, bias1), expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_infinities_and_nan_are_passed_on_as_far_as_they_reach(bad):
    x = noise((1, 21, 7, 96)).detach()
    x[0, 3, 3, 40] = bad
    attended = ops.window_attention(x[:, :7], None, 7, 2)
    assert not attended[..., :16].isfinite().all() and attended[..., 16:].isfinite().all()
    assert not ops.channel_attention(x, 2)[0].isfinite().all()
    y = ops.encode_and_norm(x, *vectors(96), 1e-5, torch.float32)[0]
    reached = torch.zeros(21, 7, dtype=torch.bool)
    reached[2:5, 2:5] = True
    assert torch.equal(~y[0].isfinite().all(-1), reached)
    out = native.infer_block(x, *block_arguments(block_of(96, 3, 7)))[0]
    reached[:8] = True  # its window, and a row further by the second encoding
    assert torch.equal(~out.isfinite().any(-1), reached)
    assert not native.gelu_backward(torch.ones(1, 16), torch.full((1, 16), bad))[1].isfinite().any()


def test_results_do_not_depend_on_the_number_of_threads():
    def everything():
        qkv, x = noise((2, 25, 26, 96)), noise((2, 25, 26, 48))
        parameters, bias = vectors(48), noise((96,), seed=1)
        maps = [ops.window_attention(qkv, bias, 7, 2), ops.channel_attention(qkv, 2)[0]]
        maps += ops.encode_and_norm(x, *parameters, 1e-5, torch.float32)[:2]
        grads = torch.autograd.grad(sum(m.sin().sum() for m in maps), [qkv, bias, x, *parameters])
        norm_weight, norm_bias, *weights = layers(96, 320, torch.float32)
        maps.append(native.mlp(qkv.detach(), native.NormArgs(norm_weight, norm_bias, 1e-5), *weights))
        maps.append(native.linear(qkv.detach(), *weights[:2]))
        for source in (qkv.detach(), qkv.detach()[:, :3, :7]):  # of many positions and of few
            maps += [native.infer_block(source, *block_arguments(block_of(96, 3, kind))) for kind in (0, 7)]
        wide = noise((2, 25, 26, 320), seed=3).detach()
        norm = native.NormArgs(norm_weight, norm_bias, 1e-5, qkv.detach().mean(-1), qkv.detach().std(-1))
        maps += native.linear_backward(wide, qkv.detach(), norm, weights[0])
        maps += native.mlp_backward(qkv.detach(), qkv.detach(), norm, weights[0], weights[2], wide)
        for stem, source in (
            (True, x.detach().permute(0, 3, 1, 2)),
            (False, x.detach()),
            (False, x.detach()[:, :3]),
        ):
            weight = noise((64, 48, 7, 7) if stem else (64, 48, 2, 2), seed=4).detach()
            maps.append(native.patch_embed(source, weight, None, None, None, 1e-5, 4 if stem else 2, stem))
        return [*maps, *grads, *native.gelu_backward(x.detach().clone(), x.detach() * 2)]

    results = []
    try:
        for threads in (2, 5, 1):
            torch.set_num_threads(threads)
            results.append(everything())
    finally:
        torch.set_num_threads(1)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_operators_are_well_formed():
    x = noise((2, 3, 5, 16)).detach()
    weight, bias = noise((16, 16, 2, 2)).detach(), noise((16,)).detach()
    torch.library.opcheck(ops.patch_embed, (x, weight, bias, bias, None, 1e-5, 2, False))
    torch.library.opcheck(
        ops.patch_embed, (x.permute(0, 3, 1, 2), noise((16, 16, 7, 7)).detach(), None, bias, bias, 1e-5, 4, True)
    )
    for size in (0, 4):
        given = block_arguments(block_of(x.shape[3], 1, size))
        torch.library.opcheck(ops.infer_block, (x, *given, None))
        torch.library.opcheck(ops.pack_block, (given[0], 1))
        torch.library.opcheck(ops.infer_block, (x, *given, ops.pack_block(given[0], 1)))


# --- where they run ---


@pytest.fixture
def called(monkeypatch):
    """Names of the functions of the library that are called, in order."""
    names, call = [], native.call
    monkeypatch.setattr(
        native, "call", lambda name, *rest: names.append(name.removeprefix("davit_")) or call(name, *rest)
    )
    return names


@pytest.fixture
def model():
    def make(**options):
        torch.manual_seed(0)
        shape = {"embed_dims": (64, 48), "depths": (1, 1), "num_heads": (2, 3), "window_size": 4, "num_classes": 7}
        return accelerate(DaViT(**{**shape, "drop_path_rate": 0.0, **options}))

    return make


FORWARD = {"window_attention", "channel_attention", "encode"}
PRODUCT = {"linear", "mlp"}
BACKWARD = {"window_attention_backward", "channel_attention_backward", "encode_weights"}


def test_blocks_call_them(model, picture, called, monkeypatch):
    with torch.no_grad():
        model().eval()(picture())
    assert set(called) == {"patch_embed", "block"}
    called.clear()
    model()(picture()).sum().backward()
    assert set(called) == FORWARD | BACKWARD | PRODUCT | {"linear_backward", "mlp_backward"}
    called.clear()
    with monkeypatch.context() as patched:
        patched.setattr(native, "MIN_ROWS", 1 << 40)
        model()(picture()).sum().backward()
    assert set(called) == FORWARD | BACKWARD | {"norm_backward", "gelu_backward"}
    called.clear()
    plain(model())(picture()).sum().backward()
    assert called == []


@pytest.fixture
def use_threads():
    """Set PyTorch's number of threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("positions", "threads", "C", "found"), [
    (native.FEW_POSITIONS, 4, 128, True),
    (native.FEW_POSITIONS + 1, 4, 128, True),  # 28 rows for each thread
    (4, 4, 128, True),
    (4, 5, 128, False),  # fewer than 32 columns for each thread
    (200, 8, 128, False),
    (280, 11, 384, False),  # neither few positions nor enough rows
])  # fmt: skip
def test_few_positions_need_columns_for_every_thread(use_threads, positions, threads, C, found):
    use_threads(threads)
    assert native.supports_block(torch.ones(1, 1, positions, C), 7, 4, 4 * C, False) is found


def test_few_positions_leave_the_gram_matrix_to_many_rows(monkeypatch, use_threads):
    use_threads(2)
    map_of = functools.partial(torch.ones, 1, 1)
    assert native.supports_block(map_of(40, 64), 7, 2, 256, False)
    assert native.supports_block(map_of(40, 64), 0, 2, 256, False)
    monkeypatch.setattr(native, "MIN_ROWS", 60)
    assert native.supports_block(map_of(80, 64), 7, 2, 256, False)
    assert not native.supports_block(map_of(80, 64), 0, 2, 256, False)


def test_without_the_library_blocks_compute_the_same(model, picture, called, monkeypatch):
    results = []
    for found in (native.LIBRARY, None):
        monkeypatch.setattr(native, "LIBRARY", found)
        net, pixels = model(), picture().requires_grad_()
        logits = net(pixels)
        logits.square().sum().backward()
        with torch.no_grad():
            results.append([logits, net.eval()(picture()), pixels.grad, *(p.grad for p in net.parameters())])
        assert bool(called) == (found is not None)
        called.clear()
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_sizes_that_they_do_not_have(model, picture, called):
    """Heads of 8 channels, windows of 17 positions a side, maps of 24 channels, a GELU in the encoding."""
    for options, left in (
        ({"num_heads": (8, 6)}, {"patch_embed"}),
        ({"window_size": 17}, {"patch_embed", "block"}),
        ({"embed_dims": (24, 40), "num_heads": (1, 1)}, set()),
        ({"cpe_act": True}, {"patch_embed", "window_attention", "channel_attention"}),
    ):
        called.clear()
        net = model(**options).eval()
        with torch.no_grad():
            logits = net(picture())
            assert set(called) == left
            plain(net)
            torch.testing.assert_close(logits, net(picture()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
def test_a_compiler_sees_them_as_single_operators(model, picture, recorded, train, dtype):
    net, image = model().to(dtype).train(train), picture().to(dtype)
    compiled, names = recorded(net, "aot_eager")
    results = []
    with torch.set_grad_enabled(train):
        for function in (net, compiled):
            net.zero_grad()
            logits = function(image)
            if train:
                logits.float().square().sum().backward()
            results.append([logits, *(p.grad for p in net.parameters() if train)])
    names = {name.split(".")[1] for name in names if "davit." in name}
    one_by_one = {"window_attention", "channel_attention", "encode_and_norm"}
    if train or not native.has_products(dtype):
        assert names == one_by_one
    else:  # with 48 channels in heads of 16, the second stage is not for products of bfloat16
        assert names == {"patch_embed", "block"} | (one_by_one if dtype == torch.bfloat16 else set())
    for one, other in zip(*results, strict=True):
        error = (one.double() - other.double()).norm() / other.double().norm().clamp_min(1e-3)
        assert error < (1e-4 if dtype == torch.float32 else 0.1)


def test_a_compiler_leaves_paths_to_be_dropped(model, picture, recorded):
    """A block in training mode is no operator for inference, gradients or not."""
    compiled, names = recorded(model(drop_path_rate=0.9).train())
    with torch.no_grad():
        compiled(picture())
    assert any("bernoulli" in name for name in names)
    assert names.count("davit.block.default") == 1  # the first block keeps all


def test_weights_are_packed_apart_only_where_they_are_frozen(model, picture, recorded):
    """Elsewhere a copy could outlive a change of the weights."""
    net, results = model().eval(), []
    for frozen in (False, True):
        torch._dynamo.reset()
        compiled, names = recorded(net)
        with torch.no_grad(), torch._inductor.config.patch(freezing=frozen):
            results.append(compiled(picture()))
        assert ("davit.pack_block.default" in names) == frozen and "davit.block.default" in names
    assert torch.equal(*results)


@pytest.mark.long
def test_inductor_packs_frozen_weights_once(model, picture, monkeypatch):
    """And without freezing it sees a change of them."""
    calls, ask = [], native.ask

    def watched(library, name, *given):
        calls.extend([name] * (name == "davit_pack_block"))
        return ask(library, name, *given)

    monkeypatch.setattr(native, "ask", watched)
    for frozen in (True, False):
        torch._dynamo.reset()
        calls.clear()
        net, image = model().eval(), picture()
        with torch.no_grad(), torch._inductor.config.patch(freezing=frozen):
            compiled = torch.compile(net, fullgraph=True)
            torch.testing.assert_close(compiled(image), net(image), rtol=1e-4, atol=1e-5)
            assert len(calls) == (4 if frozen else 0)
            before = net(image)
            net.main_blocks[0][0][0].mlp.fc1.weight.data.mul_(3)
            assert not torch.allclose(net(image), before, rtol=1e-3)
            torch.testing.assert_close(compiled(image), before if frozen else net(image), rtol=1e-4, atol=1e-5)
            assert len(calls) == (4 if frozen else 0)


@pytest.mark.long
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, "autocast"], ids=str)
def test_inductor_runs_them(model, picture, dtype):
    mixed = dtype == "autocast"
    dtype = torch.float32 if mixed else dtype
    with torch.no_grad():
        expected = model().eval().double()(picture().double())
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            logits = torch.compile(model().eval().to(dtype), fullgraph=True)(picture().to(dtype))
    assert relative(logits, expected) < (0.03 if mixed or dtype == torch.bfloat16 else 1e-5)


def test_exports_do_not_need_them(model, picture):
    with torch.no_grad():
        program = torch.export.export(model().eval(), (picture(),))
    assert not any("davit" in str(node.target) for node in program.graph.nodes)


# --- how the library is found ---


@pytest.fixture
def folder(tmp_path):
    """A copy of the libraries and their source."""
    for path in library.HERE.glob("_native_*"):
        shutil.copy(path, tmp_path)
    shutil.copytree(library.HERE / "cpp", tmp_path / "cpp")
    return tmp_path


def test_a_library_is_loaded_where_it_is_whole_and_of_its_source(folder, caplog):
    with caplog.at_level(logging.WARNING):
        assert isinstance(library.load(folder), ctypes.CDLL) and not caplog.records
        with (folder / "cpp/products.h").open("a") as file:
            file.write("// changed\n")
        assert library.load(folder) is None
        assert "_native_" in caplog.text and "pip install -e ." in caplog.text
        shutil.rmtree(folder / "cpp")  # as in a wheel
        assert isinstance(library.load(folder), ctypes.CDLL)
        (broken := folder / "broken").mkdir()  # a path that was loaded once stays so in its process
        for path in folder.glob("_native_*"):
            (broken / path.name).write_bytes(b"not a library")
        caplog.clear()
        assert library.load(broken) is None
        assert caplog.records and all("_native_" in record.getMessage() for record in caplog.records)
        caplog.clear()
        assert library.load(folder / "none") is None and not caplog.records


TESTS = ["-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, str(Path(__file__).with_name("test_operators.py"))]
NONE = "from davit.kernels.cpu import native; import sys; sys.exit(0 if native.LIBRARY is None else 1)"


@pytest.mark.parametrize(
    ("capability", "options"), [("avx2", [*TESTS, "-k", "equal_float64 or call_them"]), ("default", ["-c", NONE])]
)
def test_processors_without_avx512_have_a_library_too(repository, capability, options):
    """These tests, in a process whose PyTorch is told that there is AVX2 and no more; with neither there is none."""
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    command = [sys.executable, *options]
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
