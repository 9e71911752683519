"""Run one stage of run.sh, most important cells first, until its time is over.

    python benchmarks/gpu/stages.py STAGE [--until SECONDS] [--rehearse] [--fresh]

How to measure is in measure.py, kernels.py and openmmlab_throughput.py; here is what, at which sizes, in which order.
"""

import copy
import csv
import math
import multiprocessing
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import kernels
import measure
import openmmlab_throughput
import torch
from cells import ROOT, Cells
from measure import DTYPES, Case, parsed_case
from torch import Tensor

import davit
from davit.kernels import conditions
from davit.kernels.triton import channel, encoding, gelu, support, window
from davit.parsing import Parser, RawHelp

Task = tuple[Any, ...]  # the arguments of a function that measures one cell

# --- correctness: every kernel against float64, then whole models ---

#: Norm of the error over that of the result in float64.
BOUNDS = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 4e-2}
#: Channels, heads, height, width: odd sides, one position, a window that is mostly padding, the pyramid at 1333 x 800.
ODD = [(96, 3, 13, 9), (96, 3, 1, 1), (384, 12, 25, 42), (128, 4, 29, 57), (768, 24, 8, 1), (96, 3, 200, 334)]
#: Pixels and way of a whole model.
MODELS = [("eager", 224, 224), ("compile", 224, 224), ("graph", 224, 224), ("eager", 210, 186), ("compile", 210, 186)]


def correctness_cells(rehearse: bool) -> dict[str, Task]:
    stages = [(dim, heads, side, side) for dim, heads, side in kernels.stages(["DaViT_tiny", "DaViT_base"], 224)]
    sizes, models, name = [*stages, *ODD], MODELS, "DaViT_tiny"
    dtypes: tuple[str, ...] = ("bfloat16", "float32", "float16")
    if rehearse:  # the interpreter takes seconds for each kernel
        sizes, models, name = [(16, 1, 3, 5)], [(way, 8, 8) for way, *_ in MODELS[:3]], "DaViT_nano"
    found: dict[str, Task] = {}
    for dtype in ("bfloat16",) if rehearse else dtypes:
        for way, *size in models:
            found[f"{name}, {size[0]} x {size[1]}/{dtype}/{way}"] = ("model", name, dtype, way, tuple(size))
    if not rehearse:
        found |= {
            f"DaViT_base_fl, 224 x 224/{d}/eager": ("model", "DaViT_base_fl", d, "eager", (224, 224)) for d in dtypes
        }
    for dim, heads, height, width in sizes:
        for dtype in dtypes:
            for kernel in kernels.SPANS:
                found[f"{kernel}, {height} x {width} x {dim}/{dtype}"] = (
                    "span",
                    kernel,
                    dtype,
                    dim,
                    heads,
                    height,
                    width,
                )
    return found


def correct(task: Task, device: str, rehearse: bool) -> dict[str, Any]:
    """Measure one cell of correctness. New memory is full of NaN, so that what a kernel does not write shows."""
    warnings.simplefilter("ignore")
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what torch.empty returns with NaN
    torch.backends.cudnn.allow_tf32 = False  # its convolutions are not what is tested
    with rehearsal() if rehearse else nothing():
        values = model_error(*task[1:], device=device) if task[0] == "model" else span_error(*task[1:], device=device)
    bound = BOUNDS[task[2]]
    # A kernel may be as far from float64 as the plain modules in the same dtype, with some room for the order of sums;
    # what these miss too is no bound.
    plain = values["error_plain"]
    ok = values["error"] <= max(bound, 2 * plain) and values["error"] <= 3 * max(plain, bound / 100)
    return {**values, "bound": bound, "ok": ok and values["same_again"]}


def span_error(name: str, dtype: str, dim: int, heads: int, height: int, width: int, *, device: str) -> dict[str, Any]:
    torch.manual_seed(0)
    span = kernels.SPANS[name](dim, heads).to(device, DTYPES[dtype])
    x = torch.randn(2, height, width, span.channels(), device=device).to(DTYPES[dtype])
    error, plain = kernels.errors(span, x)
    runs = [kernels.gradients(span.kernel, span, x.detach().requires_grad_()) for _ in range(2)]
    return {"error": error, "error_plain": plain, "same_again": all(map(torch.equal, *runs))}


