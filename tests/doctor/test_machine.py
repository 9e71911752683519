"""Findings about a machine: this one, and ones that lack something."""

import importlib.metadata
import importlib.util
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from davit.doctor import Finding, worst
from davit.doctor import machine as doctor
from davit.engine import precision

Usage = namedtuple("Usage", "total used free")


def only(findings: Iterable[Finding], subject: str) -> Finding:
    (found,) = [finding for finding in findings if finding.subject == subject]
    return found


def test_worst() -> None:
    good, bad, ill = Finding("ok", "a", "b"), Finding("error", "a", "b", "c"), Finding("warning", "a", "b", "c")
    assert worst([]) == "ok" and worst([good, ill]) == "warning" and worst([ill, bad, good]) == "error"
    with pytest.raises(AssertionError):
        Finding("error", "a", "without a remedy")


def test_this_machine(tmp_path: Path) -> None:
    findings = list(doctor.examine_machine(tmp_path / "not" / "yet"))
    assert [finding for finding in findings if finding.level == "error"] == []
    assert sys.version.split()[0] in only(findings, "Python").text
    assert torch.__version__.split("+")[0] in only(findings, "packages").text
    assert "GB free" in only(findings, "disk").text
    assert only(findings, "gloo").level == "ok"
    assert only(findings, "bfloat16").level == "ok"
    assert not torch.distributed.is_initialized()
    assert all(finding.remedy or finding.level == "ok" for finding in findings)


@pytest.mark.parametrize("has", [True, False])
def test_bfloat16(monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda: has)
    monkeypatch.setattr(precision, "bfloat16_cost", lambda: 29.0)
    finding = doctor._bfloat16()
    assert finding.level == "ok" and ("29 times" in finding.text) != has


def test_packages_that_are_missing_or_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: ["timm>=999", "no-such-package", 'x; extra == "y"'])
    texts = [(finding.level, finding.text) for finding in doctor._packages()]
    assert len(texts) == 2
    assert texts[0][0] == "error" and "timm 1" in texts[0][1] and ">=999" in texts[0][1]
    assert texts[1] == ("error", "no-such-package is not installed")


def test_a_checkout_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> Any:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    (finding,) = doctor._packages()
    assert finding.level == "ok" and "torchvision" in finding.text


def test_python_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_OLDEST_PYTHON", (99, 0))
    assert doctor._python().level == "error"


def test_a_torchvision_of_another_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    finding = doctor._torchvision()
    assert finding.level == "error" and "requirements.txt" in finding.remedy


# --- GPUs ---


def cuda(monkeypatch: pytest.MonkeyPatch, driver: str, built: str | None, available: bool) -> None:
    monkeypatch.setattr(doctor, "_driver", lambda: driver)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)


@pytest.mark.parametrize(
    "driver, built, level, text",
    [
        ("", None, "ok", "built for the CPU"),
        ("580.1", None, "warning", "580.1"),
        ("", "13.0", "ok", "runs on the CPU"),
        ("450.2", "13.0", "error", "450.2"),
    ],
)
def test_no_gpu_in_use(monkeypatch: pytest.MonkeyPatch, driver: str, built: str | None, level: str, text: str) -> None:
    cuda(monkeypatch, driver, built, available=False)

    def refuse() -> None:
        raise RuntimeError("the driver is too old\nand more")

    monkeypatch.setattr(torch.cuda, "init", refuse)
    (finding,) = doctor._gpus()
    assert finding.level == level and text in finding.text
    assert ("too old" in finding.text) == (level == "error")


@pytest.mark.parametrize("free, level", [(70e9, "ok"), (10e9, "warning"), (None, "error")])
def test_gpus(monkeypatch: pytest.MonkeyPatch, free: float | None, level: str) -> None:
    cuda(monkeypatch, "580.1", "13.0", available=True)
    properties = SimpleNamespace(name="A GPU", total_memory=80e9, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 80e9))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_50"])
    random = torch.randn

    def on_cpu(*shape: int, device: str) -> torch.Tensor:
        if free is None:
            raise RuntimeError("no kernel image is available")
        return random(*shape)

    monkeypatch.setattr(torch, "randn", on_cpu)
    version, gpu = doctor._gpus()
    assert version.text == "13.0, driver 580.1"
    assert gpu.level == level and "A GPU, 80 GB" in gpu.text
    assert level != "error" or ("no kernel image" in gpu.text and "sm_90" in gpu.remedy and "sm_50" in gpu.remedy)


