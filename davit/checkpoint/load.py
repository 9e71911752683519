"""Load a checkpoint into a model: match tensors by name, account for each, load all or nothing."""

import logging
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from timm.models import adapt_input_conv
from timm.utils import unwrap_model
from torch import Tensor, nn

from .adapters import has_adapters
from .function import function_of_model, likely_function, said_beside, why_another
from .names import (
    SPELLINGS,
    WRAPPERS,
    CheckpointError,
    Key,
    Recognised,
    find,
    structure_of,
    summarise,
    without_wrappers,
)
from .read import Source, open_source
from .unwrap import COUNTERS, Checkpoint

_logger = logging.getLogger(__name__)

HEAD_CHOICES = ("auto", "require", "drop")
_STATE = "._extra_state"  # the end of the name of a module's state that is no tensor
# layers of detectors and segmentors whose width is the number of classes
_CLASSIFIERS = re.compile(r"(?:.*\.)?(?:fc_cls|fc_reg|retina_cls|conv_logits|conv_seg)(?=\.)")
_DAVITS_LAYERS = SPELLINGS["davit"].templates
_OUTSIDE = "outside"  # the slot of a tensor that is not under the DaViT's prefix
# reasons why a tensor may be left out
_ADDED = "added to the model, and not in the checkpoint"
_COUNTER = "a counter of weight averaging"
_NO_LEVEL = "the model has no norm for this level"
_NO_LEVEL_THERE = "the checkpoint has no norm for this level"
_NO_HEAD_HERE = "the model has no head"
_NO_HEAD_THERE = "the checkpoint has no head"


@dataclass
class LoadReport:
    """Say what came into the model, and what did not.

    Attributes:
        origin: the file.
        wrapper, ema: which entry of the file, and whether it is the running average of training.
        layout, target_layout: the names in the file and in the model; "plain" for any other architecture.
        tensors_loaded, tensors_total: of the model's tensors.
        params_loaded, params_total: of the model's values.
        renamed: name in the file to name in the model, where they differ.
        dropped: name in the file to the reason why it was left out.
        missing: name in the model to the reason why it kept its own values.
        adapted: name in the model to what was done to make the tensor fit.
        cast: name in the model to the change of dtype.
        nonfinite: names in the model that received NaN or infinite values.
        notes: what was done to the weights before, and what else there is to know.
    """

    origin: str
    wrapper: tuple[str, ...] = ()
    ema: bool = False
    layout: str = "plain"
    target_layout: str = "plain"
    tensors_loaded: int = 0
    tensors_total: int = 0
    params_loaded: int = 0
    params_total: int = 0
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    adapted: dict[str, str] = field(default_factory=dict)
    cast: dict[str, str] = field(default_factory=dict)
    nonfinite: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """The share of the model's values that came from the checkpoint, 0 to 1."""
        return self.params_loaded / self.params_total if self.params_total else 0.0

    @property
    def complete(self) -> bool:
        """Whether everything in the file went in as it was, and the model kept nothing of its own."""
        return not (self.dropped or self.missing or self.adapted or self.nonfinite)

    def __str__(self) -> str:
        entry = f" ({'/'.join(self.wrapper)}{', the EMA weights' if self.ema else ''})" if self.wrapper else ""
        names = self.layout if self.layout == self.target_layout else f"{self.layout} -> {self.target_layout}"
        parts = [
            f"{self.origin}{entry}: loaded {self.tensors_loaded} of the model's {self.tensors_total} "
            f"tensors, {100 * self.share:.4g} % of its {self.params_total:,} parameters (layout {names})"
        ]
        if self.renamed:
            parts.append(f"renamed {len(self.renamed)}")
        parts += self.notes
        parts += [f"adapted {text}" for text in summarise(self.adapted)]
        parts += [f"cast {text}" for text in summarise(self.cast)]
        parts += [f"dropped {text}" for text in summarise(self.dropped)]
        parts += [f"kept the model's own values of {text}" for text in summarise(self.missing, every=True)]
        if self.nonfinite:
            parts.append(f"NaN or infinite values in {len(self.nonfinite)} tensors ({', '.join(self.nonfinite[:3])})")
        return "; ".join(parts) + "."


