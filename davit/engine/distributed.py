"""Join the processes of a job, and let them tell one another a few things."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ..commands import exit_status

T = TypeVar("T")

JOIN_SECONDS = 1800.0  # as long as torch waits for a process group
_POLL_SECONDS = 0.05
_STOPPED = "stopped"  # a process that was told to stop reports this to the others


@dataclass(frozen=True)
class World:
    """This process among ``size`` of them; `rank` counts over all machines, `local_rank` on this one."""

    rank: int
    local_rank: int
    size: int
    device: torch.device
    store: dist.Store | None = None
    """The job's memory, which outlives a restart by torchrun; None for a process alone."""

    def remember(self, key: str, value: str) -> None:
        """Keep a value for this job's processes after a restart by torchrun."""
        if self.store is not None:
            self.store.set(key, value)

    def recall(self, key: str) -> str | None:
        """Return what was remembered before a restart, or None."""
        return (_read(self.store, key) or None) if self.store is not None else None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether a process group exists, if only of one process."""
        return dist.is_available() and dist.is_initialized()

    def on_main(self, work: Callable[[], T]) -> T | None:
        """Do something on the main process alone, and return its result there, None elsewhere.

        If it fails there, every process fails with the same exit status.
        """
        with in_step(self):
            return work() if self.is_main else None

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.is_distributed:
            dist.barrier()

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.is_distributed:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: T) -> list[T]:
        """Give every process the values of all, in order of rank."""
        if not self.is_distributed:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def everywhere(self, answer: bool) -> bool:
        """Return whether the answer is yes in every process."""
        return all(self.gather(answer))

    def broadcast(self, value: T) -> T:
        """Give every process the value that the main one has."""
        if not self.is_distributed:
            return value
        values: list[Any] = [value]
        dist.broadcast_object_list(values, src=0, device=self.device if self.device.type == "cuda" else None)
        return values[0]

    def broadcast_state(self, state: T) -> T:
        """Broadcast a nest of dictionaries, lists and tensors, the tensors one by one.

        No process holds a state twice at any moment: those of a large model have tens of GB.
        """
        if not self.is_distributed:
            return state

        def travel(tensor: Tensor) -> Tensor:
            source = torch.empty_like(tensor, device="cpu") if tensor.is_meta else tensor
            on_device = source.to(self.device).contiguous()
            dist.broadcast(on_device, 0)
            return on_device.cpu()

        shapes = self.broadcast(
            tree_map_only(Tensor, lambda tensor: tensor.to("meta"), state if self.is_main else None)
        )
        return tree_map_only(Tensor, travel, state if self.is_main else shapes)


class PeerError(ValueError):
    """Another process failed, as the message repeats, with an exit status that this one takes over.

    `out_of_memory`: from want of memory. A `ValueError`, as there is nothing to trace in this process.
    """

    def __init__(self, message: str, *, out_of_memory: bool, status: int) -> None:
        super().__init__(message)
        self.out_of_memory = out_of_memory
        self.exit_status = status


class StoppedError(Exception):
    """The work was told to stop; raised on every process."""


class StarvedError(MemoryError):
    """Memory did not suffice for a step, here or in another process; raised on every process, nothing was changed."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory, the accelerator's or the machine's, did not suffice."""
    if isinstance(error, PeerError):
        return error.out_of_memory
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    on_cpu = "defaultcpuallocator" in text and ("not enough memory" in text or "can't allocate" in text)
    on_cpu = on_cpu or "bad_alloc" in text  # of libraries below PyTorch
    on_cuda = "cuda error: out of memory" in text or "cublas_status_alloc_failed" in text
    return isinstance(error, RuntimeError) and (on_cpu or on_cuda)


class DataParallel(nn.parallel.DistributedDataParallel):
    """Average gradients over the processes, also where one of them fails in the midst of its backward pass.

    The others would wait for ever for the gradients of the one that failed. So each counts what it has averaged of a
    step, and one that fails takes part in the rest with zeros (`finish`). The gradients are worthless then; all
    processes have to tell one another, and to wrap their models again.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        ids = [device.index] if device.type == "cuda" else None
        super().__init__(module, device_ids=ids, gradient_as_bucket_view=True)
        self.averaged = _Averaged()
        # torch compares annotations by type, and ours are text
        self.register_comm_hook(self.averaged, lambda averaged, bucket: _average(averaged, bucket))

    def finish(self) -> None:
        """Take part in what the others average of this step and this process has not."""
        buckets = self.reducer._get_zeros_like_grad_buckets()  # as DistributedDataParallel.join does
        for work in [self.reducer._run_comm_hook(bucket) for bucket in buckets[self.averaged.count :]]:
            work.wait()


class _Averaged:
    """Count the buckets of gradients of a step whose averaging has begun."""

    count = 0


def _average(averaged: _Averaged, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Average a bucket to the same bits as without a hook: by the factor first, then the sum."""
    averaged.count += 1
    gradients = bucket.buffer().mul_(1 / dist.get_world_size())
    work: Any = dist.all_reduce(gradients, async_op=True)
    averaging: torch.futures.Future[Tensor] = work.get_future().then(lambda future: future.value()[0])
    return averaging


