"""LoRA adapters: merged as peft itself merges them, or refused by what is lacking."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from davit.checkpoint import CheckpointError, load_checkpoint, read_checkpoint, unwrap
from davit.checkpoint.__main__ import main
from tests.checkpoint.conftest import built, filled, is_loaded, same, under

peft = pytest.importorskip("peft")

TARGETS = {
    "linear": {"target_modules": ["qkv", "fc1"], "r": 4, "lora_alpha": 16},
    "rslora": {"target_modules": ["qkv"], "r": 4, "lora_alpha": 8, "use_rslora": True},
    "dora": {"target_modules": ["qkv", "attn.proj"], "r": 2, "lora_alpha": 4, "use_dora": True},
    "convolution": {"target_modules": ["patch_embeds.0.proj", "patch_embeds.2.proj"], "r": 2, "lora_alpha": 3},
    "dora of a convolution": {"target_modules": ["patch_embeds.1.proj"], "r": 2, "lora_alpha": 3, "use_dora": True},
    "patterns": {
        **{"target_modules": ["qkv", "fc2"], "r": 2, "lora_alpha": 4},
        **{
            "rank_pattern": {"mlp.fc2": 3},
            "alpha_pattern": {"main_blocks.1.0.0.attn.qkv": 10, "^main_blocks.0.0.0.attn.qkv": 6},
        },
    },
    "head": {"target_modules": ["qkv"], "modules_to_save": ["head", "norms"], "r": 2, "lora_alpha": 4},
    "bias": {"target_modules": ["qkv"], "bias": "lora_only", "lora_bias": True, "r": 2, "lora_alpha": 4},
    "initialised": {"target_modules": ["qkv"], "r": 2, "lora_alpha": 4, "init_lora_weights": "olora"},
}


def adapted(kind: str, seed: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Any, dict[str, Tensor]]:
    """A model of peft, every tensor of it filled, and the state dict that ``merge_and_unload`` gives."""
    model = peft.get_peft_model(built(seed=seed), peft.LoraConfig(**TARGETS[kind]))
    filled(model, seed + 10)
    model.to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "magnitude" in name:
                parameter.abs_().add_(0.5)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = {name: tensor.clone() for name, tensor in model.merge_and_unload().state_dict().items()}
    return state, merged


def with_config(folder: Path, kind: str, **changed: Any) -> Path:
    """Write ``adapter_config.json`` as peft does."""
    folder.mkdir(exist_ok=True, parents=True)
    peft.LoraConfig(**TARGETS[kind]).save_pretrained(str(folder))
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changed}))
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_base_and_adapters_are_merged_bit_for_bit(tmp_path: Path, kind: str, form: str, dtype: torch.dtype) -> None:
    state, merged = adapted(kind, dtype=dtype)
    folder = with_config(tmp_path / "a", kind)
    path = folder / f"weights.{form}"
    if form == "pth":
        torch.save({"state_dict": under("module.", state), "epoch": 3}, path)
    else:
        safetensors.torch.save_file(state, path)
    checkpoint = read_checkpoint(path)
    assert checkpoint.notes and not checkpoint.problem
    model = built(seed=1).to(dtype)
    report = load_checkpoint(model, path, head="require")
    assert report.complete and report.notes == checkpoint.notes
    mine = model.state_dict()
    assert mine.keys() == merged.keys()
    differing = [name for name in merged if not torch.equal(mine[name], merged[name])]
    assert differing == [] or max((mine[n].float() - merged[n].float()).abs().max() for n in differing) < 1e-6


@pytest.mark.parametrize("kind", [kind for kind in TARGETS if kind != "initialised"])
def test_a_folder_of_save_pretrained_with_its_base(tmp_path: Path, kind: str, capsys: Any, caplog: Any) -> None:
    base = built(seed=2)
    weights = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = peft.get_peft_model(base, peft.LoraConfig(**TARGETS[kind]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.copy_(torch.rand_like(parameter) * 0.1 + 0.05)
    folder = tmp_path / "adapters"
    model.save_pretrained(str(folder))
    with pytest.raises(CheckpointError, match="merge_and_unload"):  # adapters alone
        load_checkpoint(built(seed=1), folder)
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    merged = model.merge_and_unload().state_dict()
    caplog.clear()
    assert same(read_checkpoint(folder / "model.safetensors").state_dict, dict(sorted(weights.items())))
    assert str(folder) in caplog.text  # the base alone, said
    target = built(seed=1)
    load_checkpoint(target, folder, head="require")
    for name, tensor in target.state_dict().items():
        assert torch.allclose(tensor, merged[name], atol=1e-6), name
    assert main(["inspect", str(folder)]) == 0
    assert "adapter_model.safetensors" in capsys.readouterr().out
    assert main(["convert", str(folder), str(tmp_path / "out.safetensors"), "--to", "timm"]) == 0


def test_a_file_without_its_scaling_or_without_its_base_is_refused(tmp_path: Path, saved: Any) -> None:
    state, _ = adapted("linear")
    first = next(iter(state))
    path = saved(state)
    target = built(seed=1)
    with pytest.raises(CheckpointError, match="lora_alpha") as caught:
        load_checkpoint(target, path)
    assert first in str(caught.value) and str(path) in str(caught.value) and "merge_and_unload" in str(caught.value)
    for command in (["inspect", str(path)], ["convert", str(path), str(tmp_path / "x.pth"), "--to", "timm"]):
        assert main(command) == 2
    alone = {name: tensor for name, tensor in state.items() if "lora_" in name}
    with pytest.raises(CheckpointError, match="merge_and_unload") as caught:
        load_checkpoint(target, saved(alone, "alone.pth"))
    assert next(iter(alone)) in str(caught.value)
    from davit.engine.load_model import ModelOptions, load_model

    with pytest.raises(ValueError, match="merge_and_unload"):
        load_model(None, tmp_path / "alone.pth", ModelOptions(), torch.device("cpu"))


@pytest.mark.parametrize("entry", ["adapter_config", "peft_config", "lora_config"])
@pytest.mark.parametrize("by_name", [False, True])
def test_a_config_in_the_file_tells_the_scaling(saved: Any, entry: str, by_name: bool) -> None:
    state, merged = adapted("linear")
    config = peft.LoraConfig(**TARGETS["linear"]).to_dict()
    path = saved({"state_dict": state, entry: {"default": config} if by_name else config})
    target = built(seed=1)
    load_checkpoint(target, path)
    assert is_loaded(target, merged)


def test_an_own_model_with_adapters_takes_them_as_they_are(tmp_path: Path) -> None:
    state, _ = adapted("linear")
    config = peft.LoraConfig(**TARGETS["linear"])
    for folder in (tmp_path / "bare", with_config(tmp_path / "beside", "linear")):
        folder.mkdir(exist_ok=True)
        torch.save(state, folder / "a.pth")
        model = peft.get_peft_model(built(seed=1), config)
        assert load_checkpoint(model, folder / "a.pth", head="require").complete
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "changed, says",
    [
        ({"r": 8}, "rank"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"lora_alpha": "16"}, "lora_alpha"),
        ({"lora_alpha": float("inf")}, "lora_alpha"),
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"alpha_pattern": {"(a+)+$": 3}}, "pattern"),
        ({"layer_replication": [[0, 1]]}, "replicates"),
        ({"use_dora": True}, "DoRA"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    state, _ = adapted("linear")
    folder = with_config(tmp_path / "a", "linear", **changed)
    torch.save(state, folder / "a.pth")
    with pytest.raises(CheckpointError, match=says):
        load_checkpoint(built(seed=1), folder / "a.pth")


def test_a_base_that_the_training_changed_is_not_the_published_one(tmp_path: Path) -> None:
    model = peft.get_peft_model(built(seed=2), peft.LoraConfig(**TARGETS["initialised"]))
    model.save_pretrained(str(tmp_path / "a"))
    safetensors.torch.save_file(built(seed=2).state_dict(), tmp_path / "a" / "model.safetensors")
    with pytest.raises(CheckpointError, match="olora"):
        load_checkpoint(built(seed=1), tmp_path / "a")


def test_other_methods_and_several_adapters_are_refused(tmp_path: Path, saved: Any) -> None:
    for config in (
        peft.LoHaConfig(target_modules=["qkv"], r=2),
        peft.IA3Config(target_modules=["qkv"], feedforward_modules=[]),
    ):
        state = peft.get_peft_model(built(seed=2), config).state_dict()
        with pytest.raises(CheckpointError, match="merge_and_unload"):
            load_checkpoint(built(seed=1), saved(state))
    model = peft.get_peft_model(built(seed=2), peft.LoraConfig(**TARGETS["linear"]))
    model.add_adapter("second", peft.LoraConfig(**TARGETS["linear"]))
    folder = with_config(tmp_path / "a", "linear")
    torch.save(model.state_dict(), folder / "a.pth")
    with pytest.raises(CheckpointError, match=r"default.*second"):
        load_checkpoint(built(seed=1), folder / "a.pth")


def test_odd_shapes_are_no_crash(tmp_path: Path) -> None:
    state, _ = adapted("linear")
    folder = with_config(tmp_path / "a", "linear")
    layer = "base_model.model.main_blocks.0.0.0.attn.qkv"
    for name, tensor in (
        (f"{layer}.lora_A.default.weight", torch.ones(4, 5)),
        (f"{layer}.lora_B.default.weight", torch.ones(48, 3)),
        (f"{layer}.lora_B.default.weight", torch.ones(())),
        (f"{layer}.lora_A.default.weight", torch.ones(4, 16, 1, 1)),
        (f"{layer}.base_layer.weight", torch.ones(48, 16, dtype=torch.int8)),
        (f"{layer}.base_layer.weight", torch.ones(10**6, 1).expand(10**6, 10**9)),
        (f"{layer}.weight", torch.ones(48, 16)),
    ):
        torch.save({**state, name: tensor}, folder / "a.pth")
        with pytest.raises(CheckpointError):
            load_checkpoint(built(seed=1), folder / "a.pth")
    del state[f"{layer}.lora_A.default.weight"]
    torch.save(state, folder / "a.pth")
    with pytest.raises(CheckpointError, match="lora_A"):
        load_checkpoint(built(seed=1), folder / "a.pth")


def test_an_adapted_tower_inside_a_larger_model(tmp_path: Path) -> None:
    """The names before a DaViT's are its place."""

    class Larger(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.backbone = built(seed=seed)
            self.neck = nn.Linear(4, 4)

    model = peft.get_peft_model(Larger(2), peft.LoraConfig(target_modules=r".*backbone.*qkv", r=2, lora_alpha=6))
    filled(model, 5)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    model.peft_config["default"].save_pretrained(str(tmp_path))
    target = built(seed=1)
    report = load_checkpoint(target, tmp_path / "a.pth")
    merged = model.merge_and_unload()
    assert is_loaded(target, dict(merged.backbone.state_dict()))
    assert set(report.dropped) == {"base_model.model.neck.weight", "base_model.model.neck.bias"}
    assert same(unwrap({"w.x": torch.ones(1)}, "x").state_dict, {"w.x": torch.ones(1)})
