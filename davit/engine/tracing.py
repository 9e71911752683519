"""The first NaN or infinity of a forward or backward pass, traced to the module or parameter it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Autocast = Callable[[], AbstractContextManager[object]]


def is_finite(*tensors: Tensor) -> bool:
    """Whether every value of every tensor (all on one device) is finite; waits for the device once."""
    return bool(torch.stack([torch.isfinite(tensor).all() for tensor in tensors]).all())


def first_nonfinite(model: nn.Module, inputs: Tensor, autocast: Autocast = nullcontext) -> str | None:
    """Run a batch again and say where the first NaN or infinity appears, in the order of execution.

    Args:
        model: wrapped by DistributedDataParallel or torch.compile or not; what runs is the bare model, in eager
            mode. It keeps its mode, buffers and gradients, and the random states are put back.
        inputs: (N, C, H, W) images.
        autocast: the context of the forward pass.

    Returns:
        "input"; "parameter NAME" or "buffer NAME" of the first module with a bad output, if one of its own is
        the cause; the name of that module; the name of the module whose own code, between two of its
        submodules, made the first bad value ("" is the model itself); or None where all is finite. Dropout and
        drop path draw as the random states are: for a failing step, set those first.
    """
    return traced(model, inputs, autocast).found


def first_nonfinite_gradient(model: nn.Module, order: Sequence[str] = ()) -> str | None:
    """The name of the parameter whose gradient was the first to be NaN or infinite, or None.

    The backward pass goes from the output to the input, so it is the one nearest to the output. `order` are
    names of modules in the order they ran; without it parameters are taken to be registered in that order.
    """
    place = {name: number for number, name in enumerate(order)}
    bad = [
        (place.get(name.rpartition(".")[0], -1), number, name)
        for number, (name, parameter) in enumerate(_bare(model).named_parameters())
        if parameter.grad is not None and not is_finite(parameter.grad)
    ]
    return max(bad)[2] if bad else None


@dataclass
class Trace:
    """What a run of the model showed: the result of `first_nonfinite`, and which modules ran until then."""

    found: str | None = None
    order: list[str] = field(default_factory=list)
    """Modules as they began to run; a module that runs twice stands twice."""


class _FoundError(Exception):
    """Ends a forward pass that has nothing more to show."""


def traced(model: nn.Module, images: Tensor, autocast: Autocast) -> Trace:
    """As `first_nonfinite`, with the order of execution."""
    model = _bare(model)
    trace = Trace()
    if not is_finite(images):
        trace.found = "input"
        return trace
    running: list[str] = []

    def before(name: str, module: nn.Module, inputs: Any) -> None:
        if not all(is_finite(tensor) for tensor in _floats(inputs)):
            trace.found = running[-1]  # all modules so far were finite, so it was the code around them
            raise _FoundError
        trace.order.append(name)
        running.append(name)

    def after(name: str, module: nn.Module, output: Any) -> None:
        running.pop()
        if not all(is_finite(tensor) for tensor in _floats(output)):
            trace.found = _own_cause(name, module) or name
            raise _FoundError

    with _undisturbed(model, images.device):
        hooks = []
        for name, module in model.named_modules():
            hooks.append(module.register_forward_pre_hook(lambda m, x, name=name: before(name, m, x)))
            hooks.append(module.register_forward_hook(lambda m, x, y, name=name: after(name, m, y)))
        try:
            # with gradients, as in training: the kernels may be others without
            with torch.enable_grad(), autocast(), torch.compiler.set_stance("force_eager"):
                model(images)
        except _FoundError:
            pass
        finally:
            for hook in hooks:
                hook.remove()
    return trace


def _own_cause(name: str, module: nn.Module) -> str | None:
    """A tensor of a module itself that is not finite."""
    prefix = f"{name}." if name else ""
    for kind, tensors in (("parameter", module.named_parameters), ("buffer", module.named_buffers)):
        for inner, tensor in tensors(recurse=False):
            if not is_finite(tensor):
                return f"{kind} {prefix}{inner}"
    return None


def _floats(values: Any) -> Iterator[Tensor]:
    """The floating-point tensors in what a module takes or gives."""
    if isinstance(values, Tensor):
        if values.is_floating_point():
            yield values
    elif isinstance(values, dict):
        yield from _floats(list(values.values()))
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _floats(value)


def _bare(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if isinstance(model, nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


@contextmanager
def _undisturbed(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Put back what a forward pass changes: random states, and buffers such as batch norm's.

    Synchronised batch norms, which would wait for other processes that have stopped elsewhere, evaluate.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    waiting = [m for m in model.modules() if isinstance(m, nn.SyncBatchNorm) and m.training]
    for module in waiting:
        module.training = False
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        for module in waiting:
            module.training = True
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; then each module has its own again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
