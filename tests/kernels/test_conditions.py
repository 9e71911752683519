"""Where a block may leave its plain modules, and where it must not."""

import copy
import warnings
from functools import partial

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from davit import DaViT, accelerate, create_model, plain
from davit.kernels import conditions
from davit.kernels.cpu import native, onednn

pytestmark = pytest.mark.skipif(not onednn.AVAILABLE, reason="no oneDNN for this processor")


def count(model, image, fused_calls):
    with fused_calls() as calls, torch.no_grad():
        model(image)
    return len(calls)


def test_the_threshold_of_size(small, picture, fused_calls, monkeypatch):
    """By the work of the whole batch: positions x channels x 4 channels."""
    model = small()
    assert count(model, picture(), fused_calls) == 0
    work = 4 * 2 * 8 * 12 * 16 * 16  # of the first two stages; the others have less
    monkeypatch.setattr(conditions, "MIN_WORK", work)
    assert count(model, picture(2, 3, 32, 48), fused_calls) == 4
    assert count(model, picture(1, 3, 32, 48), fused_calls) == 0


@pytest.mark.skipif(native.LIBRARY is None, reason="no compiled functions for this processor")
@pytest.mark.parametrize(("side", "inference"), [(5, None), (14, "whole")])
def test_the_threshold_of_training(wide, side, inference):
    """Below it kernels stand around PyTorch's layers, also under autocast, as in every release."""
    x = torch.randn(2, side, side, 64)
    for block in accelerate(copy.deepcopy(wide)):
        with torch.no_grad():
            assert conditions.way_for(block, x) == inference
        with torch.autocast("cpu", torch.bfloat16):
            assert conditions.way_for(block, x) == "spans"
        assert conditions.way_for(block, x) == "spans"
        assert conditions.way_for(block, torch.randn(2, 28, 28, 64)) == "training"


def test_acceleration_is_put_on_and_taken_off(either, small, picture, fused_calls):
    model = small(either)
    assert count(model, picture(), fused_calls) == 10
    assert plain(model) is model and count(model, picture(), fused_calls) == 0
    assert accelerate(accelerate(model)) is model and count(model, picture(), fused_calls) == 10


def test_the_switch_passes_through_timm(picture, fused_calls):
    for options in ({}, {"features_only": True}):
        assert count(timm.create_model("DaViT_nano", **options), picture(), fused_calls) == 8
        assert count(create_model("DaViT_nano", accelerate=False, **options), picture(), fused_calls) == 0
        assert count(timm.create_model("DaViT_nano", scriptable=True, **options), picture(), fused_calls) == 0
        assert count(timm.create_model("DaViT_nano", exportable=True, **options), picture(), fused_calls) == 0


@pytest.fixture(params=[False, True], ids=["inference", "training"])
def mode(request):
    """With gradients or without."""
    with torch.set_grad_enabled(request.param):
        yield


@pytest.fixture(scope="module")
def wide():
    """Two blocks, of windows and of channels, that native.cpp has."""
    return DaViT(embed_dims=(64,), depths=(1,), num_heads=(2,), window_size=4, num_classes=7).eval().main_blocks[0][0]


@pytest.mark.parametrize("shape", [(2, 14, 14, 32), (2, 14, 14, 128), (14, 14, 64), (2, 2, 7, 14, 64)], ids=str)
@pytest.mark.parametrize("kind", [0, 1], ids=["window", "channel"])
def test_a_map_of_another_shape_is_reported_by_the_modules(wide, mode, kind, shape):
    """Functions that are given pointers would read beyond the weights, or beside them."""
    with pytest.raises(RuntimeError):
        accelerate(copy.deepcopy(wide[kind]))(torch.randn(shape))


@pytest.mark.parametrize(
    "change",
    [
        lambda block: setattr(block.attn, "qkv", nn.Linear(64, 96)),
        lambda block: setattr(block.attn, "qkv", nn.Linear(64, 200)),
        lambda block: setattr(block.attn, "proj", nn.Linear(32, 64)),
        lambda block: setattr(block.attn, "proj", nn.Linear(64, 32)),
        lambda block: setattr(block.mlp, "fc1", nn.Linear(64, 128)),
        lambda block: setattr(block.mlp, "fc2", nn.Linear(256, 32)),
        lambda block: setattr(block, "norm2", nn.LayerNorm(32)),
        lambda block: setattr(block, "norm1", nn.LayerNorm((14, 64), elementwise_affine=False)),
        lambda block: setattr(block.cpe[1], "proj", nn.Conv2d(32, 32, 3, padding=1, groups=32)),
        lambda block: setattr(block.mlp.fc2, "bias", nn.Parameter(torch.zeros(32))),
        lambda block: setattr(block.mlp, "fc2", nn.Linear(256, 64, dtype=torch.float64)),
        lambda block: setattr(block.attn, "num_heads" if hasattr(block.attn, "num_heads") else "num_groups", 3),
    ],
    ids=range(12),
)
def test_a_layer_of_another_size_is_reported_by_the_modules(wide, mode, change):
    """Or computed by them, where they can: what matters is that both ways say the same."""
    for stock in wide:
        block, x, outcomes = copy.deepcopy(stock), torch.randn(2, 14, 14, 64), []
        change(block)
        for prepare in (plain, accelerate):
            try:
                outcomes.append(prepare(block)(x).detach())
            except RuntimeError as error:
                outcomes.append(type(error))
        if isinstance(outcomes[0], torch.Tensor):
            torch.testing.assert_close(outcomes[1], outcomes[0], rtol=1e-4, atol=1e-5)
        else:
            assert outcomes[1] is outcomes[0]


