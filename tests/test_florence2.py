"""Florence-2's channel attention: towers of transformers and timm, and checkpoints that say whose function it is."""

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import Tensor, nn
from transformers import Florence2VisionConfig
from transformers.models.florence2.modeling_florence2 import Florence2VisionBackbone

import davit
from davit import DaViT, DaViTPyramid, accelerate, plain
from davit.checkpoint import (
    LAYOUTS,
    CheckpointError,
    convert_state_dict,
    load_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from davit.checkpoint.__main__ import main
from davit.complexity import complexity
from davit.engine import load_model
from davit.kernels import conditions, why_plain
from davit.model import ChannelAttentionQK, attend_among_channels_qk
from davit.variants import FLORENCE2
from tests.conftest import randomise

SIZES: dict[str, Any] = {
    "embed_dims": (32, 64, 96, 128), "depths": (1, 1, 2, 1), "num_heads": (2, 4, 6, 4), "window_size": 12,
    "overlapped_patch": True, "attention_types": FLORENCE2,
}  # fmt: skip


def ours(**options: Any) -> DaViT:
    return DaViT(**{**SIZES, "num_classes": 0, **options})


def of_transformers(sizes: Any) -> nn.Module:
    heads = list(sizes["num_heads"])
    return Florence2VisionBackbone(
        Florence2VisionConfig(
            embed_dim=list(sizes["embed_dims"]), depths=list(sizes["depths"]), num_heads=heads, num_groups=heads,
            window_size=sizes["window_size"], drop_path_rate=0.0,
        )
    )  # fmt: skip


def of_timm(sizes: Any) -> nn.Module:
    numbers = {name: sizes[name] for name in ("embed_dims", "depths", "num_heads", "window_size")}
    return timm.create_model("davit_base_fl", num_classes=0, **numbers)


TOWERS = {"transformers": of_transformers, "timm": of_timm}


def last_map(model: nn.Module, image: Tensor) -> Tensor:
    if isinstance(model, Florence2VisionBackbone):
        return model(image).last_hidden_state
    return model.forward_features(image)


def results(model: nn.Module, image: Tensor) -> list[Tensor]:
    """The last map, and gradients of the image and of the first and last layers that attend among channels."""
    image = image.clone().requires_grad_()
    found = last_map(model.train(), image)
    grad = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).reshape(found.shape)
    qkv = [p for name, p in model.named_parameters() if name.endswith("qkv.weight")]
    return [found.detach(), *torch.autograd.grad(found, [image, qkv[1], qkv[-1]], grad)]


def apart(one: Tensor, other: Tensor) -> float:
    return ((one.double() - other.double()).norm() / other.double().norm()).item()


def compare(name: str, sizes: Any, size: tuple[int, int], batch: int = 1, gradients: bool = True) -> None:
    torch.manual_seed(0)
    tower = TOWERS[name](sizes)
    randomise(tower, 0)
    for module in tower.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    model = DaViT(**sizes, num_classes=0, drop_path_rate=0.0)
    assert load_checkpoint(model, tower.state_dict()).share > 0.99
    image = torch.randn(batch, 3, *size)
    run = results if gradients else lambda one, image: [last_map(one.eval(), image)]
    with torch.set_grad_enabled(gradients):
        expected = run(tower.double(), image.double())  # so that the error is ours alone
        for one in (plain(model), accelerate(model)):
            for found, right in zip(run(one, image), expected, strict=True):
                assert apart(found, right) < 1e-5
    with torch.no_grad():
        assert apart(last_map(accelerate(model).eval(), image), last_map(tower.eval(), image.double())) < 1e-5


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("size", [(224, 224), (96, 160), (77, 45), (20, 20)], ids=str)
def test_a_small_tower_is_computed_as_its_library_does(
    name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditions, "MIN_WORK", 0)
    monkeypatch.setattr(conditions, "MIN_WORK_TO_TRAIN", 0)
    compare(name, SIZES, size, batch=2)


