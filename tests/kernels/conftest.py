"""Which path a block took, and machines that have no fused path."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from davit import kernels


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """``with fused_calls() as calls``: one entry for each block that left its plain modules meanwhile."""

    @contextmanager
    def record() -> Iterator[list[Any]]:
        calls: list[Any] = []
        run = kernels.run_block
        with monkeypatch.context() as patch:
            patch.setattr(kernels, "run_block", lambda block, x: calls.append(block) or run(block, x))
            yield calls

    return record
