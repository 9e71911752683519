"""timm's protocol: heads, features, intermediates, groups of parameters, checkpointing of activations."""

import itertools
import warnings

import pytest
import timm
import torch
from timm.models import group_parameters
from torch import nn

from davit import DaViT

WIDTHS, REDUCTIONS = [32, 64, 128, 160], [4, 8, 16, 32]  # of DaViT_nano


def nano(**options):
    torch.manual_seed(0)
    return timm.create_model("DaViT_nano", **options).eval()


# --- head and features ---


def test_forward_is_features_then_head(small, picture):
    model, image = small(), picture()
    features = model.forward_features(image)
    assert features.shape == (2, 64, 2, 2)
    torch.testing.assert_close(features, model.forward_stages(image)[-1].permute(0, 3, 1, 2))
    assert torch.equal(model.forward_head(features), model(image))
    pre_logits = model.forward_head(features, pre_logits=True)
    assert pre_logits.shape == (2, model.num_features) == (2, model.head_hidden_size)
    torch.testing.assert_close(model.head(pre_logits), model(image))


def test_reset_classifier(small, picture):
    model = small()
    features = model.forward_head(model.forward_features(picture()), pre_logits=True)
    old = model.head
    torch.manual_seed(0)
    model.reset_classifier(300)
    assert model.get_classifier() is model.head is not old
    assert model.num_classes == 300
    assert model.head.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not model.head.bias.any()
    torch.testing.assert_close(model(picture()), model.head(features))
    model.reset_classifier(0)
    assert torch.equal(model(picture()), features)
    model.reset_classifier(0, "")
    assert model(picture()).shape == (2, 64, 2, 2)
    model.reset_classifier(3, "max")
    assert model(picture()).shape == (2, 3)
    assert model.global_pool == "max"


def test_reset_classifier_keeps_dtype_and_device(small):
    model = small().to(torch.float64)
    model.reset_classifier(3)
    assert model.head.weight.dtype == torch.float64
    meta = small().to("meta")
    meta.reset_classifier(3)
    assert meta.head.weight.is_meta


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((-3,), "num_classes=-3"), ((5, ""), "global_pool=''"), ((5, "mean"), "'mean'.*'avg', 'max', 'avgmax', ''")],
)
def test_reset_classifier_mistakes_leave_the_model(small, picture, arguments, words):
    model = small()
    expected = model(picture())
    with pytest.raises(ValueError, match=words):
        model.reset_classifier(*arguments)
    assert torch.equal(model(picture()), expected)
    assert (model.num_classes, model.global_pool) == (7, "avg")


# --- feature_info and features_only ---