@pytest.mark.long
@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize(
    ("variant", "size", "gradients"),
    [
        ("DaViT_base_fl", (224, 224), True),
        ("DaViT_base_fl", (96, 160), True),
        ("DaViT_base_fl", (768, 768), False),
        ("DaViT_large_fl", (224, 224), False),
        ("DaViT_large_fl", (96, 160), True),
    ],
    ids=str,
)
def test_the_towers_are_computed_as_their_libraries_do(
    name: str, variant: str, size: tuple[int, int], gradients: bool
) -> None:
    compare(name, davit.VARIANTS[variant].model_kwargs(), size, gradients=gradients)


@pytest.mark.parametrize("name", TOWERS)
def test_names_go_to_every_layout_and_back_bit_for_bit(name: str) -> None:
    weights = randomise(TOWERS[name](SIZES), 1).state_dict()
    own = "florence2_native" if name == "transformers" else "timm"
    prefix = "model.vision_tower." if name == "transformers" else ""
    expected = {prefix + key: tensor for key, tensor in weights.items()}
    for middle in set(LAYOUTS) - {"pyramid"}:  # which has no final norm, as timm's has
        back = convert_state_dict(convert_state_dict(weights, middle), own)
        assert list(back) == list(expected), middle
        assert all(back[key] is expected[key] or torch.equal(back[key], expected[key]) for key in expected)
    as_released = convert_state_dict(weights, "florence2")
    assert "vision_tower.blocks.0.0.channel_block.channel_attn.fn.qkv.weight" in as_released


# --- the model ---


@pytest.fixture
def small() -> DaViT:
    return randomise(
        ours(embed_dims=(16, 32), depths=(1, 1), num_heads=(1, 2), window_size=4, num_classes=5), 0
    ).eval()


def test_the_formula() -> None:
    """From q and k, scaled by positions^-0.5, applied to v; not DaViT's on the same weights."""
    torch.manual_seed(0)
    qkv = torch.randn(2, 21, 3 * 8)
    mixed, attention = attend_among_channels_qk(qkv, 2)
    q, k, v = qkv.unflatten(2, (3, 2, 4)).unbind(2)
    weights = (torch.einsum("bngi,bngj->bgij", q, k) / 21**0.5).softmax(-1)
    torch.testing.assert_close(attention, weights)
    torch.testing.assert_close(mixed, torch.einsum("bgij,bngj->bngi", weights, v).flatten(2))
    assert not torch.allclose(mixed, davit.model.attend_among_channels(qkv, 2)[0], atol=0.1)


