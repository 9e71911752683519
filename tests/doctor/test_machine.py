"""Check findings about machines: this one, and ones whose facts say that they lack something."""

import importlib.metadata
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from davit.doctor import Finding, machine


def levels(findings: Iterable[Finding]) -> list[str]:
    return [finding.level for finding in findings]


def test_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = {finding.subject: finding for finding in machine.examine_machine(tmp_path / "not" / "yet")}
    assert "error" not in levels(findings.values())
    assert sys.version.split()[0] in findings["Python"].text
    assert torch.__version__.split("+")[0] in findings["packages"].text
    assert str(tmp_path) in findings["disk"].text
    assert findings["gloo"].level == findings["bfloat16"].level == findings["torchvision"].level == "ok"
    assert {"memory", "CPU", "model", "mmcv ops"} <= findings.keys()
    assert not torch.distributed.is_initialized()
    monkeypatch.setattr("os.access", lambda *_: False)
    (disk,) = (finding for finding in machine.examine_machine(tmp_path) if finding.subject == "disk")
    assert disk.level == "error" and str(tmp_path) in disk.text


def test_python_and_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first installed name of a package counts; a checkout that is not installed needs the usual ones."""
    assert [machine.check_python(version).level for version in ((3, 9), (3, 10), (4, 0))] == ["error", "ok", "ok"]
    versions = {"timm": "1.0.31", "torch": "2.12.0.dev1"}
    required = ["timm>=999", "no-such-package", 'x; extra == "y"', "torch>=2.11"]
    old, missing = machine.check_packages(required, lambda name: versions.get(name, ""))
    assert old.level == "error" and "timm 1.0.31" in old.text and ">=999" in old.text
    assert missing.level == "error" and "no-such-package" in missing.text
    assert levels(machine.check_packages(required[3:], lambda name: versions.get(name, ""))) == ["ok"]
    assert machine.installed_version("no-such-package", "timm", "torch") == importlib.metadata.version("timm")
    assert machine.installed_version("no-such-package") == ""
    monkeypatch.setattr(importlib.metadata, "requires", Mock(side_effect=importlib.metadata.PackageNotFoundError))
    assert machine.required_packages() == machine.PACKAGES


def test_a_failure_is_told_by_its_first_line() -> None:
    assert machine.failure_of(Mock(side_effect=RuntimeError("no kernel image\nand more"))) == "no kernel image"
    assert machine.failure_of(list) == ""
    finding = machine.check_run("torchvision", "runs", "no kernel image", "install it")
    assert (finding.level, finding.remedy) == ("error", "install it") and "no kernel image" in finding.text


# --- GPUs ---


@pytest.mark.parametrize(
    "driver, built_for, level, value",
    [
        ("", None, "ok", "CPU"),
        ("580", None, "warning", "580"),
        ("", "13.0", "ok", "13.0"),
        ("450", "13.0", "error", "450"),
    ],
)
def test_no_gpu_in_use(
    driver: str, built_for: str | None, level: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", lambda: [].index("too old"))
    (finding,) = machine.check_gpus(built_for, driver)
    assert finding.level == level and value in finding.text
    assert ("too old" in finding.text) == (level == "error")


@pytest.mark.parametrize(
    "product, free, level, value",
    [
        (1.0, 70e9, "ok", "70 GB"),
        (1.0, 10e9, "warning", "10 GB"),
        (float("nan"), 70e9, "error", "not finite"),
        (None, 70e9, "error", "no kernel image"),
    ],
)
def test_gpus_are_tried(
    product: float | None, free: float, level: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def noise(*_: int, device: str) -> torch.Tensor:
        if product is None:
            raise RuntimeError("no kernel image")
        return torch.full((2, 2), product)

    properties = type("Properties", (), {"name": "A GPU", "total_memory": 80e9, "major": 9, "minor": 0})
    for name, answer in {
        "is_available": True,
        "device_count": 1,
        "get_device_properties": properties,
        "mem_get_info": (free, 80e9),
    }.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(torch, "randn", noise)
    version, finding = machine.check_gpus("13.0", "580.1")
    assert version.level == "ok" and "13.0" in version.text and "580.1" in version.text
    assert finding.level == level and "0: A GPU, 80 GB" in finding.text and value in finding.text
    assert ("sm_90" in finding.remedy) == (product is None)


@pytest.mark.parametrize(
    "answer, version",
    [
        (subprocess.CompletedProcess([], 0, "580.95.05\n580.95.05\n", ""), "580.95.05"),
        (subprocess.TimeoutExpired("nvidia-smi", 20), "unknown (nvidia-smi does not answer)"),
        (FileNotFoundError("nvidia-smi"), "unknown"),
    ],
)
def test_the_driver_is_asked(
    answer: subprocess.CompletedProcess[str] | Exception, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "exists", lambda _: True)
    monkeypatch.setattr(subprocess, "run", Mock(side_effect=[answer]))
    assert machine.driver_version() == version


# --- process groups, mmcv ---


def test_process_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.distributed, "init_process_group", Mock(side_effect=RuntimeError("no interface")))
    (finding,) = machine.check_process_groups()
    assert finding.level == "error" and "no interface" in finding.text and "GLOO_SOCKET_IFNAME" in finding.remedy
    monkeypatch.setattr(torch.distributed, "is_gloo_available", lambda: False)
    assert levels(machine.check_process_groups()) == ["warning"]
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    assert levels(machine.check_process_groups()) == ["error"]


@pytest.mark.parametrize(
    "status, version, level",
    [("compiled", "2.3.6", "ok"), ("bridged", "2.3.6", "ok"), ("missing", "2.3.6", "warning"), ("missing", "", "ok")],
)
def test_mmcvs_operators(status: str, version: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are missing too where OpenMMLab's packages do not fit one another."""
    module = None if status == "missing" else SimpleNamespace(ops_status=lambda: status)
    monkeypatch.setitem(sys.modules, "davit.openmmlab", module)  # type: ignore[arg-type]
    finding = machine.check_mmcv({"mmcv": version, "mmdet": version, "mmseg": ""})
    assert finding.level == level and version in finding.text and "mmseg" not in finding.text
    assert (status == "compiled") == finding.text.startswith("compiled")


