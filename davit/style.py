"""Give all figures one look: the fonts that names need, sizes of letters, colours that most eyes tell apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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
def figure_style(texts: Iterable[str] = ()) -> Iterator[None]:
    """Have matplotlib draw as all figures look, with the fonts that some texts need; for what is made within."""
    from matplotlib import rc_context

    with rc_context(_SETTINGS), matplotlib_fonts(texts):
        yield


def pixels(points: float) -> int:
    """Return the size of letters in an image that is as sharp as the figures."""
    return round(points * DPI / 72)
