"""Measure accuracy and loss of a model on a data set, each image once, on any number of processes."""

from __future__ import annotations

import logging
import math
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import Batch, DataError, EvalLoader, prefetch
from .distributed import StoppedError, World, in_step
from .labels import Labels
from .multilabel import AnswerRecords, Measures, measure
from .precision import dtype_of
from .records import Records, wilson
from .thresholds import DEFAULT

log = logging.getLogger(__name__)


class MiscountError(RuntimeError):
    """An image was evaluated twice or not at all: an error of this program, so its figures are not given."""


@dataclass(frozen=True)
class Evaluation:
    """The figures of one pass over a data set, over all processes.

    Attributes:
        count: images that went through the model.
        scored: those of them that have a label (fewer than `count` with ReaL labels only).
        correct1, correct5: scored images with a right class as the first, and among the first five.
        loss: mean cross-entropy with the data set's classes; NaN or infinite where a logit is.
        nonfinite: images with a NaN or infinite logit, which count as wrong.
        skipped: images that could not be read.
        correct1_of_all: as `correct1` if all of the model's classes compete; None where they do anyway.
        images_per_second: of all processes together, reading included.
        data_wait: share of the time spent waiting for images, 0 to 1, mean of the processes.
        peak_memory_mb: the largest of any process, as by `peak_memory_mb`.
        bad_images: file -> reason of the images skipped.
        measures: of images with several labels; else None. Then the loss is the mean binary cross-entropy, and an
            image is right where the first class is one of its labels.
        has_loss: False where none is computed in an evaluation, as of detectors.
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
    correct1_of_all: int | None = None
    measures: Measures | None = None
    has_loss: bool = True

    def figures(self) -> dict[str, float]:
        """Return the loss and what else a training judges an epoch by, by name; accuracies in percent."""
        if self.measures is not None:
            return {**({"loss": self.loss} if self.has_loss else {}), **self.measures.percent()}
        return {"loss": self.loss, "top1": self.top1, "top5": self.top5}

    @property
    def top1(self) -> float:
        """Accuracy in percent."""
        return 100 * self.correct1 / self.scored if self.scored else math.nan

    @property
    def top5(self) -> float:
        """Percent with a right class among the first five, or among all where there are fewer."""
        return 100 * self.correct5 / self.scored if self.scored else math.nan

    @property
    def top1_of_all(self) -> float:
        """Accuracy in percent if all of the model's classes compete."""
        right = self.correct1 if self.correct1_of_all is None else self.correct1_of_all
        return 100 * right / self.scored if self.scored else math.nan

    @property
    def top1_interval(self) -> tuple[float, float]:
        """The 95 % interval of top1 in percent: Wilson's score interval (JASA 22, 1927)."""
        low, high = wilson(self.correct1, self.scored)
        return 100 * low, 100 * high


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
    records: Records | None = None,
    answers: AnswerRecords | None = None,
    thresholds: Tensor | None = None,
    scores: Scores | None = None,
) -> Evaluation:
    """Measure accuracy and loss of `model` (on `world.device`) over the loader's data set, the same on every rank.

    The model runs in eval mode; each of its modules gets its own mode back, and the random states are as before.

    Args:
        model: bare: ranks may differ by a batch, and the forward pass of a data-parallel wrapper is a collective.
        loader: its `bad_images` is that of this pass afterwards.
        limit_batches: end after so many batches of each rank; then nothing is checked against the data set.
        log_freq: batches between two lines of the log.
        stop: asked before each batch whether to end, by `StoppedError` on every rank.
        records: filled with what each image of this rank got; what is in there is dropped.
        answers: the same for images with several labels.
        thresholds: (K,) of the probabilities of several labels; 0.5 where None.
        scores: add up what another task measures; None for classes.

    Raises:
        BadImageError, DataError, LoaderError: as the loader does. An error on one rank stops all: the others
            raise `PeerError`.
        MiscountError: not every image was seen exactly once.
    """
    loader.bad_images.clear()
    if scores is not None:
        pass
    elif loader.num_labels:
        scores = _LabelScores(
            loader.num_samples, world.device, answers or AnswerRecords(loader.num_labels), thresholds
        )
    else:
        scores = Scores(labels or Labels(), loader.num_samples, world.device, records)
    num_classes = getattr(model, "num_classes", None) if labels is None else None
    batches = _with_known_classes(islice(loader.batches(), limit_batches), num_classes)
    cuda = [world.device] if world.device.type == "cuda" else []
    with in_step(world), eval_mode(model), torch.random.fork_rng(devices=cuda), torch.inference_mode():
        started = time.perf_counter()
        stream = scores.timed(prefetch(batches, world.device, channels_last=channels_last, dtype=dtype_of(model)))
        for number, batch in enumerate(_paced(stream, world.device), start=1):
            if stop():
                raise StoppedError
            with autocast():
                answers_of_batch = model(batch.images)
            scores.add(answers_of_batch, batch)
            if log_freq and world.is_main and (number % log_freq == 0 or number == loader.num_batches):
                rate = world.size * scores.count / (time.perf_counter() - started)
                log.info("evaluated %d/%d batches, %.1f images/s", number, loader.num_batches, rate)
        scores.seconds = time.perf_counter() - started
    return _reduce(scores, loader, world, is_whole=limit_batches is None)


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