AXES = {0: torch.export.Dim("B"), 2: torch.export.Dim("H", min=33), 3: torch.export.Dim("W", min=33)}
FORMS: dict[str, Any] = {
    "TorchScript": lambda model, image: torch.jit.script(model),
    "torch.fx": lambda model, image: torch.fx.symbolic_trace(model),
    "torch.compile": lambda model, image: torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=True),
    "torch.export": lambda model, image: torch.export.export(model, (image,), dynamic_shapes=(AXES,)).module(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "form", [*list(FORMS)[:2], *(pytest.param(name, marks=pytest.mark.long) for name in list(FORMS)[2:])]
)
def test_exporters_and_compilers_see_it(small: DaViT, form: str) -> None:
    torch.manual_seed(0)
    image = torch.randn(2, 3, 45, 61)
    program = FORMS[form](copy.deepcopy(small), image)
    with torch.no_grad():
        for picture in (image, torch.randn(3, 3, 33, 70)):
            torch.testing.assert_close(program(picture), small(picture), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_a_trace_and_an_empty_batch(small: DaViT) -> None:
    image = torch.linspace(-2, 2, 2 * 3 * 45 * 61).reshape(2, 3, 45, 61).sin()
    torch.testing.assert_close(torch.jit.trace(small, image)(image), small(image), rtol=1e-4, atol=1e-5)
    assert small(image[:0]).shape == (0, 5)


@pytest.mark.parametrize("mode", ["default", "bfloat16", "autocast", "checkpointing", "frozen"])
def test_kernels_agree_with_the_text(small: DaViT, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "MIN_WORK", 0)
    monkeypatch.setattr(conditions, "MIN_WORK_TO_TRAIN", 0)
    dtype = torch.bfloat16 if mode == "bfloat16" else torch.float32
    model = randomise(ours(embed_dims=(32, 64), depths=(1, 1), num_heads=(1, 2), drop_path_rate=0.0), 1).to(dtype)
    model.set_grad_checkpointing(mode == "checkpointing")
    if mode == "frozen":
        model.patch_embeds[0].requires_grad_(False)
        model.main_blocks[0].requires_grad_(False)
    stock, fast = plain(copy.deepcopy(model)), accelerate(model)
    assert why_plain(fast) == {}
    image = torch.randn(2, 3, 61, 83).to(dtype)
    close = 2e-5 if mode in ("default", "checkpointing", "frozen") else 0.05
    with torch.autocast("cpu", torch.bfloat16, enabled=mode == "autocast"):
        with torch.no_grad():
            expected, found = stock.eval()(image).float(), fast.eval()(image).float()
            assert apart(found, expected) < close
        for one in (stock, fast):
            one.train()(image).float().square().mean().backward()
    grads = {name: p.grad for name, p in stock.named_parameters() if p.grad is not None}
    assert {name for name, p in fast.named_parameters() if p.grad is not None} == grads.keys()
    whole = torch.cat([grad.flatten().float() for grad in grads.values()])
    mine = torch.cat([dict(fast.named_parameters())[name].grad.flatten().float() for name in grads])
    assert apart(mine, whole) < 5 * close


def test_an_edit_of_it_runs_as_written(small: DaViT, monkeypatch: pytest.MonkeyPatch) -> None:
    def halved(qkv: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        mixed, attention = attend_among_channels_qk(qkv, groups)
        return mixed / 2, attention

    monkeypatch.setattr(conditions, "MIN_WORK", 0)
    model, image = accelerate(small), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model(image)
        monkeypatch.setattr(davit.model, "attend_among_channels_qk", halved)
        reasons = why_plain(model)
        assert set(reasons) == {f"main_blocks.{stage}.0.1" for stage in range(2)}
        edited = model(image)
        assert not torch.allclose(edited, before, rtol=1e-3)
        torch.testing.assert_close(edited, plain(copy.deepcopy(model))(image), rtol=1e-4, atol=1e-5)
        monkeypatch.undo()


def test_features_and_costs(small: DaViT) -> None:
    """The attention costs what DaViT's costs: the same products of other maps."""
    features = davit.create_model("DaViT_nano", attention_types=FLORENCE2, features_only=True).eval()
    maps = features(torch.zeros(1, 3, 64, 64))
    assert [one.shape[1] for one in maps] == features.feature_info.channels()
    other = DaViT(**{**SIZES, "num_classes": 0, "attention_types": ("spatial", "channel")})
    assert complexity(ours(), (3, 96, 64)).flops == complexity(other, (3, 96, 64)).flops
    parts = {part.name for part in complexity(small, (3, 64, 64)).parts}
    assert {"window attention", "channel attention"} <= parts


# --- whose function weights are ---


def other_of(small: DaViT, **options: Any) -> DaViT:
    numbers = {"embed_dims": (16, 32), "depths": (1, 1), "num_heads": (1, 2), "window_size": 4, "num_classes": 5}
    return DaViT(**{**numbers, "overlapped_patch": True, **options})


def written(kind: str, model: nn.Module, folder: Path) -> Path:
    state, file = model.state_dict(), folder / ("file.safetensors" if kind == "safetensors" else "file.pth")
    if kind == "safetensors":
        write_checkpoint(file, state, {}, force=False)
    elif kind == "bare":
        torch.save(state, file)
    elif kind == "training":
        noise = {name: tensor + 1 for name, tensor in state.items()}
        torch.save({"arch": "DaViT_nano", "epoch": 3, "state_dict": noise, "state_dict_ema": state}, file)
    elif kind == "named":
        args = {"model": "DaViT_base_fl"}
        torch.save({"args": args, "model": dict(state)}, file)
    elif kind == "keywords":
        args = {"model": "DaViT_tiny", "model_kwargs": {"attention_types": list(FLORENCE2)}}
        torch.save({"args": args, "model": dict(state)}, file)
    elif kind == "detector":
        whole = nn.ModuleDict({"backbone": model, "neck": nn.Linear(2, 2)})
        torch.save({"meta": {"cfg": "model = dict()"}, "state_dict": whole.state_dict()}, file)
    else:
        plain_file = folder / "plain.pth"
        torch.save(state, plain_file)
        assert main(["convert", str(plain_file), str(folder / "middle.safetensors"), "--to", kind]) == 0
        assert main(["convert", str(folder / "middle.safetensors"), str(file), "--to", "davit"]) == 0
    return file


@pytest.mark.parametrize(
    "kind",
    ["safetensors", "bare", "training", "named", "keywords", "detector", "timm", "florence2", "florence2_native"],
)
def test_a_file_says_whose_function_its_weights_are(small: DaViT, kind: str, tmp_path: Path) -> None:
    file = written(kind, small, tmp_path)
    assert read_checkpoint(file).function == "florence2"
    again = other_of(small, attention_types=FLORENCE2)
    report = load_checkpoint(again, file)
    assert report.share == 1.0
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in small.state_dict().items())
    refusing = other_of(small)
    before = copy.deepcopy(refusing.state_dict())
    with pytest.raises(CheckpointError, match="DaViT_base_fl"):
        load_checkpoint(refusing, file)
    assert all(torch.equal(tensor, before[name]) for name, tensor in refusing.state_dict().items())
    load_checkpoint(refusing, file, allow_different_function=True)
    numbers = {"embed_dims": (16, 32), "depths": (1, 1), "num_heads": (1, 2), "window_size": 4}
    pyramid = DaViTPyramid(**numbers, out_indices=(0, 1), overlapped_patch=True, attention_types=FLORENCE2)
    assert not [name for name in load_checkpoint(pyramid, file).missing if not name.startswith("norm")]


def test_davits_weights_are_refused(small: DaViT, tmp_path: Path) -> None:
    weights = other_of(small).state_dict()
    safetensors.torch.save_file(weights, tmp_path / "silent.safetensors")
    for source in (weights, dict(weights), tmp_path / "silent.safetensors"):
        with pytest.raises(CheckpointError, match="allow_different_function"):
            load_checkpoint(small, source)
        assert load_checkpoint(other_of(small), source).complete
    detectors = [nn.ModuleDict({"backbone": one, "neck": nn.Linear(2, 2)}) for one in (small, other_of(small))]
    with pytest.raises(CheckpointError, match="allow_different_function"):
        load_checkpoint(detectors[0], detectors[1].state_dict())
    assert load_checkpoint(detectors[0], copy.deepcopy(detectors[0]).state_dict()).complete
    mixed = other_of(small, attention_types=("spatial", "channel", "channel_qk"))
    assert load_checkpoint(mixed, mixed.state_dict()).complete


def test_shapes_that_only_florence2s_variants_have_tell_too() -> None:
    """A tower's weights that a user put into a plain file of our names; DaViT_huge has the shapes of the large one."""
    with torch.device("meta"):
        base, large = (davit.create_model(f"DaViT_{size}_fl", num_classes=0) for size in ("base", "large"))
        shape = dict.fromkeys(base.state_dict()), dict.fromkeys(large.state_dict())
    assert len(shape[0]) == len(shape[1])
    silent = {name: torch.zeros(tensor.shape) for name, tensor in base.state_dict().items()}
    model = davit.create_model("DaViT_base_fl", num_classes=0)
    assert load_checkpoint(model, silent).complete
    assert davit.checkpoint.names.structure_of(davit.checkpoint.names.recognise(silent), silent).variants() == [
        "DaViT_base_fl"
    ]


def test_shapes_that_only_florence2s_variants_have_are_not_taken_for_davits() -> None:
    """The same file in a DaViT that has the shapes, and in timm's names, which do not tell either."""
    model = davit.create_model("DaViT_base", overlapped_patch=True, num_classes=0, accelerate=False)
    silent = {name: torch.zeros(tensor.shape) for name, tensor in model.state_dict().items()}
    for weights in (silent, dict(convert_state_dict(silent, "timm"))):
        with pytest.raises(CheckpointError):
            load_checkpoint(model, weights)
        assert load_checkpoint(model, weights, allow_different_function=True).share == 1.0
    assert load_checkpoint(model, model.state_dict()).complete  # says that it is DaViT's


def test_unnamed_blocks_of_timm_do_not_tell(small: DaViT) -> None:
    weights = dict(convert_state_dict({**other_of(small).state_dict()}, "timm"))
    assert not any("_block" in name for name in weights)
    assert load_checkpoint(other_of(small), weights).complete
    with pytest.raises(CheckpointError):
        load_checkpoint(small, weights)


def test_a_models_own_loading_refuses_what_is_noted_to_be_the_others(small: DaViT) -> None:
    """`load_state_dict` of torch, also around and inside other modules."""
    for wrap in (nn.Identity, lambda one: nn.ModuleDict({"backbone": one}), accelerate):
        right, wrong = (other_of(small, attention_types=kinds) for kinds in (FLORENCE2, ("spatial", "channel")))
        holder = [one if wrap is nn.Identity else wrap(one) for one in (right, wrong)]
        holder[0].load_state_dict(holder[0].state_dict())
        with pytest.raises(RuntimeError, match="channel_qk"):
            holder[1].load_state_dict(holder[0].state_dict())
        with pytest.raises(RuntimeError, match="channel_qk"):
            holder[0].load_state_dict(holder[1].state_dict())
        holder[1].load_state_dict({**holder[0].state_dict()})  # nothing is noted
    spatial = other_of(small, attention_types=("spatial", "spatial"))
    spatial.load_state_dict(other_of(small).state_dict())


def test_published_dimensions_and_entries() -> None:
    for size, timms in (("base", "davit_base_fl"), ("large", "davit_huge_fl")):
        with torch.device("meta"):
            model = davit.create_model(f"DaViT_{size}_fl", num_classes=7)
            tower = timm.create_model(timms, num_classes=7)
        assert {type(blocks[0][1].attn) for blocks in model.main_blocks} == {ChannelAttentionQK}
        assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in tower.parameters())
        cfg = model.pretrained_cfg
        assert cfg["input_size"] == (3, 768, 768) and not cfg.get("hf_hub_id")
    with pytest.raises(ValueError, match="DaViT_base_fl"):
        davit.create_model("DaViT_base_fl", pretrained=True)


def test_a_file_alone_builds_its_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`davit.load` and validate.py take the variant of the function, where shapes are those of two."""
    checkpoint = read_checkpoint(written("bare", ours(embed_dims=(16, 32), depths=(1, 1), num_heads=(1, 2)), tmp_path))
    structure = davit.checkpoint.names.Structure(3, (256, 512, 1024, 2048), (1, 1, 9, 1), 5, True)
    assert structure.variants() == ["DaViT_huge", "DaViT_large_fl"]
    assert structure.variants("florence2") == ["DaViT_large_fl"] and structure.variants("davit") == ["DaViT_huge"]
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(load_model, "structure_of", lambda *_: structure)
        assert load_model._name_of(checkpoint, {}) == "DaViT_large_fl"
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
