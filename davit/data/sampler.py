"""Order the training samples by (seed, epoch), and slice the order for steps, micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..seeding import derive_seeds
from .dataset import Key, PictureDataset
from .errors import DataError, require
from .source import NO_CLASS

_REPEATS = 3  # repeated augmentation (Hoffer et al. 2020; Berman et al. 2019) shows each image three times
_ROUND = 256  # ... and keeps as many samples as the data has images, rounded down to this


class TooFewSamplesError(DataError):
    """An epoch without a whole step.

    Attributes:
        samples: of the epoch.
    """

    def __init__(self, message: str, samples: int) -> None:
        super().__init__(message)
        self.samples = samples


class EpochSampler:
    """Choose the samples of each micro-batch of this process.

    Optimizer step s takes the samples s*G to (s+1)*G of the epoch's order, G = batch_size * world_size *
    grad_accum_steps; micro-batch m of rank r takes the rows m*B*W + r*B and on (B = batch_size, W = world_size)
    of them. Another number of processes with the same G keeps each step's samples and their order.

    `epoch_repeats` passes over the data make an epoch, each in an order of its own; a fraction
    ends within a pass; 0 is one pass. With `repeated_aug` a pass shows each image three times in a row,
    with different augmentations, and a micro-batch's rows are assigned to the ranks in turn, so that the three
    meet different ranks; it ends after as many samples as there are images (as timm's RepeatAugSampler).
    With `weights`, one for each image, a pass shows an image as often as its share of their sum says, on average:
    for an expected 2.3 times it is there twice or three times. What is not whole is drawn (systematic sampling).
    `drop_last` leaves the last, incomplete step out; otherwise it is filled up from the start of the order.
    `size_of` (None: no size) says the side of the images of (epoch, step), which then is a part of each key.
    """

    def __init__(
        self,
        num_pictures: int,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        grad_accum_steps: int = 1,
        seed: int = 42,
        epoch_repeats: float = 0,
        repeated_aug: bool = False,
        drop_last: bool = True,
        weights: Sequence[float] | np.ndarray[Any, Any] | None = None,
    ) -> None:
        require(batch_size >= 1, "batch_size", batch_size, "a number of 1 or more")
        require(grad_accum_steps >= 1, "grad_accum_steps", grad_accum_steps, "a number of 1 or more")
        require_rank(rank, world_size)
        require(epoch_repeats >= 0, "epoch_repeats", epoch_repeats, "0 (one pass) or a positive number of passes")
        self._weights = None if weights is None else torch.as_tensor(weights, dtype=torch.float64)
        if self._weights is not None and repeated_aug:
            raise ValueError(
                "`sampler=balanced` and `repeated_aug=True` both say how often an image is seen: give one."
            )
        self.num_pictures, self.seed, self.repeated_aug = num_pictures, seed, repeated_aug
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.size_of: Callable[[int, int], int] | None = None
        self.global_batch = batch_size * world_size * grad_accum_steps
        rounded = num_pictures // _ROUND * _ROUND
        self._pass_length = rounded if repeated_aug and rounded else num_pictures
        self._length = int(self._pass_length * (epoch_repeats or 1))
        last = 0 if drop_last else self.global_batch - 1
        self.steps_per_epoch = (self._length + last) // self.global_batch
        if self.steps_per_epoch == 0:
            raise TooFewSamplesError(
                f"{self._length} training samples an epoch are fewer than one step's {self.global_batch} "
                f"(`{batch_size=}` x {world_size} processes x `{grad_accum_steps=}`): lower one of these, or pass "
                "`epoch_repeats=N` for more passes over the data",
                self._length,
            )

    def order(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Draw the (indices, repeats) of the whole epoch over all ranks, int64, (steps_per_epoch * G,) each."""
        copies = _REPEATS if self.repeated_aug else 1
        indices, repeats = [], []
        for number in range(-(-self._length // self._pass_length)):
            generator = torch.Generator().manual_seed(derive_seeds(self.seed, epoch, number)[0])
            shuffled = self._drawn(generator)
            indices.append(shuffled.repeat_interleave(copies)[: self._pass_length])
            numbered = torch.arange(number * copies, (number + 1) * copies).repeat(self.num_pictures)
            repeats.append(numbered[: self._pass_length])
        if self._weights is not None:
            repeats = [_occurrences(torch.cat(indices))]
        row = torch.arange(self.steps_per_epoch * self.global_batch)
        wraps, row = row // self._length, row % self._length  # wraps > 0: filled up as drop_last is off
        index, repeat = torch.cat(indices), torch.cat(repeats)
        further = len(indices) * copies if self._weights is None else int(repeat.max()) + 1
        return index[row], repeat[row] + wraps * further

    def _drawn(self, generator: torch.Generator) -> Tensor:
        """Draw the images of a pass: each once, or as the weights say."""
        shuffled = torch.randperm(self.num_pictures, generator=generator)
        if self._weights is None:
            return shuffled
        # those of one weight, which is most often one class, beside one another: so their share is met best
        shuffled = shuffled[self._weights[shuffled].argsort(stable=True)]
        expected = self._weights[shuffled] * (self.num_pictures / self._weights.sum())
        begin = torch.rand((), generator=generator, dtype=torch.float64)
        ends = (expected.cumsum(0) - begin).ceil().long().clamp(0, self.num_pictures)
        ends[-1] = self.num_pictures  # but for rounding
        times = torch.diff(ends, prepend=ends.new_zeros(1))
        chosen = shuffled.repeat_interleave(times)
        return chosen[torch.randperm(len(chosen), generator=generator)]

    def split(self, batch_size: int) -> None:
        """Deal each step in micro-batches of another size from now on; the steps keep their samples."""
        share = self.global_batch // self.world_size
        require(share % batch_size == 0, "batch_size", batch_size, f"a divisor of a process's share, {share}")
        self.batch_size = batch_size

    @property
    def grad_accum_steps(self) -> int:
        """Return the number of micro-batches of a step in each process."""
        return self.global_batch // (self.batch_size * self.world_size)

    def micro_batches(self, epoch: int, start_step: int = 0) -> Iterator[list[Key]]:
        """Yield the keys of this rank's micro-batches, from optimizer step `start_step` on."""
        if not 0 <= start_step <= self.steps_per_epoch:
            raise ValueError(f"step {start_step} is not in an epoch of {self.steps_per_epoch} steps")
        rows = self.batch_size * self.world_size  # of a micro-batch over all ranks
        accumulate, size_of = self.grad_accum_steps, self.size_of
        begin = start_step * accumulate
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        if self.repeated_aug:
            mine = slice(self.rank, rows, self.world_size)
        index, repeat = (part.view(-1, rows)[begin:, mine] for part in self.order(epoch))

        def size(number: int) -> tuple[int, ...]:
            return () if size_of is None else (size_of(epoch, number // accumulate),)

        return (
            [(epoch, i, r, *size(number)) for i, r in zip(indices.tolist(), repeats.tolist(), strict=True)]
            for number, (indices, repeats) in enumerate(zip(index, repeat, strict=True), start=begin)
        )


def balanced_weights(dataset: PictureDataset) -> np.ndarray[Any, Any]:
    """Return a weight for each image, (N,) float64, by which each class is seen equally often.

    It is one over the number of images of its class; of several labels that of the rarest counts (as in the repeat
    factor sampling of LVIS, Gupta et al. 2019), and images without any label are a class of their own.

    Raises:
        DataError: the data set does not tell its classes.
    """
    sets, counts = dataset.label_sets, dataset.counts()
    if counts is None:
        raise DataError("`sampler=balanced` needs to know the class of each image, which this data set does not tell")
    if sets is None:
        targets = np.asarray(dataset.source.targets())
        known = targets != NO_CLASS
        weights = np.full(len(targets), 1 / max(1, counts.max()))
        weights[known] = 1 / counts[targets[known]]
        return weights
    weights = np.zeros(len(sets))
    np.maximum.at(weights, np.repeat(np.arange(len(sets)), sets.sizes), 1 / counts[sets.flat])
    return np.where(sets.sizes > 0, weights, 1 / max(1, sets.without))


def _occurrences(index: Tensor) -> Tensor:
    """Number the occurrences of each value: 0 for its first, 1 for its second."""
    order = index.argsort(stable=True)
    ordered = index[order]
    begins = torch.ones_like(ordered, dtype=torch.bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    place = torch.arange(len(index))
    first = torch.where(begins, place, 0).cummax(0).values
    numbers = torch.empty_like(index)
    numbers[order] = place - first
    return numbers


def require_rank(rank: int, world_size: int) -> None:
    """Raise `ValueError` for a rank that is none of the processes."""
    require(0 <= rank < world_size, "rank", rank, f"0 or more and below {world_size}, the number of processes")