def model_error(name: str, dtype: str, way: str, size: tuple[int, int], *, device: str) -> dict[str, Any]:
    """Compare logits, and in eager mode the gradient of all parameters, with float64 by the plain modules."""
    torch.manual_seed(0)
    model = davit.create_model(name, num_classes=100).eval().to(device, DTYPES[dtype])
    plain = davit.plain(copy.deepcopy(model))
    exact = copy.deepcopy(plain).double()
    image = torch.randn(2, 3, *size, device=device).to(DTYPES[dtype])
    grad = torch.randn(2, 100, device=device).to(DTYPES[dtype])

    def results(module: torch.nn.Module, x: Tensor, call: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
        if call is not None:
            with torch.no_grad():
                return [call(x).clone()]
        logits = module(x)
        if way != "eager":
            return [logits.detach()]
        gradients = torch.autograd.grad(logits, list(module.parameters()), grad.to(logits.dtype))
        return [logits.detach(), torch.cat([g.flatten() for g in gradients])]

    call = None
    if way == "compile":
        model.compile(dynamic=False)
    if way == "graph":
        still = torch.randn_like(image)
        replay = measure.captured(Case(name, dtype, way, device=device, batch=2, size=size), lambda: model(still))

        def call(x: Tensor) -> Tensor:
            still.copy_(x)
            return replay()

    right = results(exact, image.double())
    found, again, others = results(model, image, call), results(model, image, call), results(plain, image)
    return {
        "error": distance(found, right),
        "error_plain": distance(others, right),
        "same_again": way == "compile" or torch.equal(found[0], again[0]),
    }


def distance(found: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    return torch.stack([(f.double() - r).norm() / r.norm() for f, r in zip(found, right, strict=True)]).max().item()


def correctness(cells: Cells, tasks: dict[str, Task], device: str, rehearse: bool) -> None:
    missing = {name: tasks[name] for name in cells.missing()}
    for name, kind, value in in_processes(missing, correct, device, rehearse, cells.left, cell_limit=70):
        keep(cells, name, kind, value)


# --- processes ---


def in_processes(
    tasks: dict[str, Task], function: Callable[..., dict[str, Any]], device: str, rehearse: bool,
    left: Callable[[], float], cell_limit: float, workers: int = 14,
) -> Iterator[tuple[str, str, Any]]:  # fmt: skip
    """Measure cells in processes of their own; yield name, 'done' or 'failed', and result or reason, as they come.

    A process that ends, hangs or loses its CUDA device (after a bad address every later call in it fails) costs the
    cell that it was at, and another takes its place.

    Args:
        function: is called with the task, the device and ``rehearse``; it is found in the process by its name.
        left: returns the seconds until the end; then what runs is stopped, and what waits is dropped.
        cell_limit: seconds of one cell, those of the start of its process included.
        workers: 1 for cells that hold times.
    """
    context = multiprocessing.get_context("spawn")
    workers = 1 if rehearse else max(1, min(workers, len(tasks), (os.cpu_count() or 2) - 2))
    waiting, idle = list(tasks.items()), []
    busy: dict[Connection, tuple[str, Any, float]] = {}

    def start() -> tuple[Connection, Any]:
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, function, device, rehearse), daemon=True)
        process.start()
        theirs.close()
        return ours, process

    try:
        while (waiting or busy) and left() > 0:
            while waiting and len(busy) < workers:
                connection, process = idle.pop() if idle else start()
                try:
                    connection.send(waiting[0][1])
                except OSError:
                    continue  # it ended while it waited
                busy[connection] = waiting.pop(0)[0], process, time.monotonic()
            for connection in wait(list(busy), timeout=max(0.0, min(1.0, left()))):
                assert isinstance(connection, Connection)
                name, process, _ = busy.pop(connection)
                try:
                    kind, value, usable = connection.recv()
                except (EOFError, OSError):
                    process.join(1)
                    kind, value, usable = "failed", f"its process ended with {process.exitcode}", False
                if usable:
                    idle.append((connection, process))
                yield name, kind, value
            for connection, (name, process, began) in list(busy.items()):
                if time.monotonic() - began > cell_limit:
                    del busy[connection]
                    process.kill()
                    yield name, "failed", f"no result after {cell_limit:.0f} s"
    finally:
        started = multiprocessing.active_children()
        for process in started:
            process.kill()
        for process in started:
            process.join(0.5)  # not longer: one that a driver holds may take its time


