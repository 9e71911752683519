"""The layouts: found whatever the prefix, converted any to any, nothing lost and nothing invented."""

import itertools
import logging
import re

import pytest
import timm
import torch

from davit import VARIANTS, create_model
from davit.checkpoint import (
    LAYOUTS,
    CheckpointError,
    convert_state_dict,
    convert_with_report,
    detect_layout,
)
from davit.checkpoint.names import SPELLINGS, recognise, structure_of


@pytest.mark.parametrize("kind", ["davit", "pyramid", "timm"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model.backbone."])
def test_the_layout_is_found_under_any_prefix(build, kind, prefix):
    state_dict = {prefix + name: tensor for name, tensor in build(kind).state_dict().items()}
    assert detect_layout(state_dict) == kind
    found = recognise(state_dict)
    assert found.prefix == prefix and not found.additions and not found.outside


def test_timms_florence2_models_are_timms_layout_and_another_function(build):
    found = recognise(build("florence2").state_dict())
    assert (found.layout, found.function) == ("timm", "florence2")
    assert recognise(build("timm").state_dict()).function == "davit"


def test_a_backbone_without_norms_is_a_pyramid(build):
    trunk = {
        name: tensor for name, tensor in build("pyramid").state_dict().items() if "patch" in name or "main" in name
    }
    assert detect_layout(trunk) == "pyramid"


@pytest.mark.parametrize("there, back", list(itertools.permutations(["davit", "timm", "florence2"], 2)))
def test_round_trips_are_bit_identical_and_share_memory(build, same, there, back):
    state_dict = convert_state_dict(build().half().state_dict(), back)
    once = convert_state_dict(state_dict, there)
    again = convert_state_dict(once, back)
    assert same(again, state_dict)
    assert all(again[name].data_ptr() == state_dict[name].data_ptr() for name in again)
    assert detect_layout(once) == there and set(once).isdisjoint(state_dict)


@pytest.mark.parametrize("kind", ["davit", "timm"])
def test_converted_names_and_order_are_those_of_the_real_model(build, kind):
    other = {"davit": "timm", "timm": "davit"}[kind]
    assert list(convert_state_dict(build(other).state_dict(), kind)) == list(build(kind).state_dict())


def test_pyramid_to_pyramid_takes_the_prefix_off(build, same):
    state_dict = build("pyramid", out_indices=(0, 2, 3)).state_dict()
    assert same(convert_state_dict({f"backbone.{k}": v for k, v in state_dict.items()}, "pyramid"), state_dict)


def test_a_classifier_loses_its_head_as_a_pyramid_and_says_so(build, caplog):
    state_dict = build("timm").state_dict()
    with caplog.at_level(logging.WARNING):
        converted = convert_state_dict(state_dict, "pyramid")
    pyramid = build("pyramid").state_dict()
    assert list(converted) == [name for name in pyramid if not name.startswith("norm")]
    assert "head.fc.weight" in caplog.text and "no norms of the levels" in caplog.text
    _, report = convert_with_report(state_dict, "pyramid")
    assert set(report.dropped) == {name for name in state_dict if name.startswith("head.")}
    assert report.tensors == len(converted) == report.renamed
    assert report.params == sum(tensor.numel() for tensor in converted.values())


@pytest.mark.parametrize("to", ["davit", "timm", "florence2"])
def test_a_pyramid_loses_its_norms_and_lacks_a_head(build, to):
    state_dict = build("pyramid").state_dict()
    converted, report = convert_with_report(state_dict, to)
    assert set(report.dropped) == {f"norm{i}.{p}" for i in range(4) for p in ("weight", "bias")}
    assert len(converted) == len(state_dict) - 8
    assert "no classifier and no final norm" in str(report)


def test_the_rest_of_a_detector_is_left_out_and_named(build):
    detector = {f"backbone.{name}": tensor for name, tensor in build("pyramid").state_dict().items()}
    detector |= {"neck.lateral.weight": torch.ones(2), "roi_head.fc.bias": torch.ones(2)}
    converted, report = convert_with_report(detector, "pyramid")
    assert list(converted) == list(build("pyramid").state_dict())
    assert set(report.dropped) == {"neck.lateral.weight", "roi_head.fc.bias"} and "backbone." in str(report)


def test_florence2_names_agree_with_timms_own_conversion(build):
    """timm's loader of Microsoft's checkpoints must find its model's names in what we write."""
    from timm.models.davit import checkpoint_filter_fn

    model = build("florence2", num_classes=0, down_kernel_size=3)
    released = convert_state_dict(model.state_dict(), "florence2")
    del released["vision_tower.norms.weight"], released["vision_tower.norms.bias"]  # the release has none
    read_by_timm = checkpoint_filter_fn(dict(released), model)
    wanted = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("head")}
    assert read_by_timm.keys() == wanted.keys()
    assert all(read_by_timm[name] is tensor for name, tensor in zip(read_by_timm, released.values(), strict=True))
    assert all(torch.equal(read_by_timm[name], wanted[name]) for name in wanted)
    assert list(convert_state_dict(released, "timm")) == list(wanted)


def test_the_released_florence2_checkpoint_is_recognised(build):
    """Names from the released model, with the language model beside the tower."""
    tower = convert_state_dict(build("florence2", down_kernel_size=3).state_dict(), "florence2")
    for name in (
        "vision_tower.convs.3.proj.weight",
        "vision_tower.convs.0.norm.bias",
        "vision_tower.blocks.2.1.spatial_block.conv1.fn.dw.weight",
        "vision_tower.blocks.0.0.spatial_block.window_attn.norm.weight",
        "vision_tower.blocks.0.0.spatial_block.window_attn.fn.qkv.bias",
        "vision_tower.blocks.3.0.channel_block.channel_attn.fn.proj.weight",
        "vision_tower.blocks.3.0.channel_block.conv2.fn.dw.bias",
        "vision_tower.blocks.3.0.channel_block.ffn.norm.weight",
        "vision_tower.blocks.3.0.channel_block.ffn.fn.net.fc2.weight",
    ):
        assert name in tower, name
    whole = {**tower, "language_model.model.shared.weight": torch.ones(2), "image_projection": torch.ones(2)}
    found = recognise(whole)
    assert (found.layout, found.function, found.prefix) == ("florence2", "florence2", "vision_tower.")
    assert found.outside == ("language_model.model.shared.weight", "image_projection")


def test_the_transformers_library_names_florence2_differently(build):
    keys = recognise(build("florence2").state_dict()).names
    state_dict = {SPELLINGS["florence2_hf"].render(key): torch.zeros(1) for key in keys}
    assert "model.vision_tower.blocks.0.0.spatial_block.window_attn.qkv.weight" in state_dict
    assert detect_layout(state_dict) == "florence2"
    assert recognise(state_dict).names.keys() == keys.keys()


def test_timms_features_only_names_are_read(build):
    model = timm.create_model("davit_tiny", features_only=True)
    assert any(name.startswith("stages_0.") for name in model.state_dict())
    converted = convert_state_dict(model.state_dict(), "pyramid")
    assert "main_blocks.0.0.0.attn.qkv.weight" in converted


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in ("DaViT_huge", "DaViT_giant")])
def test_the_variant_is_told_from_the_shapes(name):
    with torch.device("meta"):
        state_dict = create_model(name, num_classes=3, in_chans=2).state_dict()
    structure = structure_of(recognise(state_dict), state_dict)
    assert name in structure.variants()
    assert (structure.num_classes, structure.in_chans) == (3, 2)
    assert (structure.embed_dims, structure.depths) == (VARIANTS[name].embed_dims, VARIANTS[name].depths)


