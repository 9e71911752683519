"""Sums over the steps of an epoch."""

from __future__ import annotations


class EpochTotals:
    """Sums over an epoch's steps, kept over an interruption."""

    def __init__(self, **sums: float):
        self.steps = int(sums.get("steps", 0))
        self.samples = int(sums.get("samples", 0))
        self.loss_sum = float(sums.get("loss_sum", 0.0))
        self.top1_sum = float(sums.get("top1_sum", 0.0))
        self.norm_sum = float(sums.get("norm_sum", 0.0))
        self.waited = float(sums.get("waited", 0.0))
        self.seconds = float(sums.get("seconds", 0.0))

    def add(self, loss: float, top1: float, grad_norm: float, samples: int, waited: float, seconds: float) -> None:
        self.steps += 1
        self.samples += samples
        self.loss_sum += loss * samples
        self.top1_sum += top1 * samples
        self.norm_sum += grad_norm
        self.waited += waited
        self.seconds += seconds

    @property
    def loss(self) -> float:
        """Mean over samples."""
        return self.loss_sum / max(1, self.samples)

    @property
    def top1(self) -> float:
        """Percent of the samples, as they were mixed and augmented."""
        return self.top1_sum / max(1, self.samples)

    @property
    def grad_norm(self) -> float:
        """Mean over steps."""
        return self.norm_sum / max(1, self.steps)

    @property
    def images_per_second(self) -> float:
        return self.samples / self.seconds if self.seconds else 0.0

    @property
    def data_share(self) -> float:
        """Share of the time spent waiting for data."""
        return self.waited / self.seconds if self.seconds else 0.0