def work(connection: Connection, function: Callable[..., dict[str, Any]], device: str, rehearse: bool) -> None:
    """Measure the tasks that arrive, until the other side closes or CUDA fails for good."""
    usable = True
    while usable:
        try:
            task = connection.recv()
        except EOFError:
            return
        try:
            kind, value = "done", function(task, device, rehearse)
        except Exception as error:
            kind, value = "failed", f"{type(error).__name__}: {str(error)[:600]}"
            usable = device == "cpu" or _is_alive()
        connection.send((kind, value, usable))


def _is_alive() -> bool:
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def keep(cells: Cells, name: str, kind: str, value: Any) -> None:
    """Record what a process has found."""
    if kind == "done":
        cells.record(name, value)
    else:
        cells.fail(name, value)


def attempt(cells: Cells, name: str, function: Callable[[], dict[str, Any]]) -> None:
    """Record what a function returns, or that it failed: the other cells go on."""
    try:
        cells.record(name, function())
    except Exception as error:
        cells.fail(name, f"{type(error).__name__}: {str(error)[:600]}")


# --- kernels that this card cannot run are left out of whole models ---

WITHOUT = "DAVIT_GPU_WITHOUT"  # names of `conditions.KERNELS`, for the processes of a stage


def broken_kernels(cells: Cells) -> list[str]:
    """Name the kernels that the stage correctness, of the same code on the same card, found to fail in bfloat16.

    One whose result is off by more than rounding counts; one that is a little less exact than plain modules does not.
    """
    found = cells.same("correctness")
    if found is None:
        return []
    failed = [name for name, reason in found["failed"].items() if not reason.startswith("ValueError")]
    failed += [n for n, v in found["cells"].items() if not v["error"] <= max(v["bound"], 3 * v["error_plain"])]
    spans = {name.split(",")[0] for name in failed if name.endswith("/bfloat16")}
    return sorted(spans & conditions.KERNELS)


def without_broken_kernels() -> None:
    """Let PyTorch compute the spans of the kernels that `WITHOUT` names, in this process."""
    conditions.KERNELS.difference_update(os.environ.get(WITHOUT, "").split())


# --- kernels: each span by its kernel, plain and plain compiled, beside what the card can do ---


def kernel_cells(rehearse: bool) -> dict[str, Task]:
    found: dict[str, Task] = {"ceilings": ()}
    listed = [(16, 1, 4)] if rehearse else list(kernels.stages(["DaViT_tiny"], 224))
    for batch in (1,) if rehearse else (256, 1, 32):
        for dim, heads, side in listed:
            for kernel in [name for name in kernels.SPANS if batch in (1, 256) or name != "channel_qk"]:
                found[f"{kernel}, batch {batch}, {side} x {side} x {dim}"] = (kernel, batch, dim, heads, side)
    return found


def span_and_input(task: Task, device: str) -> tuple[kernels.Span, Tensor]:
    name, batch, dim, heads, side = task
    torch.manual_seed(0)
    span = kernels.SPANS[name](dim, heads).to(device, torch.bfloat16)
    shape = batch, side, side, span.channels()
    return span, torch.randn(shape, device=device).bfloat16().requires_grad_()


def compiled_span(span: kernels.Span) -> Callable[[Tensor], tuple[Tensor, ...]]:
    torch._dynamo.reset()
    return torch.compile(span.plain, dynamic=False)


def warm_span(task: Task, device: str, _rehearse: bool) -> dict[str, Any]:
    """Fill the caches of Inductor and Triton with all that a cell needs."""
    warnings.simplefilter("ignore")
    span, x = span_and_input(task, device)
    for training in (False, True):
        kernels.times((span.kernel, compiled_span(span)), span, x, training, 1)
    return {}


@contextmanager
def recorded_launches() -> Iterator[dict[str, dict[str, int]]]:
    """Collect registers, spilled bytes and shared memory of the Triton kernels that are launched."""
    found: dict[str, dict[str, int]] = {}

    def launch(kernel: Any, programs: int, device: torch.device, *arguments: Any, **constants: Any) -> None:
        binary = kernel[(programs,)](*arguments, **constants)
        about = {"programs": programs}
        if binary is not None:  # the interpreter has none
            about |= {"registers": binary.n_regs, "spills": binary.n_spills, "shared": binary.metadata.shared}
        found[kernel.__name__] = about

    with ExitStack() as stack:
        for module in (channel, encoding, gelu, window):
            stack.enter_context(patch.object(module, "launch", launch))
        yield found