def test_feature_info_tells_the_truth(small, picture):
    model, seen = small(patch_size=2), {}
    for info in model.feature_info:
        module = model.get_submodule(info["module"])
        module.register_forward_hook(lambda _m, _i, out, name=info["module"]: seen.update({name: out}))
    image = picture(1, 3, 64, 96)
    model(image)
    assert len(model.feature_info) == 4
    for info in model.feature_info:
        out = seen[info["module"]]
        assert out.shape == (1, 64 // info["reduction"], 96 // info["reduction"], info["num_chs"])


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("device", [None, "meta"])
def test_device_and_dtype_of_create_model(device, dtype):
    model = nano(device=device, dtype=dtype)
    assert {p.device.type for p in model.parameters()} == {device or "cpu"}
    assert {p.dtype for p in model.parameters()} == {dtype or torch.float32}
    if device != "meta":
        expected = nano().to(dtype or torch.float32).state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
        assert model(torch.randn(1, 3, 32, 32, dtype=dtype)).dtype == (dtype or torch.float32)


@pytest.mark.parametrize(
    ("feature_cls", "out_indices"),
    [(None, None), (None, (0, 1)), (None, (-3, -1)), ("getter", (0,)), ("hook", (1, 3)), ("fx", (-1,))],
    ids=str,
)
def test_features_only(picture, feature_cls, out_indices):
    image = picture(2, 3, 64, 90)
    stages = [stage_map.permute(0, 3, 1, 2) for stage_map in nano().forward_stages(image)]
    options = {
        **({} if feature_cls is None else {"feature_cls": feature_cls}),
        **({} if out_indices is None else {"out_indices": out_indices}),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's note on tracing in evaluation mode
        extractor = nano(features_only=True, **options)
    wanted = [range(4)[i] for i in out_indices or range(4)]
    assert extractor.feature_info.channels() == [WIDTHS[i] for i in wanted]
    assert extractor.feature_info.reduction() == [REDUCTIONS[i] for i in wanted]
    maps = extractor(image)
    if feature_cls in ("hook", "fx"):  # they hand out what the modules do, and say so
        assert str(extractor.output_fmt.value) == "NHWC"
        maps = [stage_map.permute(0, 3, 1, 2) for stage_map in maps]
    assert len(maps) == len(wanted)
    for level, stage_map in zip(wanted, maps, strict=True):
        torch.testing.assert_close(stage_map, stages[level])
    if feature_cls is None:  # what no feature needs is gone
        names = {name for name, _ in extractor.named_parameters()}
        assert not any(f"main_blocks.{wanted[-1] + 1}" in name or "head" in name or "norms" in name for name in names)


# --- forward_intermediates ---


@pytest.mark.parametrize(
    ("indices", "wanted"), [(None, [0, 1, 2, 3]), (2, [2, 3]), ([0, 2], [0, 2]), ([-4, 1], [0, 1])]
)
@pytest.mark.parametrize("stop_early", [False, True])
@pytest.mark.parametrize("output_fmt", ["NCHW", "NHWC"])
def test_forward_intermediates(small, picture, indices, wanted, stop_early, output_fmt):
    model, image = small(), picture()
    stages, ran = model.forward_stages(image), []
    for blocks in model.main_blocks:
        blocks.register_forward_hook(lambda module, _i, _o: ran.append(module))
    options = {"stop_early": stop_early, "output_fmt": output_fmt}
    final, maps = model.forward_intermediates(image, indices, **options)
    assert len(ran) == (wanted[-1] + 1 if stop_early else 4)
    expected = [stages[i] if output_fmt == "NHWC" else stages[i].permute(0, 3, 1, 2) for i in wanted]
    assert all(torch.equal(one, other) for one, other in zip(maps, expected, strict=True))
    assert torch.equal(final, stages[len(ran) - 1].permute(0, 3, 1, 2))
    normed = model.forward_intermediates(image, indices, norm=True, intermediates_only=True, **options)
    assert isinstance(normed, list)
    for level, one, other in zip(wanted, normed, maps, strict=True):
        if level == 3:  # of the last stage's map alone
            one = one if output_fmt == "NHWC" else one.permute(0, 2, 3, 1)
            other = model.norms(stages[3])
        torch.testing.assert_close(one, other)


def test_mistakes_in_forward_intermediates(small, picture):
    for indices in ([4], [-5], 5):
        with pytest.raises((ValueError, AssertionError)):
            small().forward_intermediates(picture(), indices)
    with pytest.raises(ValueError, match=r"output_fmt='nchw'.*'NCHW', 'NHWC'"):
        small().forward_intermediates(picture(), output_fmt="nchw")


@pytest.mark.parametrize("indices", [[0, 2], 1, [-2]])
@pytest.mark.parametrize("prune_norm", [False, True])
@pytest.mark.parametrize("prune_head", [False, True])
def test_prune_intermediate_layers(small, picture, indices, prune_norm, prune_head):
    model, image = small(), picture()
    expected = small().forward_intermediates(image, indices, intermediates_only=True)
    logits = model(image)
    taken = model.prune_intermediate_layers(indices, prune_norm, prune_head)
    last = taken[-1]
    assert len(model.main_blocks) == len(model.patch_embeds) == last + 1
    maps = model.forward_intermediates(image, taken, intermediates_only=True)
    assert all(torch.equal(one, other) for one, other in zip(maps, expected, strict=True))
    shortened = last < 3
    assert isinstance(model.norms, nn.Identity) == (prune_norm or shortened)
    assert isinstance(model.head, nn.Identity) == (prune_head or shortened)
    assert model.num_features == model.embed_dims[last]
    if not (prune_norm or prune_head or shortened):
        assert torch.equal(model(image), logits)
    else:
        model(image)  # what is left still runs


# --- groups of parameters ---


@pytest.mark.parametrize(("depths", "coarse"), [((1, 1, 2, 1), False), ((2, 1, 11, 3), False), ((2, 1, 3, 1), True)])
def test_groups_are_strictly_ordered_by_depth(either, small, depths, coarse):
    """One group for each embedding and each pair of blocks in the order in which they run; coarse: for each stage."""
    model = small(either, depths=depths)
    groups = group_parameters(model, model.group_matcher(coarse))
    depth = {name: group for group, names in groups.items() for name in names}
    assert depth.keys() == {name for name, _ in model.named_parameters()}
    modules = []
    for stage, pairs in enumerate(depths):
        embed, blocks = (f"patch_embeds.{stage}.",), [(f"main_blocks.{stage}.{pair}.",) for pair in range(pairs)]
        together = (*embed, f"main_blocks.{stage}.")
        modules += ([embed, together[1:]] if stage == 0 else [together]) if coarse else [embed, *blocks]
    levels = []
    for prefixes in modules:
        found = {level for name, level in depth.items() if name.startswith(prefixes)}
        assert len(found) == 1, prefixes
        levels += found
    assert levels == list(range(len(modules)))
    assert coarse or min(level for name, level in depth.items() if name.startswith("norm")) >= levels[-1]
    if either is DaViT and not coarse:
        assert depth["head.weight"] == depth["head.bias"] > levels[-1]


# --- checkpointing of activations ---


def test_grad_checkpointing_changes_memory_not_results(either, small, picture):
    def loss_and_gradients(checkpointing):
        model = small(either, drop_path_rate=0.5).train()  # its random choices are repeated
        model.set_grad_checkpointing(checkpointing)
        runs = []
        for pair in itertools.chain.from_iterable(model.main_blocks):
            pair[0].norm1.register_forward_hook(lambda *_: runs.append(1))
        torch.manual_seed(5)
        output = model(picture())
        loss = sum(level.square().mean() for level in ([output] if either is DaViT else output))
        loss.backward()
        return loss.detach(), {name: p.grad for name, p in model.named_parameters()}, len(runs)

    loss, gradients, runs = loss_and_gradients(False)
    same_loss, same_gradients, more_runs = loss_and_gradients(True)
    assert torch.equal(loss, same_loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(same_gradients[name], gradient, msg=name)
    assert more_runs == 2 * runs == 10
