"""Edited models: their own weights load whatever they are, others as far as they go, nothing in silence."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from davit.checkpoint import CheckpointError, convert_state_dict, load_checkpoint
from davit.checkpoint.names import SPELLINGS, find, recognise
from davit.model import DualAttentionBlock
from tests.checkpoint.conftest import built, filled, is_loaded, refusal, under, weights_of, without


class LowRank(nn.Module):
    """A linear layer under the names that peft gives it."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.base_layer = layer
        self.lora_A = nn.ModuleDict({"default": nn.Linear(layer.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, layer.out_features, bias=False)})


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Copying(nn.Module):
    """Computes with ``value``, but what it gives as its state is another object, a tensor or not."""

    def __init__(self, give: Callable[[float], Any], value: float) -> None:
        super().__init__()
        self.give, self.value = give, value

    def get_extra_state(self) -> Any:
        return self.give(self.value)

    def set_extra_state(self, state: Any) -> None:
        self.value = float(state)


def bias_table(block: Any) -> None:
    block.attn.relative_position_bias_table = nn.Parameter(torch.ones(9, 2))
    block.attn.register_buffer("relative_position_index", torch.arange(9))


def around(model: Any) -> None:
    model.pooling = nn.Linear(4, 4)
    model.scale = nn.Parameter(torch.ones(()))


def teacher(model: Any) -> None:
    model.teacher = type(model)(embed_dims=(16, 32), depths=(1, 1), num_heads=(2, 2), num_classes=7)


def other_mlp() -> nn.Module:
    return nn.ModuleDict({"gate": nn.Linear(4, 8), "up": nn.Linear(4, 8), "down": nn.Linear(8, 4)})


ADDITIONS_TO_BLOCKS: dict[str, Callable[[Any], object]] = {
    "scale": lambda block: setattr(block, "gamma", nn.Parameter(torch.ones(4))),
    "bias table": bias_table,
    "branch": lambda block: setattr(block, "branch", nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))),
    "more than there was": lambda block: setattr(block, "experts", nn.ModuleList(nn.Linear(2, 2) for _ in range(20))),
}
EDITS_OF_BLOCKS = {
    **ADDITIONS_TO_BLOCKS,
    "low rank": lambda block: setattr(block.attn, "qkv", LowRank(block.attn.qkv)),
    "parametrized": lambda block: parametrize.register_parametrization(block.attn.qkv, "weight", Doubled()),
    "other MLP": lambda block: setattr(block, "mlp", other_mlp()),
}
EDITS_OF_MODELS: dict[str, Callable[[Any], object]] = {
    "around": around,
    "teacher": teacher,
    "other head": lambda model: setattr(model, "head", nn.Sequential(nn.Linear(64, 10), nn.GELU(), nn.Linear(10, 7))),
}
EDITS = [*EDITS_OF_BLOCKS, *EDITS_OF_MODELS]
ADDITIONS = [*ADDITIONS_TO_BLOCKS, "around"]  # the rest of the model is as it was


def make(edit: str, model: Any) -> None:
    if edit in EDITS_OF_MODELS:
        EDITS_OF_MODELS[edit](model)
    else:
        for block in [module for module in model.modules() if isinstance(module, DualAttentionBlock)]:
            EDITS_OF_BLOCKS[edit](block)


def edited(edit: str, kind: str = "davit", seed: int = 0, **options: Any) -> Any:
    """A filled model to which the edit was made."""
    model = built(kind, seed, **options)
    make(edit, model)
    return filled(model, seed + 100)


# ---- its own state ----


@pytest.mark.parametrize("edit", EDITS)
def test_its_own_state_loads(snapshot: Any, edit: str) -> None:
    model, weights = edited(edit, seed=1), edited(edit, seed=2).state_dict()
    assert not is_loaded(model, weights)
    report = load_checkpoint(model, under("module._orig_mod.", weights), head="require")
    assert is_loaded(model, weights)
    assert report.complete and report.tensors_loaded == report.tensors_total == len(weights)
    wrapped = nn.DataParallel(edited(edit, seed=3))
    assert load_checkpoint(wrapped, weights).complete
    assert is_loaded(wrapped.module, weights)
    for name in [name for name in weights if name not in weights_of()][:2]:
        assert name in refusal(model, without(weights, name), snapshot(model), head="require")


@pytest.mark.parametrize("edit", ["low rank", "parametrized", "other MLP"])
def test_a_layer_in_place_of_another_is_not_filled_in_part(snapshot: Any, edit: str) -> None:
    """What the file calls otherwise is neither dropped nor left as it was."""
    model = edited(edit, seed=1)
    for kind in ("davit", "timm"):
        refusal(model, weights_of(kind, 2), snapshot(model))


