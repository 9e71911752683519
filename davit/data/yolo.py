"""Read YOLO's data.yaml, its images and its label files, and give their contents in COCO's form.

A label file has a line for each object: ``class cx cy w h`` for a box, ``class x1 y1 x2 y2 x3 y3 ...`` for a polygon;
coordinates are shares of the image's width and height. The format is described at
https://docs.ultralytics.com/datasets/detect and https://docs.ultralytics.com/datasets/segment.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..text import is_number, some
from .coco import LINE
from .errors import DataError
from .headers import read_headers
from .listing import list_pictures, natural_key

SPLITS = ("train", "val", "test")
_SYNONYMS = {"val": ("val", "valid", "validation")}
_KEY = re.compile(rb"^(\w+)[ \t]*:", re.MULTILINE)
_LARGEST = 1 << 18  # bytes of a data.yaml
_LARGEST_LABELS = 16 << 20  # bytes of a label file
_TOLERANCE = 1e-6  # of coordinates that were rounded to a little over 1
_SHOWN = 5  # faults of label files that a message lists


@dataclass(frozen=True)
class YoloSplit:
    """Images of a split and their label files.

    Attributes:
        folder: what holds all of the images.
        labels: what holds all of the label files.
        pictures: their paths, in natural order, or in the order of the lists.
        label_files: for each image its label file; None where it has none, and so no objects.
        notes: what is left out, a sentence each.
    """

    folder: Path
    labels: Path
    pictures: list[Path]
    label_files: list[Path | None]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class YoloSet:
    """What a data.yaml says.

    Attributes:
        splits: those whose images are there, by name: 'train', 'val', 'test'.
        keypoints: numbers of a label line that follow the box and are left out.
        notes: what is not there or not used, a sentence each.
    """

    file: Path
    names: tuple[str, ...]
    splits: dict[str, YoloSplit]
    keypoints: int = 0
    notes: tuple[str, ...] = ()


# --- data.yaml ---


def read_yolo(file: Path) -> YoloSet | None:
    """Read a data.yaml and list the images that it names; None for a yaml that is something else.

    Class names stay the text that they are in the file: ``no`` is no truth value, and ``01`` not 1.

    Raises:
        DataError: it is no YAML though it has the keys, it has no names or several numbers of them, or none of its
            images is there.
    """
    values = _read_yaml(file)
    if not ({*SPLITS, "valid", "validation"} & set(values)) or not ({"names", "nc"} & set(values)):
        return None
    return yolo_of(file, values)


def yolo_of(file: Path, values: dict[str, Any]) -> YoloSet:
    """Make a data set of the values of a data.yaml; arguments and errors are those of `read_yolo`."""
    names = _names(file, values)
    notes: list[str] = []
    root = _root(file, values, notes)
    splits = {}
    for name in SPLITS:
        given = next((values[key] for key in _SYNONYMS.get(name, (name,)) if values.get(key)), None)
        places = [given] if isinstance(given, str) else given if isinstance(given, list) else []
        pictures, absent = _pictures(file, root, places)
        if absent:
            notes.append(f"{file} has {name}: {some(absent, 3)}, which is not there")
        if pictures:
            splits[name] = _with_labels(pictures)
    if not splits:
        reason = "; ".join(notes) or "it names no folder of images for train, val or test"
        raise DataError(f"{file}: no images. {reason}. Correct path, train and val in it")
    keypoints = 0
    if shape := values.get("kpt_shape"):
        if isinstance(shape, list) and all(number.isdigit() for number in shape) and len(shape) == 2:
            keypoints = int(shape[0]) * int(shape[1])
            notes.append(f"{file} has keypoints, of which DaViT's detectors learn none: boxes are taken")
    return YoloSet(file, names, splits, keypoints, tuple(notes))


def _read_yaml(file: Path) -> dict[str, Any]:
    """Read the outermost keys of a yaml: text, lists of text, dicts of text. Nothing for a file of another kind.

    The nodes are read, and no objects are made of them: that keeps names as they are written, and an alias that
    stands for a million values costs nothing.
    """
    try:
        if file.stat().st_size > _LARGEST:
            return {}
        data = file.read_bytes()
    except OSError:
        return {}
    try:
        top = yaml.compose(data, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeError, ValueError, RecursionError) as error:
        if {b"train", b"names"} <= set(_KEY.findall(data)):
            reason = " ".join(str(error).split())[:300]
            raise DataError(
                f"{file} is no YAML: {reason}. Save it as UTF-8, and write paths with / or without quotation marks"
            ) from error
        return {}
    if not isinstance(top, yaml.MappingNode):
        return {}
    values: dict[str, Any] = {}
    for key, value in top.value:
        if isinstance(key, yaml.ScalarNode):
            values[key.value] = _value(value)
    return values


def _value(node: Any) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return "" if node.tag.endswith(":null") else node.value
    if isinstance(node, yaml.SequenceNode):
        return [one.value for one in node.value if isinstance(one, yaml.ScalarNode)]
    pairs = [(key, one) for key, one in node.value if isinstance(key, yaml.ScalarNode)]
    return {key.value: one.value for key, one in pairs if isinstance(one, yaml.ScalarNode)}


def _names(file: Path, values: dict[str, Any]) -> tuple[str, ...]:
    """Return the class names in the order of their numbers."""
    given, number = values.get("names"), values.get("nc")
    if isinstance(given, dict):
        wrong = [key for key in given if not (key.isascii() and key.isdigit())]
        numbers = sorted(map(int, given)) if not wrong else []
        if wrong or numbers != list(range(len(given))):
            shown = some(wrong or numbers, 6)
            raise DataError(f"{file}: names must be numbered 0, 1, 2 ... without a gap, and has the keys {shown}")
        names = tuple(value for _, value in sorted((int(key), value) for key, value in given.items()))
    elif isinstance(given, list):
        names = tuple(given)
    elif isinstance(given, str) and (file.parent / given).is_file():
        names = tuple((file.parent / given).read_text(encoding="utf-8-sig", errors="replace").split("\n"))
        names = tuple(name.strip() for name in names if name.strip())
    elif isinstance(number, str) and number.isdigit() and 0 < int(number) < 100_000:
        return tuple(map(str, range(int(number))))
    else:
        raise DataError(f"{file} has no names: list the class names there, as names: [cat, dog]")
    if not names:
        raise DataError(f"{file} has no names: list the class names there, as names: [cat, dog]")
    if isinstance(number, str) and number.isdigit() and int(number) != len(names):
        raise DataError(f"{file} has nc: {number} and {len(names)} names ({some(names, 6)}): correct one of them")
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise DataError(
            f"{file}: {some(map(repr, twice), 4)} is there twice in names: give each class a name of its own"
        )
    return names


def _root(file: Path, values: dict[str, Any], notes: list[str]) -> Path:
    """Find the folder that train and val are below: `path`, where that exists, else where data.yaml is."""
    here = file.parent
    given = values.get("path")
    if not isinstance(given, str) or not given:
        return here
    for place in (here / given, Path(given), here.parent / given):
        if place.is_dir():
            return place
    if Path(given).name != here.name and given not in (".", "./"):
        notes.append(f"{file} has path: {given}, which is not there; its own folder is taken")
    return here


def _pictures(file: Path, root: Path, places: Sequence[str]) -> tuple[list[Path], list[str]]:
    """List the images of folders, of .txt lists and of single files; return those and the places that are absent."""
    pictures: list[Path] = []
    absent = []
    for given in places:
        place = _find(file, root, given)
        if place is None:
            absent.append(given)
        elif place.is_dir():
            pictures += [place / name for name in list_pictures(place).pictures]
        elif place.suffix.lower() == ".txt":
            pictures += _listed(place, root)
        else:
            pictures.append(place)
    return list(dict.fromkeys(pictures)), absent


def _find(file: Path, root: Path, given: str) -> Path | None:
    """Find a place that data.yaml names; a "../" that leads out of the folder, as Roboflow writes it, is left out."""
    given = given.replace("\\", "/")
    inside = given
    while inside.startswith("../"):
        inside = inside[3:]
    names = [root / given, file.parent / given, root / inside, file.parent / inside]
    for place in names:
        if "\0" not in given and place.exists():
            return Path(os.path.normpath(place))
    return None


def _listed(file: Path, root: Path) -> list[Path]:
    """List the images that a .txt names, a line each: absolute, or below the list's folder or the data set's."""
    found = []
    for line in file.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines():
        name = line.strip().replace("\\", "/")
        if name:
            places = [file.parent / name, root / name]
            found.append(next((place for place in places if os.path.lexists(place)), places[0]))
    return [Path(os.path.normpath(place)) for place in found]


# --- label files ---


def _with_labels(pictures: list[Path]) -> YoloSplit:
    """Find the label file of each image."""
    by_folder: dict[Path, list[Path]] = {}
    for picture in pictures:
        by_folder.setdefault(picture.parent, []).append(picture)
    label_of: dict[Path, Path] = {}
    folders, unused = [], 0
    for folder, inside in by_folder.items():
        wanted = {_stem(picture): picture for picture in inside}
        listings = [(place, _texts(place)) for place in _label_folders(folder)]
        place, texts = max(listings, key=lambda one: len(wanted.keys() & one[1].keys()))
        label_of |= {picture: place / texts[_stem(picture)] for picture in inside if _stem(picture) in texts}
        folders.append(place)
        if place != folder:
            unused += len(texts.keys() - wanted.keys() - {"classes"})
    files = [label_of.get(picture) for picture in pictures]
    notes = []
    without = files.count(None)
    if without:
        notes.append(f"{without:,} of {len(files):,} images have no label file, and so no objects")
    if unused:
        notes.append(f"{unused:,} label files have no image and are not used")
    return YoloSplit(_common(by_folder), _common(folders), pictures, files, tuple(notes))


def _label_folders(folder: Path) -> list[Path]:
    """List where the label files of a folder of images may be: its path with labels for images, or beside them."""
    parts = list(folder.parts)
    places = []
    for place in range(len(parts) - 1, -1, -1):
        if parts[place].lower() == "images":
            places += [labels.joinpath(*parts[place + 1 :]) for labels in _labels_in(Path(*parts[:place]))]
            break
    beside = _labels_in(folder.parent)
    return [*places, folder, *(labels / folder.name for labels in beside), *_labels_in(folder), *beside]


def _labels_in(folder: Path) -> list[Path]:
    """List the folders for labels in a folder, however their case is."""
    try:
        names = os.listdir(folder)  # noqa: PTH208
    except OSError:
        return []
    return [folder / name for name in sorted(names, reverse=True) if name.lower() == "labels"]


def _texts(folder: Path) -> dict[str, str]:
    try:
        names = os.listdir(folder)  # noqa: PTH208
    except OSError:
        return {}
    return {_stem(Path(name)): name for name in sorted(names) if name.lower().endswith(".txt") and name[0] != "."}


def _stem(file: Path) -> str:
    return unicodedata.normalize("NFC", file.stem)


def _common(folders: Any) -> Path:
    return Path(os.path.commonpath([os.path.abspath(folder) for folder in folders]))  # noqa: PTH100


# --- in COCO's form ---


@dataclass
class _Faults:
    """Collect what is wrong with label files; the first few are shown."""

    shown: list[str] = field(default_factory=list)
    files: set[Path] = field(default_factory=set)
    count: int = 0

    def add(self, file: Path, line: int, text: str) -> None:
        self.count += 1
        self.files.add(file)
        if len(self.shown) < _SHOWN:
            self.shown.append(f"{file}:{line}: {text}")


def coco_of(yolo: YoloSet, split: str) -> tuple[dict[str, Any], list[str]]:
    """Give a split of a YOLO data set in COCO's form, and sentences on what is not used.

    Images, annotations and categories are numbered from 1, images in natural order of their paths, categories in the
    order of the names. An image's `file_name` is its path below the folder of the split, its size that of the
    upright image. Coordinates are in pixels; of a polygon, box and area are those of the polygon. An annotation notes
    the line of the label file that it comes from, for messages (`davit.data.coco.LINE`).

    Raises:
        DataError: lines of label files are wrong (file and line are named), or images cannot be read.
    """
    part = yolo.splits[split]
    headers = read_headers(part.pictures)
    bad = [f"{file}: {one.fault}" for file, one in zip(part.pictures, headers, strict=True) if one.fault]
    if bad:
        raise DataError(f"{len(bad)} of {len(headers)} images cannot be read: {some(bad, 3)}. Repair or remove them")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    faults = _Faults()
    repeated = 0
    order = sorted(range(len(headers)), key=lambda index: natural_key(str(part.pictures[index])))
    for number, index in enumerate(order, 1):
        header, picture, labels = headers[index], part.pictures[index], part.label_files[index]
        name = os.path.relpath(os.path.abspath(picture), part.folder)  # noqa: PTH100
        images.append({"id": number, "file_name": name, "width": header.width, "height": header.height})
        seen = set()
        for line, values in _lines(labels, yolo, faults) if labels else ():
            if values in seen:
                repeated += 1
                continue
            seen.add(values)
            annotation = _annotation(values, header.width, header.height)
            place = {"id": len(annotations) + 1, "image_id": number, LINE: f"{labels}:{line}"}
            annotations.append({**place, **annotation})
    if faults.count:
        more = f" and {faults.count - len(faults.shown)} more" if faults.count > len(faults.shown) else ""
        raise DataError(
            f"{faults.count} lines of {len(faults.files)} label files are wrong: {'; '.join(faults.shown)}{more}. "
            "Correct them, or empty a file whose image has no objects"
        )
    notes = [*part.notes]
    if repeated:
        notes.append(f"{repeated:,} lines of label files are there twice, and taken once")
    categories = [{"id": number, "name": name} for number, name in enumerate(yolo.names, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}, notes


def _lines(file: Path, yolo: YoloSet, faults: _Faults) -> Iterator[tuple[int, tuple[float, ...]]]:
    """Yield each right line, by its number and its own numbers: the class, and the coordinates of a box or polygon."""
    try:
        if file.stat().st_size > _LARGEST_LABELS:
            faults.add(file, 1, f"larger than {_LARGEST_LABELS >> 20} MiB, which no label file is")
            return
        text = file.read_bytes().decode("utf-8-sig", "replace")
    except OSError as error:
        faults.add(file, 1, f"cannot be read ({error.strerror})")
        return
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            values = tuple(float(word) for word in words)
            wrong = _fault(values, len(yolo.names), yolo.keypoints)
        except ValueError:
            strange = next(word for word in words if not is_number(word))
            wrong = f"{strange[:40]!r} is no number"
        if wrong:
            faults.add(file, number, wrong)
        else:
            yield number, values[:5] if yolo.keypoints else values


def _fault(values: tuple[float, ...], classes: int, keypoints: int) -> str:
    """Say what is wrong with the numbers of a line; "" where nothing is."""
    count = len(values)
    if keypoints and count != 5 + keypoints:
        return f"{count} numbers; class, box and keypoints are {5 + keypoints}"
    if not keypoints and count != 5 and (count < 7 or count % 2 == 0):
        return f"{count} numbers; a box has 5 (class cx cy w h), a polygon 7, 9, 11 ... (class x1 y1 x2 y2 x3 y3 ...)"
    if not (values[0].is_integer() and 0 <= values[0] < classes):
        return f"class {values[0]:.15g} is none of 0 to {classes - 1}"
    coordinates = values[1:5] if keypoints else values[1:]
    outside = next((value for value in coordinates if not -_TOLERANCE <= value <= 1 + _TOLERANCE), None)
    if outside is not None:
        return f"{outside:.15g} is not from 0 to 1: coordinates are shares of the image's width and height"
    return ""


def _annotation(values: tuple[float, ...], width: int, height: int) -> dict[str, Any]:
    """Give the numbers of a line as COCO has them, in pixels."""
    category = int(values[0]) + 1
    if len(values) == 5:
        _, x, y, w, h = values
        box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
        return {"category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
    xs, ys = [x * width for x in values[1::2]], [y * height for y in values[2::2]]
    box = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    following = zip(xs, ys, xs[1:] + xs[:1], ys[1:] + ys[:1], strict=True)
    area = abs(sum(x0 * y1 - x1 * y0 for x0, y0, x1, y1 in following)) / 2
    polygon = [value for pair in zip(xs, ys, strict=True) for value in pair]
    return {"category_id": category, "bbox": box, "area": area, "iscrowd": 0, "segmentation": [polygon]}
