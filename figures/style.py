"""Give the figures their fonts, their colours (Okabe and Ito's, for colour-blind readers too) and their format."""

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

FOLDER = Path(__file__).resolve().parent
SPATIAL, CHANNEL, OTHER, PLAIN, INK = "#0072b2", "#d55e00", "#009e73", "#e9e9e9", "#222222"
SETTINGS: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "svg.fonttype": "path",  # letters as drawn here, whatever fonts the reader has
    "svg.hashsalt": "davit",  # the same file each time
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def canvas(width: float, height: float, **options: Any) -> Figure:
    """Make an empty white figure, in inches."""
    figure = Figure(figsize=(width, height), facecolor="white", **options)
    FigureCanvasAgg(figure)
    return figure


def blank_axes(figure: Figure, width: float, height: float) -> Any:
    """Make axes over the whole figure in inches, with nothing drawn."""
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_aspect("equal")
    axes.set_axis_off()
    return axes


def box(
    axes: Any, x: float, y: float, width: float, height: float, text: str, colour: str = PLAIN, **font: Any
) -> None:
    """Draw a rounded box by its lower left corner, with text in its middle."""
    shape = "round,pad=0,rounding_size=0.06"
    axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=shape, facecolor=colour, edgecolor="none"))
    ink = "white" if colour in (SPATIAL, CHANNEL, OTHER) else INK
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", **{"color": ink, **font})


def arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], **style: Any) -> None:
    """Draw an arrow between two points."""
    look = {"arrowstyle": "-|>", "mutation_scale": 9, "color": INK, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(start, end, **{**look, **style}))


def save(figure: Figure, name: str, folder: Path) -> Path:
    """Write NAME.svg, without a date, so that drawing again changes nothing."""
    file = folder / f"{name}.svg"
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file
