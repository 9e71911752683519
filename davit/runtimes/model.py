"""Define what all runtimes give: a function from images to outputs, and what it takes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor

from .metadata import Metadata


class ExportedError(ValueError):
    """Say why a file cannot be opened as an exported model, and what to do about it."""


class ExportedModel(ABC):
    """A model that its runtime computes, on the CPU; `davit.runtimes.open_exported` makes one.

    Attributes:
        path: of the file.
        metadata: what it takes and gives.
        runtime: "onnxruntime", "pt2", "openvino" or "executorch".
        threads: how many compute at once.
    """

    runtime: str

    def __init__(self, path: Path, metadata: Metadata, threads: int) -> None:
        self.path = path
        self.metadata = metadata
        self.threads = threads

    def __repr__(self) -> str:
        return f"ExportedModel({self.path.name}, {self.runtime}, {self.metadata.model}, {self.metadata.task})"

    @property
    def output_names(self) -> tuple[str, ...]:
        return self.metadata.output_names

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs of images.

        Args:
            images: (N, C, H, W): normalised float32, or uint8 where the metadata's `preprocess` is "uint8".

        Returns:
            An output for each of `output_names`, on the CPU.

        Raises:
            ValueError: the shape, the size or the type is none that it takes; names those that it takes.
        """
        self._require_fitting(images)
        images = images.detach().cpu()
        if self.metadata.layout == "NHWC":
            images = images.permute(0, 2, 3, 1)
        return self._run(images.contiguous())

    @abstractmethod
    def _run(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the outputs of images of the right size and type, in the program's layout."""

    def _require_fitting(self, images: Tensor) -> None:
        metadata, name = self.metadata, self.path.name
        if images.dim() != 4 or images.shape[1] != metadata.bands:
            raise ValueError(
                f"{name} takes images (N, {metadata.bands}, H, W), and the input has the shape {tuple(images.shape)}."
            )
        wanted = torch.uint8 if metadata.preprocess == "uint8" else torch.float32
        if images.dtype != wanted:
            what = "the bytes of images" if metadata.preprocess == "uint8" else "normalised images"
            raise ValueError(f"{name} takes {what} as {wanted}, not {images.dtype}.")
        for axis, size in (("batch", images.shape[0]), ("height", images.shape[2]), ("width", images.shape[3])):
            least, most = metadata.axes.get(axis, (1, None))
            if size < least or (most is not None and size > most):
                raise ValueError(f"{name} takes {self.describe_axes()}, and the {axis} is {size}.")

    def describe_axes(self) -> str:
        """Say in words which batches and sizes it takes."""
        axes = {axis: self.metadata.axes.get(axis, (1, None)) for axis in ("batch", "height", "width")}
        return ", ".join(
            f"a {axis} of {least}" + ("" if least == most else " or more" if most is None else f" to {most}")
            for axis, (least, most) in axes.items()
        )
