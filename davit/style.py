"""Give all figures one look: the fonts that names need, sizes of letters, colours that most eyes tell apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from .fonts import matplotlib_fonts

#: Okabe and Ito's colours, the most different first.
BLUE, ORANGE, GREEN, PINK, AMBER, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
COLOURS = (BLUE, ORANGE, GREEN, PINK, AMBER, SKY, "#8c564b", "#444444")
GREY = "#555555"  # of what is said beside
MAP = "viridis"  # of amounts

TITLE, TEXT, SMALL = 11.0, 9.0, 8.0  # points
DPI = 110

_SETTINGS: dict[str, Any] = {
    "figure.dpi": DPI,
    "font.size": TEXT,
    "figure.titlesize": TITLE,
    "axes.titlesize": TITLE,
    "axes.labelsize": TEXT,
    "xtick.labelsize": SMALL,
    "ytick.labelsize": SMALL,
    "legend.fontsize": SMALL,
    "legend.framealpha": 0.8,
    "axes.edgecolor": GREY,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
}


@contextmanager
def figure_style(texts: Iterable[str] | None = None) -> Iterator[None]:
    """Have matplotlib draw as all figures look, for what is made within.

    Args:
        texts: names that are drawn, with the fonts that they need, and never as formulas; None where all texts are the
            figure's own.
    """
    from matplotlib import rc_context

    with rc_context(_SETTINGS), nullcontext() if texts is None else matplotlib_fonts(texts):
        yield


def pixels(points: float) -> int:
    """Return the size of letters in an image that is as sharp as the figures."""
    return round(points * DPI / 72)
