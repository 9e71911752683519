"""Hold what is exported: a module of plain PyTorch, and what is said of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..runtimes import Metadata

Size: TypeAlias = tuple[int, int, int]  # batch, height, width
Outputs: TypeAlias = tuple[Tensor, ...]
Axes: TypeAlias = Mapping[str, tuple[int, int | None]]
Save: TypeAlias = Callable[[Metadata, Path], None]  # writes the program with these metadata


def largest_relative(found: Outputs, wanted: Outputs) -> float:
    """Return the largest difference of two lists of outputs, each relative to the largest value of its output."""
    return max(_relative(one, other) for one, other in zip(found, wanted, strict=True))


def _relative(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape or not (torch.isfinite(wanted).all() and torch.isfinite(found).all()):
        return float("inf")
    difference = float((found.double() - wanted.double()).abs().max()) if wanted.numel() else 0.0
    largest = float(wanted.abs().max()) if wanted.numel() else 0.0
    return difference if difference == 0 else difference / max(largest, 1e-30)


@dataclass(frozen=True)
class Program:
    """A module to export, and what is said of it.

    Attributes:
        module: in eval mode on the CPU, of plain PyTorch; from a batch (N, C, H, W), or as `metadata.preprocess` and
            `metadata.layout` say, to a tuple with a tensor for each of the metadata's `output_names`.
        metadata: task, names, preparation of images; `format`, `axes` and what is measured are filled in by the
            export.
        output_axes: of each output, axis -> name ("batch", "height_4" ...), for axes that are free.
        least: smallest height and width that the module takes.
        traced_at: the size at which it is traced; None for one that suits classifiers.
        sizes: at which the export is compared with PyTorch.
        tolerance: largest of `compare`'s values that is accepted (`davit.export.check.Distance.allowed`).
        is_strict: the tolerance was asked for, and PyTorch's own rounding does not widen it.
        half_tolerance: likewise in float16; None for the usual one.
        compare: outputs of the export, outputs of PyTorch -> difference.
        images: makes the input of the check from a size and a generator; None for random values.
        reference: what the export is compared with where that is not `module` itself.
        is_proven: whether torch.export must prove that the graph holds for all sizes; False leaves it to the check, as
            heads of many levels ask for more than it can prove.
        onnx_translations: what the module's own operators are in ONNX, for torch.onnx's `custom_translation_table`.
    """

    module: nn.Module
    metadata: Metadata
    output_axes: Sequence[dict[int, str]]
    sizes: Sequence[Size]
    tolerance: float
    is_strict: bool = False
    half_tolerance: float | None = None
    least: int = 1
    traced_at: Size | None = None
    compare: Callable[[Outputs, Outputs], float] = largest_relative
    images: Callable[[Size, torch.Generator], Tensor] | None = None
    reference: nn.Module | None = None
    is_proven: bool = True
    onnx_translations: Mapping[Any, Any] = field(default_factory=dict)

    def draw(self, size: Size, generator: torch.Generator) -> Tensor:
        """Draw an input (N, C, H, W) of the check."""
        if self.images is not None:
            return self.images(size, generator)
        shape = (size[0], self.metadata.bands, *size[1:])
        if self.metadata.preprocess == "uint8":
            return torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        return torch.randn(shape, generator=generator)

    def example(self, size: Size) -> Tensor:
        """Make an input of the module itself, in its layout."""
        return self.arranged(self.draw(size, torch.Generator().manual_seed(0)))

    def arranged(self, images: Tensor) -> Tensor:
        """Bring images (N, C, H, W) into the module's layout."""
        return images.permute(0, 2, 3, 1).contiguous() if self.metadata.layout == "NHWC" else images

    def described(self, **values: Any) -> Program:
        """Return it with other metadata."""
        return replace(self, metadata=replace(self.metadata, **values))

    @torch.inference_mode()
    def compute(self, images: Tensor) -> Outputs:
        """Compute what the export must compute, by PyTorch, from a batch (N, C, H, W)."""
        outputs: Outputs = (self.reference or self.module)(self.arranged(images))
        return outputs
