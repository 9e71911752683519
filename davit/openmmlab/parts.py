"""Check that what a config calls a data set, a pipeline, a hook is one, before anything is looked up in it.

A part is a dictionary that says its ``type``; some places take one part or a list of them. A value of another kind
would fail later, anywhere in mmengine, with an error that does not say where the value came from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from os import PathLike
from typing import Any

from ..limits import short

_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
_PART, _PARTS, _LIST = "a dictionary", "a dictionary or a list of them", "a list of dictionaries"

# what each place must hold where the config has it; those of _OPTIONAL may be None as well
_NEEDED = {
    "model": _PART,
    "model.backbone": _PART,
    "optim_wrapper.optimizer": _PART,
    "tta_model": _PART,
    "tta_pipeline": _LIST,
}
_OPTIONAL = {
    **dict.fromkeys((*_LOADERS, "train_cfg", "val_cfg", "test_cfg", "optim_wrapper", "default_hooks"), _PART),
    **dict.fromkeys(("env_cfg", "visualizer", "log_processor", "randomness", "auto_scale_lr"), _PART),
    **dict.fromkeys(("val_evaluator", "test_evaluator", "param_scheduler"), _PARTS),
    "custom_hooks": _LIST,
    "model.data_preprocessor": _PART,
    **dict.fromkeys((f"model.{name}_head" for name in ("rpn", "roi", "bbox", "mask", "decode", "auxiliary")), _PARTS),
}


def check_parts(cfg: Mapping[str, Any], name: str, before: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Check the kinds of a config's values.

    Args:
        cfg: the config with the options in it.
        name: what the config is called.
        before: the config without them: what was a part or a list of parts must still be one, or None.
        options: the options' names, of the form "a.b.c", and values.

    Raises:
        ValueError: a value is of another kind; an option that gave it is named, with its value.
    """
    for path, value, wanted in (*_unlike_table(cfg), *_unlike(before, cfg)):
        given = next((key for key in options if f"{path}.".startswith(f"{key}.")), None)
        where = f"{path}={short(value)} in {name}"
        if given is not None:
            where = f"--cfg-options {given}={short(options[given])}"
            where += f": {path}" if given != path else ""
        raise ValueError(f"{where}: this must be {wanted}, not {_kind(value)}.")


def _kind(value: Any) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


def _holds(value: Any, wanted: str) -> bool:
    is_list = isinstance(value, list | tuple) and all(isinstance(one, dict | list | tuple) for one in value)
    return is_list if wanted == _LIST else isinstance(value, dict) or (wanted == _PARTS and is_list)


def _unlike_table(cfg: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Find what the places of all configs hold and must not: its path, the value, and what is wanted."""
    for path, wanted in {**_OPTIONAL, **_NEEDED}.items():
        *outer, last = path.split(".")
        holder: Any = cfg
        for key in outer:
            holder = holder.get(key) if isinstance(holder, dict) else None
        if isinstance(holder, Mapping) and last in holder:
            value = holder[last]
            if not _holds(value, wanted) and not (value is None and path in _OPTIONAL):
                yield path, value, wanted
    for loader in _LOADERS:
        if isinstance(cfg.get(loader), dict) and "dataset" in cfg[loader]:
            yield from _unlike_dataset(cfg[loader]["dataset"], f"{loader}.dataset")
    hooks = cfg.get("default_hooks")
    for key, hook in hooks.items() if isinstance(hooks, dict) else ():
        if hook is not None and not isinstance(hook, dict):
            yield f"default_hooks.{key}", hook, _PART


def _unlike_dataset(part: Any, path: str) -> Iterator[tuple[str, Any, str]]:
    if not isinstance(part, dict):
        yield path, part, _PART
    elif "dataset" in part:
        yield from _unlike_dataset(part["dataset"], f"{path}.dataset")
    elif "datasets" in part:
        if not _holds(part["datasets"], _LIST):
            yield f"{path}.datasets", part["datasets"], _LIST
        else:
            for index, inner in enumerate(part["datasets"]):
                yield from _unlike_dataset(inner, f"{path}.datasets.{index}")
    else:
        for key in ("data_root", "ann_file"):
            if part.get(key) is not None and not isinstance(part[key], str | PathLike):
                yield f"{path}.{key}", part[key], "a path"
        for key in ("data_prefix", "metainfo", "filter_cfg", "backend_args"):
            if part.get(key) is not None and not isinstance(part[key], dict):
                yield f"{path}.{key}", part[key], _PART
        prefix = part.get("data_prefix") or {}
        for key, value in prefix.items() if isinstance(prefix, dict) else ():
            if value is not None and not isinstance(value, str | PathLike):
                yield f"{path}.data_prefix.{key}", value, "a path"
        if "pipeline" in part and not _holds(part["pipeline"], _LIST):
            yield f"{path}.pipeline", part["pipeline"], _LIST


def _unlike(before: Any, after: Any, path: str = "") -> Iterator[tuple[str, Any, str]]:
    """Find what was a part, or a list of parts, and is no longer one."""
    if after is None:
        return
    if isinstance(before, Mapping):
        if isinstance(after, Mapping):
            for key in before:
                if key in after:
                    yield from _unlike(before[key], after[key], f"{path}.{key}" if path else str(key))
        elif not _holds(after, _PARTS):
            yield path, after, _PARTS
    elif before and _holds(before, _LIST) and not isinstance(before[0], list | tuple):
        if not _holds(after, _PARTS):
            yield path, after, _LIST
        elif not isinstance(after, dict) and len(before) == len(after):
            for index, (one, other) in enumerate(zip(before, after, strict=True)):
                yield from _unlike(one, other, f"{path}.{index}")