def kernel_cell(task: Task, device: str, rehearse: bool) -> dict[str, Any]:
    """Measure the ceilings, for an empty task, or the times of a span."""
    warnings.simplefilter("ignore")
    if not task:
        elements, side = (4096, 64) if rehearse else (2**29, 8192)
        return {**kernels.ceilings(device, elements, side, 3 if rehearse else 10)}
    with rehearsal() if rehearse else nothing():
        return span_times(task, device, 1 if rehearse else 20)


def span_times(task: Task, device: str, rounds: int) -> dict[str, Any]:
    span, x = span_and_input(task, device)
    with recorded_launches() as launches:
        kernels.gradients(span.kernel, span, x)
    compiled = compiled_span(span)
    values: dict[str, Any] = {}
    for training, word in ((False, "forward"), (True, "both")):
        kernel, plain, by_compiler = kernels.times((span.kernel, span.plain, compiled), span, x, training, rounds)
        operations, moved = span.least(x, training)
        values[word] = {
            "kernel_ms": 1e3 * kernel, "plain_ms": 1e3 * plain, "compiled_ms": 1e3 * by_compiler,
            "over_plain": plain / kernel, "over_compiled": by_compiler / kernel,
            "operations": operations, "bytes": moved,
        }  # fmt: skip
    return {**values, "rounds": rounds, "launches": launches}


#: Of an H100, roughly: what shares are of, where the ceilings could not be measured.
CEILINGS = {"bytes_per_second": 3e12, "operations_per_second": 8e14}


def with_shares(values: dict[str, Any], top: dict[str, float]) -> dict[str, Any]:
    """Add to the times of a span how near they are to the ceilings."""
    for word in ("forward", "both"):
        times = values[word]
        seconds = times["kernel_ms"] / 1e3
        shortest = times["bytes"] / top["bytes_per_second"], times["operations"] / top["operations_per_second"]
        times |= {"floor_ms": 1e3 * max(shortest)}
        times |= {"bandwidth_share": shortest[0] / seconds, "rate_share": shortest[1] / seconds}
    return values


def kernel_stage(cells: Cells, tasks: dict[str, Task], device: str, rehearse: bool) -> None:
    missing = {name: tasks[name] for name in cells.missing()}
    if not rehearse and missing:
        end, ahead = time.monotonic() + 0.4 * cells.left(), {name: task for name, task in missing.items() if task}
        warm = in_processes(ahead, warm_span, device, rehearse, lambda: end - time.monotonic(), math.inf, 12)
        cells.say(f"compiled ahead: {sum(kind == 'done' for _, kind, _ in warm)} of {len(ahead)}")
    for name, kind, value in in_processes(missing, kernel_cell, device, rehearse, cells.left, 30, 1):
        if kind == "done" and tasks[name]:
            value = with_shares(value, cells.data["cells"].get("ceilings", CEILINGS))
        keep(cells, name, kind, value)


# --- models, train, detect: groups of cases, whose first is the reference ---

Group = tuple[str, list[Case]]
PEERS = ["convnext_tiny", "swin_tiny_patch4_window7_224", "deit3_small_patch16_224"]


def group(name: str, cases: str, **more: Any) -> Group:
    """Make a group of cases, written as `parsed_case` reads them."""
    return name, [parsed_case(case, device="cuda", **more) for case in cases.split()]


