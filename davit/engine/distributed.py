"""The processes of a job: who we are, and the few things they tell one another."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among ``size`` of them; `rank` counts over all machines, `local_rank` on this one."""

    rank: int
    local_rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def is_distributed(self) -> bool:
        """Whether a process group exists, if only of one process."""
        return dist.is_available() and dist.is_initialized()

    def barrier(self) -> None:
        if self.is_distributed:
            dist.barrier()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.is_distributed:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: T) -> list[T]:
        """The value of every process, in order of rank, on every process."""
        if not self.is_distributed:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T, src: int = 0) -> T:
        """The value that process ``src`` has."""
        if not self.is_distributed:
            return value
        values: list[Any] = [value]
        dist.broadcast_object_list(values, src=src, device=self.device if self.device.type == "cuda" else None)
        return values[0]

    def broadcast_state(self, state: T, src: int = 0) -> T:
        """As `broadcast`, for a nest of dictionaries, lists and tensors, whose tensors travel one by one."""
        if not self.is_distributed:
            return state
        tensors: list[Tensor] = []
        bare = self.broadcast(_without_tensors(state, tensors), src)
        received: list[Tensor] = []
        for shape, dtype in self.broadcast([(t.shape, t.dtype) for t in tensors], src):
            source = tensors[len(received)] if self.rank == src else torch.empty(shape, dtype=dtype)
            on_device = source.to(self.device).contiguous()
            dist.broadcast(on_device, src)
            received.append(on_device.cpu())
        return _with_tensors(bare, received)


@dataclass(frozen=True)
class _TensorAt:
    index: int


def _without_tensors(value: Any, tensors: list[Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors.append(value)
        return _TensorAt(len(tensors) - 1)
    if isinstance(value, dict):
        return {key: _without_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without_tensors(item, tensors) for item in value)
    return value


def _with_tensors(value: Any, tensors: list[Tensor]) -> Any:
    if isinstance(value, _TensorAt):
        return tensors[value.index]
    if isinstance(value, dict):
        return {key: _with_tensors(item, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_with_tensors(item, tensors) for item in value)
    return value


def init_world(device: str = "auto") -> World:
    """Join the job that torchrun (or torch.distributed.launch) started; alone where none did.

    Args:
        device: 'auto' (CUDA where there is one), 'cpu', 'cuda' or 'cuda:N'.

    Raises:
        ValueError: the device does not exist here.
    """
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    chosen = _device(device, local_rank)
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return World(0, 0, 1, chosen)
    if not dist.is_initialized():
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
            dist.init_process_group("nccl", device_id=chosen)
        else:
            dist.init_process_group("gloo")
    return World(dist.get_rank(), local_rank, dist.get_world_size(), chosen)


def close_world() -> None:
    """Leave the job."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"--device {name!r} is unknown; choose auto, cpu, cuda or cuda:N.") from None
    if device.type == "cuda":
        count = torch.cuda.device_count()
        index = local_rank if device.index is None else device.index
        if index >= count:
            raise ValueError(
                f"--device {name} for local process {local_rank} needs GPU {index}, but {count} GPUs are visible: "
                "start no more processes than GPUs (CUDA_VISIBLE_DEVICES), or pass --device cpu."
            )
        return torch.device("cuda", index)
    if device.type not in ("cpu", "mps", "xpu"):
        raise ValueError(f"--device {name!r} is not supported; choose auto, cpu, cuda or cuda:N.")
    return device
