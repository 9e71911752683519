"""Load batches of images: for training resumable at any step, for evaluation each image exactly once."""

import atexit
import errno
import os
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.queues import Queue
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from .dataset import PictureDataset, Sample, SeededDataset
from .errors import BadImageError, DataError, LoaderError, require
from .sampler import EpochSampler, require_rank

_JOIN_SECONDS = 5.0
_DYING_SECONDS = 1.0
_SHARED_MEMORY = "enlarge /dev/shm (with Docker, --shm-size), or `workers=0` reads without workers"

# in messages of torch and multiprocessing about workers that are dead or hang
_SIGNS = ("DataLoader worker (pid", "DataLoader timed out", "items of ancdata", "died since the last batch")


class Batch(NamedTuple):
    """One micro-batch of one process.

    images: (N, 3, H, W) float32, normalised; with S augmentation splits (S*N, 3, H, W), all of split 0
        first, as timm's JSD loss expects, and the targets repeated likewise.
    targets: (N,) or (S*N,) int64 class indices; (N, K) or (S*N, K) float32 of 0 and 1 for several labels per image.
    indices: (N,) int64 positions in the data set.
    bad: (file, reason) of the images that could not be read.
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
            batch = self.read(request)
        except (BadImageError, DataError) as error:
            return _Failure(error)
        if get_worker_info() is not None:
            for part in batch:  # here, where a want of shared memory is an error that the main process gets
                if isinstance(part, Tensor):
                    part.share_memory_()
        return batch


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
    if samples and isinstance(samples[0].target, np.ndarray):
        targets = torch.from_numpy(np.stack([sample.target for sample in samples]))
    else:
        targets = torch.tensor([sample.target for sample in samples], dtype=torch.int64)
    indices = torch.tensor([sample.position for sample in samples], dtype=torch.int64)
    if images.dim() == 5:  # (N, S, C, H, W) -> (S*N, C, H, W)
        targets = targets.repeat(images.shape[1], *(1,) * (targets.dim() - 1))
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

    @property
    def waiting(self) -> int:
        """Return how many batches workers hold ready."""
        return self._loader.num_workers * (self._loader.prefetch_factor or 0)

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
        batches = self._start()
        while (batch := self._fetch(batches)) is not None:
            if isinstance(batch, _Failure):
                raise batch.error
            for file, reason in batch.bad:
                self.bad_images.setdefault(file, reason)
            yield batch
            if this_pass != self._pass:
                raise RuntimeError("this pass over the data ended when a later one was started")

    def _start(self) -> Iterator[Any]:
        """Begin a pass, and start the workers if there are none yet."""
        if self._loader._iterator is not None:
            with self._watched():  # each worker is told, and answers
                return iter(self._loader)
        try:
            with _signals_held(), _deaths.noted():
                return iter(self._loader)
        except OSError as error:
            if not self._loader.num_workers:
                raise
            _end_half_made(error)
            raise LoaderError(f"the data workers cannot be started ({error.strerror}): {_remedy(error)}") from error

    def _fetch(self, batches: Iterator[Any]) -> Any:
        """Wait for the next batch; None at the end."""
        if self._loader._iterator is None:  # without workers
            return next(batches, None)
        with self._watched():
            return next(batches, None)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Make one error of whatever torch and multiprocessing raise in the body because a worker is dead or hangs."""
        workers = list(self._loader._iterator._workers)  # type: ignore[union-attr]
        try:
            with _deaths.raised():
                if not all(worker.is_alive() for worker in workers):
                    raise RuntimeError("it died since the last batch")
                yield
        except Exception as error:
            lost = _lost(error, [worker.sentinel for worker in workers])
            if lost is None:
                raise
            self.close()
            raise LoaderError(lost) from error


