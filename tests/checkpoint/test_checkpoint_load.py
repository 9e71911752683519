"""Loading: every tensor where it belongs, everything else reported, and all of it or nothing."""

import logging
import re

import pytest
import timm
import torch
from torch import nn

from davit import DaViT
from davit.checkpoint import CheckpointError, convert_state_dict, load_checkpoint, read_checkpoint

WRAPPINGS = [
    "",
    "module.",
    "_orig_mod.",
    "module._orig_mod.",
    "model.",
    "backbone.",
    "model.module.",
    "model.backbone.",
]


def loaded(model: nn.Module, state_dict: dict) -> bool:
    mine = model.state_dict()
    return mine.keys() == state_dict.keys() and all(torch.equal(mine[name], state_dict[name]) for name in mine)


def refused(model, source, unchanged, **options) -> str:
    """The one-paragraph error of a load that left the model as it was."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, source, **options)
    unchanged()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- what loads completely


@pytest.mark.parametrize("prefix", WRAPPINGS)
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "state_dict_ema"])
@pytest.mark.parametrize("layout", ["davit", "timm"])
def test_any_wrapping_of_a_classifier_loads(build, saved, prefix, wrapper, layout):
    model, other = build(seed=1), build(seed=2)
    weights = convert_state_dict(other.state_dict(), layout)
    contents: dict = {prefix + name: tensor for name, tensor in weights.items()}
    report = load_checkpoint(model, saved({wrapper: contents} if wrapper else contents))
    assert loaded(model, other.state_dict())
    assert report.complete and report.share == 1.0
    assert report.tensors_loaded == report.tensors_total == len(weights)
    assert report.params_loaded == sum(p.numel() for p in model.parameters())
    assert report.ema == (wrapper == "state_dict_ema")
    expected_renames = 0 if layout == "davit" and not prefix else len(weights)
    assert len(report.renamed) == expected_renames
    assert (report.layout, report.target_layout) == (layout, "davit")


@pytest.mark.parametrize("source, target", [("davit", "timm"), ("timm", "timm"), ("pyramid", "pyramid")])
def test_other_models_are_targets_too(build, source, target):
    model, other = build(target, seed=1), build(source, seed=2)
    report = load_checkpoint(model, other.state_dict())
    assert loaded(model, convert_state_dict(other.state_dict(), target))
    assert report.complete and report.target_layout == target


@pytest.mark.parametrize("source", ["davit", "timm"])
def test_logits_equal_timms_whichever_way_the_weights_go(build, source):
    target = {"davit": "timm", "timm": "davit"}[source]
    one, other = build(source, seed=1), build(target, seed=2)
    load_checkpoint(other, one.state_dict())
    image = torch.randn(2, 3, 61, 45, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert (one(image) - other(image)).abs().max() < 1e-5


def test_the_pyramid_of_a_classifiers_weights_has_its_features(build):
    classifier, pyramid = build(seed=1), build("pyramid", seed=2)
    own_norms = {name: t.clone() for name, t in pyramid.state_dict().items() if name.startswith("norm")}
    report = load_checkpoint(pyramid, classifier.state_dict())
    assert report.missing.keys() == own_norms.keys()
    assert set(report.dropped) == {"norms.weight", "norms.bias", "head.weight", "head.bias"}
    assert all(torch.equal(pyramid.state_dict()[name], own_norms[name]) for name in own_norms)
    image = torch.randn(1, 3, 40, 56, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        features = classifier.forward_features(image)
        last = pyramid(image)[-1]
        expected = pyramid.norm3(features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert torch.allclose(last, expected, atol=1e-5)


def test_wrapped_models_are_targets(build, tmp_path):
    other = build(seed=2)
    model = build(seed=1)
    load_checkpoint(nn.DataParallel(model), other.state_dict())
    assert loaded(model, other.state_dict())

    model = build(seed=1)
    load_checkpoint(torch.compile(model), other.state_dict())
    assert loaded(model, other.state_dict())

    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = build(seed=1)
        load_checkpoint(nn.parallel.DistributedDataParallel(model), convert_state_dict(other.state_dict(), "timm"))
        assert loaded(model, other.state_dict())
    finally:
        torch.distributed.destroy_process_group()

    averaged = torch.optim.swa_utils.AveragedModel(build(seed=1))
    load_checkpoint(averaged, other.state_dict())
    assert loaded(averaged.module, other.state_dict())


def test_weight_averaging_counters_are_no_obstacle(build):
    model, other = build(seed=1), build(seed=2)
    averaged = torch.optim.swa_utils.AveragedModel(other)
    report = load_checkpoint(model, averaged.state_dict())
    assert loaded(model, other.state_dict()) and set(report.dropped) == {"n_averaged"}


def test_a_model_on_the_meta_device_gets_its_weights(build):
    other = build(seed=2)
    with torch.device("meta"):
        model = build(seed=1)
        smaller_head = build(seed=1, num_classes=3)
    report = load_checkpoint(model, other.half().state_dict())
    assert report.complete and all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())
    assert torch.equal(model.head.weight, other.head.weight.float())
    source = other.float().state_dict()
    with torch.device("meta"):
        model = build(seed=1)
    load_checkpoint(model, source)
    assert all(p.data_ptr() != source[name].data_ptr() for name, p in model.named_parameters())
    with pytest.raises(CheckpointError, match=r"head\.weight.*meta device"):
        load_checkpoint(smaller_head, source)
    assert all(p.is_meta for p in smaller_head.parameters())


def test_number_formats_are_converted_and_said(build):
    model, other = build(seed=1), build(seed=2).half()
    report = load_checkpoint(model, other.state_dict())
    assert model.head.weight.dtype == torch.float32
    assert torch.equal(model.head.weight, other.head.weight.float())
    assert report.complete and "from float16 to float32" in str(report)


def test_loading_keeps_gradients_flags_and_identity(build):
    model = build(seed=1)
    parameter = model.head.weight
    model.norms.weight.requires_grad_(False)
    load_checkpoint(model, build(seed=2).state_dict())
    assert model.head.weight is parameter and parameter.requires_grad and parameter.is_leaf
    assert not model.norms.weight.requires_grad


# -- what may differ, and is said


def test_a_head_of_another_class_count_is_dropped_aloud(build, caplog):
    model, other = build(seed=1, num_classes=5), build("timm", seed=2)
    head = {name: tensor.clone() for name, tensor in model.head.state_dict().items()}
    with caplog.at_level(logging.INFO, "davit"):
        report = load_checkpoint(model, other.state_dict())
    assert all(torch.equal(model.head.state_dict()[name], head[name]) for name in head)
    assert torch.equal(model.norms.weight, other.head.norm.weight)
    assert set(report.dropped) == {"head.fc.weight", "head.fc.bias"}
    assert set(report.missing) == {"head.weight", "head.bias"}
    assert report.tensors_loaded == report.tensors_total - 2
    assert report.params_loaded == report.params_total - 5 * 65
    assert re.search(r"has 7 classes, the model's 5", str(report))
    record = next(record for record in caplog.records if "classes" in record.getMessage())
    assert record.levelno == logging.WARNING and record.getMessage() == str(report)


def test_a_complete_load_is_logged_quietly(build, caplog):
    with caplog.at_level(logging.INFO, "davit"):
        report = load_checkpoint(build(seed=1), build(seed=2).state_dict())
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [(logging.INFO, str(report))]


def test_the_head_option(build, snapshot):
    model, other = build(seed=1), build(seed=2)
    own = model.head.weight.clone()
    report = load_checkpoint(model, other.state_dict(), head="drop")
    assert torch.equal(model.head.weight, own) and set(report.missing) == {"head.weight", "head.bias"}
    assert torch.equal(model.norms.weight, other.norms.weight)
    load_checkpoint(model, other.state_dict(), head="require")
    assert loaded(model, other.state_dict())
    model = build(seed=1, num_classes=5)
    text = refused(model, other.state_dict(), snapshot(model), head="require")
    assert "7 classes, the model's 5" in text
    refused(model, build("pyramid").state_dict(), snapshot(model), head="require")
    with pytest.raises(ValueError, match="'auto', 'require', 'drop'"):
        load_checkpoint(model, other.state_dict(), head="keep")


def test_models_and_checkpoints_without_a_head(build):
    headless, other = build(seed=1, num_classes=0), build(seed=2)
    report = load_checkpoint(headless, other.state_dict())
    assert set(report.dropped) == {"head.weight", "head.bias"} and not report.missing and report.share == 1.0
    assert torch.equal(headless.norms.weight, other.norms.weight)
    model = build(seed=3)
    report = load_checkpoint(model, headless.state_dict())
    assert set(report.missing) == {"head.weight", "head.bias"} and not report.dropped


def test_a_backbones_weights_load_into_a_classifier_but_for_the_head(build):
    model, other = build(seed=1), build("pyramid", seed=2)
    report = load_checkpoint(model, other.state_dict())
    assert set(report.missing) == {"norms.weight", "norms.bias", "head.weight", "head.bias"}
    assert set(report.dropped) == {f"norm{i}.{p}" for i in range(4) for p in ("weight", "bias")}
    assert torch.equal(
        model.state_dict()["main_blocks.2.1.1.mlp.fc2.weight"], other.main_blocks[2][1][1].mlp.fc2.weight
    )


def test_pyramids_of_other_levels(build):
    model, other = (
        build("pyramid", seed=1, out_indices=(0, 2)),
        build("pyramid", seed=2, out_indices=(1, 2, 3)),
    )
    report = load_checkpoint(model, other.state_dict())
    assert set(report.missing) == {"norm0.weight", "norm0.bias"}
    stage3 = {name for name in other.state_dict() if re.match(r"(patch_embeds|main_blocks)\.3\.", name)}
    assert stage3 and set(report.dropped) == stage3 | {f"norm{i}.{p}" for i in (1, 3) for p in ("weight", "bias")}
    assert "ends with stage 2" in str(report)
    assert torch.equal(model.norm2.weight, other.norm2.weight)


def test_the_backbone_is_taken_out_of_a_detector(build, saved):
    model, other = build("pyramid", seed=1), build("pyramid", seed=2)
    detector = {f"module.backbone.{name}": tensor for name, tensor in other.state_dict().items()}
    rest = {
        f"module.{name}": torch.ones(2) for name in ("neck.lateral.weight", "rpn_head.cls.bias", "bbox_head.fc.bias")
    }
    report = load_checkpoint(model, saved({"state_dict": {**detector, **rest}, "meta": {"epoch": 1}}))
    assert loaded(model, other.state_dict())
    assert report.dropped.keys() == rest.keys() and "rpn_head" in str(report)


@pytest.mark.parametrize("in_chans", [1, 2, 4, 6])
@pytest.mark.parametrize("kind", ["davit", "timm", "pyramid"])
def test_the_stem_is_adapted_to_other_channels(build, in_chans, kind):
    model, other = build(kind, seed=1, in_chans=in_chans), build(seed=2)
    report = load_checkpoint(model, other.state_dict())
    stem = model.stem.conv.weight if kind == "timm" else model.patch_embeds[0].proj.weight
    theirs = other.patch_embeds[0].proj.weight
    if in_chans == 1:
        expected = theirs.sum(1, keepdim=True)
    else:
        expected = torch.cat([theirs] * 2, 1)[:, :in_chans] * 3 / in_chans
    assert torch.allclose(stem, expected, atol=1e-6)
    assert list(report.adapted.values()) == [f"from 3 to {in_chans} input channels"] and not report.complete
    assert "input channels" in str(report)


def test_nan_and_infinite_values_are_warned_of(build, caplog):
    model, other = build(seed=1), build(seed=2)
    state_dict = other.state_dict()
    state_dict["norms.bias"][3] = float("nan")
    state_dict["head.bias"][0] = float("inf")
    with caplog.at_level(logging.WARNING, "davit"):
        report = load_checkpoint(model, state_dict)
    assert report.nonfinite == ("norms.bias", "head.bias") and not report.complete
    assert "NaN" in caplog.text and "norms.bias" in caplog.text


# -- what stops the load, with the model as it was


def _without(state_dict, name):
    return {key: tensor for key, tensor in state_dict.items() if key != name}


@pytest.mark.parametrize("kind", ["davit", "timm", "pyramid"])
def test_anything_unexplained_stops_the_load(build, snapshot, kind):
    model = build(seed=1)
    unchanged = snapshot(model)
    weights = build(kind, seed=2).state_dict()
    block = next(name for name in weights if name.endswith("0.0.attn.qkv.weight"))
    stem = next(name for name in weights if weights[name].shape[-2:] == (7, 7))
    assert "missing" in refused(model, _without(weights, block.replace("weight", "bias")), unchanged)
    assert "missing" in refused(model, _without(weights, stem), unchanged)
    extra = block.replace("qkv.weight", "gate.weight")
    assert extra in refused(model, {**weights, extra: torch.ones(3)}, unchanged)
    assert "(5, 5)" in refused(model, {**weights, block: torch.ones(5, 5)}, unchanged)
    assert "int8" in refused(model, {**weights, block: weights[block].to(torch.int8)}, unchanged)
    outside = {f"module.{name}": tensor for name, tensor in weights.items()}
    assert "critic.weight" in refused(model, {**outside, "critic.weight": torch.ones(3)}, unchanged)


def test_an_incomplete_head_stops_the_load(build, snapshot):
    model = build(seed=1)
    weights = build(seed=2).state_dict()
    for name in ("head.bias", "norms.weight"):
        text = refused(model, _without(weights, name), snapshot(model))
        assert name in text and "Nothing was loaded" in text


@pytest.mark.parametrize(
    "options, says",
    [
        ({"depths": (1, 1, 4, 1)}, "depths (1, 1, 4, 1)"),
        ({"depths": (1, 1, 1, 1)}, "missing"),
        ({"embed_dims": (16, 32, 48, 80)}, "(16, 32, 48, 80)"),
        ({"overlapped_patch": True}, "(32, 16, 3, 3)"),
        ({"qkv_bias": False}, "qkv.bias"),
        ({"ffn": False}, "mlp"),
        ({"attention_types": ("spatial",)}, "missing"),
        ({"in_chans": 5}, "(16, 5, 7, 7)"),
    ],
)
def test_another_davit_stops_the_load(build, snapshot, options, says):
    model = build(seed=1)
    assert says in refused(model, build(seed=2, **options).state_dict(), snapshot(model))


def test_the_right_variant_is_named():
    from davit import create_model

    with torch.device("meta"):
        small, tiny = create_model("DaViT_small"), create_model("DaViT_tiny")
    with pytest.raises(CheckpointError, match="'DaViT_small'"):
        load_checkpoint(tiny, small.state_dict())


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224", "convnext_atto"])
def test_another_architecture_stops_the_load(build, snapshot, saved, name):
    model = build(seed=1)
    path = saved({"state_dict": timm.create_model(name, num_classes=7).state_dict(), "arch": name})
    text = refused(model, path, snapshot(model))
    assert str(path) in text and "another architecture" in text


def test_florence2_stops_the_load_unless_asked_for(build, snapshot, saved):
    """Florence-2's channel attention is another function: the weights fit, the output would be wrong."""
    model, tower = build(seed=1), build("florence2", seed=2)
    for weights in (tower.state_dict(), convert_state_dict(tower.state_dict(), "florence2")):
        text = refused(model, weights, snapshot(model))
        assert "Florence-2" in text and "allow_different_function" in text
    refused(tower, model.state_dict(), snapshot(tower))
    released = convert_state_dict(tower.state_dict(), "florence2")
    assert load_checkpoint(build("florence2", seed=3), released).complete
    model = build(seed=1, overlapped_patch=True)
    report = load_checkpoint(model, released, allow_different_function=True)
    assert report.share == 1.0 and report.layout == "florence2"
    assert torch.equal(model.head.weight, tower.head.fc.weight)
    # and the two functions really differ, or all this would be for nothing
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    same_function = build("timm", seed=4, down_kernel_size=3)
    load_checkpoint(same_function, model.state_dict())
    with torch.no_grad():
        assert (same_function(image) - model(image)).abs().max() < 1e-5
        assert (tower(image) - model(image)).abs().max() > 1e-3


