"""Loading: every tensor where it belongs, everything else reported, and all of it or nothing."""

import logging
from typing import Any

import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from davit import create_model
from davit.checkpoint import CheckpointError, convert_state_dict, load_checkpoint, read_checkpoint
from tests.checkpoint.conftest import built, is_loaded, refusal, under, weights_of, without
from tests.conftest import SMALL

HEAD = {"head.weight", "head.bias"}
NORM = {"norms.weight", "norms.bias"}


def level(*numbers: int) -> set[str]:
    return {f"norm{number}.{param}" for number in numbers for param in ("weight", "bias")}


def picture(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(3))


# ---- what loads completely ----


@settings(
    deadline=None, max_examples=20, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    layout=st.sampled_from(["davit", "timm"]),
    wrapper=st.sampled_from([None, "state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema"]),
    parts=st.lists(st.sampled_from(["module", "_orig_mod", "model", "backbone", "encoder"]), max_size=3),
    in_file=st.booleans(),
)
def test_any_wrapping_of_a_classifier_loads(saved, layout, wrapper, parts, in_file):
    model, other = built(seed=1), weights_of(seed=2)
    prefix = "".join(f"{part}." for part in parts)
    weights = convert_state_dict(other, layout)
    contents = {wrapper: under(prefix, weights)} if wrapper else under(prefix, weights)
    report = load_checkpoint(model, saved(contents) if in_file else contents)
    assert is_loaded(model, other)
    assert report.complete and report.share == 1.0
    assert report.tensors_loaded == report.tensors_total == len(weights)
    assert report.params_loaded == sum(p.numel() for p in model.parameters())
    assert report.ema == (wrapper in ("state_dict_ema", "model_ema"))
    assert len(report.renamed) == (0 if layout == "davit" and not prefix else len(weights))
    assert (report.layout, report.target_layout) == (layout, "davit")


@pytest.mark.parametrize("source, target", [("davit", "timm"), ("timm", "timm"), ("pyramid", "pyramid")])
def test_other_models_are_targets_too_and_the_report_goes_where_it_is_asked(caplog, source, target):
    model, other = built(target, seed=1), weights_of(source, 2)
    with caplog.at_level(logging.INFO):
        report = load_checkpoint(model, other, logger=logging.getLogger("mine"))
    assert is_loaded(model, convert_state_dict(other, target))
    assert report.complete and report.target_layout == target
    assert ("mine", logging.INFO, str(report)) in [(r.name, r.levelno, r.getMessage()) for r in caplog.records]


def test_the_pyramid_of_a_classifiers_weights_has_its_features():
    classifier, pyramid = built(seed=1), built("pyramid", seed=2)
    own_norms = {name: t.clone() for name, t in pyramid.state_dict().items() if name.startswith("norm")}
    report = load_checkpoint(pyramid, classifier.state_dict())
    assert report.missing.keys() == own_norms.keys() and set(report.dropped) == NORM | HEAD
    assert all(torch.equal(pyramid.state_dict()[name], own_norms[name]) for name in own_norms)
    image = picture(1, 3, 40, 56)
    with torch.no_grad():
        features = classifier.forward_features(image)
        expected = pyramid.norm3(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        assert torch.allclose(pyramid(image)[-1], expected, atol=1e-5)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, torch.optim.swa_utils.AveragedModel])
def test_wrapped_models_are_targets(wrap):
    model, inner = built(seed=1), timm.create_model("convnext_atto", num_classes=7)
    wrapped = wrap(model)
    load_checkpoint(wrapped, weights_of(seed=2))
    assert is_loaded(getattr(wrapped, "_orig_mod", None) or wrapped.module, weights_of(seed=2))
    other_head = {**inner.state_dict(), "head.fc.weight": torch.ones(3, 320), "head.fc.bias": torch.ones(3)}
    assert len(load_checkpoint(wrap(inner), other_head).dropped) == 2  # what is the head, the inner model says


