"""Checkpoints of other code bases and trainers: names, wrappers, averages; what is not known is refused by name."""

import argparse
import collections
import pickle
import sys
import types
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from davit import DaViT, DaViTPyramid
from davit.checkpoint import (
    CheckpointError,
    convert_state_dict,
    convert_with_report,
    detect_layout,
    load_checkpoint,
    read_checkpoint,
    unwrap,
)
from davit.checkpoint.__main__ import main
from davit.checkpoint.names import recognise
from tests.checkpoint.conftest import built, filled, is_loaded, refusal, same, under, weights_of, without

QUICK = settings(
    deadline=None, max_examples=25, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
OWN, OTHER = weights_of(seed=2), weights_of(seed=3)


def loads(contents: Any, expected: dict[str, Tensor] = OWN, **options: Any) -> Any:
    """The report of a load into a classifier, whose weights are then the expected ones."""
    model = built(seed=1)
    report = load_checkpoint(model, contents, head="require", **options)
    assert is_loaded(model, expected)
    return report


# ---- mmpretrain ----


def mmpretrains(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names that mmpretrain gives the weights of timm's davit, written out by hand."""
    named = {}
    for name, tensor in weights.items():
        parts = name.split(".")
        if parts[0] == "stem":
            new = f"backbone.patch_embed.{'projection' if parts[1] == 'conv' else 'norm'}"
        elif parts[0] == "head":
            new = "backbone.norm3" if parts[1] == "norm" else "head.fc"
        elif parts[2] == "downsample":  # timm begins a stage with it, mmpretrain ends the one before
            new = f"backbone.stages.{int(parts[1]) - 1}.downsample.{'projection' if parts[3] == 'conv' else 'norm'}"
        else:
            stage, pair, kind = parts[1], parts[3], ("spatial", "channel")[int(parts[4])]
            layer = ".".join(parts[5:-1])
            layer = {"mlp.fc1": "ffn.layers.0.0", "mlp.fc2": "ffn.layers.1"}.get(layer, layer)
            if kind == "spatial":
                layer = layer.replace("attn.", "attn.w_msa.")
            new = f"backbone.stages.{stage}.blocks.{pair}.{kind}_block.{layer}"
        named[f"{new}.{parts[-1]}"] = tensor
    return named


@pytest.mark.parametrize("wrapped", ["state_dict", None])
def test_mmpretrains_classifier_is_read_as_the_davit_that_it_is(saved: Any, wrapped: str | None) -> None:
    theirs = built("timm", seed=2)
    weights = mmpretrains(theirs.state_dict())
    assert len(weights) == len(theirs.state_dict())
    path = saved({"meta": {"mmpretrain_version": "1.2.0"}, wrapped: weights} if wrapped else weights)
    assert read_checkpoint(path).function == "davit" and detect_layout(weights) == "mmpretrain"
    ours = built(seed=1)
    report = load_checkpoint(ours, path, head="require")
    assert report.complete and report.share == 1 and report.layout == "mmpretrain" and report.notes
    image = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(ours(image), theirs(image), atol=1e-5)
    assert same(convert_state_dict(weights, "timm"), dict(theirs.state_dict()))
    back = convert_state_dict(ours.state_dict(), "mmpretrain")
    assert back.keys() == weights.keys() and all(torch.equal(back[name], weights[name]) for name in back)


def test_mmpretrains_backbone_in_a_detector_fills_the_pyramid() -> None:
    weights = mmpretrains(weights_of("timm", 2))
    trunk = {name: tensor for name, tensor in weights.items() if name.startswith("backbone.")}
    levels = {
        f"backbone.norm{i}.{p}": torch.randn(width) for i, width in enumerate((16, 32, 48)) for p in ("weight", "bias")
    }
    rest = {"neck.lateral_convs.0.conv.weight": torch.ones(4), "bbox_head.retina_cls.weight": torch.ones(4)}
    model = built("pyramid", seed=1)
    report = load_checkpoint(model, {**rest, **trunk, **levels})
    assert set(report.dropped) == set(rest) and not report.missing
    assert torch.equal(model.norm0.weight, levels["backbone.norm0.weight"])
    assert torch.equal(model.norm3.weight, weights["backbone.norm3.weight"])
    expected = convert_state_dict(weights_of("timm", 2), "pyramid")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in expected.items())


@QUICK
@given(
    depths=st.lists(st.integers(1, 3), min_size=1, max_size=4),
    num_classes=st.integers(0, 2),
    prefix=st.sampled_from(["", "module.", "model.module.", "net."]),
    biased=st.booleans(),
    kind=st.sampled_from([DaViT, DaViTPyramid]),
)
def test_any_davit_goes_to_mmpretrains_names_and_back(
    depths: list[int], num_classes: int, prefix: str, biased: bool, kind: Any
) -> None:
    dims = tuple(4 * (i + 1) for i in range(len(depths)))
    options = {"embed_dims": dims, "depths": tuple(depths), "num_heads": (2,) * len(depths), "qkv_bias": biased}
    with torch.device("meta"):
        model = kind(**options, **({"num_classes": num_classes} if kind is DaViT else {"out_indices": (0,)}))
    weights = {name: torch.full(tensor.shape, i).half() for i, (name, tensor) in enumerate(model.state_dict().items())}
    there = convert_state_dict(weights, "mmpretrain")
    assert detect_layout(there) == "mmpretrain" and len(there) == len(weights)
    back = convert_state_dict(under(prefix, there), "pyramid" if kind is DaViTPyramid else "davit")
    assert same(back, weights)


# ---- wrappers anywhere in names ----

WRAPPED = ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "model"]


