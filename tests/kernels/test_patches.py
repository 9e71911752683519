"""Patch embeddings by native.cpp: against float64, in every layout, and where they must not run."""

from copy import deepcopy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from davit import accelerate, plain
from davit.kernels.cpu import native
from davit.model import PatchEmbed
from tests.kernels.conftest import assert_close, noise

pytestmark = pytest.mark.skipif(
    native.LIBRARY is None or torch.cuda.is_available(), reason="no compiled functions for this processor"
)

side, dtypes = st.integers(1, 60), st.sampled_from([torch.float32, torch.bfloat16])
some = settings(deadline=None, max_examples=16, derandomize=True)


def picture_of(shape, dtype=torch.float32):
    return noise(shape, dtype).detach()


def embedding(stem, C, N, stride=2, overlapped=False, **norm):
    """With a norm whose weight and bias are far from 1 and 0, which padding must not meet."""
    torch.manual_seed(1)
    embed = PatchEmbed(C, N, stride, stem, overlapped, lambda dim: nn.LayerNorm(dim, **norm))
    for parameter in embed.norm.parameters():
        nn.init.normal_(parameter, 0.5)
    return accelerate(embed).eval()


@pytest.fixture(params=[True, False], ids=["stem", "map"])
def case(request):
    """An embedding and its input, of odd sizes."""
    if request.param:
        return embedding(True, 3, 64, 4), picture_of((3, 3, 61, 35))
    return embedding(False, 64, 32), picture_of((3, 13, 9, 64)) + 0.3


@pytest.fixture
def calls(monkeypatch):
    """One entry for each embedding that native.cpp computed."""
    made, run = [], native.patch_embed
    monkeypatch.setattr(native, "patch_embed", lambda x, *rest: made.append(x.shape) or run(x, *rest))
    return made


def compute(embed, x):
    with torch.no_grad():
        return embed(x)


def assert_right(actual, embed, x):
    """Against the plain modules in float64."""
    assert actual.dtype == x.dtype and actual.is_contiguous()
    assert_close(actual, compute(deepcopy(embed).double(), x.double()), x.dtype)


# --- values ---


def check_size(stem, C, H, W, N, stride, dtype):
    """With as many images as native.cpp wants rows."""
    embed, images = embedding(stem, C, N, stride).to(dtype), -(-native.MIN_ROWS // (-(-H // stride) * -(-W // stride)))
    x = picture_of((images, C, H, W) if stem else (images, H, W, C), dtype) + (0.0 if stem else 0.3)
    assert native.supports_patches(x, embed.proj.weight, stride, stem) == native.has_products(dtype)
    assert_right(compute(embed, x), embed, x)


@some
@given(st.integers(1, 7), side, side, st.sampled_from([32, 64, 96, 160]), st.sampled_from([1, 2, 4, 16]), dtypes)
@example(3, 1, 1, 32, 4, torch.float32)
@example(3, 3, 5, 32, 4, torch.float32)  # smaller than a patch
def test_stems_equal_float64(C, H, W, N, stride, dtype):
    check_size(True, C, H, W, N, stride, dtype)


@some
@given(st.sampled_from([32, 64, 96]), side, side, st.sampled_from([32, 64, 96, 192]), dtypes)
@example(64, 1, 1, 32, torch.float32)
@example(768, 16, 8, 32, torch.float32)
def test_embeddings_of_maps_equal_float64(C, H, W, N, dtype):
    check_size(False, C, H, W, N, 2, dtype)


@pytest.mark.parametrize("options", [{"eps": 0.5}, {"bias": False}, {"elementwise_affine": False}], ids=str)
def test_norms_of_any_kind(options, calls):
    for stem, shape in ((True, (2, 32, 60, 50)), (False, (2, 20, 21, 32))):
        embed, x = embedding(stem, 32, 64, 4 if stem else 2, **options), picture_of(shape)
        embed.proj.bias = None
        assert_right(compute(embed, x), embed, x)
    assert len(calls) == 2


@pytest.mark.parametrize("layout", ["channels last", "sliced", "expanded"])
def test_any_layout_of_memory(layout, case, calls):
    embed, x = case
    if layout == "channels last":
        embed.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    elif layout == "sliced":
        x = x[:, :, ::2] if embed.stem else x[:, ::2]
    else:
        x = x[:1].expand(x.shape)
    out = compute(embed, x)
    assert calls and torch.equal(out, compute(deepcopy(embed), x.contiguous()))
    assert_right(out, embed, x)


# --- where they run ---


@pytest.mark.parametrize(
    "change",
    [
        lambda embed: embed.proj.register_forward_hook(lambda *_: None),
        lambda embed: embed.norm.register_forward_pre_hook(lambda *_: None),
        lambda embed: setattr(embed.norm, "forward", lambda x: 2 * x),
        plain,
        lambda embed: setattr(embed.proj, "padding_mode", "circular"),
        lambda embed: setattr(embed, "proj", nn.Conv2d(3, 64, 5, stride=4, padding=3)),
        lambda embed: setattr(embed, "proj", nn.Conv2d(3, 64, 7, stride=(4, 2), padding=3)),
        lambda embed: setattr(embed, "norm", nn.Identity()),
        lambda embed: setattr(embed, "proj", nn.Sequential(embed.proj)),
        lambda embed: setattr(embed, "norm", nn.RMSNorm(64)),
        lambda embed: setattr(embed, "norm", nn.LayerNorm((10, 64))),
    ],
    ids=range(11),
)
def test_what_was_changed_keeps_to_its_modules(change, calls):
    embed, x = embedding(True, 3, 64, 4), picture_of((2, 3, 60, 40))
    change(embed)
    out = compute(embed, x)
    assert calls == []
    assert torch.equal(out, compute(lambda x: embed.norm(embed.proj(x).permute(0, 2, 3, 1)), x))


def test_sizes_that_are_not_compiled_keep_to_their_modules(calls):
    for embed, x in (
        (embedding(True, 3, 40, 4), picture_of((2, 3, 60, 40))),  # 40 channels written
        (embedding(False, 24, 32), picture_of((2, 20, 20, 24))),  # 24 read
        (embedding(False, 48, 32).bfloat16(), picture_of((2, 20, 20, 48), torch.bfloat16)),  # 48, as words of two
        (embedding(True, 3, 64, 4), picture_of((1, 3, 8, 8))),  # rows for every thread
        (embedding(True, 3, 64, 4).double(), picture_of((2, 3, 60, 40)).double()),
        (embedding(False, 32, 64, overlapped=True), picture_of((2, 20, 20, 32))),
    ):
        compute(embed, x)
        assert calls == []


def test_gradients_and_autocast_go_through_the_modules(calls):
    embed, x = embedding(True, 3, 64, 4), picture_of((2, 3, 60, 40))
    with torch.autocast("cpu", torch.bfloat16):
        compute(embed, x)
    embed(x).sum().backward()
    assert calls == [] and embed.proj.weight.grad.any()
    embed.requires_grad_(False)
    embed(x.requires_grad_()).sum().backward()
    assert calls == [] and x.grad.any()
    assert not embed(x.detach()).requires_grad and len(calls) == 1


@pytest.mark.parametrize(
    ("stem", "shape"), [(True, (2, 4, 60, 40)), (False, (2, 20, 20, 64)), (True, (3, 60, 40))], ids=str
)
def test_wrong_channels_are_reported_by_the_modules(stem, shape, calls):
    embed = embedding(stem, 3 if stem else 32, 64, 4 if stem else 2)
    with pytest.raises(RuntimeError):
        compute(embed, picture_of(shape))
    assert calls == []
