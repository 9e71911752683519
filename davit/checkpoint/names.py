"""Recognise a DaViT by the names of its tensors, and write those names as any code base does.

A tensor has one identity, its `Key`; a `Spelling` is the table of names of one code base. To teach a new one,
add a table to `SPELLINGS`: parsing, writing and the order of names follow from it. Tensors that an edit of the
model adds are in no table: they are placed by the part of a DaViT that they lie in.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from ..choices import CHECKPOINT_LAYOUTS
from ..text import as_line
from ..variants import FLORENCE2, variants_with

LAYOUTS = CHECKPOINT_LAYOUTS

# The channel attention of Florence-2's towers is another function of the same weights.
DAVIT_FUNCTION = "davit"
FLORENCE2_FUNCTION = "florence2"


class CheckpointError(ValueError):
    """Say in one paragraph which checkpoint cannot be used, why, and what to do."""


class Key(NamedTuple):
    """Identify a tensor, whatever it is called.

    ``slot`` is a layer that the tables name, or for an added tensor also a part around layers (`_PARTS`); ``param``
    is the name within it. ``stage``, ``pair`` and ``block`` (0 or 1 within a pair) are 0 where they do not apply.
    """

    slot: str
    stage: int
    pair: int
    block: int
    param: str


EMBED_SLOTS = ("stem.proj", "stem.norm", "down.proj", "down.norm")
TAIL_SLOTS = ("level", "head.norm", "head.fc")
# parts that hold layers, inner parts first; each is known by a layer directly within it
_PARTS = {"stem": "stem.proj", "down": "down.proj", "attention": "qkv", "mlp": "fc1"}
_BLOCK = re.compile(r".*(\{b\}|\{kind\}_block)")
# Slots of one stage without MLPs. Other transformers may share up to six of the names. Slots are counted, because
# an edit may add any number of tensors.
_FEWEST_SLOTS = 7
_MOST_COMPARED = 1000  # names that the nearest layout is told by
_KINDS = ("spatial", "channel")  # block 0 and block 1 of a pair, where a spelling names them
_ATTENTIONS = ("window", "channel")
# Modules that hold one module and add nothing but a name: of data parallelism and weight averaging (module),
# torch.compile, FSDP, activation checkpointing, Lightning Fabric and Opacus. They may stand anywhere in a name.
WRAPPERS = (
    *("module", "_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module"),
    *("_forward_module", "_module"),
)
_WITHIN = frozenset((*WRAPPERS, "model"))  # within a DaViT, "model" is a wrapper too; before it, a place
_PLACEHOLDERS = {
    "{s}": r"(?P<s>[0-9]{1,3})",
    "{before}": r"(?P<before>[0-9]{1,3})",
    "{p}": r"(?P<p>[0-9]{1,3})",
    "{b}": r"(?P<b>[0-9]{1,3})",
    "{kind}": r"(?P<kind>spatial|channel)",
    "{attn}": r"(?:window|channel)",
    "{w_msa}": r"(?:\.w_msa)?",
}


@dataclass(frozen=True)
class Spelling:
    """Name tensors as one code base does.

    Attributes:
        layout: the layout that it belongs to, one of `LAYOUTS`.
        templates: slot to template, in the order in which that code base registers them.
        function: which channel attention the code base computes with these weights.
        stage_major: whether a stage's embedding is registered beside its blocks, or all embeddings first.
        prefix: what the code base writes before every name.
        beside: slots whose names begin where `prefix` begins, not behind it: a head beside a backbone.
        final_level: the final norm of a classifier has the name of the last level's norm.
        note: what the code base computes otherwise with these weights, as a part of a report.
    """

    layout: str
    templates: Mapping[str, str]
    function: str = DAVIT_FUNCTION
    stage_major: bool = False
    prefix: str = ""
    beside: tuple[str, ...] = ()
    final_level: bool = False
    note: str = ""

    @cached_property
    def _patterns(self) -> dict[str, re.Pattern[str]]:
        """The pattern of every slot, then of the parts around them."""
        parts = {part: self.templates[slot].rpartition(".")[0] for part, slot in _PARTS.items()}
        block = _BLOCK.match(self.templates["qkv"])
        assert block is not None, f"the blocks of {self.layout} have no name"
        patterns = {}
        for slot, template in {**self.templates, **parts, "block": block[0]}.items():
            pattern = re.escape(template).replace(r"\{", "{").replace(r"\}", "}")
            for placeholder, group in _PLACEHOLDERS.items():
                pattern = pattern.replace(placeholder, group)
            # timm's features_only models write stages_0 for stages.0
            pattern = pattern.replace(r"stages\.", r"stages[._]")
            patterns[slot] = re.compile(pattern + r"\.(?P<param>.+)")
        return patterns

    @cached_property
    def _anchor(self) -> re.Pattern[str]:
        wrapped = rf"\.(?:(?:{'|'.join(sorted(_WITHIN))})\.)*"
        qkv = self._patterns["qkv"].pattern.replace(r"(?P<param>.+)", "weight").replace(r"\.", wrapped)
        return re.compile(r"(?P<prefix>|.*\.)" + qkv.replace("[._]", rf"(?:_|{wrapped})"))

    @cached_property
    def names_blocks(self) -> bool:
        """Whether blocks are called spatial and channel, so that a pair must be one of each."""
        return "{kind}" in self.templates["qkv"]

    def prefixes(self, names: Iterable[str]) -> set[str]:
        """Return the prefix of each DaViT among the names."""
        return {match["prefix"] for name in names if (match := self._anchor.fullmatch(name))}

    def place(self, name: str, is_beside: bool = False) -> Key | None:
        """Return the innermost slot or part that a tensor lies in, None if it lies in none.

        Args:
            name: behind the prefix, without wrappers.
            is_beside: the name lies beside the prefix (`beside`).
        """
        for slot, pattern in self._patterns.items():
            if is_beside == (slot in self.beside) and (match := pattern.fullmatch(name)):
                found = match.groupdict()
                block = _KINDS.index(found["kind"]) if found.get("kind") else int(found.get("b") or 0)
                stage = int(found["before"]) + 1 if found.get("before") else int(found.get("s") or 0)
                return Key(slot, stage, int(found.get("p") or 0), block, found["param"])
        return None

    def names_slot(self, key: Key) -> bool:
        """Return whether this is a tensor of a layer in the table, not one that was added."""
        return key.slot in self.templates and "." not in key.param

    def render(self, key: Key) -> str:
        """Write the name of a tensor."""
        template = self.templates[key.slot]
        if self.names_blocks and "{kind}" in template:
            template = template.replace("{kind}", _KINDS[key.block]).replace("{attn}", _ATTENTIONS[key.block])
            template = template.replace("{w_msa}", "" if key.block else ".w_msa")
        prefix = "" if key.slot in self.beside else self.prefix
        name = template.format(s=key.stage, before=key.stage - 1, p=key.pair, b=key.block)
        return f"{prefix}{name}.{key.param}"

    def respelled(self, key: Key, last_stage: int) -> Key:
        """Return the identity that this code base has a name for: some have one norm for two purposes."""
        return _final_norm(key, last_stage, "head.norm", "level") if self.final_level else key

    def rank(self, key: Key) -> tuple[int, ...]:
        """Return a sort key: the order in which the code base registers its tensors."""
        if key.slot in TAIL_SLOTS:
            return 2, list(self.templates).index(key.slot), key.stage, 0, 0, 0, int(key.param == "bias")
        if key.slot in EMBED_SLOTS:
            group, within_stage = int(self.stage_major and key.slot.startswith("down")), 0
        else:
            group, within_stage = 1, 1
        if "{before}" in self.templates[key.slot]:  # registered behind the blocks of the stage before
            return group, key.stage - 1, 2, 0, 0, list(self.templates).index(key.slot), int(key.param == "bias")
        slot_rank = list(self.templates).index(key.slot)
        param_rank = {"weight": 0, "bias": 1}.get(key.param, 2)
        return group, key.stage, within_stage, key.pair, key.block, slot_rank, param_rank


_BLOCK_SLOTS = ("cpe0", "norm1", "qkv", "proj", "cpe1", "norm2", "fc1", "fc2")


def _block(place: str, leaves: str, slots: Sequence[str] = _BLOCK_SLOTS) -> dict[str, str]:
    """Name the layers of a block, in the order in which they are registered."""
    return {slot: f"{place}.{leaf}" for slot, leaf in zip(slots, leaves.split(), strict=True)}


def _timm(block: str) -> dict[str, str]:
    return {
        "stem.proj": "stem.conv",
        "stem.norm": "stem.norm",
        "down.norm": "stages.{s}.downsample.norm",
        "down.proj": "stages.{s}.downsample.conv",
        **_block(
            f"stages.{{s}}.blocks.{{p}}.{block}",
            "cpe1.proj norm1 attn.qkv attn.proj cpe2.proj norm2 mlp.fc1 mlp.fc2",
        ),
        "head.norm": "head.norm",
        "head.fc": "head.fc",
    }


def _florence2(conv: str, leaves: str) -> dict[str, str]:
    return {
        "stem.proj": f"convs.0.{conv}",
        "stem.norm": "convs.0.norm",
        "down.proj": f"convs.{{s}}.{conv}",
        "down.norm": "convs.{s}.norm",
        **_block("blocks.{s}.{p}.{kind}_block", leaves),
        "head.norm": "norms",
        "head.fc": "head",
    }


def _mmpretrain() -> dict[str, str]:
    """Name the layers of mmpretrain's DaViT: a stage ends with the embedding of the next one."""
    return {
        "stem.proj": "patch_embed.projection",
        "stem.norm": "patch_embed.norm",
        **_block(
            "stages.{s}.blocks.{p}.{kind}_block",
            "cpe1.proj norm1 attn{w_msa}.qkv attn{w_msa}.proj cpe2.proj norm2 ffn.layers.0.0 ffn.layers.1",
        ),
        "down.proj": "stages.{before}.downsample.projection",
        "down.norm": "stages.{before}.downsample.norm",
        "level": "norm{s}",
        "head.fc": "head.fc",
    }


