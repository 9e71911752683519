"""Run cases for the benchmarks, each in a process of its own: interleaved timing, memory, the report.

A case is written ``MODEL/DTYPE/EXECUTION``, for example ``DaViT_tiny/float32/eager``:

- MODEL: a name of ours or of timm's; ``DaViT_tiny:plain`` is ours by its plain modules.
- DTYPE: float32, bfloat16 or float16 (weights too; for inference), or amp (autocast to bfloat16; for training).
- EXECUTION: eager; compile; autotune (``torch.compile`` in its mode max-autotune); or graph (the eager calls of an
  inference on CUDA, captured once and replayed). A compiled model that infers on the CPU has its weights frozen
  (Inductor's ``freezing``), as one that is served would.
"""

import argparse
import datetime
import json
import math
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from davit.engine.precision import bfloat16_cost, has_bfloat16

RESULTS = Path(__file__).parent / "results"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "amp": torch.float32}
EXECUTIONS = ("eager", "compile", "autotune", "graph")
SIZED = ("swin", "deit", "vit")  # timm builds these for the size of image that they read
MODES = ("inference", "training")
TASKS = ("classify", "pyramid")
STEP_LIMIT = 10  # seconds for two steps, where the time has an end: what hangs is left out
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        mode: 'inference' (no gradients) or 'training' (forward, backward, AdamW step).
        task: 'classify', or 'pyramid' for the maps of all four stages.
        size: height and width in pixels.
        threads: 0 leaves PyTorch's choice.
        clock: 'wall', or 'cpu' for the processor time of the process, which other programs on the machine disturb
            less; with one thread it is what the wall clock would show on a machine of its own.
    """

    model: str
    dtype: str
    execution: str
    mode: str = "inference"
    task: str = "classify"
    device: str = "cpu"
    batch: int = 8
    size: tuple[int, int] = (224, 224)
    threads: int = 0
    channels_last: bool = False
    clock: str = "wall"

    @property
    def name(self) -> str:
        return f"{self.model}/{self.dtype}/{self.execution}"


@dataclass
class Measured:
    """Seconds of one step each, in the order of the rounds; peak bytes above those of the process without a model."""

    case: Case
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    ratios: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def quantile(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def parsed_case(text: str, **common: Any) -> Case:
    """Parse ``MODEL/DTYPE/EXECUTION``.

    Raises:
        ValueError: there are not three parts, or a part is none of its choices.
    """
    parts = text.split("/")
    if len(parts) != 3 or parts[1] not in DTYPES or parts[2] not in EXECUTIONS:
        raise ValueError(
            f"case {text!r} must be MODEL/DTYPE/EXECUTION with DTYPE one of {', '.join(DTYPES)} and EXECUTION one "
            f"of {', '.join(EXECUTIONS)}, for example DaViT_tiny/float32/eager."
        )
    return Case(parts[0], parts[1], parts[2], **common)


# --- in the process of a case ---


def build(case: Case) -> torch.nn.Module:
    import timm

    import davit

    name, _, variant = case.model.partition(":")
    options: dict[str, Any] = {"accelerate": False} if variant == "plain" else {}
    if case.task == "pyramid" and name in davit.VARIANTS:
        model: torch.nn.Module = davit.DaViTPyramid(**davit.VARIANTS[name].model_kwargs())
        if variant != "plain":
            davit.accelerate(model)
    elif case.task == "pyramid":
        model = timm.create_model(name, features_only=True, **options)
    else:
        sized = {"img_size": case.size} if name.startswith(SIZED) and case.size != (224, 224) else {}
        model = davit.create_model(name, drop_path_rate=0.1, **sized, **options)
    model = model.train(case.mode == "training").to(case.device, DTYPES[case.dtype])
    return model.to(memory_format=torch.channels_last) if case.channels_last else model


def prepared(case: Case) -> Callable[[], None]:
    """Build the model of a case; return a function that runs one step and waits for its end."""
    torch.manual_seed(0)
    model = build(case)
    if case.execution in ("compile", "autotune"):
        from torch._inductor import config

        config.freezing = case.device == "cpu" and case.mode == "inference"
        model.compile(mode="max-autotune" if case.execution == "autotune" else None)
    image = torch.randn(case.batch, 3, *case.size, device=case.device, dtype=DTYPES[case.dtype])
    if case.channels_last:
        image = image.to(memory_format=torch.channels_last)
    target = torch.randint(0, 1000, (case.batch,), device=case.device)

    def loss() -> torch.Tensor:
        output = model(image)
        if case.task == "classify":
            return torch.nn.functional.cross_entropy(output, target)
        return torch.stack([level.float().square().mean() for level in output]).sum()

    infer = captured(case, lambda: model(image)) if case.execution == "graph" else lambda: model(image)
    return step_of(case, model, infer, loss)


def captured(case: Case, infer: Callable[[], Any]) -> Callable[[], Any]:
    """Capture an inference in a CUDA graph; return its replay.

    Raises:
        ValueError: the case is not one of inference on CUDA.
    """
    if case.device != "cuda" or case.mode != "inference":
        raise ValueError(f"{case.name}: graphs are captured of inference on CUDA, not of {case.mode} on {case.device}")
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    # Casts of weights that autocast would keep for later calls have to be in the graph.
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16, enabled=case.dtype == "amp", cache_enabled=False):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                infer()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph):
            kept = infer()  # the memory that replays write

    def replay() -> Any:
        graph.replay()
        return kept

    return replay


def step_of(
    case: Case, model: torch.nn.Module, infer: Callable[[], Any], loss: Callable[[], torch.Tensor]
) -> Callable[[], None]:
    """Make one step of a case's mode, under its autocast, that waits for its end; training is with AdamW."""
    autocast = torch.autocast(case.device, torch.bfloat16, enabled=case.dtype == "amp")
    synchronize = torch.cuda.synchronize if case.device == "cuda" else lambda: None

    def inference() -> None:
        with torch.no_grad(), autocast:  # frozen weights need no_grad, not inference_mode
            infer()
        synchronize()

    if case.mode == "inference":
        return inference
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def train() -> None:
        with autocast:
            total = loss()
        total.backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize()

    return train


