"""Write a built detector of MMDetection as one module from images to boxes, of operators that every exporter has.

`detector_graph` takes the networks of a detector (backbone, neck, heads) as they are, and writes what lies between and
behind them again: anchors, the choice of candidates, decoding, suppression, RoIAlign. Shapes never depend on values:
what is no candidate has the score -1. So batch, height and width are free in the exported graph.

Shape legend: B batch, N anchors of a level or candidates, R regions of an image, K objects of an image, C classes,
h, w height and width of a level's map.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .suppression import NONE, suppress

_BOX_HEADS = ("BBoxHead", "ConvFCBBoxHead", "Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead")
_OUTSIDE = -1  # the label of a row without an object


class Normalised(nn.Module):
    """Take images as exported graphs do, and give a network those that its preprocessor would: padded, in its order.

    Args:
        divisor: sides are padded to multiples of it, at the right and the bottom.
        value: of the padding, after normalisation.
        reverse: the network reads BGR.
    """

    def __init__(self, divisor: int = 1, value: float = 0.0, reverse: bool = False):
        super().__init__()
        self.divisor, self.value, self.reverse = max(1, divisor), value, reverse

    def forward(self, images: Tensor) -> Tensor:
        if self.reverse:
            images = images.flip(1)
        if self.divisor == 1:
            return images
        height, width = images.shape[2:]
        down, right = ((side + self.divisor - 1) // self.divisor * self.divisor - side for side in (height, width))
        return F.pad(images, (0, right, 0, down), value=self.value)


class Suppression:
    """How overlapping candidates are told apart, from ``nms`` of a test_cfg.

    Raises:
        ValueError: it is another way than `nms`, or has options that it does not know.
    """

    def __init__(self, settings: Mapping[str, Any], where: str):
        known = {"type", "iou_threshold", "class_agnostic", "split_thr", "max_num"}
        kind = settings.get("type", "nms")
        if kind != "nms":
            raise ValueError(f"{where}.nms has type={kind!r}, and an export has 'nms' alone.")
        if unknown := sorted(set(settings) - known):
            raise ValueError(f"{where}.nms has {', '.join(unknown)}, which an export does not have.")
        self.iou_threshold = float(settings["iou_threshold"])
        self.class_agnostic = bool(settings.get("class_agnostic", False))
        self.limit = int(settings.get("max_num", -1))

    def best(self, boxes: Tensor, scores: Tensor, groups: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return the scores (B, count) of the best candidates and their places among the N; -1 where there is none.

        Args:
            boxes: (B, N, 4).
            scores: (B, N), -1 for none.
            groups: (B, N) or (N,): only boxes of one group suppress each other.
        """
        if not self.class_agnostic:  # as mmdet does: far enough from each other that they never overlap
            real = scores[..., None] >= 0
            furthest = boxes.masked_fill(~real, 0.0).amax((1, 2))
            boxes = boxes + (groups.to(boxes.dtype) * (furthest + 1)[:, None])[..., None]
        limit = min(count, self.limit) if self.limit > 0 else count
        left = suppress(boxes, scores, self.iou_threshold, limit)
        return F.pad(left, (0, count), value=NONE).topk(count)


class Coder:
    """How four numbers of a head move and scale a box: mmdet's DeltaXYWHBBoxCoder.

    Raises:
        ValueError: the head has another coder.
    """

    def __init__(self, coder: Any):
        _require_type(coder, ("DeltaXYWHBBoxCoder",), "a bbox_coder")
        self.means, self.stds = tuple(map(float, coder.means)), tuple(map(float, coder.stds))
        self.clip, self.centre_limit = coder.clip_border, float(coder.ctr_clamp) if coder.add_ctr_clamp else None

    def decode(self, boxes: Tensor, deltas: Tensor, size: Sequence[int]) -> Tensor:
        """Return boxes (..., 4) within a height and width; ``boxes`` and ``deltas`` are (..., 4) that broadcast."""
        deltas = deltas * deltas.new_tensor(self.stds) + deltas.new_tensor(self.means)
        shift, growth = deltas[..., :2], deltas[..., 2:]
        extent = boxes[..., 2:] - boxes[..., :2]
        shift, most = extent * shift, 4.135166556742356  # -log(16 / 1000)
        if self.centre_limit is not None:
            shift, growth = shift.clamp(-self.centre_limit, self.centre_limit), growth.clamp(max=most)
        else:
            growth = growth.clamp(-most, most)
        centre, extent = (boxes[..., :2] + boxes[..., 2:]) * 0.5 + shift, extent * growth.exp()
        first, last = centre - extent * 0.5, centre + extent * 0.5
        decoded = torch.cat([first, last], -1)
        if not self.clip:
            return decoded
        height, width = size
        x, y = decoded[..., 0::2].clamp(0, width), decoded[..., 1::2].clamp(0, height)
        return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], -1)


