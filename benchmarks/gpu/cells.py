"""Keep the cells of a stage: a JSON that is written at once, what is left of the time, what was not reached."""

import hashlib
import json
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measure import RESULTS, environment

ROOT = Path(__file__).resolve().parents[2]
SAME = ("gpu", "torch", "triton", "source")  # two runs that agree in these may share one file


def source() -> str:
    """Return a hash of the code that is measured: a copy without .git has no commit."""
    total = hashlib.sha256()
    for path in sorted((ROOT / "davit").rglob("*.py")):
        total.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:12]


class Cells:
    """The results of one stage, by name. Each change is written to FOLDER/STAGE.json at once.

    Args:
        names: all cells, the most important first.
        seconds: that the stage may take.
        fresh: do not keep what an earlier run with the same code, card and versions has measured.
    """

    def __init__(self, stage: str, folder: Path, names: Iterable[str], seconds: float, rehearse: bool, fresh: bool):
        self.folder, self.path = folder, folder / f"{stage}.json"
        self.end = time.monotonic() + seconds
        self.names = list(names)
        around = {**environment(), "source": source(), "rehearsal": rehearse}
        self.data: dict[str, Any] = {"stage": stage, "environment": around, "cells": {}, "failed": {}}
        if not fresh and not rehearse and (found := self.same(stage)) is not None:
            self.data["cells"] = found["cells"]
        self.write()

    def same(self, stage: str) -> dict[str, Any] | None:
        """Read what a stage has found with the same code, card and versions, in this call or an earlier one."""
        around = self.data["environment"]
        for path in (self.folder / f"{stage}.json", RESULTS / "gpu" / f"{stage}.json"):
            if path.is_file():
                found: dict[str, Any] = json.loads(path.read_text())
                if all(found["environment"].get(key) == around[key] for key in (*SAME, "rehearsal")):
                    return found
        return None

    def leave_out(self, kernels: list[str]) -> None:
        """Note the kernels that fail on this card: PyTorch computes their spans in the models of this stage."""
        self.data["left_to_pytorch"] = kernels
        self.write()
        self.say(f"left to PyTorch, since the stage correctness found them broken: {', '.join(kernels)}")

    def left(self) -> float:
        return self.end - time.monotonic()

    def missing(self) -> list[str]:
        """Name the cells that are still to be measured, in order."""
        return [name for name in self.names if name not in self.data["cells"] and name not in self.data["failed"]]

    def record(self, name: str, values: dict[str, Any]) -> None:
        self.data["cells"][name] = values
        self.data["failed"].pop(name, None)
        self.write()
        shown = [f"{key} {value:.4g}" for key, value in values.items() if isinstance(value, float)]
        self.say(f"{name}: {', '.join(shown)}" + ("" if values.get("ok", True) else "  WRONG"))

    def fail(self, name: str, reason: str) -> None:
        self.data["failed"][name] = reason
        self.write()
        self.say(f"{name}: failed: {reason}")

    def say(self, line: str) -> None:
        sys.stdout.write(f"[{self.left():5.0f} s left] {line}\n")
        sys.stdout.flush()

    def write(self) -> None:
        self.data["not_reached"] = self.missing()
        partial = self.path.with_suffix(".part")
        partial.write_text(json.dumps(self.data, indent=1) + "\n")
        partial.replace(self.path)

    def status(self) -> int:
        """Return 1 if a cell failed or is wrong; one that was not reached is no failure."""
        wrong = [name for name, values in self.data["cells"].items() if not values.get("ok", True)]
        self.say(
            f"{len(self.data['cells'])} cells, {len(self.data['failed'])} failed, {len(wrong)} wrong, "
            f"{len(self.missing())} not reached"
        )
        return int(bool(self.data["failed"] or wrong))


def numbers(values: Any) -> list[float]:
    """List all numbers of a cell, however deep."""
    if isinstance(values, dict):
        return [n for value in values.values() for n in numbers(value)]
    if isinstance(values, list):
        return [n for value in values for n in numbers(value)]
    return [] if isinstance(values, (str, bool)) or values is None else [float(values)]


def is_finite(values: Any) -> bool:
    """Tell whether a cell has numbers, all of them finite."""
    found = numbers(values)
    return bool(found) and all(map(math.isfinite, found))