class Scores:
    """Add up the scores of one rank's batches.

    `counts` (correct1, correct5, scored, nonfinite, correct1 of all classes) and `loss` are on the device, so that no
    batch is waited for.
    """

    has_loss: ClassVar[bool] = True

    def __init__(self, labels: Labels, num_samples: int, device: torch.device, records: Records | None) -> None:
        self.counts = torch.zeros(5, dtype=torch.int64, device=device)
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.seen = torch.zeros(num_samples, dtype=torch.int32)
        self.count = 0
        self.waited = 0.0
        self.seconds = 0.0
        self.records = records
        if records is not None:
            records.clear()
        self._real = labels.real
        self._columns = None if labels.columns is None else torch.tensor(labels.columns, device=device)
        self._column_of: Tensor | None = None
        if labels.column_of is not None:
            last = max(labels.column_of)
            self._column_of = torch.tensor([labels.column_of.get(i, 0) for i in range(last + 1)], device=device)

    @property
    def is_of_some(self) -> bool:
        """Whether some of the model's classes compete alone."""
        return self._columns is not None

    def add(self, logits_NC: Tensor, batch: Batch) -> None:
        """Score one batch, which is on the device, and add it to the sums."""
        all_NC = logits_NC.float()
        logits_NC = all_NC if self._columns is None else all_NC[:, self._columns]
        target_N = batch.targets if self._column_of is None else self._column_of[batch.targets]
        # of equal logits the lower class is first, as in predictions; those of 16 bits are often equal
        first_NK = logits_NC.argsort(dim=1, descending=True, stable=True)[:, :5]
        class_NK = first_NK if self._columns is None else self._columns[first_NK]
        right_NK, has_label_N = first_NK == target_N[:, None], torch.ones_like(target_N, dtype=torch.bool)
        best_N = all_NC.argmax(1) if self.is_of_some else class_NK[:, 0]
        if self._real is not None:
            real = [self._real[i] for i in batch.indices.tolist()]
            hits = [[index in right for index in row] for row, right in zip(class_NK.tolist(), real, strict=True)]
            right_NK, has_label_N = right_NK.new_tensor(hits), has_label_N.new_tensor([bool(right) for right in real])
            of_all = [index in right for index, right in zip(best_N.tolist(), real, strict=True)]
            right_of_all_N = has_label_N.new_tensor(of_all)
        else:
            right_of_all_N = best_N == (target_N if self._columns is None else self._columns[target_N])
        finite_N = logits_NC.isfinite().all(1)
        right_NK = right_NK & finite_N[:, None]  # NaN sorts first, and would make class 0 the answer
        counts = [right_NK[:, 0].sum(), right_NK.any(1).sum(), has_label_N.sum(), (~finite_N).sum()]
        self.counts += torch.stack([*counts, (right_of_all_N & finite_N).sum()])
        loss_N = F.cross_entropy(logits_NC, target_N, reduction="none")
        self.loss += loss_N.double().sum()
        self.count += len(batch.indices)
        self.seen.index_add_(0, batch.indices, torch.ones_like(batch.indices, dtype=torch.int32))
        if self.records is not None:
            self.records.add(
                batch.indices,
                logits_NC,
                target_N,
                loss_N,
                target=target_N if self._columns is None else self._columns[target_N],
                predicted=torch.where(finite_N, class_NK[:, 0], -1),
                right=right_NK[:, 0],
                scored=has_label_N,
                finite=finite_N,
            )

    def measures(self, world: World) -> Measures | None:
        """Measure what is only known of all images together."""
        return None

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass the batches on, and add up the time spent waiting for them."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - asked
            if batch is None:
                return
            yield batch


