"""Quantize exported classifiers and detectors to 8 bits, and stop where that costs too much accuracy."""

from .quantize import DropError, quantize

__all__ = ["DropError", "quantize"]
