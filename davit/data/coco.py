"""Check a detection data set in COCO's format before anything is built, and mend what can be mended without guessing.

`examine` knows what pycocotools and MMDetection would later fail at or leave out without a word. What it mends or
leaves out it counts; what the user must decide it refuses, all kinds of faults at once. `Examined.file` is what is
then trained or evaluated on: the file itself, or a corrected copy of it with the ids of the original.
"""

from __future__ import annotations

import hashlib
import json
import locale
import logging
import os
import shlex
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import cache_file, write_bytes
from ..text import as_line, did_you_mean, some
from .errors import DataError
from .headers import describe_misnamed, read_headers
from .listing import locate
from .outlines import FAR, NONE, NUMBERS, area_of, check_outline

log = logging.getLogger(__name__)

LISTS = ("images", "annotations", "categories")
ORIGIN = "converted_from"  # in a file that is made of others: which file the user wrote
LINE = "converted_from"  # in an annotation of it: which line, as FILE:NUMBER

_ABSENT = object()
_SHOWN = 12  # kinds of faults in one message
_KEPT_DAYS = 30  # of a corrected copy that no run uses
_FEW = 5  # boxes from which on their format can be doubted
_LARGEST_ID = 2**63


@dataclass
class CocoSummary:
    """What is in an annotation file, as a detector of some classes sees it.

    without_area: boxes of less than a pixel or outside of their image, which MMDetection does not train on.
    other_classes: objects of categories that are none of the classes.
    ignored: objects that the file marks with ``ignore``, which MMDetection does not train on.
    empty, small: images that training leaves out (``filter_empty_gt``, ``min_size``); 0 for evaluation.
    """

    pictures: int
    classes: int
    objects: int = 0
    crowd: int = 0
    without_area: int = 0
    other_classes: int = 0
    ignored: int = 0
    empty: int = 0
    small: int = 0

    @property
    def used(self) -> int:
        """How many images are trained or evaluated on."""
        return self.pictures - self.empty - self.small

    def __str__(self) -> str:
        text = f"{self.pictures:,} images, {self.objects:,} objects of {self.classes} classes"
        if self.empty or self.small:
            parts = [f"{self.empty:,} without objects (filter_cfg.filter_empty_gt)"] if self.empty else []
            parts += [f"{self.small:,} too small (filter_cfg.min_size)"] if self.small else []
            text += f"; training uses {self.used:,} images, and leaves out {' and '.join(parts)}"
        if self.crowd:
            text += f"; {self.crowd:,} crowds, which training ignores and evaluation matches leniently"
        if self.without_area:
            text += f"; {self.without_area:,} boxes under a pixel or outside of their image, not trained on"
        if self.ignored:
            text += f"; {self.ignored:,} objects marked `ignore`, not trained on"
        if self.other_classes:
            text += f"; {self.other_classes:,} objects of classes that are not asked for, left out"
        return text


@dataclass
class Examined:
    """What `examine` found.

    contents: the annotations as they are to be used; ids are the original's, except annotation ids of 0.
    origin: where they come from, for messages.
    classes: those of the detector, in its order.
    source: the file that holds them, where that is not the origin.
    faults: what must be corrected by the user, a sentence for each kind.
    notes: what was mended, left out or looks odd, a sentence for each kind.
    is_changed: the contents are no longer those of the origin.
    """

    contents: dict[str, Any]
    origin: Path
    classes: tuple[str, ...]
    summary: CocoSummary
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    is_changed: bool = False
    source: Path | None = None

    def refuse_faults(self) -> None:
        """Raise a `DataError` that names all faults, if there are any."""
        if self.faults:
            more = f"\n- and {len(self.faults) - _SHOWN} more kinds of faults" if len(self.faults) > _SHOWN else ""
            listed = (
                self.faults[0] if len(self.faults) == 1 else "".join(f"\n- {text}" for text in self.faults[:_SHOWN])
            )
            raise DataError(f"{self.origin}: {listed}{more}")

    def file(self) -> Path:
        """Return the annotation file to use: that of the contents, or a corrected copy, which is written once.

        Raises:
            DataError: there is no place for the copy.
        """
        if not self.is_changed:
            return self.source or self.origin
        return keep_annotations(self.contents, self.origin)


def keep_annotations(contents: dict[str, Any], origin: Path) -> Path:
    """Write annotations that are not those of their file into the cache, once, and return the file.

    Args:
        origin: where they come from, which the file notes: messages about it name that.

    Raises:
        DataError: there is no place for them.
    """
    data = json.dumps({**contents, ORIGIN: str(origin)}).encode()  # ASCII, which is read alike wherever it is read
    try:
        copy = cache_file("annotations", hashlib.sha256(data).hexdigest())
        if not copy.is_file() or copy.stat().st_size != len(data):
            write_bytes(copy, data)
        os.utime(copy)
        _remove_old(copy.parent)
    except OSError as error:
        raise DataError(
            f"annotations of {origin} cannot be written in COCO's form ({error}). Name a folder for such files in the "
            "environment variable DAVIT_CACHE_DIR."
        ) from error
    return copy


