"""The backward pass of exact GELU, and its output once more, in one pass.

PyTorch's own GELU is one pass already and its matrix products are cuBLAS's, so forward nothing is gained by a kernel.
What can be spared is memory: a linear layer behind a GELU keeps its input for the gradient of its weight, 4 values
for each position and channel of a block. Here only the map in front of the GELU is kept.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cpu import native
from ..cpu.functions import weight_grads
from ..gpu import gelu as gpu
from ..gpu import support
from ..twice import differentiable


@torch.library.custom_op("davit::gelu_backward", mutates_args=())
def gelu_backward(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient in front of the GELU, from that behind it; and GELU(x)."""
    if support.runs_on(x):
        return gpu.gelu_backward(grad, x)
    if native.takes_rows(x):
        return native.gelu_backward(grad, x)[:2]
    return torch.ops.aten.gelu_backward(grad, x), F.gelu(x)


@gelu_backward.register_fake
def _(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    like = torch.empty_like(x, memory_format=torch.contiguous_format)
    return like, torch.empty_like(like)


class GeluLinear(torch.autograd.Function):
    """GELU and a linear layer, of which only the input of the GELU is saved; for eager mode.

    (A compiler finds by itself that GELU is cheap to compute again.)
    """

    @staticmethod
    def plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(F.gelu(x), weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return GeluLinear.plain(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        if torch.is_grad_enabled():
            return differentiable(GeluLinear.plain, ctx.needs_input_grad, (x, weight, bias), [grad])
        grad_x, hidden = gelu_backward(grad @ weight.to(grad.dtype), x)
        return grad_x, *weight_grads(grad, hidden.to(grad.dtype), weight, bias, ctx.needs_input_grad[1:])
