"""Draws all figures: ``python figures/draw.py [FOLDER]``, or ``make figures``."""

import sys
from pathlib import Path

import matplotlib

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from figures import accuracy, architecture, rooms, teaser
from figures.style import FOLDER, SETTINGS

FIGURES = {"architecture": architecture.draw, "teaser": teaser.draw, "accuracy": accuracy.draw, "rooms": rooms.draw}


def main(folder: Path = FOLDER) -> None:
    """Draw every figure into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in FIGURES.items():
        with matplotlib.rc_context(SETTINGS):
            sys.stdout.write(f"{name}: {draw(folder)}\n")


if __name__ == "__main__":
    main(*(Path(word) for word in sys.argv[1:2]))