@QUICK
@given(
    layout=st.sampled_from(["davit", "timm", "florence2", "florence2_native", "mmpretrain"]),
    around=st.lists(st.sampled_from([*WRAPPED, "net", "base_model", "student"]), max_size=3),
    within=st.lists(st.tuples(st.integers(1, 6), st.sampled_from(WRAPPED)), max_size=3),
    every=st.integers(1, 3),
)
def test_wrappers_in_any_nesting_are_no_part_of_a_name(
    layout: str, around: list[str], within: list[tuple[int, str]], every: int
) -> None:
    """A stage, a block or a layer may be wrapped: all of its names, and those of no other."""
    weights = convert_state_dict(OWN, layout)
    prefix = "".join(f"{one}." for one in around)
    named = {}
    for name, tensor in weights.items():
        parts = name.split(".")
        for place, wrapper in within:
            # what is wrapped is told by the names before the place alone, as a module's place is
            if place < len(parts) and sum(map(len, parts[:place])) % every == 0:
                parts.insert(place, wrapper)
        named[prefix + ".".join(parts)] = tensor
    found = recognise(named)
    assert not found.additions and not found.outside and len(found.names) == len(weights)
    loads(named, allow_different_function=True)


def test_real_wrappers_are_read() -> None:
    """torch.compile of parts, activation checkpointing, averaging and data parallelism, as they name tensors."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model: Any = built(seed=2)
    model.main_blocks[1][0][0] = torch.compile(model.main_blocks[1][0][0])
    model.main_blocks[0][0][1] = checkpoint_wrapper(model.main_blocks[0][0][1])
    model.main_blocks[2] = nn.DataParallel(model.main_blocks[2])
    model.head = torch.compile(model.head)
    wrapped = torch.optim.swa_utils.AveragedModel(nn.DataParallel(model))
    names = list(wrapped.state_dict())
    assert any("._orig_mod." in name for name in names) and any(".module.0.0." in name for name in names)
    report = loads(wrapped.state_dict())
    assert set(report.dropped) == {"n_averaged"}
    # and the other way: a wrapped model takes plain weights
    load_checkpoint(wrapped, OTHER)
    loads(wrapped.state_dict(), OTHER)


def test_an_edits_own_module_of_such_a_name_is_kept_apart() -> None:
    """Two names that would become one stay two."""
    model: Any = built(seed=1)
    model.main_blocks[0][0][0].gate = nn.Parameter(torch.zeros(2))
    model.main_blocks[0][0][0].module = nn.ParameterDict({"gate": nn.Parameter(torch.zeros(2))})
    weights = {**OWN, "main_blocks.0.0.0.gate": torch.ones(2), "main_blocks.0.0.0.module.gate": torch.full((2,), 2.0)}
    assert load_checkpoint(model, under("module.", weights), head="require").complete
    assert is_loaded(model, weights)


# ---- averages ----


def lightning(**entries: Any) -> dict[str, Any]:
    """What Lightning's trainer saves."""
    return {
        **{
            "epoch": 3,
            "global_step": 120,
            "pytorch-lightning_version": "2.6.6",
            "loops": {"fit_loop": {"state_dict": {}}},
        },
        "callbacks": {
            "ModelCheckpoint{'monitor': 'val_acc'}": {"best_model_score": torch.tensor(0.9), "best_k_models": {}},
        },
        "optimizer_states": [
            {"state": {0: {"exp_avg": torch.ones(2), "step": torch.tensor(1.0)}}, "param_groups": []}
        ],
        "lr_schedulers": [{"last_epoch": 3}],
        "hparams_name": "kwargs",
        **entries,
    }