def peak_memory(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def serve(case: Case, connection: Connection, prepare: Callable[[Case], Callable[[], None]]) -> None:
    """Send the peak memory of three steps; then run two steps for each message, and send the time of the second.

    The first of the two fills the caches again, which the other cases used meanwhile.
    """
    warnings.simplefilter("ignore")
    try:
        if case.threads:
            torch.set_num_threads(case.threads)
        import timm  # noqa: F401  what is imported belongs to no model

        import davit  # noqa: F401

        before = 0 if case.device == "cuda" else peak_memory("cpu")
        step = prepare(case)
        step()
        if case.device == "cuda":
            torch.cuda.reset_peak_memory_stats()  # what tuning took is not the model's
        for _ in range(2):
            step()
        connection.send(("ready", peak_memory(case.device) - before))
        now = CLOCKS[case.clock]
        while connection.recv() == "step":
            step()
            start = now()
            step()
            connection.send(("seconds", now() - start))
    except EOFError:
        return
    except Exception as error:  # the other cases go on
        connection.send(("failed", f"{type(error).__name__}: {error}"))


# --- in the process that compares ---


def compare(
    cases: Sequence[Case],
    reference: Case,
    rounds: int,
    log: Callable[[str], None],
    prepare: Callable[[Case], Callable[[], None]] = prepared,
    *,
    together: bool = False,
    ready_by: float = math.inf,
    end_by: float = math.inf,
    left_out: dict[Case, str] | None = None,
) -> list[Measured]:
    """Time every case in turn, ``rounds`` times over, each in a process of its own that waits meanwhile.

    ``prepare`` makes a case's step in its process; it is found there by its name.

    A ratio is the reference's time in a round over the case's time in that round, so that what slows the machine
    for a while slows both.

    Args:
        together: prepare all cases at once, where there are cores and memory for it; steps still take turns.
        ready_by: in `time.monotonic`'s seconds: a case that is not ready by then is left out.
        end_by: likewise: no round begins after it.
        left_out: is filled with the cases that gave nothing, and why.
    """
    context = multiprocessing.get_context("spawn")
    failures = {} if left_out is None else left_out
    running: list[tuple[Measured, Any, Connection]] = []
    started: list[tuple[Measured, Any, Connection]] = []

    def start(case: Case) -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(case, theirs, prepare), daemon=True)
        process.start()
        theirs.close()
        started.append((Measured(case), process, ours))

    def await_ready(measured: Measured, process: Any, connection: Connection) -> None:
        kind, value = _answer(connection, ready_by)
        if kind == "failed":
            leave_out(measured.case, value, process, connection)
            return
        measured.peak_bytes = int(value)
        log(f"{measured.case.name}: ready, peak memory {value / 2**20:.0f} MiB")
        running.append((measured, process, connection))

    def leave_out(case: Case, reason: str, process: Any, connection: Connection) -> None:
        failures[case] = reason
        log(f"{case.name}: left out: {reason}")
        connection.close()
        process.kill()
        process.join(timeout=20 if end_by == math.inf else 1)

    try:
        for case in cases:
            start(case)
            if not together:
                await_ready(*started[-1])
        if together:
            for measured, process, connection in started:
                await_ready(measured, process, connection)
        for number in range(rounds):
            if time.monotonic() > end_by:
                log(f"the time is over after {number} of {rounds} rounds")
                break
            for one in list(running):
                measured, process, connection = one
                kind, value = _ask(connection, math.inf if end_by == math.inf else time.monotonic() + STEP_LIMIT)
                if kind == "failed":  # the other cases go on; without this one's times rounds have no gaps
                    leave_out(measured.case, value, process, connection)
                    running.remove(one)
                    continue
                measured.seconds.append(float(value))
            log(f"round {number + 1} of {rounds}: " + ", ".join(f"{m.seconds[-1]:.3f}" for m, _, _ in running))
    finally:
        for _, _, connection in started:
            connection.close()
        for _, process, _ in started:
            process.join(timeout=20 if end_by == math.inf else 0.1)
            if process.is_alive():
                process.kill()
    results = [measured for measured, _, _ in running if measured.seconds]
    set_ratios(results, reference)
    return results


