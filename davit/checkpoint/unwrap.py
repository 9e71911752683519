"""Find the weights in what a training saved: its entries, their running average, their adapters."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..choices import EMA_CHOICES
from ..text import as_line, some
from . import adapters
from .function import FUNCTION_ENTRY, likely_function, noted_in, said_beside, with_note
from .names import (
    DAVIT_FUNCTION,
    WRAPPERS,
    CheckpointError,
    Recognised,
    find,
    recognise,
    trace_of,
)
from .pickles import NOT_PLAIN, plain_value

EMA_WRAPPERS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "model_ema_state_dict"),
    *("ema_model_state_dict", "model_state_dict_ema", "ema_weights", "average_model_state", "swa_state_dict"),
)
PLAIN_WRAPPERS = ("state_dict", "model", "model_state_dict", "module", "net", "backbone")
COUNTERS = ("n_averaged", "steps")  # of torch's and OpenMMLab's weight averaging
_DEEPEST_WRAPPER = 6
_ADAPTER_ENTRIES = ("adapter_config", "peft_config", "lora_config")
# a word in a name that says: these follow the trained weights
_AVERAGED = re.compile(
    r"(?:^|[^a-z])(?:s?ema\d*|teacher|averaged?|averaging|avg|swa|polyak|shadow|momentum|target|encoder_k)(?:$|[^a-z])",
    re.IGNORECASE,
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NO_WEIGHTS = re.compile(
    r"optim|sched|scaler|rng|random|loops|callbacks|(?:^|_)(?:amp|grads?|loss)(?:$|_)", re.IGNORECASE
)
_MOST_SEARCHED = 1000  # entries among which weights under other names are looked for


@dataclass
class Checkpoint:
    """Hold the weights of a checkpoint and what was beside them.

    Attributes:
        origin: the file, or what to call the weights in a message.
        state_dict: the weights under the names they have in the file; with adapters merged, if there were some.
        wrapper: the entries that held them, outermost first; empty if the weights are the whole file.
        ema: whether they are the running average of training (EMA).
        metadata: the plain values beside them: epoch, args, metric ...
        skipped: entries beside them that are no plain values: optimizer, scaler, the other weights ...
        choice: which of two DaViTs is meant, where one follows the other: as `ema` of `read_checkpoint`.
        notes: what was done to the weights, for the report of a load.
        unmerged: the weights with their adapters, where there are some: for a model that has such adapters, too.
        problem: why the adapters could not be merged, as the rest of a sentence.
    """

    origin: str
    state_dict: dict[str, Tensor]
    wrapper: tuple[str, ...] = ()
    ema: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    choice: str = "auto"
    notes: tuple[str, ...] = ()
    unmerged: dict[str, Tensor] | None = None
    problem: str = ""

    @cached_property
    def davits(self) -> list[Recognised]:
        """Every DaViT among the weights, recognised once."""
        return find(self.state_dict)

    @cached_property
    def davit(self) -> Recognised | None:
        """The DaViT whose weights these are; None for another architecture, and for two unless one is the EMA."""
        found = self.davits
        if len(found) == 2 and (pair := averaged_and_plain(found, self.state_dict)):
            return pair[self.choice == "never"]
        return found[0] if len(found) == 1 else None

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes that a training noted; None where there are none, or something else."""
        noted = self.metadata.get("class_names")
        return noted if isinstance(noted, list) and all(isinstance(name, str) for name in noted) else None

    @property
    def function(self) -> str:
        """The channel attention that the weights were trained with: "davit", "florence2", or both joined by "+"."""
        likely = likely_function(self.davit, self.state_dict) if self.davit else DAVIT_FUNCTION
        return said_beside(self.metadata) or likely

    def noted(self) -> dict[str, Tensor]:
        """Return the weights, with what the file says about their channel attention noted, if it says something."""
        said = said_beside(self.metadata)
        return self.state_dict if said is None else with_note(self.state_dict, said)

    def require_davit(self) -> Recognised:
        """Return the DaViT whose weights these are.

        Raises:
            CheckpointError: there is none, or more than one; or adapters that could not be merged.
        """
        self.require_merged()
        return self.davit or recognise(self.state_dict, self.origin)

    def require_merged(self) -> None:
        """Raise a `CheckpointError` if the weights have adapters that could not be merged."""
        if self.problem:
            raise CheckpointError(f"{self.origin} {self.problem}")


