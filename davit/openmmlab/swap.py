"""Put DaViT in the place of a config's backbone, whatever that is, and make the parts behind it fit its widths."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from ..text import did_you_mean, some
from ..variants import VARIANTS

log = logging.getLogger(__name__)

_SIDE = 128  # of the image by which the maps of a backbone are measured
_STRIDES = (4, 8, 16, 32)  # of DaViT's levels
_KEPT = ("in_chans", "drop_path_rate", "frozen_stages", "with_cp", "accelerate")  # of a DaViT that is replaced


def swap_backbone(cfg: Config, variant: str) -> None:
    """Give a config a DaViT of another size, or in place of another backbone.

    The levels are those with the strides of the old backbone's, and every ``in_channels`` behind it that states the
    old widths states the new ones. Images are normalised as DaViT's weights need it. What is changed is logged.

    Args:
        variant: a name in `davit.VARIANTS`.

    Raises:
        ValueError: there is no such variant, the old backbone cannot be built, or its levels are not DaViT's.
    """
    if variant not in VARIANTS:
        raise ValueError(f"--backbone {variant}: {did_you_mean(variant, VARIANTS)}there are {', '.join(VARIANTS)}.")
    holder = cfg.model
    while "backbone" not in holder:  # a detector inside of a wrapper, such as test-time augmentation or a teacher
        inner = next((holder[name] for name in ("module", "detector", "segmentor") if name in holder), None)
        if inner is None:
            raise ValueError(f"--backbone {variant}: the config's model ({holder.get('type')}) has no `backbone`.")
        holder = inner
    old = holder.backbone
    levels, widths = _levels(old, cfg)
    read = _read_of(holder, len(levels))
    levels, widths = [levels[place] for place in read], [widths[place] for place in read]
    new = ConfigDict(type="DaViT", variant=variant)
    if old.get("type") == "DaViT":
        new.update({name: old[name] for name in _KEPT if name in old})
        if left_out := [name for name in old if name not in (*_KEPT, "type", "variant", "out_indices")]:
            log.warning(
                "Arguments of the config's DaViT that %s does not take over: %s; --cfg-options "
                "model.backbone.NAME=... gives them.",
                *(variant, some(left_out)),
            )
    if levels != [0, 1, 2, 3]:
        new["out_indices"] = levels
    all_widths = VARIANTS[variant].model_kwargs()["embed_dims"]
    found = _fit(holder, dict(zip(levels, widths, strict=True)), all_widths, skip=("backbone",))
    holder.backbone = new
    fitted = some(found, 6) if found else "its widths are those of the old one"
    log.info("Backbone: %s in place of %s, levels %s; %s.", variant, old.get("type"), levels, fitted)
    if old.get("type") != "DaViT":
        _normalise_as_imagenet(cfg)
        holder.pop("pretrained", None)
        log.info(
            "It starts from random weights, unless --cfg-options model.pretrained=FILE (or %s) says more.", variant
        )
        if cfg.get("load_from"):
            log.warning("load_from=%s holds another backbone: left out.", cfg.load_from)
            cfg.load_from = None


def _levels(backbone: ConfigDict, cfg: Config) -> tuple[list[int], list[int]]:
    """Measure a backbone's maps: which levels of DaViT have their strides, and how wide they are."""
    init_default_scope(cfg.get("default_scope", "mmdet"))
    plain = ConfigDict({name: value for name, value in backbone.items() if name != "init_cfg"})
    try:
        module: nn.Module = MODELS.build(plain)
        module.eval()  # of some backbones it returns nothing
        bands = int(backbone.get("in_chans", backbone.get("in_channels", 3)) or 3)
        with torch.no_grad():
            maps: Sequence[Tensor] = module(torch.zeros(1, bands, _SIDE, _SIDE))
    except Exception as error:  # a constructor of any library
        raise ValueError(
            f"--backbone: the config's own backbone {backbone.get('type')!r}, whose maps say what DaViT has to give, "
            f"cannot be built ({type(error).__name__}: {error}). Write the override into a config: "
            "model = dict(backbone=dict(_delete_=True, type='DaViT', variant=..., out_indices=...), neck=...)."
        ) from error
    maps = [maps] if isinstance(maps, Tensor) else [one for one in maps if isinstance(one, Tensor)]
    strides, widths = [round(_SIDE / one.shape[-1]) for one in maps], [one.shape[1] for one in maps]
    if len(set(strides)) == len(strides) and set(strides) <= set(_STRIDES):
        return [_STRIDES.index(stride) for stride in strides], widths
    if not 1 <= len(maps) <= len(_STRIDES):
        raise ValueError(
            f"--backbone: {backbone.get('type')} gives {len(maps)} maps, with strides {strides}; DaViT has 4, with "
            f"{list(_STRIDES)}. Take a config whose detector reads 4 levels or fewer."
        )
    levels = list(range(len(_STRIDES) - len(maps), len(_STRIDES)))
    log.warning(
        "The maps of %s have strides %s; those of DaViT in their place have %s.",
        *(backbone.get("type"), strides, [_STRIDES[level] for level in levels]),
    )
    return levels, widths