def read_annotations(file: Path, labelled: bool = True) -> dict[str, Any]:
    """Read a COCO json: a dict with lists of images, annotations and categories.

    Args:
        labelled: False if the list of annotations may be absent.

    Raises:
        DataError: it is missing, is no JSON, or has another layout.
    """
    return _read(file, labelled)[0]


def categories_of(file: Path) -> tuple[str, ...]:
    """Read the names of the classes, in the order of the file; unused parents and repeated names are left out."""
    return class_names(read_annotations(file))


def class_names(contents: dict[str, Any]) -> tuple[str, ...]:
    """Name the classes of annotations, as `categories_of` does for those of a file."""
    used = Counter(_hashable(entry.get("category_id")) for entry in contents["annotations"])
    return tuple(str(category["name"]) for category in _Categories(contents["categories"], used).chosen.values())


def check_annotations(file: Path, folder: Path, classes: Sequence[str] | None = None, **options: Any) -> Examined:
    """Check an annotation file and that its images are there; arguments as in `examine`.

    Messages about a file that `keep_annotations` has written name what it was made of.

    Raises:
        DataError: the file is missing or of another format, or has faults: all of them are named.
    """
    contents, is_plain = _read(file, options.get("labelled", True))
    noted = contents.get(ORIGIN)
    found = examine(contents, Path(noted) if isinstance(noted, str) else file, folder, classes, **options)
    found.source = file
    found.is_changed |= not is_plain
    found.refuse_faults()
    return found


def examine(
    contents: dict[str, Any],
    origin: Path,
    folder: Path,
    classes: Sequence[str] | None = None,
    *,
    needs_masks: bool = False,
    training: bool = True,
    labelled: bool = True,
    filter_cfg: Mapping[str, Any] | None = None,
    data_check: bool = True,
    skip_bad_images: bool = False,
    converted: bool = False,
) -> Examined:
    """Check annotations, which may come from elsewhere than a file, and mend what can be mended without guessing.

    Args:
        contents: lists of images, annotations and categories; left as it is.
        origin: where they come from, for messages.
        folder: where the images are.
        classes: those of the detector, in its order; None for all that the contents name. Categories are found by
            these names, whatever their order and ids.
        needs_masks: every object needs a segmentation.
        training: each class must be among the categories; else one that has no objects may lack.
        labelled: False where predictions are only written: objects are not needed.
        filter_cfg: MMDetection's rule of what training leaves out; None for none.
        data_check: read the header of every image.
        skip_bad_images: leave out images that are missing or cannot be read, in place of a fault.
        converted: the contents were made of an origin that is no COCO json, so that `Examined.file` always is a copy.
    """
    fault = _layout_fault(contents, labelled)
    if fault:
        return Examined(contents, origin, tuple(classes or ()), CocoSummary(0, 0), [fault])
    found = _Examination(contents, origin, folder, needs_masks, training, labelled).run(
        classes, filter_cfg, data_check, skip_bad_images
    )
    found.is_changed |= converted
    return found


# ---- reading ----


def _read(file: Path, labelled: bool) -> tuple[dict[str, Any], bool]:
    """Read a file; return its contents, and whether libraries that open it as text of this machine read the same."""
    if not file.is_file():
        raise DataError(
            f"there is no annotation file {file}. COCO belongs into mmdet/data/coco (annotations/, train2017/, "
            "val2017/); a data set elsewhere is named with --data-root DIR, its files with --cfg-options "
            "train_dataloader.dataset.ann_file=... (mmdet/README.md has an example)."
        )
    data = file.read_bytes()
    try:
        contents = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is no JSON: {error}. It may be cut off; copy it again.") from error
    if fault := _layout_fault(contents, labelled):
        raise DataError(f"{file}: {fault}")
    return contents, data.isascii() or _is_utf8(data)


def _is_utf8(data: bytes) -> bool:
    if data.startswith(b"\xef\xbb\xbf") or locale.getpreferredencoding(False).lower() not in ("utf-8", "utf8"):
        return False
    with suppress(UnicodeDecodeError):
        data.decode()
        return True
    return False