def load_checkpoint(
    model: nn.Module,
    source: Source,
    *,
    ema: str = "auto",
    head: str = "auto",
    allow_different_function: bool = False,
    logger: logging.Logger | None = None,
) -> LoadReport:
    """Load a checkpoint into a model, or leave the model as it is and say why.

    Tensors of the same name go together, whatever the model is: a model's own weights load into it, also those of
    layers that it alone has. Only the rest is translated: any layout loads into any DaViT, ours, the pyramid, timm's
    port, also inside DistributedDataParallel or torch.compile, or on the meta device (whose tensors then get memory).
    Another architecture, and a whole detector or segmentor, loads under its own names.

    All that may differ is: a head for another number of classes, of another kind, or none; the final norm and the
    norms of levels, which a backbone and a classifier do not share; stages that a pyramid does not build; an input
    convolution for another number of channels; tensors that an edit added to a DaViT, which keep their own values.
    All of it is reported, anything else stops the load.

    Args:
        source: a file, a `Checkpoint`, or a state dict (or what a training checkpoint holds).
        ema: as in `read_checkpoint`; for a `Checkpoint` the choice was made when it was read.
        head: "auto" loads the classifier if it fits and otherwise leaves the model's own, "drop" leaves the
            model's own in any case (to fine-tune), "require" insists on it and on every other tensor of the model
            (to evaluate, to continue a training). Of a detector or segmentor, each layer that tells classes apart.
        allow_different_function: load Florence-2's weights into a DaViT or the reverse, although the channel
            attention computes something else with them.
        logger: gets the report, as a warning unless it is complete; None for this module's own.

    Raises:
        CheckpointError: the file cannot be read, or does not fit; the model is unchanged.
    """
    if head not in HEAD_CHOICES:
        raise ValueError(f"head={head!r} is not one of {', '.join(map(repr, HEAD_CHOICES))}.")
    checkpoint = open_source(source, ema)
    state = model.state_dict()
    target = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    if checkpoint.unmerged is not None and any(map(has_adapters, target)):
        checkpoint = replace(checkpoint, state_dict=checkpoint.unmerged, problem="", notes=())
    checkpoint.require_merged()
    davits = find(target)
    pairing: _DavitPairing | _PlainPairing
    is_davit = len(davits) == 1 and not set(davits[0].outside) - set(COUNTERS)
    theirs = checkpoint.require_davit() if is_davit and checkpoint.davits else checkpoint.davit
    if len(davits) == 1 and theirs is not None and not allow_different_function:
        _require_function(model, checkpoint, theirs, davits[0])
    if is_davit and theirs is not None:
        pairing = _DavitPairing(theirs, davits[0], is_one_of_two=len(checkpoint.davits) > 1)
    else:
        pairing = _PlainPairing(checkpoint, target, davits, getattr(unwrap_model(model), "pretrained_cfg", None) or {})
    plan = _match(pairing, checkpoint, target, head)
    _take_states(plan, pairing.prefixes, checkpoint, [name for name in state if name not in target])
    report = plan.report
    for name, reason in report.missing.items():
        if head == "require" and reason != _COUNTER:
            plan.problems[name] = f"missing: {reason}"
        elif name in target and target[name].is_meta:
            plan.problems[name] = "not loaded, and the model, on the meta device, has no values of its own"
    if plan.problems:
        raise CheckpointError(_why_unfit(checkpoint, plan, target, davits))
    _load(model, plan.copies, plan.states)
    report.tensors_loaded, report.tensors_total = len(plan.copies), len(target)
    report.params_loaded = sum(target[name].numel() for name in plan.copies)
    report.params_total = sum(tensor.numel() for tensor in target.values())
    report.nonfinite = tuple(name for name, tensor in plan.copies.items() if not torch.isfinite(tensor).all())
    (logger or _logger).log(logging.INFO if report.complete else logging.WARNING, "%s", report)
    return report


