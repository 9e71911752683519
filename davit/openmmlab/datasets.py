"""Find the class of a config's data set, its class names, and the check that belongs to it."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS, DefaultScope

from ..data.coco import categories_of, check_annotations
from .masks import check_masks

log = logging.getLogger(__name__)


def check_dataset(dataset: Any, split: str, model: Any, labelled: bool = True) -> None:
    """Check all of a data set before a run starts, and log what is in it.

    Args:
        dataset: the config of one data set.
        split: 'train', 'val' or 'test'.
        model: the config of the model, which says whether it needs masks, and how many classes it has.
        labelled: False where predictions are only written: a segmentor then needs no masks.

    Raises:
        DataError: something is missing, broken or does not fit.
    """
    cls = class_of(dataset)
    if _is_a(cls, "mmdet", "CocoDataset"):
        root = Path(dataset.get("data_root") or ".")
        folder = root / dataset.get("data_prefix", {}).get("img", "")
        needs_masks = "mask_head" in (model.get("roi_head") or {})
        classes = metainfo_of(dataset)["classes"]
        classes = (classes,) if isinstance(classes, str) else tuple(classes)
        log.info("%s: %s.", split, check_annotations(root / dataset["ann_file"], folder, classes, needs_masks))
    elif _is_a(cls, "mmseg", "BaseSegDataset"):
        log.info("%s: %s.", split, check_masks(dataset, cls, model, labelled))
    else:
        log.info("%s: data sets of type %s are not checked before the run.", split, dataset["type"])


def named_classes(dataset: Any) -> tuple[str, ...]:
    """Read the classes that a data set's own files name, for ``--classes auto``.

    Raises:
        ValueError: files of this kind name none.
    """
    if _is_a(class_of(dataset), "mmdet", "CocoDataset"):
        return categories_of(Path(dataset.get("data_root") or ".") / dataset["ann_file"])
    if classes := metainfo_of(dataset).get("classes"):  # a list beside masks, or polygons' categories
        return tuple(classes)
    raise ValueError(
        f"--classes auto: the files of a {dataset['type']} do not name classes; pass --classes NAME NAME ..."
    )


def metainfo_of(dataset: Any) -> dict[str, Any]:
    """Return the classes and colours that a data set will have: its config's, else those of its class."""
    return {**getattr(class_of(dataset), "METAINFO", {}), **(dataset.get("metainfo") or {})}


def class_of(dataset: Any) -> Any:
    """Look up the class of a data set in mmdet or mmseg, whichever the config is of; None for an unknown name."""
    if isinstance(dataset["type"], type):
        return dataset["type"]
    with DATASETS.switch_scope_and_registry(None) as registry:
        return registry.get(dataset["type"])


def _is_a(cls: Any, library: str, name: str) -> bool:
    """Tell whether the config is of a library and the class is one of its class ``name``."""
    if cls is None or DefaultScope.get_current_instance().scope_name != library:
        return False
    return issubclass(cls, getattr(importlib.import_module(f"{library}.datasets"), name))
