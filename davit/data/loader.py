"""Load batches of pictures: for training resumable at any step, for evaluation each picture exactly once."""

import atexit
import os
import signal
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from .dataset import PictureDataset, Sample, SeededDataset
from .errors import BadImageError, DataError, LoaderError, require
from .sampler import EpochSampler, require_rank

_JOIN_SECONDS = 5.0


class Batch(NamedTuple):
    """One micro-batch of one process.

    images: (N, 3, H, W) float32, normalised; with S augmentation splits (S*N, 3, H, W), all of split 0
        first, as timm's JSD loss expects, and the targets repeated likewise.
    targets: (N,) or (S*N,) int64 class indices.
    indices: (N,) int64 positions in the data set.
    bad: (file, reason) of the pictures that could not be read.
    """

    images: Tensor
    targets: Tensor
    indices: Tensor
    bad: tuple[tuple[str, str], ...] = ()


class _Failure(NamedTuple):
    """An error about the data on its way from a worker, to be raised without the worker's traceback."""

    error: ValueError


class _Reader(Dataset[Any]):
    """Item = a whole batch: what a worker process runs."""

    def __init__(self, read: Callable[[list[Any]], Batch]) -> None:
        self.read = read

    def __getitem__(self, request: list[Any]) -> Batch | _Failure:
        try:
            return self.read(request)
        except (BadImageError, DataError) as error:
            return _Failure(error)


def _read_samples(samples: SeededDataset, keys: list[Any]) -> Batch:
    return collate([samples[key] for key in keys])


def _read_pictures(dataset: PictureDataset, skip_bad_images: bool, indices: list[int]) -> Batch:
    samples: list[Sample] = []
    bad: list[tuple[str, str]] = []
    for index in indices:
        try:
            samples.append(Sample(*dataset[index], index))
        except BadImageError as error:
            if not skip_bad_images:
                raise
            bad.append((error.file, error.reason))
    return collate(samples)._replace(bad=tuple(bad))


def collate(samples: list[Sample]) -> Batch:
    """Stack samples to a batch, in shared memory when a worker does it; no samples give empty tensors."""
    bad = tuple(dict.fromkeys(entry for sample in samples for entry in sample.bad))
    images = default_collate([sample.image for sample in samples]) if samples else torch.empty(0)
    targets = torch.tensor([sample.target for sample in samples], dtype=torch.int64)
    indices = torch.tensor([sample.position for sample in samples], dtype=torch.int64)
    if images.dim() == 5:  # (N, S, C, H, W) -> (S*N, C, H, W)
        targets = targets.repeat(images.shape[1])
        images = images.transpose(0, 1).flatten(0, 1)
    return Batch(images, targets, indices, bad)


class _Requests(Sampler[Any]):
    """What the DataLoader hands to its workers, replaced for every pass, while the workers stay."""

    def __init__(self) -> None:
        self.current: Iterable[Any] = ()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.current)


class _Loader:
    """A DataLoader over whole batches, whose workers persist and leave signals to the main process."""

    def __init__(self, read: Callable[[list[Any]], Batch], *, workers: int, pin_memory: bool, timeout: float) -> None:
        require(workers >= 0, "workers", workers, "a number of 0 or more")
        self.bad_images: dict[str, str] = {}
        self._requests = _Requests()
        self._pass = 0
        self._owner = os.getpid()
        self._loader: DataLoader[Any] = DataLoader(
            _Reader(read),
            batch_size=None,
            sampler=self._requests,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=pin_memory and torch.cuda.is_available(),
            timeout=timeout if workers else 0,
            worker_init_fn=_start_worker,
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # its own: the default would draw from the training's
        )
        _open_loaders.add(self)

    def __del__(self) -> None:
        if hasattr(self, "_loader"):  # else __init__ refused its arguments
            self.close()

    def close(self) -> None:
        """End the workers, killing those that do not end by themselves. A later pass starts new ones."""
        if os.getpid() != self._owner:
            return  # a copy that a fork took along; the workers are its parent's
        iterator: Any = self._loader._iterator  # None without workers
        self._loader._iterator = None
        if iterator is None:
            return
        iterator._shutdown_workers()
        for worker in iterator._workers:
            # Workers ignore SIGTERM, which is all that DataLoader sends to one that is stuck.
            if worker.is_alive():
                worker.kill()
            worker.join(_JOIN_SECONDS)

    def _stream(self, requests: Iterable[Any]) -> Iterator[Batch]:
        self._pass += 1
        this_pass = self._pass
        self._requests.current = requests
        try:
            with _signals_held():
                batches = iter(self._loader)
            for batch in batches:
                if isinstance(batch, _Failure):
                    raise batch.error
                for file, reason in batch.bad:
                    self.bad_images.setdefault(file, reason)
                yield batch
                if this_pass != self._pass:
                    raise RuntimeError("this pass over the data ended when a later one was started")
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error) and "DataLoader timed out" not in str(error):
                raise
            self.close()
            raise LoaderError(
                f"a data worker died or hung ({str(error).strip()}). Most often memory ran out: use fewer workers or "
                "smaller batches, or enlarge /dev/shm; `workers=0` reads without workers and shows other causes"
            ) from error


