"""A block on the CPU with gradients, from the functions of `functions` and `gram`."""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from .functions import Linear, NormLinear, NormMlp, PositionEncoding
from .gram import ChannelAttention, pays
from .inference import encodes_natively

if TYPE_CHECKING:
    from ...model import DualAttentionBlock


def train_block(block: "DualAttentionBlock", x_BHWC: Tensor) -> Tensor:
    """What ``block`` computes of (B, H, W, C), with gradients, drop path included."""
    x = _position_encoding(block.cpe[0], x_BHWC)
    x = _add(x, attend(block, x), block.drop_path)
    x = _position_encoding(block.cpe[1], x)
    if not block.ffn:
        return x
    norm: Any = block.norm2
    mlp: Any = block.mlp
    branch = NormMlp.apply(
        x, norm.weight, norm.bias, norm.eps, mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias
    )
    return _add(x, branch, block.drop_path)


def _add(x: Tensor, branch: Tensor, drop_path: nn.Module) -> Tensor:
    """x + drop_path(branch), drawing the same numbers as timm's DropPath, in one pass that saves the mask alone."""
    if not isinstance(drop_path, DropPath) or drop_path.drop_prob == 0.0 or not drop_path.training:
        return x + branch
    keep = 1.0 - drop_path.drop_prob
    mask = branch.new_empty((branch.shape[0], 1, 1, 1)).bernoulli_(keep)
    if keep > 0.0 and drop_path.scale_by_keep:
        mask.div_(keep)
    return torch.addcmul(x, branch, mask)


def _position_encoding(encoding: Any, x: Tensor) -> Tensor:
    conv = encoding.proj
    if encodes_natively(encoding, x):
        return PositionEncoding.apply(x, conv.weight, conv.bias)
    map_BCHW = F.conv2d(x.permute(0, 3, 1, 2), conv.weight, conv.bias, padding=1, groups=conv.groups)
    if isinstance(encoding.activation, nn.GELU):
        return x + F.gelu(map_BCHW).permute(0, 2, 3, 1)
    return map_BCHW.permute(0, 2, 3, 1).add_(x)


def attend(block: "DualAttentionBlock", x: Tensor) -> Tensor:
    """A block's norm and attention."""
    attn: Any = block.attn
    norm: Any = block.norm1
    qkv, proj = (attn.qkv.weight, attn.qkv.bias), (attn.proj.weight, attn.proj.bias)
    if pays(attn, x):
        return ChannelAttention.apply(x, norm.weight, norm.bias, norm.eps, *qkv, *proj, attn.num_groups, attn.scale)
    return Linear.apply(attn.products(NormLinear.apply(x, norm.weight, norm.bias, norm.eps, *qkv)), *proj)
