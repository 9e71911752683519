"""Add to MMSegmentation: labels to ignore, test-time augmentation in little memory, predictions drawn.

Configs name this module in ``custom_imports``, after ``davit.openmmlab``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.structures import PixelData
from mmseg.datasets import BaseSegDataset
from mmseg.engine.hooks import SegVisualizationHook
from mmseg.models.segmentors import SegTTAModel
from mmseg.registry import DATASETS, HOOKS, MODELS

from .loading import LoadImageFromFile
from .masks import IGNORED
from .predictor import draw_segments


@DATASETS.register_module(force=True)
class MaskFolders(BaseSegDataset):
    """Pictures in one folder, and for each a greyscale mask of the same name in another.

    Args:
        ignored_labels: values of the masks that are no class, such as CamVid's 11 for "void"; neither trained on
            nor counted. 255 always is such a value. With ``reduce_zero_label`` these are the values after reducing.
        kwargs: those of mmseg's ``BaseSegDataset``: data_root, data_prefix, img_suffix, seg_map_suffix, ann_file,
            metainfo, reduce_zero_label ...
    """

    def __init__(self, ignored_labels: Sequence[int] = (), **kwargs: Any):
        self.ignored_labels = tuple(ignored_labels)
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """List pictures and masks as mmseg does; reading a mask then makes the ignored labels 255."""
        infos: list[dict[str, Any]] = super().load_data_list()
        if self.ignored_labels:
            for info in infos:
                info["label_map"] = dict.fromkeys(self.ignored_labels, IGNORED)
        return infos


@MODELS.register_module(force=True)
class AveragedTTA(SegTTAModel):
    """Average the softmax maps of all views as mmseg's ``SegTTAModel`` does, but hold only one view at a time.

    mmseg keeps the maps of all views until the end: for ADE20K's 12 views of 150 classes that is 7 GB for a picture
    of a million pixels.
    """

    def test_step(self, data: dict[str, Any]) -> list[Any]:
        """Predict a batch in which every value is a list of views.

        Returns:
            A ``SegDataSample`` for each picture: the label of each pixel, and as ``seg_logits`` the mean
            probabilities (classes, H, W), both at the picture's own size.
        """
        if self.module.out_channels == 1:  # a single class is found by a threshold, without softmax
            return list(super().test_step(data))
        views = len(data["inputs"])
        samples: list[Any] = []
        totals: list[Any] = []
        for view in range(views):
            found = self.module.test_step({name: values[view] for name, values in data.items()})
            maps = [sample.seg_logits.data.softmax(dim=0) for sample in found]
            samples = samples or found
            totals = [total.add_(one) for total, one in zip(totals, maps, strict=True)] if totals else maps
        for sample, total in zip(samples, totals, strict=True):
            sample.set_data(
                {
                    "seg_logits": PixelData(data=total.div_(views)),
                    "pred_sem_seg": PixelData(data=total.argmax(dim=0, keepdim=True)),
                }
            )
        return samples


@HOOKS.register_module(force=True)
class DrawnPredictions(SegVisualizationHook):
    """Write every test picture with its predicted segments to ``out_dir``, in every process (mmseg: only the first).

    A file is named as its picture is below the data set's folder of pictures, and ends with .png.
    """

    def __init__(self, out_dir: str):
        super().__init__(draw=True)
        self.out_dir = Path(out_dir)

    def before_test(self, runner: Any) -> None:
        """Remember the classes and the folder of the test set."""
        dataset = runner.test_dataloader.dataset
        self._meta = dataset.metainfo
        steps = dataset.pipeline.transforms
        self._loader = next((step for step in steps if isinstance(step, LoadImageFromFile)), LoadImageFromFile())
        self._root = Path(dataset.data_prefix.get("img_path") or dataset.data_root or ".").absolute()

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        """Draw the predictions of a batch."""
        for sample in outputs:
            picture = Path(sample.img_path).absolute()
            inside = picture.relative_to(self._root) if picture.is_relative_to(self._root) else Path(picture.name)
            target = (self.out_dir / inside).with_suffix(".png")
            target.parent.mkdir(parents=True, exist_ok=True)
            image = np.asarray(self._loader.shown(sample.img_path))
            labels = sample.pred_sem_seg.data.squeeze().cpu().numpy()
            draw_segments(image, labels, self._meta["classes"], self._meta["palette"]).save(target)
