"""Find objects in an image: ``Predictor("output/train/RUN").predict("picture.jpg").draw()``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..data.decode import as_shown, load_picture
from ..engine.distributed import device_named
from ..predict.objects import Detections
from ..predict.pictures import Picture, as_stored, name_of
from .augment import pixels_of, prepared
from .evaluate import best_boxes
from .model import load_detector


class Predictor:
    """A trained detector that is ready for images.

    Args:
        source: the folder of a run of `davit det train --head` (its best checkpoint), a checkpoint in it, or a folder
            in transformers' format.
        score_threshold: detections below are left out.
        device: auto, cpu, cuda or cuda:N.

    Attributes:
        classes: the names of the classes.
        task: detection.

    Raises:
        CheckpointError: it is no such detector, or cannot be read.
    """

    task = "detection"

    def __init__(self, source: str | Path, score_threshold: float = 0.3, device: str = "auto") -> None:
        self.device = device_named(device)
        loaded = load_detector(source, self.device)
        self.model, self.classes, self.side = loaded.detector, loaded.class_names, loaded.side
        self.score_threshold = score_threshold

    @torch.inference_mode()
    def predict(self, picture: Picture) -> Detections:
        """Find the objects in an image: a file, its bytes, a PIL image, or an array (H, W, 3) RGB.

        Raises:
            BadImageError: the file is no image that can be read.
            ValueError: something else than a `Picture`.
        """
        name = name_of(picture)
        decoded = as_shown(load_picture(as_stored(picture, name), name))
        image = prepared(pixels_of(decoded), self.side)[None].to(self.device)
        logits, boxes = self.model(image)
        sizes = torch.tensor([[decoded.width, decoded.height]], device=self.device)
        labels, scores, corners = (part[0].cpu() for part in best_boxes(logits.float(), boxes.float(), sizes))
        kept = scores >= self.score_threshold
        found = (corners[kept].float().numpy(), scores[kept].numpy(), labels[kept].numpy())
        return Detections(np.asarray(decoded), *found, None, self.classes)