def test_a_model_on_the_meta_device_gets_its_weights():
    source = weights_of(seed=2)
    with torch.device("meta"):
        models = [built(seed=1), built(seed=1), built(seed=1, num_classes=3)]
    report = load_checkpoint(models[0], {name: tensor.half() for name, tensor in source.items()})
    assert report.complete and all(p.dtype == torch.float32 and p.requires_grad for p in models[0].parameters())
    assert torch.equal(models[0].head.weight, source["head.weight"].half().float())
    load_checkpoint(models[1], source)
    assert all(p.data_ptr() != source[name].data_ptr() for name, p in models[1].named_parameters())
    with pytest.raises(CheckpointError, match=r"head\.weight"):
        load_checkpoint(models[2], source)
    assert all(p.is_meta for p in models[2].parameters())


def test_loading_keeps_the_dtype_gradients_flags_and_identity():
    model = built(seed=1)
    parameter = model.head.weight
    model.norms.weight.requires_grad_(False)
    report = load_checkpoint(model, {name: tensor.half() for name, tensor in weights_of(seed=2).items()})
    assert report.complete and set(report.cast.values()) == {"from float16 to float32"}
    assert model.head.weight is parameter and parameter.requires_grad and parameter.is_leaf
    assert torch.equal(parameter, weights_of(seed=2)["head.weight"].half().float())
    assert not model.norms.weight.requires_grad


# ---- what may differ, and is reported ----


def test_a_head_of_another_class_count_is_dropped_aloud(caplog):
    model, other = built(seed=1, num_classes=5), weights_of("timm", 2)
    head = {name: tensor.clone() for name, tensor in model.head.state_dict().items()}
    with caplog.at_level(logging.INFO, "davit"):
        report = load_checkpoint(model, other)
    assert all(torch.equal(model.head.state_dict()[name], head[name]) for name in head)
    assert torch.equal(model.norms.weight, other["head.norm.weight"])
    assert set(report.dropped) == {"head.fc.weight", "head.fc.bias"} and set(report.missing) == HEAD
    assert report.tensors_loaded == report.tensors_total - 2
    assert report.params_loaded == report.params_total - 5 * 65
    (reason,) = {*report.dropped.values(), *report.missing.values()}
    assert "7" in reason and "5" in reason
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [(logging.WARNING, str(report))]


def test_the_head_option(snapshot):
    model, other = built(seed=1), weights_of(seed=2)
    own = model.head.weight.clone()
    report = load_checkpoint(model, other, head="drop")
    assert torch.equal(model.head.weight, own) and set(report.missing) == HEAD
    assert torch.equal(model.norms.weight, other["norms.weight"])
    load_checkpoint(model, other, head="require")
    assert is_loaded(model, other)
    model = built(seed=1, num_classes=5)
    text = refusal(model, other, snapshot(model), head="require")
    assert "head.weight" in text and "7" in text and "5" in text
    refusal(model, weights_of("pyramid"), snapshot(model), head="require")
    with pytest.raises(ValueError, match=r"'keep'.*'auto', 'require', 'drop'"):
        load_checkpoint(model, other, head="keep")


def test_models_and_checkpoints_without_a_head():
    headless, other = built(seed=1, num_classes=0), weights_of(seed=2)
    report = load_checkpoint(headless, other)
    assert set(report.dropped) == HEAD and not report.missing and report.share == 1.0
    assert torch.equal(headless.norms.weight, other["norms.weight"])
    report = load_checkpoint(built(seed=3), headless.state_dict())
    assert set(report.missing) == HEAD and not report.dropped


def test_pyramids_of_other_levels():
    model, other = built("pyramid", seed=1, out_indices=(0, 2)), built("pyramid", seed=2, out_indices=(1, 2, 3))
    report = load_checkpoint(model, other.state_dict())
    assert set(report.missing) == level(0)
    stage3 = {name for name in other.state_dict() if name.startswith(("patch_embeds.3.", "main_blocks.3."))}
    assert stage3 and set(report.dropped) == stage3 | level(1, 3)
    assert torch.equal(model.norm2.weight, other.norm2.weight)


