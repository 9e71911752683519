"""The machine: Python and its packages, PyTorch, GPUs, process groups, mmcv's operators, disk and memory."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist

from .. import kernels
from ..engine import precision
from ..kernels import conditions
from ..kernels.cpu import native
from ..registry import create_model
from .findings import Finding, error, ok, warning

_OLDEST_PYTHON = (3, 10)
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "safetensors", "huggingface_hub", "PyYAML", "tqdm")
_GIGABYTE = 1e9
_LITTLE_DISK, _LITTLE_MEMORY, _LITTLE_SHARED = 5 * _GIGABYTE, 2 * _GIGABYTE, 0.5 * _GIGABYTE
_FEW_FILES = 1024
_INSTALL = "pip install -r requirements.txt"


def examine_machine(place: Path) -> Iterator[Finding]:
    """All findings about this machine; `place` is where a run would write."""
    yield _python()
    yield from _packages()
    yield _torchvision()
    yield from _gpus()
    yield from _process_groups()
    yield from _openmmlab()
    yield _disk(place)
    yield _memory()
    yield _compiled_functions()
    yield _model_text()
    yield _bfloat16()
    yield from _shared_memory()
    yield from _limits()


def _python() -> Finding:
    version = platform.python_version()
    if sys.version_info[:2] < _OLDEST_PYTHON:
        return error("Python", f"{version} is too old", "use Python 3.10 or newer: make PYTHON=python3.12 setup")
    return ok("Python", f"{version}, {sys.executable}")


def _packages() -> Iterator[Finding]:
    """What the project needs, by its own metadata where it is installed."""
    from packaging.requirements import Requirement

    try:
        wanted = importlib.metadata.requires("davit") or []
    except importlib.metadata.PackageNotFoundError:
        wanted = list(_PACKAGES)
    found, faults = [], []
    for requirement in map(Requirement, wanted):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            faults.append(error("packages", f"{requirement.name} is not installed", _INSTALL))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            text = f"{requirement.name} {version} is not {requirement.specifier}"
            faults.append(error("packages", text, _INSTALL))
        elif requirement.name in ("torch", "torchvision", "timm"):
            found.append(f"{requirement.name} {version}")
    yield from faults or [ok("packages", ", ".join(found))]


def _torchvision() -> Finding:
    """A torchvision of another torch imports, or fails at its first operator."""
    try:
        from torchvision.ops import nms

        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    except Exception as failure:
        return error("torchvision", f"its operators do not run ({_first_line(failure)})", f"{_INSTALL}: one pair")
    return ok("torchvision", "its operators run")


def _compiled_functions() -> Finding:
    """native.cpp, which is built with the package where there is a compiler."""
    subject, where = "CPU", platform.machine()
    if native.LIBRARY is not None:
        return ok(subject, f"blocks run by {Path(native.LIBRARY._name).name.split('.')[0].removeprefix('_')}")
    if sys.platform != "linux" or where.lower() not in ("x86_64", "amd64"):
        return ok(subject, f"no compiled functions for {sys.platform} on {where}: blocks run by PyTorch's")
    remedy = "install a C++ compiler (Debian, Ubuntu: apt install g++), then pip install -e . or make setup again"
    return warning(subject, "the compiled functions were not built, or from another source: blocks run slower", remedy)


def _model_text() -> Finding:
    """Whether davit/model.py is the text that kernels stand for; an edited one runs as it is written."""
    built = kernels.why_plain(create_model("DaViT_nano", device="meta"))
    changed = sorted({*conditions.changed_text(), *built.values()})
    if not changed:
        return ok("model", "davit/model.py is as the kernels know it, so they compute it")
    remedy = "nothing, if it is fast enough; docs/changing.md says how to make the kernels follow"
    return warning("model", f"{'; '.join(changed)}: what this concerns runs as written, by plain modules", remedy)


def _bfloat16() -> Finding:
    """No fault where it is missing: our tools then run in float32, unless told otherwise."""
    if precision.has_bfloat16():
        return ok("bfloat16", "this processor has instructions for it: --amp is bfloat16 on the CPU")
    slow = f"products of matrices take {precision.bfloat16_cost():.0f} times as long as in float32"
    return ok("bfloat16", f"no instructions of this processor: {slow}, so --amp is float32 on the CPU")


def _gpus() -> Iterator[Finding]:
    driver = _driver()
    if torch.version.cuda is None and torch.version.hip is None:
        if driver:
            remedy = "install the CUDA build of torch, which PyPI's default for Linux is: " + _INSTALL
            yield warning("GPU", f"driver {driver} is there, but this torch is built for the CPU", remedy)
        else:
            yield ok("GPU", "none; this torch is built for the CPU")
        return
    if not torch.cuda.is_available():
        if driver:
            remedy = f"CUDA {torch.version.cuda} needs a newer driver, or CUDA_VISIBLE_DEVICES hides all GPUs"
            yield error("GPU", f"driver {driver} is there, but torch cannot use it ({_why_no_cuda()})", remedy)
        else:
            yield ok("GPU", f"none; torch {torch.__version__} runs on the CPU")
        return
    yield ok("CUDA", f"{torch.version.cuda}, driver {driver or 'unknown'}")
    for index in range(torch.cuda.device_count()):
        yield _gpu(index)


def _gpu(index: int) -> Finding:
    properties = torch.cuda.get_device_properties(index)
    name = f"{index}: {properties.name}, {properties.total_memory / _GIGABYTE:.0f} GB"
    try:
        x = torch.randn(64, 64, device=f"cuda:{index}")
        finite = bool((x @ x).isfinite().all())
        free, _ = torch.cuda.mem_get_info(index)
    except Exception as failure:
        built = ", ".join(torch.cuda.get_arch_list())
        remedy = f"free it, or install a torch built for sm_{properties.major}{properties.minor} (this one: {built})"
        return error("GPU", f"{name}: a product of matrices fails ({_first_line(failure)})", remedy)
    if not finite:
        return error("GPU", f"{name}: a product of matrices is not finite", "do not use this GPU; check its memory")
    if free < 0.5 * properties.total_memory:
        remedy = "another program uses it: nvidia-smi lists which"
        return warning("GPU", f"{name}, only {free / _GIGABYTE:.0f} GB free", remedy)
    return ok("GPU", f"{name}, {free / _GIGABYTE:.0f} GB free")


def _driver() -> str:
    """The version of NVIDIA's driver; "" where there is none."""
    program = shutil.which("nvidia-smi")
    if program is not None:
        try:
            words = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
            done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return "unknown (nvidia-smi does not answer)"
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.split()[0]
    return "unknown" if Path("/dev/nvidia0").exists() else ""


