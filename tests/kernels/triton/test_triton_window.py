"""Window attention by Triton against its plain formula in float64, and against the plain module."""

import pytest
import torch
from torch import nn

from davit import accelerate, plain
from davit.kernels import ops
from davit.model import DualAttentionBlock, WindowAttention

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CASES = {  # batch, height, width, heads, channels of a head, window, bias
    "window 7, padded right": (2, 7, 9, 2, 32, 7, True),
    "smaller than a window": (1, 3, 5, 2, 12, 4, True),
    "tiled": (1, 8, 8, 1, 16, 4, True),
    "tiled, no bias": (1, 8, 4, 2, 16, 4, False),
    "padded, no bias": (2, 5, 9, 2, 20, 3, False),
    "one position": (1, 1, 1, 3, 4, 7, True),
    "window of one position": (1, 3, 2, 1, 8, 1, True),
    "window 10": (1, 9, 11, 1, 16, 10, True),
    "empty batch": (0, 5, 5, 1, 16, 4, True),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_window_kernel_equals_float64(noise, close, double, case, dtype):
    B, H, W, G, D, window, has_bias = CASES[case]
    qkv, bias = noise((B, H, W, 3 * G * D), dtype), noise((3 * G * D,), dtype, 1) if has_bias else None
    out = ops.window_attention(qkv, bias, window, G)
    assert out.dtype == dtype and out.is_contiguous()
    grad = noise(out.shape, dtype, 2).detach()
    inputs = [qkv, *([bias] if has_bias else [])]
    grads = torch.autograd.grad(out, inputs, grad)
    exact_inputs = [double(t) for t in inputs]
    exact = ops.window_formula(exact_inputs[0], exact_inputs[1] if has_bias else None, window, G)
    close(out, exact, dtype)
    expected = torch.autograd.grad(exact, exact_inputs, grad.double(), allow_unused=True)
    for actual, right in zip(grads, expected, strict=True):
        assert actual.dtype == dtype
        close(actual, right, dtype)


def test_window_kernel_reads_any_layout(noise, close, double, laid_out):
    qkv = laid_out(96)
    bias, exact = noise((96,), seed=1), double(qkv)
    out, expected = (
        f(t, b, 4, 2) for f, t, b in ((ops.window_attention, qkv, bias), (ops.window_formula, exact, bias.double()))
    )
    close(out, expected, torch.float32)
    for grad in (torch.ones_like(out[..., :1]).expand_as(out), noise(out.transpose(1, 2).shape).transpose(1, 2)):
        (actual,) = torch.autograd.grad(out, qkv, grad, retain_graph=True)
        (right,) = torch.autograd.grad(expected, exact, grad.double(), retain_graph=True)
        close(actual, right, torch.float32)


def test_the_bias_may_be_in_float32_under_autocast(noise, close):
    qkv, bias = noise((1, 3, 4, 48), torch.bfloat16), noise((48,), seed=1)
    ops.window_attention(qkv, bias, 4, 1).sum().backward()
    assert (qkv.grad.dtype, bias.grad.dtype) == (torch.bfloat16, torch.float32)
    assert bias.grad[16:].any() and not bias.grad[:16].any()  # queries of padded positions are cropped


def test_a_block_of_window_attention_takes_the_kernel(device, noise, close, launches, only):
    only("window")
    torch.manual_seed(0)
    block = DualAttentionBlock(32, WindowAttention(32, 2, 4, True), None, 0.0, False, nn.LayerNorm)
    module, x, results = block.to(device), noise((2, 5, 7, 32)), []
    for accelerated in (True, False):
        module = (accelerate if accelerated else plain)(module)
        module.zero_grad()
        with launches() as names:
            out = module(x)
            (grad,) = torch.autograd.grad(out.square().sum(), x, retain_graph=True)
            out.square().sum().backward()
        assert names == (["_forward_kernel"] + 2 * ["_backward_kernel"] if accelerated else [])
        results.append([out, grad, *(p.grad for p in module.parameters())])
    for one, other in zip(*results, strict=True):
        close(one, other.double(), torch.float32)


def test_results_of_the_window_kernel_are_repeatable(noise):
    qkv, bias = noise((2, 9, 5, 96)), noise((96,), seed=1)
    grads = [torch.autograd.grad(ops.window_attention(qkv, bias, 4, 2).sum(), (qkv, bias)) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


@pytest.mark.parametrize("has_bias", [True, False])
def test_window_operator_is_well_formed(noise, has_bias):
    bias = noise((48,), seed=1) if has_bias else None
    torch.library.opcheck(ops.window_attention, (noise((2, 3, 5, 48)), bias, 4, 2))
    inputs = noise((2, 3, 5, 16)), noise((2, 3, 5, 48)), bias, 4, 2
    torch.library.opcheck(ops.window_attention_backward, [t.detach() if torch.is_tensor(t) else t for t in inputs])


def test_gradients_of_gradients_of_windows(noise, close, double):
    qkv, bias = noise((1, 3, 5, 48)), noise((48,), seed=1)
    results = []
    for function, inputs in ((ops.window_attention, (qkv, bias)), (ops.window_formula, (double(qkv), double(bias)))):
        first = torch.autograd.grad(function(*inputs, 4, 2).square().sum(), inputs, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), inputs))
    for one, other in zip(*results, strict=True):
        close(one, other, torch.float32)


def test_a_program_without_triton_computes_the_same(noise, close, double, without_kernels):
    """As one exported on CUDA does on a machine without."""
    qkv, bias = noise((1, 3, 5, 48)), noise((48,), seed=1)
    without_kernels()
    out = ops.window_attention(qkv, bias, 4, 2)
    grads = torch.autograd.grad(out.sum(), (qkv, bias))
    exact = double(qkv), double(bias)
    expected = ops.window_formula(*exact, 4, 2)
    close(out, expected, torch.float32)
    for one, other in zip(grads, torch.autograd.grad(expected.sum(), exact), strict=True):
        close(one, other, torch.float32)
