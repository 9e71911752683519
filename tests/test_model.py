"""The model against an independent one, its arguments, its errors and dtypes."""

from functools import partial

import pytest
import reference
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from timm.layers import RmsNorm
from torch import nn

from davit import DaViT, DaViTPyramid
from davit.model import ChannelAttention, DualAttentionBlock, WindowAttention

any_size = given(size=st.tuples(st.integers(1, 70), st.integers(1, 70)))
some = settings(
    deadline=None, max_examples=5, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def reference_logits(model, image, num_heads=(2, 2, 4, 4), window_size=4, **options):
    state = model.state_dict()
    return reference.classify(state, reference.stage_maps(state, image, num_heads, window_size, **options)[-1])


# --- equality with the independent implementation ---


@some
@any_size
@example(size=(1, 1))
def test_logits_equal_the_reference_at_any_size(small, picture, size):
    model, image = small().double(), picture(2, 3, *size).double()
    torch.testing.assert_close(model(image), reference_logits(model, image), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"cpe_act": True}, {"overlapped_patch": True}, {"patch_size": 2}, {"patch_size": 3}, {"patch_size": 8},
        {"window_size": 7}, {"num_heads": (4, 2, 4, 8)}, {"attention_types": ("spatial",)},
        {"attention_types": ("channel", "channel", "spatial")}, {"attention_types": ("channel", "spatial")},
    ],
    ids=str,
)  # fmt: skip
def test_logits_equal_the_reference_with_options(small, picture, options):
    model, image = small(**options).double(), picture(1, 3, 33, 47).double()
    expected = reference_logits(model, image, **options)
    torch.testing.assert_close(model(image), expected, rtol=1e-9, atol=1e-9)
    stock = small().double()
    if [p.shape for p in stock.parameters()] == [p.shape for p in model.parameters()]:  # then the function is another
        assert not torch.allclose(stock(image), expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        ({"mlp_ratio": 1.5}, {"main_blocks.0.0.0.mlp.fc1.weight": (24, 16)}),
        ({"in_chans": 5}, {"patch_embeds.0.proj.weight": (16, 5, 7, 7)}),
        ({"qkv_bias": False}, {"main_blocks.0.0.0.attn.qkv.bias": None, "main_blocks.0.0.0.attn.proj.bias": (16,)}),
        ({"ffn": False}, {"main_blocks.0.0.0.mlp.fc1.weight": None, "main_blocks.0.0.0.norm2.weight": None}),
        ({"depths": (2, 1, 3, 1)}, {"main_blocks.2.2.1.norm1.weight": (48,), "main_blocks.0.2.0.norm1.weight": None}),
        ({"embed_dims": (8, 12, 20, 28)}, {"main_blocks.2.0.0.attn.qkv.weight": (60, 20)}),
        ({"num_classes": 11}, {"head.weight": (11, 64)}),
    ],
    ids=str,
)
def test_arguments_that_change_the_parameters(small, picture, options, shapes):
    """What these options leave out or resize, the reference sees in the state dict."""
    model, image = small(**options).double(), picture(1, options.get("in_chans", 3), 33, 47).double()
    state = model.state_dict()
    assert {key: tuple(state[key].shape) if key in state else None for key in shapes} == shapes
    torch.testing.assert_close(model(image), reference_logits(model, image), rtol=1e-9, atol=1e-9)


# --- every argument ---


def test_argument_drop_path_rate(either, small, picture):
    """A line from 0 over all ten blocks: the two blocks of a pair differ."""
    model = small(either, drop_path_rate=0.45)
    blocks = [block for stage in model.main_blocks for pair in stage for block in pair]
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.05 * i for i in range(10)])
    image = picture()
    assert torch.equal(first(model(image)), first(model(image)))
    model.train()
    torch.manual_seed(0)
    assert not torch.equal(first(model(image)), first(model(image)))


def first(output):
    return output if isinstance(output, torch.Tensor) else output[-1]


@pytest.mark.parametrize("norm_layer", [RmsNorm, partial(nn.LayerNorm, eps=0.5)], ids=["rms", "eps"])
def test_argument_norm_layer(either, small, picture, norm_layer):
    """All norms are made by it, those of blocks too."""
    model, plain = small(either, norm_layer=norm_layer), small(either)
    kept = [name for name, module in model.named_modules() if type(module) is nn.LayerNorm and module.eps != 0.5]
    assert kept == []
    assert (first(model(picture())) - first(plain(picture()))).abs().max() > 1e-3


