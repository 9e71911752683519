"""Measure detectors by COCO's average precision, each image once on any number of processes."""

from __future__ import annotations

import contextlib
import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import Batch
from ..data.errors import DataError
from ..engine.distributed import World
from ..engine.evaluate import Scores
from ..engine.labels import Labels
from ..files import write_bytes
from ..text import install_extra
from .data import BoxDataset
from .heads import DETECTION_METRICS

MOST = 100  # detections of an image, as COCO counts them

# where COCOeval keeps them; the numbers of 11 others are left out
_PLACES = dict(zip(DETECTION_METRICS, (0, 1, 2, 3, 4, 5, 8), strict=True))


def require_coco() -> None:
    """Raise `DataError` where pycocotools is not installed."""
    try:
        import pycocotools.cocoeval  # noqa: F401
    except ImportError as error:
        raise DataError(f"detectors are evaluated by pycocotools ({error}): {install_extra('detect')}") from error


@dataclass(frozen=True)
class Precision:
    """COCO's figures, as shares of 1; NaN where no object is of a kind.

    Attributes:
        figures: by the names of `davit.detect.heads.DETECTION_METRICS`.
        of_class: the average precision of each class, by its name.
    """

    figures: dict[str, float]
    of_class: dict[str, float]

    def percent(self) -> dict[str, float]:
        """Return the figures in percent."""
        return {name: 100 * value for name, value in self.figures.items()}


class BoxScores(Scores):
    """Collect the best detections of one rank's images, and measure those of all ranks together.

    Attributes:
        results: of all ranks once `measures` has been called: as COCO's server takes them, ordered by image.
    """

    has_loss = False

    def __init__(self, dataset: BoxDataset, device: torch.device, *, compare: bool = True) -> None:
        super().__init__(Labels(), len(dataset), device, None)
        self.dataset, self.compare = dataset, compare
        self._found: list[tuple[Tensor, ...]] = []
        self.results: list[dict[str, Any]] = []

    def add(self, answers: Any, batch: Batch) -> None:
        """Keep the best detections of a batch; those of images with a number that is not finite are left out."""
        logits_BQK, boxes_BQ4 = (one.float() for one in answers)
        is_finite_B = logits_BQK.isfinite().flatten(1).all(1) & boxes_BQ4.isfinite().flatten(1).all(1)
        zero = is_finite_B.new_zeros((), dtype=torch.int64)
        self.counts += torch.stack([zero, zero, zero + len(is_finite_B), (~is_finite_B).sum(), zero])
        self.count += len(batch.indices)
        self.seen.index_add_(0, batch.indices, torch.ones_like(batch.indices, dtype=torch.int32))
        sizes = torch.from_numpy(self.dataset.source.sizes[batch.indices.numpy()]).to(boxes_BQ4.device)
        found = best_boxes(logits_BQK, boxes_BQ4, sizes)
        for position, is_finite, parts in zip(
            batch.indices.tolist(), is_finite_B.tolist(), zip(*found, strict=True), strict=True
        ):
            kept = [part.cpu() for part in parts]
            if is_finite:
                self._found.append((torch.full_like(kept[0], position), *kept))

    def measures(self, world: World) -> Any:
        """Measure the detections of all ranks, which each gets; None where nothing is compared."""
        mine = [torch.cat(column).numpy() for column in zip(*self._found, strict=True)] if self._found else None
        parts = [part for part in world.gather(mine) if part is not None]
        rows = sorted(
            (row for part in parts for row in zip(*(column.tolist() for column in part), strict=True)),
            key=lambda row: row[0],
        )
        ids, categories = self.dataset.source.ids, self.dataset.categories
        self.results = [
            {
                "image_id": int(ids[position]),
                "category_id": categories[label],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": score,
            }
            for position, label, score, (x1, y1, x2, y2) in rows
        ]
        seen = world.sum(self.seen.clone().to(world.device)).cpu().numpy() > 0
        if not self.compare:
            return None
        measured = world.on_main(lambda: measure(self.dataset, self.results, ids[seen].tolist()))
        return world.broadcast(measured)


def best_boxes(logits_BQK: Tensor, boxes_BQ4: Tensor, sizes_B2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the best pairs of a query and a class of each image.

    Args:
        boxes_BQ4: centre x, y, width, height, as shares of the image.
        sizes_B2: width and height in pixels.

    Returns:
        Classes (B, n), scores (B, n) with the best first, and boxes (B, n, 4), x1 y1 x2 y2 in pixels.
    """
    scores_BN = logits_BQK.sigmoid().flatten(1)
    best_Bn, place_Bn = scores_BN.sort(dim=1, descending=True, stable=True)
    most = min(MOST, scores_BN.shape[1])
    best_Bn, place_Bn = best_Bn[:, :most], place_Bn[:, :most]
    classes = logits_BQK.shape[2]
    chosen_Bn4 = boxes_BQ4.gather(1, (place_Bn // classes)[..., None].expand(-1, -1, 4))
    centre, size = chosen_Bn4[..., :2], chosen_Bn4[..., 2:]
    corners = torch.cat([centre - size / 2, centre + size / 2], -1).clamp(0, 1)
    return place_Bn % classes, best_Bn, corners * torch.cat([sizes_B2, sizes_B2], 1)[:, None]


def measure(dataset: BoxDataset, results: list[dict[str, Any]], images: list[int], kind: str = "bbox") -> Precision:
    """Compare detections with annotations by COCO's rules, as pycocotools has them.

    Args:
        images: ids of the images that were looked at.
        kind: what overlaps: "bbox", or "segm" for masks, which results and annotations then have.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    names = dataset.class_names
    nothing = Precision(dict.fromkeys(DETECTION_METRICS, 0.0), dict.fromkeys(names, 0.0))
    if not results:
        return nothing
    with contextlib.redirect_stdout(io.StringIO()):  # it prints tables
        truth = COCO()
        objects = dataset.annotations.get("annotations") or ()
        kept = list(objects) if kind == "segm" else [_boxed(entry) for entry in objects]
        truth.dataset = {**dataset.annotations, "annotations": kept}
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes([dict(one) for one in results]), kind)
        judge.params.imgIds, judge.params.catIds = sorted(images), list(dataset.categories)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    # (IoU, recall, class, area, detections): -1 for a class without objects
    precision = judge.eval["precision"][:, :, :, 0, -1]
    of_class = {}
    for index, name in enumerate(names):
        values = precision[:, :, index]
        of_class[name] = float(values[values > -1].mean()) if (values > -1).any() else math.nan
    figures = {name: float(judge.stats[place]) for name, place in _PLACES.items()}
    return Precision({name: math.nan if value < 0 else value for name, value in figures.items()}, of_class)


def _boxed(entry: dict[str, Any]) -> dict[str, Any]:
    """Leave masks out, which boxes are not compared by, and which take memory."""
    return {name: value for name, value in entry.items() if name != "segmentation"}


def write_results(file: str | Path, results: list[dict[str, Any]]) -> None:
    """Write results as COCO's server takes them: a list of image_id, category_id, bbox and score."""
    write_bytes(file, json.dumps(results).encode())
