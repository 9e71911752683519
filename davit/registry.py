"""Register the variants with timm under their capitalised names, and build models by name.

timm's own port is called ``davit_tiny`` and so on; both can be registered side by side.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import is_exportable, is_scriptable
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg
from torch import nn

from . import kernels
from .model import DaViT
from .pretrained import (
    PUBLISHED,
    asks_for_published,
    config_of,
    load_configured,
    load_pretrained,
    split_source,
)
from .text import nearest
from .variants import FLORENCE2, VARIANTS, Variant

_logger = logging.getLogger(__name__)

_OF_FLORENCE2 = {
    "crop_pct": 1.0,  # its processor squashes the whole image to the input size
    "crop_mode": "squash",
    "paper_ids": "arXiv:2311.06242",
    "paper_name": "Florence-2: Advancing a Unified Representation for a Variety of Vision Tasks",
    "license": "mit",
}


def _default_cfg(name: str, variant: Variant) -> dict[str, Any]:
    published = PUBLISHED.get(name)
    return {
        "num_classes": 1000,
        "input_size": (3, variant.image_size, variant.image_size),
        "pool_size": (-(-variant.image_size // 32),) * 2,
        "crop_pct": 0.9,  # what the original evaluates at; timm evaluates the same weights at 0.95
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embeds.0.proj",
        "classifier": "head",
        "paper_ids": "arXiv:2204.03645",
        "paper_name": "DaViT: Dual Attention Vision Transformers",
        "license": "apache-2.0",
        **(_OF_FLORENCE2 if variant.attention_types == FLORENCE2 else {}),
        **({"hf_hub_id": published.hub_id} if published else {}),
    }


default_cfgs = generate_default_cfgs({name: _default_cfg(name, variant) for name, variant in VARIANTS.items()})


def _entrypoint(name: str, variant: Variant) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, accelerate: bool = True, **kwargs: Any) -> nn.Module:
        def build(
            device: torch.device | str | None = None, dtype: torch.dtype | None = None, **model_kwargs: Any
        ) -> DaViT:
            with nullcontext() if device is None else torch.device(device):
                model = DaViT(**model_kwargs)
            if dtype is not None:
                model.to(dtype)
            # loaded before timm wraps the model (features_only), and with an audit, which timm's loader lacks
            if pretrained:
                cfg, cache_dir = _configured(name, kwargs), kwargs.get("cache_dir")
                if asks_for_published(name, cfg):
                    load_pretrained(model, name, cache_dir=cache_dir)
                else:
                    load_configured(model, cfg, cache_dir)
            if accelerate and not is_scriptable() and not is_exportable():
                kernels.accelerate(model)
            return model

        # forward_features and forward_intermediates give NCHW; hooks between the stages see NHWC
        by_hooks = kwargs.get("feature_cls", "getter") not in (None, "getter")
        return build_model_with_cfg(
            build,
            name,
            pretrained=False,
            feature_cfg={
                "out_indices": tuple(range(len(variant.depths))),
                "feature_cls": "getter",
                "output_fmt": "NHWC" if by_hooks else "NCHW",
            },
            **{**variant.model_kwargs(), **kwargs},
        )

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"{name}: {variant}."
    return create


def _configured(name: str, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return timm's ``pretrained_cfg`` of a model with what the caller, or a config.json, replaces in it."""
    overlay = kwargs.get("pretrained_cfg_overlay") or {}
    cfg = vars(resolve_pretrained_cfg(name, kwargs.get("pretrained_cfg"), overlay))
    if overlay.get("url") and not overlay.get("hf_hub_id"):  # the caller's address, before the default's repository
        cfg = {**cfg, "hf_hub_id": None}
    unread = [name for name in ("file", "state_dict", "url") if overlay.get(name)]
    if unread and cfg.get("source") and "source" not in overlay:
        _logger.warning(
            "pretrained_cfg_overlay names weights (%s) that are not read: timm's source=%r comes first; overlay "
            "source='' too, or use checkpoint_path=FILE.",
            *(", ".join(unread), cfg["source"]),
        )
    return cfg


for _name, _variant in VARIANTS.items():
    register_model(_entrypoint(_name, _variant))


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """Build any model that timm knows, DaViT's variants among them.

    Args:
        name: a variant of `VARIANTS`, a name of timm's, or ``hf-hub:OWNER/NAME[@REVISION]`` or ``local-dir:DIR``,
            whose config.json names the model.
        kwargs: passed to ``timm.create_model``. A DaViT is accelerated (`davit.accelerate`) unless
            ``accelerate=False``, or timm is told that the model is to be scripted or exported.

    Raises:
        ValueError: the name is unknown; the nearest ones are offered. `CheckpointError` for a config.json or weights
            that cannot be used.
        PretrainedError: the hub does not have it, or cannot be reached.
    """
    if split_source(name)[0] is not None:
        architecture = config_of(name, kwargs.get("cache_dir"))["architecture"]
        if architecture not in VARIANTS:
            kwargs.pop("accelerate", None)  # kernels are for ours alone
        return timm.create_model(name, **kwargs)
    if not timm.is_model(name.split(".")[0]):
        offered = " or ".join(sorted(nearest(name, timm.list_models(), 3, cutoff=0.5))) or "DaViT_tiny"
        raise ValueError(
            f"unknown model {name!r}; did you mean {offered}? DaViT's variants are {', '.join(VARIANTS)}; "
            "timm.list_models() lists all others."
        )
    return timm.create_model(name, **kwargs)