@pytest.mark.parametrize("in_chans, kind", [(1, "davit"), (4, "timm"), (6, "pyramid"), (1, "timm")])
def test_the_stem_is_adapted_to_other_channels(in_chans, kind):
    model = built(kind, seed=1, in_chans=in_chans)
    theirs = weights_of(seed=2)["patch_embeds.0.proj.weight"]
    report = load_checkpoint(model, weights_of(seed=2))
    stem = model.stem.conv.weight if kind == "timm" else model.patch_embeds[0].proj.weight
    if in_chans == 1:
        expected = theirs.sum(1, keepdim=True)
    else:
        expected = torch.cat([theirs] * 2, 1)[:, :in_chans] * 3 / in_chans
    assert torch.allclose(stem, expected, atol=1e-6)
    (change,) = report.adapted.values()
    assert "3" in change and str(in_chans) in change and change in str(report) and not report.complete


def test_nan_and_infinite_values_are_warned_of(caplog):
    weights = {name: tensor.clone() for name, tensor in weights_of(seed=2).items()}
    weights["norms.bias"][3], weights["head.bias"][0] = float("nan"), float("inf")
    with caplog.at_level(logging.WARNING, "davit"):
        report = load_checkpoint(built(seed=1), weights)
    assert report.nonfinite == ("norms.bias", "head.bias") and not report.complete
    assert "NaN" in caplog.text and "norms.bias" in caplog.text


# ---- what stops the load, with the model as it was ----


@pytest.mark.parametrize("kind", ["davit", "timm", "pyramid"])
def test_anything_unexplained_stops_the_load(snapshot, kind):
    model, weights = built(seed=1), weights_of(kind, 2)
    unchanged = snapshot(model)
    block = next(name for name in weights if name.endswith("0.0.attn.qkv.weight"))
    stem = next(name for name in weights if weights[name].shape[-2:] == (7, 7))
    extra = block.replace("qkv.weight", "gate.weight")
    assert "qkv.bias" in refusal(model, without(weights, block.replace("weight", "bias")), unchanged)
    assert "patch_embeds.0.proj.weight" in refusal(model, without(weights, stem), unchanged)
    assert extra in refusal(model, {**weights, extra: torch.ones(3)}, unchanged)
    for shape in ((), (0,), (5, 5), (48, 16, 1)):
        assert str(shape) in refusal(model, {**weights, block: torch.ones(shape)}, unchanged)
    assert "int8" in refusal(model, {**weights, block: weights[block].to(torch.int8)}, unchanged)
    critic = {**under("module.", weights), "critic.weight": torch.ones(3)}
    assert "critic.weight" in refusal(model, critic, unchanged)
    for name in ("head.bias", "norms.weight"):
        assert name in refusal(model, without(weights_of(seed=2), name), unchanged)


@pytest.mark.parametrize(
    "options, says",
    [
        ({"depths": (1, 1, 4, 1)}, "(1, 1, 4, 1)"),
        ({"depths": (1, 1, 1, 1)}, "main_blocks.2.1"),
        ({"embed_dims": (16, 32, 48, 80)}, "(16, 32, 48, 80)"),
        ({"embed_dims": (16, 32, 48), "depths": (1, 1, 2), "num_heads": (2, 2, 4)}, "(1, 1, 2)"),
        ({"overlapped_patch": True}, "(32, 16, 3, 3)"),
        ({"qkv_bias": False}, "qkv.bias"),
        ({"ffn": False}, "mlp"),
        ({"attention_types": ("spatial",)}, "main_blocks.0.0.1"),
        ({"in_chans": 5}, "(16, 5, 7, 7)"),
    ],
)
def test_another_davit_stops_the_load_both_ways(snapshot, options, says):
    model, other = built(seed=1), built(seed=2, **options)
    assert says in refusal(model, other.state_dict(), snapshot(model))
    if "in_chans" not in options:
        refusal(other, model.state_dict(), snapshot(other))


