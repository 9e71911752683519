"""Fixtures: which blocks kernels computed, and operators by native.cpp, or by Triton on CUDA or interpreted."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from davit.kernels import conditions, modules
from davit.kernels.cpu import native
from davit.kernels.triton import channel, encoding, support

ON_CUDA = support.HAS_TRITON and torch.cuda.is_available() and not support.INTERPRETED
TOLERANCE = {
    torch.float32: 3e-6,
    torch.bfloat16: 0.012 if ON_CUDA or support.INTERPRETED else 0.006,
    torch.float16: 0.0015,
}
DEVICE = "cuda" if ON_CUDA else "cpu"


def noise(shape: Sequence[int], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal numbers, which want a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype).requires_grad_()


def double(tensor: Tensor | None) -> Tensor | None:
    """The same numbers in float64, as a leaf that wants a gradient."""
    return None if tensor is None else tensor.detach().double().requires_grad_()


def relative(actual: Tensor, expected: Tensor) -> float:
    """How far a tensor is from one of the same shape, by the norm of all elements."""
    assert actual.shape == expected.shape
    if expected.numel() == 0:
        return 0.0
    return ((actual.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-12)).item()


def assert_close(actual: Tensor | None, expected: Tensor | None, dtype: torch.dtype) -> None:
    """As near to a float64 result as the dtype allows; no gradient at all may stand for zeros."""
    if expected is None:
        assert actual is None or not actual.any()
        return
    assert actual is not None
    error = relative(actual, expected)
    assert error < TOLERANCE[dtype], error


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """``with fused_calls() as calls``: each block that a kernel computed meanwhile."""

    @contextmanager
    def record() -> Iterator[list[Any]]:
        calls: list[Any] = []

        def watched(run: Callable[..., Any]) -> Callable[..., Any]:
            return lambda block, x: calls.append(block) or run(block, x)  # type: ignore[func-returns-value]

        with monkeypatch.context() as patch:
            patch.setattr(modules, "WAYS", {way: watched(run) for way, run in modules.WAYS.items()})
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
        monkeypatch.setattr(conditions, "MIN_WORK_TO_TRAIN", 0)


@pytest.fixture(autouse=True)
def _exact_and_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    if support.INTERPRETED:  # programs run one after another: few and long ones save time
        for module in (channel, encoding):
            monkeypatch.setattr(module, "MANY_PROGRAMS", 1)


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """``without_kernels()``: from now on as on a machine that has neither Triton nor a compiler."""

    def remove() -> None:
        monkeypatch.setattr(support, "runs_on", lambda _: False)
        monkeypatch.setattr(native, "LIBRARY", None)

    return remove


@pytest.fixture(
    params=[
        "sliced",
        "of every other channel",
        *(pytest.param(x, marks=pytest.mark.long) for x in ("channels first", "expanded")),
    ]
)
def laid_out(request: pytest.FixtureRequest) -> Callable[[int], Tensor]:
    """``laid_out(C)``: noise (2, 5, 7, C) that is not contiguous, in each layout in turn."""
    return {
        "sliced": lambda C: noise((2, 10, 12, C))[:, ::2, 1:8],
        "channels first": lambda C: noise((2, C, 5, 7)).permute(0, 2, 3, 1),
        "expanded": lambda C: noise((1, 5, 7, C)).expand(2, 5, 7, C),
        "of every other channel": lambda C: noise((2, 5, 7, 2 * C))[..., ::2],
    }[request.param]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def recorded() -> Callable[..., Any]:
    """``recorded(function)``: the compiled function, and a list that receives the names of its graphs' operators."""

    def make(function: Callable[..., Any], backend: str = "eager") -> tuple[Callable[..., Any], list[str]]:
        names: list[str] = []

        def keep(graph: Any, inputs: Any) -> Any:
            names.extend(str(node.target) for node in graph.graph.nodes if node.op in {"call_function", "call_method"})
            return torch._dynamo.lookup_backend(backend)(graph, inputs)

        return torch.compile(function, fullgraph=True, backend=keep), names

    return make
