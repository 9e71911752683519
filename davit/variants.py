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

    def model_kwargs(self) -> dict[str, Any]:
        """Return the arguments that build the variant."""
        return {name: value for name, value in vars(self).items() if name != "image_size"}


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
    # ours, not from the paper: small enough to learn handwritten digits on two CPU cores in two minutes
    "DaViT_nano":  Variant((32, 64, 128, 160), (1, 1, 1, 1), (1, 2, 4, 5), 4, 32),
}
# fmt: on


def variants_with(embed_dims: Sequence[int], depths: Sequence[int]) -> list[str]:
    """Name the variants that have these widths and depths: several if only windows or heads differ."""
    wanted = (tuple(embed_dims), tuple(depths))
    return [name for name, variant in VARIANTS.items() if (variant.embed_dims, variant.depths) == wanted]
