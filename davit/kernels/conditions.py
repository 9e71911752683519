"""Decide whether a kernel may replace modules of `davit.model`.

Three conditions must hold, otherwise the modules run as they are written:
- the text: the functions of `davit.model` that a kernel replaces are those that it was tested against (`TEXT`);
- the structure: a block has exactly the modules and parameters that the model builds, and no hooks
  (`difference_of_block`);
- the call: a kernel supports the tensor, its sizes and the state of PyTorch (`way_for`).
"""

import functools
import hashlib
import inspect
import io
import logging
import textwrap
import tokenize
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import CodeType
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from .. import model
from ..model import (
    ChannelAttention,
    ChannelAttentionQK,
    ConvPosEnc,
    DualAttentionBlock,
    Mlp,
    PatchEmbed,
    WindowAttention,
)
from .cpu import native, onednn
from .triton import support
from .triton.encoding import MAX_CHANNELS

_logger = logging.getLogger(__name__)

#: Minimum work of a block on the CPU, below which starting a kernel costs more than it gains: the multiply-adds of a
#: linear layer to four times the width, over the whole input. Measured; see docs/performance.md.
MIN_WORK = 1_000_000

#: The same for calls with gradients or an active drop path. Below it kernels stand around PyTorch's layers ("spans"):
#: slower (`benchmarks/cpu_choices.py` times both), but sums are in the order of every release so far, so a small
#: training run can be repeated to the last digit.
MIN_WORK_TO_TRAIN = 10_000_000

#: Kernels that may be used, of Triton and of native.cpp; tests and benchmarks leave some out.
KERNELS = {"window", "channel", "encoding", "gelu", "patches"}

#: Minimum elements of a map for the kernel of the position encoding in eager mode on a GPU. Below it the time is that
#: of launches on the CPU: three by PyTorch, or one of ours, which costs more. Estimated, not measured.
MIN_ELEMENTS = 1 << 20

#: Maximum tile that a Triton program keeps on chip, by the bytes of a value: positions of a window x channels of a
#: head, each rounded up to a power of two; and channels of a group. float32 products do not use tensor cores. From the
#: compiler's count of registers and shared memory for an H100 and an A100 (`benchmarks/kernels.py --compile`).
MAX_TILE = {4: 64 * 32, 2: 128 * 64}
MAX_GROUP = {4: 32, 2: 64}


# --- the text ---

#: The functions that kernels replace, by the module that needs them, each with the fingerprint of the text that the
#: kernels were tested against. If you change one, change the kernels too and note the new `fingerprint` here; until
#: then it runs as it is written.
TEXT: dict[type[nn.Module], dict[str, str]] = {
    PatchEmbed: {
        "model.PatchEmbed.forward": "fd66cd6cd68e3b28",
        "model.pad_odd": "a98ae8300604fef1",
    },
    DualAttentionBlock: {
        "model.DualAttentionBlock.forward": "7cfece30430f9c8b",
        "model.ConvPosEnc.forward": "db53f4673a2acd77",
        "model.Mlp.forward": "2268e5ca91ac7e65",
    },
    WindowAttention: {
        "model.WindowAttention.forward": "b7b9c513b2a59796",
        "model.attend_among_positions": "0d5802fbaa8275ab",
        "model.window_partition": "2a5e6ad875762b61",
        "model.window_unpartition": "f6632898a7ef4ae4",
        "windows._pad": "54371ea65d9463cc",
    },
    ChannelAttention: {
        "model.ChannelAttention.forward": "064fc00e44b02227",
        "model.attend_among_channels": "4687679ffb65bbf1",
    },
    ChannelAttentionQK: {
        "model.ChannelAttentionQK.forward": "c3036a70ee778e5a",
        "model.attend_among_channels_qk": "d6e39d2f6a002620",
    },
}
#: The attentions that kernels can compute.
ATTENTIONS: tuple[type[nn.Module], ...] = (WindowAttention, ChannelAttention, ChannelAttentionQK)


def _needed(kind: type[nn.Module]) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """List the functions of `TEXT` that a kernel for a module needs, and the classes whose forward is one of them."""
    kinds = (kind,) if kind is PatchEmbed else (DualAttentionBlock, kind)
    names = tuple(item for part in kinds for item in TEXT[part].items())
    return names, tuple(name.split(".")[1] for name, _ in names if name.endswith(".forward"))