SPELLINGS: dict[str, Spelling] = {
    # the original's, and ours; "level" is the pyramid's norm of one output
    "davit": Spelling(
        "davit",
        {
            "stem.proj": "patch_embeds.0.proj",
            "stem.norm": "patch_embeds.0.norm",
            "down.proj": "patch_embeds.{s}.proj",
            "down.norm": "patch_embeds.{s}.norm",
            **_block(
                "main_blocks.{s}.{p}.{b}",
                "cpe.0.proj cpe.1.proj norm1 attn.qkv attn.proj norm2 mlp.fc1 mlp.fc2",
                ("cpe0", "cpe1", "norm1", "qkv", "proj", "norm2", "fc1", "fc2"),
            ),
            "level": "norm{s}",
            "head.norm": "norms",
            "head.fc": "head",
        },
    ),
    "timm": Spelling("timm", _timm("{b}"), stage_major=True),
    # timm's davit_base_fl and davit_huge_fl
    "timm_fl": Spelling("timm", _timm("{kind}_block"), FLORENCE2_FUNCTION, stage_major=True),
    # the checkpoints that Microsoft released
    "florence2": Spelling(
        "florence2",
        _florence2(
            "proj",
            "conv1.fn.dw {attn}_attn.norm {attn}_attn.fn.qkv {attn}_attn.fn.proj "
            "conv2.fn.dw ffn.norm ffn.fn.net.fc1 ffn.fn.net.fc2",
        ),
        FLORENCE2_FUNCTION,
        prefix="vision_tower.",
    ),
    # the same tower in the transformers library
    "florence2_native": Spelling(
        "florence2_native",
        _florence2("conv", "conv1 norm1 {attn}_attn.qkv {attn}_attn.proj conv2 norm2 ffn.fc1 ffn.fc2"),
        FLORENCE2_FUNCTION,
        prefix="model.vision_tower.",
    ),
    # mmpretrain's backbone, whose head lies beside it
    "mmpretrain": Spelling(
        "mmpretrain",
        _mmpretrain(),
        stage_major=True,
        prefix="backbone.",
        beside=("head.fc",),
        final_level=True,
        # measured: with 3 pixels around its images its backbone's maps are ours, at 1e-6
        note=(
            "mmpretrain pads the first convolution by 1 pixel before and 2 after, DaViT by 3 on each side. Its "
            "classifier takes the final norm before the mean of all positions, DaViT's after it. The outputs differ a "
            "little"
        ),
    ),
}