def _layout_fault(contents: Any, labelled: bool) -> str:
    """Say why something has not the layout of COCO's instances; empty if it has."""
    if not isinstance(contents, dict):
        return f"it is not in the format of COCO's instances: a {type(contents).__name__}, not a dict of lists."
    for name in LISTS:
        entries = contents.get(name)
        if entries is None and name not in contents and name == "annotations" and not labelled:
            continue
        if not isinstance(entries, list):
            kind = f"it is a {type(entries).__name__}" if name in contents else f"there are {some(contents, 6)}"
            hint = " To write predictions without labels, pass --format-only." if name == "annotations" else ""
            return (
                f"it is not in the format of COCO's instances: it has no list {name!r} ({kind}). It needs the lists "
                f"{', '.join(LISTS)}.{hint}"
            )
        wrong = [(index, entry) for index, entry in enumerate(entries) if not isinstance(entry, dict)]
        if wrong:
            index, entry = wrong[0]
            return (
                f"{len(wrong)} of {len(entries)} {name} are not dicts; the first is {name}[{index}]: {_short(entry)}."
            )
    return ""


def _remove_old(folder: Path) -> None:
    """Remove corrected copies that no run has used for a while."""
    oldest = time.time() - _KEPT_DAYS * 86400
    for file in folder.iterdir():
        with suppress(OSError):
            if file.stat().st_mtime < oldest:
                file.unlink()


# ---- the check ----