_NEEDED = {kind: _needed(kind) for kind in TEXT if kind is not DualAttentionBlock}
#: What a class with a forward in `TEXT` may have.
_CLASS_MEMBERS = {"__init__", "forward", "__module__", "__doc__", "__annotations__", "__static_attributes__"}
_CLASS_MEMBERS |= {"__firstlineno__", "__annotate__", "__annotate_func__", "__annotations_cache__"}

#: Functions of PyTorch and timm that kernels replace too, as they were when this module was imported.
_FOREIGN: tuple[tuple[Any, str, Any], ...] = tuple(
    (owner, name, getattr(owner, name))
    for owner, name in (
        *((cls, "forward") for cls in (nn.Linear, nn.LayerNorm, nn.Conv2d, nn.GELU, nn.Identity, DropPath)),
        *((F, name) for name in ("linear", "layer_norm", "conv2d", "gelu")),
    )
)


def function_named(name: str) -> Any:
    """Find the function that a name of `TEXT` refers to now, even if it was replaced."""
    place, path, last = _path_of(name)
    if place == "windows":  # as seen by the model's function, wherever that is defined
        return _without_leaf(model.window_partition).__globals__.get(last)
    return _without_leaf(getattr(functools.reduce(getattr, path, model), last, None))


@functools.cache
def _path_of(name: str) -> tuple[str, list[str], str]:
    place, *path, last = name.split(".")
    return place, path, last


def _without_leaf(function: Any) -> Any:
    """Return the function that torch.fx.wrap wraps during a trace by torch.fx or torch.export."""
    traced = getattr(function, "__globals__", {}).get("__name__") == "torch.fx._symbolic_trace"
    return function.__wrapped__ if traced else function


@torch.compiler.assume_constant_result
def difference_of_text(kind: type[nn.Module]) -> str | None:
    """Say which function that a kernel replaces differs from the one it was tested against; None if none does.

    A function that is replaced or reloaded at run time counts.

    Args:
        kind: the attention of a block, or `PatchEmbed`.
    """
    names, classes = _NEEDED[kind]
    for name, known in names:
        code = getattr(function_named(name), "__code__", None)
        if code is None:
            return f"davit.{name} is not a function"
        if (reason := _difference_of_code(name, code, known)) is not None:
            return reason
    for cls in (getattr(model, name) for name in classes):
        if cls.__mro__[1:] != (nn.Module, object):
            return f"davit.model.{cls.__name__} has other base classes"
        if more := sorted(vars(cls).keys() - _CLASS_MEMBERS):
            return f"davit.model.{cls.__name__} has more than __init__ and forward ({', '.join(more)})"
    for owner, name, function in _FOREIGN:
        if getattr(owner, name) is not function:
            return f"{owner.__name__}.{name} was replaced"
    return None


def changed_text() -> list[str]:
    """List every difference of the text from the one that kernels were tested against."""
    kinds = (PatchEmbed, *ATTENTIONS)
    return sorted({reason for kind in kinds if (reason := difference_of_text(kind)) is not None})


@functools.cache
def _difference_of_code(name: str, code: CodeType, known: str) -> str | None:
    try:
        return None if fingerprint(code) == known else f"the text of davit.{name} was changed"
    except (OSError, tokenize.TokenError, IndentationError):
        return f"the source of davit.{name} cannot be read"


def fingerprint(code: CodeType) -> str:
    """Hash the source of a function; comments, docstrings and layout do not count.

    Raises:
        OSError: the source cannot be read.
    """
    tokens: list[str] = []
    line: list[tuple[int, str]] = []  # a logical line
    source = io.StringIO(textwrap.dedent(inspect.getsource(code)))
    for kind, text, *_ in tokenize.generate_tokens(source.readline):
        if kind in (tokenize.INDENT, tokenize.DEDENT):
            tokens.append(tokenize.tok_name[kind])
        elif kind not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE):
            line.append((kind, text))
        elif kind == tokenize.NEWLINE:
            if [one for one, _ in line] != [tokenize.STRING]:  # a string alone is a docstring
                tokens += [*(word for _, word in line), "NEWLINE"]
            line = []
    return hashlib.sha256(" ".join(tokens).encode()).hexdigest()[:16]


