"""Predict with an exported detector or segmentor: ``ExportedDetector("model.onnx").predict(image).draw()``.

What the checkpoint's `davit.openmmlab.predictor.Predictor` does around its model is done here by the file's metadata,
without OpenMMLab's packages: decoding, resizing, normalising; and afterwards boxes and masks in the image's pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..data.decode import Decoding, Stored, as_shown, load_picture, load_stored
from ..data.errors import BadImageError
from ..data.limits import require_room
from ..data.opencv import resize_bilinear
from ..data.samples import UnfitPictureError
from ..runtimes import ExportedError, ExportedModel, Metadata, open_exported
from .objects import Detections, Segmentation
from .pictures import Picture, as_stored, name_of

TASKS = ("detection", "segmentation")


@dataclass(frozen=True)
class Prepared:
    """An image that is ready for a program.

    Attributes:
        images: (1, bands, H, W), what the program takes.
        shown: (h, w, 3) RGB, what people see.
        before, after: width and height of the image, and of what the program takes.
    """

    images: Tensor
    shown: NDArray[np.uint8]
    before: tuple[int, int]
    after: tuple[int, int]


class ExportedDetector:
    """An exported detector or segmentor that is ready for images.

    Args:
        model: a file of `python -m davit.export`, or what `open_exported` made of it.
        score_threshold: detections below are left out.
        threads: how many compute at once; None for as many as PyTorch uses.

    Attributes:
        classes: the names of the classes.
        task: detection or segmentation.

    Raises:
        ExportedError: the file cannot be opened, is of another task, or has raw outputs of a detector.
    """

    def __init__(
        self, model: str | Path | ExportedModel, score_threshold: float = 0.3, *, threads: int | None = None
    ) -> None:
        self.model = model if isinstance(model, ExportedModel) else open_exported(model, threads=threads)
        self.metadata: Metadata = self.model.metadata
        self.task: str = self.metadata.task
        if self.task not in TASKS:
            raise ExportedError(f"{self.model.path} is an export for {self.metadata.task}; `davit.load` takes it.")
        try:
            self._facts = _Facts(self.metadata)
        except (KeyError, TypeError, ValueError) as error:
            raise ExportedError(
                f"{self.model.path}: its metadata do not say how images are prepared ({error!r}); export it again."
            ) from error
        if self.task == "detection" and "labels" not in self.metadata.output_names:
            raise ExportedError(
                f"{self.model.path} was exported with --raw, for runtimes that suppress overlapping boxes by "
                "themselves; export it without to predict with it here."
            )
        self.score_threshold = score_threshold
        self.classes: tuple[str, ...] = self.metadata.class_names or ()

    def predict(self, picture: Picture) -> Detections | Segmentation:
        """Predict what is in an image: a file, its bytes, a PIL image, or an array (H, W, 3) RGB.

        A model of C bands takes arrays (H, W, C).

        Raises:
            BadImageError: the file is no image that can be read, or of a shape that cannot be resized.
            ValueError: something else than a `Picture`, or of a size that the program does not take.
        """
        ready = self.prepare(picture)
        computed = self.model(ready.images)
        outputs = {name: one[0] for name, one in zip(self.model.output_names, computed, strict=True)}
        before, after = ready.before, ready.after
        if self.task == "segmentation":
            labels = self._labels(outputs, after[::-1], before[::-1])
            return Segmentation(ready.shown, labels, self.classes, self._facts.palette)
        return self._detections(outputs, ready.shown, before, after)

    def prepare(self, picture: Picture) -> Prepared:
        """Decode, resize and normalise an image, as `predict` does (errors as there)."""
        name = name_of(picture)
        pixels, shown = self._decoded(as_stored(picture, name, self.metadata.bands), name)
        before = (pixels.shape[1], pixels.shape[0])
        after = self._facts.size(*before)
        try:
            require_room(before, after, asked=self._facts.asked or before)  # type: ignore[arg-type]
        except UnfitPictureError as error:
            message = f"{name}: {error}. Resize it, or leave it out."
            raise BadImageError(message, file=name, reason=str(error)) from error
        return Prepared(self._prepared(resize_bilinear(pixels, *after)), shown, before, after)

    def _decoded(self, stored: Stored, name: str) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Return what the model sees of an image, (H, W, bands), and what people see of it, (H, W, 3)."""
        decoding = self._facts.decoding
        if self._facts.as_stored:
            pixels = load_stored(stored, name, decoding.bands)
            if pixels.dtype not in (np.uint8, np.uint16, np.float32):
                pixels = pixels.astype(np.uint8 if pixels.dtype == bool else np.float32)
            if pixels.shape[2] == 3 and pixels.dtype == np.uint8:
                return pixels, pixels
            if hasattr(stored, "seek"):
                stored.seek(0)
            return pixels, np.asarray(as_shown(load_picture(stored, name, decoding=decoding)))
        found = load_picture(stored, name, decoding=decoding)
        pixels = np.asarray(found)
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        return pixels.astype(np.float32) if self._facts.as_float else pixels, np.asarray(as_shown(found))

    def _prepared(self, pixels: NDArray[Any]) -> Tensor:
        """Make the program's input (1, bands, H, W) of resized pixels."""
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        if self.metadata.preprocess == "uint8":
            pixels = pixels if pixels.dtype == np.uint8 else np.rint(pixels).clip(0, 255).astype(np.uint8)
            return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None]
        values = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]
        mean, std = (torch.tensor(numbers, dtype=torch.float64).mul(255).float() for numbers in self._facts.scale)
        return (values - mean[:, None, None]) / std[:, None, None]

    def _labels(self, outputs: dict[str, Tensor], size: tuple[int, int], wanted: tuple[int, int]) -> NDArray[np.int64]:
        """Return the class of each pixel of the image, from logits that are enlarged as MMSegmentation does."""
        facts = self._facts
        if size == wanted and "labels" in outputs:
            return outputs["labels"].numpy().astype(np.int64)
        large = outputs["logits"][None]
        if "labels" in outputs:  # these are the head's own, of the padded image
            padded = [-(-side // facts.divisor) * facts.divisor for side in size]
            large = F.interpolate(large, padded, mode="bilinear", align_corners=facts.align_corners)
            large = large[:, :, : size[0], : size[1]]
        if size != wanted:
            large = F.interpolate(large, wanted, mode="bilinear", align_corners=facts.align_corners)
        if facts.threshold is not None:
            return (large[0, 0].sigmoid() > facts.threshold).numpy().astype(np.int64)
        return large[0].argmax(0).numpy()

    def _detections(
        self, outputs: dict[str, Tensor], shown: NDArray[np.uint8], before: tuple[int, int], after: tuple[int, int]
    ) -> Detections:
        """Bring boxes and masks back to the image's own pixels."""
        found = (outputs["labels"] >= 0) & (outputs["scores"] >= self.score_threshold)
        scores, labels = outputs["scores"][found], outputs["labels"][found]
        scale = torch.tensor([after[0] / before[0], after[1] / before[1]] * 2)
        boxes = outputs["boxes"][found] / scale
        masks = None
        if "masks" in outputs:
            masks = paste_masks(outputs["masks"][found], boxes, before[1], before[0], self._facts.mask_threshold)
        return Detections(shown, boxes.numpy(), scores.numpy(), labels.numpy(), masks, self.classes)


class _Facts:
    """What the metadata of an exported detector or segmentor say of preparing images."""

    def __init__(self, metadata: Metadata) -> None:
        extra = metadata.extra
        rule = extra["resize"]
        self.asked = tuple(map(int, rule["scale"])) if rule and rule.get("scale") else None
        self.factors = tuple(map(float, rule["scale_factor"])) if rule and not self.asked else None
        self.keep_ratio = bool(rule and rule["keep_ratio"])
        if any(side < 1 for side in self.asked or ()) or any(not factor > 0 for factor in self.factors or ()):
            raise ValueError(f"resize={rule}")
        self.divisor = int(extra["pad"]["divisor"])
        self.decoding, self.as_stored = Decoding(**metadata.decoding), bool(extra["as_stored"])
        self.as_float = bool(extra.get("as_float"))  # before it is resized
        self.scale = (metadata.mean, metadata.std)
        self.align_corners = bool(extra.get("align_corners"))
        self.threshold = extra.get("threshold")
        self.mask_threshold = float(extra.get("mask_threshold", 0.5))
        self.palette = tuple((int(red), int(green), int(blue)) for red, green, blue in extra["palette"])

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height that an image is resized to, as mmcv's Resize counts."""
        asked = self.asked
        if self.factors is not None:
            asked = (int(width * self.factors[0] + 0.5), int(height * self.factors[1] + 0.5))
        if asked is None:
            return width, height
        if not self.keep_ratio:
            return asked[0], asked[1]
        factor = min(max(asked) / max(height, width), min(asked) / min(height, width))
        return int(width * factor + 0.5), int(height * factor + 0.5)


def paste_masks(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> NDArray[np.bool_]:
    """Lay the masks of objects over an image: true where a mask's probability is at least a threshold.

    Args:
        masks: (N, h, w), probabilities on a grid over each box.
        boxes: (N, 4), x1 y1 x2 y2 in pixels of the image.

    Returns:
        (N, height, width).
    """
    pasted = np.zeros((len(masks), height, width), dtype=bool)
    for number, (mask, box) in enumerate(zip(masks, boxes, strict=True)):
        x1, y1, x2, y2 = box
        left, top = max(int(x1.floor()) - 1, 0), max(int(y1.floor()) - 1, 0)
        right, bottom = min(int(x2.ceil()) + 1, width), min(int(y2.ceil()) + 1, height)
        x = (torch.arange(left, right) + 0.5 - x1) / (x2 - x1) * 2 - 1  # -1 to 1 across the box
        y = (torch.arange(top, bottom) + 0.5 - y1) / (y2 - y1) * 2 - 1
        if not (len(x) and len(y)):
            continue
        x, y = x.masked_fill(x.isinf(), 0.0), y.masked_fill(y.isinf(), 0.0)
        grid = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], -1)
        values = F.grid_sample(mask[None, None], grid[None], align_corners=False)
        pasted[number, top:bottom, left:right] = (values[0, 0] >= threshold).numpy()
    return pasted
