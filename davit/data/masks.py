"""Read the labels of masks, and find those that teach nothing: the one place that turns a mask's file into labels."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..files import cache_file, write_bytes
from ..text import some
from .errors import DataError
from .headers import Header, read_headers

log = logging.getLogger(__name__)

IGNORED = 255  # the label that losses and metrics leave out
BINARY = (  # what makes masks of 0 and 255 teach something
    "--cfg-options train_dataloader.dataset.label_map.255=1 val_dataloader.dataset.label_map.255=1"
)
MOSTLY_IGNORED = 0.5  # share of the pixels from which that is warned of
_KINDS = {
    **{"P": "a palette image", "PA": "a palette image", "I;16": "of 16 bits", "I;16B": "of 16 bits"},
    **{"I": "of 32 bits", "F": "of floating-point numbers", "LA": "greyscale with transparency"},
}
_LAYOUT = 1  # of the cached counts; another number makes them all absent
_SAID_FROM = 1.0  # seconds
_THREADS = 8  # decoding releases Python's lock, and a network disk answers many at once

Colour = tuple[int, int, int]
Labels = NDArray[np.uint8]


@dataclass(frozen=True)
class Coding:
    """How masks state labels: by the value of a pixel, or by its colour.

    Attributes:
        colours: (R, G, B) of each label, 0 first; empty where the values are the labels.
        ignored_colours: colours that are no class.
        palette_is_labels: in palette images the indices are the labels, as Pascal VOC publishes them.
    """

    colours: tuple[Colour, ...] = ()
    ignored_colours: tuple[Colour, ...] = ()
    palette_is_labels: bool = False

    def read(self, file: str | Path) -> Labels:
        """Read the labels of a mask as they are in the file, shape (H, W), not turned by EXIF.

        Raises:
            DataError: the file is missing, cannot be read to its end, or has colours that are not listed.
        """
        try:
            with Image.open(file) as image:
                if self.colours:
                    return self._labels(np.asarray(image.convert("RGB")), file)
                labels = np.asarray(image, dtype=np.uint8)
        except DataError:
            raise
        except (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError) as error:
            raise DataError(f"{file} cannot be read to its end: {error}. Copy it again, or take it out.") from error
        if labels.ndim != 2:
            raise DataError(f"{file} has {labels.shape[2]} channels; a mask has one, or colours that are listed.")
        return labels

    def fault(self, mode: str) -> str:
        """Say why a mask of this kind (Pillow's name of its pixels) is none, with the remedy; else empty."""
        colour = mode in ("RGB", "RGBA", "P", "PA")
        if mode in ("L", "1") or (colour and self.colours) or (mode == "P" and self.palette_is_labels):
            return ""
        if mode in ("P", "PA"):
            remedy = (
                "If the indices of its palette are the labels, say so with palette_is_labels=True on a MaskFolders "
                "data set; if its colours are, list them with colours=[[R,G,B],...], a colour for each class."
            )
        elif colour:
            remedy = (
                "If its colours stand for classes, list them on a MaskFolders data set with colours=[[R,G,B],...], a "
                "colour for each class, else save one channel of it as greyscale PNG."
            )
        else:
            remedy = "Translate its values into labels 0, 1, 2 ... and save it as greyscale PNG of 8 bits."
        return (
            f"is {_KINDS.get(mode, f'of {mode} colours')}, not a mask: a mask is greyscale of 8 bits, the value of a "
            f"pixel its label. {remedy}"
        )

    def _labels(self, pixels: NDArray[np.uint8], file: str | Path) -> Labels:
        """Translate colours (H, W, 3) to labels."""
        listed = np.array([*self.colours, *self.ignored_colours], dtype=np.int64)
        labels = [*range(len(self.colours)), *[IGNORED] * len(self.ignored_colours)]
        codes = listed @ (1 << 16, 1 << 8, 1)
        order = np.argsort(codes, kind="stable")
        asked = pixels.astype(np.int64) @ (1 << 16, 1 << 8, 1)
        place = np.searchsorted(codes[order], asked).clip(0, len(order) - 1)
        unknown = codes[order][place] != asked
        if unknown.any():
            strange, counts = np.unique(asked[unknown], return_counts=True)
            rows = [str((int(one) >> 16, int(one) >> 8 & 255, int(one) & 255)) for one in strange[np.argsort(-counts)]]
            raise DataError(
                f"{file} has colours that are not listed: {some(rows, 4)}, in {counts.sum():,} of its {asked.size:,} "
                "pixels. Add them to `colours`, or to `ignored_labels` where they are no class. Thousands of such "
                "colours come of a JPEG, or of scaling that mixes neighbours: export the masks again as PNG."
            )
        return np.array(labels, dtype=np.uint8)[order][place]


def as_trained(labels: Any, reduce_zero_label: bool, label_map: Mapping[int, int] | None = None) -> Any:
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


# ---- headers ----


def check_pairs(pictures: Sequence[Path], masks: Sequence[Path], coding: Coding) -> None:
    """Check by their headers that all images and masks can be opened, and that each mask fits its image.

    Raises:
        DataError: a file that is damaged, or no mask; or sizes that differ, of the upright image and its mask.
    """
    headers = read_headers([*pictures, *masks])
    shown, drawn = headers[: len(pictures)], headers[len(pictures) :]
    faults = [
        (0, f"{file} is not a readable image: {header.fault}. Copy it again, or take it out.")
        for file, header in zip([*pictures, *masks], headers, strict=True)
        if header.fault
    ]
    for picture, mask, shape, header in zip(pictures, masks, shown, drawn, strict=True):
        if not shape.fault and not header.fault:
            faults += _pair_fault(picture, mask, shape, header, coding)
    if faults:
        kind, text = faults[0]
        alike = sum(other == kind for other, _ in faults) - 1
        raise DataError(text + (f" {alike:,} more files have such a fault." if alike else ""))


def _pair_fault(picture: Path, mask: Path, shape: Header, header: Header, coding: Coding) -> list[tuple[int, str]]:
    if fault := coding.fault(header.mode):
        return [(1, f"{mask} {fault}{_colours_of(mask, header.mode)}")]
    stored = (header.height, header.width) if header.turned else (header.width, header.height)
    if stored == (shape.width, shape.height):
        return []
    remedy = "Make them the same size (a mask is scaled by nearest neighbour)."
    if shape.turned and stored == (shape.height, shape.width):
        remedy = (
            "The mask was drawn on the image as it is stored, while every reader turns the image: turn the mask "
            "alike, or remove the image's tag (`exiftool -Orientation= FILE`)."
        )
    return [
        (
            2,
            f"{mask} is {stored[0]} x {stored[1]} pixels, its image {picture} {shape.width} x {shape.height}"
            f"{', after the turn that its EXIF asks for' if shape.turned else ''}. {remedy}",
        )
    ]


def _colours_of(mask: Path, mode: str) -> str:
    """Say which colours a mask has, for `Coding.colours`, the most frequent first."""
    if mode not in ("RGB", "RGBA", "P", "PA"):
        return ""
    try:
        with Image.open(mask) as image:
            found = image.convert("RGB").getcolors(256)
    except (OSError, ValueError, SyntaxError):  # cut off, which reading it says
        return ""
    if found is None:
        return " It has more than 256 colours, so it is a photograph, or was saved as JPEG."
    return f" Its colours are {some((list(colour) for _, colour in sorted(found, reverse=True)), 8)}."  # type: ignore


# ---- labels ----


def count_labels(masks: Sequence[Path], coding: Coding) -> NDArray[np.int64]:
    """Count the pixels of each label of each mask, as it is in the file; shape (masks, 256).

    Counts are kept for the next run (`davit.files.cache_file`), and made again for a file whose size or time has
    changed. The log says how long it took when that is over a second.

    Raises:
        DataError: a file cannot be read to its end.
    """
    started = time.monotonic()
    known = _Known(masks, coding)
    states = [(stat.st_size, stat.st_mtime_ns) for stat in (mask.stat() for mask in masks)]
    rows = [known.get(mask, state) for mask, state in zip(masks, states, strict=True)]
    fresh = [index for index, row in enumerate(rows) if row is None]

    def count(index: int) -> NDArray[np.int64]:
        return np.bincount(coding.read(masks[index]).ravel(), minlength=256)

    with ThreadPoolExecutor(_THREADS) as pool:  # the first error stops it
        for index, row in zip(fresh, pool.map(count, fresh), strict=True):
            rows[index] = row
            known.put(masks[index], states[index], row)
    if fresh:
        known.save()
    if (taken := time.monotonic() - started) > _SAID_FROM:
        log.info("The labels of %s masks were read in %.1f s.", f"{len(fresh):,}", taken)
    return np.array(rows, dtype=np.int64).reshape(-1, 256)


class _Known:
    """Keep the counts of masks below a folder, by the size and time of change of each file."""

    def __init__(self, masks: Sequence[Path], coding: Coding) -> None:
        root = os.path.commonpath([mask.absolute().parent for mask in masks]) if masks else ""
        self._rows: dict[str, Any] = {}
        self._file: Path | None = None
        try:
            self._file = cache_file("labels", _LAYOUT, root, coding)
            rows = json.loads(self._file.read_bytes())
        except (OSError, ValueError, RecursionError):  # no home, a new folder, or a damaged file
            return
        self._rows = rows if isinstance(rows, dict) else {}

    def get(self, mask: Path, state: tuple[int, int]) -> NDArray[np.int64] | None:
        match self._rows.get(str(mask.absolute())):
            case [size, changed, dict(counts)] if (size, changed) == state:
                row = np.zeros(256, dtype=np.int64)
                try:
                    row[[int(label) for label in counts]] = [int(count) for count in counts.values()]
                except (ValueError, TypeError, IndexError):
                    return None
                return row
        return None

    def put(self, mask: Path, state: tuple[int, int], row: NDArray[np.int64]) -> None:
        counts = {str(label): int(row[label]) for label in np.flatnonzero(row)}
        self._rows[str(mask.absolute())] = [*state, counts]

    def save(self) -> None:
        """Write what is known; where that is not possible, the next run counts again."""
        if self._file is None:
            return
        try:
            write_bytes(self._file, json.dumps(self._rows).encode())
        except OSError as error:
            log.info("The counts of the masks' labels are not kept for the next run: %s.", error)


@dataclass(frozen=True)
class LabelReport:
    """Which labels masks hold, as the loss sees them.

    Attributes:
        ignored: share of the pixels that are no class.
        present: classes that occur.
        warnings: what will not be learned, and what to do about it, a sentence or two each.
    """

    ignored: float
    present: tuple[str, ...]
    warnings: tuple[str, ...]


def judge_labels(
    counts: NDArray[np.int64],
    files: Sequence[object],
    classes: Sequence[str],
    *,
    reduce_zero_label: bool = False,
    label_map: Mapping[int, int] | None = None,
    of_all: int | None = None,
) -> LabelReport:
    """Judge which labels occur: every one must be a class or ignored, and something must be left to learn.

    Args:
        counts: of each mask, as `count_labels` returns them.
        files: the masks' names, for messages.
        reduce_zero_label, label_map: as in `as_trained`.
        of_all: how many masks there are, where ``files`` are only some of them.

    Raises:
        DataError: masks of 0 and 255, labels past the classes, or nothing but ignored pixels.
    """
    trained = as_trained(np.arange(256), reduce_zero_label, label_map)
    total = counts.sum(axis=0)
    values = np.flatnonzero(total).tolist()
    if IGNORED in values and set(values) <= {0, IGNORED} and trained[IGNORED] == IGNORED:
        raise DataError(_binary(counts, files, classes, reduce_zero_label))
    bad = (counts > 0) & (trained >= len(classes)) & (trained != IGNORED)
    if bad.any():
        holders = np.flatnonzero(bad.any(axis=1))
        labels = np.flatnonzero(bad[holders[0]]).tolist()
        strange = np.flatnonzero(bad.any(axis=0)).tolist()
        remedy = _remedy(values, strange, len(classes), reduce_zero_label)
        first, last = (1, len(classes)) if reduce_zero_label else (0, len(classes) - 1)
        raise DataError(
            f"{files[holders[0]]} holds {'label' if len(labels) == 1 else 'labels'} {some(labels, 6)}, and "
            f"{len(holders) - 1:,} other masks hold such ones; the {len(classes)} classes are {first} to {last} "
            f"(reduce_zero_label={reduce_zero_label}), and {IGNORED} is ignored. {remedy}"
        )
    ignored = float(total[trained == IGNORED].sum() / max(total.sum(), 1))
    if ignored == 1.0 or not total.sum():
        raise DataError(
            f"every pixel of the {len(files):,} masks that were read is ignored (the first is {files[0]}); "
            f"reduce_zero_label={reduce_zero_label}, and the masks hold {some(values, 6)}."
        )
    present = sorted(set(trained[total > 0].tolist()) - {IGNORED})
    sample = "" if of_all in (None, len(files)) else f" in the {len(files):,} masks that were read of {of_all:,}"
    warnings = []
    if absent := [name for number, name in enumerate(classes) if number not in present]:
        warnings.append(_absent(classes, present, absent, sample, reduce_zero_label))
    if ignored >= MOSTLY_IGNORED:
        shares = (f"{100 * total[one] / total.sum():.1f} % {one}" for one in values if trained[one] == IGNORED)
        warnings.append(
            f"{100 * ignored:.1f} % of all pixels{sample} are ignored ({', '.join(shares)}) and teach nothing. A "
            "label that is a class is given its place by label_map.LABEL=CLASS of a MaskFolders data set, two numbers"
        )
    return LabelReport(ignored, tuple(str(classes[number]) for number in present), tuple(warnings))


def _binary(counts: NDArray[np.int64], files: Sequence[object], classes: Sequence[str], reduced: bool) -> str:
    first = files[int(np.flatnonzero(counts[:, IGNORED])[0])]
    share = 100 * counts[:, IGNORED].sum() / counts.sum()
    name = repr(str(classes[1])) if len(classes) > 1 else "the class"
    also = " and reduce_zero_label=False" if reduced else ""
    return (
        f"these look like 0/255 masks: {first} and the others hold only 0 and 255, and 255 ({share:.1f} % of all "
        f"pixels) is the label that is ignored, so {name} would never be learned. Make 255 the label 1 with "
        f"label_map.255=1{also} on the data sets (type MaskFolders): {BINARY}"
    )


def _remedy(values: list[int], strange: list[int], classes: int, reduced: bool) -> str:
    """Say what to do about labels past the classes."""
    known = [value for value in values if value != IGNORED or IGNORED - 1 not in values]
    ignore = f"a MaskFolders data set with ignored_labels=[{strange[0] - reduced}]."
    if len(known) > 2 * classes + 8 and max(known) > 200:
        return (
            f"The masks hold {len(known)} values, as a JPEG or scaling that mixes neighbours leaves them: export them "
            "again as PNG, scaled by nearest neighbour."
        )
    if strange == [classes] and not reduced:
        return (
            "If the masks number their classes from 1, set reduce_zero_label=True on the data sets; if "
            f"{classes} stands for no class, ignore it: {ignore}"
        )
    if len(known) <= classes and not reduced:
        mapped = " ".join(f"label_map.{value}={place}" for place, value in enumerate(known) if value != place)
        return (
            f"If the values {some(known, 6)} stand for the classes in this order, translate them: {mapped} on the "
            f"data sets (type MaskFolders). A label that is no class is ignored by {ignore}"
        )
    return f"Name all classes with --classes, or ignore a label that is none: {ignore}"


def _absent(classes: Sequence[str], present: list[int], absent: list[str], sample: str, reduced: bool) -> str:
    some_absent = some((repr(str(name)) for name in absent), 6)
    text = f"{len(absent)} of {len(classes)} classes never occur{sample}, so they are not learned: {some_absent}"
    if len(present) == 1:
        text += f". All that there is to learn is {str(classes[present[0]])!r}"
    if reduced and len(classes) - 1 not in present:
        text += (
            f". reduce_zero_label=True drops label 0 and takes {classes[0]!r} for label 1; if the masks number it 0, "
            "set reduce_zero_label=False"
        )
    return text


def compare_classes(train: Sequence[LabelReport], other: LabelReport) -> Iterator[str]:
    """Say which classes occur in the masks of another split but not in those of training."""
    learned = {name for report in train for name in report.present}
    if unlearned := [name for name in other.present if name not in learned]:
        yield (
            f"{len(unlearned)} classes occur in its masks and not in those of training: "
            f"{some(map(repr, unlearned), 6)}; their score can only be 0"
        )
