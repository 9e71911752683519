"""Replace blocks and patch embeddings of a built model by ones that kernels compute, and undo that."""

import copy
import functools
import logging
import re
from collections.abc import Callable
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from ..model import DualAttentionBlock, DualAttentionStages, PatchEmbed, WindowAttention
from . import conditions, ops, training
from .cpu import native, onednn

_logger = logging.getLogger(__name__)


class FusedBlock(DualAttentionBlock):
    """Compute a `DualAttentionBlock` by kernels where `conditions.way_for` allows; same parameters and keys."""

    def forward(self, x_BHWC: Tensor) -> Tensor:
        way = conditions.way_for(self, x_BHWC)
        return super().forward(x_BHWC) if way is None else WAYS[way](self, x_BHWC)

    def __prepare_scriptable__(self) -> nn.Module:
        return _plain_copy(self)


class FusedPatchEmbed(PatchEmbed):
    """Compute a `PatchEmbed` by a kernel where `conditions.supports_embedding` allows; same parameters and keys."""

    def forward(self, x: Tensor) -> Tensor:
        if not conditions.supports_embedding(self, x):
            return super().forward(x)
        conv: Any = self.proj
        norm: Any = self.norm
        run = ops.patch_embed if torch.compiler.is_compiling() else native.patch_embed
        return run(x, conv.weight, conv.bias, norm.weight, norm.bias, norm.eps, conv.stride[0], self.stem)

    def __prepare_scriptable__(self) -> nn.Module:
        return _plain_copy(self)


_FUSED: dict[type[nn.Module], type[nn.Module]] = {DualAttentionBlock: FusedBlock, PatchEmbed: FusedPatchEmbed}
_PLAIN = {fused: stock for stock, fused in _FUSED.items()}


def accelerate(model: nn.Module) -> nn.Module:
    """Let kernels compute the blocks and patch embeddings of a model, wherever that is known to be right.

    Parameters, state-dict keys, hooks and copies stay the same, and so do results up to rounding. Kernels run only for
    blocks with exactly the modules that `davit.model` builds, and only while the text of that file is the one that
    they were tested against. An edited, adapted or quantized block runs as it is written, even if it is changed after
    this call; the reason is logged once at INFO, and `why_plain` lists all reasons. Call this before ``torch.compile``
    and FSDP's ``fully_shard``, and again after `torch.jit.script`, which undoes it.

    Args:
        model: any module that holds a DaViT; it is changed in place.

    Returns:
        The model.
    """
    for module in model.modules():
        fused = _FUSED.get(type(module))
        # an edited forward might take other arguments
        if fused is not None and "forward" not in module.__dict__ and _difference_of_text(module) is None:
            module.__class__ = fused
    for reason in why_plain(model).values():
        conditions.log_once(reason)
    if not any(type(module).forward in _FORWARDS for module in model.modules()):
        conditions.log_once(f"{type(model).__name__} holds no block of davit.model that could be accelerated")
    return model


def plain(model: nn.Module) -> nn.Module:
    """Undo `accelerate`: every block and patch embedding runs as `davit.model` writes it.

    Returns:
        The model, changed in place.

    Raises:
        ValueError: a block's class was derived from an accelerated one, as by ``fully_shard``; call this before that.
    """
    for name, module in model.named_modules():
        if (stock := _PLAIN.get(type(module))) is not None:
            module.__class__ = stock
        elif type(module).forward in _FORWARDS:
            raise ValueError(
                f"{name or 'the model'} is a {type(module).__name__}, a class derived from an accelerated one (as "
                "fully_shard does): call davit.plain before that."
            )
    return model


def why_plain(model: nn.Module) -> dict[str, str]:
    """Map the name of each block and patch embedding that runs as written, whatever the input, to the reason."""
    reasons = {}
    stages = [name for name, module in model.named_modules() if isinstance(module, DualAttentionStages)]
    prefixes = [f"{name}." if name else "" for name in stages]
    for name, module in model.named_modules():
        if isinstance(module, DualAttentionBlock | PatchEmbed):
            if (reason := _why_plain(module)) is not None:
                reasons[name] = reason
        elif any(re.fullmatch(re.escape(prefix) + _NAME_OF_BLOCK, name) for prefix in prefixes):
            reasons[name] = f"{type(module).__name__} is none of davit.model's modules"
    return reasons


_NAME_OF_BLOCK = r"(patch_embeds\.\d+|main_blocks\.\d+\.\d+\.\d+)"  # in `DualAttentionStages`


def _why_plain(module: nn.Module) -> str | None:
    kind = type(module)
    if "forward" in module.__dict__:
        return f"a {kind.__name__} has a forward of its own"
    if kind.forward not in _FORWARDS:
        if kind not in _FUSED:
            return f"{kind.__name__} is a class of its own, derived from {kind.__mro__[1].__name__}"
        return _difference_of_text(module) or f"a {kind.__name__} was not accelerated"
    is_block = isinstance(module, DualAttentionBlock)
    return conditions.difference_of_block(module) if is_block else conditions.difference_of_embedding(module)


def _difference_of_text(module: nn.Module) -> str | None:
    attention = type(getattr(module, "attn", None))
    kind = attention if attention in conditions.ATTENTIONS else WindowAttention
    return conditions.difference_of_text(PatchEmbed if isinstance(module, PatchEmbed) else kind)


_FORWARDS = (FusedBlock.forward, FusedPatchEmbed.forward)  # also of the classes that fully_shard derives from them


def _plain_copy(module: nn.Module) -> nn.Module:
    """Copy a module for TorchScript, with shared parameters; TorchScript puts the copy into the original model too."""
    _warn_of_scripting()
    stock = copy.copy(module)
    stock.__class__ = _PLAIN[type(module)]
    return stock


