"""Faster ways to compute what `davit.model` computes, taken only where they are known to hold.

The plain modules of `davit.model` are the reference. On the CPU a block asks `fuses` on every call, and leaves them as
a whole, and a patch embedding asks `takes_patches`; single spans ask `takes_window`, `takes_channel`, `takes_encoding`
and `takes_gelu`. The answer is no for everything out of the ordinary (see there), and then the plain modules run.
docs/performance.md has the measurements behind each choice.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cpu import whole
from .cpu.inference import arguments, infer_block
from .cpu.training import train_block
from .operators import block as operators
from .operators.channel import channel_attention
from .operators.encoding import encode_and_norm
from .operators.gelu import GeluLinear
from .operators.window import window_attention
from .ordinary import ORDINARY
from .select import (
    FUSED,
    as_convolution,
    autocast_dtype,
    drops_paths,
    freezes_weights,
    fuses,
    infers_as_one,
    is_graded,
    takes_channel,
    takes_encoding,
    takes_gelu,
    takes_kernels,
    takes_patches,
    takes_window,
)

if TYPE_CHECKING:
    from ..model import DualAttentionBlock, PatchEmbed

__all__ = [
    "FUSED",
    "ORDINARY",
    "as_convolution",
    "channel_attention",
    "convolve",
    "convolve_mlp",
    "embed_patches",
    "fuses",
    "gelu_linear",
    "run_block",
    "run_encoded_block",
    "takes_channel",
    "takes_gelu",
    "takes_kernels",
    "takes_patches",
    "takes_window",
    "window_attention",
]


def run_block(block: "DualAttentionBlock", x_BHWC: Tensor) -> Tensor:
    """What ``block`` computes, for an input that `fuses` accepted."""
    if is_graded(block, x_BHWC) or drops_paths(block):
        return train_block(block, x_BHWC)
    return infer_block(block, x_BHWC)


def embed_patches(embed: "PatchEmbed", x: Tensor) -> Tensor:
    """What ``embed`` computes, for an input that `takes_patches` accepted."""
    conv: Any = embed.proj
    norm: Any = embed.norm
    run = operators.embed if torch.compiler.is_compiling() else whole.patch_embed
    return run(x, conv.weight, conv.bias, norm.weight, norm.bias, norm.eps, conv.stride[0], embed.stem)


def convolve(layer: nn.Module, x_BHWC: Tensor) -> Tensor:
    """A linear layer as a 1x1 convolution of the same memory, seen as channels-last.

    A layer that is not just that, or is watched, is called as it is.
    """
    if type(layer) is not nn.Linear or layer._forward_hooks or layer._forward_pre_hooks:
        return layer(x_BHWC)
    weight = layer.weight[:, :, None, None]
    return F.conv2d(x_BHWC.permute(0, 3, 1, 2), weight, layer.bias).permute(0, 2, 3, 1)


def convolve_mlp(mlp: Any, x_BHWC: Tensor) -> Tensor:
    """Both layers of an MLP as 1x1 convolutions, a GELU between them in their layout: then oneDNN computes it."""
    hidden_BHWE = convolve(mlp.fc1, x_BHWC)
    if type(mlp.act) is nn.GELU:
        hidden_BHWE = mlp.act(hidden_BHWE.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    else:
        hidden_BHWE = mlp.act(hidden_BHWE)
    return convolve(mlp.fc2, hidden_BHWE)


def run_encoded_block(block: "DualAttentionBlock", x_BHWC: Tensor) -> Tensor:
    """What ``block`` computes, for an input that `takes_kernels` accepted: each encoding together with its norm."""
    if infers_as_one(block, x_BHWC):
        return _infer_as_one(block, x_BHWC)
    attention: Any = block.attn
    x, y = _encode(block.cpe[0], block.norm1, getattr(attention, "qkv", None), x_BHWC)
    x = _add(x, block.drop_path(attention(y)))
    if not block.ffn:
        return block.cpe[1](x)
    mlp: Any = block.mlp
    x, y = _encode(block.cpe[1], block.norm2, getattr(mlp, "fc1", None), x)
    return _add(x, block.drop_path(mlp(y)))


def _infer_as_one(block: "DualAttentionBlock", x_BHWC: Tensor) -> Tensor:
    """One operator; with frozen weights another in front of it lays them out, which Inductor runs once."""
    weights, window, heads, *rest = arguments(block)
    if not freezes_weights():
        return operators.infer(x_BHWC, weights, window, heads, *rest, None)
    packed = operators.pack(weights, heads)
    vectors = [None if i in whole.MATRICES else p for i, p in enumerate(weights)]
    return operators.infer(x_BHWC, vectors, window, heads, *rest, packed)


def _add(x: Tensor, branch: Tensor) -> Tensor:
    """x + branch; where the branch ends in a 1x1 convolution, in its layout: then Inductor lets oneDNN add."""
    if not as_convolution(x):
        return x + branch
    return (x.permute(0, 3, 1, 2) + branch.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _encode(encoding: Any, norm: Any, reader: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The encoded map and its norm; for a linear layer as ``reader`` in the number format that autocast gives it."""
    if not takes_encoding(encoding, norm, x):
        x = encoding(x)
        return x, norm(x)
    conv = encoding.proj
    dtype = x.dtype
    if torch.is_autocast_enabled(x.device.type):
        dtype = autocast_dtype(x) if type(reader) is nn.Linear else torch.float32
    return encode_and_norm(x, conv.weight, conv.bias, norm.weight, norm.bias, norm.eps, dtype)[:2]


def gelu_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """A linear layer behind a GELU, where `takes_gelu` said so."""
    return GeluLinear.apply(x, layer.weight, layer.bias)