@dataclass(frozen=True)
class Recognised:
    """Describe a DaViT found among the names of a state dict.

    Attributes:
        spelling: its entry in `SPELLINGS`.
        prefix: what stands before each of its names, such as ``module.backbone.``.
        names: identity to full name, in the order found.
        additions: identity to full name of the tensors under the prefix that only an edited DaViT has. Their identity
            is the place in a part that every DaViT has, or else the name behind the prefix.
        outside: names that are not under the prefix: the rest of a detector or of a language model.
    """

    spelling: Spelling
    prefix: str
    names: dict[Key, str]
    additions: dict[Key | str, str]
    outside: tuple[str, ...]

    @property
    def layout(self) -> str:
        slots = {key.slot for key in self.names}
        if self.spelling is SPELLINGS["davit"] and not slots & {"head.norm", "head.fc"}:
            return "pyramid"
        return self.spelling.layout

    @property
    def function(self) -> str:
        return self.spelling.function

    def as_classifier(self) -> "Recognised":
        """Take the one norm of a backbone's last level for the final norm, where both have one name."""
        last = _last_stage(self.names)
        if not self.spelling.final_level or {key.stage for key in self.names if key.slot == "level"} != {last}:
            return self
        return replace(self, names={_final_norm(key, last, "level", "head.norm"): n for key, n in self.names.items()})