def model_waves() -> list[list[Group]]:
    """List waves of groups; what is in one wave is prepared at the same time and takes turns."""
    both = "davit_tiny/{0}/eager DaViT_tiny/{0}/eager davit_tiny/{0}/compile DaViT_tiny/{0}/compile"
    peers = " ".join(f"{peer}/bfloat16/compile" for peer in PEERS)
    quick = " davit_tiny/bfloat16/graph DaViT_tiny/bfloat16/graph"
    return [
        [
            group("batch 256", both.format("bfloat16") + " DaViT_tiny:plain/bfloat16/compile " + peers, batch=256),
            group("batch 1", both.format("bfloat16") + quick + " convnext_tiny/bfloat16/compile", batch=1),
        ],
        [
            group("batch 256, autocast", both.format("amp"), batch=256),
            group("batch 32", both.format("bfloat16") + quick, batch=32),
            group("batch 1024", both.format("bfloat16") + " convnext_tiny/bfloat16/compile", batch=1024),
        ],
        [
            group("base, batch 256", both.format("bfloat16").replace("tiny", "base"), batch=256),
            group(
                "Florence-2's base, batch 32",
                "DaViT_base_fl:plain/bfloat16/eager DaViT_base_fl/bfloat16/eager "
                "DaViT_base_fl:plain/bfloat16/compile DaViT_base_fl/bfloat16/compile",
                batch=32,
            ),
            group("small, batch 256", both.format("bfloat16").replace("tiny", "small"), batch=256),
        ],
        [group("batch 256, tuned", "davit_tiny/bfloat16/autotune DaViT_tiny/bfloat16/autotune", batch=256)],
    ]


def train_waves() -> list[list[Group]]:
    common: dict[str, Any] = {"mode": "training", "batch": 128}
    both = "davit_{0}/amp/eager DaViT_{0}/amp/eager davit_{0}/amp/compile DaViT_{0}/amp/compile"
    return [
        [group("training, batch 128", both.format("tiny") + " convnext_tiny/amp/compile", **common)],
        [
            group("training, batch 128, others", "DaViT_tiny:plain/amp/eager convnext_tiny/amp/eager "
                  "swin_tiny_patch4_window7_224/amp/eager deit3_small_patch16_224/amp/eager", **common),
        ],
        [group("training base, batch 64", both.format("base"), mode="training", batch=64)],
    ]  # fmt: skip


def detect_waves() -> list[list[Group]]:
    both = "davit_tiny/{0}/{1} DaViT_tiny/{0}/{1} "
    large = {"task": "pyramid", "size": (800, 1333), "batch": 8}
    # All twelve are in the memory of one card at the same time, so batches are those of a usual GPU.
    mask = {"task": "maskrcnn", "mode": "training", "size": (800, 1344), "batch": 2}
    masks: dict[str, Any] = {"task": "upernet", "mode": "training", "size": (512, 512), "batch": 4}
    mix = both.format("amp", "eager") + "swin_tiny_patch4_window7_224/amp/eager convnext_tiny/amp/eager"
    return [
        [
            group(
                "pyramid, 8 of 800 x 1333",
                both.format("bfloat16", "eager") + both.format("bfloat16", "compile"),
                **large,
            ),
            group("Mask R-CNN, training, 2 of 800 x 1344", mix, **mask),
            group("UPerNet, training, 4 of 512 x 512", mix, **masks),
        ],
    ]


WAVES: dict[str, Callable[[], list[list[Group]]]] = {
    "models": model_waves,
    "train": train_waves,
    "detect": detect_waves,
}


def waves_of(stage: str, rehearse: bool) -> list[list[Group]]:
    if not rehearse:
        return WAVES[stage]()
    # The first wave, the widths of the smallest variant, two of its cases in each way.
    tiny = {"device": "cpu", "size": (32, 32), "threads": 1}
    if stage == "detect":
        cases = [
            ("DaViT_nano/bfloat16/eager", {"task": "pyramid"}),
            ("DaViT_tiny/float32/eager", {"task": "upernet"}),
            ("DaViT_tiny/amp/eager", {"task": "maskrcnn", "mode": "training", "size": (64, 64)}),
        ]
        return [[(more["task"], [parsed_case(case, **{**tiny, "batch": 1, **more})]) for case, more in cases]]
    mode, dtype = ("training", "amp") if stage == "train" else ("inference", "bfloat16")
    ways = ("eager", "compile") if stage == "train" else ("compile", "graph")
    names = [f"DaViT_nano/{dtype}/{way}" for way in ways]
    return [[(f"{mode}, batch 1", [parsed_case(name, mode=mode, batch=1, **tiny) for name in names])]]


def wave_cells(stage: str, rehearse: bool) -> dict[str, Task]:
    return {
        f"{heading}: {case.name}": (case,)
        for wave in waves_of(stage, rehearse)
        for heading, cases in wave
        for case in cases
    }


