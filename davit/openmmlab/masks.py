"""Check the images and masks of a config before a run starts rather than when the first bad mask is drawn.

Headers of all files are read, for their sizes and kinds. Labels need the whole mask: of up to `ALL` masks all are
read, of more a sample spread evenly over the list. What stops a run is a `DataError`; what only takes something away
from it is a warning.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data import DataError
from ..data.listing import absent, left_out, list_pictures, suffix_of
from ..data.masks import BINARY, Coding, LabelReport, check_pairs, compare_classes, count_labels, judge_labels
from ..data.pairs import unasked_for
from ..text import some
from .regions import count_regions

log = logging.getLogger(__name__)

ALL = 2000  # masks whose labels are read in some ten seconds
_PALETTE_IS_LABELS = ("PascalVOCDataset",)  # the one well-known set that is published so
_OWN = (
    "For a data set of your own use configs/upernet_davit_folders.py, or set the type of the data sets to MaskFolders."
)


@dataclass(frozen=True)
class MaskSummary:
    """What is in a data set, as the segmentor will see it; without masks only ``pictures`` and ``classes`` count.

    Attributes:
        read: masks whose labels were checked.
        labels: which occur in them.
    """

    pictures: int
    classes: int
    read: int = 0
    labels: LabelReport = field(default_factory=lambda: LabelReport(0.0, (), ()))

    @property
    def ignored(self) -> float:
        """Return the share of the pixels of these masks that are no class."""
        return self.labels.ignored

    @property
    def absent(self) -> int:
        """Return how many classes do not occur in these masks."""
        return self.classes - len(self.labels.present)

    def __str__(self) -> str:
        if not self.read:
            return f"{self.pictures:,} images; masks are not needed, or not checked"
        masks = "all masks" if self.read == self.pictures else f"{self.read:,} masks spread over them"
        absent_classes = f", {self.absent} classes do not occur" if self.absent else ""
        return (
            f"{self.pictures:,} images with masks of {self.classes} classes; all sizes checked; labels of {masks} "
            f"checked: {100 * self.ignored:.3g} % of the pixels are ignored{absent_classes}"
        )


def check_masks(
    dataset: Any, cls: type[Any], model: Any, with_masks: bool = True, data_check: bool = True
) -> MaskSummary:
    """Check the data set of a config, and warn of what it holds and a run does not use.

    One of polygons may be given another ``ann_file``, a corrected copy of its own.

    Args:
        dataset: the config of a ``BaseSegDataset``.
        cls: its class.
        model: the config of the segmentor, for its number of classes.
        with_masks: False where predictions are only written, which needs no masks.
        data_check: read the headers of all images and masks, and labels.

    Raises:
        DataError: a folder or file is missing, unreadable, or no mask that fits its image and the classes; or the
            masks teach nothing.
    """
    options = {name: value for name, value in dataset.items() if name not in ("type", "pipeline", "lazy_init")}
    if hasattr(cls, "correct"):  # of polygons
        cls.correct(dataset, with_masks, data_check)
        options["ann_file"] = dataset["ann_file"]
    try:
        listing = cls(pipeline=[], lazy_init=True, **options)
    except DataError:
        raise
    except ValueError as error:  # --classes that are not among those of a known data set
        raise DataError(f"{cls.__name__}: {str(error)[:300]} {_OWN}") from error
    folder = Path(listing.data_prefix.get("img_path") or listing.data_root or ".")
    classes = listing.metainfo.get("classes")
    if not classes:
        raise DataError(
            f"the data set of {folder} has no classes: name them in the order of their labels, --classes NAME NAME ..."
        )
    _check_heads(model, classes)
    infos = _list_infos(listing, folder)
    pictures = [Path(info["img_path"]) for info in infos]
    _check_files(listing, folder, infos, with_masks)
    if not with_masks or not data_check:
        return MaskSummary(len(infos), len(classes))
    read = np.linspace(0, len(infos) - 1, min(len(infos), ALL)).astype(int).tolist()
    if "regions" in infos[0]:
        counts, chosen = count_regions([infos[index]["regions"] for index in read]), [pictures[i] for i in read]
    else:
        coding = infos[0].get("coding") or Coding(palette_is_labels=cls.__name__ in _PALETTE_IS_LABELS)
        masks = [Path(info["seg_map_path"]) for info in infos]
        check_pairs(pictures, masks, coding)
        chosen = [masks[index] for index in read]
        counts = count_labels(chosen, coding)
    report = judge_labels(
        counts,
        chosen,
        classes,
        reduce_zero_label=listing.reduce_zero_label,
        label_map=infos[0].get("label_map"),
        of_all=len(infos),
    )
    for warning in report.warnings:
        log.warning("%s: %s.", folder, warning)
    return MaskSummary(len(infos), len(classes), len(read), report)


def warn_of_unlearned(summaries: dict[str, list[MaskSummary | None]]) -> None:
    """Warn of classes that occur in masks of other splits and not in those of training."""
    reports = {split: [one.labels for one in found if one and one.read] for split, found in summaries.items()}
    if not reports.get("train"):
        return
    for split, found in reports.items():
        for report in found if split != "train" else ():
            for warning in compare_classes(reports["train"], report):
                log.warning("%s: %s.", split, warning)


def _check_heads(model: Any, classes: Sequence[str]) -> None:
    """Check that there is more than one class, and that heads have as many outputs, and losses as many weights."""
    if len(classes) == 1:
        raise DataError(
            f"{classes[0]!r} is the only class: every pixel is it, the loss is 0, and nothing is learned. Name what "
            f"is not {classes[0]!r} too: --classes background {classes[0]}, with 0 and 1 in the masks. Where they "
            f"hold 0 and 255, add {BINARY}"
        )
    for name in ("decode_head", "auxiliary_head"):
        for head in _as_list(model.get(name)):
            outputs = head.get("num_classes")
            if outputs is not None and outputs != len(classes):
                raise DataError(
                    f"model.{name} has {outputs} classes, the data set {len(classes)}. Pass --classes, which sets "
                    f"both, or --cfg-options model.{name}.num_classes={len(classes)}."
                )
            for loss in _as_list(head.get("loss_decode")):
                weights = loss.get("class_weight")
                if isinstance(weights, list | tuple) and len(weights) != len(classes):
                    raise DataError(
                        f"model.{name}.loss_decode.class_weight has {len(weights)} weights for {len(classes)} "
                        f"classes. Pass --cfg-options model.{name}.loss_decode.class_weight=None, or one for each."
                    )


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _list_infos(listing: Any, folder: Path) -> list[dict[str, Any]]:
    """List the images and their masks as the data set does, and check that they are there."""
    if not folder.is_dir():
        raise DataError(
            f"there is no folder {folder}. ADE20K belongs into mmseg/data/ade/ADEChallengeData2016 "
            "(images/{training,validation}, annotations/...); a data set elsewhere is named with --data-root DIR, its "
            "folders with --cfg-options train_dataloader.dataset.data_prefix.img_path=... (mmseg/README.md has "
            "examples)."
        )
    if listing.ann_file and not Path(listing.ann_file).exists():
        raise DataError(f"there is no list of images {listing.ann_file} (ann_file of the data set).")
    infos: list[dict[str, Any]] = listing.load_data_list()
    if not infos and listing.ann_file:
        raise DataError(f"the list of images {listing.ann_file} is empty.")
    if not infos:
        found = list_pictures(folder)
        kinds = found.left_out + Counter(suffix_of(name) for name in found.pictures)
        there = ", ".join(f"{count} of {kind or 'no suffix'}" for kind, count in kinds.most_common(4)) or "no files"
        ends = f" whose name ends with {listing.img_suffix!r}" if listing.img_suffix else ""
        remedy = "Name another folder with data_prefix.img_path of the data set"
        suffixes = Counter(Path(name).suffix for name in found.pictures if Path(name).suffix)
        if suffixes:
            ((suffix, _),) = suffixes.most_common(1)
            flags = (f"{split}_dataloader.dataset.img_suffix={suffix}" for split in ("train", "val"))
            remedy += f", or set its img_suffix (--cfg-options {' '.join(flags)})"
        raise DataError(f"{folder} holds no image{ends}; there are {there}. {remedy}.")
    return infos


def _check_files(listing: Any, folder: Path, infos: Sequence[Any], with_masks: bool) -> None:
    """Check that all images and masks are there, and warn of files that are not used."""
    pairs = getattr(listing, "pairs", None)  # of `MaskFolders`
    if pairs is None:
        pictures = [Path(info["img_path"]) for info in infos]
        _check_present(pictures, "the list of images names")
        if with_masks and "seg_map_path" in infos[0]:
            masks = [Path(info["seg_map_path"]) for info in infos]
            _check_present(masks, f"for {len(pictures):,} images in {folder} masks are missing:")
        if not listing.ann_file:
            _warn_of_unused(folder, pictures)
        return
    if pairs.absent:
        absent_pictures = some((f"{name}{listing.img_suffix or ''}" for name in pairs.absent), 3)
        raise DataError(
            f"{len(pairs.absent):,} names of {listing.ann_file} have no image in {folder}: {absent_pictures}. "
            "Copy them there, or take them out of the list."
        )
    if with_masks and pairs.without_mask:
        wanted = [info for info, mask in zip(infos, listing.masks_found(infos), strict=True) if not mask]
        named = (f"{info['img_path']} (its mask would be {info['seg_map_path']})" for info in wanted)
        raise DataError(
            f"{len(wanted):,} of {len(infos):,} images have no mask: {some(named, 2)}. Copy the masks there, take "
            "the images out, or set data_prefix, img_suffix and seg_map_suffix of the data set to how the files are "
            "called."
        )
    if with_masks and pairs.naming:
        log.info("%s: %s.", folder, pairs.naming)
    for note in pairs.notes():
        log.warning("%s: %s.", folder, note)


def _warn_of_unused(folder: Path, pictures: Sequence[Path]) -> None:
    """Warn of what a folder holds and a data set of mmseg's, which knows one suffix, does not take."""
    found, used = list_pictures(folder), set(pictures)
    if unasked := Counter(suffix_of(name) for name in found.pictures if folder / name not in used):
        log.warning("%s: %s.", folder, unasked_for(unasked))
    if found.left_out:
        log.warning("%s: %s.", folder, left_out(found.left_out))


def _check_present(files: Sequence[Path], what: str) -> None:
    missing = absent(files)
    if missing:
        raise DataError(
            f"{what} {some(missing, 3)}: not there. Copy them, take their images out, or set data_prefix, "
            "img_suffix and seg_map_suffix of the data set to how the files are called."
        )
