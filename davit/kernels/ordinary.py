"""Whether modules are as `davit.model` built them, and of the sizes that their input asks for.

A fused path stands for several modules at once. It must not where one of them was replaced, wrapped or watched, and it
is given pointers, so nothing but the checks here keeps it within the memory of a layer of another size.
"""

from typing import TYPE_CHECKING, Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from .cpu.inference import attention

if TYPE_CHECKING:
    from ..model import DualAttentionBlock, PatchEmbed

#: Modules that a fused path can stand for. `davit.model` adds its own; a subclass, or a module that a user put in
#: the place of one (an adapter, a quantized layer), is not among them.
ORDINARY: set[type[nn.Module]] = {nn.Linear, nn.LayerNorm, nn.Conv2d, nn.GELU, nn.Identity, nn.ModuleList, DropPath}


def is_ordinary_block(block: "DualAttentionBlock", x_BHWC: Tensor) -> bool:
    """Nothing in the block was replaced, wrapped or watched. The block itself may be: it is called either way."""
    for module in block.modules():
        if module is not block and (type(module) not in ORDINARY or is_watched(module)):
            return False
    norms = [block.norm1, block.norm2] if block.ffn else [block.norm1]
    linears = [block.attn.qkv, block.attn.proj, *([block.mlp.fc1, block.mlp.fc2] if hasattr(block.mlp, "fc1") else [])]
    return (
        all(type(norm) is nn.LayerNorm for norm in norms)
        and all(type(layer) is nn.Linear for layer in linears)
        and len(linears) == (4 if block.ffn else 2)
        and all(is_position_encoding(encoding) for encoding in block.cpe)
        and (not block.ffn or is_exact_gelu(block.mlp.act))
        and type(block.drop_path) in (DropPath, nn.Identity)
        and _sizes_agree(block, x_BHWC)
        and _parameters_match(block, x_BHWC)
    )


def is_ordinary_embedding(embed: "PatchEmbed", x: Tensor) -> bool:
    """The same of a patch embedding of an image, or of a map whose patches do not overlap."""
    conv: Any = embed.proj
    norm: Any = embed.norm
    if (type(conv), type(norm)) != (nn.Conv2d, nn.LayerNorm) or is_watched(conv) or is_watched(norm):
        return False
    (N, C), side, padding = conv.weight.shape[:2], *((7, 3) if embed.stem else (2, 0))
    return (
        (embed.stem or embed.halving)
        and conv.groups == 1
        and (conv.kernel_size, conv.padding, conv.dilation) == ((side, side), (padding, padding), (1, 1))
        and conv.stride == ((conv.stride[0],) * 2 if embed.stem else (2, 2))
        and conv.padding_mode == "zeros"
        and x.dim() == 4
        and x.shape[1 if embed.stem else 3] == C
        and has_size(conv, (N, C, side, side))
        and has_size(norm, (N if embed.stem else C,))
        and _parameters_match(embed, x)
    )


def is_watched(module: nn.Module) -> bool:
    """Whether somebody sees that it is called."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def is_position_encoding(encoding: Any) -> bool:
    """Whether its convolution and activation are of a kind that the model builds."""
    conv, act = encoding.proj, encoding.activation
    return (
        type(conv) is nn.Conv2d
        and conv.groups == conv.in_channels == conv.out_channels
        and (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
        and conv.padding_mode == "zeros"
        and (type(act) is nn.Identity or is_exact_gelu(act))
    )


def is_exact_gelu(act: Any) -> bool:
    """Not its approximation by tanh."""
    return type(act) is nn.GELU and act.approximate == "none"


def has_size(layer: Any, size: tuple[int, ...]) -> bool:
    """Whether its weight is of that size, and the bias to go with it; of a norm also where it has neither."""
    weight, bias = layer.weight, layer.bias
    return (
        (weight is None or weight.shape == size)
        and (bias is None or bias.shape == size[:1])
        and (type(layer) is not nn.LayerNorm or tuple(layer.normalized_shape) == size)
    )


def _sizes_agree(block: Any, x_BHWC: Tensor) -> bool:
    """Every layer is of the input's width: functions that take pointers could not tell."""
    if x_BHWC.dim() != 4:
        return False
    C, attn = x_BHWC.shape[3], block.attn
    sizes = [(attn.qkv, (3 * C, C)), (attn.proj, (C, C)), (block.norm1, (C,))]
    sizes += [(encoding.proj, (C, 1, 3, 3)) for encoding in block.cpe]
    if block.ffn:
        E = block.mlp.fc1.weight.shape[0]
        sizes += [(block.mlp.fc1, (E, C)), (block.mlp.fc2, (C, E)), (block.norm2, (C,))]
    return C % attention(attn)[1] == 0 and all(has_size(layer, size) for layer, size in sizes)


def _parameters_match(module: nn.Module, x: Tensor) -> bool:
    """Plain parameters on the CPU, in the input's number format, or float32 under autocast."""
    mixed = torch.is_autocast_enabled("cpu")
    return all(
        type(p) in (nn.Parameter, Tensor)
        and p.device.type == "cpu"
        and (p.dtype == x.dtype or (mixed and p.dtype == torch.float32))
        and p.layout == torch.strided
        for p in module.parameters()
    )
