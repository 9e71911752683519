"""Measure each kernel at the sizes of the four stages: its error against float64, its speed beside PyTorch.

    python benchmarks/kernels.py                  # on a CUDA machine; results/kernels.md
    python benchmarks/kernels.py --device cpu     # those of native.cpp; results/kernels_cpu_DTYPE.md
    python benchmarks/kernels.py --compile 90     # anywhere: what the compiler makes of them for an H100

Each kernel and the plain modules that it stands for run in turn, A B A B, and the ratio is plain over kernel: above 1
the kernel is faster. Errors are of outputs and gradients, by norm, the largest of them, against float64.
"""

import argparse
import copy
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.nn.functional as F
from measure import DTYPES, RESULTS, table, takes_bfloat16, write_report
from torch import Tensor, nn

from davit import VARIANTS
from davit.kernels import ops
from davit.kernels.cpu import native
from davit.kernels.training import GeluLinear
from davit.kernels.triton import channel, encoding, gelu, support, window
from davit.model import ConvPosEnc
from davit.parsing import Parser, RawHelp

WINDOW = 7


class Span(nn.Module):
    """The modules that one kernel stands for, the input that it reads, and both ways to compute it."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.dim, self.heads = dim, heads

    def channels(self) -> int:
        return self.dim

    def plain(self, x: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def kernel(self, x: Tensor) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def operations(self) -> int:
        """Count multiplications and additions for each position of the map, forward."""
        raise NotImplementedError

    def maps(self) -> int:
        """Count the channels that a forward pass must write for each position of the map."""
        return self.dim

    def least(self, x: Tensor, training: bool) -> tuple[int, int]:
        """Count operations and bytes that no way can do without; training adds the backward pass.

        Each product has two in its backward pass. Maps are read and written once, and their gradients; weights are
        left out, but for those of a linear layer.
        """
        positions, weights = x.numel() // self.channels(), sum(p.numel() for p in self.parameters() if p.dim() == 2)
        operations, elements = positions * self.operations(), positions * (self.channels() + self.maps()) + weights
        if training:  # reads the input and the gradients of the outputs, writes that of the input
            operations *= 3
            elements += positions * (2 * self.channels() + self.maps()) + 2 * weights
        return operations, elements * x.element_size()


class WindowSpan(Span):
    """What lies between the qkv layer and the projection of window attention."""

    def __init__(self, dim: int, heads: int):
        super().__init__(dim, heads)
        self.qkv_bias = nn.Parameter(torch.randn(3 * dim))

    def channels(self) -> int:
        return 3 * self.dim

    def plain(self, x: Tensor) -> tuple[Tensor, ...]:
        return (ops.window_formula(x, self.qkv_bias, WINDOW, self.heads),)

    def kernel(self, x: Tensor) -> tuple[Tensor, ...]:
        return (ops.window_attention(x, self.qkv_bias, WINDOW, self.heads),)

    def operations(self) -> int:
        return 4 * WINDOW * WINDOW * self.dim


class ChannelSpan(Span):
    """What lies between the qkv layer and the projection of channel attention."""

    def channels(self) -> int:
        return 3 * self.dim

    def plain(self, x: Tensor) -> tuple[Tensor, ...]:
        return (ops.channel_formula(x, self.heads)[0],)

    def kernel(self, x: Tensor) -> tuple[Tensor, ...]:
        return (ops.channel_attention(x, self.heads)[0],)

    def operations(self) -> int:
        return 4 * self.dim * (self.dim // self.heads)


class ChannelQkSpan(ChannelSpan):
    """The same in Florence-2's function."""

    def plain(self, x: Tensor) -> tuple[Tensor, ...]:
        return (ops.channel_formula(x, self.heads, True)[0],)

    def kernel(self, x: Tensor) -> tuple[Tensor, ...]:
        return (ops.channel_attention(x, self.heads, True)[0],)


