"""Say how large training images are at each step: small at first, which is faster, and at the end as evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..choices import SIZE_SCHEDULES
from .errors import require, require_choice


@dataclass(frozen=True)
class SizeSchedule:
    """The side of the training images as a function of (epoch, step), and of nothing else.

    With T = `epochs` * `steps_per_epoch` steps and k sizes, step t = epoch * `steps_per_epoch` + step has

    - steps: size number floor(k * t / T), so each size has an equal share of the steps;
    - linear: the value at t / (T - 1) of the way from the first size to the last, on straight lines from one size to
      the next, rounded to the nearest multiple of `multiple`, upwards from the middle between two;
    - behind these, as in a cool-down: the last size.

    Attributes:
        sizes: rising, in pixels, each a multiple of `multiple` (`round_to` makes them so).
    """

    sizes: tuple[int, ...]
    kind: str
    multiple: int
    epochs: int
    steps_per_epoch: int

    def __post_init__(self) -> None:
        require_choice("size_schedule", self.kind, SIZE_SCHEDULES)
        require(self.multiple >= 1, "size_multiple", self.multiple, "a number of 1 or more")

    def at(self, epoch: int, step: int) -> int:
        """Return the side of the images of a step, in pixels."""
        steps, done = self.epochs * self.steps_per_epoch, epoch * self.steps_per_epoch + step
        last = len(self.sizes) - 1
        if done >= steps:
            return self.sizes[-1]
        if self.kind == "steps":
            return self.sizes[len(self.sizes) * done // steps]
        # whole numbers alone, so that no machine rounds otherwise
        way = max(1, steps - 1)
        number, rest = divmod(last * done, way)
        if number == last:
            return self.sizes[-1]
        value = self.sizes[number] * way + (self.sizes[number + 1] - self.sizes[number]) * rest  # times `way`
        return (2 * value + self.multiple * way) // (2 * self.multiple * way) * self.multiple

    @property
    def all_sizes(self) -> list[int]:
        """Return every size that a step may have, rising."""
        if self.kind == "steps":
            return list(self.sizes)
        return list(range(self.sizes[0], self.sizes[-1] + 1, self.multiple))

    def __str__(self) -> str:
        return f"{','.join(map(str, self.sizes))} {self.kind}, multiples of {self.multiple}"


def round_to(multiple: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """Round sizes to the nearest multiple, upwards from the middle and never to 0; equal ones become one."""
    rounded = (max(1, (2 * size + multiple) // (2 * multiple)) * multiple for size in sizes)
    return tuple(dict.fromkeys(rounded))
