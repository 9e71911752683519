"""Quantize exported classifiers to 8 bits after training, and stop where that costs too much accuracy."""

from .quantize import DropError, quantize

__all__ = ["DropError", "quantize"]
