"""Loading a checkpoint into a model: matched name by name, audited, all or nothing."""

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

from .files import Checkpoint, Source, open_source
from .keys import CheckpointError, Key, Recognised, recognise, recognised_or_error, structure_of, summarise

_logger = logging.getLogger(__name__)

HEAD_CHOICES = ("auto", "require", "drop")
_AVERAGING_COUNTERS = ("n_averaged", "steps")  # of torch's and OpenMMLab's weight averaging
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
        parts += [f"kept the model's own values of {text}" for text in summarise(self.missing)]
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

    Any layout loads into any DaViT: ours, the pyramid, timm's port, also inside DistributedDataParallel or
    torch.compile, or on the meta device (which then gets memory of its own). Another architecture of timm
    loads under its own names. All that may differ is: a head for another number of classes, or none; the
    final norm and the norms of levels, which a backbone and a classifier do not share; stages that a pyramid
    does not build; an input convolution for another number of channels. All of it is reported, anything else
    stops the load.

    Args:
        source: a file, a `Checkpoint`, or a state dict (or what a training checkpoint holds).
        ema: as in `read_checkpoint`; for a `Checkpoint` the choice was made when it was read.
        head: "auto" loads the classifier where it fits and otherwise leaves the model's own, "require"
            insists on it (to evaluate), "drop" leaves the model's own in any case (to fine-tune).
        allow_different_function: load Florence-2's weights into a DaViT or the reverse, although the channel
            attention computes something else with them.

    Raises:
        CheckpointError: the file cannot be read, or does not fit; the model is unchanged.
    """
    if head not in HEAD_CHOICES:
        raise ValueError(f"head={head!r} is not one of {', '.join(map(repr, HEAD_CHOICES))}.")
    checkpoint = open_source(source, ema)
    target = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    davit = recognise(target, "the model")
    if davit is not None and not set(davit.outside) - set(_AVERAGING_COUNTERS):
        plan, report = _plan_davit(checkpoint, target, davit, head, allow_different_function)
    else:
        plan, report = _plan_plain(checkpoint, target, model, head)
    if head == "require":
        plan.problems.update({name: f"no head: {reason}" for name, reason in plan.heads_left.items()})
    for name in plan.missing:
        if target[name].is_meta:
            plan.problems[name] = "not loaded, and the model, on the meta device, has no values of its own"
    if plan.problems:
        raise CheckpointError(_why_unfit(checkpoint, plan.problems, report, target))
    _copy(model, target, plan.copies)
    report.tensors_loaded = len(plan.copies)
    report.params_loaded = sum(target[name].numel() for name in plan.copies)
    report.renamed, report.dropped, report.missing = plan.renamed, plan.dropped, plan.missing
    report.adapted, report.cast = plan.adapted, plan.cast
    report.nonfinite = tuple(name for name, tensor in plan.copies.items() if not _is_finite(tensor))
    _logger.log(logging.INFO if report.complete else logging.WARNING, "%s", report)
    return report


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


# -- planning: nothing below touches the model before `_copy`

Id = TypeVar("Id", bound=Hashable)


@dataclass
class _Rules(Generic[Id]):
    """What may differ between a checkpoint and a model.

    The functions return the reason why a tensor may be left out, or None where it may not.
    """

    is_head: Callable[[Id], bool]
    is_stem: Callable[[Id], bool]
    why_dropped: Callable[[Id], str | None]
    why_missing: Callable[[Id], str | None]


@dataclass
class _Plan:
    """Which tensor goes where; all but ``renamed``, ``dropped`` and ``problems`` by the model's names."""

    copies: dict[str, Tensor] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    adapted: dict[str, str] = field(default_factory=dict)
    cast: dict[str, str] = field(default_factory=dict)
    heads_left: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


def _match(
    source_names: Mapping[Id, str],
    source: Mapping[str, Tensor],
    target_names: Mapping[Id, str],
    target: Mapping[str, Tensor],
    rules: _Rules[Id],
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
            plan.missing[name] = plan.heads_left[name] = heads_apart
        elif one in source_names:
            _fit(plan, source_names[one], source[source_names[one]], name, target[name], rules.is_stem(one))
        elif (reason := rules.why_missing(one)) is not None:
            plan.missing[name] = reason
            if rules.is_head(one):
                plan.heads_left[name] = reason
        else:
            plan.problems[name] = "missing in the checkpoint"
    return plan


def _why_heads_apart(
    source_names: Mapping[Id, str],
    source: Mapping[str, Tensor],
    target_names: Mapping[Id, str],
    target: Mapping[str, Tensor],
    rules: _Rules[Id],
    head: str,
) -> str | None:
    """Why the two heads stay apart as a whole, or None where they can be matched."""
    if head == "drop":
        return "head='drop' was asked for"
    for one in source_names:
        if rules.is_head(one) and one in target_names:
            theirs, ours = source[source_names[one]].shape, target[target_names[one]].shape
            if theirs[:1] != ours[:1] and theirs[1:] == ours[1:]:
                return f"the checkpoint's head has {theirs[0]} classes, the model's {ours[0]}"
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
    target: Mapping[str, Tensor],
    ours: Recognised,
    head: str,
    allow_different_function: bool,
) -> tuple[_Plan, LoadReport]:
    tensors = checkpoint.state_dict
    theirs = recognised_or_error(tensors, checkpoint.origin)
    if checkpoint.function != ours.function and not allow_different_function:
        raise CheckpointError(
            f"{checkpoint.origin} holds weights for {_FUNCTIONS[checkpoint.function]}, but the model "
            f"computes {_FUNCTIONS[ours.function]}: the weights would load and the output would be wrong. "
            "Use the model the weights are of (timm's davit_base_fl or davit_huge_fl for Florence-2), or, "
            "to start a training from them all the same, allow_different_function=True. Nothing was loaded."
        )
    plan = _match(theirs.names, tensors, ours.names, target, _davit_rules(theirs, ours), head)
    plan.problems.update(dict.fromkeys(theirs.unknown, "unexpected: no DaViT has such a tensor"))
    container = theirs.prefix.rstrip(".").split(".")[-1]
    for name in theirs.outside:
        if container not in _TRANSPARENT or name in _AVERAGING_COUNTERS:
            plan.dropped[name] = f"not under {theirs.prefix!r}, so not the DaViT's"
        else:
            plan.problems[name] = f"unexpected: outside {theirs.prefix!r}, under which all the rest is"
    return plan, _new_report(checkpoint, target, theirs.layout, ours.layout)


