"""Draw all figures: ``python figures/draw.py [FOLDER]``, or ``make figures``."""

import sys
from pathlib import Path

import matplotlib

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from figures import accuracy, architecture, badges, rooms, speed, teaser
from figures.style import FOLDER, SETTINGS, save

FIGURES = {
    "architecture": architecture.figure,
    "teaser": teaser.figure,
    "accuracy": accuracy.figure,
    "rooms": rooms.figure,
    "speed": speed.figure,
    "badge_licence": badges.licence,
    "badge_python": badges.python,
    "badge_tests": badges.tests,
}


def main(folder: Path = FOLDER) -> None:
    """Draw every figure into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in FIGURES.items():
        with matplotlib.rc_context(SETTINGS):
            sys.stdout.write(f"{name}: {save(figure(), name, folder)}\n")


if __name__ == "__main__":
    main(*(Path(word) for word in sys.argv[1:2]))