def averaged_and_plain(
    found: Sequence[Recognised], tensors: Mapping[str, Tensor]
) -> tuple[Recognised, Recognised] | None:
    """Tell which of two DaViTs is the running average of the other; None if neither is.

    Their prefixes say it (``teacher.`` and ``student.``, ``ema_model.module.`` and ``model.``), and both must have the
    same tensors: the teacher of a distillation is another model.
    """
    averaged = [one for one in found if _is_average(one.prefix)]
    plain = [one for one in found if not _is_average(one.prefix)]
    if len(averaged) != 1 or len(plain) != 1:
        return None
    shapes = [
        {key: tensors[name].shape for key, name in one.names.items() if key.slot not in ("head.fc", "level")}
        for one in (averaged[0], plain[0])
    ]
    return (averaged[0], plain[0]) if shapes[0] == shapes[1] else None


def unwrap(
    contents: object,
    origin: str,
    ema: str = "auto",
    find_config: Callable[[], Mapping[str, Any] | None] = lambda: None,
    is_split: bool = False,
) -> Checkpoint:
    """Find the weights in the contents of a file (errors as in `read_checkpoint`).

    Args:
        ema: as in `read_checkpoint`.
        find_config: finds the configuration of adapters; asked if there are adapters and it is not among the contents.
        is_split: the adapters come from another file than the weights that they adapt.
    """
    if ema not in EMA_CHOICES:
        raise ValueError(f"ema={ema!r} is not one of {', '.join(map(repr, EMA_CHOICES))}.")
    wrapper: list[str] = []
    metadata: dict[str, Any] = {}
    skipped: list[str] = []
    is_ema = False
    level = contents
    for _ in range(_DEEPEST_WRAPPER):
        if isinstance(level, torch.nn.Module):
            level = level.state_dict()
        if not isinstance(level, Mapping):
            raise CheckpointError(
                f"{origin} holds a {type(level).__name__}, not weights by name; save the model's state_dict() instead."
            )
        _refuse_partitioned(level, origin)
        entry, averaged, inner = _next(level, ema, origin)
        is_ema = is_ema or averaged
        tensors = {} if entry else {str(name): value for name, value in level.items() if isinstance(value, Tensor)}
        for name, value in level.items():
            if str(name) != entry and str(name) not in tensors:
                plain = plain_value(value)
                if plain is NOT_PLAIN:
                    skipped.append(str(name))
                else:
                    metadata[str(name)] = plain
        if entry is None:
            break
        wrapper.append(entry)
        level = inner
    else:
        raise CheckpointError(f"{origin} nests its weights endlessly ({'/'.join(wrapper)}): it is damaged.")
    if not tensors:
        raise CheckpointError(_why_none(level, origin))
    if (noted := noted_in(level)) is not None:
        metadata[FUNCTION_ENTRY] = noted
    tensors = {name: tensor.detach() for name, tensor in tensors.items()}
    tensors, is_pair = _of_mmcv(tensors, ema, skipped)
    checkpoint = Checkpoint(origin, tensors, tuple(wrapper), is_ema or is_pair, metadata, tuple(skipped), ema)
    _merge_adapters(checkpoint, find_config, is_split)
    if not checkpoint.ema and len(checkpoint.davits) == 2 and checkpoint.davit:
        checkpoint.ema = ema != "never"
    if ema == "always" and not checkpoint.ema:
        raise CheckpointError(
            f"{origin} has no EMA weights ({', '.join(EMA_WRAPPERS[:3])}, an average in callbacks, a teacher beside a "
            "student), and ema='always' insists on them; use ema='auto' to take the plain ones where there are no "
            "others."
        )
    return checkpoint


def _next(level: Mapping[Any, Any], ema: str, origin: str) -> tuple[str | None, bool, Any]:
    """Choose the entry that leads to the weights: its name, whether it is the average, and what it holds."""
    names = PLAIN_WRAPPERS if ema == "never" else EMA_WRAPPERS + PLAIN_WRAPPERS
    if (plain := _plain_beside_average(level)) is not None:
        # Lightning's and mmengine's averaging store the average under the name that loaders read
        chosen = plain if ema == "never" else "state_dict"
        return chosen, ema != "never", level[chosen]
    if ema != "never" and (found := _average_in_callbacks(level)):
        return found
    entry = next((name for name in names if _leads_to_weights(level.get(name))), None)
    if entry is not None:
        return entry, entry in EMA_WRAPPERS, level[entry]
    if any(isinstance(value, Tensor) and "." in str(name) for name, value in level.items()) or "param_groups" in level:
        return None, False, None
    return _other_entry(level, ema, origin)


