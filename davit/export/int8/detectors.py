"""Judge what quantization does to a detector: by the objects that it finds, and by COCO's AP50 of boxes and masks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torchvision
from torch import Tensor

from ...detect.data import BoxDataset, Reading, open_split
from ...detect.evaluate import measure, require_coco
from ...engine.distributed import World
from ...predict.detector import ExportedDetector
from ...predict.objects import Detections
from ...runtimes import ExportedModel, Metadata, open_exported
from ..options import Int8Options
from .measure import calibration_places

log = logging.getLogger(__name__)

_JUDGED = 32  # calibration images on which groups are judged: a detector takes a hundred times as long as a classifier
_ALONE = World(0, 0, 1, torch.device("cpu"))

Objects = tuple[Tensor, ...]  # boxes (K, 4), scores (K,), labels (K,) and, of some, masks (K, h, w) of one image


class Detectors:
    """Judges int8 versions of one float detector (`davit.export.int8.quantize.Judge`).

    Raises:
        ValueError: the data do not fit the model.
    """

    what = "objects found"

    def __init__(self, source: Path, options: Int8Options) -> None:
        self._float = ExportedDetector(source, 0.0)
        self.program: ExportedModel = self._float.model
        train, self._dataset = self.open_data(options.data, self._float.metadata)
        places = calibration_places(None, options.calibration, len(train), options.seed)
        self.batches: Sequence[Tensor] = _Pictures(self._float, [train.source.path(place) for place in places])
        self.pictures, self.judged = len(places), min(len(places), _JUDGED)
        has_masks = all(one.get("segmentation") for one in self._dataset.annotations.get("annotations") or ())
        masks = {"mask_ap50": "AP50 of masks"} if "masks" in self.program.output_names else {}
        if masks and not has_masks:
            log.warning("The validation data have no masks: what int8 costs is measured on boxes alone.")
        self.scores: Mapping[str, str] = {"ap50": "AP50 of boxes", **(masks if has_masks else {})}
        self._wanted = list(self._objects(self.program))

    @staticmethod
    def open_data(data: str, metadata: Metadata) -> tuple[BoxDataset, BoxDataset]:
        """Open the training and the validation split, of the model's classes."""
        require_coco()
        classes = metadata.class_names
        train, val = (
            open_split(data, split, classes, _ALONE, Reading(), say=split == "train") for split in ("train", "val")
        )
        return train, val

    def _objects(self, program: ExportedModel) -> Iterator[Objects]:
        """Find the objects of the calibration images that are judged."""
        for place in range(self.judged):
            outputs = [one[0] for one in program(self.batches[place])]
            real = outputs[2] >= 0
            yield tuple(one[real] for one in outputs)

    def change(self, file: Path) -> float:
        """Return the share of the objects found that int8 changes (`objects_change`)."""
        return objects_change(list(self._objects(open_exported(file, threads=self.program.threads))), self._wanted)

    def compare(self, file: Path) -> dict[str, float | int]:
        """Measure the precision of both on the validation images."""
        int8 = ExportedDetector(open_exported(file, threads=self.program.threads), 0.0)
        found: dict[str, float | int] = {}
        for name, suffix, detector in (("float", "_float", self._float), ("int8", "", int8)):
            figures = self._precision(detector)
            found |= {f"{key}{suffix}": round(value, 4) for key, value in figures.items()}
            said = ", ".join(f"{words} {figures[key]:.2f} %" for key, words in self.scores.items())
            log.info("%-5s %s (%d images)", name, said, len(self._dataset))
        return {**found, "pictures": len(self._dataset)}

    def _precision(self, detector: ExportedDetector) -> dict[str, float]:
        """Return COCO's AP and AP50 in percent, of boxes and, where they are measured, of masks."""
        rows: list[dict[str, Any]] = []
        ids = self._dataset.source.ids.tolist()
        for place, number in enumerate(ids):
            found = cast(Detections, detector.predict(self._dataset.source.path(place)))
            rows += _rows(found, number, self._dataset, "mask_ap50" in self.scores)
        figures: dict[str, float] = {}
        for kind, prefix in (("bbox", ""), ("segm", "mask_")):
            if f"{prefix}ap50" in self.scores:
                precision = measure(self._dataset, rows, ids, kind).percent()
                figures |= {f"{prefix}{name}": precision[name] for name in ("ap", "ap50")}
        return figures


class _Pictures(Sequence[Tensor]):
    """Reads an image, as a program takes it, each time that it is asked for: all of them may not fit into memory."""

    def __init__(self, detector: ExportedDetector, files: Sequence[str]) -> None:
        self._detector, self._files = detector, files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, place: Any) -> Any:
        return self._detector.prepare(self._files[place]).images


def _rows(found: Detections, picture: int, dataset: BoxDataset, with_masks: bool) -> Iterator[dict[str, Any]]:
    """Write the detections of an image as COCO has them."""
    if not with_masks:
        found = Detections(found.picture, found.boxes, found.scores, found.labels, None, found.classes)
    for one, label in zip(found.to_json()["objects"], found.labels.tolist(), strict=True):
        x1, y1, x2, y2 = one["box"]
        row = {"image_id": picture, "category_id": dataset.categories[label], "score": one["score"]}
        masks = {"segmentation": one["mask"]} if with_masks else {}
        yield {**row, "bbox": [x1, y1, x2 - x1, y2 - y1], **masks}


def objects_change(found: Sequence[Objects], wanted: Sequence[Objects]) -> float:
    """Return by how much objects differ from others of the same images: 0 not at all, 1 in all.

    Of an object stays the overlap with its best counterpart of the same class, times the lower of the two scores. Each
    counts by the square of its score: a few sure objects for more than the many unsure ones that a detector adds.
    The worse of the two directions is returned, so that lost objects and new ones count alike.
    """
    total, kept = [0.0, 0.0], [0.0, 0.0]
    for ours, theirs in zip(found, wanted, strict=True):
        alike = _alike(ours, theirs)
        for side, (one, axis) in enumerate(((ours, 1), (theirs, 0))):
            total[side] += float(one[1].square().sum())
            if alike.numel():
                kept[side] += float(alike.amax(axis).sum())
    return max(
        (1 - part / whole if whole else float(total != [0, 0])) for part, whole in zip(kept, total, strict=True)
    )


def _alike(ours: Objects, theirs: Objects) -> Tensor:
    """Return (objects of ours, of theirs): the overlap times the square of the lower score; 0 between classes."""
    overlap = torchvision.ops.box_iou(ours[0], theirs[0])
    if len(ours) > 3 and overlap.numel():
        one, other = ((side[3] >= 0.5).flatten(1).float() for side in (ours, theirs))
        both = one @ other.T
        either = one.sum(1)[:, None] + other.sum(1)[None] - both
        overlap = torch.minimum(overlap, torch.where(either > 0, both / either.clamp(min=1), 1.0))
    lower = torch.minimum(ours[1][:, None], theirs[1][None])
    return torch.where(ours[2][:, None] == theirs[2][None], overlap.nan_to_num() * lower.square(), 0.0)
