"""Decide where a kernel may stand for modules of `davit.model`: the conditions, all in one place.

Three things must be as kernels know them, otherwise the modules run as they are written:
- the text: the functions of `davit.model` that a kernel replaces are those that it was tested against (`TEXT`);
- the structure: a block is made of exactly the modules and parameters that the model builds, and has no hooks
  (`difference_of_block`);
- the call: the tensor, its sizes and the state of PyTorch are of a kind that a kernel handles (`way_for`).
"""

import functools
import hashlib
import inspect
import io
import logging
import textwrap
import tokenize
from collections.abc import Sequence
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
from ..model import ChannelAttention, ConvPosEnc, DualAttentionBlock, Mlp, PatchEmbed, WindowAttention
from .cpu import native, onednn
from .triton import support
from .triton.encoding import MOST_CHANNELS

_logger = logging.getLogger(__name__)

#: Multiply-adds of a linear layer to four times its width over the whole input, below which a block keeps to its
#: modules: there the start of a kernel costs more than it gains. Measured; see docs/performance.md.
LEAST_WORK = 1_000_000

#: The kernels that may be taken, of Triton and of native.cpp; tests and benchmarks leave some out.
KERNELS = {"window", "channel", "encoding", "gelu", "patches"}

#: Elements of a map from which the position encoding leaves its modules in eager mode: below, the time is that of the
#: launches on the CPU, three of PyTorch's or one of ours with a costlier start. Estimated, not measured.
LEAST_ELEMENTS = 1 << 20

#: Positions of a window x channels of a head, each as a power of two, that a program keeps on chip for a window; and
#: channels of a group. For float32, whose products are done without tensor cores, and for the 2-byte dtypes. From
#: the compiler's count of registers and shared memory for an H100 and an A100 (`benchmarks/kernels.py --compile`).
MOST_TILE = {4: 64 * 32, 2: 128 * 64}
MOST_GROUP = {4: 32, 2: 64}


# --- the text ---

#: What kernels stand for: each function with the fingerprint of the text that they were tested against. Who changes
#: one changes the kernels too, and notes its new `fingerprint` here; until then the function runs as it is written.
TEXT: dict[str, str] = {
    "model.PatchEmbed.forward": "fd66cd6cd68e3b28",
    "model.pad_odd": "a98ae8300604fef1",
    "model.DualAttentionBlock.forward": "7cfece30430f9c8b",
    "model.ConvPosEnc.forward": "db53f4673a2acd77",
    "model.Mlp.forward": "2268e5ca91ac7e65",
    "model.WindowAttention.forward": "b7b9c513b2a59796",
    "model.attend_among_positions": "0d5802fbaa8275ab",
    "model.window_partition": "2a5e6ad875762b61",
    "model.window_unpartition": "f6632898a7ef4ae4",
    "windows._pad": "54371ea65d9463cc",
    "model.ChannelAttention.forward": "064fc00e44b02227",
    "model.attend_among_channels": "4687679ffb65bbf1",
}
_OF_BLOCK = ("model.DualAttentionBlock.forward", "model.ConvPosEnc.forward", "model.Mlp.forward")
_OF: dict[type[nn.Module], tuple[str, ...]] = {
    PatchEmbed: ("model.PatchEmbed.forward", "model.pad_odd"),
    WindowAttention: (
        *_OF_BLOCK,
        "model.WindowAttention.forward",
        "model.attend_among_positions",
        "model.window_partition",
        "model.window_unpartition",
        "windows._pad",
    ),
    ChannelAttention: (*_OF_BLOCK, "model.ChannelAttention.forward", "model.attend_among_channels"),
}
#: The classes whose instances kernels replace together, of which `__init__` and `forward` are all there is.
_CLASSES: dict[type[nn.Module], tuple[type[nn.Module], ...]] = {
    PatchEmbed: (PatchEmbed,),
    WindowAttention: (DualAttentionBlock, ConvPosEnc, Mlp, WindowAttention),
    ChannelAttention: (DualAttentionBlock, ConvPosEnc, Mlp, ChannelAttention),
}
_OF_A_CLASS = {"__init__", "forward", "__module__", "__doc__", "__annotations__", "__static_attributes__"}
_OF_A_CLASS |= {"__firstlineno__", "__annotate__", "__annotate_func__", "__annotations_cache__"}