def set_ratios(results: Sequence[Measured], reference: Case) -> None:
    """Set each result's ratios, of the reference's times to its own; leave them empty if the reference is missing."""
    reference_seconds = next((m.seconds for m in results if m.case == reference), None)
    if reference_seconds is not None:
        for measured in results:
            measured.ratios = [a / b for a, b in zip(reference_seconds, measured.seconds, strict=True)]


def _answer(connection: Connection, by: float = math.inf) -> tuple[str, Any]:
    try:
        if not connection.poll(None if by == math.inf else max(0.0, by - time.monotonic())):
            return "failed", "not ready in time"
        return connection.recv()
    except (EOFError, OSError):
        return "failed", "its process ended (out of memory?)"


def _ask(connection: Connection, by: float) -> tuple[str, Any]:
    """Ask a case for a step."""
    try:
        connection.send("step")
    except OSError:
        return "failed", "its process ended (out of memory?)"
    return _answer(connection, by)


# --- bfloat16 ---


def takes_bfloat16(device: str, asked: bool, remedy: str) -> bool:
    """Decide whether bfloat16 is measured: on a CPU without instructions for it only where it is asked for.

    There one line says that it is left out, or what it will cost.
    """
    if device != "cpu" or has_bfloat16():
        return True
    times = f"products of matrices take {bfloat16_cost():.0f} times as long as in float32"
    what = "bfloat16 is emulated" if asked else f"bfloat16 is left out ({remedy} insists)"
    sys.stderr.write(f"{what}: no instructions for it can be used here ({instruction_sets()}), and {times}.\n")
    return asked


def instruction_sets() -> str:
    """List the instruction sets of the processor that matter here, and the variables that forbid some of them."""
    names = {"avx2": "AVX2", "avx512": "AVX512", "vnni": "VNNI", "avx512_bf16": "AVX512_BF16", "amx_tile": "AMX"}
    found = [shown for name, shown in names.items() if getattr(torch.cpu, f"_is_{name}_supported", bool)()]
    limits = [
        f"{name}={os.environ[name]}" for name in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY") if name in os.environ
    ]
    return " ".join(found + limits) or torch.backends.cpu.get_cpu_capability()


# --- reports ---