# -- other architectures of timm


def test_other_timm_models_load_under_their_own_names(saved, snapshot):
    name = "convnext_atto"
    model, other = (timm.create_model(name, num_classes=n) for n in (7, 7))
    report = load_checkpoint(model, saved({"state_dict": {f"module.{k}": v for k, v in other.state_dict().items()}}))
    assert loaded(model, other.state_dict()) and report.complete and report.layout == "plain"
    load_checkpoint(nn.DataParallel(model), {f"model.{k}": v for k, v in other.state_dict().items()})
    smaller = timm.create_model(name, num_classes=3, in_chans=1)
    report = load_checkpoint(smaller, other.state_dict())
    assert "7 classes, the model's 3" in str(report) and list(report.adapted) == ["stem.0.weight"]
    assert set(report.missing) == {"head.fc.weight", "head.fc.bias"}
    unchanged = snapshot(model)
    refused(model, _without(other.state_dict(), "stem.0.bias"), unchanged)
    refused(model, {**other.state_dict(), "stem.9.bias": torch.ones(1)}, unchanged)
    text = refused(model, timm.create_model("resnet18").state_dict(), unchanged)
    assert "two architectures" in text


def test_a_davit_does_not_load_into_another_architecture(build, snapshot):
    model = timm.create_model("resnet18", num_classes=7)
    assert "DaViT" in refused(model, build().state_dict(), snapshot(model))


