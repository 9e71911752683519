"""Pair images with their masks by name, whatever the suffixes, and say what is left over."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..text import some
from .errors import DataError
from .listing import Listing, left_out, list_folder, list_pictures, suffix_of

# How names differ where a mask is not called as its image: (before, after) what both share. The first that pairs
# most is taken, so of Cityscapes' several masks of one image that of the trained labels.
_WORDS = (
    *("gtFine_labelTrainIds", "gtFine_labelIds", "labelTrainIds", "labelIds"),
    *("mask", "masks", "label", "labels", "L", "P", "gt", "seg", "segmentation", "annotation", "anno"),
)
_MASK_FORMS = (
    ("", ""),
    *(("", joint + word) for word in _WORDS for joint in "_-."),
    *((word + joint, "") for word in ("mask", "label", "gt", "seg", "segmentation") for joint in "_-"),
)
_PICTURE_FORMS = (
    ("", ""),
    *(("", ending) for ending in ("_leftImg8bit", "_sat", "_image", "_img", "_rgb", "-image", "-img")),
    *((word + joint, "") for word in ("image", "img") for joint in "_-"),
)
_LOSSY = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".jp2", ".avif", ".heic", ".heif"})
_PROBED = 100  # names that a form must occur in one of, to be tried

Form = tuple[str, str]


@dataclass(frozen=True)
class Pairs:
    """Images and their masks, sorted by the images' paths.

    Attributes:
        masks: of each image; None where it is missing.
        form: (before, after): what a mask's name has around the name that it shares with its image.
        without_picture: masks whose image is missing.
        absent: names of a list for which there is no image.
        unasked: images and masks that are not called as asked for, counted by suffix.
        others: files of other kinds, counted by suffix.
    """

    pictures: list[Path] = field(default_factory=list)
    masks: list[Path | None] = field(default_factory=list)
    form: Form = ("", "")
    without_picture: list[Path] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    unasked: Counter[str] = field(default_factory=Counter)
    others: Counter[str] = field(default_factory=Counter)

    @property
    def without_mask(self) -> list[Path]:
        """Images whose mask is missing."""
        return [picture for picture, mask in zip(self.pictures, self.masks, strict=True) if mask is None]

    @property
    def naming(self) -> str:
        """How masks are called where that is not as their images; else empty."""
        before, after = self.form
        words = f"{before!r} before it" if before else f"{after!r} after it"
        return f"masks are called as their images with {words}" if before or after else ""

    def notes(self) -> Iterator[str]:
        """Say in a line each what is not used."""
        if self.without_picture:
            masks = some(self.without_picture, 3)
            yield f"{len(self.without_picture):,} masks have no image and are left out: {masks}"
        if self.unasked:
            yield unasked_for(self.unasked)
        if self.others:
            yield left_out(self.others)


def unasked_for(counts: Counter[str]) -> str:
    """Say which readable images are left out because of the names that are asked for."""
    kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in counts.most_common())
    return f"{sum(counts.values()):,} images or masks do not end as img_suffix and seg_map_suffix ask: {kinds}"


def pair_masks(
    pictures: str | Path,
    masks: str | Path | None,
    picture_suffix: str | None = None,
    mask_suffix: str | None = None,
    names: Iterable[str] | None = None,
) -> Pairs:
    """Find the images in a folder and below it, and for each the mask of the same name in another.

    A name is the path below the folder without suffix, whatever the suffix and its case; names that differ in their
    Unicode form are the same, and in their case where there is no other. Without suffixes given, masks may also be
    called as ``a_mask``, ``mask_a``, ``a_gtFine_labelTrainIds`` and the like. In a folder of both, the masks are such
    names, or else the PNGs of JPEGs. Hidden files are ignored.

    Args:
        masks: None where only images are wanted.
        picture_suffix: what an image's file name ends with, as ``.jpg`` or ``_leftImg8bit.png``, whatever its case;
            without a dot what it ends with before its suffix. None takes all kinds of images.
        mask_suffix: the same of masks.
        names: images to take, by name with or without suffix, in this order; None for all.

    Raises:
        DataError: two images or two masks have the same name.
    """
    pictures = Path(pictures)
    files = list_pictures(pictures)
    found, unasked = _by_suffix(files, picture_suffix)
    if masks is None:
        stems = _stems(found, picture_suffix)
        chosen, absent = _choose(stems, found, names)
        _refuse_twins(pictures, [stems[file] for file in chosen], chosen, "img_suffix")
        return Pairs(
            [pictures / file for file in chosen],
            [None] * len(chosen),
            absent=absent,
            unasked=unasked,
            others=files.left_out,
        )
    masks = Path(masks)
    same = masks.is_dir() and pictures.is_dir() and masks.samefile(pictures)
    found = _outside(found, pictures, masks)
    mask_listing = files if same else list_pictures(masks)
    mask_files, more = _by_suffix(mask_listing, mask_suffix)
    others = files.left_out if same else files.left_out + mask_listing.left_out
    mask_form: Form = ("", "")
    stems, mask_stems = _stems(found, picture_suffix), _stems(mask_files, mask_suffix)
    if same:
        stems, mask_stems, mask_form = _part(stems, mask_stems, mask_suffix)
        unasked = _count(set(files.pictures) - set(stems) - set(mask_stems))
    elif not (picture_suffix and mask_suffix):
        stems, mask_stems, mask_form, strange = _match_forms(stems, mask_stems, not picture_suffix, not mask_suffix)
        unasked = unasked + more + strange
    else:
        unasked = unasked + more
    _refuse_twins(masks, mask_stems.values(), mask_stems, "seg_map_suffix")
    chosen, absent = _choose(stems, list(stems), names)
    _refuse_twins(pictures, [stems[file] for file in chosen], chosen, "img_suffix")
    mask_of = {stem: file for file, stem in mask_stems.items()}
    folded = {stem.casefold(): file for stem, file in mask_of.items()}
    pairs = [(file, mask_of.get(stems[file]) or folded.get(stems[file].casefold())) for file in chosen]
    used = {mask for _, mask in pairs}
    if names is not None:  # masks of the images that the list leaves out are no fault
        used |= {mask_of.get(stem) or folded.get(stem.casefold()) for stem in stems.values()}
    return Pairs(
        [pictures / file for file, _ in pairs],
        [masks / mask if mask else None for _, mask in pairs],
        mask_form,
        [masks / file for file in mask_stems if file not in used],
        absent,
        unasked,
        others,
    )


def holds_pairs(folder: str | Path) -> bool:
    """Tell by the first files of a folder whether images and their masks lie in it together."""
    stems = _stems(sorted(list_folder(folder).pictures)[:_PROBED], None)
    pictures, masks, _ = _part(stems, stems, None)
    return 2 * len(set(pictures.values()) & set(masks.values())) > len(pictures)


def _outside(files: list[str], pictures: Path, masks: Path) -> list[str]:
    """Leave out files of the folder of masks, where that lies in the folder of images."""
    inside = os.path.relpath(masks, pictures)
    if inside == "." or inside.startswith(".."):
        return files
    return [file for file in files if not file.startswith(f"{inside}/")]


def _by_suffix(found: Listing, suffix: str | None) -> tuple[list[str], Counter[str]]:
    """Separate images that end as asked from others; those are counted by suffix."""
    ends = (suffix or "").lower()

    def fits(file: str) -> bool:
        name = file if "." in ends else _stem(file)
        return name.lower().endswith(ends)

    taken = [file for file in found.pictures if fits(file)]
    return taken, _count(set(found.pictures).difference(taken))


def _count(files: Iterable[str]) -> Counter[str]:
    return Counter(suffix_of(file) or "without suffix" for file in files)


def _stems(files: Iterable[str], suffix: str | None) -> dict[str, str]:
    """Give each file the name that it shares with its mask or image."""
    stems = {}
    for file in files:
        if suffix and "." in suffix:
            stem = file[: -len(suffix)]
        else:
            stem = _stem(file)
            stem = stem[: -len(suffix)] if suffix else stem
        stems[file] = unicodedata.normalize("NFC", stem)
    return stems


def _choose(stems: dict[str, str], files: list[str], names: Iterable[str] | None) -> tuple[list[str], list[str]]:
    """Choose the files that a list names, by stem or whole; return them and the names that there are not."""
    if names is None:
        return files, []
    known: dict[str, list[str]] = {}
    for file in files:
        stem = _stem(file)
        for name in {stems[file], unicodedata.normalize("NFC", stem), unicodedata.normalize("NFC", file)}:
            known.setdefault(name, []).append(file)
    chosen: list[str] = []
    absent: list[str] = []
    for name in names:
        found = next((known[one] for one in _spellings(name) if one in known), [])
        chosen += found
        if not found:
            absent.append(name)
    return chosen, absent


def _spellings(name: str) -> Iterator[str]:
    """List what a line may mean: a name, or the first of an image's and a mask's path, with folders above these."""
    line = unicodedata.normalize("NFC", name.strip().replace("\\", "/"))
    for whole in dict.fromkeys((line, *line.split()[:1])):
        parts = whole.strip("/").split("/")
        for first in range(len(parts)):
            below = "/".join(parts[first:])
            yield below
            yield _stem(below)


def _refuse_twins(folder: Path, stems: Iterable[str], files: Iterable[str], argument: str) -> None:
    seen: dict[str, str] = {}
    twins = []
    for stem, file in zip(stems, files, strict=True):
        if seen.setdefault(stem, file) != file:
            twins.append(f"{seen[stem]} and {file}")
    if twins:
        raise DataError(
            f"{folder} has several files of one name, by which an image is paired with its mask: {some(twins, 3)}. "
            f"Take one of each out, or say which suffix to take with {argument} of the data set."
        )


def _strip(stem: str, form: Form) -> str | None:
    """Return what a name shares with its partner's if it has this form, else None."""
    folder, name = os.path.split(stem)
    before, after = form
    fits = name.lower().startswith(before.lower()) and name.lower().endswith(after.lower())
    if not fits or len(name) <= len(before) + len(after):
        return None
    bare = name[len(before) : len(name) - len(after)]
    return f"{folder}/{bare}" if folder else bare