def test_the_right_variant_is_named():
    with torch.device("meta"):
        small, tiny = create_model("DaViT_small"), create_model("DaViT_tiny")
    with pytest.raises(CheckpointError, match="'DaViT_small'"):
        load_checkpoint(tiny, small.state_dict())


def test_florence2_stops_the_load_unless_asked_for(snapshot):
    """Florence-2's channel attention is another function: the weights fit, the output would be wrong."""
    model, tower = built(seed=1), built("florence2", seed=2)
    released = convert_state_dict(tower.state_dict(), "florence2")
    for weights in (tower.state_dict(), released):
        assert "allow_different_function" in refusal(model, weights, snapshot(model))
    refusal(tower, model.state_dict(), snapshot(tower))
    assert load_checkpoint(built("florence2", seed=3), released).complete
    model = built(seed=1, overlapped_patch=True)
    report = load_checkpoint(model, released, allow_different_function=True)
    assert report.share == 1.0 and report.layout == "florence2"
    assert torch.equal(model.head.weight, tower.head.fc.weight)
    # and the two functions really differ, or all this would be for nothing
    same_function = built("timm", seed=4, down_kernel_size=3)
    load_checkpoint(same_function, model.state_dict())
    with torch.no_grad():
        assert (same_function(picture(1, 3, 64, 64)) - model(picture(1, 3, 64, 64))).abs().max() < 1e-5
        assert (tower(picture(1, 3, 64, 64)) - model(picture(1, 3, 64, 64))).abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore:.*(sparse|quantize).*:UserWarning")
@pytest.mark.parametrize(
    "odd",
    [
        lambda tensor: tensor.to("meta"),
        lambda tensor: tensor.to_sparse(),
        lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    ],
)
def test_a_tensor_without_plain_values_stops_the_load_before_anything_is_copied(snapshot, saved, odd):
    weights = {**weights_of(seed=1), "head.bias": odd(weights_of(seed=1)["head.bias"])}
    model = built(seed=2)
    for source in [weights] if weights["head.bias"].is_quantized else [weights, saved(weights)]:
        assert "head.bias" in refusal(model, source, snapshot(model))


# ---- other architectures ----


def test_a_davit_and_another_architecture_do_not_load_into_each_other(snapshot, saved):
    model, other = built(seed=1), timm.create_model("resnet18", num_classes=2)
    path = saved({"state_dict": other.state_dict(), "arch": "resnet18"})
    assert str(path) in refusal(model, path, snapshot(model))
    assert "DaViT" in refusal(other, weights_of(), snapshot(other))
    restored = timm.create_model("resnet18", num_classes=2)
    other.bn1.num_batches_tracked.fill_(17)
    load_checkpoint(restored, other.state_dict())
    assert restored.bn1.num_batches_tracked == 17


def test_other_timm_models_load_under_their_own_names(saved, snapshot):
    model, other = (timm.create_model("convnext_atto", num_classes=7) for _ in range(2))
    weights = other.state_dict()
    report = load_checkpoint(model, saved({"state_dict": under("module.", weights)}))
    assert is_loaded(model, weights) and report.complete and report.layout == "plain"
    load_checkpoint(nn.DataParallel(model), under("model.", weights))
    smaller = timm.create_model("convnext_atto", num_classes=3, in_chans=1)
    report = load_checkpoint(smaller, weights)
    assert list(report.adapted) == ["stem.0.weight"]
    assert set(report.missing) == set(report.dropped) == {"head.fc.weight", "head.fc.bias"}
    unchanged = snapshot(model)
    refusal(model, without(weights, "stem.0.bias"), unchanged)
    refusal(model, {**weights, "stem.9.bias": torch.ones(1)}, unchanged)
    refusal(model, timm.create_model("resnet18").state_dict(), unchanged)


# ---- whole detectors and segmentors ----


