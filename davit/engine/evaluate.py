"""The one evaluation, of train.py and validate.py alike: each picture once, on any number of processes."""

from __future__ import annotations

import logging
import math
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..data import Batch, DataError, EvalLoader, prefetch
from .distributed import World
from .labels import Labels

log = logging.getLogger(__name__)

_Z95 = 1.959963984540054  # of the normal distribution: 95 % lie within
_MEGABYTE = 1e6
_STOPPED = "stopped"  # what a process tells the others that was told to stop


class MiscountError(RuntimeError):
    """A picture was evaluated twice or not at all: an error of this program, so its figures are not given."""


class PeerError(ValueError):
    """Another process failed, as the message repeats; `out_of_memory`: from want of memory.

    A `ValueError`, as there is nothing to trace here.
    """

    def __init__(self, message: str, *, out_of_memory: bool = False) -> None:
        super().__init__(message)
        self.out_of_memory = out_of_memory


class StoppedError(Exception):
    """The evaluation was told to stop; raised on every process."""


@dataclass(frozen=True)
class Evaluation:
    """What one pass over a data set gave, over all processes.

    Attributes:
        count: pictures that went through the model.
        scored: those of them that have a label (fewer than `count` with ReaL labels only).
        correct1, correct5: scored pictures with a right class as the first, and among the first five.
        loss: mean cross-entropy with the data set's classes; NaN or infinite where a logit is.
        nonfinite: pictures with a NaN or infinite logit, which count as wrong.
        skipped: pictures that could not be read.
        images_per_second: of all processes together, reading included.
        data_wait: share of the time spent waiting for pictures, 0 to 1, mean of the processes.
        peak_memory_mb: the largest of any process in 10^6 bytes: on CUDA of tensors since the peak was last
            reset, on a CPU of the whole process since its start.
        bad_images: file -> reason of the pictures skipped.
    """

    count: int
    scored: int
    correct1: int
    correct5: int
    loss: float
    nonfinite: int
    skipped: int
    images_per_second: float
    data_wait: float
    peak_memory_mb: float
    bad_images: Mapping[str, str] = field(default_factory=dict)

    @property
    def top1(self) -> float:
        """Accuracy in percent."""
        return 100 * self.correct1 / self.scored if self.scored else math.nan

    @property
    def top5(self) -> float:
        """Percent with a right class among the first five, or among all where there are fewer."""
        return 100 * self.correct5 / self.scored if self.scored else math.nan

    @property
    def top1_interval(self) -> tuple[float, float]:
        """The 95 % interval of top1 in percent (Wilson's score interval)."""
        return wilson_interval(self.correct1, self.scored)