def _apply(stems: dict[str, str], form: Form) -> dict[str, str]:
    stripped = ((file, _strip(stem, form)) for file, stem in stems.items())
    return {file: stem for file, stem in stripped if stem is not None}


def _occurring(forms: Sequence[Form], stems: dict[str, str]) -> list[Form]:
    probed = list(stems.values())[:: max(1, len(stems) // _PROBED)]
    return [form for form in forms if any(_strip(stem, form) is not None for stem in probed)]


def _match_forms(
    stems: dict[str, str], mask_stems: dict[str, str], free_pictures: bool, free_masks: bool
) -> tuple[dict[str, str], dict[str, str], Form, Counter[str]]:
    """Find out how masks are called; equal names win unless another form pairs more.

    Returns the stems of images and of masks that pair, the form of the masks, and files of none counted by suffix.
    """
    best = len(set(stems.values()) & set(mask_stems.values()))
    chosen: tuple[Form, Form] = (("", ""), ("", ""))
    if 2 * best < len(stems) and stems and mask_stems:
        for picture_form in _occurring(_PICTURE_FORMS if free_pictures else _PICTURE_FORMS[:1], stems):
            bare = set(_apply(stems, picture_form).values())
            for form in _occurring(_MASK_FORMS if free_masks else _MASK_FORMS[:1], mask_stems):
                count = len(bare & set(_apply(mask_stems, form).values()))
                if count > best:
                    best, chosen = count, (picture_form, form)
    if chosen == (("", ""), ("", "")):
        return stems, mask_stems, ("", ""), Counter()
    masks, pictures = _apply(mask_stems, chosen[1]), _apply(stems, chosen[0])
    for file, stem in stems.items():  # one without the form of the others has no mask, and is reported for that
        pictures.setdefault(file, stem)
    return pictures, masks, chosen[1], _count(set(mask_stems) - set(masks))


def _part(
    stems: dict[str, str], mask_stems: dict[str, str], mask_suffix: str | None
) -> tuple[dict[str, str], dict[str, str], Form]:
    """Tell masks from images where both lie in one folder."""
    if mask_suffix:
        return {file: stem for file, stem in stems.items() if file not in mask_stems}, mask_stems, ("", "")
    best: tuple[int, dict[str, str], Form] = (0, {}, ("", ""))
    for form in _occurring(_MASK_FORMS[1:], mask_stems):
        masks = _apply(mask_stems, form)
        count = len(set(masks.values()) & {stem for file, stem in stems.items() if file not in masks})
        if count > best[0]:
            best = (count, masks, form)
    lossy = {stem for file, stem in stems.items() if _is_lossy(file)}
    lossless = {file: stem for file, stem in mask_stems.items() if not _is_lossy(file)}
    if len(lossy & set(lossless.values())) > best[0]:
        best = (len(lossy), lossless, ("", ""))
    _, masks, form = best
    return {file: stem for file, stem in stems.items() if file not in masks}, masks, form


def _is_lossy(file: str) -> bool:
    return suffix_of(file) in _LOSSY


def _stem(file: str) -> str:
    return file[: len(file) - len(suffix_of(file))]