def test_what_cannot_be_converted_is_an_error(build):
    state_dict = build().state_dict()
    with pytest.raises(ValueError, match=r"'tf'.*" + ", ".join(LAYOUTS)):
        convert_state_dict(state_dict, "tf")
    with pytest.raises(CheckpointError, match=r"main_blocks\.0\.0\.0\.extra\.weight"):
        convert_state_dict({**state_dict, "main_blocks.0.0.0.extra.weight": torch.ones(1)}, "timm")
    with pytest.raises(CheckpointError, match="another architecture"):
        convert_state_dict(timm.create_model("resnet18").state_dict(), "timm")
    with pytest.raises(CheckpointError, match=re.escape("'student.', 'teacher.'")):
        detect_layout({f"{who}.{k}": v for who in ("student", "teacher") for k, v in state_dict.items()})
    only_spatial = build(attention_types=("spatial",)).state_dict()
    with pytest.raises(CheckpointError, match="1 block"):
        convert_state_dict(only_spatial, "florence2")
    assert len(convert_state_dict(only_spatial, "timm")) == len(only_spatial)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convnext_atto", "maxvit_nano_rw_256", "nest_tiny"])
def test_other_architectures_are_not_taken_for_a_davit(name):
    with torch.device("meta"):
        assert recognise(timm.create_model(name).state_dict()) is None
