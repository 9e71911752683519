"""Folders of segmentation masks, checked before a run starts rather than when the first bad mask is drawn.

Headers of all files are read, for their sizes and kinds. Labels need the whole mask: of up to `ALL` masks all are
read, of more a sample spread evenly over the list.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from ..data import DataError
from ..data.folder import absent
from ..text import some

log = logging.getLogger(__name__)

ALL = 2000  # masks whose labels are read in some ten seconds
IGNORED = 255
_TURNED = (5, 6, 7, 8)  # EXIF orientations by which MMSegmentation reads a picture with its sides swapped
_ORIENTATION = 0x0112
_PALETTE_IS_LABELS = ("PascalVOCDataset",)  # the one well-known set that is published so
_KINDS = {"P": "a palette picture", "PA": "a palette picture", "I;16": "of 16 bits", "I": "of 32 bits"}
_THREADS = 8  # decoding lets Python's lock go, and a network disk answers many at once

T = TypeVar("T")


@dataclass(frozen=True)
class MaskSummary:
    """What is in a data set, as the segmentor will see it."""

    pictures: int
    classes: int
    read: int
    ignored: float
    absent: int

    def __str__(self) -> str:
        masks = "all masks" if self.read == self.pictures else f"{self.read:,} masks spread over them"
        text = (
            f"{self.pictures:,} pictures with masks of {self.classes} classes; all sizes checked; labels of {masks} "
        )
        text += f"checked: {100 * self.ignored:.3g} % of the pixels are ignored"
        if self.absent:
            text += f", {self.absent} classes do not occur"
        return text


def check_masks(dataset: Any, cls: type[Any], split: str, model: Any, with_masks: bool = True) -> MaskSummary | None:
    """Check the data set of a config.

    Args:
        dataset: the config of a ``BaseSegDataset``.
        cls: its class.
        split: what to call it in messages: 'train', 'val' or 'test'.
        model: the config of the segmentor, for its number of classes.
        with_masks: False where predictions are only written, which needs no masks.

    Raises:
        DataError: a folder or file is missing, unreadable, or no mask that fits its picture and the classes.
    """
    found = _list(dataset, cls)
    classes = found.metainfo.get("classes")
    if not classes:
        raise DataError(
            f"{split}: the data set has no classes: name them in the order of their labels, --classes NAME NAME ..."
        )
    _check_heads(model, len(classes))
    infos = _pairs(found)
    pictures = [Path(info["img_path"]) for info in infos]
    _check_there(pictures, "the list of pictures names")
    if not with_masks:
        log.info("%s: %s pictures; masks are not needed.", split, f"{len(pictures):,}")
        return None
    masks = [Path(info["seg_map_path"]) for info in infos]
    _check_there(masks, f"for {len(pictures):,} pictures in {_folder(found, 'img_path')} masks are missing:")
    palette_is_labels = cls.__name__ in _PALETTE_IS_LABELS
    _each(lambda pair: _check_header(pair[0], pair[1], palette_is_labels), zip(pictures, masks, strict=True))
    summary = _check_labels(found, infos, split)
    log.info("%s: %s.", split, summary)
    return summary


def _list(dataset: Any, cls: type[Any]) -> Any:
    """The data set by its own class, without a pipeline and not yet filled."""
    options = {name: value for name, value in dataset.items() if name not in ("type", "pipeline", "lazy_init")}
    try:
        return cls(pipeline=[], lazy_init=True, **options)
    except ValueError as error:  # --classes that are not among those of a known data set
        raise DataError(
            f"{cls.__name__}: {str(error)[:300]} For a data set of your own use "
            "configs/upernet_davit_folders.py, or set the type of the data sets to MaskFolders."
        ) from error


def _folder(found: Any, prefix: str) -> str:
    return str(found.data_prefix.get(prefix) or found.data_root or ".")


def _check_heads(model: Any, classes: int) -> None:
    for name in ("decode_head", "auxiliary_head"):
        for head in _as_list(model.get(name)):
            outputs = head.get("num_classes")
            if outputs is not None and outputs != classes:
                raise DataError(
                    f"model.{name} has {outputs} classes, the data set {classes}. Pass --classes, which sets both, or "
                    f"--cfg-options model.{name}.num_classes={classes}."
                )
            for loss in _as_list(head.get("loss_decode")):
                weights = loss.get("class_weight")
                if isinstance(weights, list | tuple) and len(weights) != classes:
                    raise DataError(
                        f"model.{name}.loss_decode.class_weight has {len(weights)} weights for {classes} classes. "
                        f"Pass --cfg-options model.{name}.loss_decode.class_weight=None, or a weight for each."
                    )


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _pairs(found: Any) -> list[dict[str, Any]]:
    """The pictures and their masks, as the data set lists them."""
    folder = Path(_folder(found, "img_path"))
    if not folder.is_dir():
        raise DataError(
            f"there is no folder {folder}. ADE20K belongs into mmseg/data/ade/ADEChallengeData2016 "
            "(images/{training,validation}, annotations/...); a data set elsewhere is named with --data-root DIR, its "
            "folders with --cfg-options train_dataloader.dataset.data_prefix.img_path=... (mmseg/README.md has "
            "examples)."
        )
    if found.ann_file and not Path(found.ann_file).exists():
        raise DataError(f"there is no list of pictures {found.ann_file} (ann_file of the data set).")
    infos: list[dict[str, Any]] = found.load_data_list()
    if not infos:
        if found.ann_file:
            raise DataError(f"the list of pictures {found.ann_file} is empty.")
        kinds = Counter(file.suffix for file in folder.rglob("*") if file.is_file())
        there = ", ".join(f"{count} of {kind or 'no suffix'}" for kind, count in kinds.most_common(4)) or "no files"
        raise DataError(
            f"{folder} holds no picture whose name ends with {found.img_suffix!r}; there are {there}. Set img_suffix "
            "of the data set (--cfg-options train_dataloader.dataset.img_suffix=.png)."
        )
    return infos


def _check_there(files: list[Path], what: str) -> None:
    """Every file is there."""
    missing = absent(files)
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(
            f"{what} {', '.join(map(str, missing[:3]))}{more}: not there. Copy them, take their pictures out, or set "
            "data_prefix, img_suffix and seg_map_suffix of the data set to how the files are called."
        )


def _each(check: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
    with ThreadPoolExecutor(_THREADS) as pool:
        try:
            return list(pool.map(check, items))
        finally:
            pool.shutdown(cancel_futures=True)


def _check_header(picture: Path, mask: Path, palette_is_labels: bool) -> None:
    """The mask is one channel of 8 bits, as large as its picture."""
    with _opened(picture) as image:
        size = image.size[::-1] if image.getexif().get(_ORIENTATION) in _TURNED else image.size
    with _opened(mask) as image:
        kind, mask_size = image.mode, image.size
    if kind not in ("L", "1") and not (kind == "P" and palette_is_labels):
        what = _KINDS.get(kind, f"of {kind} colours")
        raise DataError(
            f"{mask} is {what}, not a mask: a mask is greyscale of 8 bits, the value of a pixel its label. "
            + (
                "If the indices of its palette are the labels, keep them alone: "
                "Image.fromarray(numpy.asarray(Image.open(FILE))).save(FILE)."
                if kind == "P"
                else "Translate its colours or values into labels 0, 1, 2 ... and save it as greyscale PNG."
            )
        )
    if mask_size != size:
        raise DataError(
            f"{mask} is {mask_size[0]} x {mask_size[1]} pixels, its picture {picture} {size[0]} x {size[1]}. Make "
            "them the same size (a mask is scaled by nearest neighbour)."
        )


def _opened(file: Path) -> Image.Image:
    try:
        return Image.open(file)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{file} is not a readable picture: {error}. Copy it again, or take it out.") from error


def _check_labels(found: Any, infos: list[dict[str, Any]], split: str) -> MaskSummary:
    """Every label of the masks that are read is a class or ignored."""
    read = infos if len(infos) <= ALL else [infos[i] for i in np.linspace(0, len(infos) - 1, ALL).astype(int)]
    counts = np.stack(_each(lambda info: label_counts(Path(info["seg_map_path"])), read))
    classes = len(found.metainfo["classes"])
    label_map = infos[0].get("label_map")
    new = as_trained(np.arange(256), found.reduce_zero_label, label_map)
    allowed = (new < classes) | (new == IGNORED)
    bad = (counts > 0) & ~allowed
    if bad.any():
        row = int(np.flatnonzero(bad.any(axis=1))[0])
        labels = [int(label) for label in np.flatnonzero(bad[row])]
        raise DataError(_past_the_classes(found, Path(read[row]["seg_map_path"]), labels, int(bad.any(axis=1).sum())))
    total = counts.sum(axis=0)
    ignored = float(total[new == IGNORED].sum() / total.sum())
    if ignored == 1.0:
        raise DataError(
            f"{split}: every pixel of the {len(read):,} masks that were read is ignored (the first is "
            f"{read[0]['seg_map_path']}); reduce_zero_label={found.reduce_zero_label}, and the masks hold "
            f"{some(np.flatnonzero(total), 6)}."
        )
    present = set(new[total > 0].tolist()) - {IGNORED}
    return MaskSummary(len(infos), classes, len(read), ignored, classes - len(present))


def _past_the_classes(found: Any, mask: Path, labels: list[int], files: int) -> str:
    classes, reduced = len(found.metainfo["classes"]), found.reduce_zero_label
    first, last = (1, classes) if reduced else (0, classes - 1)
    text = (
        f"{mask} holds {'label' if len(labels) == 1 else 'labels'} {some(labels, 6)}, and {files - 1} other masks "
        f"hold such ones; the {classes} classes are {first} to {last} (reduce_zero_label={reduced}), and {IGNORED} is "
        "ignored. "
    )
    if labels == [classes] and not reduced:
        text += "If the masks number their classes from 1, set reduce_zero_label=True on the data sets; if "
        text += f"{classes} stands for no class, ignore it: "
    else:
        text += "Name all classes with --classes, or ignore a label that is none: "
    return text + f"a MaskFolders data set with ignored_labels=[{labels[0]}]."


def label_counts(mask: Path) -> Any:
    """How many pixels of a mask have each label, as it is in the file; shape (256,).

    Raises:
        DataError: the file cannot be read to its end.
    """
    try:
        with _opened(mask) as image:
            return np.bincount(np.asarray(image, dtype=np.uint8).ravel(), minlength=256)
    except (OSError, ValueError, SyntaxError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{mask} cannot be read to its end: {error}. Copy it again, or take it out.") from error


def as_trained(labels: Any, reduce_zero_label: bool, label_map: dict[int, int] | None = None) -> Any:
    """Labels of a mask file as the loss sees them, `IGNORED` for none.

    Args:
        labels: an integer array of values from 0 to 255.
        reduce_zero_label: 0 becomes ignored, every other label one less.
        label_map: what is renamed after that.
    """
    new = np.asarray(labels).copy()
    if reduce_zero_label:
        new = np.where((new == 0) | (new == IGNORED), IGNORED, new - 1)
    if label_map:
        before = new.copy()
        for old, to in label_map.items():
            new[before == old] = to
    return new