_FUNCTIONS = {
    "davit": "DaViT's channel attention (softmax of k^T v, scaled by channels^-0.5, applied to q)",
    "florence2": "Florence-2's channel attention (softmax of q^T k, scaled by positions^-0.5, applied to v)",
}


def _davit_rules(theirs: Recognised, ours: Recognised) -> _Rules[Key]:
    their_slots = {key.slot for key in theirs.names}
    our_slots = {key.slot for key in ours.names}
    our_last_stage = max(key.stage for key in ours.names)

    def why_dropped(key: Key) -> str | None:
        if key.slot == "level":
            return "the model has no norm for this level"
        if key.slot in ("head.norm", "head.fc") and key.slot not in our_slots:
            return "the model has no head"
        if key.stage > our_last_stage and not our_slots & {"head.norm", "head.fc"}:
            return f"the model ends with stage {our_last_stage}"
        return None

    def why_missing(key: Key) -> str | None:
        if key.slot == "level":
            return "the checkpoint has no norm for this level"
        if key.slot == "head.fc" and "head.fc" not in their_slots:
            return "the checkpoint has no head"
        if key.slot == "head.norm" and not their_slots & {"head.norm", "head.fc"}:
            return "the checkpoint is of a backbone, without the final norm"
        return None

    return _Rules(
        is_head=lambda key: key.slot == "head.fc",
        is_stem=lambda key: key.slot == "stem.proj" and key.param == "weight",
        why_dropped=why_dropped,
        why_missing=why_missing,
    )


def _plan_plain(
    checkpoint: Checkpoint, target: Mapping[str, Tensor], model: nn.Module, head: str
) -> tuple[_Plan, LoadReport]:
    """Any other architecture: the same names on both sides, but for wrappers around all of them."""
    theirs = _without_wrappers(list(checkpoint.state_dict))
    ours = _without_wrappers(list(target))
    if theirs.keys().isdisjoint(ours):
        # a checkpoint may name the model's place in something larger
        theirs = _without_wrappers(list(checkpoint.state_dict), ("model", "net", "backbone", *_TRANSPARENT))
    cfg = getattr(_innermost(model), "pretrained_cfg", None) or {}
    heads, stems = _inside(cfg.get("classifier")), _inside(cfg.get("first_conv"))
    they_have_head = any(name.startswith(heads) for name in theirs)
    we_have_head = any(name.startswith(heads) for name in ours)
    rules: _Rules[str] = _Rules(
        is_head=lambda name: name.startswith(heads),
        is_stem=lambda name: name.startswith(stems) and name.endswith(".weight"),
        why_dropped=lambda name: "the model has no head" if name.startswith(heads) and not we_have_head else None,
        why_missing=lambda name: (
            "the checkpoint has no head" if name.startswith(heads) and not they_have_head else None
        ),
    )
    plan = _match(theirs, checkpoint.state_dict, ours, target, rules, head)
    for name in _AVERAGING_COUNTERS:
        if plan.problems.pop(name, None):
            plan.dropped[name] = "a counter of weight averaging"
    return plan, _new_report(checkpoint, target, "plain", "plain")


def _inside(modules: str | Sequence[str] | None) -> tuple[str, ...]:
    """How the names of tensors of the module or modules begin that a ``pretrained_cfg`` names."""
    named = [modules] if isinstance(modules, str) else modules or []
    return tuple(f"{name}." for name in named)


def _without_wrappers(names: list[str], wrappers: tuple[str, ...] = _TRANSPARENT) -> dict[str, str]:
    """Bare name to full name, without wrappers that all the names share."""
    bare = [name for name in names if name not in _AVERAGING_COUNTERS]
    prefix = ""
    while bare:
        first = bare[0].split(".", 1)[0]
        if first not in wrappers or not all(name.startswith(first + ".") for name in bare):
            break
        bare = [name[len(first) + 1 :] for name in bare]
        prefix += first + "."
    return {name.removeprefix(prefix): name for name in names}


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
    theirs, ours = recognise(checkpoint.state_dict, checkpoint.origin), recognise(target)
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
    elif report.layout == "plain" and len(problems) > len(target):
        text += "They are two architectures; create the model that the checkpoint was saved from. "
    return text + "Nothing was loaded."


def _copy(model: nn.Module, target: Mapping[str, Tensor], copies: Mapping[str, Tensor]) -> None:
    if any(target[name].is_meta for name in copies):
        real = {
            name: tensor.to(dtype=target[name].dtype, copy=True)
            if target[name].is_meta
            else tensor.to(target[name], copy=True)
            for name, tensor in copies.items()
        }
        model.load_state_dict(real, strict=False, assign=True)
        return
    with torch.no_grad():
        for name, tensor in copies.items():
            target[name].copy_(tensor)
