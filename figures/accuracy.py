"""accuracy.svg: accuracy against cost of the published models.

published.csv holds facts of the tables of the paper (arXiv 2204.03645) and of its code; none was re-run here.
"""

import csv
from pathlib import Path

import matplotlib

from figures.style import CHANNEL, FOLDER, OTHER, SETTINGS, SPATIAL, canvas, save

_PANELS = (
    ("cls", "ImageNet-1K, 224 px", "top-1 [%]", "FLOPs [G]"),
    ("det", "COCO, 1280 x 800", "box mAP", "FLOPs [G]"),
    ("seg", "ADE20K, 512 x 2048", "mIoU", "FLOPs [G]"),
)
_STYLES = {
    ("", "IN-1K"): (SPATIAL, "-", "o"),
    ("Mask R-CNN", "1x"): (SPATIAL, "--", "o"),
    ("Mask R-CNN", "3x"): (SPATIAL, "-", "o"),
    ("RetinaNet", "1x"): (CHANNEL, "--", "s"),
    ("RetinaNet", "3x"): (CHANNEL, "-", "s"),
    ("UPerNet", "160k"): (OTHER, "-", "^"),
}


def draw(folder: Path) -> Path:
    """Draw it into a folder; returns the file."""
    with (FOLDER / "published.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    with matplotlib.rc_context(SETTINGS):
        figure = canvas(9.6, 3.1)
        for place, (task, title, metric, cost) in enumerate(_PANELS):
            axes = figure.add_axes((0.065 + 0.325 * place, 0.2, 0.255, 0.62))
            axes.set_title(title, fontsize=9.5)
            axes.set_xlabel(cost)
            axes.set_ylabel(metric)
            axes.grid(alpha=0.3)
            ours = [row for row in rows if row["task"] == task]
            for line in dict.fromkeys((row["method"], row["schedule"]) for row in ours):
                _line(axes, [row for row in ours if (row["method"], row["schedule"]) == line])
            axes.margins(x=0.14, y=0.14)
            if task == "det":
                axes.legend(fontsize=7, frameon=False, loc="lower right")
        figure.text(0.5, 0.97, "DaViT: published accuracy (not re-run here) against cost", ha="center", va="top")
        return save(figure, "accuracy", folder)


def _line(axes, rows: list[dict[str, str]]) -> None:
    """The variants of one method and schedule."""
    colour, dash, marker = _STYLES[rows[0]["method"], rows[0]["schedule"]]
    x, y = ([float(row[name]) for row in rows] for name in ("flops_G", "value"))
    label = f"{rows[0]['method']} {rows[0]['schedule']}".strip()
    axes.plot(x, y, linestyle=dash, marker=marker, color=colour, markersize=4.5, linewidth=1.4, label=label)
    if rows[0]["schedule"] != "1x" and rows[0]["method"] != "RetinaNet":  # the topmost line of a panel
        for left, top, row in zip(x, y, rows, strict=True):
            low = row["variant"] == "tiny"  # at the foot of the line, which would run through the word
            place = {"xytext": (-5, 2), "ha": "right"} if low else {"xytext": (0, 6), "ha": "center"}
            axes.annotate(row["variant"], (left, top), textcoords="offset points", fontsize=7.5, **place)