#: What of PyTorch and timm kernels compute too, as it was when this module was imported.
_FOREIGN: tuple[tuple[Any, str, Any], ...] = tuple(
    (owner, name, getattr(owner, name))
    for owner, name in (
        *((cls, "forward") for cls in (nn.Linear, nn.LayerNorm, nn.Conv2d, nn.GELU, nn.Identity, DropPath)),
        *((F, name) for name in ("linear", "layer_norm", "conv2d", "gelu")),
    )
)


def function_named(name: str) -> Any:
    """Find the function that a name of `TEXT` means now, whoever replaced it."""
    place, *path, last = name.split(".")
    if place == "windows":  # what the model's function calls, wherever that is defined
        return _without_leaf(model.window_partition).__globals__.get(last)
    return _without_leaf(getattr(functools.reduce(getattr, path, model), last, None))


def _without_leaf(function: Any) -> Any:
    """Return the function itself where torch.fx or torch.export trace, for which torch.fx.wrap has wrapped it."""
    traced = getattr(function, "__globals__", {}).get("__name__") == "torch.fx._symbolic_trace"
    return function.__wrapped__ if traced else function


_judged: dict[tuple[str, int], tuple[CodeType, str | None]] = {}  # by name and id of a code object, which is held


@torch.compiler.assume_constant_result
def difference_of_text(kind: type[nn.Module]) -> str | None:
    """Say what of the text that a kernel would replace is not what it was tested against, or None.

    Args:
        kind: the attention of a block, or `PatchEmbed`. What is replaced or reloaded at run time counts.
    """
    for name in _OF[kind]:
        code = getattr(function_named(name), "__code__", None)
        if code is None:
            return f"davit.{name} is not a function"
        if (name, id(code)) not in _judged:
            _judged[name, id(code)] = (code, _judge(name, code))
        reason = _judged[name, id(code)][1]
        if reason is not None:
            return reason
    for cls in _CLASSES[kind]:
        if cls.__mro__[1:] != (nn.Module, object):
            return f"davit.model.{cls.__name__} has other base classes"
        if not vars(cls).keys() <= _OF_A_CLASS:
            more = ", ".join(sorted(vars(cls).keys() - _OF_A_CLASS))
            return f"davit.model.{cls.__name__} has more than __init__ and forward ({more})"
    for owner, name, function in _FOREIGN:
        if getattr(owner, name) is not function:
            return f"{owner.__name__}.{name} was replaced"
    return None


def changed_text() -> list[str]:
    """Say which functions that kernels stand for are not those that they were tested against."""
    return sorted({reason for kind in _OF if (reason := difference_of_text(kind)) is not None})


def _judge(name: str, code: CodeType) -> str | None:
    try:
        known = fingerprint(code) == TEXT[name]
    except (OSError, tokenize.TokenError, IndentationError):
        return f"the source of davit.{name} cannot be read"
    return None if known else f"the text of davit.{name} was changed"


def fingerprint(code: CodeType) -> str:
    """Hash the source of a function; comments, docstrings and layout do not count.

    Raises:
        OSError: the source cannot be read.
    """
    tokens: list[str] = []
    line: list[tuple[int, str]] = []  # a logical one
    source = io.StringIO(textwrap.dedent(inspect.getsource(code)))
    for kind, text, *_ in tokenize.generate_tokens(source.readline):
        if kind in (tokenize.INDENT, tokenize.DEDENT):
            tokens.append(tokenize.tok_name[kind])
        elif kind not in (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE):
            line.append((kind, text))
        elif kind == tokenize.NEWLINE:
            if [one for one, _ in line] != [tokenize.STRING]:  # that alone is a docstring
                tokens += [*(word for _, word in line), "NEWLINE"]
            line = []
    return hashlib.sha256(" ".join(tokens).encode()).hexdigest()[:16]


