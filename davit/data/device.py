"""Batches on their way to the device, and to a picture file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torchvision.utils import save_image

from .loader import Batch


def to_device(batch: Batch, device: torch.device, *, channels_last: bool = False) -> Batch:
    """Images and targets on `device`, asynchronously from pinned memory; positions stay where they are."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return batch._replace(
        images=batch.images.to(device, non_blocking=True, memory_format=layout),
        targets=batch.targets.to(device, non_blocking=True),
    )


def prefetch(
    batches: Iterable[Batch], device: torch.device, *, channels_last: bool = False
) -> Iterator[Batch]:
    """`batches` on `device`; on CUDA the next is copied on its own stream while the last is worked on."""
    if device.type != "cuda":
        for batch in batches:
            yield to_device(batch, device, channels_last=channels_last)
        return
    copying = torch.cuda.Stream(device)
    ready: Batch | None = None
    for batch in batches:
        with torch.cuda.stream(copying):
            following = to_device(batch, device, channels_last=channels_last)
        if ready is not None:
            yield ready
        ready = _hand_over(following, copying, device)
    if ready is not None:
        yield ready


def _hand_over(batch: Batch, copying: torch.cuda.Stream, device: torch.device) -> Batch:
    """Makes the computing stream wait for the copy, and the allocator for the computing stream."""
    computing = torch.cuda.current_stream(device)
    computing.wait_stream(copying)
    for tensor in (batch.images, batch.targets):
        tensor.record_stream(computing)
    return batch


def save_images(batch: Batch, path: str | Path) -> None:
    """The pictures of a batch as one grid, stretched from the batch's minimum to its maximum."""
    save_image(batch.images, str(path), padding=0, normalize=True)
