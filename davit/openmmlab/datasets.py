"""Which check belongs to which data set."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS, DefaultScope

log = logging.getLogger(__name__)


def check_dataset(dataset: Any, split: str, model: Any, labelled: bool = True) -> None:
    """Look at all of a data set before a run starts.

    Args:
        dataset: the config of one data set.
        split: 'train', 'val' or 'test'.
        model: the config of the model, which says whether it needs masks, and how many classes it has.
        labelled: False where predictions are only written: a segmentor then needs no masks.

    Raises:
        DataError: something is missing, broken or does not fit.
    """
    cls = class_of(dataset)
    if _is_coco(cls):
        from .coco import check_coco

        masks = "mask_head" in (model.get("roi_head") or {})
        check_coco(dataset, split, masks=masks)
    elif _is_masks(cls):
        from .masks import check_masks

        check_masks(dataset, cls, split, model, labelled)
    else:
        log.info("%s: data sets of type %s are not checked before the run.", split, dataset["type"])


def classes_of(dataset: Any) -> tuple[str, ...]:
    """The classes that a data set's own files name, for ``--classes auto``.

    Raises:
        ValueError: files of this kind name none.
    """
    if _is_coco(class_of(dataset)):
        from .coco import categories_of

        return categories_of(Path(dataset.get("data_root") or ".") / dataset["ann_file"])
    raise ValueError(
        f"--classes auto: the files of a {dataset['type']} do not name classes; pass --classes NAME NAME ..."
    )


def class_of(dataset: Any) -> Any:
    """The class of a data set by its name, or None; looked up in mmdet or mmseg, whichever the config is of."""
    if isinstance(dataset["type"], type):
        return dataset["type"]
    with DATASETS.switch_scope_and_registry(None) as registry:
        return registry.get(dataset["type"])


def _is_coco(cls: Any) -> bool:
    if DefaultScope.get_current_instance().scope_name != "mmdet":
        return False
    from mmdet.datasets import CocoDataset

    return cls is not None and issubclass(cls, CocoDataset)


def _is_masks(cls: Any) -> bool:
    if DefaultScope.get_current_instance().scope_name != "mmseg":
        return False
    from mmseg.datasets import BaseSegDataset

    return cls is not None and issubclass(cls, BaseSegDataset)