# --- the structure ---

#: The modules that kernels can stand for, with the classes of their children. A subclass, and whatever a user put in
#: the place of one (an adapter, a quantized layer), is none of them.
_CHILDREN: dict[type[nn.Module], dict[str, tuple[type[nn.Module], ...]]] = {
    DualAttentionBlock: {
        "cpe": (nn.ModuleList,),
        "norm1": (nn.LayerNorm,),
        "attn": (WindowAttention, ChannelAttention),
        "drop_path": (DropPath, nn.Identity),
        "norm2": (nn.LayerNorm, nn.Identity),
        "mlp": (Mlp, nn.Identity),
    },
    nn.ModuleList: {"0": (ConvPosEnc,), "1": (ConvPosEnc,)},
    ConvPosEnc: {"proj": (nn.Conv2d,), "activation": (nn.Identity, nn.GELU)},
    WindowAttention: {"qkv": (nn.Linear,), "proj": (nn.Linear,)},
    ChannelAttention: {"qkv": (nn.Linear,), "proj": (nn.Linear,)},
    Mlp: {"fc1": (nn.Linear,), "act": (nn.GELU,), "fc2": (nn.Linear,)},
    PatchEmbed: {"proj": (nn.Conv2d,), "norm": (nn.LayerNorm,)},
    **{leaf: {} for leaf in (nn.Linear, nn.LayerNorm, nn.Conv2d, nn.GELU, nn.Identity, DropPath)},
}
#: Their own parameters.
_OWN = {kind: {"weight", "bias"} if kind in (nn.Linear, nn.LayerNorm, nn.Conv2d) else set() for kind in _CHILDREN}


def difference_of_block(block: Any) -> str | None:
    """Say what of a block is not as `davit.model` builds it, or None where kernels may stand for it.

    The block itself may have hooks: it is called either way.
    """
    reason = _difference(block, DualAttentionBlock, "block")
    if reason is not None:
        return reason
    for encoding in block.cpe:
        if not _is_position_encoding(encoding):
            return "block.cpe holds another convolution than a depthwise one of 3 x 3 with zero padding"
    with_mlp = type(block.mlp) is Mlp and type(block.norm2) is nn.LayerNorm
    if with_mlp != block.ffn or (not with_mlp and type(block.mlp) is not type(block.norm2)):
        return "block.ffn, block.norm2 and block.mlp do not go together"
    if any(type(number) is not int or number < least for number, least in zip(heads_of(block.attn), (0, 1))):  # noqa: B905
        return "block.attn has a window or number of heads that is no whole number above 0"
    if with_mlp and block.mlp.act.approximate != "none":
        return "block.mlp.act is GELU by tanh"
    return difference_of_text(type(block.attn))


def difference_of_embedding(embed: Any) -> str | None:
    """Say what of a patch embedding is not as `davit.model` builds it, or None."""
    reason = _difference(embed, PatchEmbed, "patch_embed")
    if reason is not None:
        return reason
    conv = embed.proj
    side, padding = (7, 3) if embed.stem else (3, 1) if not embed.halving else (2, 0)
    if not (
        conv.groups == 1
        and (conv.kernel_size, conv.padding, conv.dilation) == ((side, side), (padding, padding), (1, 1))
        and conv.stride == ((conv.stride[0],) * 2 if embed.stem else (2, 2))
        and conv.padding_mode == "zeros"
    ):
        return "patch_embed.proj is another convolution"
    return difference_of_text(PatchEmbed)