def _require_function(model: nn.Module, checkpoint: Checkpoint, theirs: Recognised, ours: Recognised) -> None:
    """Raise a `CheckpointError` if the weights are of another channel attention than the model's."""
    stated, likely = said_beside(checkpoint.metadata), likely_function(theirs, checkpoint.state_dict)
    reason = why_another(stated, likely, theirs, function_of_model(model, ours), checkpoint.origin)
    if reason is not None:
        raise CheckpointError(reason)


# ---- which tensors are the same, and what may differ ----

# A tensor's place in a DaViT, or the name without the prefix of all names. In two DaViTs, tensors of the same name
# have the same identity even if no table knows the name.
Identity: TypeAlias = Key | str


class _DavitPairing:
    """Pair the tensors of two DaViTs in any two layouts, and decide which may be left out.

    Attributes:
        theirs, ours: identity to name, in the checkpoint and in the model.
        prefixes, layouts: of the names in the checkpoint and in the model.
    """

    def __init__(self, theirs: Recognised, ours: Recognised, is_one_of_two: bool = False) -> None:
        if any(key.slot == "head.norm" for key in ours.names):
            theirs = theirs.as_classifier()
        self.theirs, self.ours = _identities(theirs), _identities(ours)
        self.prefixes, self.layouts = (theirs.prefix, ours.prefix), (theirs.layout, ours.layout)
        self._their_slots = {one.slot for one in self.theirs if isinstance(one, Key)}
        self._our_slots = {one.slot for one in self.ours if isinstance(one, Key)}
        self._last_stage = max(key.stage for key in ours.names)
        # all that a wrapper holds is the model, unless that has a place in something larger
        around = theirs.prefix.split(".")[:-1]
        is_wrapped = bool(around) and set(around) <= set(WRAPPERS) and not is_one_of_two
        self._why_outside = None if is_wrapped else f"not under {theirs.prefix!r}, so not the DaViT's"

    def head_of(self, one: Identity) -> str | None:
        """Return the classifier layer that a tensor is of, None for any other tensor."""
        return one.slot if isinstance(one, Key) and one.slot == "head.fc" else None

    def is_stem(self, one: Identity) -> bool:
        """Return whether this is the weight of the input convolution."""
        return isinstance(one, Key) and one.slot == "stem.proj" and one.param == "weight"

    def why_dropped(self, one: Identity) -> str | None:
        """Return why a tensor that only the checkpoint has may be left out, None if it may not."""
        if not isinstance(one, Key):
            return _COUNTER if one in COUNTERS else None
        if one.slot == _OUTSIDE:
            return self._why_outside
        if one.slot == "level":
            return _NO_LEVEL
        if self._our_slots & {"head.norm", "head.fc"}:
            return _NO_HEAD_HERE if one.slot == "head.fc" and "head.fc" not in self._our_slots else None
        if one.slot in ("head.norm", "head.fc"):
            return _NO_HEAD_HERE
        return f"the model ends with stage {self._last_stage}" if one.stage > self._last_stage else None

    def why_missing(self, one: Identity) -> str | None:
        """Return why a tensor that only the model has may keep its values, None if it may not."""
        if not isinstance(one, Key):
            # averaging holds the model under a name; without one it is a tensor of the model's own
            return _COUNTER if one in COUNTERS and self.prefixes[1] else _ADDED
        if one.slot == "level":
            return _NO_LEVEL_THERE
        if one.slot == "head.fc" and "head.fc" not in self._their_slots:
            return _NO_HEAD_THERE
        if one.slot == "head.norm" and not self._their_slots & {"head.norm", "head.fc"}:
            return "the checkpoint is of a backbone, without the final norm"
        return None if one.slot in _DAVITS_LAYERS and one.param in ("weight", "bias") else _ADDED


def _identities(found: Recognised) -> dict[Identity, str]:
    outside = [(name if name in COUNTERS else Key(_OUTSIDE, 0, 0, 0, name), name) for name in found.outside]
    return dict([*found.names.items(), *found.additions.items(), *outside])


