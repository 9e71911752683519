"""Name the groups of operations of a DaViT, or of a detector on it, that are quantized, or left in float, together.

Norms, softmax, activations and additions are in no group: they always stay float. So do a detector's anchors, the
decoding of its boxes and suppression, and what else lies between its networks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

Groups: TypeAlias = dict[str, tuple[str, ...]]  # name -> names of operations

STEM, PATCHES, POSITIONS = "stem", "patch embeddings", "position encodings"
LINEAR, BEHIND_GELU, PRODUCTS, HEAD = "linear layers", "linear layers behind GELU", "attention products", "classifier"
NECK, HEADS, ANSWERS = "neck", "heads", "last layers of heads"

#: the networks of a detector behind its backbone, as `davit.export.detectors` names them, by the place in the graph
_PARTS = re.compile(r"(?:module\.)?(?:(neck)|first|stages|masks|head)\.")
_LAST = re.compile(r"\.(rpn_cls|rpn_reg|retina_cls|retina_reg|fc_cls|fc_reg|conv_logits)\.weight")


class Places:
    """Tells the backbone of a detector from its neck and its heads, by the names of weights and what comes after what.

    Many weights of the backbone lose their names in the translation; those of the neck and the heads start again
    with a convolution that has one.
    """

    def __init__(self) -> None:
        self._rank: dict[str, int] = {}

    def follow(self, inputs: Sequence[str], outputs: Sequence[str]) -> int:
        """Return where an operation is: 0 backbone, 1 neck, 2 heads. Operations come in the order of computation."""
        rank = max((self._rank.get(name, _rank_of(name)) for name in inputs), default=0)
        self._rank.update(dict.fromkeys(outputs, rank))
        return rank


def _rank_of(name: str) -> int:
    found = _PARTS.match(name)
    return 0 if found is None else 1 if found.group(1) else 2


def group_of(
    *,
    is_convolution: bool,
    is_first: bool,
    is_depthwise: bool,
    has_weight: bool,
    behind_gelu: bool,
    is_head: bool,
    place: int = 0,
    weight: str = "",
) -> str:
    """Say which group a convolution or a product of matrices belongs to.

    Args:
        is_first: no convolution comes before it.
        has_weight: one factor is a weight; else both are computed from the image, as in attention.
        place: as `Places.follow` counts.
        weight: its name.
    """
    if place:
        return NECK if place == 1 else ANSWERS if _LAST.search(weight) else HEADS
    if is_convolution:
        return STEM if is_first else POSITIONS if is_depthwise else PATCHES
    if is_head:
        return HEAD
    if not has_weight:
        return PRODUCTS
    return BEHIND_GELU if behind_gelu else LINEAR
