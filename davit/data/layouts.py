"""Find out which kind of data set lies in a folder: for which task, in which layout, with which splits and classes."""

from __future__ import annotations

import json
import logging
import mmap
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from ..text import some
from .coco import class_names, keep_annotations
from .errors import DataError
from .find import Found, find
from .listing import SUFFIXES, is_folder, is_hidden, list_folder, natural_key, suffix_of
from .pairs import holds_pairs
from .yolo import YoloSet, coco_of, read_yolo, yolo_of

log = logging.getLogger(__name__)

# kind -> (task, how it looks in a folder)
KINDS = {
    "COCO": ("detection", "annotations/instances_train2017.json and train2017/, or any COCO json with its images"),
    "Roboflow": ("detection", "train/_annotations.coco.json beside its images, valid/ and test/ alike"),
    "YOLO": ("detection", "data.yaml, images/train/ and labels/train/, or train/images/ and train/labels/"),
    "ADE20K": ("segmentation", "images/training/ and annotations/training/"),
    "mask folders": ("segmentation", "images/train/ and masks/train/, or train/images/ and train/masks/"),
    "tar shards": ("classification", "train-000.tar, train-001.tar ... of images with their classes"),
    "parquet": ("classification", "train.parquet with the images and their classes"),
    "csv": ("classification", "train.csv with the columns path and label"),
    "class folders": ("classification", "train/CLASS/ and val/CLASS/ with images"),
}
_TOOLS = {"detection": "mmdet", "segmentation": "mmseg"}
TASKS = tuple(dict.fromkeys(task for task, _ in KINDS.values()))

_WORDS = {
    "train": ("train", "training", "trainval", "trn", "minitrain"),
    "val": ("val", "valid", "validation", "eval", "evaluation", "dev", "minival"),
    "test": ("test", "testing", "tst"),
}
_SPLIT_OF = {word: split for split, words in _WORDS.items() for word in words}
_PICTURE_FOLDERS = (
    *("images", "image", "imgs", "img", "jpegimages", "pictures", "photos", "data", "leftimg8bit", "frames", "rgb"),
    *("input", "inputs"),
)
_MASK_FOLDERS = (
    *("masks", "mask", "segmentationclass", "segmentationclassaug", "annotations", "annotation", "annots", "annot"),
    *("labels", "label", "gtfine", "gt", "groundtruth", "ground_truth", "segmentation", "segmentations", "seg"),
    *("targets", "target"),
)
_NAME_FILES = ("classes.txt", "_darknet.labels", "obj.names")  # of LabelImg, Roboflow and CVAT

_HEAD, _TAIL = 1 << 18, 1 << 16  # bytes of a json that are read to recognise it
_WHOLE = 16 << 20  # bytes up to which a json is read whole, for its counts
_LISTED = 16  # folders beside one another that are searched for a json, whatever they are called
_JSONS = 200  # json files of a folder that are looked at
_SAMPLE = 24  # names of images by which their folder is found
_LOOKED_AT = 400  # entries of a folder that are looked at for an image


@dataclass(frozen=True)
class Split:
    """Where the images and labels of one split are.

    Attributes:
        pictures: the folder of the images; of YOLO, which may have several, one that holds them all.
        labels: the annotation file, the folder of label files or masks, or the table; None for class folders, whose
            names are the labels.
        count: how many images; None where only reading all of a large file would tell.
        labelled: False for a test set without annotations.
        listed: a file that lists which images of the folders belong to the split, as Pascal VOC has it.
    """

    pictures: Path
    labels: Path | None = None
    count: int | None = None
    labelled: bool = True
    listed: Path | None = None