# --- the structure ---

#: The modules that kernels can replace, with the classes of their children. A subclass does not count, nor does what a
#: user put in the place of a layer (an adapter, a quantized layer).
_CHILDREN: dict[type[nn.Module], dict[str, tuple[type[nn.Module], ...]]] = {
    DualAttentionBlock: {
        "cpe": (nn.ModuleList,),
        "norm1": (nn.LayerNorm,),
        "attn": ATTENTIONS,
        "drop_path": (DropPath, nn.Identity),
        "norm2": (nn.LayerNorm, nn.Identity),
        "mlp": (Mlp, nn.Identity),
    },
    nn.ModuleList: {"0": (ConvPosEnc,), "1": (ConvPosEnc,)},
    ConvPosEnc: {"proj": (nn.Conv2d,), "activation": (nn.Identity, nn.GELU)},
    WindowAttention: {"qkv": (nn.Linear,), "proj": (nn.Linear,)},
    ChannelAttention: {"qkv": (nn.Linear,), "proj": (nn.Linear,)},
    ChannelAttentionQK: {"qkv": (nn.Linear,), "proj": (nn.Linear,)},
    Mlp: {"fc1": (nn.Linear,), "act": (nn.GELU,), "fc2": (nn.Linear,)},
    PatchEmbed: {"proj": (nn.Conv2d,), "norm": (nn.LayerNorm,)},
    **{leaf: {} for leaf in (nn.Linear, nn.LayerNorm, nn.Conv2d, nn.GELU, nn.Identity, DropPath)},
}


def difference_of_block(block: Any) -> str | None:
    """Say how a block differs from what `davit.model` builds; None if kernels may replace it.

    The block itself may have hooks, since it is called in any case.
    """
    if (reason := _difference(block, DualAttentionBlock, "block")) is not None:
        return reason
    for conv, act in ((encoding.proj, encoding.activation) for encoding in block.cpe._modules.values()):
        depthwise = conv.groups == conv.in_channels == conv.out_channels
        if not depthwise or not _is_convolution(conv, 3, 1, 1) or getattr(act, "approximate", "none") != "none":
            return (
                "block.cpe holds another convolution than a depthwise one of 3 x 3 with zero padding, or another GELU"
            )
    with_mlp = type(block.mlp) is Mlp and type(block.norm2) is nn.LayerNorm
    if with_mlp != block.ffn or (not with_mlp and type(block.mlp) is not type(block.norm2)):
        return "block.ffn, block.norm2 and block.mlp do not go together"
    attn = block.attn
    counts = (attn.window_size, attn.num_heads) if type(attn) is WindowAttention else (attn.num_groups,)
    if any(type(count) is not int or count < 1 for count in counts):
        return "block.attn has a window or number of heads that is no whole number above 0"
    if with_mlp and block.mlp.act.approximate != "none":
        return "block.mlp.act is GELU by tanh"
    return difference_of_text(type(attn))


def difference_of_embedding(embed: Any) -> str | None:
    """Say how a patch embedding differs from what `davit.model` builds; None if a kernel may replace it."""
    if (reason := _difference(embed, PatchEmbed, "patch_embed")) is not None:
        return reason
    conv = embed.proj
    side, padding = (7, 3) if embed.stem else (3, 1) if not embed.halving else (2, 0)
    if conv.groups != 1 or not _is_convolution(conv, side, conv.stride[0] if embed.stem else 2, padding):
        return "patch_embed.proj is another convolution"
    return difference_of_text(PatchEmbed)


def _is_convolution(conv: nn.Conv2d, side: int, stride: int, padding: int) -> bool:
    squares = (conv.kernel_size, conv.stride, conv.padding, conv.dilation)
    return squares == ((side,) * 2, (stride,) * 2, (padding,) * 2, (1, 1)) and conv.padding_mode == "zeros"


