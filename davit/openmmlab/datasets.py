"""Find the class of a config's data set, its class names, and the check that belongs to it."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS, DefaultScope

from ..data.coco import categories_of, check_annotations
from .masks import MaskSummary, check_masks

log = logging.getLogger(__name__)


def check_dataset(
    dataset: Any,
    split: str,
    model: Any,
    labelled: bool = True,
    *,
    data_check: bool = True,
    skip_bad_images: bool = False,
) -> MaskSummary | None:
    """Check all of a data set before a run starts, and log what is in it; of a segmentor's return it too.

    A detection data set may be given another ``ann_file``, a corrected copy of its own, and its classes as a tuple.

    Args:
        dataset: the config of one data set.
        split: 'train', 'val' or 'test'.
        model: the config of the model, which says whether it needs masks, and how many classes it has.
        labelled: False where predictions are only written: a segmentor then needs no masks, a detector no objects.
        data_check: read the header of every image, and the labels of masks.
        skip_bad_images: leave images of a detection data set that are missing or cannot be read out.

    Raises:
        DataError: something is missing, broken or does not fit.
    """
    cls = class_of(dataset)
    if _is_a(cls, "mmdet", "CocoDataset") and _reads_coco(cls) and not _is_remote(dataset):
        check_coco(dataset, split, model, labelled, data_check=data_check, skip_bad_images=skip_bad_images)
    elif _is_a(cls, "mmseg", "BaseSegDataset"):
        summary = check_masks(dataset, cls, model, labelled, data_check)
        log.info("%s: %s.", split, summary)
        return summary
    else:
        kind = "on other machines" if _is_remote(dataset) else f"of type {dataset['type']}"
        log.warning("%s: data sets %s are not checked before the run.", split, kind)
    return None


def check_coco(
    dataset: Any, split: str, model: Any, labelled: bool, file: str | None = None, **options: bool
) -> str | None:
    """Check a data set of COCO's form, give it the corrected copy of its annotations, and say what was corrected.

    Args:
        file: the file of an evaluator that differs from the data set's: only this one is checked then.
        options: of `davit.data.coco.examine`.

    Returns:
        The annotation file to use.
    """
    root = Path(dataset.get("data_root") or ".")
    cls = class_of(dataset)
    training = split == "train" and not dataset.get("test_mode")
    usual_filter = cls.filter_data is importlib.import_module("mmdet.datasets").CocoDataset.filter_data
    found = check_annotations(
        root / (file or dataset["ann_file"]),
        root / (dataset.get("data_prefix") or {}).get("img", ""),
        classes_of(dataset),
        needs_masks=_needs_masks(dataset, model),
        training=training,
        labelled=labelled,
        filter_cfg=dataset.get("filter_cfg") if training and usual_filter else None,
        **options,
    )
    for note in found.notes:
        log.warning("%s: %s: %s", split, found.origin, note)
    if found.is_changed:
        log.info("%s: a corrected copy of %s is used, %s.", split, found.origin, found.file())
    log.info("%s: %s.", split, found.summary)
    used = str(found.file().absolute()) if found.is_changed else None
    if file is None:
        if used is not None:
            dataset["ann_file"] = used
        dataset["metainfo"] = {**(dataset.get("metainfo") or {}), "classes": found.classes}
    return used


def _reads_coco(cls: Any) -> bool:
    """Tell whether a class reads its file as `CocoDataset` does, not in a form of its own."""
    usual = importlib.import_module("mmdet.datasets").CocoDataset
    return cls.load_data_list is usual.load_data_list and cls.parse_data_info is usual.parse_data_info


def _is_remote(dataset: Any) -> bool:
    places = (str(dataset.get("data_root") or ""), str(dataset.get("ann_file") or ""))
    backend = (dataset.get("backend_args") or {}).get("backend", "local")
    return backend not in ("local", "disk") or any("://" in place for place in places)


def _needs_masks(dataset: Any, model: Any) -> bool:
    """Tell whether masks are learned or measured: the model has a head for them, or the pipeline loads them."""
    heads = (model, model.get("roi_head") or {})
    has_head = any(isinstance(part, dict) and part.get("mask_head") for part in heads)
    return has_head or _loads_masks(dataset.get("pipeline") or ())


def _loads_masks(pipeline: Any) -> bool:
    steps = [step for step in pipeline if isinstance(step, dict)]
    inner = [part for step in pipeline for part in ([step] if isinstance(step, list) else [])]
    inner += [step["transforms"] for step in steps if isinstance(step.get("transforms"), list)]
    return any(step.get("with_mask") for step in steps) or any(_loads_masks(part) for part in inner)


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


def classes_of(dataset: Any) -> tuple[str, ...] | None:
    """Return the class names that a data set will have, None if it has none; one name may be written as a text."""
    classes = metainfo_of(dataset).get("classes")
    if isinstance(classes, str):  # as mmengine: a file with a name per line, else a name
        file = Path(classes)
        classes = file.read_text().splitlines() if file.is_file() else [classes]
    return tuple(map(str, classes)) if classes is not None else None


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
