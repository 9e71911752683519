"""Channel attention with gradients by the Gram matrix, against float64 and the plain modules.

test_cpu.py has it within models: frozen parameters, gradients of gradients.
"""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from davit import accelerate
from davit.kernels import training
from davit.model import ChannelAttention, ChannelAttentionQK, DualAttentionBlock
from tests.conftest import randomise
from tests.kernels.conftest import noise, relative

FLOOR = {torch.float32: 3e-6, torch.bfloat16: 6e-3}
TIMES = {torch.float32: 2, torch.bfloat16: 1.5}  # the plain modules' error, where that is larger


def block_of(
    channels: int, groups: int, bias: bool = True, norm: Any = nn.LayerNorm, kind: type[nn.Module] = ChannelAttention
) -> Any:
    attn = kind(channels, groups, bias)
    return randomise(DualAttentionBlock(channels, attn, None, 0.0, False, norm), 0)


def by_gram(block: Any, x: Tensor) -> Tensor:
    attn, norm = block.attn, block.norm1
    layers = (attn.qkv.weight, attn.qkv.bias, attn.proj.weight, attn.proj.bias)
    options = (attn.num_groups, type(attn) is ChannelAttentionQK)
    return training.GramChannelAttention.apply(x, norm.weight, norm.bias, norm.eps, *layers, *options)


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


LAYOUTS: dict[str, Any] = {
    "contiguous": lambda B, H, W, C, seed: noise((B, H, W, C), seed=seed),
    "channels first": lambda B, H, W, C, seed: noise((B, C, H, W), seed=seed).permute(0, 2, 3, 1),
    "sliced": lambda B, H, W, C, seed: noise((B, 2 * H, W, 2 * C), seed=seed)[:, ::2, :, 3 : C + 3],
    "expanded": lambda B, H, W, C, seed: noise((1, H, W, C), seed=seed).expand(B, -1, -1, -1),
}


@settings(deadline=None, max_examples=15, derandomize=True)
@given(
    st.tuples(st.integers(1, 3), st.integers(12, 40), st.integers(16, 40)), st.integers(1, 5),
    st.sampled_from([8, 16, 24]), st.sampled_from([torch.float32, torch.bfloat16]),
    st.sampled_from([(True, True), (False, True), (True, False)]), st.sampled_from(sorted(LAYOUTS)),
    st.sampled_from([ChannelAttention, ChannelAttentionQK]),
)  # fmt: skip
def test_values_and_gradients_equal_float64(size, groups, D, dtype, has_vectors, layout, kind):
    bias, affine = has_vectors
    C = groups * D
    block = block_of(C, groups, bias, lambda C: nn.LayerNorm(C, elementwise_affine=affine), kind).to(dtype)
    x, grad = (LAYOUTS[layout](*size, C, seed).detach().to(dtype) for seed in (1, 2))
    x.requires_grad_()
    expected, plain = exact(block, x, grad), results(plainly, block, x, grad)
    for actual, truth, other in zip(results(by_gram, block, x, grad), expected, plain, strict=True):
        assert actual.dtype == dtype
        assert relative(actual, truth) < max(FLOOR[dtype], TIMES[dtype] * relative(other, truth))


def test_under_autocast_parameters_stay_float32() -> None:
    block = block_of(48, 3)
    x, grad = (noise((2, 30, 40, 48), torch.bfloat16, seed) for seed in (1, 2))
    with torch.autocast("cpu", torch.bfloat16):  # the backward pass too, as a user might
        found, plain = results(by_gram, block, x, grad), results(plainly, block, x, grad)
    assert [t.dtype for t in found] == [torch.bfloat16] * 2 + [torch.float32] * (len(found) - 2)
    for actual, truth, other in zip(found, exact(block, x, grad), plain, strict=True):
        assert relative(actual, truth) < max(FLOOR[torch.bfloat16], 1.5 * relative(other, truth))


def test_blocks_take_it_and_save_less(monkeypatch: pytest.MonkeyPatch, saved_bytes: Any) -> None:
    block, x = accelerate(block_of(48, 3)), noise((2, 20, 30, 48))
    with monkeypatch.context() as patch:
        patch.setattr(training, "gram_is_faster", lambda *_: False)
        saved, expected = saved_bytes(block, x), block(x)
    assert saved - saved_bytes(block, x) > 3.5 * x.nbytes  # q, k, v and what the attention gave, less the Gram matrix
    assert relative(block(x), expected) < FLOOR[torch.float32]