def _difference(module: nn.Module, kind: type[nn.Module], path: str) -> str | None:
    """Compare the parameters, buffers and children of a module with those of ``kind``, and so on for each child."""
    children = _CHILDREN[kind]
    own = {"weight", "bias"} if kind in (nn.Linear, nn.LayerNorm, nn.Conv2d) else set()
    if module._parameters.keys() != own or module._buffers:
        names = sorted({*module._parameters, *module._buffers} ^ own)
        return f"{path} has other parameters or buffers ({', '.join(names)}) than a {kind.__name__}"
    if module._modules.keys() != children.keys():
        names = sorted({*module._modules} ^ {*children})
        return f"{path} has other modules ({', '.join(names)}) than a {kind.__name__}"
    for name, kinds in children.items():
        child: Any = module._modules[name]
        if type(child) not in kinds:
            found, wanted = (f"{cls.__module__}.{cls.__qualname__}" for cls in (type(child), kinds[0]))
            return f"{path}.{name} is a {found}, not a {wanted}"
        if _has_hooks(child):
            return f"{path}.{name} has a hook or a forward of its own"
        if (reason := _difference(child, type(child), f"{path}.{name}")) is not None:
            return reason
    return None


def _has_hooks(module: nn.Module) -> bool:
    """Tell whether a call of the module does more than run the forward of its class."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or "_call_impl" in module.__dict__
    )


# --- the call ---


def way_for(block: Any, x_BHWC: Tensor) -> str | None:
    """Choose how to compute a block of this input: a key of `davit.kernels.modules.WAYS`, or None for its modules.

    The modules run wherever something could see the difference: in a trace, torch.fx, a functional transform,
    forward-mode differentiation or a dispatch mode (which count or change single operations), for tensor subclasses
    and in exporters for the CPU; and for maps so small that nothing is gained.
    """
    if not _is_supported(x_BHWC) or x_BHWC.dim() != 4:
        return None
    triton, compiling = support.runs_on(x_BHWC), torch.compiler.is_compiling()
    may_train = torch.is_grad_enabled() or block.training
    if not triton and not compiling and not may_train and not _has_work(x_BHWC, MIN_WORK):
        return None  # before the structure is compared, which would take longer than such a call
    if (reason := difference_of_block(block)) is not None:
        log_once(reason)
        return None
    if not _has_block_sizes(block, x_BHWC):
        return None
    if triton:
        return "spans"
    if compiling:
        inference = not torch.is_grad_enabled() and not has_active_drop_path(block)
        whole = inference and not torch.is_autocast_enabled("cpu") and _supports_whole_block(block, x_BHWC)
        return "operator" if whole else "spans"
    return _way_on_cpu(block, x_BHWC)


def _way_on_cpu(block: Any, x_BHWC: Tensor) -> str | None:
    """Choose in eager mode: products of ours or oneDNN's, or spans around PyTorch's layers where these are as fast."""
    training = needs_gradients(block, x_BHWC) or has_active_drop_path(block)
    in_float32 = x_BHWC.dtype == torch.float32
    if not _has_work(x_BHWC, MIN_WORK_TO_TRAIN if training else MIN_WORK):
        return "spans" if training and native.supports(x_BHWC) else None
    if native.has_products(x_BHWC.dtype) or (onednn.AVAILABLE if in_float32 else native.HAS_AMX):
        if training:
            return "training"
        if _supports_whole_block(block, x_BHWC):
            return "whole"
        if in_float32 and onednn.AVAILABLE:
            return "onednn"
    return "spans" if native.supports(x_BHWC) else None


def _has_work(x_BHWC: Tensor, minimum: int) -> bool:
    """Tell whether a block of this input has so many multiply-adds for kernels on the CPU; none under autocast."""
    return product_dtype(x_BHWC) == x_BHWC.dtype and 4 * x_BHWC.numel() * x_BHWC.shape[-1] >= minimum


def supports_embedding(embed: Any, x: Tensor) -> bool:
    """Tell whether native.cpp can infer a patch embedding, in eager mode or in torch.compile."""
    if "patches" not in KERNELS or not _is_supported(x) or support.runs_on(x) or not native.supports(x):
        return False
    if x.dim() != 4 or torch.is_autocast_enabled("cpu") or needs_gradients(embed, x):
        return False
    if (reason := difference_of_embedding(embed)) is not None:
        log_once(reason)
        return False
    if not (embed.stem or embed.halving):
        return False
    conv, C = embed.proj, x.shape[1 if embed.stem else 3]
    N, side = conv.weight.shape[0], 7 if embed.stem else 2
    sizes = ((N, C, side, side), (N if embed.stem else C,))
    stride = conv.stride[0]
    return _has_sizes((conv, embed.norm), sizes, x) and native.supports_patches(x, conv.weight, stride, embed.stem)


def _is_supported(x: Tensor) -> bool:
    """Tell whether kernels support this tensor and the state of PyTorch, sizes aside.

    That is eager mode and torch.compile, on CUDA also torch.export. Not an ONNX export, a trace, torch.fx, a
    functional transform, forward-mode differentiation, a dispatch mode, a tensor subclass, or a GPU older than Ampere.
    """
    compiling = torch.compiler.is_compiling()
    if not compiling and torch.jit.is_tracing():  # first, since reading sizes would be traced
        return False
    if not (type(x) is Tensor or (_is_exporting() and isinstance(x, Tensor))):
        return False
    if support.runs_on(x):
        if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return False
    elif (
        x.device.type != "cpu"
        or x.dtype not in (torch.float32, torch.bfloat16)
        or _is_exporting()
        or (compiling and not native.supports(x))
    ):
        return False
    if compiling:
        return not _is_transformed() and not torch.onnx.is_in_onnx_export()
    return x.numel() > 0 and not _has_modes()


def _has_modes() -> bool:
    """Tell whether a dispatch mode, functorch transform or global hook is active, other than set_default_device."""
    return (
        torch._C._len_torch_dispatch_stack() > 0
        or any(type(mode) is not DeviceContext for mode in _get_current_function_mode_stack())
        or _is_in_transform()
        or bool(nn.modules.module._has_any_global_hook())
    )


def _is_in_transform() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


@torch.compiler.assume_constant_result
def _is_transformed() -> bool:
    """Tell whether a compiler is inside vmap, grad or the like, or a global hook is set: operators see neither."""
    return _is_in_transform() or bool(nn.modules.module._has_any_global_hook())  # Dynamo cannot trace the dict itself


def _is_exporting() -> bool:
    """Tell whether torch.export runs; in torch 2.11 torch.compiler.is_exporting() is true in torch.compile too."""
    return bool(torch.compiler._is_exporting_flag)


@torch.compiler.assume_constant_result
def has_frozen_weights() -> bool:
    """Tell whether Inductor treats weights as constants, and so computes only once what depends on them alone."""
    import torch._inductor.config

    return bool(torch._inductor.config.freezing)


@functools.cache
def _log(reason: str) -> None:
    _logger.info(
        "%s, so it runs as it is written and not by kernels: slower, never wrong. "
        "davit.kernels.why_plain(model) lists every block.",
        reason,
    )


_expected: ContextVar[bool] = ContextVar("expected", default=False)


@contextmanager
def expect_plain() -> Iterator[None]:
    """Keep silent why blocks run as they are written: davit itself has put hooks on them for this while."""
    token = _expected.set(True)
    try:
        yield
    finally:
        _expected.reset(token)


def log_once(reason: str) -> None:
    """Log why something runs as it is written, the first time that the reason comes up."""
    if not torch.compiler.is_compiling() and not _expected.get():
        _log(reason)


def has_active_drop_path(block: Any) -> bool:
    """Tell whether stochastic depth is active: in training mode, with or without gradients."""
    drop_path = block.drop_path
    return isinstance(drop_path, DropPath) and drop_path.training and drop_path.drop_prob > 0.0


def needs_gradients(module: nn.Module, x: Tensor) -> bool:
    """Tell whether autograd records this call."""
    return torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in module.parameters()))


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which a linear layer of ``x`` computes."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def heads_of(attn: Any) -> tuple[int, int]:
    """Return the side of a window, 0 for channel attention; and the number of heads or groups."""
    return (attn.window_size, attn.num_heads) if type(attn) is WindowAttention else (0, attn.num_groups)


def is_qk(attn: Any) -> bool:
    """Tell whether channel attention is Florence-2's, by queries and keys."""
    return type(attn) is ChannelAttentionQK