def prepared(case: Case) -> Callable[[], None]:
    without_broken_kernels()
    if case.task in openmmlab_throughput.CONFIGS:
        return openmmlab_throughput.prepared(case)
    torch._dynamo.config.automatic_dynamic_shapes = False
    return measure.prepared(case)


def rehearsed(case: Case) -> Callable[[], None]:
    with rehearsal():
        step = prepared(case)

    def run() -> None:
        with rehearsal():
            step()

    return run


def wave_stage(stage: str, cells: Cells, _tasks: dict[str, Task], device: str, rehearse: bool) -> None:
    for wave in waves_of(stage, rehearse):
        missing = set(cells.missing())
        wave = [(heading, cases) for heading, cases in wave if any(f"{heading}: {c.name}" in missing for c in cases)]
        if not wave:
            continue
        if cells.left() < 40 and not rehearse:
            cells.say(f"too late for {', '.join(heading for heading, _ in wave)}")
            break
        now, left, failures = time.monotonic(), cells.left(), {}
        listed = [case for _, cases in wave for case in cases]
        results = measure.compare(
            listed, listed[0], 2 if rehearse else 20, cells.say, rehearsed if rehearse else prepared,
            together=not rehearse, ready_by=now + 0.7 * left, end_by=now + min(left - 8, 0.7 * left + 25),
            left_out=failures,
        )  # fmt: skip
        for heading, cases in wave:
            mine = [m for m in results if m.case in cases]
            for m in mine:
                m.ratios = []
            measure.set_ratios(mine, cases[0])
            for m, values in zip(mine, measure.as_data(mine), strict=True):
                del values["seconds"], values["name"]
                memory = next((r.peak_bytes for r in mine if r.case == cases[0]), 0)
                values |= {"rounds": len(m.seconds), "memory_ratio": m.peak_bytes / memory if memory else None}
                cells.record(f"{heading}: {m.case.name}", values)
            for case in cases:
                if case in failures:
                    cells.fail(f"{heading}: {case.name}", failures[case])


# --- real: DaViT_tiny on Imagenette beside timm's, the same flags and the same time ---


TRAINING = "train.py"  # in the place of a stage: only for the processes of the stage real


def real_cells(rehearse: bool) -> dict[str, Task]:
    return {"DaViT_nano": (), "DaViT_nano again": ()} if rehearse else {"DaViT_tiny": (), "davit_tiny": ()}


def real_stage(cells: Cells, _tasks: dict[str, Task], device: str, rehearse: bool) -> None:
    data = Path(os.environ.get("GPU_DATA", ROOT / ".gpu_data"))
    with tempfile.TemporaryDirectory() as scratch:
        if rehearse:
            data = Path(scratch, "data")
            draw_classes(data)
        small = ["--img-size", "32", "--batch-size", "4", "--epochs", "1", "--workers", "0", "--amp"]
        large = ["--img-size", "224", "--batch-size", "128", "--epochs", "12", "--lr", "1e-3"]
        large += ["--warmup-epochs", "2", "--cooldown-epochs", "0"]
        large += ["--clip-grad", "1.0", "--workers", str(min(14, os.cpu_count() or 2)), "--amp", "--amp-dtype", "bf16"]
        missing = cells.missing()
        for i, name in enumerate(missing):
            limit = (cells.left() - 3) / (len(missing) - i)
            flags = [
                "--model",
                name.split()[0],
                "--num-classes",
                "2" if rehearse else "10",
                "--seed",
                "0",
                "--device",
                device,
            ]
            flags += [*(small if rehearse else large), "--output", scratch, "--experiment", name.replace(" ", "_")]
            command = [sys.executable, str(Path(__file__)), TRAINING, str(data), *flags]
            attempt(cells, name, partial(trained, command, Path(scratch, name.replace(" ", "_")), limit))


def train_py(arguments: Sequence[str]) -> None:
    """Run train.py, without the kernels that this card cannot run."""
    without_broken_kernels()
    sys.argv = ["train.py", *arguments]
    runpy.run_path(str(ROOT / "train.py"), run_name="__main__")


