"""Give the data sets of mmseg/configs the layout of the folder that --data-root names."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..data import DataError
from ..data.class_lists import find_class_list
from ..data.headers import read_headers
from ..data.layouts import Layout, Split, annotation_file, below, find_layout, say_layout
from ..data.listing import walk
from .regions import classes_of_regions

log = logging.getLogger(__name__)

_FOLDERS_ONLY = ("img_suffix", "seg_map_suffix", "ignored_labels", "label_map", "colours", "palette_is_labels")
_SET_BY_HAND = re.compile(r"_dataloader\.dataset\.(?:.*\.)?(type|ann_file|data_prefix|img_path|seg_map_path)$")
_WITH_SHAPES = ("COCO", "Roboflow", "YOLO")


def use_mask_layout(
    datasets: dict[str, list[Any]], root: Path, options: Iterable[str] = (), named: bool = False
) -> tuple[str, ...]:
    """Set the folders, lists and codings of `MaskFolders` data sets to what a folder holds, and say so in a line.

    A layout that the config names itself and that is there stays. Polygons and masks in COCO's form or in YOLO's
    make the data sets `CocoRegions`.

    Args:
        datasets: "train", "val" and "test": the configs of the data sets.
        root: the folder.
        options: names of values that the user has set; with one of a data set's folders or lists nothing is changed.
        named: the user has named the classes, so that a list of classes in the folder is not read.

    Returns:
        The classes that the folder's own files name, where neither the user nor the config has named any.

    Raises:
        DataError: there is no such folder, or no images with masks or polygons in it.
    """
    own = {split: [one for one in parts if one.get("type") == "MaskFolders"] for split, parts in datasets.items()}
    if not any(own.values()) or any(map(_SET_BY_HAND.search, options)):
        return ()
    parts = [one for several in own.values() for one in several]
    named = named or any((one.get("metainfo") or {}).get("classes") for one in parts)
    if all(_is_there(root, one, "img_path", "seg_map_path") for one in parts):
        folders = [root / one["data_prefix"]["img_path"] for one in parts]
        return () if named else _use_classes(parts, root, folders)
    try:
        layout = _find(root)
    except DataError:
        if any(_is_there(root, one, "img_path") for one in parts):
            return ()  # images without masks, as those of a server's test set; the check names what is missing
        raise
    sources = _sources(layout.splits)
    as_regions = layout.task != "segmentation"
    classes: tuple[str, ...] = ()
    for name, several in own.items():
        for one in several:
            if name not in sources:
                continue  # the check says that its folder is missing
            if as_regions:
                _use_regions(one, layout, sources[name])
            else:
                _use_folders(one, root, layout.splits[sources[name]])
    if named:
        pass
    elif as_regions:
        first = next((one for one in parts if one["type"] == "CocoRegions"), None)
        classes = classes_of_regions(Path(first["ann_file"])) if first else ()
    else:
        classes = _use_classes(parts, root, [split.pictures for split in layout.splits.values()])
    note = "; there is no val, so test stands for it" if sources.get("val") == "test" else ""
    say_layout(layout, note)
    return classes


def _is_there(root: Path, dataset: Any, *names: str) -> bool:
    prefix = dataset.get("data_prefix") or {}
    return all(prefix.get(name) and (root / prefix[name]).is_dir() for name in names)


def _find(root: Path) -> Layout:
    """Find masks, or else polygons."""
    try:
        return find_layout(root, "segmentation")
    except DataError:
        found = find_layout(root) if root.exists() else None
        if found is None or found.kind not in _WITH_SHAPES:
            raise
        return found


def _sources(splits: dict[str, Split]) -> dict[str, str]:
    """Name the split that each of the config's reads: of validation and test each reads the other's if it has none."""
    sources = {name: name for name in splits}
    for name, other in (("val", "test"), ("test", "val")):
        found = next((one for one in (name, other) if one in splits and splits[one].labelled), None)
        if found is not None:
            sources[name] = found
    return sources


def _use_folders(dataset: Any, root: Path, split: Split) -> None:
    assert split.labels is not None  # a split of masks has both folders
    dataset["data_prefix"] = {"img_path": below(root, split.pictures), "seg_map_path": below(root, split.labels)}
    dataset["ann_file"] = below(root, split.listed) if split.listed else ""
    if str(split.labels).lower().rpartition("segmentationclass")[1]:  # as Pascal VOC and CVAT write them
        dataset["palette_is_labels"] = True


def _use_regions(dataset: Any, layout: Layout, name: str) -> None:
    for argument in _FOLDERS_ONLY:
        dataset.pop(argument, None)
    file, notes = annotation_file(layout, name)
    for note in notes:
        log.warning("%s.", note)
    dataset["type"] = "CocoRegions"
    dataset["ann_file"] = str(file.absolute())
    dataset["data_prefix"] = {"img_path": str(layout.splits[name].pictures.absolute())}


def _use_classes(parts: list[Any], root: Path, folders: Iterable[Path]) -> tuple[str, ...]:
    """Read a list of classes that lies beside the masks, and how they are coded by it."""
    found = find_class_list([root, *folders])
    if found is None:
        return ()
    log.info("%s names %d classes.", found.file, len(found.names))
    for dataset in parts:
        if found.values:
            mapped = {value: label for label, value in enumerate(found.values) if value != label}
            dataset.setdefault("label_map", mapped)
        if found.colours and _are_coloured(root, dataset):
            dataset.setdefault("colours", [list(colour) for colour in found.colours])
            dataset.pop("palette_is_labels", None)
    return found.names


def _are_coloured(root: Path, dataset: Any) -> bool:
    folder = root / dataset["data_prefix"]["seg_map_path"]
    return next((header.mode for header in read_headers(list(_some_masks(folder)))), "L") in ("RGB", "RGBA", "P")


def _some_masks(folder: Path) -> Iterator[Path]:
    for place, contents in walk(folder):
        if contents.pictures:
            yield folder / place / sorted(contents.pictures)[-1]
            return
