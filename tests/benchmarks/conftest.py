"""Import the scripts of benchmarks/ as they import one another."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """``script(name)``: a script of benchmarks/ as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module
