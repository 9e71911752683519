"""Two machines, as two network namespaces joined by a cable (a veth pair)."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.distributed.conftest import FLAGS, record, started
from tests.engine.runs import REPOSITORY, SMALL_MODEL, run, train_command, weights_hash
from tests.processes import children


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def machines() -> Iterator[tuple[str, str]]:
    """Two namespaces that reach each other as 10.77.0.1 and 10.77.0.2, and nothing else."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs iproute2 and root to make network namespaces")
    nodes = (f"davit-node0-{os.getpid()}", f"davit-node1-{os.getpid()}")
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


def on(node: str, *words: str) -> list[str]:
    """The words of a command on a machine."""
    listed = subprocess.run(["ip", "-n", node, "-o", "link"], check=True, capture_output=True, text=True).stdout
    cable = next(line.split(": ")[1].split("@")[0] for line in listed.splitlines() if ": dv" in line)
    return ["ip", "netns", "exec", node, "env", f"GLOO_SOCKET_IFNAME={cable}", *words]


def ends(launchers: Sequence[subprocess.Popen[str]], timeout: float = 240) -> list[str]:
    """What each launcher wrote to stderr, read side by side: a full pipe would stop one of them."""
    with ThreadPoolExecutor(len(launchers)) as pool:
        return list(pool.map(lambda launcher: launcher.communicate(timeout=timeout)[1], launchers))


def test_two_machines_equal_one_process(
    tmp_path: Path, pictures: Path, machines: tuple[str, str], one: tuple[Path, list[float]]
) -> None:
    job = ["N_NODES=2", "NPROC_PER_NODE=1", "MASTER_ADDR=10.77.0.1", "MASTER_PORT=29511", f"PYTHON={sys.executable}"]
    script = [str(REPOSITORY / "tools/launch.sh"), *train_command(pictures, *FLAGS, "--batch-size", "4")[2:]]
    commands = [on(node, "env", f"NODE_RANK={rank}", *job, *script) for rank, node in enumerate(machines)]
    with started(commands, tmp_path) as nodes:
        errors = ends(nodes)
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(errors)
    assert record(tmp_path / "runs/a") == pytest.approx(record(one[0]), abs=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_on_one_machine_is_brought_back(
    tmp_path: Path, pictures: Path, machines: tuple[str, str], victim: int
) -> None:
    flags = [*FLAGS, "--epochs", "6", "--batch-size", "4", "--recovery-interval", "1"]
    whole = tmp_path / "whole"
    whole.mkdir()
    run(train_command(pictures, *flags, processes=2), whole)
    job = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--max-restarts=2"]
    job += ["--rdzv_backend=c10d", "--rdzv_id=two", "--rdzv_endpoint=10.77.0.1:29512", "--rdzv_conf=is_host="]
    script = [str(REPOSITORY / "train.py"), str(pictures), *SMALL_MODEL, *flags]
    commands = []
    for rank, node in enumerate(machines):
        words = [*job[:-1], job[-1] + str(int(rank == 0)), f"--local_addr=10.77.0.{rank + 1}"]
        commands.append(on(node, sys.executable, "-u", *words, *script))
    last = tmp_path / "runs/a/last.pth.tar"
    with started(commands, tmp_path) as nodes:
        while not last.exists() and all(node.poll() is None for node in nodes):
            time.sleep(0.02)
        (rank,) = children(nodes[victim].pid)
        os.kill(rank, signal.SIGKILL)
        errors = ends(nodes)
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(errors)
    assert "Resumed at epoch" in "".join(errors)
    assert weights_hash(last) == weights_hash(whole / "runs/a/last.pth.tar")
