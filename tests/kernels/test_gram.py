"""Channel attention with gradients by the Gram matrix, against float64 and the plain modules."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from davit import accelerate
from davit.kernels import training
from davit.model import ChannelAttention, DualAttentionBlock
from tests.conftest import randomise

FLOOR = {torch.float32: 3e-6, torch.bfloat16: 6e-3}
TIMES = {torch.float32: 2, torch.bfloat16: 1.5}  # the plain modules' error, where that is larger


def block_of(channels: int, groups: int, bias: bool = True, norm: Any = nn.LayerNorm) -> Any:
    attn = ChannelAttention(channels, groups, bias)
    return randomise(DualAttentionBlock(channels, attn, None, 0.0, False, norm), 0)


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def by_gram(block: Any, x: Tensor) -> Tensor:
    attn, norm = block.attn, block.norm1
    layers = (attn.qkv.weight, attn.qkv.bias, attn.proj.weight, attn.proj.bias)
    return training.GramChannelAttention.apply(x, norm.weight, norm.bias, norm.eps, *layers, attn.num_groups)


def plainly(block: Any, x: Tensor) -> Tensor:
    return block.attn(block.norm1(x))


def results(run: Any, block: Any, x: Tensor, grad: Tensor) -> list[Tensor]:
    """The output, and the gradients of the input and of what has a gradient in the block, in the order of names."""
    wanted = [x, *(p for part in (block.norm1, block.attn) for p in part.parameters())]
    wanted = [p for p in wanted if p.requires_grad]
    out = run(block, x)
    return [out, *torch.autograd.grad(out, wanted, grad.to(out.dtype))]


def exact(block: Any, x: Tensor, grad: Tensor) -> list[Tensor]:
    wide = copy.deepcopy(block).double()
    return results(plainly, wide, x.detach().double().requires_grad_(x.requires_grad), grad.double())


def error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return ((actual.double() - expected).norm() / expected.norm()).item()


@settings(deadline=None, max_examples=10, derandomize=True)
@given(
    st.integers(1, 3), st.integers(12, 40), st.integers(16, 40), st.integers(1, 5), st.sampled_from([8, 16, 24]),
    st.sampled_from([torch.float32, torch.bfloat16]), st.sampled_from([(True, True), (False, True), (True, False)]),
)  # fmt: skip
def test_values_and_gradients_equal_float64(B, H, W, groups, D, dtype, has_vectors):
    bias, affine = has_vectors
    C = groups * D
    block = block_of(C, groups, bias, lambda C: nn.LayerNorm(C, elementwise_affine=affine)).to(dtype)
    x, grad = noise(B, H, W, C).to(dtype).requires_grad_(), noise(B, H, W, C, seed=2).to(dtype)
    expected, plain = exact(block, x, grad), results(plainly, block, x, grad)
    for actual, truth, other in zip(results(by_gram, block, x, grad), expected, plain, strict=True):
        assert actual.dtype == dtype
        assert error(actual, truth) < max(FLOOR[dtype], TIMES[dtype] * error(other, truth))


def test_under_autocast_parameters_stay_float32() -> None:
    block = block_of(48, 3)
    x, grad = noise(2, 30, 40, 48).bfloat16().requires_grad_(), noise(2, 30, 40, 48, seed=2).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):  # the backward pass too, as a user might
        found, plain = results(by_gram, block, x, grad), results(plainly, block, x, grad)
    assert [t.dtype for t in found] == [torch.bfloat16] * 2 + [torch.float32] * (len(found) - 2)
    for actual, truth, other in zip(found, exact(block, x, grad), plain, strict=True):
        assert error(actual, truth) < max(FLOOR[torch.bfloat16], 1.5 * error(other, truth))


@pytest.mark.parametrize("layout", ["channels first", "sliced", "expanded"])
def test_any_memory_layout(layout: str) -> None:
    block = block_of(16, 2)

    def laid_out(seed: int) -> Tensor:
        return {
            "channels first": lambda: noise(2, 16, 12, 14, seed=seed).permute(0, 2, 3, 1),
            "sliced": lambda: noise(2, 24, 14, 32, seed=seed)[:, ::2, :, 3:19],
            "expanded": lambda: noise(1, 12, 14, 16, seed=seed).expand(2, -1, -1, -1),
        }[layout]()

    x, grad = laid_out(1).requires_grad_(), laid_out(2)
    for actual, truth in zip(results(by_gram, block, x, grad), exact(block, x, grad), strict=True):
        assert error(actual, truth) < FLOOR[torch.float32]


@pytest.mark.parametrize("kept", ["x", "norm1.bias", "attn.qkv.weight", "attn.proj.bias", "attn.qkv.bias"])
def test_what_is_frozen_gets_no_gradient(kept: str) -> None:
    block = block_of(16, 2)
    for name, parameter in block.named_parameters():
        parameter.requires_grad_(name == kept)
    x, grad = noise(2, 9, 11, 16).requires_grad_(kept == "x"), noise(2, 9, 11, 16, seed=2)
    found, truth = results(by_gram, block, x, grad), exact(block, x, grad)
    assert len(found) == 2
    assert error(found[1], truth[1]) < FLOOR[torch.float32]


def test_gradients_of_gradients() -> None:
    block = block_of(16, 2)
    x = noise(1, 5, 7, 16)

    def second_gradients(run: Any, block: Any, x: Tensor) -> tuple[Tensor, ...]:
        x = x.detach().requires_grad_()
        (first,) = torch.autograd.grad(run(block, x).pow(2).sum(), x, create_graph=True)
        return torch.autograd.grad(first.pow(2).sum(), [x, block.attn.qkv.weight])

    truths = second_gradients(plainly, copy.deepcopy(block).double(), x.double())
    for actual, truth in zip(second_gradients(by_gram, block, x), truths, strict=True):
        assert error(actual, truth) < 1e-4


def test_blocks_take_it_and_save_less(monkeypatch: pytest.MonkeyPatch, saved_bytes: Any) -> None:
    block, x = accelerate(block_of(48, 3)), noise(2, 20, 30, 48).requires_grad_()
    with monkeypatch.context() as patch:
        patch.setattr(training, "gram_is_faster", lambda *_: False)
        saved, expected = saved_bytes(block, x), block(x)
    assert saved - saved_bytes(block, x) > 3.5 * x.nbytes  # q, k, v and what the attention gave, less the Gram matrix
    assert error(block(x), expected.double()) < FLOOR[torch.float32]