class EncodingSpan(Span):
    def __init__(self, dim: int, heads: int):
        super().__init__(dim, heads)
        self.encoding, self.norm = ConvPosEnc(dim, False), nn.LayerNorm(dim)

    def plain(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.encoding(x)
        return y, self.norm(y)

    def kernel(self, x: Tensor) -> tuple[Tensor, ...]:
        conv, norm = self.encoding.proj, self.norm
        return ops.encode_and_norm(x, conv.weight, conv.bias, norm.weight, norm.bias, norm.eps, x.dtype)[:2]

    def operations(self) -> int:
        return (2 * 9 + 8) * self.dim

    def maps(self) -> int:
        return 2 * self.dim


class GeluSpan(Span):
    def __init__(self, dim: int, heads: int):
        super().__init__(dim, heads)
        self.linear = nn.Linear(4 * dim, dim)

    def channels(self) -> int:
        return 4 * self.dim

    def plain(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.linear(F.gelu(x)),)

    def kernel(self, x: Tensor) -> tuple[Tensor, ...]:
        return (GeluLinear.apply(x, self.linear.weight, self.linear.bias),)

    def operations(self) -> int:
        return 2 * 4 * self.dim * self.dim


SPANS: dict[str, type[Span]] = {
    "window": WindowSpan,
    "channel": ChannelSpan,
    "channel_qk": ChannelQkSpan,
    "encoding": EncodingSpan,
    "gelu": GeluSpan,
}


def stages(variants: Sequence[str], pixels: int) -> Iterator[tuple[int, int, int]]:
    """Yield channels, heads and side of the map of every stage, each once."""
    seen: set[tuple[int, int, int]] = set()
    for name in variants:
        options = VARIANTS[name].model_kwargs()
        side = pixels // 4
        for dim, heads in zip(options["embed_dims"], options["num_heads"], strict=True):
            if (dim, heads, side) not in seen:
                seen.add((dim, heads, side))
                yield dim, heads, side
            side = -(-side // 2)


# --- on a device that runs them ---


def gradients(function: Callable[[Tensor], tuple[Tensor, ...]], span: Span, x: Tensor) -> list[Tensor]:
    """Compute the outputs, and the gradients of the input and of all parameters that have one."""
    outputs = function(x)
    leaves = [x, *span.parameters()]
    generator = torch.Generator(x.device).manual_seed(0)
    grads = [torch.randn(o.shape, device=o.device, generator=generator).to(o.dtype) for o in outputs]
    found = torch.autograd.grad(outputs, leaves, grads, allow_unused=True)
    return [o.detach() for o in outputs] + [g for g in found if g is not None]


def errors(span: Span, x: Tensor) -> tuple[float, float]:
    """Find the largest relative error of the kernel and of the plain modules, on two images."""
    x = x[:2].detach().requires_grad_()
    exact = copy.deepcopy(span).double()
    right = gradients(exact.plain, exact, x.detach().double().requires_grad_())
    largest = []
    for function in (span.kernel, span.plain):
        found = [t for t in gradients(function, span, x) if t.any()]
        expected = [t for t in right if t.any()]
        each = [(t - e).norm() / e.norm() for t, e in zip(found, expected, strict=True)]
        largest.append(torch.stack(each).max().item())  # NaN if one is
    return largest[0], largest[1]


def seconds(step: Callable[[], Any], device: str) -> float:
    if device == "cpu":
        begin = time.perf_counter()
        step()
        return time.perf_counter() - begin
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def times(
    ways: Sequence[Callable[[Tensor], tuple[Tensor, ...]]], span: Span, x: Tensor, training: bool, rounds: int
) -> list[float]:
    """Time ways to compute a span in turn; return the median seconds of each, without the first five rounds."""

    def step(way: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
        with torch.set_grad_enabled(training):
            outputs = way(x)
        if training:
            torch.autograd.grad(
                outputs, [x, *span.parameters()], [torch.ones_like(o) for o in outputs], allow_unused=True
            )

    taken = [[seconds(lambda f=f: step(f), x.device.type) for f in ways] for _ in range(5 + rounds)][5:]
    return [statistics.median(way) for way in zip(*taken, strict=True)]


def ceilings(device: str, elements: int, side: int, rounds: int) -> dict[str, float]:
    """Measure what the device can do: bytes a second of a copy (read and written), operations a second of a product.

    Args:
        elements: how many bfloat16 values to copy.
        side: of the square matrices of random bfloat16 values to multiply.
    """
    source = torch.randn(elements, device=device).bfloat16()
    target = torch.empty_like(source)
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    copied = [seconds(lambda: target.copy_(source), device) for _ in range(3 + rounds)][3:]
    multiplied = [seconds(lambda: a @ b, device) for _ in range(3 + rounds)][3:]
    return {
        "bytes_per_second": 4 * elements / statistics.median(copied),
        "operations_per_second": 2 * side**3 / statistics.median(multiplied),
    }


def measure(options: argparse.Namespace) -> int:
    device, batch = options.device, options.batch or (8 if options.device == "cpu" else 256)
    missing = "no CUDA device that PyTorch can use" if support.HAS_TRITON else "no Triton"
    if device == "cpu" and native.LIBRARY is None:
        sys.stderr.write(
            "davit was installed without its compiled functions (no C++ compiler?): nothing was measured.\n"
        )
        return 2
    if device == "cuda" and not (torch.cuda.is_available() and support.HAS_TRITON):
        sys.stderr.write(
            f"This machine has {missing}, so nothing was measured. The kernels' tests run without one "
            "(tests/kernels/test_interpreter.py), --compile 90 compiles them for a GPU that is elsewhere, and "
            "--device cpu measures those of the CPU.\n"
        )
        return 2
    rows, data, dtype = [], [], DTYPES[options.dtype]
    for dim, heads, side in stages(options.models, options.size):
        for name in options.kernels:
            torch.manual_seed(0)
            span = SPANS[name](dim, heads).to(device, dtype)
            shape = batch, side, side, span.channels()
            x = torch.randn(shape, device=device).to(dtype).requires_grad_()
            error, plain_error = errors(span, x)
            ways = span.kernel, span.plain
            forward, both = (times(ways, span, x, training, options.rounds) for training in (False, True))
            rows.append(
                [f"{name}, {side} x {side} x {dim}", f"{error:.1e}", f"{plain_error:.1e}"]
                + [f"{value:.3f}" for a, b in (forward, both) for value in (1e3 * a, 1e3 * b, b / a)]
            )
            data.append({"kernel": name, "side": side, "channels": dim, "error": error, "error_plain": plain_error})
            data[-1] |= {"forward": forward, "forward_backward": both}
            sys.stderr.write(" | ".join(rows[-1]) + "\n")
    header = ["kernel", "error", "of plain", "forward, ms", "plain", "ratio", "with backward, ms", "plain", "ratio"]
    heading = f"{options.dtype}, batch {batch}, {options.rounds} rounds"
    name = options.name or ("kernels" if device == "cuda" else f"kernels_cpu_{options.dtype}")
    path = write_report(name, "Kernels", [(heading, table(header, rows))], data, options.folder)
    sys.stdout.write(path.read_text())
    return 0


# --- anywhere: what the compiler makes of them ---


def compiled(kernel: Any, arguments: Sequence[Any], constants: dict[str, Any], capability: int) -> dict[str, int]:
    """Compile; count registers a thread, bytes of its stack (what did not fit in registers) and of shared memory."""
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia import compiler as nvidia
    from triton.compiler import ASTSource, compile

    pointers = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
    options = {key: constants.pop(key) for key in ("num_warps", "num_stages") if key in constants}
    signature, fixed, attributes = {}, dict(constants), {}
    for i, (name, value) in enumerate(zip(kernel.arg_names, arguments, strict=False)):
        if isinstance(value, Tensor):
            signature[name] = pointers[value.dtype]
        elif value == 1:
            fixed[name] = 1
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[(i,)] = [["tt.divisibility", 16]]
    signature |= dict.fromkeys(fixed, "constexpr")
    source = ASTSource(fn=kernel, signature=signature, constexprs=fixed, attrs=attributes)
    binary = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        tool = Path(nvidia.__file__).parent / "bin" / "cuobjdump"
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump gave no usage of {kernel.__name__}: {usage!r}")
    return {"registers": int(found[1]), "stack": int(found[2]), "shared": binary.metadata.shared, **options}


def compile_all(options: argparse.Namespace) -> int:
    """Run the operators on the CPU, where each launch compiles instead. What they compute is thrown away."""
    if not support.HAS_TRITON or support.INTERPRETED:
        sys.stderr.write("--compile needs Triton, without TRITON_INTERPRET.\n")
        return 2
    rows: list[list[str]] = []
    data: list[dict[str, Any]] = []
    label = ""

    def launch(kernel: Any, _programs: int, _device: Any, *arguments: Any, **constants: Any) -> None:
        usage = compiled(kernel, arguments, constants, options.compile)
        row = [
            f"{label}: `{kernel.__name__}`",
            *(str(usage.get(k, 4)) for k in ("num_warps", "registers", "stack", "shared")),
        ]
        if row not in rows:
            rows.append(row)
            data.append({"span": label, "kernel": kernel.__name__, **usage})
            sys.stderr.write(" | ".join(row) + "\n")

    for module in (channel, encoding, gelu, window):
        module.launch = launch
    support.runs_on = lambda _: True
    for dim, heads, side in stages(options.models, options.size):
        for name in options.kernels:
            span = SPANS[name](dim, heads).to(DTYPES[options.dtype])
            x = torch.zeros(1, side, side, span.channels(), dtype=DTYPES[options.dtype], requires_grad=True)
            label = f"{name}, {dim} channels" + (", padded" if name == "window" and side % WINDOW else "")
            torch.autograd.backward([o.sum() for o in span.kernel(x)])
    header = ["kernel", "warps", "registers", "stack, bytes", "shared memory, bytes"]
    heading = f"{options.dtype}, compute capability {options.compile / 10}, Triton {sys.modules['triton'].__version__}"
    name = options.name or f"kernels_compiled_{options.compile}_{options.dtype}"
    path = write_report(name, "Triton kernels, compiled", [(heading, table(header, rows))], data, options.folder)
    sys.stdout.write(path.read_text())
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=RawHelp)
    parser.add_argument("--kernels", nargs="+", choices=tuple(SPANS), default=list(SPANS), help="kernels to measure")
    parser.add_argument(
        "--models",
        nargs="+",
        choices=tuple(VARIANTS),
        default=["DaViT_tiny", "DaViT_base"],
        metavar="NAME",
        help="models whose stages give the sizes; DaViT_small has those of DaViT_tiny",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="dtype to measure (default: bfloat16; on a CPU without instructions for it float32)",
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="device to measure on")
    parser.add_argument("--batch", type=int, help="images in a batch (default: 256 on CUDA, 8 on the CPU)")
    parser.add_argument("--size", type=int, default=224, help="side of the image in pixels")
    parser.add_argument("--rounds", type=int, default=20, help="measurements of each case, taken in turns")
    parser.add_argument(
        "--compile",
        type=int,
        metavar="CAPABILITY",
        help="only compile, for a GPU of this compute capability (80, 90 ...); needs no GPU",
    )
    parser.add_argument(
        "--name", help="the results are written into NAME.json and NAME.md (default: by device and dtype)"
    )
    parser.add_argument("--folder", type=Path, default=RESULTS, help="folder to write the results into")
    options = parser.parse_args(arguments)
    if options.batch == 0 or min(options.batch or 1, options.rounds, options.size // 4) < 1:
        parser.error("--batch and --rounds must be 1 or more, --size 4 or more")
    on_cpu = options.device == "cpu" and not options.compile
    if options.dtype in (None, "bfloat16"):
        takes = takes_bfloat16("cpu" if on_cpu else "cuda", options.dtype is not None, "--dtype bfloat16")
        options.dtype = "bfloat16" if takes else "float32"
    return compile_all(options) if options.compile else measure(options)


if __name__ == "__main__":
    sys.exit(main())