def _supports_whole_block(block: Any, x_BHWC: Tensor) -> bool:
    """Tell whether one call of native.cpp can infer the block."""
    hidden = block.mlp.fc1.weight.shape[0] if block.ffn else None
    cpe_act = any(type(encoding.activation) is nn.GELU for encoding in block.cpe)
    return {"window", "channel", "encoding", "gelu"} <= KERNELS and native.supports_block(
        x_BHWC, *heads_of(block.attn), hidden, cpe_act
    )


def layers_of(block: Any) -> list[Any]:
    """List the layers of a block in the order of `native.PARAMETERS`; those of a missing MLP are None."""
    parts = block._modules
    first, second = (encoding.proj for encoding in parts["cpe"]._modules.values())
    attn, mlp = parts["attn"]._modules, parts["mlp"]._modules
    last = [mlp["fc1"], mlp["fc2"]] if block.ffn else [None, None]
    return [first, second, parts["norm1"], parts["norm2"] if block.ffn else None, attn["qkv"], attn["proj"], *last]


def parameters_of(layer: Any) -> tuple[Tensor | None, Tensor | None]:
    """Return the weight and bias of a layer that has both names; several times as fast as by attribute."""
    return layer._parameters["weight"], layer._parameters["bias"]


def _has_block_sizes(block: Any, x_BHWC: Tensor) -> bool:
    """Tell whether every layer has the size that the input asks for; functions that take pointers cannot check it."""
    C = x_BHWC.shape[3]
    E = block.mlp.fc1.weight.shape[0] if block.ffn else 0
    sizes = ((C, 1, 3, 3), (C, 1, 3, 3), (C,), (C,), (3 * C, C), (C, C), (E, C), (C, E))
    return C % heads_of(block.attn)[1] == 0 and _has_sizes(layers_of(block), sizes, x_BHWC)


