"""Give the data sets of mmdet/configs the layout of the folder that --data-root names."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data import DataError
from ..data.coco import categories_of
from ..data.layouts import Layout, annotation_file, find_layout
from ..text import some

log = logging.getLogger(__name__)

_COCO = ("CocoDataset", "mmdet.CocoDataset")
_NEXT_BEST = {"train": (), "val": ("test",), "test": ("val",)}


def use_box_layout(
    datasets: Mapping[str, Sequence[Any]],
    root: Path,
    options: Collection[str] = (),
    needed: Collection[str] = (),
    labelled: bool = True,
) -> tuple[str, ...]:
    """Set annotation files and picture folders of `CocoDataset` configs to what a folder holds, and say so in a line.

    A file that the config names itself and that is there stays, and so does what the user has named; a picture folder
    that is not there is then looked for. YOLO's labels are written in COCO's form (`annotation_file`).

    Args:
        datasets: "train", "val" and "test": the configs of the data sets.
        root: the folder, or the data.yaml or json in it that is meant.
        options: names of values that the user has set.
        needed: splits without which the tool cannot run.
        labelled: False where predictions are only written: a test split without annotations will do.

    Returns:
        The classes that the folder's own files name, in the order of the training file; empty if no file is there.

    Raises:
        DataError: nothing of a layout for detection is in the folder, or a split that is needed is not.
    """
    own = {name: [one for one in several if one.get("type") in _COCO] for name, several in datasets.items()}
    layout: Layout | None = None
    for name, several in own.items():
        for dataset in several:
            named = _named(name, options)
            if "ann_file" in named or _is_there(root, dataset):
                if "img" not in named:
                    _find_pictures(root, dataset)
                continue
            layout = layout or find_layout(root, "detection")
            split = _choose(layout, name, needed, labelled)
            if split is not None:
                _use(dataset, layout, split, keep_pictures="img" in named)
    if layout is not None:
        _say(layout, own)
    files = [_file(root, one) for name in ("train", "val", "test") for one in own.get(name, ())]
    return categories_of(next(iter(files))) if files and files[0].is_file() else ()


def _named(split: str, options: Collection[str]) -> set[str]:
    """Tell which of a split's files and folders the user has named."""
    return {name.split(".")[-1] for name in options if name.startswith(f"{split}_dataloader.")}


def _file(root: Path, dataset: Any) -> Path:
    return (root if root.is_dir() else root.parent) / (dataset.get("ann_file") or "")


def _is_there(root: Path, dataset: Any) -> bool:
    return root.is_dir() and _file(root, dataset).is_file()


def _find_pictures(root: Path, dataset: Any) -> None:
    """Find the pictures of an annotation file whose folder is not there."""
    file, prefix = _file(root, dataset), (dataset.get("data_prefix") or {}).get("img") or ""
    if file.is_file() and not (root / prefix).is_dir():
        for split in find_layout(file, "detection").splits.values():
            dataset["data_prefix"] = {"img": _below(root, split.pictures)}


def _choose(layout: Layout, name: str, needed: Collection[str], labelled: bool) -> str | None:
    """Choose the split of a layout: of that name, else for one kind of evaluation the other's."""
    wanted = [one for one in (name, *_NEXT_BEST[name]) if one in layout.splits]
    useless = {one for one in wanted if one == "test" and not layout.splits[one].labelled and labelled}
    chosen = next((one for one in wanted if one not in useless), None)
    if chosen is None and name in needed:
        there = some(layout.splits) or "none"
        notes = "".join(f" {note}." for note in layout.notes)
        remedy = {
            "train": "name the annotation file with --cfg-options train_dataloader.dataset.ann_file=FILE",
            "val": "hold some pictures back for it, or pass --no-validate to train without",
            "test": "name the annotation file with --cfg-options test_dataloader.dataset.ann_file=FILE",
        }[name]
        raise DataError(
            f"{layout}: there is no split {name!r} in it, only {there}.{notes} {remedy[0].upper()}{remedy[1:]}."
        )
    return chosen


def _use(dataset: Any, layout: Layout, name: str, keep_pictures: bool) -> None:
    file, notes = annotation_file(layout, name)
    for note in notes:
        log.warning("%s: %s.", name, note)
    dataset["data_root"] = str(layout.root)
    dataset["ann_file"] = _below(layout.root, file)
    if not keep_pictures:
        dataset["data_prefix"] = {"img": _below(layout.root, layout.splits[name].pictures)}


def _say(layout: Layout, own: Mapping[str, Sequence[Any]]) -> None:
    log.info("%s.", layout)
    for note in layout.notes:
        log.warning("%s.", note)
    for other in layout.others:
        if other.task == layout.task:
            log.info("Also there: %s; --data-root %s takes it.", other, other.chosen_by)


def _below(root: Path, path: Path) -> str:
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path.absolute())