@pytest.mark.parametrize("give", [torch.tensor, float], ids=["tensor", "number"])
def test_modules_are_handed_their_state(saved: Any, snapshot: Any, give: Callable[[float], Any]) -> None:
    model, other = built(seed=1), built(seed=2)
    plain = other.state_dict()
    other.gate, model.gate = Copying(give, 3.0), Copying(give, 0.0)
    weights = other.state_dict()
    load_checkpoint(model, saved({"state_dict": weights, "epoch": 1}), head="require")
    assert model.gate.value == 3.0
    model.gate.value = 0.0
    load_checkpoint(nn.DataParallel(model), under("module.", weights), head="require")
    assert model.gate.value == 3.0
    assert set(load_checkpoint(model, plain).missing) == {"gate._extra_state"}
    assert model.gate.value == 3.0
    with pytest.raises(CheckpointError):
        load_checkpoint(model, plain, head="require")
    unedited = built(seed=3)
    assert "gate._extra_state" in refusal(unedited, weights, snapshot(unedited))


# ---- weights of a model without the edit ----


@pytest.mark.parametrize("layout, prefix", [("davit", ""), ("timm", "module."), ("pyramid", "backbone.")])
@pytest.mark.parametrize("edit", ADDITIONS)
def test_what_was_added_is_reported_as_missing(
    snapshot: Any, caplog: pytest.LogCaptureFixture, edit: str, layout: str, prefix: str
) -> None:
    model, base = edited(edit, seed=1), weights_of(seed=2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    added = set(before) - set(base)
    tail = {"norms.weight", "norms.bias", "head.weight", "head.bias"} if layout == "pyramid" else set()
    refusal(model, base, snapshot(model), head="require")
    caplog.clear()
    with caplog.at_level(logging.INFO, "davit"):
        report = load_checkpoint(model, under(prefix, convert_state_dict(base, layout)))
    assert added and set(report.missing) == added | tail
    assert not report.complete
    assert report.tensors_loaded == len(base) - len(tail) == report.tensors_total - len(report.missing)
    after = model.state_dict()
    assert all(torch.equal(after[name], before[name] if name in report.missing else base[name]) for name in after)
    record = caplog.records[-1]
    assert record.levelno == logging.WARNING
    for name in added:  # the last word of each, whichever way the rest is shortened
        assert name.rsplit(".", 1)[-1] in record.getMessage()
    stock = built(seed=1)  # which lacks what was added
    text = refusal(stock, before, snapshot(stock))
    assert any(name in text for name in added)


def test_a_second_davit_in_the_model_may_be_new(snapshot: Any) -> None:
    model = edited("teacher", seed=1)
    report = load_checkpoint(model, weights_of(seed=2))
    assert report.missing and all(name.startswith("teacher.") for name in report.missing)
    refusal(model, weights_of(seed=2), snapshot(model), head="require")


@pytest.mark.parametrize("edit", ADDITIONS)
def test_on_the_meta_device_what_is_missing_has_no_values(edit: str) -> None:
    with torch.device("meta"):
        model = built(seed=1)
        make(edit, model)
    with pytest.raises(CheckpointError):
        load_checkpoint(model, weights_of(seed=2))
    assert load_checkpoint(model, edited(edit, seed=2).state_dict()).complete


# ---- from layout to layout ----


def test_additions_go_from_a_detectors_backbone_to_a_classifier_and_back() -> None:
    pyramid, model = edited("branch", "pyramid", seed=1), edited("branch", seed=2)
    weights = pyramid.state_dict()
    report = load_checkpoint(model, {**under("module.backbone.", weights), "module.neck.weight": torch.ones(2)})
    assert set(report.missing) == {"norms.weight", "norms.bias", "head.weight", "head.bias"}
    levels = {f"module.backbone.norm{i}.{param}" for i in range(4) for param in ("weight", "bias")}
    assert set(report.dropped) == levels | {"module.neck.weight"}
    mine = model.state_dict()
    shared = [name for name in weights if name in mine]
    assert any("branch" in name for name in shared)
    assert all(torch.equal(mine[name], weights[name]) for name in shared)

    shorter = edited("branch", "pyramid", seed=3, out_indices=(0, 2))
    report = load_checkpoint(shorter, model.state_dict())
    assert set(report.missing) == {"norm0.weight", "norm0.bias", "norm2.weight", "norm2.bias"}
    assert any(name.startswith("main_blocks.3.0.0.branch") for name in report.dropped)
    mine = shorter.state_dict()
    assert all(torch.equal(mine[name], model.state_dict()[name]) for name in mine if not name.startswith("norm"))


@pytest.mark.parametrize("kind", ["timm", "florence2", "florence2_native"])
def test_additions_are_found_where_a_layouts_parts_are_known(snapshot: Any, kind: str) -> None:
    """In a block, in attention, in a layer, in a patch embedding; elsewhere a name says nothing of another layout."""

    def with_additions(seed: int) -> nn.Module:
        model: Any = built(seed=seed)
        pair = model.main_blocks[2][1]
        pair[1].mlp.fc1.rank = nn.Linear(2, 2, bias=False)
        for module in (pair[0], pair[0].attn, model.patch_embeds[1], model.patch_embeds[0]):
            module.gate = nn.Parameter(torch.ones(4))
        return filled(model, seed + 100)

    names = {
        "main_blocks.2.1.0.gate": ("stages.2.blocks.1.0.gate", "blocks.2.1.spatial_block.gate"),
        "main_blocks.2.1.0.attn.gate": (
            "stages.2.blocks.1.0.attn.gate",
            "blocks.2.1.spatial_block.window_attn{}.gate",
        ),
        "main_blocks.2.1.1.mlp.fc1.rank.weight": (
            *("stages.2.blocks.1.1.mlp.fc1.rank.weight", "blocks.2.1.channel_block.ffn{}{}.fc1.rank.weight"),
        ),
        "patch_embeds.1.gate": ("stages.1.downsample.gate", "convs.1.gate"),
        "patch_embeds.0.gate": ("stem.gate", "convs.0.gate"),
    }
    spelling, model, weights = SPELLINGS[kind], with_additions(1), with_additions(2).state_dict()
    found = recognise(weights)
    assert set(found.additions.values()) == set(names)
    theirs = {spelling.render(key): weights[name] for key, name in found.names.items()}
    parts = (".fn", ".net") if kind == "florence2" else ("", "")
    theirs |= {spelling.prefix + there[kind != "timm"].format(*parts): weights[name] for name, there in names.items()}
    report = load_checkpoint(model, theirs, allow_different_function=True)
    assert report.complete and is_loaded(model, weights)
    theirs[spelling.prefix + "elsewhere.gate"] = torch.ones(4)
    assert "elsewhere.gate" in refusal(model, theirs, snapshot(model), allow_different_function=True)


def test_two_names_for_one_tensor_are_not_taken_for_one(snapshot: Any) -> None:
    model, weights = built(seed=1), weights_of("timm", 2)
    twice = "stages_0.blocks.0.0.norm1.weight"
    assert twice in refusal(model, {**weights, twice: torch.ones(16)}, snapshot(model))


def test_two_davits_are_ambiguous_unless_the_model_has_both(snapshot: Any) -> None:
    model = built(seed=1)
    both = under("student.", model.state_dict()) | under("teacher.", model.state_dict())
    refusal(model, both, snapshot(model))
    pair = nn.ModuleDict({"student": built(seed=2), "teacher": built(seed=3)})
    assert len(find(pair.state_dict())) == 2
    assert load_checkpoint(pair, both, head="require").complete
    assert is_loaded(pair, both)


# ---- a head of another kind ----


def test_a_head_of_another_kind_is_the_models_own(snapshot: Any) -> None:
    model, base = edited("other head", seed=1), weights_of(seed=2)
    own = {f"head.{layer}.{param}" for layer in (0, 2) for param in ("weight", "bias")}
    report = load_checkpoint(model, base)
    assert set(report.dropped) == {"head.weight", "head.bias"} and set(report.missing) == own
    refusal(model, base, snapshot(model), head="require")
    plain, weights = built(seed=3), model.state_dict()
    report = load_checkpoint(plain, weights)
    assert set(report.missing) == {"head.weight", "head.bias"} and set(report.dropped) == own
    refusal(plain, weights, snapshot(plain), head="require")
    assert own <= set(load_checkpoint(built("pyramid", seed=4), weights).dropped)
    model.head[2] = nn.Linear(10, 5)  # the same kind for other classes
    report = load_checkpoint(model, weights)
    assert set(report.missing) == set(report.dropped) == own


def test_a_tensor_added_to_the_head_leaves_the_rest_of_it() -> None:
    model, base = built(seed=1), weights_of(seed=2)
    model.head.temperature = nn.Parameter(torch.ones(1))
    assert set(load_checkpoint(model, base).missing) == {"head.temperature"}
    assert torch.equal(model.head.weight, base["head.weight"])


# ---- counters of weight averaging ----


@pytest.mark.parametrize("edit", ["scale", "low rank"])  # the second is no DaViT to the tables
def test_a_models_own_buffer_is_no_counter(snapshot: Any, edit: str) -> None:
    model = edited(edit, seed=1)
    weights = model.state_dict()
    model.register_buffer("steps", torch.tensor(3))
    refusal(model, weights, snapshot(model), head="require")
    if edit == "scale":
        assert set(load_checkpoint(model, weights).missing) == {"steps"}


def test_a_counter_of_averaging_is_no_obstacle() -> None:
    averaged = torch.optim.swa_utils.AveragedModel(edited("scale", seed=1))
    other = edited("scale", seed=2)
    assert set(load_checkpoint(averaged, other.state_dict(), head="require").missing) == {"n_averaged"}
    second = torch.optim.swa_utils.AveragedModel(edited("scale", seed=3))
    averaged.n_averaged.fill_(5)
    assert load_checkpoint(second, averaged.state_dict()).complete
    assert second.n_averaged == 5 and is_loaded(second.module, other.state_dict())
    plain = edited("scale", seed=4)
    assert set(load_checkpoint(plain, averaged.state_dict(), head="require").dropped) == {"n_averaged"}
    assert is_loaded(plain, other.state_dict())