class _LabelScores(Scores):
    """Add up the scores of one rank's batches of images with several labels, and keep their answers."""

    def __init__(
        self, num_samples: int, device: torch.device, answers: AnswerRecords, thresholds: Tensor | None
    ) -> None:
        super().__init__(Labels(), num_samples, device, None)
        answers.clear()
        self.answers = answers
        self.thresholds = torch.full((answers.num_labels,), DEFAULT) if thresholds is None else thresholds

    def add(self, logits_NC: Tensor, batch: Batch) -> None:
        """Score one batch, which is on the device, and keep its answers."""
        logits_NK, targets_NK = logits_NC.float(), batch.targets
        finite_N = logits_NK.isfinite().all(1)
        first_NK = logits_NK.argsort(dim=1, descending=True, stable=True)[:, :5]
        right_NK = (targets_NK.gather(1, first_NK) > 0.5) & finite_N[:, None]
        scored, right1, right5 = torch.ones_like(finite_N).sum(), right_NK[:, 0].sum(), right_NK.any(1).sum()
        self.counts += torch.stack([right1, right5, scored, (~finite_N).sum(), right1])
        self.loss += F.binary_cross_entropy_with_logits(logits_NK, targets_NK, reduction="none").double().mean(1).sum()
        self.count += len(batch.indices)
        self.seen.index_add_(0, batch.indices, torch.ones_like(batch.indices, dtype=torch.int32))
        self.answers.add(batch.indices, logits_NK, targets_NK)

    def measures(self, world: World) -> Measures:
        """Measure the answers of all ranks."""
        return measure(self.answers.gather(world), self.thresholds)


def _reduce(scores: Scores, loader: EvalLoader, world: World, is_whole: bool) -> Evaluation:
    """Add up the scores of all ranks, and check that they are of the whole data set."""
    counts = world.sum(scores.counts).tolist()
    loss = world.sum(scores.loss).item()
    seen = world.sum(scores.seen.to(world.device))
    count, twice = int(seen.sum()), int((seen > 1).sum())
    own = (scores.seconds, scores.waited, peak_memory_mb(world.device), dict(loader.bad_images))
    seconds, waited, peaks, bad = zip(*world.gather(own), strict=True)
    bad_images = {file: reason for files in bad for file, reason in sorted(files.items())}
    skipped = sum(len(files) for files in bad)
    if twice or (is_whole and count + skipped != loader.num_samples):
        raise MiscountError(
            f"internal error: of {loader.num_samples} images {count} were evaluated ({twice} of them more "
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
        correct1_of_all=counts[4] if scores.is_of_some else None,
        measures=scores.measures(world),
        has_loss=scores.has_loss,
    )


def _with_known_classes(batches: Iterable[Batch], num_classes: int | None) -> Iterator[Batch]:
    """Check the classes of batches on the CPU; on CUDA an index out of range would break the whole process."""
    for batch in batches:
        if batch.targets.dim() == 1 and num_classes is not None and int(batch.targets.max()) >= num_classes:
            raise DataError(
                f"the data has class {int(batch.targets.max())} and the model the classes 0 to "
                f"{num_classes - 1}: give `num_classes=...`, or `class_map=FILE`"
            )
        yield batch


def _paced(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Keep the CPU at most one batch ahead of a CUDA device.

    Further ahead it would hold the memory of all batches launched, and time spent waiting for the device
    would be taken for time spent waiting for images.
    """
    if device.type != "cuda":
        yield from batches
        return
    last: torch.cuda.Event | None = None
    for batch in batches:
        yield batch
        launched = torch.cuda.Event()
        launched.record(torch.cuda.current_stream(device))
        if last is not None:
            last.synchronize()
        last = launched
    torch.cuda.synchronize(device)


def peak_memory_mb(device: torch.device) -> float:
    """Return the peak memory in 10^6 bytes: on CUDA of tensors since its last reset, on a CPU of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6