def environment() -> dict[str, Any]:
    """Collect hardware and versions, by which a result can be judged and repeated."""
    import timm

    import davit
    from davit.kernels.triton import support

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": f"{cpu}, {cores} cores, {instruction_sets()}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "driver": _driver(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": metadata.version("triton") if support.HAS_TRITON else "none",
        "timm": timm.__version__,
        "davit": f"{davit.__version__} at {_commit()}",
        "load": [round(value, 1) for value in os.getloadavg()] if hasattr(os, "getloadavg") else [],
    }


def _driver() -> str:
    """Return the version of the NVIDIA driver, or 'none'."""
    path = Path("/sys/module/nvidia/version")
    if path.is_file():
        return path.read_text().strip()
    if not torch.cuda.is_available():
        return "none"
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    except OSError:
        return "unknown"


def _commit() -> str:
    asked = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(asked, cwd=Path(__file__).parent, capture_output=True, text=True, check=False).stdout
    except OSError:  # no git on a machine that was lent
        done = ""
    return done.strip() or os.environ.get("DAVIT_COMMIT") or "an unknown commit"


def command_line() -> str:
    return "python benchmarks/" + " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown; all columns but the first are aligned to the right."""
    rule = ["---", *(["---:"] * (len(header) - 1))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, rule, *rows])


def comparison_table(results: Sequence[Measured]) -> str:
    reference = next((m for m in results if m.ratios and all(r == 1 for r in m.ratios)), None)
    rows = []
    for m in results:
        memory = f"{m.peak_bytes / reference.peak_bytes:.2f}" if reference and reference.peak_bytes else "-"
        spread = f"{min(m.ratios):.2f} to {max(m.ratios):.2f}" if m.ratios else "-"
        rows.append(
            [
                f"`{m.case.name}`",
                f"{m.case.batch / m.median:.1f}",
                f"{statistics.median(m.ratios):.2f}" if m.ratios else "-",
                spread,
                f"{1e3 * m.quantile(0.5):.0f}",
                f"{1e3 * m.quantile(0.99):.0f}",
                f"{m.peak_bytes / 2**20:.0f}",
                memory,
            ]
        )
    header = ["case", "images/s", "speed, ratio", "of the rounds", "p50, ms", "p99, ms", "peak, MiB", "memory, ratio"]
    return table(header, rows)


def write_report(
    name: str, title: str, sections: Sequence[tuple[str, str]], data: Any, folder: Path = RESULTS
) -> Path:
    """Write NAME.json with the data and NAME.md with the sections (heading, text); both have the environment."""
    folder.mkdir(parents=True, exist_ok=True)
    around = {"command": command_line(), **environment()}
    (folder / f"{name}.json").write_text(json.dumps({"environment": around, "results": data}, indent=1) + "\n")
    lines = [f"# {title}", "", f"`{around['command']}`", ""]
    lines += [
        f"{around['date']}; {around['cpu']}; GPU: {around['gpu']}; {around['threads']} threads; "
        f"Python {around['python']}, torch {around['torch']}, timm {around['timm']}, davit {around['davit']}; "
        f"load average at the end {', '.join(map(str, around['load']))}.",
        "",
    ]
    for heading, text in sections:
        lines += [f"## {heading}", "", text, ""] if heading else [text, ""]
    path = folder / f"{name}.md"
    path.write_text("\n".join(lines).rstrip() + "\n")
    return path


def as_data(results: Sequence[Measured]) -> list[dict[str, Any]]:
    return [
        {
            **asdict(m.case),
            "name": m.case.name,
            "seconds": [round(s, 5) for s in m.seconds],
            "images_per_second": round(m.case.batch / m.median, 3),
            "ratio": round(statistics.median(m.ratios), 4) if m.ratios else None,
            "p50_ms": round(1e3 * m.quantile(0.5), 2),
            "p99_ms": round(1e3 * m.quantile(0.99), 2),
            "peak_bytes": m.peak_bytes,
        }
        for m in results
    ]


def size_argument(text: str) -> tuple[int, int]:
    """Parse 224 or 800x1333."""
    try:
        sides = [int(side) for side in text.lower().split("x")]
        height, width = sides * 2 if len(sides) == 1 else sides
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: give pixels, such as 224 or 800x1333") from None
    if min(height, width) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: sides are 1 or more")
    return height, width
