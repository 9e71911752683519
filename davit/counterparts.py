"""Say which model of timm's computes what a DaViT of ours does, and the reverse.

timm's port has the same functions under other names of arguments. What it lacks has no counterpart: another patch
size, other norms or blocks, spatial blocks without an MLP, and two kinds of channel attention in one model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .variants import VARIANTS

# what timm's architectures are built with, by the names of timm's arguments; the rest is as in `_DEFAULTS`
_WIDTHS: dict[str, dict[str, Any]] = {
    "davit_tiny": {"depths": (1, 1, 3, 1), "embed_dims": (96, 192, 384, 768), "num_heads": (3, 6, 12, 24)},
    "davit_small": {"depths": (1, 1, 9, 1), "embed_dims": (96, 192, 384, 768), "num_heads": (3, 6, 12, 24)},
    "davit_base": {"depths": (1, 1, 9, 1), "embed_dims": (128, 256, 512, 1024), "num_heads": (4, 8, 16, 32)},
    "davit_large": {"depths": (1, 1, 9, 1), "embed_dims": (192, 384, 768, 1536), "num_heads": (6, 12, 24, 48)},
    "davit_huge": {"depths": (1, 1, 9, 1), "embed_dims": (256, 512, 1024, 2048), "num_heads": (8, 16, 32, 64)},
    "davit_giant": {"depths": (1, 1, 12, 3), "embed_dims": (384, 768, 1536, 3072), "num_heads": (12, 24, 48, 96)},
}
_FL = {"window_size": 12, "down_kernel_size": 3, "channel_attn_v2": True, "named_blocks": True}
_DEFAULTS = {
    "window_size": 7,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "ffn": True,
    "cpe_act": False,
    "down_kernel_size": 2,
    "attn_types": ("spatial", "channel"),
    "channel_attn_v2": False,
    "named_blocks": False,
}
TIMM_DAVITS: dict[str, dict[str, Any]] = {
    **{name: {**_DEFAULTS, **widths} for name, widths in _WIDTHS.items()},
    **{f"{name}_fl": {**_DEFAULTS, **_WIDTHS[name], **_FL} for name in ("davit_base", "davit_huge")},
}

_SAME = ("depths", "embed_dims", "num_heads", "window_size", "mlp_ratio", "qkv_bias", "ffn", "cpe_act")
_OF_EVERY_MODEL = ("num_classes", "in_chans", "global_pool", "drop_rate", "drop_path_rate")
_POOLS = ("avg", "max", "avgmax")
# without effect on what a trained model computes
_OF_TRAINING = ("drop_rate", "drop_path_rate", "weight_init", "accelerate")
_LIKE_OURS: dict[str, Any] = {
    "norm_layer": "layernorm2d",
    "norm_layer_cl": "layernorm",
    "norm_eps": 1e-5,
    "head_norm_first": False,
}
_OURS: dict[str, Any] = {  # defaults of `DaViT` that no variant states
    "patch_size": 4,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "attention_types": ("spatial", "channel"),
    "ffn": True,
    "overlapped_patch": False,
    "cpe_act": False,
}


class NoCounterpartError(ValueError):
    """Say why timm has no model that computes what one of ours does."""


def timm_counterpart(variant: str, kwargs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return timm's architecture for a variant of ours, and the arguments in which it differs from timm's own.

    Args:
        kwargs: arguments that replace the variant's. Those of training alone have no effect; `num_classes`,
            `in_chans` and `global_pool` are called the same in timm, and are not returned.

    Raises:
        NoCounterpartError: timm cannot express it; the message says what.
    """
    ours = {**_OURS, **VARIANTS[variant].model_kwargs(), **kwargs}
    ours = {name: _plain(value) for name, value in ours.items() if name not in _OF_TRAINING}
    if ours.get("global_pool", "avg") not in _POOLS:
        raise NoCounterpartError(f"global_pool={ours['global_pool']!r} gives no logits")
    timms = {name: ours[name] for name in _SAME}
    timms |= {"down_kernel_size": 3 if ours["overlapped_patch"] else 2, **_attention(ours["attention_types"])}
    if ours["patch_size"] != 4:
        raise NoCounterpartError(f"patch_size={ours['patch_size']}: timm's stem has a stride of 4")
    if not ours["ffn"] and "spatial" in timms["attn_types"]:
        raise NoCounterpartError("ffn=False: timm's spatial blocks do not run without an MLP")
    known = {*_SAME, *_OF_EVERY_MODEL, "overlapped_patch", "attention_types", "patch_size"}
    if unknown := sorted(set(ours) - known):
        raise NoCounterpartError(f"timm's port has no {', '.join(unknown)} as ours has")

    def differing(name: str) -> dict[str, Any]:
        return {key: value for key, value in timms.items() if value != TIMM_DAVITS[name][key]}

    # named as the variant is, where such a one is in timm; then the fewest arguments
    like = variant.lower().replace("davit_large_fl", "davit_huge_fl").removesuffix("_window12_384")
    architecture = min(TIMM_DAVITS, key=lambda name: (name != like, len(differing(name))))
    return architecture, differing(architecture)


def our_counterpart(architecture: str, model_args: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Return our variant for an architecture of timm's with its arguments, and the arguments in which they differ.

    None where there is none: another architecture, or arguments with which ours would compute something else.
    """
    if architecture not in TIMM_DAVITS:
        return None
    given = {name: _plain(value) for name, value in model_args.items()}
    timms = {**TIMM_DAVITS[architecture], **given}
    unlike = [name for name in given if name in _LIKE_OURS and given[name] != _LIKE_OURS[name]]
    unknown = set(given) - {*_DEFAULTS, *_WIDTHS["davit_tiny"], *_LIKE_OURS, *_OF_EVERY_MODEL}
    if unlike or unknown or timms.get("global_pool", "avg") not in _POOLS or timms["down_kernel_size"] not in (2, 3):
        return None
    channel = "channel_qk" if timms["channel_attn_v2"] else "channel"
    ours = {name: timms[name] for name in (*_SAME, *_OF_EVERY_MODEL) if name in timms}
    ours["overlapped_patch"] = timms["down_kernel_size"] == 3
    ours["attention_types"] = tuple(channel if kind == "channel" else kind for kind in timms["attn_types"])

    def differing(variant: str) -> dict[str, Any]:
        has = {**_OURS, **{name: _plain(value) for name, value in VARIANTS[variant].model_kwargs().items()}}
        return {name: value for name, value in ours.items() if value != has.get(name)}

    variant = min(VARIANTS, key=lambda name: len(differing(name)))
    return variant, differing(variant)


def _attention(types: tuple[Any, ...]) -> dict[str, Any]:
    if strange := [kind for kind in types if kind not in ("spatial", "channel", "channel_qk")]:
        raise NoCounterpartError(f"attention_types holds {strange[0]!r}, which timm does not have")
    if {"channel", "channel_qk"} <= {*types}:
        raise NoCounterpartError("attention_types holds both kinds of channel attention, and timm's models have one")
    kinds = tuple("channel" if kind == "channel_qk" else kind for kind in types)
    return {"attn_types": kinds, "channel_attn_v2": "channel_qk" in types}


def _plain(value: Any) -> Any:
    """Make lists tuples, so that values of files and of code compare."""
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value