class _PlainPairing:
    """Pair tensors of the same name, but for wrappers around all of them (attributes and methods as above)."""

    def __init__(
        self, checkpoint: Checkpoint, target: Mapping[str, Tensor], davits: list[Recognised], cfg: Mapping[str, Any]
    ) -> None:
        self.prefixes = _shared_prefix(checkpoint.state_dict), _shared_prefix(target)
        self.theirs, self.ours = _bare(checkpoint.state_dict, self.prefixes[0]), _bare(target, self.prefixes[1])
        if self.theirs.keys().isdisjoint(self.ours):
            # a checkpoint may name the model's place in something larger
            wrappers = ("model", "net", "backbone", *WRAPPERS)
            self.prefixes = _shared_prefix(checkpoint.state_dict, wrappers), self.prefixes[1]
            self.theirs = _bare(checkpoint.state_dict, self.prefixes[0])
        self.layouts = "plain", "plain"
        self.outside: frozenset[str] = frozenset()
        if len(davits) == 1 and davits[0].outside and checkpoint.davit is not None:
            self._follow_backbone(checkpoint.davit, davits[0], checkpoint.state_dict)
        self._classifiers, self._stems = _inside(cfg.get("classifier")), _inside(cfg.get("first_conv"))
        self._their_heads = {self.head_of(one) for one in self.theirs}
        self._our_heads = {self.head_of(one) for one in self.ours}
        self._added = {name for davit in davits for name in davit.additions.values()}
        self._levels = {
            name for davit in checkpoint.davits for key, name in davit.names.items() if key.slot == "level"
        }

    def _follow_backbone(self, theirs: Recognised, ours: Recognised, source: Mapping[str, Tensor]) -> None:
        """Pair two detectors by the place of their backbones, which may be a teacher's, and in two layouts."""
        place = ours.prefix.removeprefix(self.prefixes[1])
        found = re.match(rf"(?P<around>|.*?\.){re.escape(place)}", theirs.prefix)
        if found is None:
            return
        around = found["around"]
        inside = {name: name[len(around) :] for name in source if name.startswith(around)}
        self.outside = frozenset(source.keys() - inside.keys() - set(COUNTERS))
        rest = without_wrappers(inside, WRAPPERS)
        self.theirs = {one: name for name, one in rest.items()}
        self.prefixes = around, self.prefixes[1]
        if theirs.layout == ours.layout and theirs.prefix == around + place:
            return
        self.layouts = theirs.layout, ours.layout
        named = {name: key for key, name in theirs.names.items()}
        self.theirs = {named.get(name, one): name for name, one in rest.items()}
        named = {name: key for key, name in ours.names.items()}
        self.ours = {named.get(name, one): name for one, name in self.ours.items()}

    def head_of(self, one: Identity) -> str | None:
        if isinstance(one, Key):
            return None
        if self._classifiers:
            return next((layer for layer in self._classifiers if one.startswith(layer)), None)
        found = _CLASSIFIERS.match(one)
        return found[0] if found else None

    def is_stem(self, one: Identity) -> bool:
        return isinstance(one, str) and one.startswith(self._stems) and one.endswith(".weight")

    def why_dropped(self, one: Identity) -> str | None:
        if isinstance(one, Key) and one.slot in ("head.norm", "head.fc"):
            return _NO_HEAD_HERE
        if (layer := self.head_of(one)) and layer not in self._our_heads:
            return _NO_HEAD_HERE
        if self.theirs[one] in self._levels:
            return _NO_LEVEL
        return _COUNTER if one in COUNTERS else None

    def why_missing(self, one: Identity) -> str | None:
        if isinstance(one, Key) and one.slot == "level":
            return _NO_LEVEL_THERE
        if (layer := self.head_of(one)) and layer not in self._their_heads:
            return _NO_HEAD_THERE
        if self.ours[one] in self._added:
            return _ADDED
        # averaging holds the model under a name; without one it is a tensor of the model's own
        return _COUNTER if one in COUNTERS and self.prefixes[1] else None


