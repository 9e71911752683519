"""Give the data sets of mmdet/configs the layout of the folder that --data-root names."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data import DataError
from ..data.layouts import Layout, annotation_file, below, classes_in, find_layout, say_layout
from ..text import some

log = logging.getLogger(__name__)

_COCO = ("CocoDataset", "mmdet.CocoDataset")
_NEXT_BEST = {"train": (), "val": ("test",), "test": ("val",)}
_REMEDIES = {
    "train": "Name its annotation file with --cfg-options train_dataloader.dataset.ann_file=FILE.",
    "val": "Hold some images back for it, or pass --no-validate to train without.",
    "test": "Name its annotation file with --cfg-options test_dataloader.dataset.ann_file=FILE.",
}


def use_box_layout(
    datasets: Mapping[str, Sequence[Any]], root: Path, options: Collection[str] = (), labelled: bool = True
) -> bool:
    """Set annotation files and image folders of `CocoDataset` configs to what a folder holds, and say so in a line.

    A file that the config names itself and that is there stays, and so does what the user has named; an image folder
    that is not there is then looked for. YOLO's labels are written in COCO's form (`annotation_file`).

    Args:
        datasets: the configs of the data sets that are read, by split: "train", "val", "test".
        root: the folder, or the data.yaml or json in it that is meant.
        options: names of values that the user has set.
        labelled: False where predictions are only written: a test split without annotations will do.

    Returns:
        Whether the folder's own files name other classes than the config.

    Raises:
        DataError: nothing of a layout for detection is in the folder, or not the split that is asked for.
    """
    own = {name: [one for one in several if one.get("type") in _COCO] for name, several in datasets.items()}
    layout: Layout | None = None
    for name, several in own.items():
        for dataset in several:
            named = _named(name, options)
            if "ann_file" in named or _is_there(root, dataset):
                if not named & {"img", "data_prefix"}:
                    _find_pictures(root, dataset)
                continue
            if layout is None:
                layout = find_layout(root, "detection")
                say_layout(layout)
            _use(dataset, layout, _choose(layout, name, labelled), keep_pictures=bool(named & {"img", "data_prefix"}))
    first = next((one for several in own.values() for one in several), None)
    if first is None:
        return False
    classes = layout.classes if layout is not None and layout.classes else classes_in(_file(root, first))
    if not classes or _fit(first, classes):
        return False
    log.info("The classes of the data are used: %s (--classes NAME NAME ... selects some of them).", some(classes, 12))
    return True


def _fit(dataset: Any, classes: Sequence[str]) -> bool:
    """Tell whether data of these classes are what a config asks for: all that it names, or the 80 that it does not."""
    asked = (dataset.get("metainfo") or {}).get("classes")
    if asked is not None:
        return set([asked] if isinstance(asked, str) else map(str, asked)) <= set(classes)
    from mmdet.datasets import CocoDataset

    return set(CocoDataset.METAINFO["classes"]) == set(classes)


def _named(split: str, options: Collection[str]) -> set[str]:
    """Tell which of a split's files and folders the user has named."""
    return {name.split(".")[-1] for name in options if name.startswith(f"{split}_dataloader.")}


def _file(root: Path, dataset: Any) -> Path:
    return (root if root.is_dir() else root.parent) / (dataset.get("ann_file") or "")


def _is_there(root: Path, dataset: Any) -> bool:
    return root.is_dir() and _file(root, dataset).is_file()


def _find_pictures(root: Path, dataset: Any) -> None:
    """Find the images of an annotation file whose folder is not there."""
    file, prefix = _file(root, dataset), (dataset.get("data_prefix") or {}).get("img") or ""
    if file.is_file() and not (root / prefix).is_dir():
        for split in find_layout(file, "detection").splits.values():
            dataset["data_prefix"] = {"img": below(root, split.pictures)}


def _choose(layout: Layout, name: str, labelled: bool) -> str:
    """Choose the split of a layout: of that name, else for one kind of evaluation the other's."""
    splits = layout.splits
    useless = {one for one, split in splits.items() if one == "test" and labelled and not split.labelled}
    chosen = next((one for one in (name, *_NEXT_BEST[name]) if one in splits and one not in useless), None)
    if chosen is None:
        notes = "".join(f" {note}." for note in layout.notes)
        raise DataError(f"{layout}: there is no split {name!r} in it.{notes} {_REMEDIES[name]}")
    if chosen != name:
        log.info("There is no split %s: %s is used instead.", name, chosen)
    return chosen


def _use(dataset: Any, layout: Layout, name: str, keep_pictures: bool) -> None:
    file, notes = annotation_file(layout, name)
    for note in notes:
        log.warning("%s: %s.", name, note)
    if layout.yolo is not None:
        log.info("%s: the labels were converted to COCO's form, in %s.", name, file)
    dataset["data_root"] = str(layout.root)
    dataset["ann_file"] = below(layout.root, file)
    if not keep_pictures:
        dataset["data_prefix"] = {"img": below(layout.root, layout.splits[name].pictures)}
