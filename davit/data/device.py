"""Move batches to the device, and draw one as an image file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torchvision.utils import save_image

from .loader import Batch


def to_device(
    batch: Batch, device: torch.device, *, channels_last: bool = False, dtype: torch.dtype | None = None
) -> Batch:
    """Copy images and targets to `device`, asynchronously from pinned memory; positions stay where they are.

    Args:
        dtype: of the images; None leaves it.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = batch.images.to(device, non_blocking=True, memory_format=layout)
    return batch._replace(
        images=images if dtype is None else images.to(dtype),
        targets=batch.targets.to(device, non_blocking=True),
    )


def prefetch(
    batches: Iterable[Batch], device: torch.device, *, channels_last: bool = False, dtype: torch.dtype | None = None
) -> Iterator[Batch]:
    """Yield `batches` as `to_device` gives them; on CUDA the next is copied while the last is worked on.

    That happens on a stream of its own.
    """
    if device.type != "cuda":
        yield from (to_device(batch, device, channels_last=channels_last, dtype=dtype) for batch in batches)
        return
    copying = torch.cuda.Stream(device)
    ready: Batch | None = None
    for batch in batches:
        with torch.cuda.stream(copying):
            following = to_device(batch, device, channels_last=channels_last, dtype=dtype)
        if ready is not None:
            yield ready
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(copying)
        for tensor in (following.images, following.targets):
            tensor.record_stream(computing)  # so that the allocator waits for it too
        ready = following
    if ready is not None:
        yield ready


def save_images(batch: Batch, path: str | Path) -> None:
    """Save the images of a batch as one grid, stretched from the batch's minimum to its maximum.

    Of more than three bands the first three are drawn, of two the first.
    """
    save_image(
        batch.images[:, :3] if batch.images.shape[1] >= 3 else batch.images[:, :1],
        str(path),
        padding=0,
        normalize=True,
    )