def test_batch_norm_counters_are_loaded(snapshot):
    model, other = timm.create_model("resnet18", num_classes=2), timm.create_model("resnet18", num_classes=2)
    other.bn1.num_batches_tracked.fill_(17)
    load_checkpoint(model, other.state_dict())
    assert model.bn1.num_batches_tracked == 17


def test_a_whole_detector_is_a_target_for_a_whole_detector(build):
    def detector(seed):
        return nn.ModuleDict({"backbone": build("pyramid", seed=seed), "neck": nn.Linear(3, 3)})

    model, other = detector(1), detector(2)
    assert load_checkpoint(model, other.state_dict()).complete
    assert loaded(model, other.state_dict())


# -- sources


def test_an_opened_checkpoint_is_a_source(build, saved):
    model, other = build(seed=1), build(seed=2)
    path = saved({"model": other.state_dict()})
    report = load_checkpoint(model, read_checkpoint(path))
    assert loaded(model, other.state_dict()) and report.origin == str(path) and report.wrapper == ("model",)


def test_the_ema_choice_reaches_the_file(build, saved):
    trained, averaged = build(seed=2), build(seed=3)
    path = saved({"state_dict": trained.state_dict(), "state_dict_ema": averaged.state_dict()})
    model = build(seed=1)
    assert load_checkpoint(model, path).ema and loaded(model, averaged.state_dict())
    assert not load_checkpoint(model, path, ema="never").ema and loaded(model, trained.state_dict())