class Anchors(nn.Module):
    """The anchors of every position of each level, in the order of mmdet's AnchorGenerator: row, column, kind."""

    def __init__(self, generator: Any):
        super().__init__()
        _require_type(generator, ("AnchorGenerator",), "an anchor_generator")
        self.strides = [(int(x), int(y)) for x, y in generator.strides]
        for level, base in enumerate(generator.base_anchors):
            self.register_buffer(f"level{level}", base.detach().clone().float(), persistent=False)

    def forward(self, level: int, scores: Tensor) -> Tensor:
        """Return (h w A, 4) for a map (B, ..., h, w)."""
        height, width = scores.shape[-2:]
        (step_x, step_y), base = self.strides[level], getattr(self, f"level{level}")
        x = torch.arange(width, device=base.device).to(base.dtype) * step_x
        y = torch.arange(height, device=base.device).to(base.dtype) * step_y
        x, y = x.expand(height, width), y[:, None].expand(height, width)
        shifts = torch.stack([x, y, x, y], -1)
        return (shifts[:, :, None] + base).reshape(-1, 4)


class DenseHead(nn.Module):
    """A head with anchors at every position: RetinaNet's, or the first stage of R-CNN.

    Args:
        head: the built head.
        where: what its settings are called in messages.
    """

    def __init__(self, head: Any, where: str):
        super().__init__()
        settings = head.test_cfg
        self.network = head
        self.anchors, self.coder = Anchors(head.prior_generator), Coder(head.bbox_coder)
        self.suppression = Suppression(settings.nms, where)
        self.candidates, self.count = int(settings.get("nms_pre", -1)), int(settings.max_per_img)
        self.threshold = float(settings.get("score_thr", 0))
        self.smallest = float(settings.get("min_bbox_size", -1))
        self.sigmoid, self.channels = bool(head.use_sigmoid_cls), int(head.cls_out_channels)
        self.classes = self.channels if self.sigmoid else self.channels - 1
        if self.count < 1:
            raise ValueError(f"{where}.max_per_img={self.count}: an export needs a number of 1 or more.")

    def levels(self, maps: Sequence[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return scores (B, N, C), deltas (B, N, 4) and anchors (N, 4) of each level."""
        found = []
        for level, (scores, deltas) in enumerate(zip(*self.network(maps), strict=True)):
            anchors = self.anchors(level, scores)
            scores = scores.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, self.channels))
            scores = scores.sigmoid() if self.sigmoid else scores.softmax(-1)[..., :-1]
            found.append((scores, deltas.permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4)), anchors))
        return found

    def every_box(self, maps: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return boxes (B, N, 4) and scores (B, N, C) of all anchors of all levels."""
        levels = self.levels(maps)
        boxes = [self.coder.decode(anchors, deltas, size) for _, deltas, anchors in levels]
        return torch.cat(boxes, 1), torch.cat([scores for scores, _, _ in levels], 1)

    def best(self, maps: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return RetinaNet's boxes (B, K, 4), scores (B, K) and labels (B, K), best first."""
        boxes, scores, labels = [], [], []
        for every_score, deltas, anchors in self.levels(maps):
            found, places = _top(
                torch.where(every_score > self.threshold, every_score, NONE).flatten(1), self.candidates
            )
            row, label = places // self.classes, places % self.classes
            boxes.append(self.coder.decode(anchors[row], _rows(deltas, row), size))
            scores.append(found)
            labels.append(label)
        return self._suppressed(torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(labels, 1))

    def proposals(self, maps: Sequence[Tensor], size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the regions (B, R, 4) of the first stage of R-CNN and their scores (B, R), -1 for none."""
        boxes, scores, groups = [], [], []
        for level, (every_score, deltas, anchors) in enumerate(self.levels(maps)):
            found, anchors = every_score[..., 0], anchors.expand(deltas.shape[0], -1, -1)
            if self.candidates > 0:
                found, row = _top(found, self.candidates)
                deltas, anchors = _rows(deltas, row), _rows(anchors, row)
            boxes.append(self.coder.decode(anchors, deltas, size))
            scores.append(found)
            groups.append(torch.full_like(found, level))
        best, left, _ = self._suppressed(torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(groups, 1))
        return best, left

    def _suppressed(self, boxes: Tensor, scores: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.smallest >= 0:
            scores = torch.where(((boxes[..., 2:] - boxes[..., :2]) > self.smallest).all(-1), scores, NONE)
        left, places = self.suppression.best(boxes, scores, groups, self.count)
        places = places.clamp(max=boxes.shape[1] - 1)
        real = left >= 0
        best = _rows(boxes, places).masked_fill(~real[..., None], 0.0)
        return best, left, groups.gather(1, places)


class Regions(nn.Module):
    """Cut the maps of regions out of a pyramid: mmdet's SingleRoIExtractor with RoIAlign.

    Each region is read at the level that fits its size. At the others it is empty, which costs nothing.
    """

    def __init__(self, extractor: Any):
        super().__init__()
        _require_type(extractor, ("SingleRoIExtractor",), "a roi_extractor")
        self.finest = float(extractor.finest_scale)
        self.layers = []
        for layer in extractor.roi_layers:
            _require_type(layer, ("RoIAlign",), "a roi_layer")
            if layer.pool_mode != "avg":
                raise ValueError(f"RoIAlign(pool_mode={layer.pool_mode!r}): an export has 'avg' alone.")
            size = layer.output_size if isinstance(layer.output_size, tuple) else (layer.output_size,) * 2
            self.layers.append((float(layer.spatial_scale), *size, int(layer.sampling_ratio), bool(layer.aligned)))

    def forward(self, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Return (B R, channels, height, width) for boxes (B, R, 4)."""
        batch, count = boxes.shape[:2]
        picture = torch.arange(batch, device=boxes.device).to(boxes.dtype)[:, None].expand(batch, count)
        flat = boxes.reshape(-1, 4)
        scale = ((flat[:, 2] - flat[:, 0]) * (flat[:, 3] - flat[:, 1])).sqrt()
        level = (scale / self.finest + 1e-6).log2().floor().clamp(0, len(self.layers) - 1)
        found = None
        for number, (spatial_scale, height, width, samples, aligned) in enumerate(self.layers):
            here = level == number
            rois = torch.cat([picture.reshape(-1, 1), torch.where(here[:, None], flat, 0.0)], 1)
            cut = torch.ops.torchvision.roi_align(
                maps[number], rois, spatial_scale, height, width, max(samples, 0), aligned
            )
            found = cut if found is None else torch.where(here[:, None, None, None], cut, found)
        assert found is not None
        return found


class BoxHead(nn.Module):
    """One second stage of R-CNN: the classes of regions, and where their objects are."""

    def __init__(self, extractor: Any, head: Any):
        super().__init__()
        _require_type(
            head, ("BBoxHead", "ConvFCBBoxHead", "Shared2FCBBoxHead", "Shared4Conv1FCBBoxHead"), "a bbox_head"
        )
        if head.custom_cls_channels or head.custom_activation:
            raise ValueError(
                f"{type(head.loss_cls).__name__} gives a bbox_head scores of its own, which no export has."
            )
        if not (head.with_cls and head.with_reg):
            raise ValueError("a bbox_head without classes or without boxes (with_cls, with_reg) cannot be exported.")
        self.regions, self.network, self.coder = Regions(extractor), head, Coder(head.bbox_coder)
        self.classes, self.agnostic = int(head.num_classes), bool(head.reg_class_agnostic)

    def forward(self, maps: Sequence[Tensor], boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (B, R, C + 1) and deltas (B, R, C or 1, 4) of regions (B, R, 4)."""
        logits, deltas = self.network(self.regions(maps, boxes))
        shape = boxes.shape[:2]
        return logits.unflatten(0, shape), deltas.unflatten(1, (-1, 4)).unflatten(0, shape)

    def refined(self, boxes: Tensor, logits: Tensor, deltas: Tensor, size: Sequence[int]) -> Tensor:
        """Return where the best class of each region says that its object is, (B, R, 4)."""
        if self.agnostic:
            return self.coder.decode(boxes, deltas[:, :, 0], size)
        best = logits[..., :-1].argmax(-1)[..., None, None].expand(-1, -1, 1, 4)
        return self.coder.decode(boxes, deltas.gather(2, best)[:, :, 0], size)


class MaskHead(nn.Module):
    """The masks of objects, as probabilities on a grid over each box."""

    def __init__(self, extractor: Any, head: Any):
        super().__init__()
        _require_type(head, ("FCNMaskHead",), "a mask_head")
        self.regions, self.network, self.agnostic = Regions(extractor), head, bool(head.class_agnostic)

    def forward(self, maps: Sequence[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Return (B, K, height, width) for boxes (B, K, 4) and their labels (B, K)."""
        masks = self.network(self.regions(maps, boxes)).sigmoid().unflatten(0, boxes.shape[:2])
        if self.agnostic:
            return masks[:, :, 0]
        height, width = masks.shape[-2:]
        chosen = labels.clamp(min=0)[..., None, None, None].expand(-1, -1, 1, height, width)
        return masks.gather(2, chosen)[:, :, 0]


class SingleStage(nn.Module):
    """From images to boxes (B, K, 4), scores and labels (B, K); raw: boxes (B, N, 4) and scores (B, N, C)."""

    def __init__(self, detector: Any, images: Normalised, raw: bool):
        super().__init__()
        self.images, self.backbone, self.neck, self.raw = images, detector.backbone, _neck(detector), raw
        _require_type(detector.bbox_head, ("RetinaHead",), "a bbox_head of a detector of one stage")
        self.head = DenseHead(detector.bbox_head, "model.test_cfg")
        if self.head.candidates < 1:
            raise ValueError(f"model.test_cfg.nms_pre={self.head.candidates}: an export needs a number of 1 or more.")
        if self.head.smallest > 0:
            raise ValueError(
                f"model.test_cfg.min_bbox_size={self.head.smallest:g} is in pixels of the image, which an exported "
                "graph does not know: set it to 0."
            )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = self.neck(self.backbone(self.images(images)))
        if self.raw:
            return self.head.every_box(maps, images.shape[2:])
        return _finished(*self.head.best(maps, images.shape[2:]))


class TwoStages(nn.Module):
    """From images to boxes (B, K, 4), scores, labels (B, K) and, with a mask head, masks (B, K, 28, 28).

    Also cascades, whose second stage is done several times.
    """

    def __init__(self, detector: Any, images: Normalised):
        super().__init__()
        heads = detector.roi_head
        _require_type(detector.rpn_head, ("RPNHead",), "a rpn_head")
        _require_type(heads, ("StandardRoIHead", "CascadeRoIHead"), "a roi_head")
        if heads.with_shared_head:
            raise ValueError("a roi_head with a shared_head cannot be exported.")
        self.images, self.backbone, self.neck = images, detector.backbone, _neck(detector)
        self.first = DenseHead(detector.rpn_head, "model.test_cfg.rpn")
        pairs = _pairs(heads.bbox_roi_extractor, heads.bbox_head)
        self.stages = nn.ModuleList(BoxHead(extractor, head) for extractor, head in pairs)
        masks = _pairs(heads.mask_roi_extractor, heads.mask_head) if heads.with_mask else []
        self.masks = nn.ModuleList(MaskHead(extractor, head) for extractor, head in masks)
        settings = heads.test_cfg
        self.suppression = Suppression(settings.nms, "model.test_cfg.rcnn")
        self.threshold, self.count = float(settings.score_thr), int(settings.max_per_img)
        if self.count < 1:
            raise ValueError(f"model.test_cfg.rcnn.max_per_img={self.count}: an export needs a number of 1 or more.")

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        size = images.shape[2:]
        maps = self.neck(self.backbone(self.images(images)))
        regions, real = self.first.proposals(maps, size)
        every = []
        stages = cast("list[BoxHead]", list(self.stages))
        for number, stage in enumerate(stages):
            logits, deltas = stage(maps, regions)
            every.append(logits)
            if number + 1 < len(self.stages):
                regions = stage.refined(regions, logits, deltas, size)
        scores = (sum(every) / len(every)).softmax(-1)[..., :-1]
        boxes = stage.coder.decode(regions[:, :, None], deltas, size).expand(-1, -1, stage.classes, 4)
        scores = torch.where((scores > self.threshold) & (real >= 0)[..., None], scores, NONE)
        boxes, scores = boxes.flatten(1, 2), scores.flatten(1)
        labels = (
            torch.zeros_like(scores, dtype=torch.int64) + torch.arange(scores.shape[1], device=scores.device)
        ) % stage.classes
        left, places = self.suppression.best(boxes, scores, labels, self.count)
        places = places.clamp(max=scores.shape[1] - 1)
        found = _finished(_rows(boxes, places), left, labels.gather(1, places))
        if not self.masks:
            return found
        masks = [head(maps, found[0], found[2]) for head in self.masks]
        return (*found, sum(masks) / len(masks))


def detector_graph(detector: Any, images: Normalised, *, raw: bool = False) -> tuple[nn.Module, tuple[str, ...]]:
    """Write a built detector as a module from normalised images (B, channels, H, W) to tensors, and name these.

    Args:
        detector: RetinaNet, Faster, Mask or Cascade R-CNN with any backbone and neck.
        raw: without suppression, for runtimes that have none: every anchor's box and scores. For RetinaNet alone.

    Raises:
        ValueError: a part of the detector is of a kind that this module does not write.
    """
    found: tuple[str, ...]
    writers: dict[str, Callable[[], tuple[nn.Module, tuple[str, ...]]]] = {
        **dict.fromkeys(("RetinaNet", "SingleStageDetector"), lambda: (SingleStage(detector, images, raw), found)),
        **dict.fromkeys(
            ("FasterRCNN", "MaskRCNN", "CascadeRCNN", "TwoStageDetector"), lambda: (TwoStages(detector, images), found)
        ),
    }
    _require_type(detector, tuple(writers), "a detector")
    two_stages = hasattr(detector, "roi_head")
    if raw and two_stages:
        raise ValueError(
            f"`raw=True`: the second stage of {type(detector).__name__} reads what suppression leaves of the first, "
            "so there are no raw outputs; RetinaNet has them."
        )
    found = ("boxes", "scores") if raw else ("boxes", "scores", "labels")
    if two_stages and detector.roi_head.with_mask:
        found = (*found, "masks")
    return writers[type(detector).__name__]()


def _finished(boxes: Tensor, scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give rows without an object the box 0 0 0 0, the score 0 and the label -1."""
    real = scores >= 0
    boxes, scores = boxes.masked_fill(~real[..., None], 0.0), scores.clamp(min=0.0)
    return boxes, scores, labels.to(torch.int64).masked_fill(~real, _OUTSIDE)


def _top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the best ``count`` of (B, N) and their places, -1 where there are fewer."""
    best, places = F.pad(scores, (0, count), value=NONE).topk(count)
    return best, places.clamp(max=scores.shape[1] - 1)


def _rows(values: Tensor, places: Tensor) -> Tensor:
    """Return rows of (B, N, D) by places (B, K)."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[2]))


def _pairs(extractors: Any, heads: Any) -> list[tuple[Any, Any]]:
    if not isinstance(heads, nn.ModuleList):
        return [(extractors, heads)]
    return list(zip(extractors, heads, strict=True))


def _neck(detector: Any) -> nn.Module:
    return detector.neck if detector.with_neck else nn.Identity()


def _require_type(part: Any, names: Sequence[str], what: str) -> None:
    """Refuse a part whose very class is not one of those that an export computes the same as."""
    if type(part).__name__ not in names:
        raise ValueError(f"{what} of type {type(part).__name__} cannot be exported; choose from {', '.join(names)}.")
