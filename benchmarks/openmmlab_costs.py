"""Count parameters and FLOPs of the detectors and segmentors of the paper, beside the published ones.

    python benchmarks/openmmlab_costs.py

writes costs.csv and README.md into benchmarks/results/openmmlab_costs/. It counts and measures nothing, so the
machine does not matter. Ten minutes on two cores.
"""

import csv
import sys
from pathlib import Path

import davit.openmmlab  # noqa: F401  before mmdet and mmseg
from davit.openmmlab.config import read_config
from davit.openmmlab.flops import cost_of

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "openmmlab_costs"

METHODS = {"maskrcnn": "Mask R-CNN", "retinanet": "RetinaNet", "upernet": "UPerNet"}


def published(config: str) -> tuple[str, str]:
    """Find the published parameters (millions) and GFLOPs of a config, or two empty words."""
    size = next((size for size in ("small", "base") if f"_{size}_" in config), "tiny")
    method = next((name for word, name in METHODS.items() if word in config and "cascade" not in config), None)
    with (ROOT / "figures" / "published.csv").open() as stream:
        for row in csv.DictReader(stream):
            if (row["method"], row["variant"]) == (method, size):
                return row["params_M"], row["flops_G"]
    return "", ""


def main() -> None:
    every = sorted([*ROOT.glob("mmdet/configs/*_coco.py"), *ROOT.glob("mmseg/configs/*_ade20k.py")])
    files = [file for file in every if any(word in file.stem for word in METHODS) and "_fl_" not in file.stem]
    rows = []
    for file in files:
        found = cost_of(read_config(file), file.stem)
        parameters, flops = published(file.stem)
        rows.append(
            {
                "config": file.stem,
                "size": f"{found.size[1]}x{found.size[0]}",
                "parameters_M": f"{found.parameters / 1e6:.2f}",
                "published_M": parameters,
                "gflops": f"{found.flops / 1e9:.1f}",
                "published_gflops": flops,
            }
        )
        sys.stdout.write(f"{rows[-1]}\n")
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / "costs.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    head = ["config", "picture", "parameters, M", "published", "GFLOPs", "published"]
    lines = [head, ["---"] * len(head), *[[str(value) for value in row.values()] for row in rows]]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    (RESULTS / "README.md").write_text(
        "# What detectors and segmentors cost\n\n"
        "Written by `python benchmarks/openmmlab_costs.py`; one config by `get_flops.py`. Multiply-adds of one\n"
        "picture by fvcore; the convention is in `davit/openmmlab/flops.py`. Published: the original's tables.\n\n"
        f"{table}\n"
    )


if __name__ == "__main__":
    main()
