"""Tests of the Triton kernels: on a CUDA device, or in Triton's interpreter (TRITON_INTERPRET=1, on the CPU).

Elsewhere they skip themselves, and `tests/kernels/test_interpreter.py` runs them in a process with that variable:
Triton reads it when it is imported.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from davit.kernels import conditions
from davit.kernels.triton import channel, encoding, gelu, support, window

RUNS = support.HAS_TRITON and (support.INTERPRETED or torch.cuda.is_available())


@pytest.fixture(autouse=True)
def _needs_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    if not RUNS:
        pytest.skip("needs CUDA or TRITON_INTERPRET=1; tests/kernels/test_interpreter.py runs it with the latter")
    monkeypatch.setattr(conditions, "MIN_ELEMENTS", 0)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``only("window", ...)``: no other kernel is taken."""
    return lambda *names: monkeypatch.setattr(conditions, "KERNELS", set(names))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """``with launches() as names``: the name of each kernel that is launched meanwhile."""

    @contextmanager
    def record() -> Iterator[list[str]]:
        names: list[str] = []

        def launch(kernel: Any, *arguments: Any, **constants: Any) -> None:
            names.append(kernel.fn.__name__)
            support.launch(kernel, *arguments, **constants)

        with monkeypatch.context() as patch:
            for module in (channel, encoding, gelu, window):
                patch.setattr(module, "launch", launch)
            yield names

    return record