class _Kinds:
    """Collect cases by their kind: how many there are, and the first of each."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, str, str], str] = {}
        self._count: Counter[tuple[str, str, str]] = Counter()

    def add(self, subject: str, text: str, first: str, remedy: str = "", count: int = 1) -> None:
        """Count a case of a kind: ``subject`` says of what (images), ``text`` what is so."""
        kind = (subject, text, remedy)
        self._first.setdefault(kind, first)
        self._count[kind] += count

    def sentences(self, totals: Mapping[str, int]) -> list[str]:
        """Return a sentence for each kind."""
        found = []
        for kind, count in self._count.items():
            subject, text, remedy = kind
            share = f"{count:,} of {totals[subject]:,} {subject}" if subject in totals else f"{count:,} {subject}"
            found.append(f"{share} {text}; the first is {self._first[kind]}.{f' {remedy}' if remedy else ''}")
        return found


class _Categories:
    """Find the one category that each name stands for.

    chosen: name -> category, in the order of the list, without unused parents.
    dropped: categories that share their name with a chosen one and have no objects.
    ambiguous: names of several categories with objects.
    parents: categories without objects that are the supercategory of others, as Roboflow writes its first.
    """

    def __init__(self, categories: Sequence[dict[str, Any]], used: Mapping[Any, int]) -> None:
        groups: dict[str, list[dict[str, Any]]] = {}
        for category in categories:
            groups.setdefault(str(category.get("name")), []).append(category)
        self.dropped: list[dict[str, Any]] = []
        self.ambiguous: list[str] = []
        self.parents: list[str] = []
        chosen: list[dict[str, Any]] = []
        for name, group in groups.items():
            with_objects = [one for one in group if used.get(_hashable(one.get("id")))]
            children = [one for one in group if str(one.get("supercategory")) == name]
            best = (with_objects or children or group)[-1]
            if len(with_objects) > 1:
                self.ambiguous.append(name)
            self.dropped += [one for one in group if one is not best and one not in with_objects]
            is_parent = any(str(one.get("supercategory")) == name for one in categories if one not in group)
            if is_parent and not with_objects:
                self.parents.append(name)
            else:
                chosen.append(best)
        order = {id(category): index for index, category in enumerate(categories)}
        chosen.sort(key=lambda one: order[id(one)])
        self.chosen = {str(one.get("name")): one for one in chosen}
        self.all = {**{name: group[-1] for name, group in groups.items()}, **self.chosen}


class _Examination:
    """Hold the state of one `examine`."""

    def __init__(
        self,
        contents: dict[str, Any],
        origin: Path,
        folder: Path,
        needs_masks: bool,
        training: bool,
        labelled: bool,
    ) -> None:
        self.contents, self.origin, self.folder = contents, origin, folder
        self.needs_masks, self.training, self.labelled = needs_masks, training, labelled
        self.images: list[dict[str, Any]] = contents["images"]
        self.annotations: list[dict[str, Any]] = contents.get("annotations") or []
        self.categories: list[dict[str, Any]] = contents["categories"]
        self.totals = {name: len(getattr(self, name)) for name in LISTS}
        self.faults, self.mended, self.left_out = _Kinds(), _Kinds(), _Kinds()
        self.more_faults: list[str] = []  # sentences that are about more than one entry
        self.notes: list[str] = []
        self.is_changed = False
        self.image_of: dict[int, dict[str, Any]] = {}
        self.used: Counter[Any] = Counter()

    def run(
        self,
        classes: Sequence[str] | None,
        filter_cfg: Mapping[str, Any] | None,
        data_check: bool,
        skip_bad_images: bool,
    ) -> Examined:
        self._check_images()
        ids = self._check_categories()
        missing_sizes = [image for image in self.images if "width" not in image or "height" not in image]
        if all(isinstance(image.get("file_name"), str) and image["file_name"] for image in self.images):
            self._check_pictures(data_check, skip_bad_images and not self._has_faults(), missing_sizes)
        self._check_objects(ids)
        chosen = self._choose_classes(classes)
        summary = self._summarise(chosen, filter_cfg)
        contents = {**self.contents, "images": self.images, "categories": self.categories}
        if "annotations" in contents or self.annotations:
            contents["annotations"] = self.annotations
        faults = self.faults.sentences(self.totals) + self.more_faults
        mended = [f"mended: {text}" for text in self.mended.sentences(self.totals)]
        left_out = [f"left out: {text}" for text in self.left_out.sentences(self.totals)]
        return Examined(
            contents,
            self.origin,
            tuple(chosen),
            summary,
            faults,
            mended + left_out + self.notes,
            self.is_changed or bool(mended or left_out),
        )

    def _has_faults(self) -> bool:
        return bool(self.faults.sentences(self.totals) or self.more_faults)

    def _fault(self, kind: str, index: int, name: str, text: str, remedy: str = "", value: Any = _ABSENT) -> None:
        """Collect a fault of one field of an entry; the value is shown, by default that of the field."""
        entry = getattr(self, kind)[index]
        value = entry.get(name, _ABSENT) if value is _ABSENT else value
        shown = f"has no {name}" if value is _ABSENT else f"has {name} {_short(value)}"
        self.faults.add(kind, f"{text} ({name})", f"{_named(kind, index, entry)}, which {shown}", remedy)

    # -- images and categories --

    def _check_images(self) -> None:
        if not self.images:
            self.more_faults.append("it has no images.")
        kept = []
        for index, image in enumerate(self.images):
            number = image.get("id", _ABSENT)
            if not _is_id(number):
                self._fault("images", index, "id", "have no whole number as id", "Number the images from 1.")
            elif number in self.image_of:
                self._fault(
                    "images", index, "id", "have the id of another one", "Ids must be unique: number them again."
                )
            name = image.get("file_name", _ABSENT)
            if not isinstance(name, str) or not name:
                self._fault("images", index, "file_name", "have no text as file name")
            for side in ("width", "height"):
                value = image.get(side, _ABSENT)
                if type(value) is float and value.is_integer() and 1 <= value < FAR:
                    self.mended.add("images", f"have a {side} written as a fraction", _named("images", index, image))
                    image = {**image, side: int(value)}
                elif value is not _ABSENT and not (type(value) is int and 1 <= value < FAR):
                    remedy = "Write the size of the upright image in pixels, or leave it out: it is then measured."
                    self._fault("images", index, side, "have no number of pixels as size", remedy)
                    image = {key: inner for key, inner in image.items() if key != side}
            kept.append(image)
            if _is_id(number):
                self.image_of.setdefault(number, image)
        self.images = kept
        names = Counter(image.get("file_name") for image in kept if isinstance(image.get("file_name"), str))
        repeated = [name for name, count in names.items() if count > 1]
        if repeated:
            self.notes.append(
                f"{len(repeated):,} images are there more than once in 'images' ({some(repeated, 3)}): the objects "
                "of one entry are background in the other. Give each image one entry, if this is not meant."
            )

    def _check_categories(self) -> dict[int, dict[str, Any]]:
        """Check the categories; return them by id."""
        if not self.categories:
            self.more_faults.append("it has no categories.")
        found: dict[int, dict[str, Any]] = {}
        kept = []
        for index, category in enumerate(self.categories):
            number, name = category.get("id", _ABSENT), category.get("name", _ABSENT)
            if not _is_id(number):
                self._fault("categories", index, "id", "have no whole number as id")
            elif number in found:
                self._fault("categories", index, "id", "have the id of another one", "Ids must be unique.")
            if type(name) in NUMBERS:
                first = _named("categories", index, category)
                self.mended.add("categories", "have a number as name, taken for text", first)
                category = {**category, "name": str(name)}
            elif not isinstance(name, str) or not name:
                self._fault("categories", index, "name", "have no text as name")
            kept.append(category)
            if _is_id(number):
                found.setdefault(number, category)
        self.categories = kept
        return found

    # -- images --

    def _check_pictures(self, data_check: bool, skip_bad_images: bool, without_size: list[dict[str, Any]]) -> None:
        """Find the images, and compare their headers with the file."""
        located = locate(self.folder, [image["file_name"] for image in self.images])
        for reason, names in located.respelled.items():
            first = f"{names[0]}, found as {located.found[names[0]]}"
            self.mended.add("images", f"have a file name with {reason}", first, count=len(names))
        bad: dict[str, str] = {}
        if located.missing:
            if skip_bad_images:
                bad |= located.missing
            else:
                self.more_faults.append(self._missing(located.missing))
        self.images = [
            {**image, "file_name": located.found[name]} if located.found.get(name, name) != name else image
            for image in self.images
            for name in [image["file_name"]]
        ]
        chosen = self.images if data_check else without_size
        names = [image["file_name"] for image in chosen if image["file_name"] not in located.missing]
        files = [self.folder / name for name in names]
        headers = dict(zip(names, read_headers(files), strict=True))
        for name, header in headers.items():
            if header.fault:
                bad[name] = header.fault
        unreadable = {name: why for name, why in bad.items() if name not in located.missing}
        if unreadable and not skip_bad_images:
            self.more_faults.append(
                f"{len(unreadable):,} of {len(files):,} images in {self.folder} cannot be read: "
                f"{some((f'{name}: {why}' for name, why in unreadable.items()), 4)}. Repair or replace them, take "
                "them out of the file, or pass `skip_bad_images=True` to continue without them and their objects."
            )
        if bad and skip_bad_images:
            self._leave_out_pictures(bad)
        if odd := describe_misnamed([*headers], [*headers.values()]):
            self.notes.append(f"{odd}; they are read by their content.")
        self._check_sizes(headers)
        self.image_of = {image["id"]: image for image in self.images if _is_id(image.get("id"))}

    def _leave_out_pictures(self, bad: Mapping[str, str]) -> None:
        gone = {image["id"] for image in self.images if image["file_name"] in bad}
        name, why = next(iter(bad.items()))
        text = "are missing or cannot be read, with their objects (`skip_bad_images=True`)"
        self.left_out.add("images", text, f"{name}: {why}", count=len(gone))
        self.images = [image for image in self.images if image["id"] not in gone]
        kept = [entry for entry in self.annotations if _hashable(entry.get("image_id")) not in gone]
        self.annotations = kept
        if not self.images:
            self.more_faults.append(f"none of the images in {self.folder} can be read: {name}: {why}.")

    def _missing(self, missing: Mapping[str, str]) -> str:
        where = f"in {self.folder}" if self.folder.is_dir() else f"there, as their folder {self.folder} does not exist"
        first = next(iter(missing))
        hint = ""
        if (self.folder / Path(first.replace("\\", "/")).name).is_file():
            hint = (
                " The folder has files of these names without what stands before the last /: correct data_prefix.img "
                "of the data set, or the file names."
            )
        reasons = (f"{name} ({why})" if why != "not there" else name for name, why in missing.items())
        return (
            f"{len(missing):,} of {len(self.images):,} images are not {where}: {some(reasons, 4)}.{hint} Copy them "
            "there, take them out of the file, or pass `skip_bad_images=True` to continue without them and their "
            "objects."
        )

    def _check_sizes(self, headers: Mapping[str, Any]) -> None:
        """Compare sizes with those of the upright images, and measure those that are absent."""
        kept, wrong = [], []
        for index, image in enumerate(self.images):
            header = headers.get(image["file_name"])
            if header is not None and not header.fault:
                width, height = image.get("width", header.width), image.get("height", header.height)
                if (width, height) != (header.width, header.height):
                    wrong.append((index, image, header))
                elif "width" not in image or "height" not in image:
                    self.mended.add("images", "have no width or height: measured", _named("images", index, image))
                    image = {**image, "width": width, "height": height}
            kept.append(image)
        self.images = kept
        if not wrong:
            return
        index, image, header = wrong[0]
        text = (
            f"{len(wrong):,} of {len(kept):,} images have another size here than in the image file; the first is "
            f"{_named('images', index, image)}, of width {image.get('width')} and height {image.get('height')}; "
            f"{image['file_name']} has {header.width} and {header.height}"
        )
        turned = [
            one for one in wrong if one[2].turned and (one[1].get("width"), one[1].get("height")) == _stored(one[2])
        ]
        if turned:
            text += f" after the turn that its EXIF data ask for ({len(turned):,} are of this kind). "
            text += _advice_for_turned(turned, self.annotations)
        else:
            text += ". The images were resized, or the file belongs to others: boxes and masks would be misplaced."
        self.more_faults.append(text)

    # -- objects --

    def _check_objects(self, categories: Mapping[int, dict[str, Any]]) -> None:
        seen: set[int] = set()
        kept: list[dict[str, Any]] = []
        zero: int | None = None
        boxes = outside = corners = positive = masks_wanted = masks_lost = 0
        lost_first = ""
        without_area = bool(self.annotations) and not any(
            type(entry.get("area")) in NUMBERS and entry["area"] > 0 for entry in self.annotations
        )
        for index, entry in enumerate(self.annotations):
            number = entry.get("id", _ABSENT)
            if type(number) is not int or not _is_id(number):
                self._fault_object(index, "id", "have no whole number as id", "Number the annotations from 1.")
            elif number in seen:
                remedy = "Ids must be unique: number the annotations again, from 1."
                self._fault_object(index, "id", "have the id of another one", remedy)
            else:
                seen.add(number)
            image = self._referred(index, entry, "image_id", self.image_of)
            category = self._referred(index, entry, "category_id", categories)
            if category is not None:
                self.used[entry["category_id"]] += 1
            changes: dict[str, Any] = {}
            crowd = entry.get("iscrowd", _ABSENT)
            if crowd is _ABSENT:
                self.mended.add("annotations", "have no iscrowd: taken for 0", _named("annotations", index, entry))
                changes["iscrowd"] = 0
            elif type(crowd) is not int and isinstance(crowd, bool | float) and crowd in (0, 1):
                text = "have an iscrowd of true, false, 0.0 or 1.0: taken for 1 or 0"
                self.mended.add("annotations", text, _named("annotations", index, entry))
                changes["iscrowd"] = int(crowd)
            elif type(crowd) is not int or crowd not in (0, 1):
                self._fault_object(index, "iscrowd", "have neither 0 (one object) nor 1 (a crowd) as iscrowd")
            area = entry.get("area", _ABSENT)
            if area is not _ABSENT and not (type(area) in NUMBERS and -FAR * FAR < area < FAR * FAR):
                remedy = "Write the mask's or the box's area in pixels, or leave it out: it is then computed."
                self._fault_object(index, "area", "have no finite number as area", remedy)
            box = entry.get("bbox", _ABSENT)
            if (
                not isinstance(box, list | tuple)
                or len(box) != 4
                or not all(type(value) in NUMBERS and -FAR < value < FAR for value in box)
            ):
                self._fault_object(index, "bbox", "have no four finite numbers as box: [x, y, width, height]")
                continue
            if image is None or category is None or "width" not in image or "height" not in image:
                continue
            x, y, w, h = box
            if w > 0 and h > 0:
                boxes += 1
                outside += x + w > image["width"] + 1 or y + h > image["height"] + 1 or x < -1 or y < -1
                corners += 0 <= x < w <= image["width"] + 1 and 0 <= y < h <= image["height"] + 1
                positive += w <= 1 and h <= 1 and x <= 1 and y <= 1
            mask = None
            if self.needs_masks or area is _ABSENT or without_area:
                outline = check_outline(entry.get("segmentation"), image["width"], image["height"])
                mask = outline.mask
                if self.needs_masks and self.labelled:
                    masks_wanted += 1
                    if outline.fault:
                        text = "have what is no finite number in their segmentation"
                        value = _Shown(outline.fault)
                        self._fault_object(index, "segmentation", text, value=value)
                        continue
                    if mask is None:
                        masks_lost += 1
                        shown = "" if outline.reason == NONE else f": {_short(entry.get('segmentation'))}"
                        first = f"{_named('annotations', index, entry)}{shown}"
                        lost_first = lost_first or f"{outline.reason}, as {first}"
                        self.left_out.add("annotations", f"have {outline.reason}", first)
                        continue
                    if mask is not entry["segmentation"]:
                        changes["segmentation"] = mask
                        text = f"have {outline.reason} beside others, which are used" if outline.reason else _REWRITTEN
                        self.mended.add("annotations", text, _named("annotations", index, entry))
            if area is _ABSENT or without_area:
                text = "have no area: computed" if area is _ABSENT else "have an area of 0, as all have: computed"
                self.mended.add("annotations", f"{text} from mask or box", _named("annotations", index, entry))
                changes["area"] = area_of(mask) if mask is not None else float(max(w, 0) * max(h, 0))
            if number == 0:
                zero = len(kept)
            kept.append({**entry, **changes} if changes else entry)
        if zero is not None:
            self.mended.add("annotations", "have the id 0, which evaluation takes for none: numbered again", "id 0")
            kept[zero] = {**kept[zero], "id": max(seen) + 1}
        self.annotations = kept
        self._doubt_boxes(boxes, outside, corners, positive)
        if masks_lost and 2 * masks_lost >= masks_wanted:
            self.more_faults.append(
                f"{masks_lost:,} of {masks_wanted:,} objects have no segmentation that can be used, and this detector "
                f"learns masks: {lost_first}. Correct them, or use a detector of boxes: a RetinaNet config, or "
                "`davit det train DATA --head dfine`."
            )

    def _fault_object(self, index: int, name: str, text: str, remedy: str = "", value: Any = _ABSENT) -> None:
        self._fault("annotations", index, name, text, remedy, value)

    def _referred(self, index: int, entry: dict[str, Any], name: str, known: Mapping[int, Any]) -> Any:
        """Return the image or category that an annotation names, None and a fault where there is none."""
        number = entry.get(name, _ABSENT)
        found = known.get(number) if type(number) is int else None
        if found is None:
            kind = "images" if name == "image_id" else "categories"
            text = f"name none of the {kind}" if type(number) is int else f"have no whole number as {name}"
            self._fault_object(index, name, text, f"Add the missing ones to {kind!r}, or take the annotations out.")
        return found

    def _doubt_boxes(self, boxes: int, outside: int, corners: int, relative: int) -> None:
        """Refuse boxes that look as if they were of another format, and count those that stick out."""
        if boxes >= _FEW and relative == boxes:
            self.more_faults.append(
                f"all {boxes:,} boxes are smaller than a pixel: they look like shares of the image's sides (as YOLO "
                "has them). COCO's are [x, y, width, height] in pixels."
            )
        elif boxes >= _FEW and outside > 0.3 * boxes and corners > 0.95 * boxes:
            self.more_faults.append(
                f"{outside:,} of {boxes:,} boxes reach out of their image, and all would fit as [x1, y1, x2, y2]. "
                "COCO's are [x, y, width, height]: write x2 - x1 and y2 - y1."
            )
        elif outside:
            self.notes.append(f"{outside:,} of {boxes:,} boxes reach out of their image by more than a pixel.")

    # -- classes --

    def _choose_classes(self, classes: Sequence[str] | None) -> dict[str, dict[str, Any]]:
        """Find the category of each class, and put the categories into the order of the classes."""
        found = _Categories(self.categories, self.used)
        names = list(found.chosen) if classes is None else [str(name) for name in classes]
        if repeated := [name for name, count in Counter(names).items() if count > 1]:
            self.more_faults.append(f"the classes {some(repeated)} are asked for more than once.")
        if ambiguous := [name for name in found.ambiguous if name in names]:
            self.more_faults.append(
                f"several categories with objects have the same name: {some(map(repr, ambiguous), 4)}. Rename one, or "
                "give their objects the same category_id."
            )
        if missing := [name for name in names if name not in found.all]:
            self._missing_classes(names, missing, found)
        chosen = {name: found.all[name] for name in names if name in found.all}
        parents = [name for name in found.parents if name not in names]
        if parents and self.training:
            self.notes.append(
                f"the categories {some(map(repr, parents), 4)} have no objects and are the supercategory of "
                "others: they are no classes."
            )
        if self.training and self.labelled:
            idle = [name for name, one in chosen.items() if not self.used.get(one.get("id"))]
            if idle and len(idle) < len(chosen):
                used = [name for name in chosen if name not in idle]
                rest = shlex.join(used[:6])
                self.notes.append(
                    f"{len(idle)} of {len(chosen)} classes have no objects here ({some(map(repr, idle), 4)}), and "
                    f"cannot be learned. `--classes {rest}{' ...' if len(used) > 6 else ''}` would leave them out."
                )
        dropped = [one for one in found.dropped if str(one.get("name")) in names]
        if dropped:
            first = f"{dropped[0].get('name')!r} with id {dropped[0].get('id')}"
            text = "repeat the name of another and have no objects: taken out"
            self.mended.add("categories", text, first, count=len(dropped))
        kept = [one for one in self.categories if all(one is not other for other in dropped)]
        in_file = [name for one in kept if (name := str(one.get("name"))) in chosen]
        if in_file != list(chosen):
            self.is_changed = True
            self.notes.append(
                f"its categories are in another order than the classes ({some(in_file, 4)}; the classes: "
                f"{some(chosen, 4)}): matched by name."
            )
            kept = [*chosen.values(), *(one for one in kept if str(one.get("name")) not in chosen)]
        self.categories = kept
        return chosen

    def _missing_classes(self, names: Sequence[str], missing: Sequence[str], found: _Categories) -> None:
        """Add classes that evaluation data have no objects of; refuse if they may be there under another name."""
        others = [name for name, one in found.all.items() if name not in names and self.used.get(one.get("id"))]
        if self.training or others or not self.labelled or len(missing) == len(names):
            near = did_you_mean(missing[0], found.all)
            unknown = f" Its objects are also of {some(map(repr, others), 4)}." if others else ""
            self.more_faults.append(
                f"it has {len(found.all)} categories ({some(found.all, 6)}), and lacks {len(missing)} of the "
                f"{len(names)} classes that are asked for ({some(missing, 4)}; all: {some(names, 6)}).{unknown} {near}"
                "Pass --classes auto for those of the training file, or --classes NAME NAME ... for some of them."
            )
            return
        first = 1 + max((one["id"] for one in self.categories if _is_id(one.get("id"))), default=0)
        added = [{"id": first + place, "name": name} for place, name in enumerate(missing)]
        self.mended.add("categories", "are absent, as no object is of them: added", repr(missing[0]), count=len(added))
        self.categories = [*self.categories, *added]
        found.all |= {str(one["name"]): one for one in added}

    # -- what is left --

    def _summarise(self, chosen: Mapping[str, dict[str, Any]], filter_cfg: Mapping[str, Any] | None) -> CocoSummary:
        summary = CocoSummary(len(self.images), len(chosen))
        ids = {one.get("id") for one in chosen.values()}
        with_objects: set[int] = set()
        for entry in self.annotations if not self._has_faults() else ():
            if entry["category_id"] not in ids:
                summary.other_classes += 1
                continue
            with_objects.add(entry["image_id"])
            if entry.get("ignore"):
                summary.ignored += 1
            elif not _has_area(entry, self.image_of[entry["image_id"]]):
                summary.without_area += 1
            else:
                summary.objects += 1
                summary.crowd += entry["iscrowd"]
        if self._has_faults():
            return summary
        if self.labelled and not summary.objects:
            remedy = (
                "Label some of the images, or name other classes with --classes; predictions without labels are "
                "written by the test command with --format-only."
                if self.training
                else "Evaluating needs some: name another split, or train without evaluation (--no-validate of a "
                "config). The test command writes predictions without labels with --format-only, the demo draws them."
            )
            self.more_faults.append(
                f"there is no object to {'learn from' if self.training else 'evaluate on'}: "
                f"{self.totals['annotations']:,} annotations, of which {summary.other_classes:,} are of other classes "
                f"than those asked for, {summary.without_area:,} without area, {summary.ignored:,} marked `ignore`. "
                + remedy
            )
        elif filter_cfg:
            self._filter(summary, with_objects, filter_cfg)
        return summary

    def _filter(self, summary: CocoSummary, with_objects: set[int], filter_cfg: Mapping[str, Any]) -> None:
        """Count what MMDetection's filter leaves out of training."""
        least = filter_cfg.get("min_size", 0)
        for image in self.images:
            if filter_cfg.get("filter_empty_gt") and image["id"] not in with_objects:
                summary.empty += 1
            elif min(image["width"], image["height"]) < least:
                summary.small += 1
        if not summary.used:
            self.more_faults.append(
                f"training would leave out all {summary.pictures:,} images: {summary.empty:,} have no objects, and "
                f"{summary.small:,} have a side of less than {least} pixels. Enlarge them, or pass --cfg-options "
                "train_dataloader.dataset.filter_cfg.min_size=1 to train on such small ones."
            )


