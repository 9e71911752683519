"""Check a machine: Python and its packages, PyTorch, GPUs, process groups, mmcv's operators, disk and memory.

Most ``check_...`` judge facts that they are given; `examine_machine` gathers those of this machine.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from packaging.requirements import Requirement

from .. import kernels
from ..engine import precision
from ..kernels import conditions
from ..kernels.cpu import native
from ..registry import create_model
from .findings import Finding, error, ok, warning

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "safetensors", "huggingface_hub", "PyYAML", "tqdm")
OPENMMLAB = {  # each under its own names and those of its continuation
    "mmcv": ("onedl-mmcv", "mmcv", "mmcv-full"),
    "mmdet": ("onedl-mmdetection", "mmdet", "mmdetection"),
    "mmseg": ("onedl-mmsegmentation", "mmsegmentation", "mmseg"),
}
_OLDEST_PYTHON = (3, 10)
_GIGABYTE = 1e9
_FEW_FILES = 1024
_INSTALL = "pip install -r requirements.txt"
_SPACE = {  # gigabytes that a run should find free, and what to do where they are not
    "disk": (5, "free some: a state of DaViT_tiny takes about 0.5 GB, and --checkpoint-hist are kept"),
    "memory": (2, "end other programs, or lower --batch-size and --workers"),
    "shared memory": (0.5, "loader processes hand batches over there: docker run --shm-size=8g, or --workers 0"),
}


def examine_machine(place: Path) -> Iterator[Finding]:
    """Yield all findings about this machine, each as soon as its facts are there.

    Args:
        place: where a run would write.
    """
    cores = len(os.sched_getaffinity(0))
    yield check_python(sys.version_info[:2])
    yield from check_packages(required_packages(), installed_version)
    remedy = f"{_INSTALL}: torch and torchvision are a pair"
    yield check_run("torchvision", "its operators run", failure_of(_run_nms), remedy)
    yield from check_gpus(torch.version.cuda or torch.version.hip, driver_version())
    yield from check_process_groups()
    yield check_mmcv({module: installed_version(*names) for module, names in OPENMMLAB.items()})
    folder = next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.exists())
    if os.access(folder, os.W_OK):
        yield check_space("disk", shutil.disk_usage(folder).free, f"in {folder}")
    else:
        yield error("disk", f"{folder} cannot be written", "run elsewhere, or give --output")
    yield check_space("memory", available_memory(), f"for programs, {cores} CPU cores")
    library = "" if native.LIBRARY is None else Path(native.LIBRARY._name).name
    yield check_compiled_functions(library, sys.platform, platform.machine())
    plain_parts = kernels.why_plain(create_model("DaViT_nano", device="meta"))
    yield check_model_text({*conditions.changed_text(), *plain_parts.values()})
    yield check_bfloat16(None if precision.has_bfloat16() else precision.bfloat16_cost())
    if Path("/dev/shm").is_dir():
        yield check_space("shared memory", shutil.disk_usage("/dev/shm").free, "in /dev/shm")
    yield from check_limits(resource.getrlimit(resource.RLIMIT_NOFILE)[0], os.getloadavg()[0], cores)


def failure_of(function: Callable[[], object]) -> str:
    """Run a function and return the first line of its failure; "" where it did not fail."""
    try:
        function()
    except Exception as fault:
        return _first_line(fault)
    return ""


def _first_line(fault: Exception) -> str:
    return (str(fault).strip().splitlines() or [type(fault).__name__])[0][:200]


def check_run(subject: str, text: str, failure: str, remedy: str) -> Finding:
    """Check that something ran: `failure_of` it is empty."""
    return error(subject, f"fails: {failure}", remedy) if failure else ok(subject, text)


# --- Python and packages ---


def check_python(version: tuple[int, int]) -> Finding:
    """Check (major, minor) of the interpreter."""
    if version < _OLDEST_PYTHON:
        text = f"{version[0]}.{version[1]} is too old"
        return error("Python", text, "use Python 3.10 or newer: make PYTHON=python3.12 setup")
    return ok("Python", f"{platform.python_version()}, {sys.executable}")


def required_packages() -> Sequence[str]:
    """List what the project needs, by its own metadata where it is installed."""
    try:
        return importlib.metadata.requires("davit-torch") or PACKAGES
    except importlib.metadata.PackageNotFoundError:
        return PACKAGES


def installed_version(*names: str) -> str:
    """Find the version of the first of some packages that is installed; "" where none is."""
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def check_packages(required: Iterable[str], version_of: Callable[[str], str]) -> Iterator[Finding]:
    """Check that each requirement, such as ``timm>=1.0``, is met."""
    found, faults = [], []
    for requirement in map(Requirement, required):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = version_of(requirement.name)
        if not version:
            faults.append(error("packages", f"{requirement.name} is not installed", _INSTALL))
        elif not requirement.specifier.contains(version, prereleases=True):
            text = f"{requirement.name} {version} is not {requirement.specifier}"
            faults.append(error("packages", text, _INSTALL))
        elif requirement.name in PACKAGES[:3]:
            found.append(f"{requirement.name} {version}")
    yield from faults or [ok("packages", ", ".join(found))]


def _run_nms() -> None:
    """Run an operator of torchvision: one that was built for another torch fails here, or at its import."""
    from torchvision.ops import nms

    nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)


def check_mmcv(versions: Mapping[str, str]) -> Finding:
    """Check where mmcv's operators come from: compiled, or torchvision's by davit.openmmlab."""
    if not versions["mmcv"]:
        return ok("mmcv ops", "not installed; only detection and segmentation need them")
    installed = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    try:
        from ..openmmlab import ops_status

        status = ops_status()
    except Exception:  # packages that do not fit one another fail in any way
        status = "missing"
    if status == "missing":
        remedy = "import davit.openmmlab first, as mmdet/tools and mmseg/tools do, or compile mmcv's"
        return warning("mmcv ops", f"not installed ({installed})", remedy)
    of = "torchvision's and PyTorch's, as mmcv has no compiled ones" if status == "bridged" else status
    return ok("mmcv ops", f"{of} ({installed})")


# --- GPUs and process groups ---


def driver_version() -> str:
    """Ask for the version of NVIDIA's driver; "" where there is none."""
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout.split()[0]
    except subprocess.TimeoutExpired:
        return "unknown (nvidia-smi does not answer)"
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown" if Path("/dev/nvidia0").exists() else ""


