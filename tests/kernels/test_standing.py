"""Kernels replace the known text and structure alone, and nothing that somebody changed, before or after."""

import copy
import functools
import io
import logging
import pickle
import types

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import davit.model
from davit import accelerate, plain
from davit.kernels import conditions, modules, why_plain
from davit.kernels.modules import FusedBlock, FusedPatchEmbed
from davit.model import ChannelAttention, DualAttentionBlock, Mlp, PatchEmbed, WindowAttention


@pytest.fixture(autouse=True)
def _said_anew():
    conditions._log.cache_clear()
    modules._warn_of_scripting.cache_clear()


@pytest.fixture
def agree(picture):
    """The model computes as its plain copy does, in inference and in training, with every gradient."""

    def results(model):
        with torch.no_grad():
            logits = model.eval()(picture())
        model.train().zero_grad()
        torch.manual_seed(0)
        model(picture()).square().mean().backward()
        return {"logits": logits, **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}

    def check(model):
        expected, found = results(plain(model)), results(accelerate(model))
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5, msg=name)

    return check


# --- the text ---


def test_the_fingerprints_are_those_of_the_text():
    """Who edits one of these functions changes the kernels too, and then notes the fingerprint shown here."""
    found = {
        kind: {name: conditions.fingerprint(conditions.function_named(name).__code__) for name in texts}
        for kind, texts in conditions.TEXT.items()
    }
    assert found == conditions.TEXT


def test_comments_docstrings_and_layout_are_no_change(tmp_path, monkeypatch):
    texts = [
        "def f(x, y):\n    return x + y\n",
        'def f(x, y):\n    """Add."""\n\n    # why\n    return x  +  y  # so\n',
        "class A:\n    def f(x, y):\n        '''Add.'''\n        return x + y\n",
        "def f(x, y):\n    return x - y\n",
        "def f(x, y=1):\n    return x + y\n",
        "def f(x, y):\n    if x:\n        return x + y\n",
    ]
    prints = []
    for number, text in enumerate(texts):
        path = tmp_path / f"text_{number}.py"
        path.write_text(text)
        space = {}
        exec(compile(text, str(path), "exec"), space)
        prints.append(conditions.fingerprint((space.get("f") or space["A"].f).__code__))
    assert prints[0] == prints[1] == prints[2]
    assert len({*prints}) == 4


def other_mlp(self, x):
    return self.fc2(self.fc1(x).relu())


def pad_with_threes(x, pad_H, pad_W, fill):
    return nn.functional.pad(x, [0, 0, 0, pad_W, 0, pad_H], value=3.0)


