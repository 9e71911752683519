"""Loading a checkpoint into a model: matched name by name, audited, all or nothing."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from .names import SPELLINGS, CheckpointError, Key, Recognised, find, recognise, structure_of, summarise
from .read import Checkpoint, Source, open_source

_logger = logging.getLogger(__name__)

HEAD_CHOICES = ("auto", "require", "drop")
_AVERAGING_COUNTERS = ("n_averaged", "steps")  # of torch's and OpenMMLab's weight averaging
_STATE = "._extra_state"  # how the name of a module's state that is no tensor ends
_TRANSPARENT = ("module", "_orig_mod")  # wrappers that hold a model and nothing else


@dataclass
class LoadReport:
    """What came into the model, and what did not.

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
        cast: name in the model to the change of number format.
        nonfinite: names in the model that received NaN or infinite values.
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
) -> LoadReport:
    """Load a checkpoint into a model, or leave the model as it is and say why.

    What has the same name goes together, whatever it is: a model's own weights load into it, also those of layers
    that it alone has. Only what is left is translated: any layout loads into any DaViT, ours, the pyramid, timm's
    port, also inside DistributedDataParallel or torch.compile, or on the meta device (which then gets memory of its
    own). Another architecture loads under its own names.

    All that may differ is: a head for another number of classes, of another kind, or none; the final norm and the
    norms of levels, which a backbone and a classifier do not share; stages that a pyramid does not build; an input
    convolution for another number of channels; tensors that an edit added to the model, which keep their own values.
    All of it is reported, anything else stops the load.

    Args:
        source: a file, a `Checkpoint`, or a state dict (or what a training checkpoint holds).
        ema: as in `read_checkpoint`; for a `Checkpoint` the choice was made when it was read.
        head: "auto" loads the classifier where it fits and otherwise leaves the model's own, "drop" leaves the
            model's own in any case (to fine-tune), "require" insists on it and on every other tensor of the model
            (to evaluate, to go on with a training).
        allow_different_function: load Florence-2's weights into a DaViT or the reverse, although the channel
            attention computes something else with them.

    Raises:
        CheckpointError: the file cannot be read, or does not fit; the model is unchanged.
    """
    if head not in HEAD_CHOICES:
        raise ValueError(f"head={head!r} is not one of {', '.join(map(repr, HEAD_CHOICES))}.")
    checkpoint = open_source(source, ema)
    state = model.state_dict()
    target = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    ours = _whole_davit(target)
    theirs = recognise(checkpoint.state_dict, checkpoint.origin) if ours else None
    if ours and theirs:
        plan, report = _plan_davit(checkpoint, theirs, target, ours, head, allow_different_function)
    else:
        plan, report = _plan_plain(checkpoint, target, model, head)
    _take_states(plan, checkpoint, [name for name in state if name not in target])
    for name, reason in plan.missing.items():
        if head == "require" and reason != _COUNTER:
            plan.problems[name] = f"missing: {reason}"
        elif name in target and target[name].is_meta:
            plan.problems[name] = "not loaded, and the model, on the meta device, has no values of its own"
    if plan.problems:
        raise CheckpointError(_why_unfit(checkpoint, plan.problems, report, target))
    load_state(model, plan.copies, plan.states)
    report.tensors_loaded = len(plan.copies)
    report.params_loaded = sum(target[name].numel() for name in plan.copies)
    report.renamed, report.dropped, report.missing = plan.renamed, plan.dropped, plan.missing
    report.adapted, report.cast = plan.adapted, plan.cast
    report.nonfinite = tuple(name for name, tensor in plan.copies.items() if not _is_finite(tensor))
    _logger.log(logging.INFO if report.complete else logging.WARNING, "%s", report)
    return report


def _whole_davit(names: Iterable[str]) -> Recognised | None:
    """The DaViT that these names are of, or None where they are of another model, or of more than one DaViT."""
    found = find(names)
    return found[0] if len(found) == 1 and not set(found[0].outside) - set(_AVERAGING_COUNTERS) else None


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


# -- planning: nothing below touches the model before `load_state`

# What a tensor is on both sides: its place in a DaViT, or the name without what stands before all names. Of two
# DaViTs, tensors of the same name have the same identity also where no table knows the name.
Identity: TypeAlias = Key | str


@dataclass
class _Rules:
    """What may differ between a checkpoint and a model.

    The functions return the reason why a tensor may be left out, or None where it may not.
    """

    is_head: Callable[[Identity], bool]
    is_stem: Callable[[Identity], bool]
    why_dropped: Callable[[Identity], str | None]
    why_missing: Callable[[Identity], str | None]