CALLBACKS = {
    "state dict": ("EMA", {"ema_state_dict": None, "n": 3}),
    "deeper": ("EMACallback{'decay': 0.999}", {"state": {"ema": {"module": None}}}),
    "weights": ("WeightEMA", {"weights": None}),
    "average": ("StochasticWeightAveraging", {"n_averaged": 3, "average_model_state": None}),
}


def with_weights(entry: Any, weights: dict[str, Tensor]) -> Any:
    if entry is None:
        return weights
    return {name: with_weights(one, weights) for name, one in entry.items()} if isinstance(entry, dict) else entry


@pytest.mark.parametrize("name", CALLBACKS)
@pytest.mark.parametrize(
    "plain, averaged", [("model.", "model."), ("net.", "net."), ("model._orig_mod.", ""), ("", "module.")]
)
def test_lightnings_callbacks_keep_an_average(saved: Any, name: str, plain: str, averaged: str) -> None:
    callback, entry = CALLBACKS[name]
    contents = lightning(state_dict=under(plain, OWN), hyper_parameters={"lr": 1e-3, "arch": "DaViT_tiny"})
    contents["callbacks"][callback] = with_weights(entry, under(averaged, OTHER))
    path = saved(contents, "last.ckpt")
    assert loads(path, OTHER).ema and loads(path, OTHER, ema="always").ema
    report = loads(path, OWN, ema="never")
    assert not report.ema and report.wrapper == ("state_dict",)
    metadata = read_checkpoint(path).metadata
    assert metadata["hyper_parameters"] == {"lr": 1e-3, "arch": "DaViT_tiny"} and metadata["global_step"] == 120


def test_lightnings_own_averaging_stores_the_average_as_the_weights(saved: Any) -> None:
    state = {"n_averaged": torch.tensor(4)}
    contents = lightning(
        state_dict=under("model.", OTHER), current_model_state=under("model.", OWN), averaging_state=state
    )
    path = saved(contents, "a.ckpt")
    assert loads(path, OTHER).ema and not loads(path, OWN, ema="never").ema
    assert loads(path, OTHER, ema="always").ema