CHANGES = {
    "a function of the class": lambda patch: patch.setattr(Mlp, "forward", other_mlp),
    "without source": lambda patch: patch.setattr(Mlp, "forward", eval("lambda self, x: self.fc2(self.fc1(x))")),
    "wrapped, under the old name": lambda patch: patch.setattr(
        Mlp, "forward", functools.wraps(Mlp.forward)(lambda self, x: 2 * other_mlp(self, x))
    ),
    "reloaded in place": lambda patch: patch.setattr(Mlp.forward, "__code__", other_mlp.__code__),
    "no function": lambda patch: patch.setattr(Mlp, "forward", functools.partialmethod(other_mlp)),
    "a formula": lambda patch: patch.setattr(
        davit.model, "attend_among_channels", lambda qkv, groups: (qkv[..., : qkv.shape[2] // 3], qkv)
    ),
    "__call__ of a class": lambda patch: patch.setattr(
        WindowAttention, "__call__", lambda self, x: 0.3 * nn.Module.__call__(self, x), raising=False
    ),
    "a layer of PyTorch": lambda patch: patch.setattr(nn.GELU, "forward", lambda self, x: 0 * x),
    "a function of PyTorch": lambda patch: patch.setattr(nn.functional, "linear", lambda x, w, b=None: x @ w.T),
    "the padding": lambda patch: patch.setattr(davit.windows, "_pad", pad_with_threes),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_function_changed_at_run_time_counts(small, picture, agree, monkeypatch, change, when):
    """Before the model is accelerated, or behind it, and no longer once it is put back."""
    model = small(accelerated=False, drop_path_rate=0.0)
    stock = model(picture()).detach()
    if when == "after":
        accelerate(model)
    with monkeypatch.context() as patch:
        CHANGES[change](patch)
        agree(model)
        assert not torch.allclose(model.eval()(picture()), stock, rtol=1e-3)
        assert why_plain(model)
    assert why_plain(accelerate(model)) == {}
    torch.testing.assert_close(model.eval()(picture()), stock, rtol=1e-4, atol=1e-5)


def test_only_what_a_text_concerns_is_left(small, picture, fused_calls, monkeypatch):
    model = small()
    monkeypatch.setattr(davit.model, "attend_among_channels", CHANGES)
    reasons = why_plain(model)
    blocks = {name: block for name, block in model.named_modules() if isinstance(block, DualAttentionBlock)}
    assert set(reasons) == {name for name, block in blocks.items() if isinstance(block.attn, ChannelAttention)}
    monkeypatch.undo()
    monkeypatch.setattr(PatchEmbed, "forward", lambda self, x: PatchEmbed.forward(self, x))
    assert set(why_plain(model)) == {f"patch_embeds.{stage}" for stage in range(4)}


# --- the structure ---


def assign_forward(block):
    block.forward = types.MethodType(lambda self, x: x + self.attn(self.norm1(x)), block)


def new_parameter(block):
    """Which is used by a hook: of the structure, a parameter more is the only trace."""
    block.mlp.gamma = nn.Parameter(torch.full((16,), 0.5))
    block.register_forward_hook(lambda block, _i, out: out * block.mlp.gamma)


CHANGES_OF_A_BLOCK = {
    "forward of an instance": assign_forward,
    "a parameter of its own": new_parameter,
    "a buffer of its own": lambda block: block.attn.register_buffer("seen", torch.zeros(1)),
    "forward hook": lambda block: block.mlp.fc1.register_forward_hook(lambda _m, _i, out: 2 * out),
    "forward pre-hook": lambda block: block.attn.register_forward_pre_hook(lambda *_: None),
    "backward hook": lambda block: block.norm1.register_full_backward_hook(lambda *_: None),
    "backward pre-hook": lambda block: block.cpe[1].register_full_backward_pre_hook(lambda *_: None),
    "subclass of a layer": lambda block: setattr(block.mlp, "fc1", type("Other", (nn.Linear,), {})(16, 64)),
    "subclass of the MLP": lambda block: setattr(block, "mlp", type("Other", (Mlp,), {})(16, 64)),
    "GELU by tanh": lambda block: setattr(block.mlp, "act", nn.GELU(approximate="tanh")),
    "SiLU": lambda block: setattr(block.mlp, "act", nn.SiLU()),
    "wrapped layer": lambda block: setattr(block.attn, "proj", nn.Sequential(nn.Linear(16, 16))),
    "no MLP": lambda block: setattr(block, "mlp", nn.Identity()),
    "5x5": lambda block: setattr(block.cpe[0], "proj", nn.Conv2d(16, 16, 5, padding=2)),
    "circular": lambda block: setattr(block.cpe[0].proj, "padding_mode", "circular"),
    "parametrization": lambda block: parametrizations.weight_norm(block.mlp.fc1),
    "pruning": lambda block: prune.l1_unstructured(block.mlp.fc2, "weight", 0.5),
    "forward of the MLP": lambda block: setattr(block.mlp, "forward", lambda x: x),
    "forward of a layer": lambda block: setattr(block.attn.qkv, "forward", lambda x: torch.cat([x, x, x], dim=-1)),
    "no norm": lambda block: setattr(block, "norm2", nn.Identity()),
    "other drop path": lambda block: setattr(block, "drop_path", nn.GELU()),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("change", CHANGES_OF_A_BLOCK)
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_is_put_into_a_block_counts(small, picture, agree, caplog, change, when):
    model = small(accelerated=False, drop_path_rate=0.0)
    if when == "after":
        accelerate(model)
    CHANGES_OF_A_BLOCK[change](model.main_blocks[0][0][0])
    with caplog.at_level(logging.INFO, logger="davit"):
        agree(model)
        model(picture())
    assert set(why_plain(model)) == {"main_blocks.0.0.0"}
    assert len([record for record in caplog.records if "davit.kernels" in record.name]) == 1  # said once


def test_subclasses_of_the_block_run_as_they_are_written(either, small, picture, fused_calls):
    model = small(either, block_layer=type("Other", (DualAttentionBlock,), {}))
    with fused_calls() as calls, torch.no_grad():
        model(picture())
    assert calls == [] and all("Other" in reason for name, reason in why_plain(model).items() if "blocks" in name)


def test_what_is_no_accelerated_block_is_named(small, caplog):
    """Another block, a block in a container, a model that was not accelerated, a model of somebody else."""
    model = small(block_layer=lambda dim, *_: nn.Linear(dim, dim))
    assert set(why_plain(model).values()) == {"Linear is none of davit.model's modules"}
    model = small()
    model.patch_embeds[0] = nn.Sequential(model.patch_embeds[0])
    assert set(why_plain(model)) == {"patch_embeds.0"}
    model = nn.ModuleDict({"backbone": small(accelerated=False, embed_dims=(16,), depths=(1,), num_heads=(1,))})
    named = {"backbone.patch_embeds.0", *(f"backbone.main_blocks.0.0.{i}" for i in (0, 1))}
    assert set(why_plain(model)) == named and why_plain(accelerate(model)) == {}
    with caplog.at_level(logging.INFO, logger="davit"):
        model = nn.Sequential(nn.Linear(2, 2))
        assert accelerate(model) is model
    assert "Sequential" in caplog.text


def test_a_narrowed_mlp_is_computed_as_narrow_as_it_is(small):
    """Its layers may be cut without telling them: what counts is the weight, whose memory kernels read."""
    model = small(embed_dims=(32, 64), depths=(1, 1), num_heads=(1, 2))
    for kept in (100, 80):
        for block in model.main_blocks[0][0]:
            fc1, fc2 = block.mlp.fc1, block.mlp.fc2
            fc1.weight, fc1.bias = nn.Parameter(fc1.weight[:kept].clone()), nn.Parameter(fc1.bias[:kept].clone())
            fc2.weight = nn.Parameter(fc2.weight[:, :kept].clone())
            x = torch.randn(2, 16, 16, 32)
            with torch.no_grad():
                torch.testing.assert_close(block(x), plain(copy.deepcopy(block))(x), rtol=1e-4, atol=1e-5)
            result = block(x.requires_grad_())
            torch.testing.assert_close(result, plain(copy.deepcopy(block))(x), rtol=1e-4, atol=1e-5)
            result.sum().backward()


def test_global_hooks_count_in_a_compiler(small, picture):
    model = small(embed_dims=(16, 32), depths=(1, 1), num_heads=(1, 2))
    halve = nn.modules.module.register_module_forward_hook(
        lambda module, _i, out: out / 2 if isinstance(module, nn.GELU) else None
    )
    try:
        with torch.no_grad():
            found = torch.compile(model, backend="eager")(picture())
            torch.testing.assert_close(found, model(picture()), rtol=1e-4, atol=1e-5)
    finally:
        halve.remove()
    with torch.no_grad():
        assert not torch.allclose(found, model(picture()), rtol=1e-3)


# --- what stays as it was ---


def test_keys_copies_pickles_and_hooks_stay(either, small, picture, fused_calls):
    model, seen = small(either), []
    stock = small(either, accelerated=False)
    assert list(model.state_dict()) == list(stock.state_dict())
    assert [name for name, _ in model.named_modules()] == [name for name, _ in stock.named_modules()]
    assert all(isinstance(block, DualAttentionBlock) for pair in model.main_blocks[0] for block in pair)
    model.main_blocks[0][0][0].register_forward_hook(lambda *_: seen.append(1))
    with fused_calls() as calls:
        expected = model(picture())
    assert len(calls) == 10
    file = io.BytesIO()
    model.main_blocks[0][0][0]._forward_hooks.clear()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)):
        assert sum(type(module) in (FusedBlock, FusedPatchEmbed) for module in other.modules()) == 14
        assert all(torch.equal(one, two) for one, two in zip(other(picture()), expected, strict=True))
    assert len(seen) == 1


def test_torchscript_says_that_it_undid_the_acceleration(small, picture, fused_calls, caplog):
    model = small()
    with caplog.at_level(logging.WARNING, logger="davit"):
        scripted = torch.jit.script(model)
    assert "accelerate" in caplog.text
    with fused_calls() as calls, torch.no_grad():
        torch.testing.assert_close(scripted(picture()), model(picture()), rtol=1e-4, atol=1e-5)
        assert calls == []
        accelerate(model)(picture())
        assert len(calls) == 10


def test_plain_says_what_it_cannot_undo(small):
    block = small().main_blocks[0][0][0]
    block.__class__ = type("Sharded", (FusedBlock,), {})  # as fully_shard derives one
    with pytest.raises(ValueError, match="Sharded"):
        plain(block)
    assert why_plain(block) == {}


def test_maps_on_another_default_device_stay_where_they_are(small, picture):
    """Memory of kernels is asked for on the CPU, whatever torch.set_default_device says."""
    model, image = small(), picture()
    with torch.device("meta"):
        loss = model(image).square().mean()
        loss.backward()
        with torch.no_grad():
            assert model(image).device.type == "cpu"
    assert all(p.grad.device.type == "cpu" for p in model.parameters())