def _difference(module: nn.Module, kind: type[nn.Module], path: str) -> str | None:
    """Compare children, parameters and buffers with those of ``kind``, and the same for every child."""
    children, own = _CHILDREN[kind], _OWN[kind]
    if module._parameters.keys() != own or module._buffers:
        names = sorted({*module._parameters, *module._buffers} ^ own)
        return f"{path} has other parameters or buffers ({', '.join(names)}) than a {kind.__name__}"
    if module._modules.keys() != children.keys():
        names = sorted({*module._modules} ^ {*children})
        return f"{path} has other modules ({', '.join(names)}) than a {kind.__name__}"
    for name, kinds in children.items():
        child: Any = module._modules[name]
        if type(child) not in kinds:
            return f"{path}.{name} is a {_full(type(child))}, not a {_full(kinds[0])}"
        if _is_watched(child):
            return f"{path}.{name} has a hook or a forward of its own"
        reason = _difference(child, type(child), f"{path}.{name}")
        if reason is not None:
            return reason
    return None


def _full(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_watched(module: nn.Module) -> bool:
    """Whether somebody sees that it is called."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or "_call_impl" in module.__dict__
    )


def _is_position_encoding(encoding: Any) -> bool:
    conv, act = encoding.proj, encoding.activation
    return (
        conv.groups == conv.in_channels == conv.out_channels
        and (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
        and conv.padding_mode == "zeros"
        and (type(act) is nn.Identity or act.approximate == "none")
    )


# --- the call ---


def way_for(block: Any, x_BHWC: Tensor) -> str | None:
    """Choose how to compute a block of this input: a key of `davit.kernels.modules.WAYS`, or None for its modules.

    The modules run wherever something could tell the difference: in a trace, torch.fx, a functional transform,
    forward-mode differentiation or a dispatch mode (which count or change single operations), for tensor subclasses
    and in exporters for the CPU; and where a map is so small that nothing is gained.
    """
    if not _is_handled(x_BHWC) or x_BHWC.dim() != 4:
        return None
    triton, compiling = support.runs_on(x_BHWC), torch.compiler.is_compiling()
    if not triton and not compiling and not _is_worth_it(x_BHWC):
        return None
    reason = difference_of_block(block)
    if reason is not None:
        tell_once(reason)
        return None
    if not _fits_block(block, x_BHWC):
        return None
    if triton:
        return "spans"
    if compiling:
        whole = not torch.is_grad_enabled() and not drops_paths(block) and not torch.is_autocast_enabled("cpu")
        return "operator" if whole and _infers_natively(block, x_BHWC) else "spans"
    return _way_on_cpu(block, x_BHWC)


def _way_on_cpu(block: Any, x_BHWC: Tensor) -> str | None:
    """In eager mode: by compiled functions with their own products, or around PyTorch's where those are as fast."""
    in_float32 = x_BHWC.dtype == torch.float32
    if native.multiplies(x_BHWC.dtype) or (onednn.AVAILABLE if in_float32 else native.HAS_AMX):
        if is_graded(block, x_BHWC) or drops_paths(block):
            return "training"
        if _infers_natively(block, x_BHWC):
            return "whole"
        if in_float32 and onednn.AVAILABLE:
            return "onednn"
    return "spans" if native.supports(x_BHWC) else None


def _is_worth_it(x_BHWC: Tensor) -> bool:
    """Whether a block of this input has work enough for a kernel on the CPU, in the dtype of its map."""
    return product_dtype(x_BHWC) == x_BHWC.dtype and 4 * x_BHWC.numel() * x_BHWC.shape[-1] >= LEAST_WORK


def embeds_natively(embed: Any, x: Tensor) -> bool:
    """Whether a patch embedding, without gradients, is one function of native.cpp, also in torch.compile."""
    if "patches" not in KERNELS or not _is_handled(x) or support.runs_on(x) or not native.supports(x):
        return False
    if x.dim() != 4 or torch.is_autocast_enabled("cpu") or is_graded(embed, x):
        return False
    reason = difference_of_embedding(embed)
    if reason is not None:
        tell_once(reason)
        return False
    if not (embed.stem or embed.halving):
        return False
    conv, C = embed.proj, x.shape[1 if embed.stem else 3]
    (N, _), side = conv.weight.shape[:2], 7 if embed.stem else 2
    sizes = ((N, C, side, side), (N if embed.stem else C,))
    return _layers_fit((conv, embed.norm), sizes, x) and native.supports_patches(
        x, conv.weight, conv.stride[0], embed.stem
    )


def _is_handled(x: Tensor) -> bool:
    """Whether kernels may be given this tensor, sizes aside.

    In eager mode and torch.compile, on CUDA also in torch.export. Not for an ONNX export, a trace, torch.fx, a
    functional transform, forward-mode differentiation, a dispatch mode, a tensor subclass, or a GPU older than Ampere.
    """
    compiling = torch.compiler.is_compiling()
    if not compiling and torch.jit.is_tracing():  # before sizes are asked for, which would be traced
        return False
    if not (type(x) is Tensor or (_is_exporting() and isinstance(x, Tensor))):
        return False
    if support.runs_on(x):
        if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return False
        if x.is_cuda and not _is_recent(x.device.index):
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
    return x.numel() > 0 and _is_alone()


def _is_alone() -> bool:
    """Whether no mode, transform or hook for everything is active; that of torch.set_default_device may be."""
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and all(type(mode) is DeviceContext for mode in _get_current_function_mode_stack())
        and not _is_in_transform()
        and not nn.modules.module._has_any_global_hook()
    )