def test_lightning_without_an_average(saved: Any) -> None:
    path = saved(lightning(state_dict={**under("model.", OWN), "criterion.weight": torch.ones(7)}), "a.ckpt")
    report = loads(path)
    assert not report.ema and set(report.dropped) == {"criterion.weight"}
    with pytest.raises(CheckpointError):
        read_checkpoint(path, "always")
    # a callback that keeps weights of another kind has no average
    contents = lightning(state_dict=under("model.", OWN))
    contents["callbacks"]["BestWeights"] = {"state_dict": under("model.", OTHER)}
    contents["callbacks"]["EMA"] = {"of_another": {"fc.weight": torch.ones(2)}}
    assert not loads(saved(contents, "b.ckpt")).ema


@pytest.mark.parametrize(
    "plain, averaged",
    [
        ("model.", "ema_model.module."),
        ("net.", "net_ema."),
        ("student.", "teacher."),
        ("online.backbone.", "target.backbone."),
        ("student.backbone.", "teacher.backbone."),
        ("module.student.", "module.teacher."),
        ("model.", "model_ema.ema."),
        ("encoder_q.", "encoder_k."),
        ("", "swa_model.module."),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_a_davit_and_its_average_by_their_names(saved: Any, plain: str, averaged: str, order: int) -> None:
    both = under(plain, OWN) | under(averaged, OTHER)
    both = dict(list(both.items())[::order])
    if not plain:
        pytest.skip("all that lies beside a bare DaViT is part of an edited one")
    path = saved({"state_dict": both})
    for ema, expected in (("auto", OTHER), ("always", OTHER), ("never", OWN)):
        report = loads(path, expected, ema=ema)
        assert report.ema == (ema != "never") and len(report.dropped) == len(OWN)


def test_the_teacher_of_a_distillation_is_no_average(saved: Any, tmp_path: Any, capsys: Any) -> None:
    larger = built(depths=(1, 1, 3, 1)).state_dict()
    path = saved(under("student.", OWN) | under("teacher.", larger))
    model = built(seed=1)
    with pytest.raises(CheckpointError, match=r"'student\.'.*'teacher\.'"):
        load_checkpoint(model, path)
    assert main(["inspect", str(path)]) == 2
    for prefix, expected in (("student.", OWN), ("teacher.", larger)):
        to = tmp_path / f"{prefix}pth"
        assert main(["convert", str(path), str(to), "--to", "davit", "--prefix", prefix]) == 0
        assert same(read_checkpoint(to).state_dict, expected)
        assert main(["inspect", str(path), "--prefix", prefix]) == 0
    capsys.readouterr()
    assert main(["inspect", str(path), "--prefix", "critic."]) == 2
    assert "student.patch_embeds.0.proj.weight" in capsys.readouterr().err


@pytest.mark.parametrize(
    "contents, ema",
    [
        ({"model": OWN, "ema": {"module": OTHER, "updates": 3}, "last_epoch": 1}, True),  # RT-DETR, D-FINE
        ({"student": under("module.", OWN), "teacher": under("backbone.", OTHER), "epoch": 3}, True),  # DINO
        ({"params": OWN, "params_ema": OTHER}, True),
        ({"state": {"model": under("module.", OTHER)}, "rng": [1]}, False),
        ({"classy_state_dict": {"base_model": {"model": {"trunk": OTHER}}}}, False),
        ({"weights": OTHER, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}}, False),
        ({"epoch": torch.tensor(3), "best": {"network": OTHER}}, False),
        ({"generator": OTHER, "discriminator": {"conv.weight": torch.ones(2)}}, False),
    ],
)
def test_entries_of_other_names(saved: Any, contents: dict[str, Any], ema: bool) -> None:
    path = saved(contents)
    assert loads(path, OTHER).ema == ema
    if ema:
        assert not loads(path, OWN, ema="never").ema


def test_several_sets_of_weights_are_named(saved: Any) -> None:
    path = saved({"left": OWN, "right": OTHER})
    with pytest.raises(CheckpointError, match=r"left.*right"):
        read_checkpoint(path)


@pytest.mark.parametrize("mark", [{"message_hub": {}}, {"meta": {"mmengine_version": "0.10.7"}}])
def test_mmengine_swaps_average_and_weights(saved: Any, mark: dict[str, Any]) -> None:
    average, trained = under("backbone.", OTHER), under("module.backbone.", OWN)
    path = saved({"state_dict": average, "ema_state_dict": {"steps": torch.tensor(5), **trained}, **mark})
    assert loads(path, OTHER).ema and set(loads(path, OTHER).dropped) == set()
    report = loads(path, OWN, ema="never")
    assert not report.ema and set(report.dropped) == {"steps"}
    # elsewhere the entry is what its name says
    path = saved({"state_dict": under("backbone.", OWN), "ema_state_dict": under("backbone.", OTHER)})
    assert loads(path, OTHER).ema


def test_mmcv_1_keeps_the_trained_weights_as_buffers(saved: Any) -> None:
    weights = under("backbone.", OTHER)
    buffers = {f"ema_{name.replace('.', '_')}": OWN[name.removeprefix("backbone.")] for name in weights}
    path = saved({"meta": {"mmdet_version": "2.28.2"}, "state_dict": {**weights, **buffers}, "optimizer": {}})
    assert loads(path, OTHER).ema and not loads(path, OWN, ema="never").ema


# ---- others' detectors ----


def detector(backbone: nn.Module, seed: int) -> Any:
    model = nn.Module()
    model.backbone = backbone
    model.neck = nn.Linear(3, 3)
    model.bbox_head = nn.ModuleDict({"fc_cls": nn.Linear(4, 5)})
    filled(model.neck, seed)
    filled(model.bbox_head, seed)
    return model


@pytest.mark.parametrize(
    "place",
    [
        *("backbone.", "module.backbone.", "backbone.timm_model.", "detector.backbone.body."),
        *("backbone._orig_mod.", "module.backbone._fsdp_wrapped_module."),
    ],
)
@pytest.mark.parametrize("layout", ["timm", "davit", "mmpretrain"])
def test_the_backbone_comes_out_of_a_detector_and_the_rest_is_said(saved: Any, place: str, layout: str) -> None:
    trunk = {name.removeprefix("backbone."): tensor for name, tensor in convert_state_dict(OWN, layout).items()}
    trunk = {name: tensor for name, tensor in trunk.items() if not name.startswith("head")}
    rest = {
        f"{place.partition('backbone')[0]}{name}": torch.ones(3) for name in ("neck.convs.0.weight", "rpn_head.bias")
    }
    contents = {
        "meta": {"CLASSES": ("a", "b")},
        "state_dict": {**under(place, trunk), **rest},
        "optimizer": {"state": {}},
    }
    model = built("pyramid", seed=1)
    report = load_checkpoint(model, saved(contents))
    assert set(rest) <= set(report.dropped)
    assert all(torch.equal(model.state_dict()[name], OWN[name]) for name in OWN if name.startswith(("patch", "main")))


@pytest.mark.parametrize("ema", ["auto", "never"])
def test_a_semi_supervised_detectors_teacher_loads_as_a_whole(ema: str) -> None:
    teacher, student, model = (detector(built("pyramid", seed), seed) for seed in (2, 3, 1))
    both = under("teacher.", teacher.state_dict()) | under("student.", student.state_dict())
    report = load_checkpoint(model, {"state_dict": both}, ema=ema, head="require")
    chosen, other = (teacher, "student.") if ema == "auto" else (student, "teacher.")
    assert is_loaded(model, chosen.state_dict()) and report.share == 1
    assert report.dropped.keys() == under(other, teacher.state_dict()).keys()


@pytest.mark.parametrize("place", ["backbone.", "backbone.timm_model."])
def test_a_whole_detector_with_its_backbone_in_timms_names(snapshot: Any, place: str) -> None:
    theirs, model = detector(built("pyramid", 2), 2), detector(built("pyramid", 1), 1)
    trunk = convert_state_dict(theirs.backbone.state_dict(), "timm")
    rest = {name: t for name, t in theirs.state_dict().items() if not name.startswith("backbone.")}
    report = load_checkpoint(model, {**under(place, trunk), **rest})
    norms = {f"backbone.norm{i}.{param}" for i in range(4) for param in ("weight", "bias")}
    assert set(report.missing) == norms
    mine = model.state_dict()
    assert all(torch.equal(mine[name], value) for name, value in theirs.state_dict().items() if name not in norms)
    unchanged = snapshot(model)
    assert "neck.bias" in refusal(model, {**under(place, trunk), **without(rest, "neck.bias")}, unchanged)
    refusal(model, {**under(place, trunk), **rest}, unchanged, head="require")


# ---- what cannot be known ----


def error_of(path: Any, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(built(), path, **options)
    text = str(caught.value)
    assert "\n" not in text and str(path) in text
    return text


@pytest.mark.parametrize(
    "contents",
    [
        {"optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1}]}, "epoch": 3},
        {"state": {0: {"exp_avg": torch.ones(2), "step": torch.tensor(1)}}, "param_groups": [{"lr": 0.1}]},
        {"optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}], "lr_schedulers": []},
        {"optimizer_state_dict": {"state": {}, "param_groups": []}},
    ],
)
def test_a_file_with_an_optimizer_only(saved: Any, contents: dict[str, Any]) -> None:
    text = error_of(saved(contents))
    assert "optimizer" in text and next(iter(contents)) in text


@pytest.mark.parametrize(
    "names, nearest",
    [
        (["features.0.0.weight", "features.1.0.attn.relative_position_bias_table", "classifier.bias"], None),
        (["stem.conv.weight", "stem.norm.weight", "stages.0.blocks.0.0.attn.key.weight"], "timm"),
        (["backbone.patch_embed.projection.weight", "backbone.patch_embed.norm.weight", "x.y"], "mmpretrain"),
        (["convs.0.proj.weight", "blocks.0.0.spatial_block.ffn.fn.net.fc1.weight"], "florence2"),
    ],
)
def test_the_first_names_and_the_nearest_layout_are_said(saved: Any, names: list[str], nearest: str | None) -> None:
    path = saved({"state_dict": {name: torch.ones(2) for name in names}})
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path).require_davit()
    text = str(caught.value)
    assert all(name in text for name in names[:3])
    assert (f"{nearest!r}" in text) == (nearest is not None)


@pytest.mark.parametrize(
    "odd, says",
    [
        (["_fsdp_wrapped_module._flat_param"], "FULL_STATE_DICT"),
        (["main_blocks.0.0.0._fsdp_wrapped_module.flat_param_0"], "FULL_STATE_DICT"),
        (["model.main_blocks.0.0.0.attn.qkv.qweight", "model.main_blocks.0.0.0.attn.qkv.scales"], "quantiz"),
        (["main_blocks.0.0.0.attn.qkv.weight.absmax", "main_blocks.0.0.0.attn.qkv.weight.quant_map"], "quantiz"),
        (["main_blocks.0.0.0.attn.qkv._packed_params._packed_params"], "quantiz"),
    ],
)
def test_ways_to_store_weights_that_are_not_read(saved: Any, odd: list[str], says: str) -> None:
    path = saved({name: torch.ones(2) for name in odd})
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path).require_davit()
    assert says in str(caught.value) and odd[0] in str(caught.value)


def test_a_model_quantized_by_torchao_is_refused(saved: Any, snapshot: Any) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = built(seed=2)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    path = saved(model.state_dict())
    target = built(seed=1)
    text = refusal(target, path, snapshot(target))
    assert "torchao" in text or "quantized" in text
    text = refusal(target, model.state_dict(), snapshot(target))
    assert "attn.qkv.weight" in text


# ---- what Lightning's arguments are pickled as ----


def pickled_as(monkeypatch: pytest.MonkeyPatch, place: str, cls: type) -> None:
    """Let a class be pickled under the name of a library that is not here."""
    module, _, name = place.rpartition(".")
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        package = ".".join(parts[:depth])
        monkeypatch.setitem(sys.modules, package, sys.modules.get(package, types.ModuleType(package)))
    monkeypatch.setattr(sys.modules[module], name, cls, raising=False)
    cls.__module__, cls.__qualname__, cls.__name__ = module, name, name


class Node:
    """omegaconf's, whose state has its content beside references to its parent."""

    def __init__(self, **state: Any) -> None:
        self.__dict__.update(state)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def test_hyper_parameters_of_hydra_and_of_lightning_are_read(saved: Any, monkeypatch: Any) -> None:
    import functools

    tree = type("AttributeDict", (dict,), {})
    dict_config, any_node, metadata = (
        type(name, (Node,), {}) for name in ("DictConfig", "AnyNode", "ContainerMetadata")
    )
    with monkeypatch.context() as installed:
        pickled_as(installed, "lightning.fabric.utilities.data.AttributeDict", tree)
        pickled_as(installed, "omegaconf.dictconfig.DictConfig", dict_config)
        pickled_as(installed, "omegaconf.nodes.AnyNode", any_node)
        pickled_as(installed, "omegaconf.base.ContainerMetadata", metadata)
        node = any_node(_val=0.5, _metadata=metadata(ref_type=Any, object_type=dict))
        config = dict_config(_content={"drop": node}, _parent=None, _flags_cache=None)
        optimizer = functools.partial(torch.optim.AdamW, lr=1e-3)
        hyper = tree(lr=0.1, net=config, optimizer=optimizer, inner=collections.OrderedDict(a=1))
        path = saved(lightning(state_dict=under("net.", OWN), hyper_parameters=hyper, args=argparse.Namespace(x=1)))
    checkpoint = read_checkpoint(path)
    assert same(checkpoint.state_dict, under("net.", OWN)) and checkpoint.metadata["args"] == {"x": 1}
    assert "hyper_parameters" in checkpoint.skipped  # as a whole: what makes an optimizer is no plain value
    with monkeypatch.context() as installed:
        pickled_as(installed, "omegaconf.dictconfig.DictConfig", dict_config)
        pickled_as(installed, "omegaconf.nodes.AnyNode", any_node)
        config = dict_config(_content={"drop": any_node(_val=0.5)}, _parent=None)
        path = saved(lightning(state_dict=OWN, hyper_parameters={"net": config}))
    assert read_checkpoint(path).metadata["hyper_parameters"] == {"net": {"drop": 0.5}}


def test_what_a_partial_calls_is_not_called(saved: Any, tmp_path: Any) -> None:
    import functools
    import os

    path = saved(
        lightning(state_dict=OWN, hyper_parameters={"optimizer": functools.partial(os.mkdir, str(tmp_path / "x"))})
    )
    with pytest.raises(CheckpointError, match="mkdir"):
        read_checkpoint(path)
    assert not (tmp_path / "x").exists()
    assert pickle.dumps(functools.partial(os.mkdir))


def test_notes_beside_the_weights_do_not_choose_them() -> None:
    checkpoint = unwrap({"state_dict": OWN, "callbacks": {"EMA": {"decay": 0.9, "ema": [torch.ones(2)]}}}, "x")
    assert not checkpoint.ema and "callbacks" in checkpoint.skipped
    with pytest.raises(CheckpointError):
        unwrap({"state_dict": OWN, "callbacks": {"EMA": {"ema": [torch.ones(2)]}}}, "x", "always")


def test_a_conversion_says_what_mmpretrain_computes_otherwise() -> None:
    _, report = convert_with_report(mmpretrains(weights_of("timm")), "davit")
    assert any("mmpretrain" in note for note in report.notes)