def find(names: Iterable[str]) -> list[Recognised]:
    """Find every DaViT among the names."""
    names = list(names)
    best: dict[str, list[Recognised]] = {}
    for spelling in SPELLINGS.values():
        for prefix in spelling.prefixes(names):
            if (candidate := _recognise_as(spelling, prefix, names)) is not None:
                best.setdefault(prefix, []).append(candidate)
    # two code bases may share names: the one that knows most of them is meant
    most = {prefix: max(len(one.names) for one in candidates) for prefix, candidates in best.items()}
    return [one for prefix, candidates in best.items() for one in candidates if len(one.names) == most[prefix]]


def _recognise_as(spelling: Spelling, prefix: str, names: list[str]) -> Recognised | None:
    keys: dict[Key, str] = {}
    additions: dict[Key | str, str] = {}
    outside = []
    around = _around(prefix, spelling) if spelling.beside else None
    bare_names = without_wrappers({name: name[len(prefix) :] for name in names if name.startswith(prefix)}, _WITHIN)
    for name in names:
        if name not in bare_names:
            key = None
            if around is not None and name.startswith(around):
                bare = ".".join(part for part in name[len(around) :].split(".") if part not in _WITHIN)
                key = spelling.place(bare, True)
            if key is not None and spelling.names_slot(key) and key not in keys:
                keys[key] = name
            else:
                outside.append(name)
            continue
        bare = bare_names[name]
        key = spelling.place(bare)
        if key is not None and spelling.names_slot(key) and key not in keys:
            keys[key] = name
        else:
            additions[bare if key is None or key in keys or key in additions else key] = name
    if len({key.slot for key in keys}) < _FEWEST_SLOTS:  # another architecture that happens to share a name
        return None
    if spelling.final_level and any(key.slot == "head.fc" for key in keys):
        keys = {_final_norm(key, _last_stage(keys), "level", "head.norm"): name for key, name in keys.items()}
    return Recognised(spelling, prefix, keys, additions, tuple(outside))


def _around(prefix: str, spelling: Spelling) -> str | None:
    """Return what stands before the names beside a backbone; None where the prefix is not that of a whole model."""
    parts = prefix.split(".")[:-1]
    while parts and parts[-1] in _WITHIN:
        parts.pop()
    bare = "".join(f"{part}." for part in parts)
    return bare.removesuffix(spelling.prefix) if bare.endswith(spelling.prefix) else None


def without_wrappers(bare: Mapping[str, str], wrappers: Collection[str]) -> dict[str, str]:
    """Take wrappers out of names, by full name, except where two names would become one."""
    shorter = {name: ".".join(part for part in text.split(".") if part not in wrappers) for name, text in bare.items()}
    uses = Counter(shorter.values())
    return {name: shorter[name] if uses[shorter[name]] == 1 else text for name, text in bare.items()}


def _last_stage(keys: Iterable[Key]) -> int:
    return max((key.stage for key in keys if key.slot == "qkv"), default=0)