def _inside(modules: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return how the names of tensors begin in the module or modules that a ``pretrained_cfg`` names."""
    named = [modules] if isinstance(modules, str) else modules or []
    return tuple(f"{name}." for name in named)


def _bare(names: Iterable[str], prefix: str) -> dict[Identity, str]:
    """Map bare names, without wrappers, to full names."""
    return {
        bare: name
        for name, bare in without_wrappers({one: one.removeprefix(prefix) for one in names}, WRAPPERS).items()
    }


def _shared_prefix(names: Iterable[str], wrappers: tuple[str, ...] = WRAPPERS) -> str:
    """Return what wrappers put before every name."""
    bare = [name for name in names if name not in COUNTERS]
    prefix = ""
    while bare:
        first = bare[0].split(".", 1)[0]
        if first not in wrappers or not all(name.startswith(first + ".") for name in bare):
            break
        bare = [name[len(first) + 1 :] for name in bare]
        prefix += first + "."
    return prefix


# ---- the plan: nothing below touches the model before `_load` ----


@dataclass
class _Plan:
    """Say which tensor goes where; all but the problems by the model's names."""

    report: LoadReport
    copies: dict[str, Tensor] = field(default_factory=dict)
    states: dict[str, Any] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


def _match(
    pairing: _DavitPairing | _PlainPairing, checkpoint: Checkpoint, target: Mapping[str, Tensor], head: str
) -> _Plan:
    plan = _Plan(LoadReport(checkpoint.origin, checkpoint.wrapper, checkpoint.ema, *pairing.layouts))
    named = {one.layout: one.spelling.note for one in checkpoint.davits}
    notes = [note for layout, note in named.items() if note and set(pairing.layouts) - {layout}]
    plan.report.notes = (*checkpoint.notes, *notes)
    source = checkpoint.state_dict
    if isinstance(pairing, _PlainPairing):
        plan.report.dropped |= dict.fromkeys(
            sorted(pairing.outside), f"not under {pairing.prefixes[0]!r}, and the model is"
        )
    apart = _heads_apart(pairing, source, target, head)
    for one, name in pairing.theirs.items():
        reason = apart.get(pairing.head_of(one))
        if reason is None and one not in pairing.ours:
            reason = pairing.why_dropped(one)
            if reason is None:
                plan.problems[name] = "unexpected: the model has no such tensor"
        if reason is not None:
            plan.report.dropped[name] = reason
    for one, name in pairing.ours.items():
        if (reason := apart.get(pairing.head_of(one))) is not None:
            plan.report.missing[name] = reason
        elif one in pairing.theirs:
            their_name = pairing.theirs[one]
            _fit(plan, their_name, source[their_name], name, target[name], pairing.is_stem(one))
        elif (reason := pairing.why_missing(one)) is not None:
            plan.report.missing[name] = reason
        else:
            plan.problems[name] = "missing in the checkpoint"
    return plan


def _heads_apart(
    pairing: _DavitPairing | _PlainPairing, source: Mapping[str, Tensor], target: Mapping[str, Tensor], head: str
) -> dict[str | None, str]:
    """Return the classifier layers that stay apart as a whole, and why."""
    apart: dict[str | None, str] = {}
    for layer in {pairing.head_of(one) for one in (*pairing.theirs, *pairing.ours)} - {None}:
        theirs = {one: source[name].shape for one, name in pairing.theirs.items() if pairing.head_of(one) == layer}
        ours = {one: target[name].shape for one, name in pairing.ours.items() if pairing.head_of(one) == layer}
        if theirs.keys() - ours.keys() and ours.keys() - theirs.keys():
            apart[layer] = "the checkpoint's head is of another kind than the model's"
        for one in theirs.keys() & ours.keys():
            (width, *their_rest), (our_width, *our_rest) = theirs[one] or (0,), ours[one] or (0,)
            if width != our_width and their_rest == our_rest:
                apart[layer] = f"another number of classes: {width} outputs in the file, {our_width} in the model"
        if head == "drop":
            apart[layer] = "head='drop' was asked for"
    return apart


def _fit(plan: _Plan, source_name: str, tensor: Tensor, name: str, wanted: Tensor, is_stem: bool) -> None:
    """Plan one copy, with the input convolution adapted if only its channels differ."""
    theirs, ours = tuple(tensor.shape), tuple(wanted.shape)
    is_plain = type(tensor) in (Tensor, nn.Parameter)
    if not is_plain or tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized:
        kind = "on the meta device, sparse or quantized" if is_plain else f"but a {type(tensor).__name__}"
        plan.problems[source_name] = f"has no plain values in the checkpoint ({kind})"
    # timm's rule for other channels starts from three
    if is_stem and len(theirs) == 4 and theirs[1] == 3 and ours == (theirs[0], ours[1], *theirs[2:]) != theirs:
        tensor = adapt_input_conv(ours[1], tensor)
        plan.report.adapted[name] = f"from {theirs[1]} to {ours[1]} input channels"
    elif theirs != ours:
        plan.problems[source_name] = f"is {theirs} in the checkpoint, {ours} in the model"
    if tensor.dtype != wanted.dtype:
        change = f"from {tensor.dtype} to {wanted.dtype}".replace("torch.", "")
        if tensor.is_floating_point() and wanted.is_floating_point():
            plan.report.cast[name] = change
        else:
            plan.problems[source_name] = f"cannot be converted {change}"
    plan.copies[name] = tensor
    if name != source_name:
        plan.report.renamed[source_name] = name


def _take_states(plan: _Plan, prefixes: tuple[str, str], checkpoint: Checkpoint, names: Iterable[str]) -> None:
    """Plan the states of modules that are no tensors (``get_extra_state``); in a file they lie beside the weights."""
    theirs, ours = prefixes
    there = {theirs + name.removeprefix(ours): name for name in names}
    for name, mine in there.items():
        if name in checkpoint.metadata:
            plan.states[mine] = checkpoint.metadata[name]
        else:
            plan.report.missing[mine] = "not in the checkpoint as a plain value"
    for name in (*checkpoint.metadata, *checkpoint.skipped):
        if name.endswith(_STATE) and name not in there:
            plan.problems[name] = "unexpected: the model has no module with such a state"


def _why_unfit(checkpoint: Checkpoint, plan: _Plan, target: Mapping[str, Tensor], davits: Sequence[Recognised]) -> str:
    """Say why a checkpoint does not fit, and what it would fit."""
    theirs, ours = checkpoint.davit, davits[0] if len(davits) == 1 else None
    kinds = summarise(plan.problems)
    more = f"; and {len(kinds) - 5} more" if len(kinds) > 5 else ""
    text = f"{checkpoint.origin} does not fit the model: {'; '.join(kinds[:5])}{more}. "
    if theirs and ours:
        source_structure = structure_of(theirs, checkpoint.state_dict)
        our_structure = structure_of(ours, target)
        text += f"The checkpoint has {source_structure}; the model has {our_structure}. "
        variants = source_structure.variants()
        if variants and variants != our_structure.variants():
            text += f"Create the model the checkpoint is of, {' or '.join(map(repr, variants))}. "
    elif theirs:
        text += "The checkpoint is a DaViT's, the model is not (of a detector, pass the backbone alone). "
    elif ours:
        text += (
            "The checkpoint is of another architecture, or of a DaViT whose layers were replaced: build the model "
            "that it was saved from and load it there. "
        )
    elif len(plan.problems) > len(target):
        text += "They are two architectures; create the model that the checkpoint was saved from. "
    return text + "Nothing was loaded."


def _load(model: nn.Module, tensors: Mapping[str, Tensor], states: Mapping[str, Any]) -> None:
    """Hand the modules what was found to fit, tensors and states; parameters on the meta device get memory."""
    # through load_state_dict, since what a module gives as its state need not be what it computes with
    wanted = model.state_dict()
    on_meta = any(wanted[name].is_meta for name in tensors)
    state: OrderedDict[str, Any] = OrderedDict({**tensors, **states})
    for name, tensor in tensors.items() if on_meta else ():  # they become the model's own
        like = wanted[name]
        state[name] = tensor.to(like.dtype, copy=True) if like.is_meta else tensor.to(like, copy=True)
    state._metadata = getattr(wanted, "_metadata", {})  # type: ignore[attr-defined]
    model.load_state_dict(state, strict=False, assign=on_meta)
