"""Which check belongs to which data set."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def check_dataset(dataset: Any, split: str, model: Any) -> None:
    """Look at all of a data set before a run starts.

    Args:
        dataset: the config of one data set.
        split: 'train', 'val' or 'test'.
        model: the config of the model, which says whether it needs masks.

    Raises:
        DataError: something is missing, broken or does not fit.
    """
    if _is_coco(dataset):
        from .coco import check_coco

        masks = "mask_head" in (model.get("roi_head") or {})
        check_coco(dataset, split, masks=masks)
    else:
        log.info("%s: data sets of type %s are not checked before the run.", split, dataset["type"])


def classes_of(dataset: Any) -> tuple[str, ...]:
    """The classes that a data set's own files name, for ``--classes auto``.

    Raises:
        ValueError: files of this kind name none.
    """
    if _is_coco(dataset):
        from .coco import categories_of

        return categories_of(Path(dataset.get("data_root") or ".") / dataset["ann_file"])
    raise ValueError(
        f"--classes auto: the files of a {dataset['type']} do not name classes; pass --classes NAME NAME ..."
    )


def _is_coco(dataset: Any) -> bool:
    from mmdet.datasets import CocoDataset
    from mmdet.registry import DATASETS

    found = DATASETS.get(dataset["type"])
    return found is not None and issubclass(found, CocoDataset)