def _final_norm(key: Key, last: int, slot: str, other: str) -> Key:
    """Exchange the norm of the last level and the final norm of a classifier, where both have one name."""
    if key.slot == slot and (slot == "head.norm" or key.stage == last):
        return key._replace(slot=other, stage=0 if other == "head.norm" else last)
    return key


def recognise(names: Iterable[str], origin: str = "the state dict") -> Recognised:
    """Find the one DaViT among the names.

    Args:
        origin: what to call the names in an error.

    Raises:
        CheckpointError: there is none, or more than one.
    """
    names = list(names)
    found = find(names)
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(
            f"{origin} holds more than one DaViT, under "
            f"{', '.join(sorted(repr(one.prefix) for one in found))}; say which one you mean: inspect and convert "
            "take --prefix PREFIX, load_checkpoint a state dict with only its keys."
        )
    raise CheckpointError(why_not_known(names, origin))


# The ends of names that others' ways of storing weights leave: what they are, and what to do.
_TRACES = (
    (
        re.compile(r"(^|\.)_?flat_param(_\d+)?$"),
        "weights that FSDP flattened; save the model's state dict whole (StateDictType.FULL_STATE_DICT)",
    ),
    (
        re.compile(
            r"\.(qweight|qzeros|absmax|nested_absmax|quant_map|quant_state\..+|SCB|weight_scale|weight_scale_inv|"
            r"weight_zero_point|[\w:]*_?qdata|int_data|_packed_params\..+|_data|_scale|zero_point|scales)$"
        ),
        "quantized weights, whose values are not stored as they are computed with; take the file from before the "
        "quantization, or dequantize the model and save its state_dict()",
    ),
    (
        re.compile(r"(^|\.)(exp_avg(_sq)?|momentum_buffer|max_exp_avg_sq)$"),
        "the state of an optimizer; give the file that the model was saved in",
    ),
)


def trace_of(names: Iterable[str]) -> str | None:
    """Say which way of storing weights has left such names, and what to do about it; None for none known."""
    names = list(names)
    return next((text for pattern, text in _TRACES if any(pattern.search(name) for name in names)), None)


def why_not_known(names: Sequence[str], origin: str) -> str:
    """Say that names are no known DaViT's: the first of them, the nearest layout, and what to do."""
    shown = ", ".join(as_line(name)[:120] for name in names[:3])
    text = f"{origin} holds {len(names)} tensors ({shown}{', ...' if len(names) > 3 else ''}), but "
    if trace := trace_of(names):
        return f"{text}not weights to be loaded as they are: it holds {trace}."
    text += f"not the weights of a DaViT in any layout known here ({', '.join(LAYOUTS)}). "
    layout, fitting, lacking = nearest_layout(names)
    if layout is None:
        text += "It is a checkpoint of another architecture: none of its names is one of a DaViT's. "
    else:
        text += (
            f"The nearest is {layout!r}, which has {len(fitting)} of the names ({', '.join(fitting[:2])}); names for "
            f"{', '.join(lacking[:4]) or 'nothing'} are lacking. "
        )
    return text + (
        "Give the file of a DaViT, or build the model that this file was saved from (timm.create_model) and load it "
        "there."
    )


_SPOKEN = {
    **{"qkv": "queries, keys and values", "proj": "an attention's output", "fc1": "an MLP", "fc2": "an MLP"},
    **{"cpe0": "a positional encoding", "cpe1": "a positional encoding", "norm1": "a block's norm"},
    **{"norm2": "a block's norm", "stem.proj": "the first embedding", "stem.norm": "the first embedding"},
    **{"down.proj": "a later embedding", "down.norm": "a later embedding"},
}


def nearest_layout(names: Iterable[str]) -> tuple[str | None, list[str], list[str]]:
    """Find the layout that shares most names: its name (None: no name is shared), those names, and what it lacks."""
    best: tuple[str | None, list[str], list[str]] = (None, [], [])
    names = list(names)[:_MOST_COMPARED]
    for spelling in SPELLINGS.values():
        slots: dict[str, str] = {}
        fitting = []
        for name in names:
            parts = name.split(".")
            for start in range(min(len(parts), 8)):
                key = spelling.place(".".join(part for part in parts[start:] if part not in _WITHIN))
                if key is not None and spelling.names_slot(key) and key.slot not in TAIL_SLOTS:
                    slots[key.slot] = name
                    fitting.append(name)
                    break
        if len(fitting) > len(best[1]):
            lacking = dict.fromkeys(text for slot, text in _SPOKEN.items() if slot not in slots)
            best = spelling.layout, fitting, list(lacking)
    return best


