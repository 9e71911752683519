"""Judge what quantization does to a classifier: by its logits, and by top-1 on the validation images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...data import open_dataset
from ...engine.evaluate import Evaluation
from ...engine.load_model import LoadedModel, ModelOptions, load_model
from ...runtimes import ExportedModel, Metadata
from ..options import Int8Options
from .measure import accuracy, calibration_images, validation_pictures

log = logging.getLogger(__name__)

_BATCH = 8


class Classifiers:
    """Judges int8 versions of one float classifier (`davit.export.int8.quantize.Judge`).

    Raises:
        ValueError: the data do not fit the model, or it has no top-1.
    """

    what = "logits"
    scores: Mapping[str, str] = {"top1": "top-1"}

    def __init__(self, source: Path, options: Int8Options) -> None:
        self._float = _loaded(source)
        if self._float.is_multilabel:
            raise ValueError(
                "int8 is decided by top-1, and this model tells several labels per image: export it without."
            )
        assert self._float.program is not None
        self.program: ExportedModel = self._float.program
        self._dataset = validation_pictures(self._float, options.data)
        images = calibration_images(self._float, options.data, options.calibration, options.seed)
        self.pictures = self.judged = len(images)
        self._float.classifier(images[:1])  # a size that the program does not take is named before much time is spent
        self.batches: Sequence[Tensor] = images.split(_BATCH)
        self._wanted = self._logits(self._float)

    @staticmethod
    def open_data(data: str, metadata: Metadata) -> None:
        """Open both splits, so that a mistake in their name is told at once."""
        open_dataset(data, "train")
        open_dataset(data, "validation")

    def _logits(self, loaded: LoadedModel) -> Tensor:
        return torch.cat([loaded.classifier(part) for part in self.batches])

    def change(self, file: Path) -> float:
        """Return by how much int8 changes the logits of the calibration images, relative to their norm."""
        found = self._logits(_loaded(file))
        return float((found - self._wanted).norm() / self._wanted.norm())

    def compare(self, file: Path) -> dict[str, float | int]:
        """Measure the accuracy and the loss of both on the validation images."""
        before, after = (self._evaluated(name, one) for name, one in (("float", self._float), ("int8", _loaded(file))))
        return {
            "top1_float": round(before.top1, 4),
            "top1": round(after.top1, 4),
            "pictures": before.scored,
            "loss_float": round(before.loss, 6),
            "loss": round(after.loss, 6),
        }

    def _evaluated(self, name: str, loaded: LoadedModel) -> Evaluation:
        found = accuracy(loaded, self._dataset)
        log.info(
            "%-5s top-1 %.3f %% (%d of %d images), loss %.4g",
            *(name, found.top1, found.correct1, found.scored, found.loss),
        )
        return found


def _loaded(file: Path) -> LoadedModel:
    return load_model(None, file, ModelOptions(), torch.device("cpu"), takes_exported=True)