def test_argument_attention_types(either, small, picture):
    model = small(either, attention_types=("channel", "spatial", "spatial"))
    kinds = [type(block.attn) for block in model.main_blocks[2][1]]
    assert kinds == [ChannelAttention, WindowAttention, WindowAttention]
    model = small(either, attention_types=("spatial", lambda dim, heads: nn.Linear(dim, dim * heads // heads)))
    assert [type(block.attn) for block in model.main_blocks[2][1]] == [WindowAttention, nn.Linear]
    assert first(model(picture())).isfinite().all()


def test_argument_weight_init(either):
    torch.manual_seed(0)
    convolutions = [m for m in either(weight_init="conv").modules() if isinstance(m, nn.Conv2d)]
    weights = torch.cat([m.weight.flatten() for m in convolutions])
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)
    assert all(not m.bias.any() for m in convolutions)
    plain = [m for m in either(weight_init="").modules() if isinstance(m, nn.Conv2d)]
    assert all(m.bias.any() for m in plain)  # as PyTorch draws them, by fan-in
    assert plain[0].weight.abs().max() <= (3 * 49) ** -0.5
    assert plain[0].weight.std().item() == pytest.approx((3 * 49) ** -0.5 / 3**0.5, rel=0.05)


def test_argument_block_layer(either, small, picture):
    class Doubled(DualAttentionBlock):
        def forward(self, x_BHWC):
            return 2 * super().forward(x_BHWC)

    model = small(either, block_layer=Doubled)
    assert all(type(block) is Doubled for stage in model.main_blocks for pair in stage for block in pair)
    assert not torch.allclose(first(model(picture())), first(small(either)(picture())), rtol=1e-3)
    model.set_grad_checkpointing()
    first(model.train()(picture())).sum().backward()
    assert all(p.grad is not None for p in model.main_blocks.parameters())


def test_argument_drop_rate(small, picture):
    """In training, before the linear head; the share of zeros is the rate."""
    model = small(drop_rate=0.5, drop_path_rate=0.0).train()
    torch.manual_seed(0)
    features = model.forward_features(picture(64, 3, 8, 8))
    dropped = (model.forward_head(features, pre_logits=True) == 0).float().mean().item()
    assert dropped == pytest.approx(0.5, abs=0.05)
    assert not torch.equal(model.forward_head(features), model.forward_head(features))
    model.eval()
    assert torch.equal(model.forward_head(features), model.forward_head(features))


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", ""])
def test_argument_global_pool(small, picture, pool):
    model = small(global_pool=pool, num_classes=7 if pool else 0)
    features = model.forward_features(picture())
    mean, largest = features.flatten(2).mean(2), features.flatten(2).max(2).values
    if pool:
        pooled = {"avg": mean, "max": largest, "avgmax": (mean + largest) / 2}[pool]
        expected = model.head(model.norms(pooled))
    else:
        expected = model.norms(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(model(picture()), expected)


# --- mistakes ---


def assert_refused(words, function, *arguments, **options):
    """A ValueError that names the value, and the choices or limits that there are."""
    with pytest.raises(ValueError) as error:
        function(*arguments, **options)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_heads": (2, 3, 4, 4)}, ["num_heads[1]=3", "embed_dims[1]=32", "[1, 2, 4, 8, 16, 32]"]),
        ({"depths": (1, 1, 1)}, ["3, 4 and 4", "depths=(1, 1, 1)"]),
        ({"num_heads": (2, 2)}, ["4, 4 and 2"]),
        ({"depths": (), "embed_dims": (), "num_heads": ()}, ["0, 0 and 0"]),
        ({"depths": (1, 0, 1, 1)}, ["depths=(1, 0, 1, 1)", "1"]),
        ({"embed_dims": (16, 32.0, 48, 64)}, ["embed_dims=(16, 32.0, 48, 64)"]),
        ({"num_heads": (0, 2, 4, 4)}, ["num_heads=(0, 2, 4, 4)"]),
        ({"attention_types": ("spatial", "temporal")}, ["attention_types='temporal'", "'spatial', 'channel'"]),
        ({"attention_types": ()}, ["attention_types=()", "'spatial', 'channel'"]),
        ({"attention_types": "spatial"}, ["attention_types='spatial'"]),
        ({"weight_init": "jax"}, ["weight_init='jax'", "'', 'conv'"]),
        ({"in_chans": 0}, ["in_chans=0", "1"]),
        ({"patch_size": 0}, ["patch_size=0", "1"]),
        ({"patch_size": 4.0}, ["patch_size=4.0"]),
        ({"window_size": 0}, ["window_size=0", "1"]),
        ({"mlp_ratio": 0.0}, ["mlp_ratio=0.0", "ffn=False"]),
        ({"drop_path_rate": 1.0}, ["drop_path_rate=1.0", "1"]),
        ({"drop_path_rate": -0.1}, ["drop_path_rate=-0.1", "0"]),
        ({"num_classes": -1}, ["num_classes=-1", "0"]),
        ({"num_classes": 2.5}, ["num_classes=2.5"]),
        ({"drop_rate": 1.0}, ["drop_rate=1.0"]),
        ({"global_pool": "median"}, ["global_pool='median'", "'avg', 'max', 'avgmax', ''"]),
        ({"global_pool": ""}, ["global_pool=''", "num_classes", "0", "7"]),
        ({"frozen_stages": -2}, ["frozen_stages=-2", "-1", "4"]),
        ({"frozen_stages": 5}, ["frozen_stages=5", "-1", "4"]),
        ({"out_indices": ()}, ["out_indices=()", "0 to 3"]),
        ({"out_indices": (-5,)}, ["out_indices=(-5,)", "0 to 3"]),
        ({"out_indices": (0, 0)}, ["out_indices=(0, 0)", "0 to 3"]),
        ({"out_indices": (3, -1)}, ["out_indices=(3, -1)", "0 to 3"]),
        ({"out_indices": (0, 1, 2, 3, 4)}, ["out_indices=(0, 1, 2, 3, 4)", "0 to 3"]),
    ],
)
def test_mistakes_in_arguments(small, options, words):
    assert_refused(
        words, small, DaViTPyramid if options.keys() & {"out_indices", "frozen_stages"} else DaViT, **options
    )


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((3, 32, 32), ["3", "(B, 3, H, W)", "unsqueeze(0)"]),
        ((1, 1, 3, 32, 32), ["5"]),
        ((2, 4, 32, 32), ["in_chans=3", "4"]),
        ((2, 32, 32, 3), ["in_chans=3", "32"]),
        ((2, 3, 0, 32), ["0 x 32", "1 x 1"]),
        ((2, 3, 32, 0), ["32 x 0", "1 x 1"]),
    ],
)
def test_mistakes_in_the_input(either, small, shape, words):
    assert_refused(words, small(either), torch.zeros(shape))


