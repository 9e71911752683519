"""Draw speed.svg: published accuracy against measured speed on a CPU.

Speeds are those of benchmarks/results/throughput_cpu.json. Top-1 accuracies on ImageNet-1K at 224 px are published by
the authors: DaViT (arXiv 2204.03645), Swin (arXiv 2103.14030), ConvNeXt (arXiv 2201.03545); none was re-run here.
"""

import json
from typing import Any

from matplotlib.figure import Figure

from figures.style import CHANNEL, FOLDER, OTHER, SPATIAL, canvas

RESULTS = FOLDER.parent / "benchmarks" / "results" / "throughput_cpu.json"
TOP1 = {
    **{"DaViT_tiny": 82.8, "davit_tiny": 82.8},
    **{"swin_tiny_patch4_window7_224": 81.3, "convnext_tiny": 82.1},
}
_SHOWN = {  # the case, its words, and where they stand
    "DaViT_tiny/bfloat16/eager": ("DaViT_tiny here, bfloat16", SPATIAL, (0, 9), "right"),
    "DaViT_tiny/float32/eager": ("DaViT_tiny here", SPATIAL, (0, 9), "center"),
    "davit_tiny/bfloat16/eager": ("timm's davit_tiny, bfloat16", CHANNEL, (0, -15), "left"),
    "davit_tiny/float32/eager": ("timm's davit_tiny", CHANNEL, (-6, 9), "center"),
    "convnext_tiny/float32/eager": ("ConvNeXt tiny", OTHER, (8, -3), "left"),
    "swin_tiny_patch4_window7_224/float32/eager": ("Swin tiny", OTHER, (8, -3), "left"),
}


def speeds() -> dict[str, dict[str, Any]]:
    """Read the case of each name; where several tables have one, the first."""
    tables = json.loads(RESULTS.read_text(encoding="utf-8"))["results"].values()
    found: dict[str, dict[str, Any]] = {}
    for row in (row for table in tables for row in table):
        found.setdefault(row["name"], row)
    return found


def figure() -> Figure:
    """Draw a point for each case."""
    drawn = canvas(7.2, 2.9, layout="constrained")
    axes = drawn.subplots()
    rows = speeds()
    for name, (words, colour, place, side) in _SHOWN.items():
        row = rows[name]
        x, y = row["images_per_second"], TOP1[row["model"]]
        filled = colour if row["dtype"] == "float32" else "white"
        axes.plot(x, y, "o", color=colour, markerfacecolor=filled, markersize=7)
        axes.annotate(words, (x, y), xytext=place, textcoords="offset points", fontsize=8, ha=side, color=colour)
    environment = json.loads(RESULTS.read_text(encoding="utf-8"))["environment"]
    processor = environment["cpu"].partition(", AVX")[0]
    axes.set_xlabel(f"images/s, batch 8, 224 px, eager ({processor}, measured; float32 where filled)")
    axes.set_ylabel("ImageNet-1K top-1 [%], published")
    axes.set(xlim=(8, 42), ylim=(81, 83.3))
    axes.grid(alpha=0.3)
    return drawn