def _is_in_transform() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


@torch.compiler.assume_constant_result
def _is_transformed() -> bool:
    """Whether a compiler is inside vmap, grad or the like, or every module has a hook: not seen by our operators."""
    return _is_in_transform() or bool(nn.modules.module._has_any_global_hook())  # a dict, which Dynamo must not meet


def _is_exporting() -> bool:
    """As torch.compiler's; in torch 2.11 Dynamo takes that for true in torch.compile as well, but not its flag."""
    return bool(torch.compiler._is_exporting_flag)


@torch.compiler.assume_constant_result
def _is_recent(index: int) -> bool:
    return torch.version.cuda is not None and torch.cuda.get_device_capability(index) >= (8, 0)


@torch.compiler.assume_constant_result
def freezes_weights() -> bool:
    """Whether Inductor was told to take weights for constants: it then computes once what depends on them alone."""
    import torch._inductor.config

    return bool(torch._inductor.config.freezing)


@functools.cache
def _log(reason: str) -> None:
    _logger.info(
        "%s, so it runs as it is written and not by kernels: slower, never wrong. "
        "davit.kernels.why_plain(model) lists every block.",
        reason,
    )


def tell_once(reason: str) -> None:
    """Log why something runs as it is written, the first time that the reason comes up."""
    if not torch.compiler.is_compiling():
        _log(reason)


def drops_paths(block: Any) -> bool:
    """Whether stochastic depth is on: in training mode, gradients or not."""
    drop_path = block.drop_path
    return isinstance(drop_path, DropPath) and drop_path.training and drop_path.drop_prob > 0.0


def is_graded(module: nn.Module, x: Tensor) -> bool:
    """Whether gradients will be asked for."""
    return torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in module.parameters()))


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which a linear layer that reads ``x`` computes."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def heads_of(attn: Any) -> tuple[int, int]:
    """Return the side of a window, 0 for channel attention; and the number of heads or groups."""
    return (attn.window_size, attn.num_heads) if type(attn) is WindowAttention else (0, attn.num_groups)


def _infers_natively(block: Any, x_BHWC: Tensor) -> bool:
    hidden = block.mlp.fc1.weight.shape[0] if block.ffn else None
    with_act = any(type(encoding.activation) is nn.GELU for encoding in block.cpe)
    return {"window", "channel", "encoding", "gelu"} <= KERNELS and native.supports_block(
        x_BHWC, *heads_of(block.attn), hidden, with_act
    )


