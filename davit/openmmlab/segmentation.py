"""What MMSegmentation gets from us: folders of masks with labels to ignore, and test-time augmentation in little memory.

Configs name this module in ``custom_imports``, after ``davit.openmmlab``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.structures import PixelData
from mmseg.datasets import BaseSegDataset
from mmseg.models.segmentors import SegTTAModel
from mmseg.registry import DATASETS, MODELS

IGNORED = 255  # what losses and metrics leave out


@DATASETS.register_module(force=True)
class MaskFolders(BaseSegDataset):
    """Pictures in one folder, and for each a greyscale mask of the same name in another.

    Args:
        ignored_labels: values of the masks that are no class, as CamVid's 11 for "void"; neither trained on nor
            counted. 255 always is such a value. With ``reduce_zero_label`` these are the values after reducing.
        kwargs: those of mmseg's ``BaseSegDataset``: data_root, data_prefix, img_suffix, seg_map_suffix, ann_file,
            metainfo, reduce_zero_label ...
    """

    def __init__(self, ignored_labels: Sequence[int] = (), **kwargs: Any):
        self.ignored_labels = tuple(ignored_labels)
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """mmseg's list, where every mask is read with the ignored labels made 255."""
        infos: list[dict[str, Any]] = super().load_data_list()
        if self.ignored_labels:
            for info in infos:
                info["label_map"] = dict.fromkeys(self.ignored_labels, IGNORED)
        return infos


@MODELS.register_module(force=True)
class AveragedTTA(SegTTAModel):
    """The mean of the softmax maps of all views, as mmseg's ``SegTTAModel`` gives, held one view at a time.

    mmseg keeps every view's map until the end: for ADE20K's 12 views of 150 classes that is 7 GB for a picture of a
    million pixels.
    """

    def test_step(self, data: dict[str, Any]) -> list[Any]:
        """Predict a batch whose every value is a list of views.

        Returns:
            A ``SegDataSample`` for each picture: the label of each pixel, and as ``seg_logits`` the mean
            probabilities (classes, H, W), both at the picture's own size.
        """
        if self.module.out_channels == 1:  # one class by a threshold: no softmax
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