# --- disk, memory, limits, speed ---


@pytest.mark.parametrize("subject, little", [("disk", 4e9), ("memory", 1e9), ("shared memory", 64e6)])
def test_little_space(subject: str, little: float) -> None:
    assert machine.check_space(subject, 100e9, "in a place").level == "ok"
    finding = machine.check_space(subject, little, "in a place")
    assert finding.level == "warning" and f"{little / 1e9:.1f} GB" in finding.text and "in a place" in finding.text
    assert 1e6 < machine.available_memory() < 1e15


def test_few_files_and_busy_cores() -> None:
    files, load = machine.check_limits(256, 1000.0, 4)
    assert "ulimit" in files.remedy and "OMP_NUM_THREADS" in load.remedy
    assert list(machine.check_limits(4096, 2.0, 4)) == []


@pytest.mark.parametrize(
    ("library", "system", "processor", "level"),
    [
        *[("_native_avx2.so", "linux", "x86_64", "ok"), ("", "linux", "x86_64", "warning")],
        *[("", "linux", "aarch64", "ok"), ("", "darwin", "arm64", "ok")],
    ],
)
def test_compiled_functions(library: str, system: str, processor: str, level: str) -> None:
    finding = machine.check_compiled_functions(library, system, processor)
    assert finding.level == level
    assert ("native_avx2" in finding.text) == bool(library) and ("g++" in finding.remedy) == (level == "warning")


def test_bfloat16() -> None:
    with_instructions, without = machine.check_bfloat16(None), machine.check_bfloat16(29.4)
    assert with_instructions.level == without.level == "ok"
    assert "29 times" in without.text and "times" not in with_instructions.text


def test_a_changed_model_runs_by_plain_modules() -> None:
    assert machine.check_model_text([]).level == "ok"
    finding = machine.check_model_text({"Mlp.forward differs", "a block has a gamma"})
    assert finding.level == "warning" and "Mlp.forward differs" in finding.text and "gamma" in finding.text