@functools.cache
def _warn_of_scripting() -> None:
    _logger.warning(
        "torch.jit.script undoes the acceleration of the model that it is given; call davit.accelerate(model) again."
    )


# --- the ways to compute a block ---


def _infer_operator(block: Any, x_BHWC: Tensor) -> Tensor:
    """Infer a block in a compiled graph by one operator; another packs frozen weights, and Inductor runs it once."""
    weights, window, heads, eps, qk = block_arguments(block)
    packed = None
    if conditions.has_frozen_weights():
        packed = ops.pack_block(weights, heads)
        weights = [None if i in native.MATRICES else p for i, p in enumerate(weights)]
    return ops.infer_block(x_BHWC, weights, window, heads, eps, qk, packed)


def block_arguments(block: Any) -> tuple[list[Tensor | None], int, int, tuple[float, float], bool]:
    """Return the arguments of `native.infer_block` after the map: weights, window, heads, eps of both norms, qk."""
    weights: list[Tensor | None] = []
    for layer in conditions.layers_of(block):
        weights += (None, None) if layer is None else conditions.parameters_of(layer)
    eps = (block.norm1.eps, block.norm2.eps if block.ffn else block.norm1.eps)
    return weights, *conditions.heads_of(block.attn), eps, conditions.is_qk(block.attn)


def _train(block: Any, x_BHWC: Tensor) -> Tensor:
    """Train a block on the CPU in eager mode by autograd Functions, with drop path."""
    x = _encode_in_training(block.cpe[0], x_BHWC)
    x = _add_branch(x, attend_in_training(block, x), block.drop_path)
    x = _encode_in_training(block.cpe[1], x)
    if not block.ffn:
        return x
    fc1, fc2 = block.mlp.fc1, block.mlp.fc2
    branch = training.NormMlp.apply(x, *_vectors(block.norm2), fc1.weight, fc1.bias, fc2.weight, fc2.bias)
    return _add_branch(x, branch, block.drop_path)


def attend_in_training(block: Any, x: Tensor) -> Tensor:
    """Compute a block's norm and attention for training."""
    attn = block.attn
    norm, qkv, proj = _vectors(block.norm1), (attn.qkv.weight, attn.qkv.bias), (attn.proj.weight, attn.proj.bias)
    if type(attn) is not WindowAttention and training.gram_is_faster(x):
        return training.GramChannelAttention.apply(x, *norm, *qkv, *proj, attn.num_groups, conditions.is_qk(attn))
    return training.LinearFunction.apply(_attend(attn, training.NormLinear.apply(x, *norm, *qkv)), *proj)


def _vectors(norm: Any) -> tuple[Tensor | None, Tensor | None, float]:
    return norm.weight, norm.bias, norm.eps


def _encode_in_training(encoding: Any, x: Tensor) -> Tensor:
    if type(encoding.activation) is nn.Identity and native.supports_rows(x):
        return training.PositionEncoding.apply(x, encoding.proj.weight, encoding.proj.bias)
    return encoding(x)


def _add_branch(x: Tensor, branch: Tensor, drop_path: nn.Module) -> Tensor:
    """Return x + drop_path(branch) in one pass that saves the mask alone; draws the same random numbers as timm."""
    if not isinstance(drop_path, DropPath) or drop_path.drop_prob == 0.0 or not drop_path.training:
        return x + branch
    keep = 1.0 - drop_path.drop_prob
    mask = branch.new_empty((branch.shape[0], 1, 1, 1)).bernoulli_(keep)
    if keep > 0.0 and drop_path.scale_by_keep:
        mask.div_(keep)
    return torch.addcmul(x, branch, mask)


def _run_spans(block: Any, x_BHWC: Tensor) -> Tensor:
    """Compute a block by kernels between PyTorch's linear layers: on CUDA, compiled, and in small CPU training."""
    x, y = _encode_and_norm(block.cpe[0], block.norm1, x_BHWC)
    x = x + block.drop_path(block.attn.proj(_attend(block.attn, block.attn.qkv(y))))
    if not block.ffn:
        return block.cpe[1](x)
    x, y = _encode_and_norm(block.cpe[1], block.norm2, x)
    fc1, fc2 = block.mlp.fc1, block.mlp.fc2
    saves_less = conditions.supports_gelu()
    branch = training.GeluLinear.apply(fc1(y), fc2.weight, fc2.bias) if saves_less else block.mlp(y)
    return x + block.drop_path(branch)


def _encode_and_norm(encoding: Any, norm: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the encoded map, and its norm in the dtype of the linear layer that reads it."""
    if not conditions.supports_encoding(encoding, norm, x):
        x = encoding(x)
        return x, norm(x)
    conv, dtype = encoding.proj, conditions.product_dtype(x)
    y, normed, _, _ = ops.encode_and_norm(x, conv.weight, conv.bias, *_vectors(norm), dtype)
    return y, normed


def _attend(attn: Any, qkv_BHWE: Tensor) -> Tensor:
    """Compute an attention from its map of q, k and v."""
    window, heads = conditions.heads_of(attn)
    supported = conditions.supports_attention(qkv_BHWE, window, heads)
    if window:
        attend = ops.window_attention if supported else ops.window_formula
        return attend(qkv_BHWE, attn.qkv.bias, window, heads)
    attend_channels = ops.channel_attention if supported else ops.channel_formula
    return attend_channels(qkv_BHWE, heads, conditions.is_qk(attn))[0]


WAYS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "whole": lambda block, x_BHWC: native.infer_block(x_BHWC, *block_arguments(block)),
    "operator": _infer_operator,
    "onednn": lambda block, x_BHWC: onednn.infer_block(block, x_BHWC, _attend),
    "training": _train,
    "spans": _run_spans,
}
