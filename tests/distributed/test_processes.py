"""One process, several, by each of the published launchers: the same run."""

import os
import re
import shutil
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch.distributed import HashStore, TCPStore

from davit import create_model
from davit.engine.build import unused_parameters
from davit.engine.distributed import fresh_store
from tests.distributed.conftest import FLAGS, losses, record, started
from tests.engine.runs import REPOSITORY, run, train_command, weights_hash
from tests.processes import children, free_port

Run = tuple[Path, list[float]]
HALF = [*FLAGS, "--batch-size", "4"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Run:
    """A run of two processes with half the batch each, which all of this module's tests are compared with."""
    cwd = tmp_path_factory.mktemp("two")
    words = [str(REPOSITORY / "tools/launch.sh"), *train_command(pictures, *HALF)[2:]]
    result = run(words, cwd, NPROC_PER_NODE="2", N_NODES="1", MASTER_PORT=free_port(), PYTHON=sys.executable)
    assert len(re.findall(r"batch 8 .*\b2 processes", result.stderr)) == 1  # rank 0 alone talks
    return cwd / "runs/a", losses(result.stderr)


def test_two_processes_equal_one_of_twice_the_batch(one: Run, two: Run) -> None:
    """And evaluate each of 13 images once."""
    assert len(one[1]) == len(two[1]) == 18
    assert one[1] == pytest.approx(two[1], abs=1e-5)
    assert record(one[0]) == pytest.approx(record(two[0]), abs=1e-4)
    assert one[1][-1] < one[1][0]


def test_resumed_on_another_number_of_processes(tmp_path: Path, pictures: Path, one: Run) -> None:
    folder = tmp_path / "runs/a"
    folder.mkdir(parents=True)
    shutil.copy(one[0] / "previous.pth.tar", folder / "recovery.pth.tar")  # step 4 of epoch 2
    shutil.copy(one[0] / "summary.csv", folder)
    launcher = ["-m", "torch.distributed.launch", "--nproc_per_node=2", f"--master_port={free_port()}"]
    script = train_command(pictures, *HALF, "--auto-resume")[2:]
    result = run([sys.executable, "-u", *launcher, "--nnodes=1", "--node_rank=0", *script], tmp_path)
    assert len(losses(result.stderr)) == 2
    assert record(folder) == pytest.approx(record(one[0]), abs=1e-4)


def test_a_dead_rank_is_brought_back(tmp_path: Path, pictures: Path, two: Run) -> None:
    # a run of someone else's, by its name newer, which a nameless run must not take for its own
    other = tmp_path / "runs/20990101-000000-DaViT_nano-16/last.pth.tar"
    other.parent.mkdir(parents=True)
    shutil.copy(two[0] / "last.pth.tar", other)
    command = train_command(pictures, *HALF, "--experiment", "", processes=2)
    command.insert(command.index("--standalone"), "--max-restarts=2")
    with started([command], tmp_path) as (launcher,):
        while not (own := [f for f in tmp_path.glob("runs/*/last.pth.tar") if f != other]) and launcher.poll() is None:
            time.sleep(0.05)
        os.kill(children(launcher.pid)[-1], signal.SIGKILL)
        _, errors = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, errors
    assert re.fullmatch(r"\d{8}-\d{6}-DaViT_nano-16", own[0].parent.name)
    assert f"Continuing from {own[0].relative_to(tmp_path)}" in errors
    assert [f for f in tmp_path.glob("runs/*/last.pth.tar") if f != other] == own
    assert [f.name for f in other.parent.iterdir()] == ["last.pth.tar"]
    assert weights_hash(own[0]) == weights_hash(two[0] / "last.pth.tar")


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
    result = run([str(REPOSITORY / "tools/launch.sh"), "train.py"], tmp_path, **variables, status=2)
    assert expected in result.stderr


def join_by(port: int, rank: int, token: str) -> None:
    """What a process of a job of three that comes to `fresh_store` writes, and where."""
    client = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=30))
    fresh_store(client, rank, 3).set(f"{token}/{rank}", "here")


def test_a_restarted_job_reads_nothing_of_the_one_before() -> None:
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with ThreadPoolExecutor(3) as pool:
        for attempt, order in (("first", (0, 1, 2)), ("second", (2, 1, 0)), ("third", (1, 0, 2))):
            waiting = []
            for rank in order:  # late ones too: those that are there must not take an old name
                waiting.append(pool.submit(join_by, server.port, rank, attempt))
                time.sleep(0.1)
            for one in waiting:
                one.result(timeout=30)
    keys = [key.split("/") for key in server.list_keys() if key.endswith(("/0", "/1", "/2")) and "davit" not in key]
    names = {attempt: {key[0] for key in keys if key[-2] == attempt} for attempt in (key[-2] for key in keys)}
    assert set(names) == {"first", "second", "third"}
    assert all(len(prefixes) == 1 for prefixes in names.values())  # the three of a job share one name
    assert len(set.union(*names.values())) == 3  # which no other job has


def test_a_process_that_never_comes_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("davit.engine.distributed.JOIN_SECONDS", 0.1)
    with pytest.raises(TimeoutError, match=r"\[1, 2\]"):
        fresh_store(HashStore(), 0, 3)
    with pytest.raises(TimeoutError, match="rank 0"):
        fresh_store(HashStore(), 2, 3)


def test_unused_parameters_are_named_before_ddp_starts() -> None:
    model = create_model("DaViT_nano", num_classes=3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    image = torch.randn(2, 3, 32, 32)
    assert unused_parameters(model, image) == []
    model.spare = torch.nn.Linear(2, 2)
    assert unused_parameters(model, image) == ["spare.weight", "spare.bias"]
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
