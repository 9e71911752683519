"""Check folders of segmentation masks before a run starts rather than when the first bad mask is drawn.

Headers of all files are read, for their sizes and kinds. Labels need the whole mask: of up to `ALL` masks all are
read, of more a sample spread evenly over the list.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..data import DataError
from ..data.listing import absent
from ..text import some

ALL = 2000  # masks whose labels are read in some ten seconds
IGNORED = 255  # the label that losses and metrics leave out
_SIDES_SWAPPED = (5, 6, 7, 8)  # EXIF orientations by which MMSegmentation reads a picture with its sides swapped
_ORIENTATION = 0x0112
_PALETTE_IS_LABELS = ("PascalVOCDataset",)  # the one well-known set that is published so
_KINDS = {"P": "a palette picture", "PA": "a palette picture", "I;16": "of 16 bits", "I": "of 32 bits"}
_THREADS = 8  # decoding releases Python's lock, and a network disk answers many at once


@dataclass(frozen=True)
class MaskSummary:
    """What is in a data set, as the segmentor will see it; without masks only ``pictures`` and ``classes`` count.

    Attributes:
        read: masks whose labels were checked.
        ignored: share of their pixels that are no class.
        absent: classes that do not occur in them.
    """

    pictures: int
    classes: int
    read: int = 0
    ignored: float = 0.0
    absent: int = 0

    def __str__(self) -> str:
        if not self.read:
            return f"{self.pictures:,} pictures; masks are not needed"
        masks = "all masks" if self.read == self.pictures else f"{self.read:,} masks spread over them"
        absent_classes = f", {self.absent} classes do not occur" if self.absent else ""
        return (
            f"{self.pictures:,} pictures with masks of {self.classes} classes; all sizes checked; labels of {masks} "
            f"checked: {100 * self.ignored:.3g} % of the pixels are ignored{absent_classes}"
        )


def check_masks(dataset: Any, cls: type[Any], model: Any, with_masks: bool = True) -> MaskSummary:
    """Check the data set of a config.

    Args:
        dataset: the config of a ``BaseSegDataset``.
        cls: its class.
        model: the config of the segmentor, for its number of classes.
        with_masks: False where predictions are only written, which needs no masks.

    Raises:
        DataError: a folder or file is missing, unreadable, or no mask that fits its picture and the classes.
    """
    options = {name: value for name, value in dataset.items() if name not in ("type", "pipeline", "lazy_init")}
    try:
        listing = cls(pipeline=[], lazy_init=True, **options)
    except ValueError as error:  # --classes that are not among those of a known data set
        raise DataError(
            f"{cls.__name__}: {str(error)[:300]} For a data set of your own use "
            "configs/upernet_davit_folders.py, or set the type of the data sets to MaskFolders."
        ) from error
    folder = Path(listing.data_prefix.get("img_path") or listing.data_root or ".")
    classes = listing.metainfo.get("classes")
    if not classes:
        raise DataError(
            f"the data set of {folder} has no classes: name them in the order of their labels, --classes NAME NAME ..."
        )
    _check_heads(model, len(classes))
    infos = _list_pairs(listing, folder)
    pictures = [Path(info["img_path"]) for info in infos]
    _check_present(pictures, "the list of pictures names")
    if not with_masks:
        return MaskSummary(len(infos), len(classes))
    masks = [Path(info["seg_map_path"]) for info in infos]
    _check_present(masks, f"for {len(pictures):,} pictures in {folder} masks are missing:")
    palette_is_labels = cls.__name__ in _PALETTE_IS_LABELS
    read = masks if len(masks) <= ALL else [masks[i] for i in np.linspace(0, len(masks) - 1, ALL).astype(int)]
    with ThreadPoolExecutor(_THREADS) as pool:  # the first error stops it
        list(pool.map(_check_header, pictures, masks, repeat(palette_is_labels)))
        counts = np.stack(list(pool.map(label_counts, read)))
    ignored, present = _check_labels(listing, infos[0].get("label_map"), read, counts)
    return MaskSummary(len(masks), len(classes), len(read), ignored, len(classes) - present)


def _check_heads(model: Any, classes: int) -> None:
    """Check that heads have as many outputs, and losses as many weights, as there are classes."""
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


def _list_pairs(listing: Any, folder: Path) -> list[dict[str, Any]]:
    """List the pictures and their masks as the data set does."""
    if not folder.is_dir():
        raise DataError(
            f"there is no folder {folder}. ADE20K belongs into mmseg/data/ade/ADEChallengeData2016 "
            "(images/{training,validation}, annotations/...); a data set elsewhere is named with --data-root DIR, its "
            "folders with --cfg-options train_dataloader.dataset.data_prefix.img_path=... (mmseg/README.md has "
            "examples)."
        )
    if listing.ann_file and not Path(listing.ann_file).exists():
        raise DataError(f"there is no list of pictures {listing.ann_file} (ann_file of the data set).")
    infos: list[dict[str, Any]] = listing.load_data_list()
    if not infos and listing.ann_file:
        raise DataError(f"the list of pictures {listing.ann_file} is empty.")
    if not infos:
        kinds = Counter(file.suffix for file in folder.rglob("*") if file.is_file())
        there = ", ".join(f"{count} of {kind or 'no suffix'}" for kind, count in kinds.most_common(4)) or "no files"
        raise DataError(
            f"{folder} holds no picture whose name ends with {listing.img_suffix!r}; there are {there}. Set "
            "img_suffix of the data set (--cfg-options train_dataloader.dataset.img_suffix=.png)."
        )
    return infos


def _check_present(files: list[Path], what: str) -> None:
    missing = absent(files)
    if missing:
        raise DataError(
            f"{what} {some(missing, 3)}: not there. Copy them, take their pictures out, or set data_prefix, "
            "img_suffix and seg_map_suffix of the data set to how the files are called."
        )


def _check_header(picture: Path, mask: Path, palette_is_labels: bool) -> None:
    """Check that a mask is one channel of 8 bits, as large as its picture."""
    with _opened(picture) as image:
        size = image.size[::-1] if image.getexif().get(_ORIENTATION) in _SIDES_SWAPPED else image.size
    with _opened(mask) as image:
        kind, mask_size = image.mode, image.size
    if kind not in ("L", "1") and not (kind == "P" and palette_is_labels):
        remedy = (
            "If the indices of its palette are the labels, keep them alone: "
            "Image.fromarray(numpy.asarray(Image.open(FILE))).save(FILE)."
            if kind == "P"
            else "Translate its colours or values into labels 0, 1, 2 ... and save it as greyscale PNG."
        )
        raise DataError(
            f"{mask} is {_KINDS.get(kind, f'of {kind} colours')}, not a mask: a mask is greyscale of 8 bits, the "
            f"value of a pixel its label. {remedy}"
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


def _check_labels(listing: Any, label_map: dict[int, int] | None, read: list[Path], counts: Any) -> tuple[float, int]:
    """Check that every label is a class or ignored; return the share that is ignored, and how many classes occur."""
    classes = len(listing.metainfo["classes"])
    trained = as_trained(np.arange(256), listing.reduce_zero_label, label_map)
    bad = (counts > 0) & (trained >= classes) & (trained != IGNORED)
    if bad.any():
        files = np.flatnonzero(bad.any(axis=1))
        labels = np.flatnonzero(bad[files[0]]).tolist()
        raise DataError(_past_the_classes(listing, read[files[0]], labels, len(files) - 1))
    total = counts.sum(axis=0)
    ignored = float(total[trained == IGNORED].sum() / total.sum())
    if ignored == 1.0:
        raise DataError(
            f"every pixel of the {len(read):,} masks that were read is ignored (the first is {read[0]}); "
            f"reduce_zero_label={listing.reduce_zero_label}, and the masks hold {some(np.flatnonzero(total), 6)}."
        )
    return ignored, len(set(trained[total > 0].tolist()) - {IGNORED})


def _past_the_classes(listing: Any, mask: Path, labels: list[int], others: int) -> str:
    classes, reduced = len(listing.metainfo["classes"]), listing.reduce_zero_label
    first, last = (1, classes) if reduced else (0, classes - 1)
    if labels == [classes] and not reduced:
        remedy = "If the masks number their classes from 1, set reduce_zero_label=True on the data sets; if "
        remedy += f"{classes} stands for no class, ignore it: "
    else:
        remedy = "Name all classes with --classes, or ignore a label that is none: "
    return (
        f"{mask} holds {'label' if len(labels) == 1 else 'labels'} {some(labels, 6)}, and {others} other masks "
        f"hold such ones; the {classes} classes are {first} to {last} (reduce_zero_label={reduced}), and {IGNORED} is "
        f"ignored. {remedy}a MaskFolders data set with ignored_labels=[{labels[0]}]."
    )


def label_counts(mask: Path) -> Any:
    """Count the pixels of each label of a mask, as it is in the file; shape (256,).

    Raises:
        DataError: the file cannot be read to its end.
    """
    with _opened(mask) as image:
        try:
            return np.bincount(np.asarray(image, dtype=np.uint8).ravel(), minlength=256)
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{mask} cannot be read to its end: {error}. Copy it again, or take it out.") from error


def as_trained(labels: Any, reduce_zero_label: bool, label_map: dict[int, int] | None = None) -> Any:
    """Translate labels of a mask file to those that the loss sees, `IGNORED` for none.

    Args:
        labels: an integer array of values from 0 to 255.
        reduce_zero_label: 0 becomes ignored, every other label one less.
        label_map: what is renamed after that.
    """
    reduced = np.where((labels == 0) | (labels == IGNORED), IGNORED, labels - 1) if reduce_zero_label else labels
    renamed = reduced.copy()
    for old, new in (label_map or {}).items():
        renamed[reduced == old] = new
    return renamed
