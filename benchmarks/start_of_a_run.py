"""Measure how long a run notes the names and classes of as many images as ImageNet's training set has.

    python benchmarks/start_of_a_run.py             # 1.28 million names, five times

That is what `davit.engine.data_facts` hashes at the start and compares at a resume. Beside it: the same with a call
for each name, as sources that know no better do it. What is measured is the time of the processor, which other
programs on the machine disturb less; the work has one thread and waits for nothing.
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measure import table, write_report

from davit.data.dataset import PictureDataset
from davit.data.source import Files
from davit.engine.data_facts import _list_of
from davit.parsing import Parser, RawHelp


class OneByOne(Files):
    """A source that is asked for one name after the other."""

    def names(self) -> list[str]:
        return [self.filename(index) for index in range(len(self))]


def source(kind: type[Files], count: int, classes: int, accent: str) -> PictureDataset:
    """Make a source of names alone, such as n01440764/n01440764_10026.JPEG."""
    labels = [f"n{10_000_000 + at * classes // count}" for at in range(count)]
    names = [f"{label}/{label}_{at}{accent}.JPEG" for at, label in enumerate(labels)]
    made = kind(Path(), names, labels, indices=False)
    return PictureDataset(made)


def seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=RawHelp)
    parser.add_argument("--pictures", type=int, default=1_281_167, help="number of names")
    parser.add_argument("--classes", type=int, default=1000, help="number of classes")
    parser.add_argument("--repeats", type=int, default=5, help="measurements")
    options = parser.parse_args()
    kinds = {
        "ASCII names": (Files, ""),
        "names with other signs": (Files, "é"),
        "ASCII names, one call each": (OneByOne, ""),
    }
    found: dict[str, list[float]] = {}
    for name, (kind, accent) in kinds.items():
        dataset = source(kind, options.pictures, options.classes, accent)
        found[name] = [seconds(lambda dataset=dataset: _list_of(dataset)) for _ in range(options.repeats)]
    rows = [
        [name, f"{statistics.median(times):.2f}", f"{min(times):.2f} to {max(times):.2f}", str(len(times))]
        for name, times in found.items()
    ]
    text = table(["source", "s of the processor, median", "least to most", "n"], rows)
    title = f"Noting {options.pictures:,} names at the start of a run"
    write_report("start_of_a_run", title, [("", text)], found)
    sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
