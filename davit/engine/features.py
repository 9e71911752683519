"""Compute the features of images: what a model hands to its last layer, which names the classes."""

from __future__ import annotations

import inspect
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data import Batch, DataError, EvalLoader, PictureDataset, prefetch
from .distributed import is_out_of_memory
from .precision import Precision, dtype_of
from .progress import Progress

log = logging.getLogger(__name__)

CPU_BATCH = 32  # images at once on a CPU: more gain nothing there and cost memory
WORKERS_FROM = 64  # images: for fewer, starting loader processes takes longer than it saves
_MUCH = 1 << 30  # bytes of features that are worth a line
_WORKING_COPIES = 3  # of the features, that a classifier on top of them makes
_PROGRESS_FROM = 16  # images
NOT_FINITE = "its features are not finite (are the weights damaged?)"


@dataclass(frozen=True)
class Features:
    """The features of the readable images of a data set, in its order.

    Attributes:
        vectors_NC: float32, what ``forward_head(forward_features(x), pre_logits=True)`` gives.
        targets_N: class indices.
        positions_N: of the images in the data set.
        bad_images: file -> reason of the images that are left out.
        seconds: that it took, reading included.
    """

    vectors_NC: NDArray[np.float32]
    targets_N: NDArray[np.int64]
    positions_N: NDArray[np.int64]
    bad_images: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def pooled_features(model: nn.Module, images_BCHW: Tensor) -> Tensor:
    """Compute the features (B, C) of images, one vector each, by timm's protocol.

    Raises:
        ValueError: the model has no such features, or gives a map or tokens instead of one vector an image.
    """
    forward_features, forward_head = (getattr(model, name, None) for name in ("forward_features", "forward_head"))
    if forward_features is None or forward_head is None or not _takes_pre_logits(forward_head):
        raise ValueError(
            f"{type(model).__name__} does not give its features: it lacks forward_features or forward_head with "
            "pre_logits. Take another model of timm's (`model=NAME`)."
        )
    features = forward_head(forward_features(images_BCHW), pre_logits=True)
    shape = tuple(features.shape) if isinstance(features, Tensor) else ()
    if len(shape) > 2 and math.prod(shape[2:]) == 1:
        return features.flatten(1)
    if len(shape) != 2:
        raise ValueError(
            f"{type(model).__name__} gives features of shape {shape or type(features).__name__}, and one vector an "
            "image is needed: choose a pooling, such as `gp=avg`."
        )
    return features


def _takes_pre_logits(forward_head: Any) -> bool:
    return "pre_logits" in inspect.signature(forward_head).parameters


def embed_images(model: nn.Module, images_BCHW: Tensor, precision: Precision) -> Tensor:
    """Compute `pooled_features` as float32 on the CPU; halves of the batch in turn where memory is short."""
    try:
        with torch.inference_mode(), precision.autocast():
            features_BC = pooled_features(model, images_BCHW.to(dtype_of(model)))
    except Exception as error:
        if len(images_BCHW) == 1 or not is_out_of_memory(error):
            raise
    else:
        return features_BC.float().cpu().clone()
    return torch.cat([embed_images(model, half, precision) for half in images_BCHW.chunk(2)])


def extract_features(
    model: nn.Module,
    dataset: PictureDataset,
    *,
    device: torch.device,
    precision: Precision,
    batch_size: int = CPU_BATCH,
    workers: int = 0,
    label: str = "images",
    log_freq: int = 10,
) -> Features:
    """Compute the features of a data set's images; those that cannot be read are left out and listed.

    Args:
        model: in eval mode, on `device`.
        dataset: with the model's transform and decoding.
        batch_size: images that go through the model at once; on a CPU never more than 32.
        workers: loader processes, for more than 64 images.
        label: what is counted, for the progress.
        log_freq: batches between two lines of progress; 0: one at the end.

    Raises:
        ValueError: as `pooled_features`; the features would take more memory than there is.
        DataError: no image can be read.
        LoaderError: a loader process died.
    """
    begun = time.perf_counter()
    batch_size = min(batch_size, CPU_BATCH) if device.type == "cpu" else batch_size
    count = len(dataset)
    loader = EvalLoader(
        dataset, batch_size=batch_size, workers=workers if count > WORKERS_FROM else 0, skip_bad_images=True
    )
    kept = 0
    bad: dict[str, str] = {}
    vectors_NC: NDArray[np.float32] = np.empty((0, 0), np.float32)
    targets_N, positions_N = np.empty(count, np.int64), np.empty(count, np.int64)
    interval = log_freq * batch_size or max(1, count)
    shown = Progress(count, label, images_per_step=1, interval=interval, enabled=count >= _PROGRESS_FROM)
    try:
        with shown:
            for batch in prefetch(_readable(loader, dataset), device):
                features_BC = embed_images(model, batch.images, precision).numpy()
                if not vectors_NC.size:
                    vectors_NC = _room_for(count, features_BC.shape[1])
                finite_B = np.isfinite(features_BC).all(1)
                positions_B, targets_B = batch.indices.numpy(), batch.targets.cpu().numpy()
                bad |= {dataset.source.path(int(position)): NOT_FINITE for position in positions_B[~finite_B]}
                place = slice(kept, kept + int(finite_B.sum()))
                vectors_NC[place] = features_BC[finite_B]
                targets_N[place], positions_N[place] = targets_B[finite_B], positions_B[finite_B]
                kept = place.stop
                shown.update(len(batch.indices))
    finally:
        loader.close()
    bad |= loader.bad_images
    found = Features(vectors_NC[:kept], targets_N[:kept], positions_N[:kept], bad, time.perf_counter() - begun)
    if not kept and count:
        file, reason = next(iter(bad.items()))
        raise DataError(f"none of the {count} {label} gives features; the first, {file}: {reason}")
    return found


def _readable(loader: EvalLoader, dataset: PictureDataset) -> Iterator[Batch]:
    """Hand out the loader's batches, without an error where no image at all can be read."""
    try:
        yield from loader.batches()
    except DataError:
        if any(dataset.source.path(index) not in loader.bad_images for index in range(len(dataset))):
            raise


def _room_for(count: int, width: int) -> NDArray[np.float32]:
    """Take the memory for the features, or say that there is too little before hours are spent on them."""
    needed, free = 4 * count * width, free_memory()
    if needed > _MUCH:
        log.info(
            "The features of %s images, %d numbers each, take %.1f GB of memory, and a classifier on top of them up "
            "to %.1f GB more.",
            *(f"{count:,}", width, needed / 1e9, _WORKING_COPIES * needed / 1e9),
        )
    if free is not None and needed > free:
        raise ValueError(
            f"the features of {count:,} images take {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are "
            "free: take fewer images, or a model with fewer features."
        )
    return np.empty((count, width), np.float32)


def free_memory() -> int | None:
    """Return how many bytes of this machine's memory programs may still take; None where it does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
