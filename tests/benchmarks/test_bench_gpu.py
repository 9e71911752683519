"""Rehearse benchmarks/gpu/run.sh: each stage has every cell, with finite numbers; what it keeps, and its tables."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
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


CELL = """
import os, time
import torch

def cell(task, device, rehearse):
    if task == "ends":
        os._exit(7)
    if task == "hangs":
        time.sleep(100)
    if task == "raises":
        raise ValueError("no")
    return {"ms": task}
"""


@pytest.mark.long
def test_a_process_that_ends_hangs_or_raises_costs_its_cell_alone(tool, tmp_path, monkeypatch):
    (tmp_path / "cell_of_a_test.py").write_text(CELL)
    monkeypatch.syspath_prepend(tmp_path)
    stages = tool("stages")
    cell = __import__("cell_of_a_test").cell
    tasks = {"a": 1.5, "b": "ends", "c": "raises", "d": "hangs", "e": 2.5}
    end = time.monotonic() + 300
    found = stages.in_processes(tasks, cell, "cpu", True, lambda: end - time.monotonic(), cell_limit=25)
    kinds = {name: (kind, value) for name, kind, value in found}
    assert kinds["a"] == ("done", {"ms": 1.5}) and kinds["e"] == ("done", {"ms": 2.5})
    assert [kinds[name][0] for name in "bcd"] == ["failed"] * 3 and "7" in kinds["b"][1]
    assert not multiprocessing.active_children()
    assert list(stages.in_processes(tasks, cell, "cpu", True, lambda: 0.0, 25)) == []


def test_kernels_that_fail_in_bfloat16_are_left_out_of_whole_models(tool, tmp_path, monkeypatch):
    stages, kept = tool("stages"), tool("cells")
    right = {"error": 1e-3, "error_plain": 1e-3, "bound": 4e-2}
    names = [f"{kernel}, 56 x 56 x 96/{dtype}" for kernel in stages.kernels.SPANS for dtype in stages.BOUNDS]
    cells = kept.Cells("correctness", tmp_path, names, 100, False, True)
    assert stages.broken_kernels(cells) == []
    for name in names:
        cells.record(name, right)
    cells.record("DaViT_tiny, 224 x 224/bfloat16/eager", {**right, "error": 0.9})  # does not say which kernel
    cells.record("encoding, 56 x 56 x 96/float32", {**right, "error": 0.9})
    cells.record("gelu, 56 x 56 x 96/bfloat16", {**right, "error": float("nan")})
    cells.fail("window, 56 x 56 x 96/bfloat16", "OutOfResources: out of resource: shared memory")
    cells.fail("channel_qk, 56 x 56 x 96/bfloat16", "OutOfResources: shared memory")
    models = kept.Cells("models", tmp_path, ["a"], 100, False, True)
    broken = stages.broken_kernels(models)
    assert broken == ["gelu", "window"]
    monkeypatch.setattr(stages.conditions, "KERNELS", {"window", "channel", "encoding", "gelu", "patches"})
    monkeypatch.setenv(stages.WITHOUT, " ".join(broken))
    stages.without_broken_kernels()
    assert {"window", "channel", "encoding", "gelu"} & stages.conditions.KERNELS == {"channel", "encoding"}
    models.leave_out(broken)
    assert "gelu, window" in tool("tables").section("models", json.loads(models.path.read_text()))
    models.data["environment"]["gpu"] = "another card"
    assert stages.broken_kernels(models) == []


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
