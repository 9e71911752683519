"""Measure time and memory over the number of pixels, ours and peers', with a plot: cost should grow linearly.

    python benchmarks/linear_cost.py --sizes 224 384 512 768 1024 1536

One image a step, inference; every model and size in a process of its own (see throughput.py). The exponent is the
slope of time over pixels between the smallest and the largest size, both logarithmic: 1 is linear, and a model whose
attention is global tends to 2. A model that cannot read a size is left out there.
"""

import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measure import CLOCKS, RESULTS, Measured, as_data, compare, parsed_case, table, write_report

from davit.parsing import Parser, RawHelp
from davit.style import COLOURS, GREY, figure_style

MODELS = ("DaViT_tiny", "davit_tiny", "swin_tiny_patch4_window7_224", "convnext_tiny", "deit_small_patch16_224")


def exponent(points: dict[int, float]) -> float:
    """Compute the exponent of cost over pixels, given the cost for each side in pixels."""
    low, high = min(points), max(points)
    return math.log(points[high] / points[low]) / (2 * math.log(high / low)) if high > low else math.nan


def draw(times: dict[str, dict[int, float]], memory: dict[str, dict[int, float]], path: Path) -> None:
    with figure_style():
        figure = Figure(figsize=(11, 4.5), layout="constrained")
        for place, (values, label) in enumerate(((times, "seconds an image"), (memory, "peak memory, MiB")), start=1):
            axes = figure.add_subplot(1, 2, place, xlabel="pixels, millions", ylabel=label)
            for (model, points), colour in zip(values.items(), COLOURS * len(values), strict=False):
                sides = sorted(points)
                megapixels = [side * side / 1e6 for side in sides]
                axes.plot(megapixels, [points[s] for s in sides], "o-", color=colour, label=model, markersize=4)
            if place == 1:
                sides = sorted({side for points in times.values() for side in points})
                start = min((points[sides[0]] for points in times.values() if sides[0] in points), default=1.0)
                line = [start * (side / sides[0]) ** 2 for side in sides]
                axes.plot([side * side / 1e6 for side in sides], line, ":", color=GREY, label="linear")
                axes.legend()
            axes.set(xscale="log", yscale="log")
            axes.grid(which="both")
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axis.set_minor_formatter(NullFormatter())
        figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=RawHelp)
    parser.add_argument("--models", nargs="+", default=MODELS, help="models to measure")
    parser.add_argument(
        "--sizes", nargs="+", type=int, default=(224, 384, 512, 768, 1024, 1536), help="sides of the images in pixels"
    )
    parser.add_argument("--dtype", default="float32", help="dtype to measure")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="device to measure on")
    parser.add_argument("--threads", type=int, default=0, help="threads that compute; 0 is PyTorch's choice")
    parser.add_argument(
        "--clock",
        choices=tuple(CLOCKS),
        default="wall",
        help="measure wall time, or processor time, which other programs on the machine disturb less",
    )
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each case, taken in turns")
    parser.add_argument("--name", default="linear_cost", help="the results are written into NAME.json and NAME.md")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="folder to write the results into")
    options = parser.parse_args(arguments)
    results: list[Measured] = []
    for side in options.sizes:
        common = {"batch": 1, "size": (side, side), "device": options.device, "threads": options.threads}
        try:
            listed = [parsed_case(f"{m}/{options.dtype}/eager", clock=options.clock, **common) for m in options.models]
        except ValueError as error:
            parser.error(str(error))
        sys.stderr.write(f"== {side} px\n")
        results += compare(listed, listed[0], options.rounds, lambda line: sys.stderr.write(line + "\n") and None)
    times: dict[str, dict[int, float]] = defaultdict(dict)
    memory: dict[str, dict[int, float]] = defaultdict(dict)
    for measured in results:
        times[measured.case.model][measured.case.size[0]] = measured.median
        memory[measured.case.model][measured.case.size[0]] = measured.peak_bytes / 2**20
    if not times:
        sys.stderr.write("no model ran at any size\n")
        return 1
    header = ["model", *(f"{side} px" for side in options.sizes), "exponent"]
    tables = []
    for values, number in ((times, "{:.3f}"), (memory, "{:.0f}")):
        rows = [
            [f"`{m}`", *(number.format(p[s]) if s in p else "-" for s in options.sizes), f"{exponent(p):.2f}"]
            for m, p in values.items()
        ]
        tables.append(table(header, rows))
    options.folder.mkdir(parents=True, exist_ok=True)
    draw(times, memory, options.folder / f"{options.name}.png")
    sections = [
        (f"Seconds an image ({options.clock} time, {options.dtype}, {options.rounds} rounds)", tables[0]),
        ("Peak memory, MiB, above that of the process without a model", tables[1]),
        ("", f"![time and memory over pixels]({options.name}.png)"),
    ]
    path = write_report(options.name, "Cost over the number of pixels", sections, as_data(results), options.folder)
    sys.stdout.write(path.read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
