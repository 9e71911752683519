"""timm's models and ours: each argument finds its counterpart, there and back."""

import pytest
import timm
import torch

from davit.counterparts import TIMM_DAVITS, NoCounterpartError, our_counterpart, timm_counterpart
from davit.variants import VARIANTS


@pytest.mark.parametrize("name", TIMM_DAVITS)
def test_the_table_agrees_with_timm(name):
    args = TIMM_DAVITS[name]
    with torch.device("meta"):
        model, told = timm.create_model(name), timm.create_model(name, **args)
    assert {key: value.shape for key, value in model.state_dict().items()} == {
        key: value.shape for key, value in told.state_dict().items()
    }
    block = model.stages[0].blocks[0][0]
    assert block.window_size == (args["window_size"],) * 2
    assert tuple(stage.blocks[0][0].num_heads for stage in model.stages) == args["num_heads"]
    assert type(model.stages[0].blocks[0][1].attn) is type(told.stages[0].blocks[0][1].attn)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_there_and_back(variant):
    architecture, args = timm_counterpart(variant, {})
    assert architecture in TIMM_DAVITS
    assert our_counterpart(architecture, args) == (variant, {})


@pytest.mark.parametrize(
    "kwargs",
    [{"window_size": 5}, {"qkv_bias": False, "cpe_act": True}, {"attention_types": ("channel", "spatial")}]
    + [{"depths": (1, 2, 1, 1)}, {"mlp_ratio": 2.0}, {"attention_types": ("channel",), "ffn": False}],
)
def test_arguments_there_and_back(kwargs):
    architecture, args = timm_counterpart("DaViT_nano", kwargs)
    assert our_counterpart(architecture, args) == ("DaViT_nano", kwargs)
    as_in_json = {name: list(value) if isinstance(value, tuple) else value for name, value in args.items()}
    assert our_counterpart(architecture, as_in_json) == ("DaViT_nano", kwargs)


def test_what_training_alone_needs_has_no_part():
    kwargs = {"drop_path_rate": 0.3, "drop_rate": 0.1, "weight_init": "conv", "accelerate": False}
    assert timm_counterpart("DaViT_tiny", kwargs) == ("davit_tiny", {})


@pytest.mark.parametrize(
    "kwargs",
    [{"patch_size": 8}, {"ffn": False}, {"norm_layer": torch.nn.Identity}, {"block_layer": torch.nn.Identity}]
    + [{"attention_types": ("channel", "channel_qk")}, {"attention_types": (torch.nn.Identity,)}, {"global_pool": ""}],
)
def test_what_timm_lacks(kwargs):
    with pytest.raises(NoCounterpartError):
        timm_counterpart("DaViT_nano", kwargs)


@pytest.mark.parametrize(
    "args",
    [{"head_norm_first": True}, {"norm_eps": 1e-6}, {"norm_layer": "rmsnorm2d"}, {"global_pool": "catavgmax"}]
    + [{"down_kernel_size": 4}, {"something_new": 1}],
)
def test_what_ours_lacks(args):
    assert our_counterpart("davit_tiny", args) is None
    assert our_counterpart("resnet18", {}) is None