@dataclass(frozen=True)
class Layout:
    """What kind of data set a folder holds.

    Attributes:
        task: one of `TASKS`.
        kind: one of `KINDS`.
        root: the folder.
        splits: by name: 'train', 'val', 'test'; those that are there.
        classes: their names in order; empty where the files do not tell them.
        chosen_by: what to pass in place of the folder to have this layout taken where there are several.
        notes: what else a user should know, a sentence each.
        others: other layouts of the same folder, which were not taken.
        is_sure: False for what also lies beside data of other kinds, such as a table whose name tells no split.
        yolo: the contents of YOLO's data.yaml.
    """

    task: str
    kind: str
    root: Path
    splits: dict[str, Split]
    classes: tuple[str, ...] = ()
    chosen_by: str = ""
    notes: tuple[str, ...] = ()
    others: tuple[Layout, ...] = field(default=(), repr=False)
    is_sure: bool = True
    yolo: YoloSet | None = field(default=None, repr=False)

    def __str__(self) -> str:
        parts = []
        for name, split in self.splits.items():
            count = "" if split.count is None else f" ({split.count:,} images)"
            parts.append(f"{name}: {below(self.root, split.labels or split.pictures)}{count}")
        classes = f"; {len(self.classes)} classes ({some(self.classes, 6)})" if self.classes else ""
        return f"{self.kind} in {self.root}: {', '.join(parts) or 'no train, no val'}{classes}"


def find_layout(root: str | Path, task: str | None = None) -> Layout:
    """Find out which kind of data set is in a folder.

    Args:
        root: the folder; or a file, which then decides: YOLO's data.yaml, a COCO json, a table, a shard or a pattern
            of shards.
        task: one of `TASKS`, where only its layouts are wanted.

    Raises:
        DataError: there is no such folder, or none of the layouts in it; the message says what is there.
    """
    if task is not None and task not in TASKS:
        raise ValueError(f"`{task=}` is unknown; choose from {', '.join(TASKS)}")
    root = Path(root)
    found: list[Layout] = []
    faults: list[DataError] = []
    for finder in _FINDERS:
        try:
            found += finder(root)
        except DataError as fault:  # a data.yaml that is wrong is no fault of the COCO json beside it
            faults.append(fault)
    found = [layout for layout in found if layout.is_sure] or found
    fitting = [layout for layout in found if task in (None, layout.task)]
    if not fitting:
        raise faults[0] if faults else DataError(_nothing_known(root, task, found))
    best, *others = (*fitting, *(layout for layout in found if layout not in fitting))
    notes = (*best.notes, *(f"another layout there is not used: {fault}" for fault in faults))
    return replace(best, notes=notes, others=tuple(others))


def of_another_task(root: str | Path | None) -> str:
    """Say for which other task a folder without classes is, as the end of a message; "" where that is not known."""
    if root is not None:
        with suppress(DataError):
            layout = find_layout(root)
            if layout.task in _TOOLS:
                tool = f"python {_TOOLS[layout.task]}/tools/train.py CONFIG --data-root {root}"
                return f". It holds data for {layout.task} ({layout.kind}): {tool} trains on them"
    return ""


def annotation_file(layout: Layout, split: str) -> tuple[Path, list[str]]:
    """Return the annotation file of a split for detection, and sentences on what is not used of its labels.

    YOLO's labels are written into a file in COCO's form, which is kept (`davit.files.cache_file`) and of another name
    as soon as they change.

    Raises:
        DataError: lines of label files are wrong, images cannot be read, or there is no place for the file.
    """
    if layout.yolo is None:
        file = layout.splits[split].labels
        assert file is not None  # only class folders have none
        return file, []
    contents, notes = coco_of(layout.yolo, split)
    return keep_annotations(contents, layout.yolo.file), notes


def say_layout(layout: Layout, note: str = "") -> None:
    """Log what was found in a folder, and how to take another layout for the same task that it holds.

    Args:
        note: added to the first line.
    """
    log.info("%s%s.", layout, note)
    for text in layout.notes:
        log.warning("%s.", text)
    for other in layout.others:
        if other.task == layout.task:
            log.info("Also there, and not used: %s; --data-root %s uses it.", other, other.chosen_by)


def classes_in(file: Path) -> tuple[str, ...]:
    """Name the classes of a COCO json; of a large one all of its categories, without reading the rest of it."""
    found = _peek(file)
    return () if found is None else found.classes


def split_of(name: str) -> str | None:
    """Tell which split a file or folder is for by its name: instances_val2017, valid, train_images; None for none."""
    words = re.findall(r"[a-z]+", name.lower())
    return next((_SPLIT_OF[word] for word in words if word in _SPLIT_OF), None)


# --- COCO's json, as published, beside its images, or as Roboflow exports it ---


@dataclass(frozen=True)
class _Json:
    """A file in COCO's form: what its beginning and end tell.

    Attributes:
        names: file names of its first images.
        labelled: whether it has annotations.
        count: how many images; None for a large file.
    """

    file: Path
    names: tuple[str, ...]
    labelled: bool
    count: int | None
    classes: tuple[str, ...]