def _read_of(model: ConfigDict, count: int) -> list[int]:
    """Return which of the backbone's maps are read, and let what reads them count those alone.

    The norm of a map that nobody reads would get no gradient, which data parallelism refuses.
    """
    neck = model.get("neck")
    first = neck[0] if isinstance(neck, list | tuple) else neck
    if first:
        start = int(first.get("start_level", 0))
        if not 0 < start < count or len(first.get("in_channels") or ()) != count:
            return list(range(count))
        first["start_level"], first["in_channels"] = 0, list(first["in_channels"])[start:]
        return list(range(start, count))
    heads = [head for _, head in _dictionaries(model, skip=("backbone",)) if "in_index" in head]
    if not heads:
        return list(range(count))
    read = {place % count for head in heads for place in _places(head)}
    read |= {0 for head in heads if "c1_in_channels" in head}
    new = {place: number for number, place in enumerate(sorted(read))}
    for head in heads:
        places = [new[place % count] for place in _places(head)]
        head["in_index"] = places if isinstance(head["in_index"], list | tuple) else places[0]
    return sorted(read)


def _places(head: ConfigDict) -> list[int]:
    index = head["in_index"]
    return list(index) if isinstance(index, list | tuple) else [index]


def _fit(part: Any, old: dict[int, int], widths: Sequence[int], skip: tuple[str, ...] = ()) -> list[str]:
    """Set every ``in_channels`` that states old widths to the new ones; return what was set.

    Args:
        old: the old width of each of DaViT's levels that is used.
        widths: the new width of every level.
        skip: keys of `part` that are left alone.
    """
    levels, done = list(old), []
    for path, holder in _dictionaries(part, skip):
        value = holder.get("in_channels")
        if isinstance(value, list | tuple):
            run = _run_of(list(value), list(old.values()))
            if run is not None:
                holder["in_channels"] = [widths[level] for level in levels[run : run + len(value)]]
        elif isinstance(value, int) and isinstance(index := holder.get("in_index"), int):
            if value == list(old.values())[index]:  # of the maps that are read
                holder["in_channels"] = widths[levels[index]]
        elif isinstance(value, int) and len(old) == 1 and value == next(iter(old.values())):
            holder["in_channels"] = widths[levels[0]]
        if value is not None and holder["in_channels"] != value:
            done.append(f"{path}in_channels={holder['in_channels']}")
        if holder.get("c1_in_channels") == next(iter(old.values())):  # DeepLabV3+ reads the first map too
            holder["c1_in_channels"] = widths[levels[0]]
            done.append(f"{path}c1_in_channels={widths[levels[0]]}")
    return done


def _run_of(value: list[int], old: list[int]) -> int | None:
    """Tell where some widths stand, one after another, among all old ones."""
    starts = (start for start in range(len(old) - len(value) + 1) if old[start : start + len(value)] == value)
    return next(starts, None)


def _dictionaries(part: Any, skip: tuple[str, ...] = (), path: str = "") -> Iterator[tuple[str, Any]]:
    """Find all dictionaries of a model's config, with their path."""
    if isinstance(part, dict):
        yield path, part
        for name, inner in part.items():
            if name not in skip:
                yield from _dictionaries(inner, path=f"{path}{name}.")
    elif isinstance(part, list | tuple):
        for number, inner in enumerate(part):
            yield from _dictionaries(inner, path=f"{path}{number}.")


def _normalise_as_imagenet(cfg: Config) -> None:
    """Let the model's preprocessor give RGB with ImageNet's mean and std, on which DaViT was trained."""
    preprocessor = cfg.model.get("data_preprocessor")
    if preprocessor is None:
        return
    wanted = {
        "mean": [round(255 * value, 3) for value in IMAGENET_DEFAULT_MEAN],
        "std": [round(255 * value, 3) for value in IMAGENET_DEFAULT_STD],
        "bgr_to_rgb": True,
    }
    if changed := {name: preprocessor.get(name) for name, value in wanted.items() if preprocessor.get(name) != value}:
        log.info("Images are RGB with ImageNet's mean and std (the config had %s).", changed)
    preprocessor.update(wanted)
    preprocessor.pop("rgb_to_bgr", None)
