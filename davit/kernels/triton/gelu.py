"""The backward pass of exact GELU, and its output once more, in one pass in Triton."""

# mypy: disable-error-code="no-untyped-def"

import torch
from torch import Tensor

from .support import ceil_div, constexpr, jit, launch, tl

BLOCK = 1024


def gelu_backward(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `ops.gelu_backward` where `support.runs_on` says so."""
    x, grad = x.contiguous(), grad.contiguous()
    grad_x, again = torch.empty_like(x), torch.empty_like(x)
    launch(_kernel, ceil_div(x.numel(), BLOCK), x.device, grad, x, grad_x, again, x.numel(), BLOCK=BLOCK)
    return grad_x, again


@jit
def _kernel(grad, x, grad_x, again, size, BLOCK: constexpr):
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = n < size
    value = tl.load(x + n, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(grad + n, mask=mask, other=0.0).to(tl.float32)
    below = 0.5 * (1.0 + tl.math.erf(value * 0.7071067811865476))  # the normal distribution
    density = 0.3989422804014327 * tl.exp(-0.5 * value * value)
    tl.store(grad_x + n, (g * (below + value * density)).to(grad_x.dtype.element_ty), mask=mask)
    tl.store(again + n, (value * below).to(again.dtype.element_ty), mask=mask)
