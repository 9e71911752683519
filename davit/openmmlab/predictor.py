"""Predict with a trained detector or segmentor: ``Predictor(config, checkpoint).predict(picture).draw()``."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps
from torch import nn
from torchvision.utils import draw_bounding_boxes

from ..checkpoint import read_checkpoint
from ..engine.distributed import device_named
from ..fonts import drawable, pillow_font
from ..predict.pictures import Picture, as_stored, name_of
from .bands import follow_bands
from .config import datasets_of, read_config, set_classes
from .datasets import metainfo_of
from .loading import LoadImageFromFile
from .runner import load_whole

_STRENGTH = 0.6  # of a segment's colour over the picture
_MASK_STRENGTH = 0.5  # of an object's colour over the picture
_NAMED = 12  # classes that the legend has room for
_SIDE = 320  # pixels; smaller pictures are enlarged to this, so that names can be read
_LONGEST = 4 * _SIDE  # pixels; none is enlarged beyond this


@dataclass(frozen=True)
class Detections:
    """Objects of one picture, best first.

    Attributes:
        picture: (H, W, 3) RGB.
        boxes: (N, 4), x1 y1 x2 y2 in pixels of the picture.
        scores: (N,), 0 to 1.
        labels: (N,), numbers of `classes`.
        masks: (N, H, W), or None for a detector of boxes alone.
    """

    picture: NDArray[np.uint8] = field(repr=False)
    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_] | None = field(repr=False)
    classes: tuple[str, ...] = field(repr=False)

    @classmethod
    def of(
        cls, picture: NDArray[np.uint8], instances: Any, score_threshold: float, classes: tuple[str, ...]
    ) -> Detections:
        """Take those of a detector's ``InstanceData`` whose score is not below a threshold."""
        found = instances[instances.scores >= score_threshold]
        masks = found.masks.cpu().numpy().astype(bool) if "masks" in found else None
        boxes, scores, labels = (found[name].cpu().numpy() for name in ("bboxes", "scores", "labels"))
        return cls(picture, boxes, scores, labels, masks, classes)

    def draw(self) -> Image.Image:
        """Draw boxes, names, scores and masks over the picture; a small one is enlarged."""
        times = _enlargement(*self.picture.shape[:2])
        picture = self.picture
        colours = [_colour(int(label)) for label in self.labels]
        if len(self.boxes) and self.masks is not None:
            picture = self._with_masks(colours)
        canvas = torch.from_numpy(picture.repeat(times, 0).repeat(times, 1)).permute(2, 0, 1)
        if len(self.boxes):
            scored = zip(self.labels, self.scores, strict=True)
            names = [f"{drawable(self.classes[label], int(label))} {score:.2f}" for label, score in scored]
            canvas = draw_bounding_boxes(canvas, torch.from_numpy(times * self.boxes), colors=colours)
        drawn = Image.fromarray(canvas.permute(1, 2, 0).numpy())
        pen = ImageDraw.Draw(drawn)
        for i in range(len(self.boxes)):
            corner = (times * self.boxes[i, 0] + 2, times * self.boxes[i, 1] + 2)
            font = pillow_font(names[i], 10)  # white in black is read on a mask of any colour
            pen.text(corner, names[i], fill="white", font=font, stroke_width=1, stroke_fill="black")
        return drawn

    def _with_masks(self, colours: Sequence[tuple[int, int, int]]) -> NDArray[np.uint8]:
        """Lay the masks over the picture; where several overlap, with the mean of their colours."""
        assert self.masks is not None
        counts = self.masks.sum(0)[..., None]
        means = np.zeros(self.picture.shape)
        for mask, colour in zip(self.masks, colours, strict=True):
            means[mask] += colour
        means /= np.maximum(counts, 1)
        mixed = np.where(counts > 0, _MASK_STRENGTH * means + (1 - _MASK_STRENGTH) * self.picture, self.picture)
        return mixed.round().astype(np.uint8)

    def to_json(self) -> dict[str, Any]:
        """Return plain values; masks as COCO's run-length encoding."""
        from pycocotools import mask as coco_mask

        objects: list[dict[str, Any]] = []
        for i, (box, score, label) in enumerate(zip(self.boxes, self.scores, self.labels, strict=True)):
            found = {"class": self.classes[label], "score": float(score), "box": [float(value) for value in box]}
            if self.masks is not None:
                encoded = coco_mask.encode(np.asfortranarray(self.masks[i]))
                found["mask"] = {"size": encoded["size"], "counts": encoded["counts"].decode()}
            objects.append(found)
        return {"objects": objects}