def detector(seed: int = 0, classes: int = 3, out_indices: tuple[int, ...] = (1, 2), edit: bool = False) -> Any:
    """A model with a backbone and the layers that tell classes apart under the names of mmdet and mmseg."""
    model = nn.Module()
    model.backbone = built("pyramid", seed, out_indices=out_indices)
    if edit:
        model.backbone.main_blocks[1][0][0].gamma = nn.Parameter(torch.zeros(4))
    model.neck = nn.Linear(3, 3)
    model.bbox_head = nn.ModuleDict({"retina_cls": nn.Conv2d(4, 9 * classes, 1), "retina_reg": nn.Conv2d(4, 4, 1)})
    model.decode_head = nn.ModuleDict({"conv_seg": nn.Conv2d(4, classes, 1)})
    return model


@pytest.mark.parametrize("head", ["auto", "require"])
def test_a_whole_detector_loads_with_the_norms_of_unread_levels_dropped(head):
    model, weights = detector(1), detector(2, out_indices=(0, 1, 2)).state_dict()
    report = load_checkpoint(model, under("module.", weights), head=head)
    assert set(report.dropped) == under("module.backbone.", dict.fromkeys(level(0))).keys() and not report.missing
    assert is_loaded(model, without(weights, *(f"backbone.{name}" for name in level(0))))


def test_a_detector_of_other_classes_keeps_its_own_classifiers_in_training_only(snapshot):
    model, other = detector(1, classes=5), detector(2)
    own = {f"{layer}.weight" for layer in ("bbox_head.retina_cls", "decode_head.conv_seg")}
    assert min(own) in refusal(model, other.state_dict(), snapshot(model), head="require")
    refusal(model, weights_of(), snapshot(model))  # a classifier's
    report = load_checkpoint(model, other.state_dict())
    assert set(report.missing) == set(report.dropped) > own and len(report.missing) == 4
    assert torch.equal(model.bbox_head["retina_reg"].weight, other.bbox_head["retina_reg"].weight)


@pytest.mark.parametrize(
    "change",
    [
        {"backbone.norm1.weight": None},
        {"backbone.main_blocks.0.0.0.norm1.bias": None},
        {"neck.bias": None},
        {"neck.extra": torch.zeros(1)},
        {"backbone.main_blocks.0.0.0.extra": torch.zeros(1)},
        {"bbox_head.retina_reg.bias": torch.zeros(9)},
    ],
)
@pytest.mark.parametrize("head", ["auto", "require"])
def test_what_does_not_fit_a_detector_stops_the_load(snapshot, change, head):
    model = detector(1, edit=True)
    weights = {name: value for name, value in {**model.state_dict(), **change}.items() if value is not None}
    assert next(iter(change)) in refusal(model, weights, snapshot(model), head=head)


def test_what_was_added_to_a_backbone_may_be_new_in_training_only(snapshot, caplog):
    model, weights, added = detector(1, edit=True), detector(2).state_dict(), "backbone.main_blocks.1.0.0.gamma"
    assert added in refusal(model, weights, snapshot(model), head="require")
    assert set(load_checkpoint(model, weights).missing) == {added}
    assert caplog.records[-1].levelno == logging.WARNING and added in caplog.text
    assert is_loaded(model, {**weights, added: torch.zeros(4)})


# ---- sources ----


def test_an_opened_checkpoint_is_a_source_and_the_ema_choice_reaches_a_file(saved):
    path, model = saved({"state_dict": weights_of(seed=2), "state_dict_ema": weights_of(seed=3)}), built(seed=1)
    assert load_checkpoint(model, path).ema and is_loaded(model, weights_of(seed=3))
    for report in (load_checkpoint(model, path, ema="never"), load_checkpoint(model, read_checkpoint(path, "never"))):
        assert (report.origin, report.wrapper, report.ema) == (str(path), ("state_dict",), False)
        assert is_loaded(model, weights_of(seed=2))


def test_timm_features_models_take_weights():
    model = timm.create_model("davit_tiny", features_only=True, **{**SMALL, "out_indices": (0, 1, 2, 3)})
    report = load_checkpoint(model, weights_of("timm", 2))
    assert not report.missing and report.share == 1.0
    assert set(report.dropped) == {name for name in weights_of("timm", 2) if name.startswith("head.")}
