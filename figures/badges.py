"""Draw badge_licence.svg, badge_python.svg and badge_tests.svg from pyproject.toml, for the head of the README."""

import re

from matplotlib.figure import Figure

from figures.style import FOLDER, INK, OTHER, SPATIAL, blank_axes, box, canvas

PROJECT = (FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8")


def _of_project(key: str) -> str:
    found = re.search(rf'^{key} = "(?:>=)?([^"]+)"', PROJECT, re.MULTILINE)
    assert found, key
    return found.group(1)


def _badge(left: str, right: str, colour: str) -> Figure:
    """Draw a grey word and a coloured one side by side."""
    widths = [0.16 + 0.068 * len(word) for word in (left, right)]
    drawn = canvas(sum(widths), 0.22)
    axes = blank_axes(drawn, sum(widths), 0.22)
    box(axes, 0, 0, widths[0] + 0.1, 0.22, "", INK)
    box(axes, widths[0], 0, widths[1], 0.22, right, colour, fontsize=8)
    axes.text(widths[0] / 2, 0.11, left, ha="center", va="center", color="white", fontsize=8)
    return drawn


def licence() -> Figure:
    """Draw the licence."""
    return _badge("licence", _of_project("license"), OTHER)


def python() -> Figure:
    """Draw the oldest Python."""
    return _badge("Python", f"{_of_project('requires-python')} or newer", SPATIAL)


def tests() -> Figure:
    """Draw the command that must pass before a change lands."""
    return _badge("CI", "make lint test", SPATIAL)