def _coco(root: Path) -> Iterator[Layout]:
    files = [root] if _is_json(root) else _json_files(root)
    base = root.parent if _is_json(root) else root
    if base.name.lower() in ("annotations", "annotation"):  # named to choose it
        base = base.parent
    found = [one for file in files if (one := _peek(file)) is not None]
    if not found:
        return
    splits: dict[str, _Json] = {}
    unused = []
    for one in sorted(found, key=lambda one: _rank(base, one)):
        name = _split_of_file(base, one.file) or "train"
        if name not in splits:
            splits[name] = one
        elif not _is_special(one.file):  # which COCO publishes beside its instances
            unused.append(one)
    notes = []
    if unused:
        files_unused = some((below(base, one.file) for one in unused), 4)
        option = "--cfg-options train_dataloader.dataset.ann_file=FILE (val_, test_)"
        notes.append(f"{files_unused}: not taken; {option} names another annotation file")
    parts = {name: part for name in _WORDS if name in splits and (part := _with_pictures(base, name, splits[name]))}
    if not parts:
        return
    roboflow = all(one.file.name == "_annotations.coco.json" for one in splits.values())
    kind = "Roboflow" if roboflow else "COCO"
    first = splits[next(iter(parts))]
    chosen_by = str(root if root != base else first.file.parent)
    yield Layout("detection", kind, base, parts, first.classes, chosen_by, tuple(notes))


def _json_files(root: Path) -> list[Path]:
    """List json files where annotations are kept: in the folder, in its folders, and in annotations/ below them."""
    if not root.is_dir():
        return []
    folders = [root]
    below = _folders(root)
    for name in below:
        if len(below) <= _LISTED or split_of(name) or name.lower() in _MASK_FOLDERS:
            folders.append(root / name)
            inner = _folders(root / name) if split_of(name) or name.lower() in _MASK_FOLDERS else []
            kept = [one for one in inner if split_of(one) or one.lower() in _MASK_FOLDERS]
            folders += [root / name / one for one in kept[:_LISTED]]
    files: list[Path] = []
    for folder in folders:
        names = [name for name in _entries(folder) if name.lower().endswith(".json")]
        likely = [name for name in names if split_of(name) or "coco" in name or "instances" in name]
        chosen = dict.fromkeys((*likely, *names))
        files += [folder / name for name in islice(chosen, _JSONS)]
    return [file for file in files if file.is_file()]


def _is_json(file: Path) -> bool:
    return file.suffix.lower() == ".json" and file.is_file()