# --- sizes, initial weights, dtypes ---


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_any_batch(small, picture, batch):
    model = small()
    images = picture(3)
    torch.testing.assert_close(model(images[:batch]), model(images)[:batch], rtol=1e-4, atol=1e-5)
    assert model(images[:batch]).shape == (batch, 7)


def test_initial_weights_of_linear_layers_and_norms():
    torch.manual_seed(0)
    model = DaViT()
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    weights = torch.cat([m.weight.flatten() for m in linears])
    assert weights.std().item() == pytest.approx(0.02, rel=0.01)
    assert abs(weights.mean().item()) < 1e-4
    assert all(not m.bias.any() for m in linears)
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    assert all((m.weight == 1).all() and not m.bias.any() for m in norms)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mixed", [True, False], ids=["autocast", "whole"])
def test_half_precision(either, small, picture, dtype, mixed):
    exact = first(small(either)(picture()))
    model = small(either).to(torch.float32 if mixed else dtype)
    with torch.autocast("cpu", dtype=dtype, enabled=mixed):
        output = first(model(picture().to(torch.float32 if mixed else dtype)))
    assert output.dtype == dtype or mixed
    error = (output.float() - exact).norm() / exact.norm()
    assert 0 < error < {torch.bfloat16: 0.05, torch.float16: 0.01}[dtype]