class TrainLoader(_Loader):
    """Load training micro-batches whose content depends on (seed, epoch, step) and on nothing else.

    `sampler` says which pictures each of them has, and how the ranks share a step of `global_batch` pictures.
    `bad_images` (file -> reason) collects what `skip_bad_images` replaced on this rank; each file once. `timeout` is
    in seconds, 0 waits forever.
    """

    def __init__(
        self,
        dataset: PictureDataset,
        sampler: EpochSampler,
        *,
        workers: int = 0,
        pin_memory: bool = False,
        skip_bad_images: bool = False,
        timeout: float = 0,
    ) -> None:
        self.sampler = sampler
        self.steps_per_epoch = sampler.steps_per_epoch
        self.global_batch = sampler.global_batch
        samples = SeededDataset(dataset, sampler.seed, skip_bad_images=skip_bad_images)
        super().__init__(partial(_read_samples, samples), workers=workers, pin_memory=pin_memory, timeout=timeout)

    def batches(self, epoch: int, start_step: int = 0) -> Iterator[Batch]:
        """Yield this rank's micro-batches from optimizer step `start_step` on; earlier ones are not read at all."""
        return self._stream(self.sampler.micro_batches(epoch, start_step))


class EvalLoader(_Loader):
    """Load every picture exactly once over all ranks: rank r has the positions r, r + world_size, ...; no padding.

    Ranks may differ by one picture, and have none; `num_batches` is of this rank. With `skip_bad_images` unreadable
    pictures are left out and stand in `bad_images` (file -> reason).
    """

    def __init__(
        self,
        dataset: PictureDataset,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        pin_memory: bool = False,
        skip_bad_images: bool = False,
        timeout: float = 0,
    ) -> None:
        require(batch_size >= 1, "batch_size", batch_size, "a number of 1 or more")
        require_rank(rank, world_size)
        self.num_samples = len(dataset)
        self.batch_size = batch_size
        self._mine = range(rank, len(dataset), world_size)
        self.num_batches = -(-len(self._mine) // batch_size)
        self._dataset = dataset
        self._skip_bad_images = skip_bad_images
        read = partial(_read_pictures, dataset, skip_bad_images)
        super().__init__(read, workers=workers, pin_memory=pin_memory, timeout=timeout)

    def batches(self) -> Iterator[Batch]:
        """Yield this rank's pictures in order. Raises `DataError` if the whole data set has no readable picture."""
        step = self.batch_size
        seen = 0
        for batch in self._stream(list(self._mine[i : i + step]) for i in range(0, len(self._mine), step)):
            seen += len(batch.indices)
            if len(batch.indices):
                yield batch
        if self._skip_bad_images and self.num_samples and not seen:
            # This rank's share may be bad or empty while the data set is not: look for one good picture.
            SeededDataset(self._dataset, seed=0, skip_bad_images=True)[0, 0, 0]


_open_loaders: weakref.WeakSet[_Loader] = weakref.WeakSet()


@atexit.register
def _close_loaders() -> None:
    # Before multiprocessing's own exit, which would wait forever for a stuck worker that ignores SIGTERM.
    for loader in list(_open_loaders):
        loader.close()


def _start_worker(_: int) -> None:
    """Leave it to the main process when to stop; Ctrl-C and a scheduler's SIGTERM reach the workers as well."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back while workers start, until `_start_worker` has made them ignore both."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _as_it_is(batch: Any) -> Any:
    return batch