def test_the_driver_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    answer = subprocess.CompletedProcess([], 0, "580.95.05\n580.95.05\n", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    assert doctor._driver() == "580.95.05"

    def hangs(*_: Any, **__: Any) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", 20)

    monkeypatch.setattr(subprocess, "run", hangs)
    assert "does not answer" in doctor._driver()


# --- process groups, mmcv ---


def test_a_group_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no interface")

    monkeypatch.setattr(torch.distributed, "init_process_group", fail)
    (finding,) = doctor._process_groups()
    assert finding.level == "error" and "no interface" in finding.text and "GLOO_SOCKET_IFNAME" in finding.remedy
    monkeypatch.setattr(torch.distributed, "is_gloo_available", lambda: False)
    (finding,) = doctor._process_groups()
    assert finding.level == "warning"
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    (finding,) = doctor._process_groups()
    assert finding.level == "error"


@pytest.mark.parametrize(
    "status, version, level, text",
    [
        ("compiled", "2.3.6", "ok", "compiled (mmcv 2.3.6"),
        ("bridged", "2.3.6", "ok", "bridged"),
        ("missing", "2.3.6", "warning", "not installed"),
        ("missing", "", "ok", "not installed; only detection"),
    ],
)
def test_mmcvs_operators(monkeypatch: pytest.MonkeyPatch, status: str, version: str, level: str, text: str) -> None:
    monkeypatch.setattr(doctor, "_mm_version", lambda module: version)
    monkeypatch.setattr(doctor, "mmcv_ops", lambda: status)
    (finding,) = doctor._openmmlab()
    assert finding.level == level and finding.text.startswith(text)


def test_whose_operators_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, object] = {}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found.get(name))
    assert doctor.mmcv_ops() == "missing"
    found["mmcv._ext"] = object()
    assert doctor.mmcv_ops() == "compiled"
    found["davit.openmmlab"] = object()
    monkeypatch.setitem(sys.modules, "davit.openmmlab", SimpleNamespace(ops_status=lambda: "bridged"))  # type: ignore[arg-type]
    assert doctor.mmcv_ops() == "bridged"
    monkeypatch.setitem(sys.modules, "davit.openmmlab", None)
    assert doctor.mmcv_ops() == "missing"


def test_versions_under_either_name(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"onedl-mmcv": "2.3.6", "mmdet": "3.3.0"}

    def version(name: str) -> str:
        if name not in there:
            raise importlib.metadata.PackageNotFoundError
        return there[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert [doctor._mm_version(name) for name in ("mmcv", "mmdet", "mmseg")] == ["2.3.6", "3.3.0", ""]


# --- disk, memory, limits ---


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(100e9, 99e9, 1e9))
    finding = doctor._disk(tmp_path)
    assert finding.level == "warning" and "1.0 GB free" in finding.text
    monkeypatch.setattr("os.access", lambda *_: False)
    assert doctor._disk(tmp_path).level == "error"


def test_little_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage(64e6, 0, 64e6))
    (finding,) = doctor._shared_memory()
    assert finding.level == "warning" and "--shm-size" in finding.remedy


def test_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.available_memory() > 1e6
    monkeypatch.setattr(doctor, "available_memory", lambda: 1e9)
    assert doctor._memory().level == "warning"


def test_few_files_and_busy_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (256, 256))
    monkeypatch.setattr("os.getloadavg", lambda: (1000.0, 0.0, 0.0))
    files, load = doctor._limits()
    assert "ulimit" in files.remedy and "OMP_NUM_THREADS" in load.remedy


@pytest.mark.parametrize(
    ("system", "processor", "level", "text"),
    [
        ("linux", "x86_64", "warning", "were not built"),
        ("linux", "aarch64", "ok", "no compiled functions for linux on aarch64"),
        ("darwin", "arm64", "ok", "no compiled functions for darwin"),
    ],
)
def test_no_compiled_functions(
    monkeypatch: pytest.MonkeyPatch, system: str, processor: str, level: str, text: str
) -> None:
    monkeypatch.setattr(doctor.native, "LIBRARY", None)
    monkeypatch.setattr(doctor.sys, "platform", system)
    monkeypatch.setattr(doctor.platform, "machine", lambda: processor)
    finding = doctor._compiled_functions()
    assert finding.level == level and text in finding.text
    assert ("apt install g++" in (finding.remedy or "")) == (level == "warning")


@pytest.mark.skipif(doctor.native.LIBRARY is None, reason="no compiled functions for this processor")
def test_the_compiled_functions_in_use() -> None:
    finding = doctor._compiled_functions()
    assert finding.level == "ok" and "native_avx" in finding.text