_REWRITTEN = "have a segmentation that is not written as COCO has it (a polygon without its list, or bytes): rewritten"


class _Shown:
    """Stand for a value that is in a message as it is."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _is_id(value: Any) -> bool:
    return type(value) is int and -_LARGEST_ID <= value < _LARGEST_ID


def _hashable(value: Any) -> Any:
    return value if isinstance(value, int | str | float) else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _named(kind: str, index: int, entry: Mapping[str, Any]) -> str:
    """Name an entry by its place and its id, an image by its file name too; by the line that it was read from."""
    if kind == "annotations" and isinstance(entry.get(LINE), str):
        return as_line(entry[LINE])
    parts = [f"id {_short(entry['id'])}"] if "id" in entry else []
    if kind == "images" and "file_name" in entry:
        parts.append(_short(entry["file_name"]))
    inside = ", ".join(parts)
    return f"{kind}[{index}] ({inside})" if parts else f"{kind}[{index}]"


def _stored(header: Any) -> tuple[int, int]:
    return (header.height, header.width) if header.turned else (header.width, header.height)


def _advice_for_turned(turned: Sequence[tuple[int, Any, Any]], annotations: Iterable[Mapping[str, Any]]) -> str:
    """Tell from the boxes whether they were drawn on the upright images or on the stored ones."""
    headers = {image["id"]: header for _, image, header in turned}
    upright = stored = 0
    for entry in annotations:
        header = headers.get(_hashable(entry.get("image_id")))
        box = entry.get("bbox")
        if header is None or not isinstance(box, list) or len(box) != 4 or not NUMBERS.issuperset(map(type, box)):
            continue
        right, bottom = box[0] + box[2], box[1] + box[3]
        upright += right <= header.width + 1 and bottom <= header.height + 1
        stored += right <= header.height + 1 and bottom <= header.width + 1
    if upright > stored:
        return "The boxes fit the upright images: exchange width and height of these images in the file."
    if stored > upright:
        return (
            "The boxes fit the images as they are stored, while every reader here turns them: remove the tag "
            "(`exiftool -Orientation= FILE`), or turn boxes and masks."
        )
    return (
        "If the boxes were drawn on upright images, exchange width and height of these images in the file; if not, "
        "remove the tag (`exiftool -Orientation= FILE`)."
    )


def _has_area(annotation: dict[str, Any], picture: dict[str, Any]) -> bool:
    """Tell whether MMDetection keeps a box: at least a pixel wide and high, and within its image."""
    x, y, width, height = annotation["bbox"]
    inside = min(x + width, picture["width"]) > max(x, 0) and min(y + height, picture["height"]) > max(y, 0)
    return bool(inside and width >= 1 and height >= 1 and annotation["area"] > 0)