def _plain_beside_average(level: Mapping[Any, Any]) -> str | None:
    """Return the entry with the weights that were trained, where ``state_dict`` holds their average."""
    if not _leads_to_weights(level.get("state_dict")):
        return None
    if "averaging_state" in level and _leads_to_weights(level.get("current_model_state")):
        return "current_model_state"
    meta = level.get("meta")
    is_mmengine = "message_hub" in level or (isinstance(meta, Mapping) and "mmengine_version" in meta)
    return "ema_state_dict" if is_mmengine and _leads_to_weights(level.get("ema_state_dict")) else None


def _average_in_callbacks(level: Mapping[Any, Any]) -> tuple[str, bool, Any] | None:
    """Find the running average that a callback of Lightning keeps, by the names of the weights themselves."""
    callbacks, plain = level.get("callbacks"), level.get("state_dict")
    if not isinstance(callbacks, Mapping) or not isinstance(plain, Mapping):
        return None
    wanted = {_bare(name) for name, value in plain.items() if isinstance(value, Tensor)}
    waiting: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [(("callbacks",), callbacks)]
    for _ in range(_MOST_SEARCHED):
        if not waiting:
            break
        path, one = waiting.pop(0)
        named = [_bare(name) for name, value in one.items() if isinstance(value, Tensor) and name not in COUNTERS]
        if named and wanted.issuperset(named) and len(named) * 2 > len(wanted) and _is_average("/".join(path)):
            return "/".join(path), True, one
        if len(path) < _DEEPEST_WRAPPER:
            waiting += [((*path, str(name)), value) for name, value in one.items() if isinstance(value, Mapping)]
    return None


def _is_average(text: str) -> bool:
    """Return whether a name speaks of a running average, in whichever way its words are joined."""
    return _AVERAGED.search(_CAMEL.sub("_", text)) is not None


def _bare(name: object) -> str:
    """Return a tensor's name without the names of wrappers, and of the model's place in a LightningModule."""
    parts = [part for part in str(name).split(".") if part not in WRAPPERS]
    while len(parts) > 1 and parts[0] in ("model", "net", "ema_model", "backbone"):
        parts = parts[1:]
    return ".".join(parts)


def _other_entry(level: Mapping[Any, Any], ema: str, origin: str) -> tuple[str | None, bool, Any]:
    """Choose an entry of any name, where only one can be meant.

    Raises:
        CheckpointError: several hold a DaViT.
    """
    entries = {
        str(name): value
        for name, value in list(level.items())[:_MOST_SEARCHED]
        if isinstance(value, Mapping | torch.nn.Module)
        and not _NO_WEIGHTS.search(str(name))
        and not (isinstance(value, Mapping) and "param_groups" in value)
        and _leads_to_named_weights(value)
    }
    if len(entries) > 1:
        entries = {name: value for name, value in entries.items() if find(_names_below(value))} or entries
    averaged = [name for name in entries if _is_average(name)]
    plain = [name for name in entries if name not in averaged]
    if len(averaged) == 1 and len(plain) == 1:
        chosen = plain[0] if ema == "never" else averaged[0]
        return chosen, ema != "never", entries[chosen]
    if len(entries) > 1:
        raise CheckpointError(
            f"{origin} holds several sets of weights, {some(entries, 5)}, and which is meant is not said: read the "
            "file with davit.checkpoint.read_contents, and pass one of them."
        )
    entry = next(iter(entries), None)
    return (None, False, None) if entry is None else (entry, entry in averaged, entries[entry])


def _leads_to_weights(value: object) -> bool:
    level = {id(value): value} if isinstance(value, torch.nn.Module | Mapping) else {}
    for _ in range(_DEEPEST_WRAPPER + 1):
        if any(isinstance(one, torch.nn.Module | Tensor) for one in level.values()):
            return True
        # each once, as a crafted dict may hold one a thousand times
        level = {id(inner): inner for one in level.values() if isinstance(one, Mapping) for inner in one.values()}
    return False