@dataclass(frozen=True)
class Segmentation:
    """The class of every pixel of one picture.

    Attributes:
        picture: (H, W, 3) RGB.
        labels: (H, W), numbers of `classes`.
        palette: a colour (R, G, B) for each class.
    """

    picture: NDArray[np.uint8] = field(repr=False)
    labels: NDArray[np.int64]
    classes: tuple[str, ...] = field(repr=False)
    palette: tuple[tuple[int, int, int], ...] = field(repr=False)

    def draw(self) -> Image.Image:
        """Draw the colours of the classes over the picture, and their names below it."""
        return draw_segments(self.picture, self.labels, self.classes, self.palette)

    def to_json(self) -> dict[str, Any]:
        """Return the share of the picture that each class has."""
        present, counts = np.unique(self.labels, return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return {"classes": {self.classes[present[i]]: float(counts[i] / self.labels.size) for i in order}}


class Predictor:
    """A detector or segmentor that is ready for pictures.

    Args:
        config: a config file, or a loaded `Config`.
        checkpoint: weights of the whole model: ours, or the original code base's.
        score_threshold: detections below are left out.
        device: 'auto' (CUDA where there is one), 'cpu', 'cuda' ...

    Raises:
        ValueError: the config or the checkpoint cannot be used (also `CheckpointError`).
    """

    def __init__(
        self, config: str | Path | Config, checkpoint: str | Path, score_threshold: float = 0.3, device: str = "auto"
    ):
        cfg = config if isinstance(config, Config) else read_config(config)
        init_default_scope(cfg.default_scope)
        cfg.model.backbone.init_cfg = None
        follow_bands(cfg)
        read = read_checkpoint(checkpoint)
        self.cfg = cfg
        self.classes, self.palette = _classes(cfg, read.metadata)
        set_classes(cfg, self.classes)  # a model trained with --classes has other heads than its config
        self.model: nn.Module = MODELS.build(cfg.model)
        load_whole(self.model, read, may_adapt=False)
        self.device = device_named(device)
        self.model.to(self.device).eval()
        self.score_threshold = score_threshold
        dataset = next(datasets_of(cfg.test_dataloader))
        loader = TRANSFORMS.build(dataset.pipeline[0])
        if (
            getattr(type(loader), "transform", None) is not LoadImageFromFile.transform
        ):  # of a subclass that reads arrays
            raise ValueError(f"pictures are read by LoadImageFromFile, and this config begins with {loader}.")
        self._loader = loader
        steps = [step for step in dataset.pipeline[1:] if step["type"].split(".")[-1] != "LoadAnnotations"]
        self.pipeline = Compose([{"type": "LoadImageFromNDArray", "to_float32": loader.to_float32}, *steps])

    @torch.no_grad()
    def predict(self, picture: Picture) -> Detections | Segmentation:
        """Predict what is in a picture: a file, its bytes, a PIL image, or an array (H, W, 3) RGB.

        A model of C bands takes arrays (H, W, C). The picture is decoded as the config's test pipeline does.

        Raises:
            BadImageError: the file is no picture that can be read, or of a shape that cannot be resized.
            ValueError: something else than a `Picture`.
        """
        name = name_of(picture)
        stored = as_stored(picture, name, self._loader.bands or 3)
        img = self._loader.read(stored, name)
        packed = self.pipeline({"img": img, "img_id": 0, "img_path": name or ""})
        is_bgr = img.ndim == 3 and img.shape[2] == 3 and img.dtype == np.uint8
        pixels = np.ascontiguousarray(img[:, :, ::-1]) if is_bgr else np.asarray(self._loader.shown(stored, name))
        batch = {"inputs": [packed["inputs"]], "data_samples": [packed["data_samples"]]}
        (result,) = self.model.test_step(batch)  # type: ignore[operator]
        if "pred_sem_seg" in result:
            return Segmentation(pixels, result.pred_sem_seg.data[0].cpu().numpy(), self.classes, self.palette)
        return Detections.of(pixels, result.pred_instances, self.score_threshold, self.classes)


def _classes(cfg: Config, metadata: dict[str, Any]) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Find the names of the classes and their colours, in the checkpoint or else by the config's data set."""
    meta = metadata.get("meta")
    saved = meta.get("dataset_meta") if isinstance(meta, dict) else None
    if not (isinstance(saved, dict) and saved.get("classes")):
        saved = metainfo_of(next(datasets_of(cfg.test_dataloader)))
        if not saved.get("classes"):
            raise ValueError("neither the checkpoint nor the config names the classes: pass --classes NAME NAME ...")
    classes, palette = tuple(map(str, saved["classes"])), saved.get("palette") or ()
    if len(palette) != len(classes):
        palette = [_colour(number) for number in range(len(classes))]
    return classes, tuple((int(red), int(green), int(blue)) for red, green, blue in palette)


def _colour(number: int) -> tuple[int, int, int]:
    """Return colours that differ for neighbouring numbers: the golden ratio around the circle of hues."""
    red, green, blue = colorsys.hsv_to_rgb(number * 0.61803398875 % 1, 0.85 if number % 2 else 0.6, 1.0)
    return int(255 * red), int(255 * green), int(255 * blue)


def _enlargement(height: int, width: int) -> int:
    """Return how many times as large a picture is drawn; 1 except for small ones, as a long strip is not."""
    return max(1, min(-(-_SIDE // min(height, width)), _LONGEST // max(height, width)))


def draw_segments(image: Any, labels: Any, classes: Sequence[str], palette: Sequence[Sequence[int]]) -> Image.Image:
    """Draw a picture with its segments coloured, and below it the names of the largest.

    Args:
        image: (H, W, 3) RGB, uint8.
        labels: (H, W) integers; those that are no class leave the picture as it is.
        palette: a colour (R, G, B) for each class.
    """
    labels = np.asarray(labels)
    known = (labels >= 0) & (labels < len(classes))
    colours = np.asarray(palette, dtype=float)[np.where(known, labels, 0)]
    mixed = np.where(known[..., None], _STRENGTH * colours + (1 - _STRENGTH) * np.asarray(image), image)
    drawn = Image.fromarray(mixed.round().astype(np.uint8))
    drawn = ImageOps.scale(drawn, _enlargement(*labels.shape), Image.Resampling.NEAREST)
    numbers, areas = np.unique(labels[known], return_counts=True)
    largest = [int(number) for number in numbers[np.argsort(-areas)][:_NAMED]]
    return _with_legend(drawn, [(drawable(classes[number], number), tuple(palette[number])) for number in largest])


def _with_legend(drawn: Image.Image, entries: list[tuple[str, Any]]) -> Image.Image:
    """Put names and colours below a picture, in as many lines as they need."""
    fonts = {name: pillow_font(name, 13) for name, _ in entries}
    line, gap = 20, 8
    places: list[tuple[int, int]] = []
    x, y = gap, drawn.height + 4
    for name, _ in entries:
        width = line + int(fonts[name].getlength(name)) + gap
        if x > gap and x + width > drawn.width:
            x, y = gap, y + line
        places.append((x, y))
        x += width
    canvas = Image.new("RGB", (drawn.width, y + line if entries else drawn.height), "white")
    canvas.paste(drawn)
    pen = ImageDraw.Draw(canvas)
    for (name, colour), (left, top) in zip(entries, places, strict=True):
        pen.rectangle([left, top + 2, left + 13, top + 15], fill=colour, outline="black")
        pen.text((left + line, top), name, fill="black", font=fonts[name])
    return canvas