class TrainLoader(_Loader):
    """Load training micro-batches whose content depends on (seed, epoch, step) and on nothing else.

    `sampler` says which images each of them has, and how the ranks share a step of `global_batch` images.
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
    """Load every image exactly once over all ranks: rank r has the positions r, r + world_size, ...; no padding.

    Ranks may differ by one image, and have none; `num_batches` is of this rank. With `skip_bad_images` unreadable
    images are left out and stand in `bad_images` (file -> reason).
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
        require_rank(rank, world_size)
        self.num_samples = len(dataset)
        self.num_labels = dataset.width if dataset.label_sets is not None else 0  # of a row; 0: one class per image
        self._mine = range(rank, len(dataset), world_size)
        self.split(batch_size)
        self.dataset = dataset
        self._skip_bad_images = skip_bad_images
        read = partial(_read_pictures, dataset, skip_bad_images)
        super().__init__(read, workers=workers, pin_memory=pin_memory, timeout=timeout)

    def split(self, batch_size: int) -> None:
        """Read batches of another size from the next pass on."""
        require(batch_size >= 1, "batch_size", batch_size, "a number of 1 or more")
        self.batch_size = batch_size
        self.num_batches = -(-len(self._mine) // batch_size)

    def batches(self) -> Iterator[Batch]:
        """Yield this rank's images in order. Raises `DataError` if the whole data set has no readable image."""
        step = self.batch_size
        seen = 0
        for batch in self._stream(list(self._mine[i : i + step]) for i in range(0, len(self._mine), step)):
            seen += len(batch.indices)
            if len(batch.indices):
                yield batch
        if self._skip_bad_images and self.num_samples and not seen:
            # This rank's share may be bad or empty while the data set is not: look for one good image.
            SeededDataset(self.dataset, seed=0, skip_bad_images=True)[0, 0, 0]


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
    Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]


def _end_worker(error: Exception, _: object) -> None:
    """End a worker that cannot hand over a batch: multiprocessing would drop it, and the run wait without end."""
    sys.stderr.write(f"a data worker cannot hand over a batch: {error}\n")
    sys.stderr.flush()
    os._exit(1)


@contextmanager
def _signals_held() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back while workers start, until `_start_worker` has made them ignore both."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Deaths:
    """Let the death of a worker raise an error only where batches are waited for.

    torch raises it from a handler of SIGCHLD: anywhere in the main process, also in the midst of writing a state. What
    is missed elsewhere is found when the next batch is asked for.
    """

    def __init__(self) -> None:
        self._are_raised = False
        self._before: Any = None
        self._torchs: Any = None

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Take the place of the handler that torch installs meanwhile, once a process."""
        before = signal.getsignal(signal.SIGCHLD)
        yield
        after = signal.getsignal(signal.SIGCHLD)
        is_torchs = getattr(after, "__module__", "").startswith("torch.utils.data")
        if is_torchs and threading.current_thread() is threading.main_thread():
            self._before, self._torchs = before, after
            signal.signal(signal.SIGCHLD, self._handle)

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Raise an error in the body as soon as a worker dies, also where it waits for what a dead one began."""
        self._are_raised = True
        try:
            yield
        finally:
            self._are_raised = False

    def _handle(self, number: int, frame: Any) -> None:
        if self._are_raised:
            self._torchs(number, frame)
        elif callable(self._before):
            self._before(number, frame)


_deaths = _Deaths()


def _lost(error: Exception, sentinels: list[int]) -> str | None:
    """Say what became of the workers, or return None for an error that is not about them."""
    text = str(error).strip()
    if "shared memory" in text or os.strerror(errno.ENOSPC) in text:
        return f"data workers hand over batches in shared memory, and there is too little of it: {_SHARED_MEMORY}"
    if "in DataLoader worker process" in text:  # raised there, by a worker that continues
        return None
    is_broken = isinstance(error, EOFError | ConnectionError) or any(sign in text for sign in _SIGNS)
    # One that is killed closes its connections a moment before it is dead.
    if is_broken or wait(sentinels, _DYING_SECONDS):
        return (
            f"a data worker died or hung ({text or type(error).__name__}). Most often memory ran out: use fewer "
            "workers or smaller batches, or enlarge /dev/shm; `workers=0` reads without workers and shows other causes"
        )
    return None


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _SHARED_MEMORY
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "raise the limit of open files (ulimit -n), or `workers=0` reads without workers"
    return "use fewer, or `workers=0`, which reads without workers"


def _end_half_made(error: OSError) -> None:
    """End the workers that were started before the error; torch cannot end what it has not finished making."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        half_made: Any = frame.f_locals.get("self")
        if hasattr(type(half_made), "_shutdown_workers"):
            half_made._workers = getattr(half_made, "_workers", [])
            half_made._shutdown = True
            for worker in half_made._workers:
                worker.kill()
                worker.join(_JOIN_SECONDS)


def _as_it_is(batch: Any) -> Any:
    return batch
