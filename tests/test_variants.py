"""The table of variants: sizes as published, registered with timm, and mistakes in names."""

import pytest
import timm
import torch
from timm.models import get_pretrained_cfg

import davit
from davit import VARIANTS, DaViT, create_model

# as the paper prints them in millions, or to the last digit
PARAMETERS = {
    "DaViT_tiny": 28_360_168,
    "DaViT_small": 49_745_896,
    "DaViT_base": 87_954_408,
    "DaViT_large": 196_811_752,
    "DaViT_large_window12_384": 196_811_752,
    "DaViT_huge": pytest.approx(362e6, abs=1e6),
    "DaViT_giant": pytest.approx(1437e6, abs=1e6),
    "DaViT_nano": pytest.approx(1e6, abs=1e6),
    "DaViT_base_fl": 91_395_048,  # as timm's davit_base_fl and davit_huge_fl with 1000 classes
    "DaViT_large_fl": 362_685_416,
}


def test_registered_with_timm_beside_its_own_port():
    assert set(timm.list_models("DaViT_*")) >= set(VARIANTS)
    assert "davit_tiny" in timm.list_models("davit*")
    assert {timm.model_entrypoint(name).__module__ for name in VARIANTS} == {davit.registry.__name__}
    with torch.device("meta"):
        assert type(create_model("davit_tiny", num_classes=0)).__module__.startswith("timm.")


@pytest.mark.parametrize("name", VARIANTS)
def test_the_table_becomes_the_model_and_its_cfg_names_true_modules(name):
    variant, cfg = VARIANTS[name], get_pretrained_cfg(name)
    with torch.device("meta"):
        model = create_model(name)
    assert type(model) is DaViT
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert model.embed_dims == variant.embed_dims
    assert tuple(len(blocks) for blocks in model.main_blocks) == variant.depths
    attentions = [blocks[0][0].attn for blocks in model.main_blocks]
    assert tuple(attention.num_heads for attention in attentions) == variant.num_heads
    assert {attention.window_size for attention in attentions} == {variant.window_size}
    assert model.patch_embeds[1].proj.kernel_size == ((3, 3) if variant.overlapped_patch else (2, 2))
    assert all(dim // heads == 32 for dim, heads in zip(variant.embed_dims, variant.num_heads, strict=True))
    assert model.get_submodule(cfg.first_conv) is model.patch_embeds[0].proj
    assert model.get_submodule(cfg.classifier) is model.get_classifier()
    assert model.get_classifier().out_features == cfg.num_classes == 1000
    assert cfg.input_size == (3, variant.image_size, variant.image_size)
    with torch.device("meta"):
        assert model.forward_features(torch.zeros(1, *cfg.input_size)).shape[2:] == cfg.pool_size


def test_options_reach_the_constructor():
    options = {"num_classes": 5, "in_chans": 1, "drop_rate": 0.3, "global_pool": "max", "window_size": 5}
    with torch.device("meta"):
        model = create_model("DaViT_tiny", **options)
    assert (model.num_classes, model.in_chans, model.head_drop.p, model.global_pool) == (5, 1, 0.3, "max")
    assert model.main_blocks[0][0][0].attn.window_size == 5


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        ("DaViT_tniy", "DaViT_tiny"),
        ("davit_smal", "DaViT_small"),
        ("DaViT_large_384", "DaViT_large_window12_384"),
        ("zzzz", "DaViT_tiny"),
    ],
)
def test_unknown_names_get_the_nearest(name, offered):
    with pytest.raises(ValueError, match=f"{name}.*{offered}") as error:
        create_model(name)
    assert all(variant in str(error.value) for variant in VARIANTS)


def test_unknown_options_are_not_swallowed():
    with pytest.raises(TypeError, match="img_size"):
        create_model("DaViT_nano", img_size=64)


def test_checkpoint_path(tmp_path):
    torch.manual_seed(0)
    model = create_model("DaViT_nano", num_classes=4)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    loaded = create_model("DaViT_nano", num_classes=4, checkpoint_path=str(tmp_path / "weights.pth"))
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
