"""Rehearse benchmarks/gpu/run.sh: each stage has every cell, with finite numbers; what it keeps, and its tables."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

GPU = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu"


@pytest.fixture
def tool(script, monkeypatch):
    monkeypatch.syspath_prepend(str(GPU))
    return script


def test_cells_are_kept_at_once_and_resumed_by_the_same_code_alone(tool, tmp_path):
    kept = tool("cells")

    def opened(fresh=False):
        return kept.Cells("models", tmp_path, ["a", "b", "c"], 100, False, fresh)

    cells = opened()
    cells.record("a", {"ms": 1.5})
    cells.fail("b", "no")
    data = json.loads((tmp_path / "models.json").read_text())
    assert data["cells"] == {"a": {"ms": 1.5}} and data["failed"] == {"b": "no"} and data["not_reached"] == ["c"]
    assert {"gpu", "driver", "torch", "triton", "date", "davit", "source"} <= set(data["environment"])
    assert cells.status() == 1
    assert opened().missing() == ["b", "c"]  # what failed is tried again
    data["environment"]["gpu"] = "another card"
    (tmp_path / "models.json").write_text(json.dumps(data))
    assert opened().missing() == ["a", "b", "c"]
    opened().record("a", {"ms": 1.5})
    assert opened(fresh=True).missing() == ["a", "b", "c"]


def test_numbers_are_finite_at_any_depth(tool):
    kept = tool("cells")
    assert kept.is_finite({"a": 1, "b": {"c": [2.5]}, "d": "text", "e": None})
    assert not kept.is_finite({"a": 1, "b": {"c": [float("nan")]}})
    assert not kept.is_finite({"a": "text"})


def test_an_unknown_stage_is_refused():
    done = subprocess.run(["bash", GPU / "run.sh", "speed"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "correctness" in done.stderr


@pytest.mark.long
def test_rehearsal_reaches_every_cell(tmp_path):
    environment = {**os.environ, "PYTHON": sys.executable, "OUT": str(tmp_path)}
    command = ["bash", GPU / "run.sh", "--rehearse"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=590)
    command = [sys.executable, GPU / "tables.py", tmp_path, "--complete"]
    complete = subprocess.run(command, capture_output=True, text=True, check=False)
    assert complete.returncode == 0, complete.stderr + done.stdout[-3000:] + done.stderr[-3000:]
    assert done.returncode == 0
    assert (tmp_path / "gpu.md").is_file()
