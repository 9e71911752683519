"""Compute the backward pass of exact GELU, and recompute its output, in one pass in Triton."""

# mypy: disable-error-code="no-untyped-def"

import torch
from torch import Tensor

from .support import ceil_div, constexpr, jit, launch, tl

BLOCK = 1024


def gelu_backward(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of x, and GELU(x); see `support.runs_on`."""
    x, grad = x.contiguous(), grad.contiguous()
    grad_x, activated = torch.empty_like(x), torch.empty_like(x)
    launch(_kernel, ceil_div(x.numel(), BLOCK), x.device, grad, x, grad_x, activated, x.numel(), BLOCK=BLOCK)
    return grad_x, activated


@jit
def _kernel(grad, x, grad_x, activated, size, BLOCK: constexpr):
    n = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = n < size
    value = tl.load(x + n, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(grad + n, mask=mask, other=0.0).to(tl.float32)
    cdf = 0.5 * (1.0 + tl.math.erf(value * 0.7071067811865476))  # of the normal distribution
    density = 0.3989422804014327 * tl.exp(-0.5 * value * value)
    tl.store(grad_x + n, (g * (cdf + value * density)).to(grad_x.dtype.element_ty), mask=mask)
    tl.store(activated + n, (value * cdf).to(activated.dtype.element_ty), mask=mask)
