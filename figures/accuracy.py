"""Draw accuracy.svg: accuracy against cost of the published models.

published.csv holds facts of the tables of the paper (arXiv 2204.03645) and of its code; none was re-run here.
"""

import csv

from matplotlib.figure import Figure

from figures.style import CHANNEL, FOLDER, OTHER, SPATIAL, canvas

_PANELS = (
    ("cls", "ImageNet-1K, 224 px", "top-1 [%]"),
    ("det", "COCO, 1280 x 800", "box mAP"),
    ("seg", "ADE20K, 512 x 2048", "mIoU"),
)
_STYLES = {
    ("", "IN-1K"): (SPATIAL, "-", "o"),
    ("Mask R-CNN", "1x"): (SPATIAL, "--", "o"),
    ("Mask R-CNN", "3x"): (SPATIAL, "-", "o"),
    ("RetinaNet", "1x"): (CHANNEL, "--", "s"),
    ("RetinaNet", "3x"): (CHANNEL, "-", "s"),
    ("UPerNet", "160k"): (OTHER, "-", "^"),
}


def figure() -> Figure:
    """Draw one panel a task, and in it one line a method and schedule."""
    with (FOLDER / "published.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    drawn = canvas(9.6, 3.1, layout="constrained")
    drawn.suptitle("DaViT: published accuracy (not re-run here) against cost", fontsize=9)
    panels = drawn.subplots(1, len(_PANELS))
    for axes, (task, title, metric) in zip(panels, _PANELS, strict=True):
        axes.set_title(title, fontsize=9.5)
        axes.set_xlabel("FLOPs [G]")
        axes.set_ylabel(metric)
        axes.grid(alpha=0.3)
        ours = [row for row in rows if row["task"] == task]
        for line in dict.fromkeys((row["method"], row["schedule"]) for row in ours):
            _line(axes, [row for row in ours if (row["method"], row["schedule"]) == line])
        axes.margins(x=0.2, y=0.14)
        if task == "det":
            axes.legend(fontsize=7, frameon=False, loc="lower right")
    return drawn


def _line(axes, rows: list[dict[str, str]]) -> None:
    """Draw the variants of one method and schedule."""
    colour, dash, marker = _STYLES[rows[0]["method"], rows[0]["schedule"]]
    x, y = ([float(row[name]) for row in rows] for name in ("flops_G", "value"))
    label = f"{rows[0]['method']} {rows[0]['schedule']}".strip()
    axes.plot(x, y, linestyle=dash, marker=marker, color=colour, markersize=4.5, linewidth=1.4, label=label)
    if rows[0]["schedule"] != "1x" and rows[0]["method"] != "RetinaNet":  # the topmost line of a panel
        for left, top, row in zip(x, y, rows, strict=True):
            low = row["variant"] == "tiny"  # at the foot of the line, which would run through the word
            place = {"xytext": (-5, 2), "ha": "right"} if low else {"xytext": (0, 6), "ha": "center"}
            axes.annotate(row["variant"], (left, top), textcoords="offset points", fontsize=7.5, **place)
