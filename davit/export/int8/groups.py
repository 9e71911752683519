"""Name the groups of operations of a DaViT that are quantized, or left in float, together.

Norms, softmax, GELU and additions are in no group: they always stay float.
"""

from __future__ import annotations

from typing import TypeAlias

Groups: TypeAlias = dict[str, tuple[str, ...]]  # name -> names of operations

STEM, PATCHES, POSITIONS = "stem", "patch embeddings", "position encodings"
LINEAR, BEHIND_GELU, PRODUCTS, HEAD = "linear layers", "linear layers behind GELU", "attention products", "classifier"


def group_of(
    *, is_convolution: bool, is_first: bool, is_depthwise: bool, has_weight: bool, behind_gelu: bool, is_head: bool
) -> str:
    """Say which group a convolution or a product of matrices belongs to.

    Args:
        is_first: no convolution comes before it.
        has_weight: one factor is a weight; else both are computed from the image, as in attention.
    """
    if is_convolution:
        return STEM if is_first else POSITIONS if is_depthwise else PATCHES
    if is_head:
        return HEAD
    if not has_weight:
        return PRODUCTS
    return BEHIND_GELU if behind_gelu else LINEAR