def _why_no_cuda() -> str:
    try:
        torch.cuda.init()
    except Exception as failure:
        return _first_line(failure)
    return "no device is visible"


def _process_groups() -> Iterator[Finding]:
    if not dist.is_available():
        yield error("processes", "this torch has no torch.distributed", f"several processes need it: {_INSTALL}")
        return
    yield (
        _backend("gloo", torch.zeros(1))
        if dist.is_gloo_available()
        else warning("gloo", "not in this torch", "needed for several processes on CPUs")
    )
    if torch.cuda.is_available():
        yield (
            _backend("nccl", torch.zeros(1, device="cuda"))
            if dist.is_nccl_available()
            else warning("NCCL", "not in this torch", f"needed for several GPUs: {_INSTALL}")
        )


def _backend(name: str, tensor: torch.Tensor) -> Finding:
    """One process alone: finds a missing library and a host name that does not resolve."""
    subject = name.upper() if name == "nccl" else name
    if dist.is_initialized():
        return ok(subject, "in use")
    try:
        dist.init_process_group(name, store=dist.HashStore(), rank=0, world_size=1)
        dist.all_reduce(tensor)
    except Exception as failure:
        remedy = "does the host's name resolve? GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME names the interface to use"
        return error(subject, f"a group of one process fails ({_first_line(failure)})", remedy)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    version = ".".join(map(str, torch.cuda.nccl.version())) if name == "nccl" else ""
    return ok(subject, f"{version} works".strip())


