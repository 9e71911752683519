"""When a block may take a fused path: the conditions, all in one place."""

import platform
from typing import TYPE_CHECKING, Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from .cpu import native, whole
from .cpu.inference import infers_natively
from .gpu import support
from .gpu.encoding import MOST_CHANNELS
from .ordinary import (
    ORDINARY,
    has_size,
    is_exact_gelu,
    is_ordinary_block,
    is_ordinary_embedding,
    is_position_encoding,
    is_watched,
)

if TYPE_CHECKING:
    from ..model import DualAttentionBlock, PatchEmbed

FUSED = ("auto", "off")

#: Multiply-adds of a linear layer to four times its width over the whole input, below which a block keeps to its
#: plain modules: there oneDNN's start costs more than it gains. Measured; see docs/performance.md.
LEAST_WORK = 10_000_000

#: The kernels that may be taken, of Triton and of native.cpp; tests and benchmarks leave some out.
KERNELS = {"window", "channel", "encoding", "gelu", "patches"}

#: Elements of a map from which the position encoding leaves its modules in eager mode: below, the time is that of the
#: launches on the CPU, three of PyTorch's or one of ours with a costlier start. Estimated, not measured.
LEAST_ELEMENTS = 1 << 20

#: Positions of a window x channels of a head, each as a power of two, that a program keeps on chip for a window; and
#: channels of a group. For float32, whose products are done without tensor cores, and for the 2-byte formats. From
#: the compiler's count of registers and shared memory for an H100 and an A100 (`benchmarks/kernels.py --compile`).
MOST_TILE = {4: 64 * 32, 2: 128 * 64}
MOST_GROUP = {4: 32, 2: 64}


def fuses(block: "DualAttentionBlock", x_BHWC: Tensor) -> bool:
    """Whether a block may leave its plain modules for `run_block` on this input.

    The plain modules run wherever something could tell the difference: under torch.compile, torch.export, a
    trace, torch.fx, a functional transform, forward-mode differentiation or a dispatch mode (which count or change
    single operations); for tensor subclasses; when a module inside the block has a hook, or is not of the class that
    the model built; and for maps so small that nothing is gained.
    """
    if torch.compiler.is_compiling() or type(x_BHWC) is not Tensor or torch.jit.is_tracing():
        return False
    return (
        x_BHWC.device.type == "cpu"
        and not support.INTERPRETED
        and compute_dtype(x_BHWC) is not None
        and x_BHWC.numel() > 0
        and 4 * x_BHWC.numel() * x_BHWC.shape[-1] >= LEAST_WORK
        and _eager_and_alone()
        and is_ordinary_block(block, x_BHWC)
    )


def drops_paths(block: "DualAttentionBlock") -> bool:
    """Whether stochastic depth is on: in training mode, gradients or not."""
    drop_path = block.drop_path
    return isinstance(drop_path, DropPath) and drop_path.training and drop_path.drop_prob > 0.0


def compute_dtype(x: Tensor) -> torch.dtype | None:
    """The number format of the matrix products, or None where there is no fused path for it on this machine."""
    dtype: torch.dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    if dtype != x.dtype:
        return None
    supported = _HAS_ONEDNN if dtype == torch.float32 else dtype == torch.bfloat16 and _HAS_BF16
    return dtype if supported and torch._C._get_mkldnn_enabled() else None