@pytest.mark.parametrize("number", [0, -1, 4.0, None])
@pytest.mark.parametrize("kind", [0, 1], ids=["window", "channel"])
def test_no_number_of_heads_or_positions_is_reported_by_the_modules(wide, mode, kind, number):
    for name in ("window_size", "num_heads") if kind == 0 else ("num_groups",):
        block = accelerate(copy.deepcopy(wide[kind]))
        setattr(block.attn, name, number)
        with pytest.raises((TypeError, ValueError, RuntimeError, ZeroDivisionError)):
            block(torch.randn(1, 8, 8, 64))


@pytest.mark.parametrize("change", ["shape", "layer"])
def test_sizes_are_checked_in_a_compiler_too(wide, change):
    for stock in wide:
        block = accelerate(copy.deepcopy(stock))
        if change == "layer":
            block.mlp.fc2 = nn.Linear(256, 32)
        with torch.no_grad(), pytest.raises(RuntimeError):
            torch.compile(block, backend="eager")(torch.randn(2, 14, 14, 32 if change == "shape" else 64))


@pytest.mark.parametrize(
    ("norm_layer", "fused"),
    [
        (partial(nn.LayerNorm, eps=0.5), 10),
        (partial(nn.LayerNorm, bias=False), 10),
        (partial(nn.LayerNorm, elementwise_affine=False), 10),
        (nn.RMSNorm, 0),
    ],
)
def test_norms_of_any_kind_compute_the_same(small, picture, fused_calls, mode, norm_layer, fused):
    model = small(norm_layer=norm_layer)
    assert count(model, picture(), fused_calls) == fused
    found = model(picture())
    torch.testing.assert_close(found, plain(model)(picture()), rtol=1e-4, atol=1e-5)


class Marked(torch.Tensor):
    """A subclass of tensors, which may do anything in an operation."""


def test_what_may_see_single_operations_sees_those_of_the_modules(small, picture, fused_calls):
    """Counters, forward-mode differentiation, subclasses of tensors, hooks on every module, traces; other dtypes."""
    model, image = small(), picture()
    with fused_calls() as calls:
        counted = []
        for net in (small(accelerated=False), model):
            with FlopCounterMode(display=False) as counter:
                net(image)
            counted.append(counter.get_total_flops())
        assert counted[0] == counted[1] > 0
        with torch.autograd.forward_ad.dual_level():
            model(torch.autograd.forward_ad.make_dual(image, image))
        with torch.no_grad():
            assert isinstance(model(image.as_subclass(Marked)), Marked)
        handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
        model(image)
        handle.remove()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.trace(model, image, check_trace=False)
        for dtype in (torch.float64, torch.float16):
            small().to(dtype)(image.to(dtype))
        with torch.autocast("cpu", torch.float16), torch.no_grad():
            model(image)
        small().to("meta")(image.to("meta"))
    assert calls == []


def test_functional_transforms(small, picture, fused_calls):
    model, image = small(), picture()
    state = {**dict(model.named_parameters())}

    def loss(parameters, pixels):
        return torch.func.functional_call(model, parameters, (pixels,)).square().mean()

    with fused_calls() as calls:
        grads = torch.func.grad(loss)(state, image)
        each = torch.func.vmap(lambda pixels: model(pixels[None])[0])(image)
        _, tangent = torch.func.jvp(model, (image,), (torch.ones_like(image),))
        assert calls == []
    model(image).square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(grads[name], parameter.grad, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(each, model(image), rtol=1e-4, atol=1e-5)
    assert tangent.shape == (2, 7)
    other = {name: 1.1 * p.detach() for name, p in model.named_parameters()}
    with torch.no_grad():
        outputs = [torch.func.functional_call(net, other, (image,)) for net in (model, small(accelerated=False))]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


# --- what a compiler gets ---


@pytest.mark.skipif(native.LIBRARY is None, reason="no compiled functions for this processor")
def test_a_compiler_leaves_a_hooked_block_in_pieces(small, picture, recorded):
    """The others, and the embeddings, are one operator each."""
    model = small(embed_dims=(16, 32), depths=(1, 1), num_heads=(1, 2))  # of 16 channels, as compiled
    seen = []
    model.main_blocks[0][0][0].mlp.fc1.register_forward_hook(lambda _m, _i, out: seen.append(1) or 2 * out)
    compiled, names = recorded(model)
    with torch.no_grad():
        output = compiled(picture())
    assert {"davit.block.default", "davit.patch_embed.default"} <= set(names)
    assert any("gelu" in name for name in names) and seen  # of the hooked block
    torch.testing.assert_close(output, model(picture()), rtol=1e-4, atol=1e-5)


def test_a_layer_replaced_after_compilation_counts(small, picture):
    model = small(embed_dims=(16, 32), depths=(1, 1), num_heads=(1, 2))
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        before = compiled(picture())
        mlp = model.main_blocks[0][0][0].mlp
        mlp.fc1 = nn.Sequential(mlp.fc1, nn.Tanh())
        after = compiled(picture())
        torch.testing.assert_close(after, model(picture()), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(before, after, rtol=1e-3)
