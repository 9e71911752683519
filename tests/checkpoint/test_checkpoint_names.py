"""The layouts: found whatever the prefix, converted any to any, nothing lost and nothing invented."""

import logging

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from davit import VARIANTS, DaViT, create_model
from davit.checkpoint import LAYOUTS, CheckpointError, convert_state_dict, convert_with_report, detect_layout
from davit.checkpoint.names import SPELLINGS, find, lacking, recognise, structure_of
from tests.checkpoint.conftest import built, same, under, weights_of


@st.composite
def davits(draw):
    """The weights of any DaViT: of any depths and heads, with or without a head, biases, overlapping patches."""
    stages = draw(st.integers(1, 4))
    heads = draw(st.lists(st.integers(1, 3), min_size=stages, max_size=stages))
    with torch.device("meta"):
        model = DaViT(
            embed_dims=tuple(4 * head for head in heads),
            depths=tuple(draw(st.lists(st.integers(1, 3), min_size=stages, max_size=stages))),
            num_heads=tuple(heads),
            num_classes=draw(st.integers(0, 2)),
            in_chans=draw(st.integers(1, 4)),
            overlapped_patch=draw(st.booleans()),
            qkv_bias=draw(st.booleans()),
        )
    return {name: torch.full(tensor.shape, i).half() for i, (name, tensor) in enumerate(model.state_dict().items())}


PREFIXES = st.lists(st.sampled_from(["module", "_orig_mod", "model", "backbone", "a1", "norm0"]), max_size=3)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(weights=davits(), parts=PREFIXES, there=st.sampled_from(["timm", "florence2"]))
def test_any_davit_goes_to_any_layout_and_back(weights, parts, there):
    prefix = "".join(f"{part}." for part in parts)
    once = convert_state_dict(under(prefix, weights), there)
    assert detect_layout(once) == there and set(once).isdisjoint(weights)
    found = recognise(under(prefix, once))
    assert found.prefix.startswith(prefix) and not found.additions and not found.outside
    back = convert_state_dict(under(prefix, once), "davit")
    assert same(back, weights)
    assert all(back[name].data_ptr() == weights[name].data_ptr() for name in back)
    trunk, report = convert_with_report(once, "pyramid")
    tail = {name for name in weights if name.startswith(("norms.", "head."))}
    assert same(trunk, {name: tensor for name, tensor in weights.items() if name not in tail})
    assert len(report.dropped) == len(tail) and detect_layout(trunk) == "pyramid"
    structure = structure_of(recognise(once), once)
    assert structure == structure_of(recognise(weights), weights)
    assert structure.num_classes == (len(weights["head.weight"]) if "head.weight" in weights else None)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(weights=davits(), layout=st.sampled_from(LAYOUTS))
def test_a_whole_davit_lacks_nothing(weights, layout):
    assert lacking(recognise(under("model.", convert_state_dict(weights, layout)))) == []


def test_a_tensor_that_is_gone_is_named():
    weights = dict(weights_of("davit"))
    notes = len(convert_with_report(weights, "timm")[1].notes)
    for gone in ("patch_embeds.1.proj.bias", "main_blocks.0.0.1.mlp.fc1.weight", "main_blocks.1.0.0.norm1.bias"):
        rest = {name: tensor for name, tensor in weights.items() if name != gone}
        assert lacking(recognise(rest)) == [gone]
        assert len(convert_with_report(rest, "timm")[1].notes) == notes + 1


def test_a_classifier_loses_its_head_as_a_pyramid_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        converted = convert_state_dict(weights_of("timm"), "pyramid")
    assert list(converted) == [name for name in weights_of("pyramid") if not name.startswith("norm")]
    assert "head.fc.weight" in caplog.text
    _, report = convert_with_report(weights_of("timm"), "pyramid")
    assert report.notes and report.tensors == len(converted) == report.renamed
    assert report.params == sum(tensor.numel() for tensor in converted.values())


@pytest.mark.parametrize("to", ["davit", "timm", "florence2"])
def test_a_pyramid_loses_its_norms_and_lacks_a_head(to):
    converted, report = convert_with_report(under("backbone.", weights_of("pyramid")), to)
    norms = {f"backbone.norm{i}.{param}" for i in range(4) for param in ("weight", "bias")}
    assert set(report.dropped) == norms and report.notes
    assert len(converted) == len(weights_of("pyramid")) - 8
    rest = {"neck.lateral.weight": torch.ones(2), "roi_head.fc.bias": torch.ones(2)}
    converted, report = convert_with_report({**under("backbone.", weights_of("pyramid")), **rest}, "pyramid")
    assert list(converted) == list(weights_of("pyramid")) and set(report.dropped) == set(rest)