@dataclass
class _Plan:
    """Which tensor goes where; all but ``renamed``, ``dropped`` and ``problems`` by the model's names.

    ``prefixes`` is what stands before all names, in the checkpoint and in the model.
    """

    copies: dict[str, Tensor] = field(default_factory=dict)
    states: dict[str, Any] = field(default_factory=dict)
    prefixes: tuple[str, str] = ("", "")
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    adapted: dict[str, str] = field(default_factory=dict)
    cast: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


def _match(
    source_names: Mapping[Identity, str],
    source: Mapping[str, Tensor],
    target_names: Mapping[Identity, str],
    target: Mapping[str, Tensor],
    rules: _Rules,
    head: str,
) -> _Plan:
    plan = _Plan()
    heads_apart = _why_heads_apart(source_names, source, target_names, target, rules, head)
    for one, name in source_names.items():
        reason = heads_apart if heads_apart and rules.is_head(one) else None
        if one not in target_names:
            reason = reason or rules.why_dropped(one)
            if reason is None:
                plan.problems[name] = "unexpected: the model has no such tensor"
        if reason is not None:
            plan.dropped[name] = reason
    for one, name in target_names.items():
        if heads_apart and rules.is_head(one):
            plan.missing[name] = heads_apart
        elif one in source_names:
            _fit(plan, source_names[one], source[source_names[one]], name, target[name], rules.is_stem(one))
        elif (reason := rules.why_missing(one)) is not None:
            plan.missing[name] = reason
        else:
            plan.problems[name] = "missing in the checkpoint"
    return plan


def _why_heads_apart(
    source_names: Mapping[Identity, str],
    source: Mapping[str, Tensor],
    target_names: Mapping[Identity, str],
    target: Mapping[str, Tensor],
    rules: _Rules,
    head: str,
) -> str | None:
    """Why the two heads stay apart as a whole, or None where they can be matched."""
    if head == "drop":
        return "head='drop' was asked for"
    their_head = [one for one in source_names if rules.is_head(one)]
    our_head = [one for one in target_names if rules.is_head(one)]
    for one in their_head:
        if one in target_names:
            theirs, ours = source[source_names[one]].shape, target[target_names[one]].shape
            if theirs[:1] != ours[:1] and theirs[1:] == ours[1:]:
                return f"the checkpoint's head has {theirs[0]} classes, the model's {ours[0]}"
    if set(their_head) - set(our_head) and set(our_head) - set(their_head):
        return "the checkpoint's head is of another kind than the model's"
    return None


def _fit(plan: _Plan, source_name: str, tensor: Tensor, name: str, wanted: Tensor, is_stem: bool) -> None:
    """Plan one copy, with the input convolution adapted where only its channels differ."""
    theirs, ours = tuple(tensor.shape), tuple(wanted.shape)
    if tensor.is_meta or tensor.layout is not torch.strided or tensor.is_quantized:
        plan.problems[source_name] = "has no plain values in the checkpoint (on the meta device, sparse or quantized)"
    # timm's rule for other channels starts from three
    if is_stem and len(theirs) == 4 and theirs[1] == 3 and ours == (theirs[0], ours[1], *theirs[2:]) != theirs:
        tensor = adapt_input_conv(ours[1], tensor)
        plan.adapted[name] = f"from {theirs[1]} to {ours[1]} input channels"
    elif theirs != ours:
        plan.problems[source_name] = f"is {theirs} in the checkpoint, {ours} in the model"
    if tensor.dtype != wanted.dtype:
        change = f"from {_name(tensor.dtype)} to {_name(wanted.dtype)}"
        if tensor.is_floating_point() and wanted.is_floating_point():
            plan.cast[name] = change
        else:
            plan.problems[source_name] = f"cannot be converted {change}"
    plan.copies[name] = tensor
    if name != source_name:
        plan.renamed[source_name] = name


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _plan_davit(
    checkpoint: Checkpoint,
    theirs: Recognised,
    target: Mapping[str, Tensor],
    ours: Recognised,
    head: str,
    allow_different_function: bool,
) -> tuple[_Plan, LoadReport]:
    if checkpoint.function != ours.function and not allow_different_function:
        raise CheckpointError(
            f"{checkpoint.origin} holds weights for {_FUNCTIONS[checkpoint.function]}, but the model "
            f"computes {_FUNCTIONS[ours.function]}: the weights would load and the output would be wrong. "
            "Use the model the weights are of (timm's davit_base_fl or davit_huge_fl for Florence-2), or, "
            "to start a training from them all the same, allow_different_function=True. Nothing was loaded."
        )
    their_names, our_names = _identities(theirs), _identities(ours)
    rules = _davit_rules(their_names, our_names, set(ours.outside))
    plan = _match(their_names, checkpoint.state_dict, our_names, target, rules, head)
    plan.prefixes = theirs.prefix, ours.prefix
    container = theirs.prefix.rstrip(".").split(".")[-1]
    for name in theirs.outside:
        if name in _AVERAGING_COUNTERS:
            continue
        if container not in _TRANSPARENT:
            plan.dropped[name] = f"not under {theirs.prefix!r}, so not the DaViT's"
        else:
            plan.problems[name] = f"unexpected: outside {theirs.prefix!r}, under which all the rest is"
    return plan, _new_report(checkpoint, target, theirs.layout, ours.layout)