def layers_of(block: Any) -> list[Any]:
    """List the layers of a block that have parameters, in the order of `native.PARAMETERS`; None without an MLP."""
    first, second, attn, mlp = block.cpe[0], block.cpe[1], block.attn, block.mlp
    last = [mlp.fc1, mlp.fc2] if block.ffn else [None, None]
    return [first.proj, second.proj, block.norm1, block.norm2 if block.ffn else None, attn.qkv, attn.proj, *last]


def _fits_block(block: Any, x_BHWC: Tensor) -> bool:
    """Whether every layer is of the input's width: functions that take pointers could not tell."""
    C = x_BHWC.shape[3]
    E = block.mlp.fc1.weight.shape[0] if block.ffn else 0
    sizes = ((C, 1, 3, 3), (C, 1, 3, 3), (C,), (C,), (3 * C, C), (C, C), (E, C), (C, E))
    return C % heads_of(block.attn)[1] == 0 and _layers_fit(layers_of(block), sizes, x_BHWC)


def _layers_fit(layers: Sequence[Any], sizes: Sequence[tuple[int, ...]], x: Tensor) -> bool:
    """Whether layers have weights of these sizes, biases to go with them, and both beside the input in its dtype.

    Under autocast also in its dtypes. A norm may have neither, a layer may be None.
    """
    dtypes = {x.dtype}
    if torch.is_autocast_enabled(x.device.type):
        dtypes = {x.dtype, torch.float32, product_dtype(x)}
    exporting = _is_exporting()  # what an exporter has put in the place of parameters is no plain tensor
    for layer, size in zip(layers, sizes, strict=True):
        if layer is None:
            continue
        if type(layer) is nn.LayerNorm and tuple(layer.normalized_shape) != size:
            return False
        for parameter, wanted in ((layer.weight, size), (layer.bias, size[:1])):
            if parameter is not None and not (
                parameter.shape == wanted
                and (exporting or type(parameter) in (nn.Parameter, Tensor))
                and parameter.dtype in dtypes
                and parameter.device == x.device
                and parameter.layout == torch.strided
            ):
                return False
    return True


# --- the spans of a block ---


def supports_window(qkv_BHWE: Tensor, window: int, heads: int) -> bool:
    """Whether window attention has a kernel: a window of one head must fit a program."""
    if "window" not in KERNELS:
        return False
    if not support.runs_on(qkv_BHWE):
        return native.supports_window(qkv_BHWE, window, heads)
    positions = support.power_of_two(window * window, 16)
    channels = support.power_of_two(qkv_BHWE.shape[3] // 3 // heads, 16)
    return positions <= 128 and channels <= 128 and positions * channels <= MOST_TILE[qkv_BHWE.element_size()]


def supports_channel(qkv_BHWE: Tensor, groups: int) -> bool:
    """Whether channel attention has a kernel: the D x D attention of a group must fit a program."""
    if "channel" not in KERNELS:
        return False
    if not support.runs_on(qkv_BHWE):
        return native.supports_channel(qkv_BHWE, groups)
    return qkv_BHWE.shape[3] // 3 // groups <= MOST_GROUP[qkv_BHWE.element_size()]


def supports_encoding(encoding: Any, norm: Any, x_BHWC: Tensor) -> bool:
    """Whether a position encoding and the norm behind it have a kernel together.

    With a GELU in the encoding they do not: it is no part of the released models.
    """
    return (
        "encoding" in KERNELS
        and type(norm) is nn.LayerNorm
        and type(encoding.activation) is nn.Identity
        and (x_BHWC.shape[3] <= MOST_CHANNELS if support.runs_on(x_BHWC) else native.supports_rows(x_BHWC))
        and (torch.compiler.is_compiling() or support.INTERPRETED or x_BHWC.numel() >= LEAST_ELEMENTS)
    )


def supports_gelu() -> bool:
    """Whether an MLP keeps the map in front of its GELU only. In eager training: a compiler does so by itself."""
    return "gelu" in KERNELS and not torch.compiler.is_compiling() and torch.is_grad_enabled()