def test_an_unreadable_file_leaves_the_model_alone(build, snapshot, tmp_path):
    model = build(seed=1)
    (tmp_path / "page.pth").write_text("<html></html>")
    refused(model, tmp_path / "page.pth", snapshot(model))
    refused(model, tmp_path / "nothing.pth", snapshot(model))


def test_timm_features_models_take_weights(build):
    model = timm.create_model("davit_tiny", features_only=True, **{**_small(), "out_indices": (0, 1, 2, 3)})
    other = build("timm", seed=2)
    report = load_checkpoint(model, other.state_dict())
    assert not report.missing and report.share == 1.0
    assert set(report.dropped) == {name for name in other.state_dict() if name.startswith("head.")}


def _small():
    return {
        "embed_dims": (16, 32, 48, 64),
        "depths": (1, 1, 2, 1),
        "num_heads": (2, 2, 4, 4),
        "window_size": 4,
    }


def test_one_stage_more_or_less_is_no_pyramid_matter(build, snapshot):
    """Only a model without a head may end early."""
    shorter = {"embed_dims": (16, 32, 48), "depths": (1, 1, 2), "num_heads": (2, 2, 4)}
    model = DaViT(num_classes=7, window_size=4, **shorter)
    refused(model, build(seed=2).state_dict(), snapshot(model))


@pytest.mark.filterwarnings("ignore:.*(sparse|quantize).*:UserWarning")
@pytest.mark.parametrize("kind", ["meta", "sparse", "quantized"])
def test_a_tensor_without_plain_values_stops_the_load_before_anything_is_copied(build, snapshot, saved, kind):
    weights = build(seed=1).state_dict()
    odd = {
        "meta": lambda tensor: tensor.to("meta"),
        "sparse": lambda tensor: tensor.to_sparse(),
        "quantized": lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    }[kind]
    weights["head.bias"] = odd(weights["head.bias"])
    model = build(seed=2)
    unchanged = snapshot(model)
    for source in [weights] if kind == "quantized" else [weights, saved(weights)]:
        with pytest.raises(CheckpointError, match=r"head\.bias"):
            load_checkpoint(model, source)
        unchanged()