def _identities(found: Recognised) -> dict[Identity, str]:
    counters = [(name, name) for name in found.outside if name in _AVERAGING_COUNTERS]
    return dict([*found.names.items(), *found.additions.items(), *counters])


_FUNCTIONS = {
    "davit": "DaViT's channel attention (softmax of k^T v, scaled by channels^-0.5, applied to q)",
    "florence2": "Florence-2's channel attention (softmax of q^T k, scaled by positions^-0.5, applied to v)",
}


def _davit_rules(theirs: Iterable[Identity], ours: Iterable[Identity], counters: set[str]) -> _Rules:
    their_slots, our_slots = _slots(theirs), _slots(ours)
    our_last_stage = max(one.stage for one in ours if isinstance(one, Key))

    def why_dropped(one: Identity) -> str | None:
        if not isinstance(one, Key):
            return _COUNTER if one in _AVERAGING_COUNTERS else None
        if one.slot == "level":
            return "the model has no norm for this level"
        if our_slots & {"head.norm", "head.fc"}:
            return "the model has no head" if one.slot == "head.fc" and "head.fc" not in our_slots else None
        if one.slot in ("head.norm", "head.fc"):
            return "the model has no head"
        return f"the model ends with stage {our_last_stage}" if one.stage > our_last_stage else None

    def why_missing(one: Identity) -> str | None:
        if not isinstance(one, Key):
            return _COUNTER if one in counters else _ADDED
        if one.slot == "level":
            return "the checkpoint has no norm for this level"
        if one.slot == "head.fc" and "head.fc" not in their_slots:
            return "the checkpoint has no head"
        if one.slot == "head.norm" and not their_slots & {"head.norm", "head.fc"}:
            return "the checkpoint is of a backbone, without the final norm"
        return None if one.slot in _LAYERS and one.param in ("weight", "bias") else _ADDED

    return _Rules(
        is_head=lambda one: isinstance(one, Key) and one.slot == "head.fc",
        is_stem=lambda one: isinstance(one, Key) and one.slot == "stem.proj" and one.param == "weight",
        why_dropped=why_dropped,
        why_missing=why_missing,
    )


_LAYERS = SPELLINGS["davit"].templates  # of every DaViT
_ADDED = "added to the model, and not in the checkpoint"
_COUNTER = "a counter of weight averaging"


def _slots(identities: Iterable[Identity]) -> set[str]:
    return {one.slot for one in identities if isinstance(one, Key)}


def _plan_plain(
    checkpoint: Checkpoint, target: Mapping[str, Tensor], model: nn.Module, head: str
) -> tuple[_Plan, LoadReport]:
    """Any other architecture: the same names on both sides, but for wrappers around all of them."""
    prefixes = _shared_prefix(checkpoint.state_dict), _shared_prefix(target)
    theirs, ours = _bare(checkpoint.state_dict, prefixes[0]), _bare(target, prefixes[1])
    if theirs.keys().isdisjoint(ours):
        # a checkpoint may name the model's place in something larger
        prefixes = _shared_prefix(checkpoint.state_dict, ("model", "net", "backbone", *_TRANSPARENT)), prefixes[1]
        theirs = _bare(checkpoint.state_dict, prefixes[0])
    cfg = getattr(_innermost(model), "pretrained_cfg", None) or {}
    heads, stems = _inside(cfg.get("classifier")), _inside(cfg.get("first_conv"))
    they_have_head = any(name.startswith(heads) for name in theirs)
    we_have_head = any(name.startswith(heads) for name in ours)

    def is_head(one: Identity) -> bool:
        return isinstance(one, str) and one.startswith(heads)

    def is_stem(one: Identity) -> bool:
        return isinstance(one, str) and one.startswith(stems) and one.endswith(".weight")

    def why_dropped(one: Identity) -> str | None:
        if is_head(one) and not we_have_head:
            return "the model has no head"
        return _COUNTER if one in _AVERAGING_COUNTERS else None

    def why_missing(one: Identity) -> str | None:
        if is_head(one) and not they_have_head:
            return "the checkpoint has no head"
        # averaging holds the model under a name; without one it is a tensor of the model's own
        return _COUNTER if one in _AVERAGING_COUNTERS and prefixes[1] else None

    rules = _Rules(is_head, is_stem, why_dropped, why_missing)
    plan = _match(dict(theirs.items()), checkpoint.state_dict, dict(ours.items()), target, rules, head)
    plan.prefixes = prefixes
    return plan, _new_report(checkpoint, target, "plain", "plain")