def _probe_onednn() -> bool:
    """Whether the operations that we call are there and do what we think, by a small example."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():
        return False
    try:
        x, w, b = torch.ones(2, 16), torch.full((16, 16), 0.125), torch.ones(16)
        linear = torch.ops.mkldnn._linear_pointwise
        gelu = linear(x, w, b, "gelu", [], "none")
        added = linear.binary(x, x, w, b, "add")
        image, kernel = torch.ones(1, 16, 3, 3).to(memory_format=torch.channels_last), torch.ones(16, 1, 3, 3)
        conv = torch.ops.mkldnn._convolution_pointwise.binary(
            image, image, kernel, b, [1, 1], [1, 1], [1, 1], 16, "add", None, None, [], None
        )
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*(torch.ones(1, 1, 2, 8) for _ in range(3)))
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    expected = torch.nn.functional.gelu(torch.tensor(3.0))
    right = torch.allclose(gelu, expected) and bool((added == 4).all()) and conv[0, 0, 1, 1].item() == 11
    return bool(right)


def _probe_bf16() -> bool:
    try:
        return _HAS_ONEDNN and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (RuntimeError, AttributeError):
        return False


_HAS_ONEDNN = _probe_onednn()
_HAS_BF16 = _probe_bf16()


def _eager_and_alone(default_device: bool = False) -> bool:
    """No mode, transform or hook for everything; ``default_device`` allows that of torch.set_default_device."""
    functions = torch._C._len_torch_function_stack()
    if functions and default_device:
        functions = sum(type(mode) is not DeviceContext for mode in _get_current_function_mode_stack())
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and functions == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and forward_ad._current_level < 0
        and not nn.modules.module._has_any_global_hook()
    )


def infers_as_one(block: "DualAttentionBlock", x_BHWC: Tensor) -> bool:
    """Whether torch.compile sees a block as one operator: without gradients, and where native.cpp has all of it."""
    return (
        torch.compiler.is_compiling()
        and not is_exporting()
        and not torch.is_grad_enabled()
        and not drops_paths(block)
        and _runs_natively(x_BHWC)
        and {"window", "channel", "encoding", "gelu"} <= KERNELS
        and is_ordinary_block(block, x_BHWC)
        and infers_natively(block, x_BHWC)
    )


@torch.compiler.assume_constant_result
def freezes_weights() -> bool:
    """Whether Inductor was told to take weights for constants: it then computes once what depends on them alone."""
    import torch._inductor.config

    return bool(torch._inductor.config.freezing)


def takes_patches(embed: "PatchEmbed", x: Tensor) -> bool:
    """Whether a patch embedding, without gradients, is one function of native.cpp, also in torch.compile."""
    return (
        "patches" in KERNELS
        and _runs_natively(x)
        and not is_graded(embed, x)
        and is_ordinary_embedding(embed, x)
        and whole.takes_patches(x, embed.proj.weight, embed.proj.stride[0], embed.stem)
    )


def _runs_natively(x: Tensor) -> bool:
    """Whether functions of native.cpp may stand for what is without gradients, sizes and modules aside."""
    return takes_kernels(x) and not support.runs_on(x) and not torch.is_autocast_enabled("cpu")


def is_graded(module: nn.Module, x: Tensor) -> bool:
    """Whether gradients will be asked for."""
    return torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in module.parameters()))


def as_convolution(x: Tensor) -> bool:
    """Whether the linear layers of a (B, H, W, C) map go to torch.compile as 1x1 convolutions.

    In float32 on the CPU, Inductor gives linear layers to MKL and convolutions to oneDNN, which is faster and takes
    the GELU or the residual on its way; in bfloat16 both go to oneDNN. An exporter gets the linear layers.
    """
    return (
        torch.compiler.is_compiling()
        and not is_exporting()
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and x.dim() == 4
    )


# --- kernels, of Triton on CUDA and of native.cpp on the CPU: each stands for a span between two modules ---


def takes_kernels(x: Tensor) -> bool:
    """Whether kernels may stand for plain formulas on this input, sizes and modules aside.

    In eager mode and torch.compile, on CUDA also in torch.export. Not for an ONNX export, a trace, torch.fx, a
    functional transform, forward-mode differentiation, a dispatch mode, a tensor subclass, or a GPU older than Ampere.
    """
    compiling = torch.compiler.is_compiling()
    if not compiling and torch.jit.is_tracing():  # before sizes are asked for, which would be traced
        return False
    if not (type(x) is Tensor or (is_exporting() and isinstance(x, Tensor))):
        return False
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return False
    if not support.runs_on(x) and (not native.runs_on(x) or is_exporting()):
        return False
    if x.is_cuda and not _is_recent(x.device.index):
        return False
    if compiling:
        return not _is_transformed() and not torch.onnx.is_in_onnx_export()
    return x.numel() > 0 and _eager_and_alone(default_device=True)


def is_exporting() -> bool:
    """As torch.compiler's; in torch 2.11 Dynamo takes that for true in torch.compile as well, but not its flag."""
    return bool(torch.compiler._is_exporting_flag)


@torch.compiler.assume_constant_result
def _is_recent(index: int) -> bool:
    return torch.version.cuda is not None and torch.cuda.get_device_capability(index) >= (8, 0)


@torch.compiler.assume_constant_result
def _is_transformed() -> bool:
    """Whether a compiler is inside vmap, grad or the like: it knows no rule for our operators."""
    return torch._C._functorch.peek_interpreter_stack() is not None or forward_ad._current_level >= 0


