"""List the variants of DaViT, one line each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Variant:
    """Hold what distinguishes one variant; heads are also the groups of channel attention."""

    embed_dims: tuple[int, ...]
    depths: tuple[int, ...]
    num_heads: tuple[int, ...]
    window_size: int = 7
    image_size: int = 224
    overlapped_patch: bool = False
    attention_types: tuple[str, ...] = ("spatial", "channel")

    def model_kwargs(self) -> dict[str, Any]:
        """Return the arguments that build the variant."""
        return {name: value for name, value in vars(self).items() if name != "image_size"}


#: Blocks of Florence-2's towers: their channel attention is another function of the same weights.
FLORENCE2 = ("spatial", "channel_qk")

# fmt: off
VARIANTS: dict[str, Variant] = {
    # from the paper (tables 1 and 2); only overlapping patches give its 362M and 1437M parameters for H and G
    "DaViT_tiny":  Variant((96, 192, 384, 768), (1, 1, 3, 1), (3, 6, 12, 24)),
    "DaViT_small": Variant((96, 192, 384, 768), (1, 1, 9, 1), (3, 6, 12, 24)),
    "DaViT_base":  Variant((128, 256, 512, 1024), (1, 1, 9, 1), (4, 8, 16, 32)),
    "DaViT_large": Variant((192, 384, 768, 1536), (1, 1, 9, 1), (6, 12, 24, 48)),
    "DaViT_large_window12_384": Variant((192, 384, 768, 1536), (1, 1, 9, 1), (6, 12, 24, 48), 12, 384),
    "DaViT_huge":  Variant((256, 512, 1024, 2048), (1, 1, 9, 1), (8, 16, 32, 64), overlapped_patch=True),
    "DaViT_giant": Variant((384, 768, 1536, 3072), (1, 1, 12, 3), (12, 24, 48, 96), overlapped_patch=True),
    # vision towers of Florence-2 (arXiv 2311.06242), base and large; timm's names are davit_base_fl and davit_huge_fl
    "DaViT_base_fl":  Variant((128, 256, 512, 1024), (1, 1, 9, 1), (4, 8, 16, 32), 12, 768, True, FLORENCE2),
    "DaViT_large_fl": Variant((256, 512, 1024, 2048), (1, 1, 9, 1), (8, 16, 32, 64), 12, 768, True, FLORENCE2),
    # ours, not from the paper: small enough to learn handwritten digits on two CPU cores in two minutes
    "DaViT_nano":  Variant((32, 64, 128, 160), (1, 1, 1, 1), (1, 2, 4, 5), 4, 32),
}
# fmt: on


def variants_with(
    embed_dims: Sequence[int],
    depths: Sequence[int],
    overlapped_patch: bool | None = None,
    attention_types: Sequence[str] | None = None,
) -> list[str]:
    """Name the variants that have these widths and depths; several if others of their numbers differ.

    Args:
        overlapped_patch: only variants whose patch embeddings overlap, or do not; None for both.
        attention_types: only variants of these; None for all.
    """
    wanted: dict[str, Any] = {"embed_dims": tuple(embed_dims), "depths": tuple(depths)}
    if overlapped_patch is not None:
        wanted["overlapped_patch"] = overlapped_patch
    if attention_types is not None:
        wanted["attention_types"] = tuple(attention_types)
    return [name for name, variant in VARIANTS.items() if wanted.items() <= vars(variant).items()]
