"""Which path a block took, and machines that have no fused path."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import torch

from davit.kernels import conditions, modules


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """``with fused_calls() as calls``: each block that a kernel computed meanwhile; ``calls.ways`` has how."""

    class Calls(list[Any]):
        ways: ClassVar[list[str]]

    @contextmanager
    def record() -> Iterator[Calls]:
        calls = Calls()
        calls.ways = []  # type: ignore[misc]

        def watched(way: str, run: Callable[..., Any]) -> Callable[..., Any]:
            def compute(block: Any, x: torch.Tensor) -> torch.Tensor:
                calls.append(block)
                calls.ways.append(way)
                return run(block, x)

            return compute

        with monkeypatch.context() as patch:
            patch.setattr(modules, "WAYS", {way: watched(way, run) for way, run in modules.WAYS.items()})
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
        monkeypatch.setattr(conditions, "MIN_WORK", 0)
