"""Predict with a trained detector or segmentor: ``Predictor(config, checkpoint).predict(image).draw()``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from mmengine.registry import MODELS, TRANSFORMS, init_default_scope
from torch import nn

from ..checkpoint import read_checkpoint
from ..engine.distributed import device_named
from ..predict.objects import Detections, Segmentation, colour_of, draw_segments
from ..predict.pictures import Picture, as_stored, name_of
from .bands import follow_bands
from .config import datasets_of, read_config, set_classes
from .datasets import metainfo_of
from .loading import LoadImageFromFile
from .runner import load_whole

__all__ = ["Detections", "Predictor", "Segmentation", "draw_segments"]


class Predictor:
    """A detector or segmentor that is ready for images.

    Args:
        config: a config file, or a loaded `Config`.
        checkpoint: weights of the whole model: ours, or the original code base's.
        score_threshold: detections below are left out.
        device: 'auto' (CUDA where there is one), 'cpu', 'cuda' ...

    Attributes:
        task: detection or segmentation.
        bands, decoding, as_stored, as_float: how images are decoded.
        steps: what the config's test pipeline does with them then.

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
        self.task = "segmentation" if hasattr(self.model, "decode_head") else "detection"
        load_whole(self.model, read, may_adapt=False)
        self.device = device_named(device)
        self.model.to(self.device).eval()
        self.score_threshold = score_threshold
        dataset = tested_dataset(cfg)
        loader = TRANSFORMS.build(dataset.pipeline[0])
        if (
            getattr(type(loader), "transform", None) is not LoadImageFromFile.transform
        ):  # of a subclass that reads arrays
            raise ValueError(f"images are read by LoadImageFromFile, and this config begins with {loader}.")
        self._loader = loader
        self.bands: int = loader.bands or 3
        self.decoding, self.as_stored = loader.decoding, loader.as_stored
        self.as_float: bool = loader.to_float32
        self.steps = [step for step in dataset.pipeline[1:] if step["type"].split(".")[-1] != "LoadAnnotations"]
        self.pipeline = Compose([{"type": "LoadImageFromNDArray", "to_float32": loader.to_float32}, *self.steps])

    @torch.no_grad()
    def predict(self, picture: Picture) -> Detections | Segmentation:
        """Predict what is in an image: a file, its bytes, a PIL image, or an array (H, W, 3) RGB.

        A model of C bands takes arrays (H, W, C). The image is decoded as the config's test pipeline does.

        Raises:
            BadImageError: the file is no image that can be read, or of a shape that cannot be resized.
            ValueError: something else than a `Picture`.
        """
        name = name_of(picture)
        stored = as_stored(picture, name, self.bands)
        img = self._loader.read(stored, name)
        packed = self.pipeline({"img": img, "img_id": 0, "img_path": name or ""})
        is_bgr = img.ndim == 3 and img.shape[2] == 3 and img.dtype == np.uint8
        pixels = np.ascontiguousarray(img[:, :, ::-1]) if is_bgr else np.asarray(self._loader.shown(stored, name))
        batch = {"inputs": [packed["inputs"]], "data_samples": [packed["data_samples"]]}
        (result,) = self.model.test_step(batch)  # type: ignore[operator]
        if "pred_sem_seg" in result:
            return Segmentation(pixels, result.pred_sem_seg.data[0].cpu().numpy(), self.classes, self.palette)
        return Detections.of(pixels, result.pred_instances, self.score_threshold, self.classes)


def tested_dataset(cfg: Config) -> Any:
    """Return the config of the data set that is tested; one that a training saved has those alone that it used.

    Raises:
        ValueError: the config names no way to prepare images.
    """
    for name in ("test_dataloader", "val_dataloader"):
        for dataset in datasets_of(cfg.get(name)):
            return dataset
    for dataset in datasets_of(cfg.get("train_dataloader")):  # of a training without validation
        if cfg.get("test_pipeline"):
            return ConfigDict({**dataset, "pipeline": cfg.test_pipeline})
    raise ValueError(
        "the config has neither data for testing nor a test_pipeline, which prepare images: name the config that "
        "the run was started with (--config FILE)."
    )


def _classes(cfg: Config, metadata: dict[str, Any]) -> tuple[tuple[str, ...], tuple[tuple[int, int, int], ...]]:
    """Find the names of the classes and their colours, in the checkpoint or else by the config's data set."""
    meta = metadata.get("meta")
    saved = meta.get("dataset_meta") if isinstance(meta, dict) else None
    if not (isinstance(saved, dict) and saved.get("classes")):
        saved = metainfo_of(tested_dataset(cfg))
        if not saved.get("classes"):
            raise ValueError("neither the checkpoint nor the config names the classes: pass --classes NAME NAME ...")
    classes, palette = tuple(map(str, saved["classes"])), saved.get("palette") or ()
    if len(palette) != len(classes):
        palette = [colour_of(number) for number in range(len(classes))]
    return classes, tuple((int(red), int(green), int(blue)) for red, green, blue in palette)
