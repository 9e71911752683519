"""Two machines, as two network namespaces joined by a cable (a veth pair)."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.test_processes import PLAIN, epoch_losses
from tests.engine.runs import REPOSITORY, SMALL_MODEL, environment, run, train_command

NAMES = ("davit-node0", "davit-node1")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def machines() -> Iterator[tuple[str, str]]:
    """Two namespaces that reach each other as 10.77.0.1 and 10.77.0.2, and nothing else."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs iproute2 and root to make network namespaces")
    suffix = f"-{os.getpid()}"
    nodes = (NAMES[0] + suffix, NAMES[1] + suffix)
    cable = (f"dv0{os.getpid() % 10**7}", f"dv1{os.getpid() % 10**7}")
    try:
        for node in nodes:
            ip("netns", "add", node)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces may not be made here: {error.stderr.strip()}")
    try:
        ip("link", "add", cable[0], "type", "veth", "peer", "name", cable[1])
        for number, (node, end) in enumerate(zip(nodes, cable, strict=True), start=1):
            ip("link", "set", end, "netns", node)
            ip("-n", node, "addr", "add", f"10.77.0.{number}/24", "dev", end)
            ip("-n", node, "link", "set", end, "up")
            ip("-n", node, "link", "set", "lo", "up")
        yield nodes
    finally:
        for node in nodes:
            subprocess.run(["ip", "netns", "del", node], check=False, capture_output=True)


def test_two_machines_equal_one_process(tmp_path: Path, pictures: Path, machines: tuple[str, str]) -> None:
    flags = [str(pictures), *SMALL_MODEL, *PLAIN, "--epochs", "2", "--batch-size", "4"]
    nodes = []
    for rank, node in enumerate(machines):
        variables = environment(
            N_NODES="2",
            NODE_RANK=str(rank),
            NPROC_PER_NODE="1",
            MASTER_ADDR="10.77.0.1",
            MASTER_PORT="29511",
            PYTHON=sys.executable,
            GLOO_SOCKET_IFNAME=_cable_in(node),
        )
        command = [
            "ip",
            "netns",
            "exec",
            node,
            str(REPOSITORY / "tools/launch.sh"),
            str(REPOSITORY / "train.py"),
            *flags,
        ]
        nodes.append(subprocess.Popen(command, cwd=tmp_path, env=variables, stderr=subprocess.PIPE, text=True))
    errors = [node.communicate(timeout=240)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(errors)
    assert "4 pictures x 2 processes" in errors[0]
    alone = tmp_path / "alone"
    alone.mkdir()
    result = run(train_command(pictures, *PLAIN, "--epochs", "2", "--batch-size", "8"), alone)
    assert result.returncode == 0, result.stderr
    assert epoch_losses(tmp_path / "runs/a") == pytest.approx(epoch_losses(alone / "runs/a"), abs=1e-5)


def _cable_in(node: str) -> str:
    listed = subprocess.run(["ip", "-n", node, "-o", "link"], check=True, capture_output=True, text=True).stdout
    return next(line.split(": ")[1].split("@")[0] for line in listed.splitlines() if ": dv" in line)