def _has_sizes(layers: Sequence[Any], sizes: Sequence[tuple[int, ...]], x: Tensor) -> bool:
    """Tell whether the layers' weights have these sizes, their biases match, and both the input's device and dtype.

    Under autocast its dtypes are right too. Norms may have no weight and bias, a layer may be None.
    """
    dtypes = {x.dtype}
    if torch.is_autocast_enabled(x.device.type):
        dtypes = {x.dtype, torch.float32, product_dtype(x)}
    exporting = _is_exporting()  # an exporter's parameters are no plain tensors
    device = x.device
    for layer, size in zip(layers, sizes, strict=True):
        if layer is None:
            continue
        if type(layer) is nn.LayerNorm and tuple(layer.normalized_shape) != size:
            return False
        for parameter, shape in zip(parameters_of(layer), (size, size[:1]), strict=True):
            if parameter is not None and not (
                parameter.shape == shape
                and (exporting or type(parameter) in (nn.Parameter, Tensor))
                and parameter.dtype in dtypes
                and parameter.device == device
                and parameter.layout == torch.strided
            ):
                return False
    return True


# --- the spans of a block ---


def supports_attention(qkv_BHWE: Tensor, window: int, heads: int) -> bool:
    """Tell whether windows, or groups of channels if ``window`` is 0, have a kernel for these sizes.

    A Triton program must hold a window of one head, or the attention of a group.
    """
    if ("window" if window else "channel") not in KERNELS:
        return False
    if not support.runs_on(qkv_BHWE):
        return native.supports_attention(qkv_BHWE, window, heads)
    channels, size = qkv_BHWE.shape[3] // 3 // heads, qkv_BHWE.element_size()
    if not window:
        return channels <= MAX_GROUP[size]
    positions, channels = support.power_of_two(window * window, 16), support.power_of_two(channels, 16)
    return positions <= 128 and channels <= 128 and positions * channels <= MAX_TILE[size]


def supports_encoding(encoding: Any, norm: Any, x_BHWC: Tensor) -> bool:
    """Tell whether a position encoding and the norm after it have a kernel; with a GELU they have none."""
    return (
        "encoding" in KERNELS
        and type(norm) is nn.LayerNorm
        and type(encoding.activation) is nn.Identity
        and (x_BHWC.shape[3] <= MAX_CHANNELS if support.runs_on(x_BHWC) else native.supports_rows(x_BHWC))
        and (torch.compiler.is_compiling() or support.INTERPRETED or x_BHWC.numel() >= MIN_ELEMENTS)
    )


def supports_gelu() -> bool:
    """Tell whether an MLP should save only the input of its GELU: in eager training; a compiler does so by itself."""
    return "gelu" in KERNELS and not torch.compiler.is_compiling() and torch.is_grad_enabled()