def test_florence2_names_agree_with_timms_own_conversion():
    """timm's loader of Microsoft's checkpoints must find its model's names in what we write."""
    from timm.models.davit import checkpoint_filter_fn

    model = built("florence2", num_classes=0, down_kernel_size=3)
    released = convert_state_dict(model.state_dict(), "florence2")
    del released["vision_tower.norms.weight"], released["vision_tower.norms.bias"]  # the release has none
    read_by_timm = checkpoint_filter_fn(dict(released), model)
    wanted = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("head")}
    assert read_by_timm.keys() == wanted.keys()
    assert all(read_by_timm[name] is tensor for name, tensor in zip(read_by_timm, released.values(), strict=True))
    assert all(torch.equal(read_by_timm[name], wanted[name]) for name in wanted)
    assert list(convert_state_dict(released, "timm")) == list(wanted)


def test_florence2_is_recognised_under_each_of_its_names():
    """Beside the language model, in timm, and as the transformers library calls its tensors."""
    weights = weights_of("florence2")
    tower = convert_state_dict(weights, "florence2")
    assert "vision_tower.blocks.3.0.channel_block.ffn.fn.net.fc2.weight" in tower
    rest = ("language_model.model.shared.weight", "image_projection")
    found = recognise([*tower, *rest])
    assert (found.layout, found.function, found.prefix) == ("florence2", "florence2", "vision_tower.")
    assert found.outside == rest
    found = recognise(weights)
    assert (found.layout, found.function) == ("timm", "florence2")
    names = [SPELLINGS["florence2_native"].render(key) for key in found.names]
    assert "model.vision_tower.blocks.0.0.spatial_block.window_attn.qkv.weight" in names
    assert recognise(names).layout == "florence2_native" and recognise(names).names.keys() == found.names.keys()


@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in ("DaViT_huge", "DaViT_giant")])
def test_the_variant_is_told_from_the_shapes(name):
    with torch.device("meta"):
        weights = create_model(name, num_classes=3, in_chans=2).state_dict()
    structure = structure_of(recognise(weights), weights)
    assert name in structure.variants()
    assert (structure.num_classes, structure.in_chans) == (3, 2)
    assert (structure.embed_dims, structure.depths) == (VARIANTS[name].embed_dims, VARIANTS[name].depths)


def test_what_cannot_be_converted_is_an_error():
    weights = weights_of()
    with pytest.raises(ValueError, match=r"'tf'.*" + ", ".join(LAYOUTS)):
        convert_state_dict(weights, "tf")
    with pytest.raises(CheckpointError, match=r"main_blocks\.0\.0\.0\.extra\.weight"):
        convert_state_dict({**weights, "main_blocks.0.0.0.extra.weight": torch.ones(1)}, "timm")
    with pytest.raises(CheckpointError, match=", ".join(LAYOUTS)):
        convert_state_dict({"fc.weight": torch.ones(1)}, "timm")
    with pytest.raises(CheckpointError, match=r"'student\.', 'teacher\.'"):
        detect_layout({**under("student.", weights), **under("teacher.", weights)})
    only_spatial = built(attention_types=("spatial",)).state_dict()
    with pytest.raises(CheckpointError, match="1 block"):
        convert_state_dict(only_spatial, "florence2")
    assert len(convert_state_dict(only_spatial, "timm")) == len(only_spatial)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convnext_atto", "maxvit_nano_rw_256", "nest_tiny"])
def test_other_architectures_are_not_taken_for_a_davit(name):
    with torch.device("meta"):
        assert find(timm.create_model(name).state_dict()) == []


def test_absurd_numbers_in_names_are_no_stages():
    """A crafted file must not be able to make its reader count to a billion."""
    weights = weights_of()
    for stage in ("9" * 5000, "999999999"):
        found = recognise([*weights, f"patch_embeds.{stage}.proj.weight"])
        assert max(key.stage for key in found.names) == 3 and len(found.additions) == 1