def trained(command: list[str], folder: Path, limit: float) -> dict[str, Any]:
    """Train until it ends or the time is over; read its summary."""
    began, log = time.monotonic(), folder.parent / f"{folder.name}.log"
    with log.open("w") as file:
        try:
            subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, timeout=limit, check=True, cwd=folder.parent
            )
        except subprocess.TimeoutExpired:
            pass  # what it reached in this time is the result
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"train.py ended with {error.returncode}: {log.read_text()[-500:]}") from None
    with (folder / "summary.csv").open() as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    later = rows[1:] or rows  # the first epoch has the start of the loader, and cuDNN's choices
    return {
        "epochs": len(rows), "seconds": time.monotonic() - began,
        "best_top1": max(row["eval_top1"] for row in rows), "top1": [row["eval_top1"] for row in rows],
        "train_loss": [row["train_loss"] for row in rows],
        "images_per_second": statistics.median(row["images_per_second"] for row in later),
        "data_share": statistics.median(row["data_share"] for row in later),
        "peak_memory_mb": max(row["peak_memory_mb"] for row in rows),
    }  # fmt: skip


def draw_classes(folder: Path) -> None:
    from PIL import Image

    for split in ("train", "val"):
        for i, color in enumerate(("red", "blue")):
            (folder / split / color).mkdir(parents=True)
            for j in range(4):
                Image.new("RGB", (40, 40), (80 * i, 50, 40 * j)).save(folder / split / color / f"{j}.png")


# --- all stages ---


@contextmanager
def nothing() -> Iterator[None]:
    yield


@contextmanager
def rehearsal() -> Iterator[None]:
    """Trace without Inductor, whose compiler takes minutes, and leave out graphs, which the CPU has none of."""
    compile_module, compile_function = torch.nn.Module.compile, torch.compile

    def module(self: torch.nn.Module, *args: Any, **options: Any) -> None:
        compile_module(self, backend="eager", dynamic=options.get("dynamic"))

    def function(model: Any = None, **options: Any) -> Any:
        return compile_function(model, backend="eager", dynamic=options.get("dynamic"))

    with ExitStack() as stack:
        stack.enter_context(patch.object(torch.nn.Module, "compile", module))
        stack.enter_context(patch.object(torch, "compile", function))
        stack.enter_context(patch.object(measure, "captured", lambda _case, infer: infer))
        yield


STAGES: dict[str, tuple[Callable[[bool], dict[str, Task]], Callable[..., None]]] = {
    "correctness": (correctness_cells, correctness),
    "kernels": (kernel_cells, kernel_stage),
    **{stage: (partial(wave_cells, stage), partial(wave_stage, stage)) for stage in WAVES},
    "real": (real_cells, real_stage),
}


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == [TRAINING]:
        train_py(arguments[1:])
        return 0
    parser = Parser(description=__doc__, formatter_class=RawHelp)
    parser.add_argument("stage", choices=tuple(STAGES), help="stage to run")
    parser.add_argument(
        "--until", type=float, default=time.time() + 90, metavar="SECONDS",
        help="begin no new cell after this time, as `date +%%s` gives it (default: 90 seconds from now)",
    )  # fmt: skip
    parser.add_argument("--rehearse", action="store_true", help="only try it: on the CPU, with tiny sizes")
    parser.add_argument("--fresh", action="store_true", help="drop the results of an earlier run")
    options = parser.parse_args(arguments)
    if not options.rehearse and not (torch.cuda.is_available() and support.HAS_TRITON):
        parser.error("this machine has no CUDA device that PyTorch can use, or no Triton; --rehearse runs on the CPU")
    if options.rehearse and options.stage in ("correctness", "kernels") and not support.INTERPRETED:
        parser.error("--rehearse of this stage needs TRITON_INTERPRET=1, which run.sh sets")
    list_cells, run = STAGES[options.stage]
    tasks, device = list_cells(options.rehearse), "cpu" if options.rehearse else "cuda"
    folder = Path(os.environ.get("OUT", measure.RESULTS / "gpu"))
    folder.mkdir(parents=True, exist_ok=True)
    cells = Cells(options.stage, folder, tasks, options.until - time.time(), options.rehearse, options.fresh)
    if options.stage not in ("correctness", "kernels") and (broken := broken_kernels(cells)):
        os.environ[WITHOUT] = " ".join(broken)
        cells.leave_out(broken)
    run(cells, tasks, device, options.rehearse)
    return cells.status()


if __name__ == "__main__":
    sys.exit(main())