@contextmanager
def in_step(world: World) -> Iterator[None]:
    """Let every rank fail where the body, which must not communicate, fails on one; none is left waiting.

    Raises:
        PeerError: the body succeeded here, or was stopped, but failed elsewhere.
        StoppedError: it was stopped, here or elsewhere.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    if world.size > 1:
        mine: str | tuple[str, bool, int] | None = None
        if isinstance(failure, StoppedError):
            mine = _STOPPED
        elif failure is not None:
            status = exit_status(failure)
            mine = f"{type(failure).__name__}: {failure}", is_out_of_memory(failure), 1 if status is None else status
        reports = world.gather(mine)
        failed = [(rank, report) for rank, report in enumerate(reports) if isinstance(report, tuple)]
        if failed and not isinstance(mine, tuple):
            rank, (text, _, status) = failed[0]
            # retrying with smaller batches helps only if nothing else went wrong
            starved = all(report[1] for _, report in failed)
            raise PeerError(f"process {rank} failed with {text}", out_of_memory=starved, status=status)
        if failure is None and _STOPPED in reports:
            raise StoppedError
    if failure is not None:
        raise failure


def init_world(device: str = "auto") -> World:
    """Join the job that torchrun (or torch.distributed.launch) started; alone where none did.

    Args:
        device: 'auto' (CUDA where there is one), 'cpu', 'cuda' or 'cuda:N'.

    Raises:
        ValueError: the device does not exist here.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    chosen = device_named(device, local_rank)
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return World(0, 0, 1, chosen)
    lasting: dist.Store | None = None
    if not dist.is_initialized():
        lasting, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=JOIN_SECONDS)))
        store = fresh_store(lasting, rank, size)
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
            dist.init_process_group("nccl", store=store, rank=rank, world_size=size, device_id=chosen)
        else:
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    return World(dist.get_rank(), local_rank, dist.get_world_size(), chosen, lasting)


def fresh_store(store: dist.Store, rank: int, size: int) -> dist.Store:
    """Agree on a part of the job's store in which nothing is left from before a restart.

    torchrun keeps one store over all restarts, so a process that is brought back may read the address of a
    dead one and wait for it (pytorch issue 135712); its count of restarts differs between machines. So rank 0
    draws a fresh prefix, and sends it to each rank that has posted a token for this attempt.

    Raises:
        TimeoutError: not all processes came within `JOIN_SECONDS`; rank 0 names those that are missing.
    """
    mine = uuid.uuid4().hex
    deadline = time.monotonic() + JOIN_SECONDS
    if rank > 0:
        store.set(f"davit/ask/{rank}", mine)
        while not (answer := _read(store, f"davit/answer/{rank}")).startswith(mine):
            _wait(deadline, "rank 0 did not answer: it has not started, or is on a network that is not reached")
        name = answer.removeprefix(mine)
        store.set(f"davit/joined/{name}/{rank}", "1")
        return dist.PrefixStore(name, store)
    missing, answered = set(range(1, size)), dict.fromkeys(range(1, size), "")
    while missing:
        for other in sorted(missing):
            token = _read(store, f"davit/ask/{other}")
            if token != answered[other]:
                store.set(f"davit/answer/{other}", token + mine)
                answered[other] = token
            elif token and store.check([f"davit/joined/{mine}/{other}"]):
                missing.remove(other)
        if missing:
            _wait(deadline, f"ranks {sorted(missing)} did not join")
    return dist.PrefixStore(mine, store)


def _read(store: dist.Store, key: str) -> str:
    return store.get(key).decode() if store.check([key]) else ""


def _wait(deadline: float, problem: str) -> None:
    if time.monotonic() > deadline:
        raise TimeoutError(f"the job did not come together in {JOIN_SECONDS:.0f} s: {problem}.")
    time.sleep(_POLL_SECONDS)


def close_world() -> None:
    """Leave the job."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def device_named(name: str, local_rank: int = 0) -> torch.device:
    """Find the device of a process: 'auto' is CUDA where there is one, 'cuda' the GPU of this local rank.

    Raises:
        ValueError: the name is unknown, or the device does not exist here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"`device={name}` is unknown; choose auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        index = local_rank if device.index is None else device.index
        if index >= count:
            raise ValueError(
                f"`device={name}` for local process {local_rank} needs GPU {index}, but {count} GPUs are visible: "
                "start no more processes than GPUs (CUDA_VISIBLE_DEVICES), or take `device=cpu`."
            )
        return torch.device("cuda", index)
    if device.type not in ("cpu", "mps", "xpu"):
        raise ValueError(f"`device={name}` is not supported; choose auto, cpu, cuda or cuda:N.")
    return device