def check_gpus(built_for: str | None, driver: str) -> Iterator[Finding]:
    """Check that torch uses every GPU.

    Args:
        built_for: the version of CUDA or ROCm; None for a torch that is built for the CPU.
        driver: as `driver_version` says it.
    """
    if torch.cuda.is_available():
        yield ok("CUDA", f"{built_for}, driver {driver or 'unknown'}")
        yield from map(check_gpu, range(torch.cuda.device_count()))
    elif not driver:
        yield ok("GPU", f"none; this torch is built for {f'CUDA {built_for}' if built_for else 'the CPU'}")
    elif not built_for:
        remedy = f"install the CUDA build of torch, which PyPI's default for Linux is: {_INSTALL}"
        yield warning("GPU", f"driver {driver} is there, but this torch is built for the CPU", remedy)
    else:
        reason = failure_of(torch.cuda.init) or "no device is visible"
        remedy = f"CUDA {built_for} needs a newer driver, or CUDA_VISIBLE_DEVICES hides all GPUs"
        yield error("GPU", f"driver {driver} is there, but torch cannot use it ({reason})", remedy)


def check_gpu(index: int) -> Finding:
    """Multiply matrices on a GPU, and check that at least half of its memory is free."""
    properties = torch.cuda.get_device_properties(index)
    name = f"{index}: {properties.name}, {properties.total_memory / _GIGABYTE:.0f} GB"
    try:
        x = torch.randn(64, 64, device=f"cuda:{index}")
        is_finite = (x @ x).isfinite().all()
        free, _ = torch.cuda.mem_get_info(index)
    except Exception as fault:
        needed, built = f"sm_{properties.major}{properties.minor}", ", ".join(torch.cuda.get_arch_list())
        remedy = f"free it, or install a torch built for {needed} (this one: {built})"
        return error("GPU", f"{name}: a product of matrices fails ({_first_line(fault)})", remedy)
    if not is_finite:
        return error("GPU", f"{name}: a product of matrices is not finite", "do not use this GPU; check its memory")
    if free < 0.5 * properties.total_memory:
        remedy = "another program uses it: nvidia-smi lists which"
        return warning("GPU", f"{name}, only {free / _GIGABYTE:.0f} GB free", remedy)
    return ok("GPU", f"{name}, {free / _GIGABYTE:.0f} GB free")


