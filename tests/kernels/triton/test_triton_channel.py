"""Channel attention by Triton against its plain formula in float64, and against the plain module."""

import pytest
import torch
from torch import nn

from davit import accelerate, plain
from davit.kernels import ops
from davit.kernels.triton import channel as triton_kernels
from davit.model import ChannelAttention, DualAttentionBlock

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CASES = {  # batch, height, width, groups, channels of a group
    "two blocks of positions": (2, 13, 11, 2, 32),
    "fewer positions than a block": (1, 3, 5, 2, 12),
    "one position": (2, 1, 1, 3, 4),
    "odd width": (1, 12, 11, 1, 24),
    "empty batch": (0, 5, 5, 1, 16),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_channel_kernels_equal_float64(noise, close, double, case, dtype):
    B, H, W, G, D = CASES[case]
    qkv = noise((B, H, W, 3 * G * D), dtype)
    out, attention = ops.channel_attention(qkv, G)
    assert out.dtype == dtype and out.is_contiguous() and not attention.requires_grad
    grad = noise(out.shape, dtype, 2).detach()
    (actual,) = torch.autograd.grad(out, qkv, grad)
    exact = double(qkv)
    expected, right_attention = ops.channel_formula(exact, G)
    close(out, expected, dtype)
    close(attention, right_attention.double(), dtype)
    (right,) = torch.autograd.grad(expected, exact, grad.double())
    assert actual.dtype == dtype
    for one, other in zip(actual.chunk(3, dim=-1), right.chunk(3, dim=-1), strict=True):
        if H * W > 1:  # of one position nothing but v matters, up to rounding
            close(one, other, dtype)


@pytest.mark.parametrize("programs", [1, 2, 1000])
def test_the_positions_may_be_cut_into_any_number_of_parts(noise, close, double, monkeypatch, programs):
    monkeypatch.setattr(triton_kernels, "MANY_PROGRAMS", programs)
    monkeypatch.setattr(triton_kernels, "BLOCK", 16)
    qkv = noise((1, 7, 9, 48))
    out, _ = ops.channel_attention(qkv, 1)
    exact = double(qkv)
    expected, _ = ops.channel_formula(exact, 1)
    close(out, expected, torch.float32)
    close(*(torch.autograd.grad(o.sin().sum(), t)[0] for o, t in ((out, qkv), (expected, exact))), torch.float32)


def test_channel_kernels_read_any_layout(noise, close, double, laid_out):
    qkv = laid_out(96)
    exact = double(qkv)
    out, expected = ops.channel_attention(qkv, 2)[0], ops.channel_formula(exact, 2)[0]
    close(out, expected, torch.float32)
    for grad in (torch.ones_like(out[..., :1]).expand_as(out), noise(out.transpose(1, 2).shape).transpose(1, 2)):
        (actual,) = torch.autograd.grad(out, qkv, grad, retain_graph=True)
        (right,) = torch.autograd.grad(expected, exact, grad.double(), retain_graph=True)
        close(actual, right, torch.float32)


def test_a_block_of_channel_attention_takes_the_kernels(device, noise, close, launches, only):
    only("channel")
    torch.manual_seed(0)
    block = DualAttentionBlock(32, ChannelAttention(32, 2, True), None, 0.0, False, nn.LayerNorm)
    module, x, results = block.to(device), noise((2, 5, 7, 32)), []
    for accelerated in (True, False):
        module = (accelerate if accelerated else plain)(module)
        module.zero_grad()
        with launches() as names:
            out = module(x)
            out.square().sum().backward()
        both = ["_product_kernel", "_softmax_kernel", "_apply_kernel"]
        both += ["_product_kernel", "_softmax_backward_kernel", "_apply_backward_kernel"]
        assert names == (both if accelerated else [])
        results.append([out, *(p.grad for p in module.parameters())])
    for one, other in zip(*results, strict=True):
        close(one, other.double(), torch.float32)


def test_channel_operator_is_well_formed(noise):
    qkv = noise((2, 3, 5, 48))
    torch.library.opcheck(ops.channel_attention, (qkv, 2))
    out, attention = ops.channel_attention(qkv.detach(), 2)
    torch.library.opcheck(ops.channel_attention_backward, (out, qkv.detach(), attention, 2))


def test_gradients_of_gradients_of_channels(noise, close, double):
    qkv, results = noise((1, 3, 5, 48)), []
    for function, x in ((ops.channel_attention, qkv), (ops.channel_formula, double(qkv))):
        (first,) = torch.autograd.grad(function(x, 2)[0].square().sum(), x, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), x)[0])
    close(*results, torch.float32)


def test_channel_attention_without_triton_computes_the_same(noise, close, double, without_kernels):
    qkv = noise((1, 3, 5, 48))
    exact = double(qkv)
    without_kernels()
    out, expected = ops.channel_attention(qkv, 2)[0], ops.channel_formula(exact, 2)[0]
    close(out, expected, torch.float32)
    close(*(torch.autograd.grad(o.sum(), t)[0] for o, t in ((out, qkv), (expected, exact))), torch.float32)
