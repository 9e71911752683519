"""Which path a block took, and machines that have no fused path."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from davit import kernels
from davit.kernels import select


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


@pytest.fixture
def saved_bytes() -> Callable[[torch.nn.Module, torch.Tensor], int]:
    """What a model keeps of an image for the backward pass, parameters aside, counted by storage."""

    def count(model: torch.nn.Module, image: torch.Tensor) -> int:
        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        storages: dict[int, tuple[int, torch.Tensor]] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                storages[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address comes twice
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(image).sum()
        return sum(size for size, _ in storages.values())

    return count


@pytest.fixture(autouse=True)
def _no_block_is_too_small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the small models of the tests are fused, but in tests of the threshold."""
    if "threshold" not in request.node.name:
        monkeypatch.setattr(select, "LEAST_WORK", 0)
