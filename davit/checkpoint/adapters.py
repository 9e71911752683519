"""Merge low-rank adapters (LoRA) into the weights that they were trained for, by names and shapes, as peft does.

A state dict of peft has, for each adapted layer X, ``X.base_layer.weight``, ``X.lora_A.default.weight`` and
``X.lora_B.default.weight``. What it lacks is the scaling, which only ``adapter_config.json`` has.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..limits import short
from ..text import some

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."  # what peft's model writes before every name
_TENSOR = re.compile(
    r"(?P<layer>.+)\.(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.(?!weight$|bias$)(?P<adapter>[^.]+))?(?:\.(?P<param>weight|bias))?"
)
_SAVED = re.compile(r"(?P<layer>.+)\.modules_to_save\.(?P<adapter>[^.]+)\.(?P<param>.+)")
_REPLACED = re.compile(r"(?P<layer>.+)\.original_module\.(?P<param>.+)")
# what the other methods of peft leave in names
_OTHERS = re.compile(
    r"(?:.+\.)?(?:hada_[wt]\d\w*|lokr_[wt]\d\w*|ia3_l|oft_[rRs]|boft_[RSP]\w*|vera_\w+|lora_E|ranknum|fourierft_\w+|"
    r"prompt_encoder|prompt_embeddings|adaption_prompt|trainable_tokens_\w+|ln_tuning_layers|randlora_\w+|bone_\w+|"
    r"shira_\w+|c3a_kernel|road_\w+|miss_\w+|hra_u)(?:\..+)?"
)
_REMEDY = "In peft, merge_and_unload() gives the model with its adapters merged: save that model's state_dict()"
# ways to begin a training that change the layer under the adapter, too
_CHANGES_BASE = re.compile(r"pissa.*|olora|corda|loftq|lora_ga", re.IGNORECASE)


@dataclass(frozen=True)
class Merged:
    """Say what became of a state dict with adapters: `tensors` with `note`, or the `problem`."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    note: str = ""
    problem: str = ""


class _UnmergeableError(ValueError):
    """Say why adapters cannot be merged."""


def has_adapters(name: str) -> bool:
    """Return whether a tensor's name is one of an adapter's."""
    return any(pattern.fullmatch(name) for pattern in (_TENSOR, _SAVED, _OTHERS))


def merge(tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None, is_split: bool = False) -> Merged | None:
    """Merge the adapters among the tensors; None where there are none.

    Args:
        config: what ``adapter_config.json`` says; None where there is no such file.
        is_split: base and adapters lay in two files, so that the base is as it was before the training.
    """
    if not any(map(has_adapters, tensors)):
        return None
    try:
        return _merged(tensors, config, is_split)
    except _UnmergeableError as error:
        shown = some(list(tensors)[:3])
        return Merged(problem=f"holds adapters ({shown}, ...) and {error}. {_REMEDY}.")


