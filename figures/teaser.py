"""Draw teaser.svg: the same map read twice, as tokens that are positions and as tokens that are channels."""

from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from figures.style import CHANNEL, INK, SPATIAL, blank_axes, canvas

_WIDTH, _HEIGHT = 9.6, 4.1
_SIDE, _WINDOW, _DEPTH, _GROUP = 6, 3, 8, 4  # positions a side, of a window; channels, of a group
_U, _RIGHT, _UP = 0.24, 0.13, 0.1  # a position, and a channel's step to the right and up
_TINTS = {SPATIAL: ("#0072b2", "#56b4e9"), CHANNEL: ("#d55e00", "#e69f00")}


def figure() -> Figure:
    """Draw spatial attention on the left and channel attention on the right."""
    drawn = canvas(_WIDTH, _HEIGHT)
    axes = blank_axes(drawn, _WIDTH, _HEIGHT)
    _side(axes, 0.5, SPATIAL, "spatial window attention", "a token is a position: a vector of C channels")
    _side(axes, 5.3, CHANNEL, "channel group attention", "a token is a channel: a whole image of P positions")
    _spatial(axes, 0.75, 1.2)
    _channel(axes, 5.55, 1.2)
    below = (
        (0.5, "N x N weights in each window of N positions", "2 P N C multiply-adds; sees one window"),
        (5.3, "D x D weights in each group of D channels", "2 P D C multiply-adds; sees the whole image"),
    )
    for x, first, second in below:
        axes.text(x, 0.78, first, va="top")
        axes.text(x, 0.5, second, va="top")
    axes.plot([4.8, 4.8], [0.3, 3.8], color="#bbbbbb", linewidth=0.8)
    return drawn


def _side(axes, x: float, colour: str, title: str, text: str) -> None:
    axes.text(x, 3.95, title, fontsize=11, fontweight="bold", color=colour, va="top")
    axes.text(x, 3.65, text, va="top")


def _face(axes, x: float, y: float, colour: str, **style) -> None:
    """Draw one position of one channel."""
    corners = [(x, y), (x + _U, y), (x + _U, y + _U), (x, y + _U)]
    axes.add_patch(Polygon(corners, closed=True, facecolor=colour, edgecolor="white", linewidth=0.5, **style))


def _spatial(axes, x: float, y: float) -> None:
    """Draw the front of the map in windows, and one token through all channels."""
    tints = _TINTS[SPATIAL]
    for channel in reversed(range(_DEPTH)):
        left, bottom = x + channel * _RIGHT, y + channel * _UP
        for row in range(_SIDE):
            for column in range(_SIDE):
                if channel in (0, _DEPTH - 1) or row == _SIDE - 1 or column == _SIDE - 1:
                    shade = tints[(row // _WINDOW + column // _WINDOW) % 2]
                    _face(axes, left + column * _U, bottom + row * _U, shade, alpha=0.95)
    _label(axes, x, y)
    right = x + 2.65
    axes.text(right, y + 1.85, "one token", ha="left", va="center", fontsize=8)
    for channel in reversed(range(_DEPTH)):
        _face(axes, right + channel * 0.1, y + 0.95 + 0.7 * channel * _UP, tints[0])
    axes.text(right, y + 0.75, "C values", ha="left", va="center", fontsize=8)


def _channel(axes, x: float, y: float) -> None:
    """Draw the channels one behind the other in groups, and one token: a sheet."""
    tints = _TINTS[CHANNEL]
    for channel in reversed(range(_DEPTH)):
        group = channel // _GROUP
        left, bottom = x + channel * _RIGHT + 0.25 * group, y + channel * _UP
        corners = [(left, bottom), (left + _SIDE * _U, bottom)]
        corners += [(left + _SIDE * _U, bottom + _SIDE * _U), (left, bottom + _SIDE * _U)]
        axes.add_patch(Polygon(corners, closed=True, facecolor=tints[group], edgecolor="white", linewidth=0.8))
    _label(axes, x, y)
    right = x + 2.85
    axes.text(right, y + 1.85, "one token", ha="left", va="center", fontsize=8)
    small = 0.13
    for row in range(_SIDE):
        for column in range(_SIDE):
            left, bottom = right + column * small, y + 0.95 + row * small
            corners = [(left, bottom), (left + small, bottom), (left + small, bottom + small), (left, bottom + small)]
            axes.add_patch(Polygon(corners, closed=True, facecolor=tints[0], edgecolor="white", linewidth=0.5))
    axes.text(right, y + 0.75, "P values", ha="left", va="center", fontsize=8)


def _label(axes, x: float, y: float) -> None:
    """Write the three directions of a map."""
    axes.text(x + _SIDE * _U / 2, y - 0.06, "W", ha="center", va="top", fontsize=8, color=INK)
    axes.text(x - 0.06, y + _SIDE * _U / 2, "H", ha="right", va="center", fontsize=8, color=INK)
    middle = _DEPTH / 2
    axes.text(x + _SIDE * _U + middle * _RIGHT + 0.12, y + middle * _UP - 0.12, "C", fontsize=8, color=INK, va="top")