def check_process_groups() -> Iterator[Finding]:
    """Form a group of one process: this finds a missing library, and a host name that does not resolve."""
    if not dist.is_available():
        yield error("processes", "this torch has no torch.distributed", f"several processes need it: {_INSTALL}")
        return
    backends = [("gloo", "cpu", dist.is_gloo_available())]
    if torch.cuda.is_available():
        backends.append(("nccl", "cuda", dist.is_nccl_available()))
    for name, device, is_built in backends:
        if is_built:
            yield _try_backend(name, device)
        else:
            yield warning(name, "not in this torch", f"several processes on {device} need it: {_INSTALL}")


def _try_backend(name: str, device: str) -> Finding:
    def reduce() -> None:
        dist.init_process_group(name, store=dist.HashStore(), rank=0, world_size=1)
        dist.all_reduce(torch.zeros(1, device=device))

    if dist.is_initialized():
        return ok(name, "in use")
    failure = failure_of(reduce)
    if dist.is_initialized():
        dist.destroy_process_group()
    remedy = "does the host's name resolve? GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME names the interface to use"
    version = ".".join(map(str, torch.cuda.nccl.version())) if name == "nccl" else ""
    return check_run(name, f"{version} works".strip(), failure, remedy)


# --- disk, memory, limits ---


def check_space(subject: str, free: float, where: str) -> Finding:
    """Check the bytes that are free on the disk, in memory or in shared memory."""
    least, remedy = _SPACE[subject]
    text = f"{free / _GIGABYTE:.1f} GB free {where}"
    return warning(subject, text, remedy) if free < least * _GIGABYTE else ok(subject, text)


def available_memory() -> float:
    """Count the bytes that programs can still have: of the machine, or less where the control group allows less."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free = next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    group = Path("/sys/fs/cgroup")
    try:
        limit = float((group / "memory.max").read_text())
        used = float((group / "memory.current").read_text())
    except (OSError, ValueError):  # no control group, or no limit ("max")
        return free
    return min(free, limit - used)


def check_limits(files: int, load: float, cores: int) -> Iterator[Finding]:
    """Check how many files may be open, and how busy the cores are."""
    if files < _FEW_FILES:
        yield warning("open files", f"at most {files}", f"raise it in the shell: ulimit -n {4 * _FEW_FILES}")
    if load > 1.5 * cores:
        remedy = "training beside them is slow: end them, or set OMP_NUM_THREADS to the cores that are free"
        yield warning("load", f"{load:.1f} programs run on {cores} cores", remedy)


# --- how fast a model runs ---


def check_compiled_functions(library: str, system: str, processor: str) -> Finding:
    """Check native.cpp, which is built with the package where there is a compiler; "" where it was not."""
    if library:
        return ok("CPU", f"blocks run by {library.split('.')[0].removeprefix('_')}")
    if system != "linux" or processor.lower() not in ("x86_64", "amd64"):
        return ok("CPU", f"no compiled functions for {system} on {processor}: blocks run by PyTorch's")
    remedy = "install a C++ compiler (Debian, Ubuntu: apt install g++), then install from a clone or make setup again"
    return warning("CPU", "the compiled functions were not built, or from another source: blocks run slower", remedy)


def check_model_text(changes: Iterable[str]) -> Finding:
    """Check that davit/model.py is the text that kernels stand for; an edited one runs as it is written."""
    if not (text := "; ".join(sorted(changes))):
        return ok("model", "davit/model.py is as the kernels know it, so they compute it")
    remedy = "nothing, if it is fast enough; docs/changing.md says how to make the kernels follow"
    return warning("model", f"{text}: what this concerns runs as written, by plain modules", remedy)


def check_bfloat16(cost: float | None) -> Finding:
    """Say what --amp does on this processor; slow bfloat16 is no fault, as the tools then use float32.

    Args:
        cost: of bfloat16 over float32; None where the processor has instructions for bfloat16.
    """
    if cost is None:
        return ok("bfloat16", "this processor has instructions for it: --amp is bfloat16 on the CPU")
    slow = f"products of matrices take {cost:.0f} times as long as in float32"
    return ok("bfloat16", f"no instructions of this processor: {slow}, so --amp is float32 on the CPU")
