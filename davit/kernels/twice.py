"""Gradients through a plain formula: where those of a fused function do not go, as gradients of gradients."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def differentiable(
    plain: Callable[..., Any], needed: Sequence[bool], inputs: Sequence[Any], grads: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """Gradients of ``plain(*inputs)``, by the needed inputs, that can be differentiated again (``create_graph``).

    Where gradients are not enabled, they come out as plain tensors.

    Args:
        needed: for each input, whether its gradient is wanted.
        grads: of each output of ``plain``; None counts as zero, and an output of no needed input does not count.
    """
    again = torch.is_grad_enabled()
    wanted = [i for i, need in enumerate(needed) if need]
    with torch.enable_grad():
        outputs = plain(*inputs)
        outputs = [outputs] if isinstance(outputs, Tensor) else outputs
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
        found = torch.autograd.grad(
            [o for o, _ in pairs],
            [inputs[i] for i in wanted],
            [g for _, g in pairs],
            create_graph=again,
            allow_unused=True,
        )
    by_input = dict(zip(wanted, found, strict=True))
    return tuple(by_input.get(i) for i in range(len(inputs)))
