"""Check what a state that was read is made of, before any of it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..checkpoint import CheckpointError

Check = Callable[[Any], bool]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _table(key: Check, value: Check) -> Check:
    return lambda found: isinstance(found, Mapping) and all(key(k) and value(v) for k, v in found.items())


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _is_any(_: Any) -> bool:
    return True


def _is_plain(value: Any) -> bool:
    """Tell whether a value is one that a flag can have: compared with another, it gives true or false."""
    if isinstance(value, Mapping):
        return all(_is_text(key) and _is_plain(one) for key, one in value.items())
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _is_epoch(value: Any) -> bool:
    return _is_whole(value) or (_is_text(value) and value.isdecimal())


def _is_group(value: Any) -> bool:
    return _table(_is_text, _is_any)(value) and _list_of(_is_whole)(value.get("params"))


def _is_optimizer(value: Any) -> bool:
    return (
        _table(_is_text, _is_any)(value)
        and _table(_is_any, _table(_is_text, _is_any))(value.get("state"))
        and _list_of(_is_group)(value.get("param_groups"))
    )


def _is_content(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and _is_number(value[0]) and _is_text(value[1])


def _is_split(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and _is_whole(value.get("pictures"))
        and all(fact in value and _or_none(_is_text)(value[fact]) for fact in ("classes", "files"))
        and _list_of(_is_content)(value.get("contents", []))
    )


_RESULTS = _table(_is_text, _is_number)

# what each entry of a state of ours has to be, in words and as a test
_ENTRIES: dict[str, tuple[str, Check]] = {
    **dict.fromkeys(("epoch", "step", "updates"), ("a whole number of 0 or more", _is_whole)),
    **dict.fromkeys(
        ("global_batch", "steps_per_epoch", "num_epochs", "micro_batch", "eval_batch"),
        ("a whole number of 1 or more", lambda value: _is_whole(value) and value > 0),
    ),
    **dict.fromkeys(("state_dict", "state_dict_ema"), ("tensors by name", _table(_is_text, _is_any))),
    **dict.fromkeys(("arch", "precision", "metric_name", "sizes"), ("a text", _is_text)),
    **dict.fromkeys(("scheduler", "plateau", "scaler"), ("values by name", _table(_is_text, _is_any))),
    "args": ("plain values by name", _table(_is_text, _is_plain)),
    "metric": ("a number", _or_none(_is_number)),
    "optimizer": ("the state of an optimizer", _is_optimizer),
    "parameters": ("lists of names", _list_of(_list_of(_is_text))),
    "totals": ("numbers by name", _RESULTS),
    "kept": ("numbers by epoch", _table(_is_epoch, _is_number)),
    "results": ("numbers by epoch and name", _table(_is_epoch, _RESULTS)),
    "bad_images": ("texts by file", _table(_is_text, _is_text)),
    "class_names": ("a list of texts", _list_of(_is_text)),
    "data": (
        "facts of two splits",
        lambda value: isinstance(value, Mapping) and all(_is_split(value.get(split)) for split in ("train", "val")),
    ),
}
_NEEDED = (
    *(
        "epoch",
        "step",
        "metric",
        "global_batch",
        "state_dict",
        "optimizer",
        "scaler",
        "updates",
        "scheduler",
        "totals",
    ),
    *("kept", "bad_images", "args", "precision", "class_names"),
)


def check_types(state: Mapping[str, Any], path: Path) -> None:
    """Check the types of what a state holds, as far as it holds it.

    Raises:
        CheckpointError: an entry is not what it has to be.
    """
    for name, (wanted, check) in _ENTRIES.items():
        if name in state and not check(state[name]):
            found = state[name]
            shown = repr(found)[:60] if isinstance(found, int | float | str) else f"a {type(found).__name__}"
            raise CheckpointError(f"{path} is no checkpoint of a run: its {name} is {shown} in place of {wanted}.")


def check_whole(state: Mapping[str, Any]) -> None:
    """Check that a state of ours holds all that a run needs; raises `CheckpointError` where it does not."""
    if missing := [name for name in _NEEDED if name not in state]:
        raise CheckpointError(f"the checkpoint lacks {', '.join(missing)}, and a run cannot continue from it.")


def are_alike(fresh: Any, saved: Any) -> bool:
    """Return whether a saved value can stand in the place of a fresh one: numbers for numbers, lists of one length."""
    if fresh is None:
        return saved is None or isinstance(saved, int | float | list | tuple)
    if saved is None:
        return isinstance(fresh, bool)
    if isinstance(fresh, bool) or isinstance(saved, bool):
        return isinstance(fresh, bool) and isinstance(saved, bool)
    if _is_number(fresh):
        return _is_number(saved)
    if isinstance(fresh, list | tuple):
        is_list = isinstance(saved, list | tuple) and len(saved) == len(fresh)
        return is_list and all(are_alike(one, other) for one, other in zip(fresh, saved, strict=True))
    if isinstance(fresh, Mapping):
        return isinstance(saved, Mapping) and all(are_alike(fresh[key], saved[key]) for key in fresh if key in saved)
    return isinstance(saved, type(fresh))
