"""One process, several, several machines: the same run."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import pytest
import timm
import torch
from torch.distributed import HashStore, TCPStore

from davit.engine.distributed import fresh_store
from tests.engine import runs
from tests.engine.runs import REPOSITORY, SMALL_MODEL, environment, run, run_here, summary, train_command, weights_hash

PLAIN = [
    *("--warmup-epochs", "1", "--cooldown-epochs", "0", "--workers", "1", "--lr", "1e-3", "--drop-path", "0"),
    *("--mixup", "0", "--cutmix", "0", "--log-interval", "1", "--output", "runs", "--experiment", "a"),
]


def losses(log: str) -> list[float]:
    """The loss of each step, from the lines of the log."""
    return [float(value) for value in re.findall(r"^epoch .*?\bloss (\S+?),? .*lr", log, flags=re.MULTILINE)]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def epoch_losses(folder: Path) -> list[float]:
    return [float(row["train_loss"]) for row in summary(folder)]


def children(pid: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(child) for child in found.stdout.split()]


@contextmanager
def ended(command: list[str], cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """A job whose processes are gone when its test is over, however it ends."""
    with subprocess.Popen(command, cwd=cwd, env=environment(), stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            for pid in (process.pid, *children(process.pid)):  # torchrun gives its processes sessions
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


FLAGS = [*PLAIN, "--epochs", "3", "--recovery-interval", "2"]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> tuple[Path, list[float]]:
    """The folder of a run of one process, and the loss of each step."""
    cwd = tmp_path_factory.mktemp("one")
    result = run_here(pictures, *FLAGS, "--batch-size", "8", cwd=cwd)
    assert result.returncode == 0, result.stderr
    return cwd / "runs/a", losses(result.stderr)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> tuple[Path, list[float]]:
    """The same of two processes with half the batch each."""
    cwd = tmp_path_factory.mktemp("two")
    result = run(train_command(pictures, *FLAGS, "--batch-size", "4", processes=2), cwd)
    assert result.returncode == 0, result.stderr
    return cwd / "runs/a", losses(result.stderr)


def test_two_processes_equal_one_of_twice_the_batch(
    one: tuple[Path, list[float]], two: tuple[Path, list[float]]
) -> None:
    assert len(one[1]) == len(two[1]) == 18
    assert one[1] == pytest.approx(two[1], abs=1e-5)
    expected = epoch_losses(one[0])
    assert expected == pytest.approx(epoch_losses(two[0]), abs=1e-5)
    assert expected[-1] < expected[0]


def test_resumed_on_another_number_of_processes(tmp_path: Path, pictures: Path, one: tuple[Path, list[float]]) -> None:
    folder = tmp_path / "runs/a"
    folder.mkdir(parents=True)
    shutil.copy(one[0] / "previous.pth.tar", folder / "recovery.pth.tar")  # step 4 of epoch 2
    shutil.copy(one[0] / "summary.csv", folder)
    result = run(train_command(pictures, *FLAGS, "--batch-size", "4", "--auto-resume", processes=2), tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(losses(result.stderr)) == 2
    assert epoch_losses(folder) == pytest.approx(epoch_losses(one[0]), abs=1e-5)


@pytest.mark.parametrize("launcher", ["torch.distributed.launch", "torchrun", "tools/launch.sh"])
def test_the_published_command_lines(tmp_path: Path, pictures: Path, launcher: str) -> None:
    script = str(REPOSITORY / "train.py")
    flags = [str(pictures), *SMALL_MODEL, "--batch-size", "8", "--lr", "1e-3", "--native-amp", "--clip-grad", "1.0"]
    flags += ["--output", "out", "--epochs", "1", "--warmup-epochs", "0", "--cooldown-epochs", "0"]
    port = str(free_port())
    more = {}
    if launcher == "torch.distributed.launch":
        command = [sys.executable, "-u", "-m", launcher, "--nproc_per_node=2", "--nnodes=1", "--node_rank=0"]
        command += [f"--master_port={port}", script]
    elif launcher == "torchrun":
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc_per_node=2",
            f"--master_port={port}",
            script,
        ]
    else:
        command = [str(REPOSITORY / launcher), script]
        more = {"NPROC_PER_NODE": "2", "N_NODES": "1", "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        more |= {"MASTER_PORT": port, "PYTHON": sys.executable}
    result = run([*command, *flags], tmp_path, **more)
    assert result.returncode == 0, result.stderr
    assert len(re.findall(r"batch 16 .*\b2 processes", result.stderr)) == 1  # rank 0 alone talks
    (folder,) = (tmp_path / "out").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-DaViT_nano-16", folder.name)
    assert (folder / "model_best.pth.tar").exists()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"NPROC_PER_NODE": "2", "CUDA_VISIBLE_DEVICES": "0,1,2"}, "shows 3 GPUs"),
        ({"N_NODES": "2", "MASTER_ADDR": ""}, "MASTER_ADDR"),
        ({"N_NODES": "two"}, "N_NODES='two'"),
        ({"N_NODES": "2", "NODE_RANK": "2", "MASTER_ADDR": "127.0.0.1"}, "NODE_RANK=2"),
    ],
)
def test_launcher_names_the_variable(tmp_path: Path, variables: dict[str, str], expected: str) -> None:
    result = run([str(REPOSITORY / "tools/launch.sh"), "train.py"], tmp_path, **variables)
    assert result.returncode == 2
    assert expected in result.stderr


def test_a_dead_rank_is_brought_back(tmp_path: Path, pictures: Path, two: tuple[Path, list[float]]) -> None:
    # a run of someone else's, by its name newer, which a nameless run must not take for its own
    other = tmp_path / "runs/20990101-000000-DaViT_nano-16/last.pth.tar"
    other.parent.mkdir(parents=True)
    shutil.copy(two[0] / "last.pth.tar", other)
    command = train_command(pictures, *FLAGS, "--batch-size", "4", "--experiment", "", processes=2)
    command.insert(command.index("--standalone"), "--max-restarts=2")
    with ended(command, tmp_path) as process:
        while not (own := [f for f in tmp_path.glob("runs/*/last.pth.tar") if f != other]) and process.poll() is None:
            time.sleep(0.05)
        ranks = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "train.py"], capture_output=True, text=True)
        os.kill(int(ranks.stdout.split()[-1]), signal.SIGKILL)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert f"Going on from {own[0].relative_to(tmp_path)}" in errors
    assert [f for f in tmp_path.glob("runs/*/last.pth.tar") if f != other] == own
    assert [f.name for f in other.parent.iterdir()] == ["last.pth.tar"]
    assert weights_hash(own[0]) == weights_hash(two[0] / "last.pth.tar")


def join_by(port: int, rank: int, token: str) -> str:
    """What a process of a job of three that comes to `fresh_store` writes, and where."""
    client = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=30))
    fresh_store(client, rank, 3).set(f"{token}/{rank}", "here")
    return ""


def test_a_restarted_job_reads_nothing_of_the_one_before() -> None:
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with ThreadPoolExecutor(3) as pool:
        for attempt, order in (("first", (0, 1, 2)), ("second", (2, 1, 0)), ("third", (1, 0, 2))):
            waiting = []
            for rank in order:  # late ones too: those that are there must not take an old name
                waiting.append(pool.submit(join_by, server.port, rank, attempt))
                time.sleep(0.2)
            for one in waiting:
                one.result(timeout=30)
    keys = [key for key in server.list_keys() if key.endswith(("/0", "/1", "/2")) and "davit" not in key]
    names = {
        key.split("/")[-2]: {k.split("/")[0] for k in keys if k.split("/")[-2] == key.split("/")[-2]} for key in keys
    }
    assert set(names) == {"first", "second", "third"}
    assert all(len(prefixes) == 1 for prefixes in names.values())  # the three of a job share one name
    assert len(set.union(*names.values())) == 3  # which no other job has


def test_a_process_that_never_comes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("davit.engine.distributed.JOIN_SECONDS", 0.3)
    with pytest.raises(TimeoutError, match=r"\[1, 2\]"):
        fresh_store(HashStore(), 0, 3)
    with pytest.raises(TimeoutError, match="rank 0"):
        fresh_store(HashStore(), 2, 3)


def test_unused_parameters_are_named_before_ddp_starts(tmp_path: Path) -> None:
    from davit import create_model
    from davit.engine.build import unused_parameters

    model = create_model("DaViT_nano", num_classes=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    image = torch.randn(2, 3, 32, 32)
    assert unused_parameters(model, image) == []
    model.spare = torch.nn.Linear(2, 2)
    assert unused_parameters(model, image) == ["spare.weight", "spare.bias"]
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())


def test_timms_port_and_ours_learn_alike(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    torch.save(timm.create_model("davit_tiny", num_classes=3).state_dict(), tmp_path / "timm.pth")
    curves = []
    for model in ("davit_tiny", "DaViT_tiny"):
        flags = [*PLAIN, "--epochs", "1", "--warmup-epochs", "0", "--batch-size", "4", "--lr", "1e-4"]
        words = [*flags, "--experiment", model, "--model", model, "--initial-checkpoint", "timm.pth"]
        monkeypatch.setattr(runs, "SMALL_MODEL", ["--img-size", "16"])  # its arguments do not fit timm's port
        result = run_here(pictures, *words, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        curves.append(losses(result.stderr))
    assert len(curves[0]) == 12
    assert curves[0] == pytest.approx(curves[1], abs=1e-4)
