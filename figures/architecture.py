"""Draw architecture.svg: the stages of DaViT_tiny with their shapes, and the two kinds of block."""

from matplotlib.figure import Figure

from davit import VARIANTS
from figures.style import CHANNEL, INK, PLAIN, SPATIAL, arrow, blank_axes, box, canvas

_WIDTH, _HEIGHT, _BOTTOM = 9.6, 4.0, 0.5


def figure() -> Figure:
    """Draw the stages above, and below them a block of either kind."""
    drawn = canvas(_WIDTH, _HEIGHT)
    axes = blank_axes(drawn, _WIDTH, _HEIGHT)
    axes.set_ylim(_BOTTOM, _BOTTOM + _HEIGHT)
    _stages(axes)
    _block(axes, 0.55, "spatial block", "window attention", "among the positions\nof each window", SPATIAL)
    _block(axes, 5.2, "channel block", "channel group attention", "among the channels\nof each group", CHANNEL)
    return drawn


def _stages(axes) -> None:
    variant = VARIANTS["DaViT_tiny"]
    side = variant.image_size
    axes.text(0.48, 3.55, f"image\n{side} x {side}", ha="center", va="center")
    x = 1.0
    for stage, (dim, depth, heads) in enumerate(
        zip(variant.embed_dims, variant.depths, variant.num_heads, strict=True)
    ):
        side //= 4 if stage == 0 else 2
        arrow(axes, (x - 0.14, 3.55), (x, 3.55))
        embedding = "7x7 conv\nstride 4" if stage == 0 else "2x2 conv\nstride 2"
        box(axes, x, 3.2, 0.62, 0.7, embedding, PLAIN, fontsize=7)
        box(axes, x + 0.68, 3.2, 0.46, 0.7, "spatial", SPATIAL, fontsize=7, rotation=90)
        box(axes, x + 1.18, 3.2, 0.46, 0.7, "channel", CHANNEL, fontsize=7, rotation=90)
        pairs = "pair" if depth == 1 else "pairs"
        axes.text(x + 1.16, 4.0, f"{depth} {pairs}", ha="center", va="bottom", fontsize=8)
        axes.text(x + 0.82, 4.22, f"stage {stage + 1}", ha="center", va="bottom", fontweight="bold")
        text = f"{side} x {side} positions\n{dim} channels, {heads} groups"
        axes.text(x + 0.82, 3.1, text, ha="center", va="top", fontsize=7.5)
        x += 1.9
    arrow(axes, (x - 0.14, 3.55), (x, 3.55))
    box(axes, x, 3.2, 0.62, 0.7, "mean\nnorm\nlinear", PLAIN, fontsize=7)
    axes.text(x + 0.31, 3.1, "1000\nclasses", ha="center", va="top", fontsize=7.5)


def _block(axes, x: float, title: str, attention: str, what: str, colour: str) -> None:
    """Draw position encoding, residual attention, position encoding, residual MLP."""
    y, height = 1.0, 0.62
    axes.text(x, 2.25, title, fontweight="bold", color=colour, va="center")
    parts = (("conv\n3x3", 0.5), ("norm", 0.44), (attention, 0.98), ("conv\n3x3", 0.5), ("norm", 0.44), ("MLP", 0.5))
    gap, left = 0.09, x
    middle = y + height / 2
    places = []
    for text, width in parts:
        shade = colour if text == attention else PLAIN
        box(axes, left, y, width, height, text.replace(" attention", "\nattention"), shade, fontsize=7)
        places.append((left, width))
        left += width + gap
    arrow(axes, (x - 0.24, middle), (x, middle))
    arrow(axes, (left - gap, middle), (left + 0.16, middle))
    for first, last in ((1, 2), (4, 5)):
        start = places[first][0] - gap / 2
        end = places[last][0] + places[last][1] + gap / 2
        top = y + height + 0.2
        axes.plot([start, start, end], [middle, top, top], color=INK, linewidth=0.9)
        arrow(axes, (end, top), (end, middle))
        axes.text((start + end) / 2, y + height + 0.24, "+", ha="center", va="bottom", fontsize=9)
    for place in (0, 3):
        axes.text(places[place][0] + 0.25, y - 0.06, "+ input", ha="center", va="top", fontsize=6.5)
    axes.text(places[2][0] + 0.49, y - 0.06, what, ha="center", va="top", fontsize=7.5, color=colour)