def _inside(modules: str | Sequence[str] | None) -> tuple[str, ...]:
    """How the names of tensors of the module or modules begin that a ``pretrained_cfg`` names."""
    named = [modules] if isinstance(modules, str) else modules or []
    return tuple(f"{name}." for name in named)


def _shared_prefix(names: Iterable[str], wrappers: tuple[str, ...] = _TRANSPARENT) -> str:
    """What wrappers put before every name."""
    bare = [name for name in names if name not in _AVERAGING_COUNTERS]
    prefix = ""
    while bare:
        first = bare[0].split(".", 1)[0]
        if first not in wrappers or not all(name.startswith(first + ".") for name in bare):
            break
        bare = [name[len(first) + 1 :] for name in bare]
        prefix += first + "."
    return prefix


def _bare(names: Iterable[str], prefix: str) -> dict[str, str]:
    """Bare name to full name."""
    return {name.removeprefix(prefix): name for name in names}


def _take_states(plan: _Plan, checkpoint: Checkpoint, names: Iterable[str]) -> None:
    """Plan the states of modules that are no tensors (``get_extra_state``); in a file they lie beside the weights."""
    theirs, ours = plan.prefixes
    there = {theirs + name.removeprefix(ours): name for name in names}
    for name, mine in there.items():
        if name in checkpoint.metadata:
            plan.states[mine] = checkpoint.metadata[name]
        else:
            plan.missing[mine] = "not in the checkpoint as a plain value"
    for name in (*checkpoint.metadata, *checkpoint.skipped):
        if name.endswith(_STATE) and name not in there:
            plan.problems[name] = "unexpected: the model has no module with such a state"


def _innermost(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile."""
    children = dict(model.named_children())
    if len(children) == 1 and (inner := children.get("module") or children.get("_orig_mod")) is not None:
        return _innermost(inner)
    return model


def _new_report(checkpoint: Checkpoint, target: Mapping[str, Tensor], layout: str, target_layout: str) -> LoadReport:
    return LoadReport(
        origin=checkpoint.origin,
        wrapper=checkpoint.wrapper,
        ema=checkpoint.ema,
        layout=layout,
        target_layout=target_layout,
        tensors_total=len(target),
        params_total=sum(tensor.numel() for tensor in target.values()),
    )


def _why_unfit(
    checkpoint: Checkpoint, problems: Mapping[str, str], report: LoadReport, target: Mapping[str, Tensor]
) -> str:
    """The paragraph that says why a checkpoint does not fit, and what it would fit."""
    theirs, ours = _only_davit(checkpoint.state_dict), _only_davit(target)
    kinds = summarise(problems)
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
    elif report.layout == "plain" and len(problems) > len(target):
        text += "They are two architectures; create the model that the checkpoint was saved from. "
    return text + "Nothing was loaded."


def _only_davit(names: Iterable[str]) -> Recognised | None:
    found = find(names)
    return found[0] if len(found) == 1 else None


def load_state(model: nn.Module, tensors: Mapping[str, Tensor], states: Mapping[str, Any]) -> None:
    """Load what was found to fit, by the model's own names; parameters on the meta device get memory.

    The modules are handed it, since what a module gives as its state need not be what it computes with.

    Args:
        states: what modules keep beside tensors (``get_extra_state``).
    """
    wanted = model.state_dict()
    on_meta = any(wanted[name].is_meta for name in tensors)
    state: OrderedDict[str, Any] = OrderedDict({**tensors, **states})
    for name, tensor in tensors.items() if on_meta else ():  # they become the model's own
        like = wanted[name]
        state[name] = tensor.to(like.dtype, copy=True) if like.is_meta else tensor.to(like, copy=True)
    state._metadata = getattr(wanted, "_metadata", {})  # type: ignore[attr-defined]
    model.load_state_dict(state, strict=False, assign=on_meta)