_JSON_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)("?)(\s*:\s*\[?)?|[{}\[\]]', re.DOTALL)
_LIST_AT_END = re.compile(r'"(images|annotations|categories)"\s*:\s*\[')
_FILE_NAME = re.compile(r'"file_name"\s*:\s*("(?:[^"\\\n]|\\.){1,1000}")')
_OTHER_KINDS = re.compile(r'"(caption|segments_info|shapes)"\s*:')  # of captions, panoptic masks and LabelMe
_COCO_LISTS = ("images", "annotations", "categories")


def _peek(file: Path) -> _Json | None:
    """Recognise a file in COCO's form by its beginning and end; None for anything else."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(_HEAD)
            stream.seek(max(0, size - _TAIL))
            tail = stream.read(_TAIL)
    except OSError:
        return None
    encoding = json.detect_encoding(head)
    text, end = (part.decode(encoding, "replace").lstrip("\ufeff") for part in (head, tail))
    if not text.lstrip().startswith("{"):
        return None
    keys = {key for key in _first_keys(text) if key in _COCO_LISTS}
    keys |= set(_LIST_AT_END.findall(end)) if keys else set()
    if not keys or _OTHER_KINDS.search(text + end):
        return None
    if len(keys) == 1 and size <= _HEAD and not _FILE_NAME.search(text):  # and not one that is cut off
        return None
    contents = _whole(file) if size <= _WHOLE else {}
    names = [image["file_name"] for image in _dicts(contents, "images") if isinstance(image.get("file_name"), str)]
    if not names:
        names = [_unquoted(match) for match in _FILE_NAME.findall(text) or _late_names(file, encoding)]
    labelled = bool(contents["annotations"]) if "annotations" in contents else not contents
    count = len(_dicts(contents, "images")) if contents else None
    if contents:
        classes = class_names({key: _dicts(contents, key) for key in ("annotations", "categories")})
    else:
        classes = tuple(str(one["name"]) for one in _late_categories(file, encoding) if one.get("name") is not None)
    return _Json(file, tuple(names[:: max(1, len(names) // _SAMPLE)]), labelled, count, classes)


def _first_keys(text: str) -> Iterator[str]:
    """Yield the keys of the outermost object whose values are lists, as far as the text goes."""
    depth = 0
    for token in _JSON_TOKEN.finditer(text):
        if token[0] in ("{", "["):
            depth += 1
        elif token[0] in ("}", "]"):
            depth -= 1
        elif token[3] is not None and "[" in token[3]:
            if depth == 1:
                yield token[1]
            depth += 1


def _whole(file: Path) -> dict[str, Any]:
    try:
        contents = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):  # it is cut off, which the check of annotations says
        return {}
    return contents if isinstance(contents, dict) else {}


def _dicts(contents: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = contents.get(key)
    return [one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []


def _unquoted(text: str) -> str:
    try:
        return str(json.loads(text, strict=False))
    except ValueError:
        return text[1:-1]


def _late_names(file: Path, encoding: str) -> list[str]:
    """Find names of images in a large file whose list of images comes after its annotations."""
    part = _around(file, b'"file_name"', _HEAD)
    return _FILE_NAME.findall(part.decode(encoding, "replace"))


def _late_categories(file: Path, encoding: str) -> list[dict[str, Any]]:
    """Read the categories alone of a large file."""
    text = _around(file, b'"categories"', 8 << 20).decode(encoding, "replace")
    start = text.find("[")
    try:
        found, _ = json.JSONDecoder().raw_decode(text[start:]) if start >= 0 else ([], 0)
    except (ValueError, RecursionError):
        return []
    return [one for one in found if isinstance(one, dict)]


def _around(file: Path, key: bytes, length: int) -> bytes:
    """Read what follows the first, else the last place of a key; nothing where it has none."""
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            place = content.rfind(key) if key == b'"categories"' else content.find(key)
            return content[place : place + length] if place >= 0 else b""
    except (OSError, ValueError):
        return b""


def _split_of_file(root: Path, file: Path) -> str | None:
    """Tell the split of an annotation file by its own name, else by the folders that it is in."""
    inside = file.relative_to(root) if file.is_relative_to(root) else Path(file.name)
    return next((split for part in (file.stem, *inside.parts[-2::-1]) if (split := split_of(part))), None)


def _rank(root: Path, one: _Json) -> tuple[Any, ...]:
    """Order files of one split: labelled ones first, COCO's instances before its other files, then by place."""
    stem = one.file.stem.lower()
    has_split = _split_of_file(root, one.file) is not None
    order = (not one.labelled, _is_special(one.file), not has_split, "instances" not in stem)
    return (*order, len(one.file.parts), natural_key(str(one.file)))


def _is_special(file: Path) -> bool:
    return any(word in file.stem.lower() for word in ("keypoints", "stuff", "densepose", "image_info"))


def _with_pictures(root: Path, name: str, one: _Json) -> Split | None:
    """Find the folder that holds the images that an annotation file names; None for a test set that is not there."""
    folder = max(_folders_of_pictures(root, name, one.file), key=lambda place: _hits(place, one.names))
    if name == "test" and not one.labelled and not _hits(folder, one.names):
        return None
    return Split(folder, one.file, one.count, one.labelled)


def _folders_of_pictures(root: Path, name: str, file: Path) -> list[Path]:
    """List where the images of an annotation file may be; the likeliest first."""
    beside, stem = file.parent, file.stem
    tail = next((stem[match.start() :] for match in re.finditer("[A-Za-z]+", stem) if split_of(match[0])), "")
    words = [word for word in (tail, beside.name if split_of(beside.name) else "", *_WORDS[name], stem) if word]
    own = [beside] if split_of(beside.name) else []
    places = [*own, *(root / word for word in words)]
    for base in dict.fromkeys((root, beside)):
        known = [base / folder for folder in _folders(base) if folder.lower() in _PICTURE_FOLDERS]
        places += [one / word for one in known for word in words] + known
        places += [one / inner for one in known for inner in _folders(one)[:_LISTED]]
    places += [root, beside, *(root / folder for folder in _folders(root)[:_LISTED])]
    return [place for place in dict.fromkeys(places) if place.is_dir()] or [root]


def _hits(folder: Path, names: Sequence[str]) -> int:
    return sum(os.path.lexists(folder / name.replace("\\", "/")) for name in names if "\0" not in name)


# --- YOLO ---


def _yolo(root: Path) -> Iterator[Layout]:
    if root.is_dir():
        files = [root / name for name in _entries(root) if name.lower().endswith((".yaml", ".yml"))]
    else:
        files = [root] if root.suffix.lower() in (".yaml", ".yml") else []
    files.sort(key=lambda file: (file.stem.lower() not in ("data", "dataset"), natural_key(file.name)))
    found = [yolo for file in files[:_LISTED] if file.is_file() and (yolo := read_yolo(file))]
    if not found and (bare := _without_yaml(root)):
        found = [bare]
    for yolo in found:
        splits = {name: Split(part.folder, part.labels, len(part.pictures)) for name, part in yolo.splits.items()}
        yield Layout("detection", "YOLO", yolo.file.parent, splits, yolo.names, str(yolo.file), yolo.notes, yolo=yolo)


def _without_yaml(root: Path) -> YoloSet | None:
    """Find images and label files of YOLO without a data.yaml; classes.txt, as LabelImg has it, names the classes.

    Raises:
        DataError: nothing names the classes.
    """
    values: dict[str, Any] = {}
    texts: list[Path] = []
    for pictures in _named(root, ("images",)):
        for labels in _named(root, ("labels",)):
            folders = {split: name for name in _folders(pictures) if (split := split_of(name))} or {"train": ""}
            for split, name in folders.items():
                values[split] = f"{pictures.name}/{name}"
                texts += [labels, labels / name]
    for name in _folders(root):
        split = split_of(name)
        if split and _named(root / name, ("images",)) and _named(root / name, ("labels",)):
            values.setdefault(split, f"{name}/images")
            texts.append(root / name / "labels")
        elif split and not _folders(root / name):  # labels beside their images, as Darknet has them
            values.setdefault(split, name)
            texts.append(root / name)
    if not any(_is_label(folder / name) for folder in texts for name in islice(_entries(folder), _SAMPLE)):
        return None
    for names in (folder / name for folder in (root, *texts) for name in _NAME_FILES):
        if names.is_file():
            return yolo_of(names, {**values, "path": str(root.absolute()), "names": names.name})
    wanted = "; ".join(f"{split}: {place}" for split, place in values.items())
    raise DataError(
        f"{root} holds label files of YOLO and nothing that names their classes: write {root / 'data.yaml'} with the "
        f"lines {wanted}; names: [NAME, NAME, ...]"
    )


def _is_label(file: Path) -> bool:
    """Tell whether the first line of a .txt is that of an object: a class and its coordinates."""
    if file.suffix.lower() != ".txt" or not file.is_file():
        return False
    try:
        with file.open("rb") as stream:
            words = stream.readline(1000).split()
        return len(words) >= 5 and words[0].isdigit() and all(0 <= float(word) <= 1 for word in words[1:5])
    except (OSError, ValueError):
        return False


# --- segmentation: folders of masks ---


def _ade(root: Path) -> Iterator[Layout]:
    splits = {}
    for name, folder in (("train", "training"), ("val", "validation")):
        pictures, masks = root / "images" / folder, root / "annotations" / folder
        if pictures.is_dir() and (masks.is_dir() or _has_pictures(pictures)):
            splits[name] = Split(pictures, masks)
    if splits and (root / "annotations").is_dir():
        yield Layout("segmentation", "ADE20K", root, splits, chosen_by=str(root))


def _mask_folders(root: Path) -> Iterator[Layout]:
    if not root.is_dir() or _is_ade(root):
        return
    for pairs in (_split_within(root), _split_above(root), _split_beside(root), _unsplit(root), _together(root)):
        splits: dict[str, Split] = {}
        for name, pictures, masks, listed in pairs:
            if name not in splits and _are_masks(pictures, masks):
                splits[name] = Split(pictures, masks, listed=listed)
        if splits:
            ordered = {name: splits[name] for name in _WORDS if name in splits}
            yield Layout("segmentation", "mask folders", root, ordered, chosen_by=str(root))
            return


def _is_ade(root: Path) -> bool:
    return any((root / "annotations" / name).is_dir() for name in ("training", "validation"))


_Pair = tuple[str, Path, Path, Path | None]  # split, images, masks, the list of those that belong to it


def _named(root: Path, known: Iterable[str]) -> list[Path]:
    """List the folders with known names, in the order of these names."""
    there: dict[str, list[str]] = {}
    for folder in _folders(root):
        there.setdefault(folder.lower(), []).append(folder)
    return [root / folder for name in known for folder in there.get(name, ())]


def _split_within(root: Path) -> Iterator[_Pair]:
    """images/train and masks/train."""
    for pictures in _named(root, _PICTURE_FOLDERS):
        for masks in _named(root, _MASK_FOLDERS):
            there = {name: split for name in _folders(masks) if (split := split_of(name))}
            for folder in _folders(pictures):
                split = split_of(folder)
                same = [name for name in there if name == folder] or [n for n in there if there[n] == split]
                if split and same:
                    yield split, pictures / folder, masks / same[0], None


def _split_above(root: Path) -> Iterator[_Pair]:
    """train/images and train/masks."""
    for folder in _folders(root):
        if split := split_of(folder):
            for pictures in _named(root / folder, _PICTURE_FOLDERS):
                for masks in _named(root / folder, _MASK_FOLDERS):
                    yield split, pictures, masks, None


def _split_beside(root: Path) -> Iterator[_Pair]:
    """train and trainannot (CamVid), train and train_masks, train2017 and masks/train2017."""
    folders = _folders(root)
    for folder in folders:
        split = split_of(folder)
        rest = [name for name in folders if name != folder and name.lower().startswith(folder.lower())]
        for name in rest:
            if split and name.lower()[len(folder) :].strip("_- ") in _MASK_FOLDERS:
                yield split, root / folder, root / name, None
        for masks in _named(root, _MASK_FOLDERS):
            if split and (masks / folder).is_dir():
                yield split, root / folder, masks / folder, None


def _unsplit(root: Path) -> Iterator[_Pair]:
    """img and mask without splits; JPEGImages and SegmentationClass with lists of names for each split."""
    lists: dict[str, Path] = {}
    for folder in ("ImageSets/Segmentation", "splits", "lists", "."):
        if (root / folder).is_dir():
            files = [name for name in _entries(root / folder) if name.lower().endswith(".txt")]
            for name in files:
                if Path(name).stem.lower() in _SPLIT_OF:
                    lists.setdefault(_SPLIT_OF[Path(name).stem.lower()], root / folder / name)
    for pictures in _named(root, _PICTURE_FOLDERS):
        for masks in _named(root, _MASK_FOLDERS):
            for split, file in lists.items():
                yield split, pictures, masks, file
            if not lists:
                yield "train", pictures, masks, None


def _together(root: Path) -> Iterator[_Pair]:
    """train with images and masks in one folder, as Roboflow exports them."""
    for folder in _folders(root):
        if split := split_of(folder):
            yield split, root / folder, root / folder, None


def _are_masks(pictures: Path, masks: Path) -> bool:
    """Tell whether files of one folder can be the masks of another's images."""
    if not pictures.is_dir() or not masks.is_dir():
        return False
    if pictures == masks:
        return holds_pairs(pictures)
    return _has_pictures(pictures, 2) and _has_pictures(masks, 2)


# --- classification ---


def _class_folders(root: Path) -> Iterator[Layout]:
    splits: dict[str, Split] = {}
    classes: tuple[str, ...] = ()
    special = {*_PICTURE_FOLDERS, *_MASK_FOLDERS}
    folders = _folders(root)
    for folder in folders:
        if (split := _SPLIT_OF.get(folder.lower())) and split not in splits:
            names = _folders(root / folder)
            if names and not special.issuperset(map(str.lower, names)) and _has_pictures(root / folder, 2):
                splits[split] = Split(root / folder)
                classes = classes or tuple(names)
    unsplit = [name for name in folders if name.lower() not in special and not split_of(name)]
    if splits or any(_has_pictures(root / name) for name in unsplit[:_LISTED]):
        ordered = {name: splits[name] for name in _WORDS if name in splits}
        yield Layout("classification", "class folders", root, ordered, classes, str(root), is_sure=bool(splits))


_KIND_OF_TABLE = {"wds": "tar shards", "parquet": "parquet", "csv": "csv"}


def _tables(root: Path) -> Iterator[Layout]:
    found: dict[str, Found] = {}
    for name in _WORDS:
        with suppress(DataError):  # there is none of this split
            place = find(root, "validation" if name == "val" else name)
            if place.kind in _KIND_OF_TABLE and not (place.split_required and name == "test"):
                found[name] = place
    if found:
        kind = _KIND_OF_TABLE[next(iter(found.values())).kind]
        splits = {name: Split(place.files[0].parent, place.files[0]) for name, place in found.items()}
        is_sure = not any(place.split_required for place in found.values())
        yield Layout("classification", kind, root, splits, chosen_by=str(root), is_sure=is_sure)


# --- what is in a folder ---


def _folders(folder: Path) -> list[str]:
    """List the folders in a folder in natural order, hidden ones left out; none of what cannot be read."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not is_hidden(f"{entry.name}/") and is_folder(entry)]
    except (OSError, ValueError):
        return []
    return sorted(names, key=natural_key)


def _entries(folder: Path) -> list[str]:
    """List all names in a folder, hidden ones left out; none of what cannot be read."""
    try:
        return sorted((name for name in os.listdir(folder) if not name.startswith(".")), key=natural_key)  # noqa: PTH208
    except (OSError, ValueError):
        return []


def _has_pictures(folder: Path, depth: int = 1) -> bool:
    """Tell whether there is an image in a folder, or so many folders below it."""
    try:
        with os.scandir(folder) as entries:
            first = [entry.name for entry in islice(entries, _LOOKED_AT) if not entry.name.startswith(".")]
    except (OSError, ValueError):
        return False
    if any(suffix_of(name) in SUFFIXES for name in first):
        return True
    if any(not suffix_of(name) for name in first) and list_folder(folder).pictures:  # without suffix, by their content
        return True
    return depth > 0 and any(_has_pictures(folder / name, depth - 1) for name in _folders(folder)[:_LISTED])


def below(root: Path, path: Path) -> str:
    """Name a path below a folder, or else as an absolute one."""
    root, path = root.absolute(), path.absolute()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)


def _nothing_known(root: Path, task: str | None, found: Sequence[Layout]) -> str:
    """Say what is in a folder without a known layout, and which layouts are known."""
    if not root.exists():
        return f"{root} does not exist: give the folder of the data set"
    inner = []
    for place in (root / name for name in _folders(root)[:_LISTED]):  # an archive unpacked into a folder of its own
        with suppress(DataError):
            found_there = (layout for finder in _FINDERS for layout in finder(place))
            if any(layout.is_sure and layout.splits and task in (None, layout.task) for layout in found_there):
                inner.append(place)
    hint = f"{some(inner, 3)} holds such data: give that folder. " if inner else ""
    known = "; ".join(f"{kind}: {how}" for kind, (of, how) in KINDS.items() if task in (None, of))
    if found and found[0].splits:
        there = f"holds data for {found[0].task}: {found[0]}"
    elif root.is_dir():
        folders, names = _folders(root), _entries(root)
        files = [name for name in names if name not in set(folders)]
        kinds: dict[str, int] = {}
        for name in files:
            suffix = Path(name).suffix.lower() or "without suffix"
            kinds[suffix] = kinds.get(suffix, 0) + 1
        counted = some((f"{count} {suffix}" for suffix, count in sorted(kinds.items(), key=lambda one: -one[1])), 4)
        there = f"holds the folders {some(folders, 6) or '(none)'} and the files {counted or '(none)'}"
        if any(name.lower() == "annotations" for name in folders) and any(
            name.lower().endswith(".xml") for name in islice(_entries(root / "Annotations"), _LOOKED_AT)
        ):
            there += ". Its .xml files are Pascal VOC's, which is not read: convert them to a COCO json"
    else:
        there = "is a file of another kind"
    return f"{root} {there}. {hint}Known layouts{f' of {task}' if task else ''}: {known}"


_Finder = Callable[[Path], Iterator[Layout]]
_FINDERS: tuple[_Finder, ...] = (_coco, _yolo, _ade, _mask_folders, _class_folders, _tables)