def detect_layout(state_dict: Mapping[str, Tensor]) -> str:
    """Name the layout of a state dict: one of `LAYOUTS`, whatever prefix its keys have.

    The original's names without a head are "pyramid", also if no level has a norm.

    Raises:
        CheckpointError: these are not the weights of a DaViT.
    """
    return recognise(state_dict).layout


@dataclass(frozen=True)
class Structure:
    """Describe the architecture as far as shapes tell: they do not tell the heads or the window."""

    in_chans: int
    embed_dims: tuple[int, ...]
    depths: tuple[int, ...]
    num_classes: int | None
    overlapped_patch: bool

    def __str__(self) -> str:
        head = "no head" if self.num_classes is None else f"{self.num_classes} classes"
        names = f"the shapes of {' or '.join(self.variants())}: " if self.variants() else ""
        dims = f"embed_dims {self.embed_dims}, depths {self.depths}"
        if self.overlapped_patch:
            dims += ", overlapped_patch"
        return f"{names}{dims}, {self.in_chans} input channels, {head}"

    def variants(self, function: str | None = None) -> list[str]:
        """Name the variants that have these widths, depths and embeddings, and this function unless it is None."""
        attentions = {None: None, FLORENCE2_FUNCTION: FLORENCE2}.get(function, ("spatial", "channel"))
        return variants_with(self.embed_dims, self.depths, self.overlapped_patch, attentions)


def structure_of(found: Recognised, tensors: Mapping[str, Tensor]) -> Structure:
    """Read the architecture from the shapes; incomplete weights give an incomplete structure."""

    def shape(slot: str, stage: int = 0) -> tuple[int, ...]:
        name = found.names.get(Key(slot, stage, 0, 0, "weight"))
        return tuple(tensors[name].shape) if name else ()

    stages = range(1 + max(key.stage for key in found.names))
    widths = [shape("down.proj" if stage else "stem.proj", stage) for stage in stages]
    head = shape("head.fc")
    return Structure(
        in_chans=widths[0][1] if len(widths[0]) > 1 else 0,
        embed_dims=tuple(width[0] if width else 0 for width in widths),
        depths=tuple(len({key.pair for key in found.names if key[:2] == ("qkv", stage)}) for stage in stages),
        num_classes=head[0] if head else None,
        overlapped_patch=any(width[2:] == (3, 3) for width in widths[1:]),
    )


def lacking(found: Recognised) -> list[str]:
    """Name the tensors that a DaViT with these has too: what other stages, pairs and blocks have in their places."""
    keys = list(found.names)
    stages = range(1 + max(key.stage for key in keys))
    embeds = {(key.slot.partition(".")[2], key.param) for key in keys if key.slot in EMBED_SLOTS}
    expected = [
        Key(f"{'down' if stage else 'stem'}.{layer}", stage, 0, 0, param)
        for stage in stages
        for layer, param in sorted(embeds)
    ]
    inner = [key for key in keys if key.slot not in (*EMBED_SLOTS, *TAIL_SLOTS)]
    of_a_block = sorted({(key.block, key.slot, key.param) for key in inner})
    for stage in stages:
        pairs = 1 + max((key.pair for key in inner if key.stage == stage), default=0)
        expected += [
            Key(slot, stage, pair, block, param) for pair in range(pairs) for block, slot, param in of_a_block
        ]
    return [
        found.prefix + found.spelling.render(key).removeprefix(found.spelling.prefix)
        for key in expected
        if key not in found.names
    ]


def summarise(reasons: Mapping[str, str], every: bool = False) -> list[str]:
    """Write one phrase for each reason: how many tensors, their names, the reason.

    Args:
        every: give all names, with ``*`` for the numbers in them if they are more than three; else at most three.
    """
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    phrases = []
    for reason, names in by_reason.items():
        shown = names if len(names) <= 3 else [*names[:3], "..."]
        if every and len(names) > 3:
            shown = list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names))
        phrases.append(f"{len(names)} ({', '.join(shown)}): {reason}")
    return phrases
