"""Convert the names of a DaViT's weights from any layout to any other."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ..text import some
from .function import likely_function, noted_in, with_note
from .names import (
    FLORENCE2_FUNCTION,
    LAYOUTS,
    SPELLINGS,
    CheckpointError,
    Recognised,
    lacking,
    recognise,
    structure_of,
    summarise,
)

_logger = logging.getLogger(__name__)


@dataclass
class ConversionReport:
    """Say what a conversion did.

    Attributes:
        tensors, params: how much was kept.
        renamed: how many names changed.
        dropped: name to the reason why it was left out.
        notes: what the result lacks, or is.
    """

    source_layout: str
    target_layout: str
    tensors: int = 0
    params: int = 0
    renamed: int = 0
    dropped: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [
            f"{self.source_layout} -> {self.target_layout}: {self.tensors} tensors ({self.params:,} "
            f"parameters) kept, {self.renamed} renamed"
        ]
        parts += [f"dropped {text}" for text in summarise(self.dropped)]
        return "; ".join(parts + self.notes) + "."


def convert_with_report(
    state_dict: Mapping[str, Tensor],
    to: str,
    origin: str = "the state dict",
    function: str | None = None,
    found: Recognised | None = None,
) -> tuple[dict[str, Tensor], ConversionReport]:
    """Rename a DaViT's weights to another layout, in that layout's order; tensors are shared, not copied.

    Only names change: Florence-2's weights under another name are still Florence-2's function. timm has two ways to
    name a block; the one of its ``davit_*_fl`` is used for weights of Florence-2 with the 3x3 down-sampling of its
    towers. Under our names, which do not tell, the result notes the function as a model's own state dict does.

    Args:
        state_dict: weights in any layout, with any prefix, alone or as part of a detector.
        to: one of `LAYOUTS`. "pyramid" has no head, so the final norm and the head are dropped; the others have no
            norms of the levels, so those are dropped.
        origin: what to call the weights in a message.
        function: the channel attention that they were trained with (`Checkpoint.function`); None asks the state dict.
        found: which DaViT of the state dict is meant, where there are several.

    Raises:
        CheckpointError: not a DaViT, or an edited one's own tensors, or blocks that the layout has no name for.
    """
    if to not in LAYOUTS:
        raise ValueError(f"unknown layout {to!r}; the layouts are {', '.join(LAYOUTS)}.")
    found = found or recognise(state_dict, origin)
    if to not in ("pyramid", "mmpretrain"):
        found = found.as_classifier()
    if found.additions:
        added = list(found.additions.values())
        raise CheckpointError(
            f"{origin} has {len(added)} keys that no other DaViT has ({', '.join(added[:3])}), and "
            "nothing is left out silently; remove them first if they are not needed."
        )
    function = function or noted_in(state_dict) or likely_function(found, state_dict)
    is_fl = function == FLORENCE2_FUNCTION and structure_of(found, state_dict).overlapped_patch
    spelling = SPELLINGS["davit" if to == "pyramid" else "timm_fl" if to == "timm" and is_fl else to]
    blocks = {key.block for key in found.names if key.slot == "qkv"}
    if spelling.names_blocks and blocks != {0, 1}:
        raise CheckpointError(
            f"the layout {to!r} calls the two blocks of a pair spatial and channel, but here a pair has "
            f"{len(blocks)} block(s): attention_types other than a spatial and a channel attention have no name in it."
        )
    report = ConversionReport(found.layout, to)
    report.dropped = dict.fromkeys(found.outside, f"not under {found.prefix!r}, so not the DaViT's")
    unwanted: tuple[str, ...] = ("head.norm", "head.fc") if to == "pyramid" else ("level",)
    if spelling.final_level:
        unwanted = ()
    for key, name in found.names.items():
        if key.slot in unwanted:
            report.dropped[name] = f"the layout {to!r} has no {'norm of a level' if key.slot == 'level' else 'head'}"
    last_stage = max(key.stage for key in found.names if key.slot == "qkv")
    kept = {spelling.respelled(key, last_stage): name for key, name in found.names.items() if key.slot not in unwanted}
    names = {kept[key]: spelling.render(key) for key in sorted(kept, key=spelling.rank)}
    converted = {new: state_dict[name] for name, new in names.items()}
    report.tensors, report.params = len(converted), sum(tensor.numel() for tensor in converted.values())
    report.renamed = sum(name != new for name, new in names.items())
    slots = {key.slot for key, name in found.names.items() if name in names}
    if to != "pyramid" and "head.fc" not in slots:
        report.notes.append("the result has no classifier" + ("" if "head.norm" in slots else " and no final norm"))
    if to == "pyramid" and "level" not in slots:
        report.notes.append("the result has no norms of the levels, which only a backbone has")
    if gone := lacking(found):
        report.notes.append(f"{origin} lacks {len(gone)} tensors that its other tensors need: {some(gone)}")
    report.notes += [note for note in {spelling.note, found.spelling.note} if note and spelling is not found.spelling]
    if spelling is SPELLINGS["davit"] or function != spelling.function:
        converted = with_note(converted, function)
    if spelling is not SPELLINGS["davit"] and function != spelling.function:
        report.notes.append(
            f"the names are now those of {spelling.function}'s function, the weights still of "
            f"{function}'s, whose channel attention is another"
        )
    return converted, report


def convert_state_dict(state_dict: Mapping[str, Tensor], to: str) -> dict[str, Tensor]:
    """Convert as `convert_with_report`, and log what was dropped or is lacking."""
    converted, report = convert_with_report(state_dict, to)
    _logger.log(logging.WARNING if report.dropped or report.notes else logging.INFO, "%s", report)
    return converted