def _openmmlab() -> Iterator[Finding]:
    """mmcv's operators: compiled, bridged by davit.openmmlab, or not installed."""
    versions = [f"{name} {version}" for name in ("mmdet", "mmseg") if (version := _mm_version(name))]
    mmcv = _mm_version("mmcv")
    if not mmcv:
        yield ok("mmcv ops", "not installed; only detection and segmentation need them")
        return
    status = mmcv_ops()
    where = ", ".join([f"mmcv {mmcv}", *versions])
    if status == "missing":
        remedy = "import davit.openmmlab first, as mmdet/tools and mmseg/tools do, or compile mmcv's"
        yield warning("mmcv ops", f"not installed ({where})", remedy)
    else:
        yield ok("mmcv ops", f"{status} ({where})")


def mmcv_ops() -> str:
    """'compiled', 'bridged' or 'missing'."""
    if importlib.util.find_spec("davit.openmmlab") is not None:
        try:
            return str(importlib.import_module("davit.openmmlab").ops_status())
        except Exception:  # a stack of packages that do not fit one another fails in any way
            return "missing"
    try:
        return "compiled" if importlib.util.find_spec("mmcv._ext") is not None else "missing"
    except (ImportError, ValueError):
        return "missing"


def _mm_version(module: str) -> str:
    """The installed version of a package of OpenMMLab's, under its own name or that of its continuation."""
    names = {"mmcv": "mmcv", "mmdet": "mmdetection", "mmseg": "mmsegmentation"}
    for name in (f"onedl-{names[module]}", module, f"{module}-full", names[module]):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return ""


def _disk(place: Path) -> Finding:
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        return error("disk", f"{place.absolute()} cannot be written", "run elsewhere, or give --output")
    free = shutil.disk_usage(place).free
    text = f"{free / _GIGABYTE:.1f} GB free in {place.absolute()}"
    if free < _LITTLE_DISK:
        return warning(
            "disk", text, "free some: a state of DaViT_tiny takes about 0.5 GB, and --checkpoint-hist are kept"
        )
    return ok("disk", text)


def _memory() -> Finding:
    free = available_memory()
    text = f"{free / _GIGABYTE:.1f} GB available, {len(os.sched_getaffinity(0))} CPU cores"
    if free < _LITTLE_MEMORY:
        return warning("memory", text, "end other programs, or lower --batch-size and --workers")
    return ok("memory", text)


def available_memory() -> float:
    """Bytes that programs can still have: of the machine, or less where the control group allows less."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    free = next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    group = Path("/sys/fs/cgroup")
    try:
        limit = float((group / "memory.max").read_text())
        used = float((group / "memory.current").read_text())
    except (OSError, ValueError):  # no control group, or no limit ("max")
        return free
    return min(free, limit - used)


def _shared_memory() -> Iterator[Finding]:
    place = Path("/dev/shm")
    if place.is_dir():
        free = shutil.disk_usage(place).free
        text = f"{free / _GIGABYTE:.1f} GB free in {place}"
        if free < _LITTLE_SHARED:
            remedy = "loader processes hand batches over there: docker run --shm-size=8g, or --workers 0"
            yield warning("shared memory", text, remedy)
        else:
            yield ok("shared memory", text)


def _limits() -> Iterator[Finding]:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files < _FEW_FILES:
        yield warning("open files", f"at most {files}", f"raise it in the shell: ulimit -n {4 * _FEW_FILES}")
    cores, busy = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    if busy > 1.5 * cores:
        remedy = "training beside them is slow: end them, or set OMP_NUM_THREADS to the cores that are free"
        yield warning("load", f"{busy:.1f} programs run on {cores} cores", remedy)


def _first_line(failure: BaseException) -> str:
    return (str(failure).strip().splitlines() or [type(failure).__name__])[0][:200]