def wilson_interval(correct: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, in percent (E. B. Wilson, JASA 22, 1927)."""
    if count == 0:
        return 0.0, 100.0
    share, z2 = correct / count, _Z95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    low = 0.0 if correct == 0 else 100 * (centre - half)
    return low, 100.0 if correct == count else 100 * (centre + half)


def evaluate(
    model: nn.Module,
    loader: EvalLoader,
    *,
    world: World,
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext,
    labels: Labels | None = None,
    channels_last: bool = False,
    limit_batches: int | None = None,
    log_freq: int = 0,
    stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Accuracy and loss of `model` (on `world.device`) over the loader's data set, the same on every rank.

    The model runs in eval mode; each of its modules gets its own mode back, and the random states are as
    before. `limit_batches` ends after so many batches of each rank (then nothing is checked against the data
    set). A line is logged every `log_freq` batches. `loader.bad_images` is that of this pass afterwards.
    `stop` is asked before each batch whether to end, by `StoppedError` on every rank.

    Raises:
        BadImageError, DataError, LoaderError: as the loader does. An error on one rank stops all: the others
            raise `PeerError`.
        MiscountError: not every picture was seen exactly once.
    """
    if isinstance(model, DistributedDataParallel):
        model = model.module  # its forward is a collective, and ranks may differ by a batch
    loader.bad_images.clear()
    totals = _Totals(loader.num_samples, world.device)
    batches = islice(loader.batches(), limit_batches)
    step = _step(model, labels or Labels(), autocast, totals)
    cuda = [world.device] if world.device.type == "cuda" else []
    with in_step(world), eval_mode(model), torch.random.fork_rng(devices=cuda), torch.inference_mode():
        limit = getattr(model, "num_classes", None) if labels is None else None
        checked = _with_known_classes(batches, limit)
        started = time.perf_counter()
        pace = _Pace(world.device)
        stream = prefetch(checked, world.device, channels_last=channels_last)
        for number, batch in enumerate(_timed(stream, totals), start=1):
            if stop():
                raise StoppedError
            step(batch)
            pace.keep()
            if log_freq and world.is_main and (number % log_freq == 0 or number == loader.num_batches):
                rate = world.size * totals.count / (time.perf_counter() - started)
                log.info("evaluated %d/%d batches, %.1f images/s", number, loader.num_batches, rate)
        pace.finish()
        totals.seconds = time.perf_counter() - started
    return _reduce(totals, loader, world, whole=limit_batches is None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory, the accelerator's or the machine's, did not suffice."""
    if isinstance(error, PeerError):
        return error.out_of_memory
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    on_cpu = "defaultcpuallocator" in text and ("not enough memory" in text or "can't allocate" in text)
    on_cuda = "cuda error: out of memory" in text or "cublas_status_alloc_failed" in text
    return isinstance(error, RuntimeError) and (on_cpu or on_cuda)


@contextmanager
def in_step(world: World) -> Iterator[None]:
    """If the body, which must not communicate, fails on one rank, it fails on all, and none is left waiting.

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
        mine: str | tuple[str, bool] | None = None
        if isinstance(failure, StoppedError):
            mine = _STOPPED
        elif failure is not None:
            mine = f"{type(failure).__name__}: {failure}", is_out_of_memory(failure)
        told = world.gather(mine)
        failed = [(rank, report) for rank, report in enumerate(told) if isinstance(report, tuple)]
        if failed and not isinstance(mine, tuple):
            rank, (text, _) = failed[0]
            # retrying with smaller batches helps only if nothing else went wrong
            starved = all(out_of_memory for _, (_, out_of_memory) in failed)
            raise PeerError(f"process {rank} failed with {text}", out_of_memory=starved)
        if failure is None and _STOPPED in told:
            raise StoppedError
    if failure is not None:
        raise failure


class _Totals:
    """The sums of one rank.

    `counts` (correct1, correct5, scored, nonfinite) and `loss` are on the device, so that no batch is waited for.
    """

    def __init__(self, num_samples: int, device: torch.device) -> None:
        self.counts = torch.zeros(4, dtype=torch.int64, device=device)
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.seen = torch.zeros(num_samples, dtype=torch.int32)
        self.count = 0
        self.waited = 0.0
        self.seconds = 0.0


def _step(
    model: nn.Module,
    labels: Labels,
    autocast: Callable[[], AbstractContextManager[object]],
    totals: _Totals,
) -> Callable[[Batch], None]:
    """The function that evaluates one batch, which is on the device, and adds it to the totals."""
    device = totals.loss.device
    columns = None if labels.columns is None else torch.tensor(labels.columns, device=device)
    column_of: Tensor | None = None
    if labels.column_of is not None:
        column_of = torch.zeros(max(labels.column_of) + 1, dtype=torch.int64, device=device)
        column_of[list(labels.column_of)] = torch.tensor(list(labels.column_of.values()), device=device)

    def step(batch: Batch) -> None:
        with autocast():
            logits_NC = model(batch.images)
        logits_NC = logits_NC.float() if columns is None else logits_NC[:, columns].float()
        target_N = batch.targets if column_of is None else column_of[batch.targets]
        first_NK = logits_NC.topk(min(5, logits_NC.shape[1]), dim=1).indices
        if labels.real is None:
            right_NK, has_label_N = first_NK == target_N[:, None], torch.ones_like(target_N, dtype=torch.bool)
        else:
            classes_NK = first_NK if columns is None else columns[first_NK]
            right_NK, has_label_N = _real_hits(classes_NK, [labels.real[i] for i in batch.indices.tolist()])
        finite_N = logits_NC.isfinite().all(1)
        right_NK = right_NK & finite_N[:, None]  # NaN sorts first, and would make class 0 the answer
        totals.counts += torch.stack(
            [right_NK[:, 0].sum(), right_NK.any(1).sum(), has_label_N.sum(), (~finite_N).sum()]
        )
        totals.loss += F.cross_entropy(logits_NC, target_N, reduction="none").double().sum()
        totals.count += len(batch.indices)
        totals.seen.index_add_(0, batch.indices, torch.ones_like(batch.indices, dtype=torch.int32))

    return step


def _real_hits(classes_NK: Tensor, real: list[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Which of the classes named (N, K) are among a picture's ReaL labels, and which pictures have any."""
    hits = [[one in right for one in row] for row, right in zip(classes_NK.tolist(), real, strict=True)]
    has_label = [bool(right) for right in real]
    device = classes_NK.device
    return torch.tensor(hits, device=device), torch.tensor(has_label, device=device)


def _reduce(totals: _Totals, loader: EvalLoader, world: World, whole: bool) -> Evaluation:
    """One `Evaluation` of all ranks' totals, and the check that they are of the whole data set."""
    counts = world.sum(totals.counts).tolist()
    loss = world.sum(totals.loss).item()
    seen = world.sum(totals.seen.to(world.device))
    count, twice = int(seen.sum()), int((seen > 1).sum())
    own = (totals.seconds, totals.waited, peak_memory_mb(world.device), dict(loader.bad_images))
    seconds, waited, peaks, bad = zip(*world.gather(own), strict=True)
    bad_images = {file: reason for files in bad for file, reason in sorted(files.items())}
    skipped = sum(len(files) for files in bad)
    if twice or (whole and count + skipped != loader.num_samples):
        raise MiscountError(
            f"internal error: of {loader.num_samples} pictures {count} were evaluated ({twice} of them more "
            f"than once) and {skipped} skipped; the figures are not to be trusted"
        )
    return Evaluation(
        count=count,
        correct1=counts[0],
        correct5=counts[1],
        scored=counts[2],
        nonfinite=counts[3],
        loss=loss / count if count else math.nan,
        skipped=skipped,
        images_per_second=count / max(seconds) if max(seconds) else 0.0,
        data_wait=sum(waited) / sum(seconds) if sum(seconds) else 0.0,
        peak_memory_mb=max(peaks),
        bad_images=bad_images,
    )


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode; afterwards each of its modules has its own mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:  # not model.train(): parts of it may be frozen in eval mode
            module.training = True


def _with_known_classes(batches: Iterable[Batch], num_classes: int | None) -> Iterator[Batch]:
    """The batches, still on the CPU; on CUDA a class index out of range would break the whole process."""
    for batch in batches:
        if num_classes is not None and int(batch.targets.max()) >= num_classes:
            raise DataError(
                f"the data has class {int(batch.targets.max())} and the model the classes 0 to "
                f"{num_classes - 1}: pass --num-classes, or --class-map"
            )
        yield batch


def _timed(batches: Iterator[Batch], totals: _Totals) -> Iterator[Batch]:
    """The batches, with the time spent waiting for each added to the totals."""
    while True:
        asked = time.perf_counter()
        batch = next(batches, None)
        totals.waited += time.perf_counter() - asked
        if batch is None:
            return
        yield batch


class _Pace:
    """Keeps the CPU at most one batch ahead of a CUDA device.

    Further ahead it would hold the memory of all batches launched, and time spent waiting for the device
    would be taken for time spent waiting for pictures.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self._last: torch.cuda.Event | None = None

    def keep(self) -> None:
        if self._device is None:
            return
        launched = torch.cuda.Event()
        launched.record(torch.cuda.current_stream(self._device))
        if self._last is not None:
            self._last.synchronize()
        self._last = launched

    def finish(self) -> None:
        if self._device is not None:
            torch.cuda.synchronize(self._device)


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory in 10^6 bytes: of tensors on CUDA, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _MEGABYTE
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _MEGABYTE