def _leads_to_named_weights(value: object) -> bool:
    """Return whether tensors with dotted names lie below: an optimizer's state has numbers and short words."""
    return isinstance(value, torch.nn.Module) or any("." in name for name in _names_below(value))


def _names_below(value: object) -> list[str]:
    """List the names of tensors some levels below, each dictionary once."""
    if isinstance(value, torch.nn.Module):
        return list(value.state_dict())
    names: list[str] = []
    level = {id(value): value}
    for _ in range(_DEEPEST_WRAPPER):
        inner: dict[int, object] = {}
        for one in level.values():
            if isinstance(one, Mapping):
                names += [str(name) for name, tensor in one.items() if isinstance(tensor, Tensor)]
                inner |= {id(below): below for below in one.values() if isinstance(below, Mapping)}
        level = inner
    return names


def _why_none(level: Mapping[Any, Any], origin: str) -> str:
    held = ", ".join(as_line(name) for name in list(level)[:5]) or "nothing"
    trace = trace_of(_names_below(level))
    if trace is None and ("param_groups" in level or any("optim" in str(name) for name in level)):
        trace = "the state of an optimizer; give the file that the model was saved in"
    if trace is not None:
        return f"{origin} holds no weights (it holds {held}), but {trace}."
    return (
        f"{origin} holds no tensors (it holds {held}), so there is nothing to load; give the file that the weights "
        "were saved in."
    )


def _refuse_partitioned(level: Mapping[Any, Any], origin: str) -> None:
    """Raise a `CheckpointError` for a state of DeepSpeed whose weights lie in pieces in other files."""
    shapes = level.get("param_shapes")
    module = level.get("module")
    if shapes is None or not isinstance(module, Mapping):
        return
    groups = shapes if isinstance(shapes, list | tuple) else [shapes]
    told = {name: tuple(shape) for group in groups if isinstance(group, Mapping) for name, shape in group.items()}
    pieces = [
        str(name)
        for name, tensor in module.items()
        if isinstance(tensor, Tensor) and tuple(tensor.shape) != told.get(name, tuple(tensor.shape))
    ]
    absent = [str(name) for name in told if name not in module]
    if pieces or absent:
        raise CheckpointError(
            f"{origin} is of a training with DeepSpeed's ZeRO-3, whose weights lie in pieces in the files of all "
            f"processes ({some(pieces or absent, 3)}). DeepSpeed puts a script into the folder that joins them: "
            "python zero_to_fp32.py . OUTPUT_DIR, and give OUTPUT_DIR."
        )


def _of_mmcv(tensors: dict[str, Tensor], ema: str, skipped: list[str]) -> tuple[dict[str, Tensor], bool]:
    """Take apart what the EMA hook of mmcv 1 stored: the average by name, the trained weights as ``ema_`` buffers."""
    trained = {name: other for name in tensors if (other := f"ema_{name.replace('.', '_')}") in tensors}
    if not trained:
        return tensors, False
    buffers = set(trained.values())
    skipped.append(f"ema_* ({len(buffers)} tensors)" if ema != "never" else f"the average of {len(buffers)} tensors")
    kept = {name: tensor for name, tensor in tensors.items() if name not in buffers}
    if ema == "never":
        return {name: tensors[trained.get(name, name)] for name in kept}, False
    return kept, True


def _merge_adapters(
    checkpoint: Checkpoint, find_config: Callable[[], Mapping[str, Any] | None], is_split: bool
) -> None:
    tensors = checkpoint.state_dict
    if not any(map(adapters.has_adapters, tensors)):
        return
    config = _config_among(checkpoint.metadata.items()) or find_config()
    merged = adapters.merge(tensors, config, is_split)
    assert merged is not None
    checkpoint.unmerged, checkpoint.problem = tensors, merged.problem
    if not merged.problem:
        checkpoint.state_dict, checkpoint.notes = merged.tensors, (merged.note,)


def _config_among(values: Iterable[tuple[str, Any]]) -> Mapping[str, Any] | None:
    """Find the configuration of adapters beside the weights; that of the one adapter, where they are by name."""
    for name, value in values:
        if name in _ADAPTER_ENTRIES and isinstance(value, dict):
            inner = list(value.values())
            if len(inner) == 1 and isinstance(inner[0], dict):
                value = inner[0]
            if "lora_alpha" in value or "peft_type" in value:
                return value
    return None
