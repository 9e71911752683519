"""Tests of the Triton kernels: on a CUDA device, or in Triton's interpreter (TRITON_INTERPRET=1, on the CPU).

Elsewhere they skip themselves, and `tests/kernels/test_interpreter.py` runs them in a process with that variable:
Triton reads it when it is imported.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from davit.kernels import conditions
from davit.kernels.cpu import native
from davit.kernels.triton import channel, encoding, gelu, support, window

RUNS = support.HAS_TRITON and (support.INTERPRETED or torch.cuda.is_available())
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 0.012, torch.float16: 0.0015}


@pytest.fixture(autouse=True)
def _needs_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    if not RUNS:
        pytest.skip("needs CUDA or TRITON_INTERPRET=1; tests/kernels/test_interpreter.py runs it with the latter")
    monkeypatch.setattr(conditions, "MIN_ELEMENTS", 0)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    if support.INTERPRETED:  # programs run one after another: few and long ones save time
        for module in (channel, encoding):
            monkeypatch.setattr(module, "MANY_PROGRAMS", 1)


@pytest.fixture
def device() -> str:
    return "cpu" if support.INTERPRETED else "cuda"


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``only("window", ...)``: no other kernel is taken."""
    return lambda *names: monkeypatch.setattr(conditions, "KERNELS", set(names))


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """``without_kernels()``: from now on as on a machine that has neither Triton nor a compiler."""

    def remove() -> None:
        monkeypatch.setattr(support, "runs_on", lambda _: False)
        monkeypatch.setattr(native, "LIBRARY", None)

    return remove


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


@pytest.fixture
def noise(device: str) -> Callable[..., Tensor]:
    """``noise(shape, dtype, seed)``: normal numbers, which want a gradient."""

    def make(shape: Sequence[int], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*shape, generator=generator).to(device, dtype).requires_grad_()

    return make


@pytest.fixture(
    params=[
        "sliced",
        "of every other channel",
        *(pytest.param(x, marks=pytest.mark.long) for x in ("channels first", "expanded")),
    ]
)
def laid_out(request: pytest.FixtureRequest, noise: Callable[..., Tensor]) -> Callable[[int], Tensor]:
    """``laid_out(C)``: noise (2, 5, 7, C) that is not contiguous, in each layout in turn."""
    return {
        "sliced": lambda C: noise((2, 10, 12, C))[:, ::2, 1:8],
        "channels first": lambda C: noise((2, C, 5, 7)).permute(0, 2, 3, 1),
        "expanded": lambda C: noise((1, 5, 7, C)).expand(2, 5, 7, C),
        "of every other channel": lambda C: noise((2, 5, 7, 2 * C))[..., ::2],
    }[request.param]


@pytest.fixture
def close() -> Callable[[Tensor | None, Tensor | None, torch.dtype], None]:
    """Of the same shape, and as near to a float64 result as the dtype allows, by the norm of all elements."""

    def check(actual: Tensor | None, expected: Tensor | None, dtype: torch.dtype) -> None:
        if expected is None:  # no gradient reaches it
            assert actual is None or not actual.any()
            return
        assert actual is not None and actual.shape == expected.shape
        error = (actual.double() - expected).norm() / expected.norm().clamp_min(1e-12) if expected.numel() else 0.0
        assert error < TOLERANCE[dtype], error

    return check


@pytest.fixture
def double() -> Callable[[Tensor | None], Tensor | None]:
    """The same numbers in float64, as a leaf that wants a gradient."""
    return lambda t: None if t is None else t.detach().double().requires_grad_()