def joined(base: Mapping[str, Tensor], adapters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put a base and the adapters of ``save_pretrained`` together, as a state dict that `merge` takes."""
    both = dict(base)
    for name, tensor in adapters.items():
        both[name.removeprefix(_PREFIX).replace(".base_layer.", ".")] = tensor
    return both


def _merged(tensors: Mapping[str, Tensor], config: Mapping[str, Any] | None, is_split: bool) -> Merged:
    if others := [name for name in tensors if _OTHERS.fullmatch(name)]:
        raise _UnmergeableError(f"these are of another method than LoRA ({some(others, 2)}), which is not merged here")
    layers: dict[str, dict[tuple[str, str], Tensor]] = {}
    adapters: set[str] = set()
    for name, tensor in tensors.items():
        if found := _TENSOR.fullmatch(name):
            layers.setdefault(found["layer"], {})[found["kind"], found["param"] or "weight"] = tensor
            adapters.add(found["adapter"] or "")
        elif found := _SAVED.fullmatch(name):
            adapters.add(found["adapter"])
    if len(adapters - {""}) > 1:
        raise _UnmergeableError(f"it has several ({some(sorted(adapters))}), and which of them are meant is not said")
    alone = [layer for layer in layers if _base(tensors, layer) is None]
    if alone:
        raise _UnmergeableError(f"not the weights that they adapt: {some([f'{layer}.weight' for layer in alone], 2)}")
    if layers and config is None:
        raise _UnmergeableError(
            f"their scaling, lora_alpha, is not known: it is in {CONFIG}, which is neither beside the file nor in it"
        )
    rules = _Rules(config or {}, is_split)
    merged: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if _TENSOR.fullmatch(name) or _REPLACED.fullmatch(name):
            continue
        found = _SAVED.fullmatch(name)
        new = (
            f"{found['layer']}.{found['param']}"
            if found
            else ".".join(p for p in name.split(".") if p != "base_layer")
        )
        if new in merged:
            raise _UnmergeableError(f"two of its tensors would be {new}")
        layer, _, param = new.rpartition(".")
        parts = {} if found else layers.get(layer, {})
        if param == "weight" and parts:
            tensor = _weight(layer, tensor, parts, rules)
        elif param == "bias" and ("lora_B", "bias") in parts:
            tensor = tensor + parts["lora_B", "bias"] * rules.scaling(layer, parts)
        merged[new] = tensor
    bare = [layer for layer, parts in layers.items() if ("lora_B", "bias") in parts and f"{layer}.bias" not in merged]
    if bare:
        raise _UnmergeableError(f"{bare[0]}.lora_B has a bias, and the layer has none")
    return Merged(merged, f"merged the adapters of {len(layers)} layers (LoRA, as merge_and_unload() does)")


def _base(tensors: Mapping[str, Tensor], layer: str) -> Tensor | None:
    found = tensors.get(f"{layer}.base_layer.weight")
    return tensors.get(f"{layer}.weight") if found is None else found


@dataclass(frozen=True)
class _Rules:
    """Answer what a config says of a layer."""

    config: Mapping[str, Any]
    is_split: bool

    def __post_init__(self) -> None:
        kind = self.config.get("peft_type", "LORA")
        if kind != "LORA":
            raise _UnmergeableError(f"its config says {short(kind)}, and only LORA is merged here")
        start = self.config.get("init_lora_weights")
        if self.is_split and isinstance(start, str) and _CHANGES_BASE.fullmatch(start):
            raise _UnmergeableError(f"init_lora_weights={short(start)} changed the base, which is not the one given")
        for name in ("use_qalora", "alora_invocation_tokens", "velora_config", "monteclora_config"):
            if self.config.get(name):
                raise _UnmergeableError(f"its config asks for {name}, which is not merged here")
        if self.config.get("layer_replication"):
            raise _UnmergeableError("its config replicates layers, which is not done here")

    def scaling(self, layer: str, parts: Mapping[tuple[str, str], Tensor]) -> float:
        """Return what an adapter's product is multiplied by."""
        rank = parts["lora_A", "weight"].shape[0]
        told = self._of("rank_pattern", "r", layer)
        alpha = self._of("alpha_pattern", "lora_alpha", layer)
        if alpha is None:
            raise _UnmergeableError("their scaling, lora_alpha, is not in its config")
        if told is not None and told != rank:
            raise _UnmergeableError(
                f"its config says rank {told:g} for {layer}, which has {rank}: it is of another file"
            )
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _of(self, pattern: str, name: str, layer: str) -> float | None:
        bare = layer.rpartition(_PREFIX)[2]
        patterns = self.config.get(pattern)
        value = self.config.get(name)
        for key, one in patterns.items() if isinstance(patterns, Mapping) else ():
            if _ends_as(bare, str(key)):
                value = one
                break
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not value:
            raise _UnmergeableError(f"its config has {name}: {short(value)}, which is no such number")
        return float(value)


def _ends_as(layer: str, key: str) -> bool:
    """Match as peft does where the key is plain text; a pattern of a stranger's making is not run."""
    if re.fullmatch(r"[\w.]+", key):
        return layer == key or layer.endswith(f".{key}")
    if not re.fullmatch(r"\^?[\w\\.]+\$?", key):
        raise _UnmergeableError(f"its config names layers by the pattern {short(key)}, which is not read here")
    return layer == key.strip("^$").replace("\\.", ".")


def _weight(layer: str, base: Tensor, parts: Mapping[tuple[str, str], Tensor], rules: _Rules) -> Tensor:
    """Merge one layer, in the order of operations that peft has, so that the bits agree."""
    a, b = parts.get(("lora_A", "weight")), parts.get(("lora_B", "weight"))
    if a is None or b is None:
        raise _UnmergeableError(f"{layer} has only one of lora_A and lora_B")
    if not all(tensor.is_floating_point() and not tensor.is_meta for tensor in (base, a, b)):
        raise _UnmergeableError(f"{layer} is stored as {base.dtype}, not as plain numbers (quantized?)")
    if base.ndim != a.ndim or a.ndim != b.ndim or a.shape[0] != b.shape[1]:
        raise _UnmergeableError(f"the shapes of {layer} do not go together: {_shapes(base, a, b)}")
    scaling = rules.scaling(layer, parts)
    dtype = b.dtype if base.ndim == 2 else a.dtype
    if dtype.itemsize == 2:
        a, b = a.float(), b.float()
    if base.ndim == 2:
        delta = (b @ a) * scaling
    elif base.ndim == 4 and b.shape[2:] == (1, 1):
        if base.shape[2:] == (1, 1):
            delta = (b[:, :, 0, 0] @ a[:, :, 0, 0])[:, :, None, None] * scaling
        else:
            delta = F.conv2d(a.transpose(0, 1), b).transpose(0, 1) * scaling
    else:
        raise _UnmergeableError(f"{layer} is no linear layer and no plain convolution: {_shapes(base, a, b)}")
    delta = delta.to(dtype)
    if delta.shape != base.shape:
        raise _UnmergeableError(f"the shapes of {layer} do not go together: {_shapes(base, a, b)}")
    magnitude = parts.get(("lora_magnitude_vector", "weight"))
    if magnitude is None:
        if rules.config.get("use_dora"):
            raise _UnmergeableError(f"{layer} has no lora_magnitude_vector, which DoRA needs")
        return (base + delta).to(base.dtype)
    dims = tuple(range(1, base.ndim))
    norm = (base + delta).norm(p=2, dim=dims).to(base.dtype)  # DoRA, section 4.2
    if magnitude.numel() != len(norm):
        raise _UnmergeableError(f"the magnitudes of {layer} are {tuple(magnitude.shape)}, for {len(norm)} outputs")
    factor = (magnitude.reshape(-1) / norm).reshape(-1, *[1] * len(dims))
    return (factor * (base + delta)).to(base.dtype)


def _shapes(*tensors: Tensor) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