def takes_window(qkv_BHWE: Tensor, bias_E: Tensor | None, window: int, heads: int) -> bool:
    """Whether window attention takes its kernel: a window of one head must fit a program."""
    if "window" not in KERNELS or not takes_kernels(qkv_BHWE) or not _are_plain(bias_E):
        return False
    if not _parts_in(qkv_BHWE, heads) or (bias_E is not None and bias_E.shape != qkv_BHWE.shape[3:]):
        return False
    if not support.runs_on(qkv_BHWE):
        return native.takes_window(qkv_BHWE, window, heads)
    positions = support.power_of_two(window * window, 16)
    channels = support.power_of_two(qkv_BHWE.shape[3] // 3 // heads, 16)
    return positions <= 128 and channels <= 128 and positions * channels <= MOST_TILE[qkv_BHWE.element_size()]


def _parts_in(qkv_BHWE: Tensor, heads: int) -> bool:
    """Whether it is a map of q, k and v of so many heads; otherwise the plain formula says what is wrong."""
    return qkv_BHWE.dim() == 4 and qkv_BHWE.shape[3] % (3 * heads) == 0


def takes_channel(qkv_BHWE: Tensor, groups: int) -> bool:
    """Whether channel attention takes its kernels: the D x D attention of a group must fit a program."""
    if "channel" not in KERNELS or not takes_kernels(qkv_BHWE) or not _parts_in(qkv_BHWE, groups):
        return False
    if not support.runs_on(qkv_BHWE):
        return native.takes_channel(qkv_BHWE, groups)
    return qkv_BHWE.shape[3] // 3 // groups <= MOST_GROUP[qkv_BHWE.element_size()]


def takes_encoding(encoding: Any, norm: Any, x_BHWC: Tensor) -> bool:
    """Whether a position encoding and the norm behind it take their kernel: both as the model built them, unwatched.

    With a GELU in the encoding they do not: it is no part of the released models.
    """
    if "encoding" not in KERNELS or not takes_kernels(x_BHWC) or not hasattr(encoding, "activation"):
        return False
    modules = (encoding, encoding.proj, encoding.activation, norm)
    return (
        all(type(module) in ORDINARY and not is_watched(module) for module in modules)
        and not nn.modules.module._has_any_global_hook()
        and type(norm) is nn.LayerNorm
        and type(encoding.activation) is nn.Identity
        and is_position_encoding(encoding)
        and x_BHWC.dim() == 4
        and has_size(encoding.proj, (x_BHWC.shape[3], 1, 3, 3))
        and has_size(norm, x_BHWC.shape[3:])
        and (x_BHWC.shape[3] <= MOST_CHANNELS if support.runs_on(x_BHWC) else native.takes_rows(x_BHWC))
        and (torch.compiler.is_compiling() or support.INTERPRETED or x_BHWC.numel() >= LEAST_ELEMENTS)
        and _are_plain(*encoding.proj.parameters(), *norm.parameters())
        and _formats_agree(x_BHWC, *encoding.proj.parameters(), *norm.parameters())
    )


def takes_gelu(mlp: Any, x: Tensor) -> bool:
    """Whether the MLP keeps the map in front of its GELU only. In eager training: a compiler does so by itself."""
    return (
        not torch.compiler.is_compiling()
        and "gelu" in KERNELS
        and torch.is_grad_enabled()
        and takes_kernels(x)
        and is_exact_gelu(mlp.act)
        and type(mlp.fc2) is nn.Linear
        and not is_watched(mlp.act)
        and not is_watched(mlp.fc2)
        and _are_plain(*mlp.fc2.parameters())
        and _formats_agree(x, *mlp.fc2.parameters())
    )


def autocast_dtype(x: Tensor) -> torch.dtype:
    """Number format of the linear layer that reads ``x``."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _are_plain(*parameters: Tensor | None) -> bool:
    """No subclasses (quantized, distributed); what an exporter has put in their place is none."""
    return is_exporting() or all(p is None or type(p) in (nn.Parameter, Tensor) for p in parameters)


def _formats_agree(x: Tensor, *parameters: Tensor) -> bool:
    """All in the number format of ``x``; under autocast also float32. The plain modules report anything else."""
    allowed = {x.dtype}
    if torch.is_autocast_enabled(x.device.type):
        allowed = {torch.float32, autocast_dtype(x)}
    return x.dtype in allowed and all(p.dtype in allowed and p.device == x.device for p in parameters)
