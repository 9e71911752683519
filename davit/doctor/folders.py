"""Check a data folder of any known layout: its classes, its labels, its files, by the functions of the tools."""

from __future__ import annotations

import logging
import os
import shlex
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import numpy as np

from ..choices import CLASSIFICATION, MULTILABEL
from ..commands import command_name
from ..data import BadImageError, DataError, PictureDataset, check_classes, labels_numbered, open_dataset
from ..data.class_lists import ClassList, find_class_list
from ..data.classes import check_labels
from ..data.coco import examine, read_annotations
from ..data.decode import Decoding, load_picture, load_stored, used_range
from ..data.folder import split_command
from ..data.headers import read_headers
from ..data.layouts import Layout, Split, find_layout
from ..data.listing import left_out, list_pictures
from ..data.masks import IGNORED, Coding, as_trained, check_pairs, count_labels, judge_labels
from ..data.pairs import pair_masks
from ..data.tables import is_of_several
from ..data.yolo import coco_of
from ..engine.flags import parse_with_config, train_parser
from ..limits import NUMBERS
from ..text import some
from .findings import Finding, error, ok, warning

_SHOWN = 20  # bad files that get a finding each; more are counted
_UNBALANCED = 20  # from so many times as many images in the largest class as in the smallest
_FEW = 50_000  # images to train on: with fewer, published weights are the better start
_VALUES = 40  # images of a split whose values are looked at
_USUAL_BANDS = 4  # grey or coloured, each with transparency
_READ = Callable[[], object]  # opens one image to its last pixel


def examine_folder(root: Path, limit: int | None) -> Iterator[Finding]:
    """Find out which kind of data set a folder is, and what is wrong with it; the last finding is how to train on it.

    Args:
        root: a folder of any layout of `davit.data.layouts`, or the data.yaml, json, table or shard that is meant.
        limit: open no more than so many images of a split, evenly spread; None opens all.
    """
    try:
        layout = find_layout(root)
    except DataError as fault:
        arrange = "arrange the files as one of the layouts; docs/training.md and docs/detect.md have examples"
        yield error("layout", str(fault), arrange if root.exists() else "check the path")
        yield from _pictures(root, limit)
        return
    yield ok("layout", str(layout))
    for note in layout.notes:
        yield warning("layout", note, "correct it, if that is not meant")
    for other in layout.others:
        use = f"{other.chosen_by} names it" if other.task == layout.task else _command(other, root, Counted())
        yield ok("layout", f"also there, and not looked at here: {other}; {use}")
    examine_task = {"classification": _classes, "detection": _boxes, "segmentation": _masks}[layout.task]
    faulty, counted = False, Counted()
    for finding in examine_task(layout, limit, counted):
        faulty |= finding.level == "error" and finding.subject != _SPLIT  # which the command mends
        yield finding
    repaired = "when the errors above are gone: " if faulty else ""
    yield ok("command", f"{repaired}{_command(layout, root, counted)}")


def _pictures(root: Path, limit: int | None) -> Iterator[Finding]:
    """Look at the images of a folder whose labels are not known."""
    with suppress(DataError):  # a finding already
        found = list_pictures(root)
        if found.pictures:
            yield ok("images", f"{len(found.pictures)} in {root}")
            yield from _readable_files("images", [root / name for name in found.pictures], limit)


@dataclass
class Counted:
    """What the examination of a data set has found out, which the command to train on it needs too.

    Attributes:
        pictures: to train on; None if they were not counted.
        has_masks: every object to train on has polygons or a mask; None if they were not read.
        several: images have several labels.
        decoding: the flags with which the images to train on are read, where the defaults do not fit.
    """

    pictures: int | None = None
    has_masks: bool | None = None
    several: bool = False
    decoding: str = ""


def _command(layout: Layout, root: Path, counted: Counted) -> str:
    """Give the command that trains on a data set: `davit`'s where the doctor was called so, else the script."""
    place = shlex.quote(str(root))
    before = ""
    if _is_unsplit(layout):
        before, place = f"{split_command(root)}, then ", shlex.quote(f"{root}-split")
    unchecked = "" if "val" in layout.splits or "test" in layout.splits else " --no-validate"
    if layout.task == "classification":
        task = f" --task {MULTILABEL}" if counted.several else ""
        pictures = _pictures_to_train_on(layout) if counted.pictures is None else counted.pictures
        recipe = ["-c", "finetune"] if pictures is not None and pictures < _FEW else []
        flags = f"{task}{counted.decoding}{_batch_size(pictures, recipe)}"
        trainer = f"{program} train" if (program := _program()) else "python train.py"
        start = f"{' '.join(recipe)} --pretrained" if recipe else "--model DaViT_tiny"
        return f"{before}{trainer} {place} {start}{flags}"
    if layout.task == "detection":
        config = "davit_maskrcnn_1x_coco" if _has_masks(layout, counted.has_masks) else "davit_retinanet_1x_coco"
        return f"{_trainer('mmdet', config)} --data-root {place}{unchecked}"
    if layout.kind == "ADE20K":
        return f"{_trainer('mmseg', 'upernet_davit_512x512_160k_ade20k')} --data-root {place}"
    classes = ""
    with suppress(DataError):  # a finding already
        classes = " --classes NAME NAME ..." if _class_list(layout) is None else ""
    return f"{_trainer('mmseg', 'upernet_davit_folders')} --data-root {place}{classes}{unchecked}"


def _program() -> str:
    """Return what the user typed before `doctor`, davit or python -m davit: there may be no scripts at hand then."""
    name = command_name() or ""
    return name.removesuffix(" doctor") if name.endswith(" doctor") else ""


def _trainer(library: str, config: str) -> str:
    """Begin the command that trains a detector or segmentor by a config."""
    if program := _program():
        return f"{program} {'det' if library == 'mmdet' else 'seg'} train {config}"
    return f"python {library}/tools/train.py {library}/configs/{config}.py"


# --- classification ---

_SPLIT = "split"  # the subject of the finding that there is no train/ and val/
_MISSING = "train/ and val/ are expected, each with one folder per class; a fifth of each class in val/ is usual"


def _pictures_to_train_on(layout: Layout) -> int | None:
    """Count them; None where the data set has a fault, which is a finding already."""
    with suppress(DataError), _warnings():
        return len(open_dataset(layout.chosen_by or layout.root, "." if _is_unsplit(layout) else "train"))
    return None


def _batch_size(pictures: int | None, recipe: Sequence[str]) -> str:
    """Give the flag that a training needs if an epoch has fewer images than a batch of train.py, or of its recipe."""
    if pictures is not None and pictures < parse_with_config(train_parser(), [*recipe]).batch_size:
        third = max(1, pictures // 3)
        return f" --batch-size {1 << third.bit_length() - 1}"
    return ""


def _is_unsplit(layout: Layout) -> bool:
    """Tell whether all of a data set is one folder with a folder for each class."""
    return layout.kind == "class folders" and not layout.splits


def _unsplit(layout: Layout, limit: int | None, counted: Counted) -> Iterator[Finding]:
    """Look at class folders that lie in no train/ and val/."""
    yield error(_SPLIT, f"{layout.root} has class folders, and no train/ and val/", f"`{split_command(layout.root)}`")
    try:
        with _warnings() as messages:
            dataset = open_dataset(layout.root, ".")
    except DataError as fault:
        yield error("classes", str(fault), _MISSING)
        yield from _pictures(layout.root, limit)
        return
    yield from (warning("images", text, "move or remove them, if that is not meant") for text in messages)
    yield from _counts("images", dataset)
    counted.pictures = len(dataset)
    yield from _open_all("images", dataset, limit, counted)


def _open_all(
    subject: str, dataset: PictureDataset, limit: int | None, counted: Counted | None = None
) -> Iterator[Finding]:
    """Look at the values of some images, and open all to the last pixel; note how they are to be read."""
    files = [dataset.source.path(index) for index in _spread(range(len(dataset)), _VALUES)]
    dataset.decoding, flags = yield from _values(subject, [Path(file) for file in files if Path(file).is_file()])
    if counted is not None:
        counted.decoding = flags
    yield from _readable(subject, [_reader(dataset, index) for index in range(len(dataset))], limit)


def _classes(layout: Layout, limit: int | None, counted: Counted) -> Iterator[Finding]:
    if _is_unsplit(layout):
        yield from _unsplit(layout, limit, counted)
        return
    counted.several = any(_has_several(layout, split) for split in ("train", "validation"))
    splits: dict[str, PictureDataset] = {}
    for split in ("train", "validation"):
        try:
            with _warnings() as messages:
                task = MULTILABEL if counted.several else CLASSIFICATION
                splits[split] = open_dataset(layout.chosen_by or layout.root, split, task=task)
        except DataError as fault:
            yield error(split, str(fault), _MISSING)
            continue
        yield from (warning(split, text, "move or remove them, if that is not meant") for text in messages)
        yield from _counts(split, splits[split])
    if "train" in splits:
        counted.pictures = len(splits["train"])
    if len(splits) == 2:
        try:
            if (names := splits["train"].class_names) and splits["train"].label_sets is not None:
                splits["validation"] = labels_numbered(splits["validation"], names, "the training data")
            check_classes(splits["train"], splits["validation"])
            with _warnings() as messages:
                check_labels(splits["train"], splits["validation"])
        except DataError as fault:
            yield error("classes", str(fault), "train and val need the same classes, and more than one")
        else:
            yield from (warning("classes", text, "nothing, if that is meant") for text in messages)
            yield ok("classes", f"the same {len(splits['train'].class_names)} in train and val")
    if not splits:
        yield from _pictures(layout.root, limit)
    for split, dataset in splits.items():
        yield from _open_all(split, dataset, limit, counted if split == "train" else None)


def _has_several(layout: Layout, split: str) -> bool:
    """Tell whether a split cannot be read but as images with several labels, or none."""
    try:
        with _warnings():
            open_dataset(layout.chosen_by or layout.root, split)
    except DataError as fault:
        return is_of_several(fault)
    return False


def _reader(dataset: PictureDataset, index: int) -> _READ:
    return lambda: dataset.read(index)


def _counts(split: str, dataset: PictureDataset) -> Iterator[Finding]:
    counts, sets = dataset.counts(), dataset.label_sets
    if counts is None:
        yield ok(split, f"{len(dataset)} images")
        return
    names = {index: name for name, index in dataset.class_to_idx.items()}
    held = sorted((int(counts[index]), index) for index in names if counts[index])
    smallest, largest = held[0], held[-1]
    text = f"{len(dataset)} images in {len(held)} classes, {smallest[0]} to {largest[0]} a class"
    if sets is not None:
        text += f"; {len(sets.flat) / len(sets):.3g} labels per image, {sets.without} images without any"
    ratio = largest[0] / smallest[0]
    if ratio > _UNBALANCED:
        least = some((f"{names[index]} {count}" for count, index in held if count * _UNBALANCED < largest[0]), 5)
        text += f": {ratio:.3g} times as many of {names[largest[1]]} as of {names[smallest[1]]}; smallest: {least}"
        remedy = (
            "--class-weights auto or --sampler balanced; accuracy says little of the small classes, so look at each"
        )
        if split != "train":
            remedy = "accuracy will say little about the small ones: add images to them, or look at each class"
        yield warning(split, text, remedy)
    else:
        yield ok(split, f"{text} (1 to {ratio:.3g})" if ratio > 1 else text)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect what the data package warns of, in place of the log; the list is complete at the end."""
    logger, handler, messages = logging.getLogger("davit.data"), BufferingHandler(10_000), list[str]()
    handler.setLevel(logging.WARNING)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        messages += [record.getMessage() for record in handler.buffer]
        logger.removeHandler(handler)
        logger.propagate = propagate


# --- files ---


def _readable(
    subject: str,
    readers: Sequence[_READ],
    limit: int | None,
    remedy: str = "repair or remove it, or pass --skip-bad-images",
) -> Iterator[Finding]:
    """Open images to the last pixel; yield a finding for each bad one."""
    chosen = _spread(readers, limit)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        bad = [fault for fault in pool.map(_why_bad, chosen) if fault is not None]
    yield from (error(subject, text, remedy) for text in bad[:_SHOWN])
    if len(bad) > _SHOWN:
        yield error(subject, f"and {len(bad) - _SHOWN} more unreadable files", remedy)
    if not bad and readers:
        share = "all" if len(chosen) == len(readers) else f"{len(chosen)} of"
        yield ok(subject, f"{share} {len(readers)} files were opened and can be read")


def _spread(things: Sequence[Any], limit: int | None) -> Sequence[Any]:
    """Take no more than `limit` of them, evenly spread."""
    if limit is None or len(things) <= limit:
        return things
    return [things[index * len(things) // limit] for index in range(limit)]


def _why_bad(read: _READ) -> str | None:
    try:
        read()
    except BadImageError as fault:
        return f"{fault.file}: {fault.reason}"
    except OSError as failure:
        return f"{failure.filename or 'a file'}: the machine failed ({failure.strerror})"
    return None


def _readable_files(subject: str, files: Sequence[Path], limit: int | None) -> Iterator[Finding]:
    """Look at the values of images, and open them to the last pixel."""
    decoding, _ = yield from _values(subject, _spread(files, _VALUES))
    yield from _readable(subject, [partial(load_picture, file, decoding=decoding) for file in files], limit)


def _values(subject: str, files: Sequence[Path]) -> Generator[Finding, None, tuple[Decoding, str]]:
    """Look at a few images for another number of bands than 3, and for a range that is hardly used.

    Returns:
        How the images are to be read, and the flags of train.py that say so, each after a space.
    """
    used = used_range(files)
    depth_flag = f" --bit-depth {used.bit_depth}" if used is not None and used.is_small else ""
    if used is not None and used.is_small:
        text = f"{used}, {100 * used.share:.2g} % of their range: scaled by that range they are nearly black"
        depth = f"bit_depth={used.bit_depth}"
        remedy = f"train.py{depth_flag}; in mmdet/ and mmseg/ {depth} of each LoadImageFromFile"
        yield warning(subject, text, remedy)
    elif used is not None:
        yield ok(subject, f"{used}")
    bands = {count for file in files if (count := _bands(file))}
    if len(bands) > 1 and max(bands) > _USUAL_BANDS:
        text = f"images of {' and '.join(map(str, sorted(bands)))} bands"
        yield error(subject, text, "give all images the same bands")
    bit_depth = used.bit_depth if used is not None and used.is_small else None
    if len(bands) != 1 or max(bands) <= _USUAL_BANDS:
        return Decoding(3, bit_depth), depth_flag
    (count,) = bands
    rule = Decoding(count, bit_depth)
    sums = np.zeros((3, count))  # of ones, of values and of their squares
    for file in files:
        if _bands(file):
            pixels = np.asarray(load_picture(file, decoding=rule), dtype=np.float64).reshape(-1, count) / 255
            sums += [pixels.shape[0] + np.zeros(count), pixels.sum(0), (pixels**2).sum(0)]
    mean = sums[1] / sums[0]
    std = np.sqrt(np.maximum(sums[2] / sums[0] - mean**2, 0))
    std[std < NUMBERS["std"].least] = 1  # of a band with one value: 0 divides nothing
    means, deviations = (" ".join(f"{round(one, 4):g}" for one in values) for values in (mean, std))
    flags = f"--in-chans {count} --mean {means} --std {deviations}"
    yield ok(subject, f"{count} bands an image; over {len(files)} of them: {flags}")
    return rule, f" {flags}{depth_flag}"


def _bands(file: Path) -> int:
    """Count the bands of an image; 0 where it cannot be read."""
    try:
        return load_stored(file).shape[2]
    except (BadImageError, OSError):
        return 0


# --- detection ---


def _boxes(layout: Layout, limit: int | None, counted: Counted) -> Iterator[Finding]:
    classes: tuple[str, ...] | None = None
    named: dict[Path, set[str]] = {}
    for name, split in layout.splits.items():
        try:
            contents, notes, origin = _annotations(layout, name, split)
        except DataError as fault:
            yield error(name, str(fault), "correct the file, or fetch it again")
            continue
        if name == next(iter(layout.splits)):
            counted.has_masks = _all_masked(contents)
        labelled = split.labelled or name != "test"
        found = examine(contents, origin, split.pictures, classes, training=name == "train", labelled=labelled)
        classes = classes or found.classes
        for text in found.faults:
            yield error(name, f"{origin}: {text}", "correct the file; training would stop here too")
        for text in [*notes, *found.notes]:
            yield warning(name, text, "nothing, if that is meant")
        if not found.faults:
            yield ok(name, f"{found.summary}{_objects(found.contents, found.classes)}")
        names = [str(image.get("file_name")) for image in found.contents.get("images", ())]
        named.setdefault(split.pictures, set()).update(names)
        files = [split.pictures / one for one in names]
        yield from _readable_files(name, [file for file in files if file.is_file()], limit)
    if classes is not None and len(classes) > 1:
        yield ok("classes", f"{len(classes)}: {some(classes, 12)}")
    yield from _unnamed(named)


def _annotations(layout: Layout, name: str, split: Split) -> tuple[dict[str, Any], list[str], Path]:
    """Read the annotations of a split; return them, what is not used of them, and where they are from."""
    if layout.yolo is not None:
        return *coco_of(layout.yolo, name), layout.yolo.file
    assert split.labels is not None  # only class folders have none
    return read_annotations(split.labels, split.labelled or name != "test"), [], split.labels


def _objects(contents: dict[str, Any], classes: Sequence[str]) -> str:
    """Say which class has most objects and which least."""
    names = {one["id"]: str(one["name"]) for one in contents["categories"]}
    count = Counter(names.get(one["category_id"]) for one in contents.get("annotations", ()))
    if len(classes) < 2 or not count:
        return ""
    least, most = min(classes, key=count.__getitem__), max(classes, key=count.__getitem__)
    if count[least] == count[most]:
        return f"; {count[most]:,} objects a class"
    return f"; {count[least]:,} objects ({least}) to {count[most]:,} ({most}) a class"


def _unnamed(named: dict[Path, set[str]]) -> Iterator[Finding]:
    """Say which files lie among the images and are not used."""
    for folder, names in named.items():
        inside = {os.path.normpath(name.replace("\\", "/")) for name in names}
        inner = [other for other in named if other != folder and other.is_relative_to(folder)]
        if not folder.is_dir() or inner:  # the images of several splits lie below it
            continue
        found = list_pictures(folder, deep=any("/" in name for name in inside))
        unused = [name for name in found.pictures if name not in inside]
        if unused and len(unused) < len(found.pictures):
            text = f"{len(unused):,} images in {folder} are in no annotation file: {some(unused, 3)}"
            yield warning("images", text, "images without objects belong into the file too; remove the rest")
        labels = {kind: count for kind, count in found.left_out.items() if kind not in (".json", ".txt", ".xml")}
        if labels:
            yield warning("images", f"{folder}: {left_out(labels)}", "convert or remove them, if that is not meant")


def _has_masks(layout: Layout, known: bool | None) -> bool:
    """Tell whether the objects to train on have polygons or masks; they are read unless that is known."""
    if known is not None:
        return known
    name, split = next(iter(layout.splits.items()))
    try:
        contents, *_ = _annotations(layout, name, split)
    except DataError:
        return False
    return _all_masked(contents)


def _all_masked(contents: dict[str, Any]) -> bool:
    objects = contents.get("annotations") or []
    return bool(objects) and all(one.get("segmentation") for one in objects)


# --- segmentation ---


def _masks(layout: Layout, limit: int | None, counted: Counted) -> Iterator[Finding]:
    reduced = layout.kind == "ADE20K"  # 0 is no class there
    try:
        classes = _class_list(layout)
    except DataError as fault:
        yield error("classes", str(fault), "correct it")
        return
    if classes is not None:
        yield ok("classes", f"{classes.file} names {len(classes.names)}: {some(classes.names, 12)}")
    for name, split in layout.splits.items():
        assert split.labels is not None  # only class folders have none
        if not split.labels.is_dir():
            yield error(name, f"there is no folder {split.labels} of masks", "unpack all of the data set there")
            continue
        try:
            listed = split.listed.read_text().split() if split.listed else None
            pairs = pair_masks(split.pictures, split.labels, names=listed)
        except (DataError, OSError, UnicodeError) as fault:
            yield error(name, str(fault), "name each image and its mask alike")
            continue
        if not pairs.pictures:
            yield error(name, f"no images in {split.pictures}", "unpack all of the data set there")
            continue
        if pairs.without_mask:
            text = f"{len(pairs.without_mask)} of {len(pairs.pictures)} images have no mask"
            wanted = some((file.name for file in pairs.without_mask), 3)
            yield error(name, f"{text} ({wanted})", f"put a mask of the same name into {split.labels}")
        if pairs.absent:
            text = f"{len(pairs.absent)} names of {split.listed} have no image: {some(pairs.absent, 3)}"
            yield error(name, text, "take them out of the list")
        for note in pairs.notes():
            yield warning(name, note, "nothing, if that is meant")
        both = [(picture, mask) for picture, mask in zip(pairs.pictures, pairs.masks, strict=True) if mask is not None]
        if both:
            yield from _labels(name, both, classes, reduced, limit)
        yield from _readable_files(name, pairs.pictures, limit)


def _class_list(layout: Layout) -> ClassList | None:
    """Find the list of classes that lies beside masks."""
    folders = [split.labels or split.pictures for split in layout.splits.values()]
    return find_class_list([layout.root, *folders])


def _labels(
    name: str, pairs: Sequence[tuple[Path, Path]], listed: ClassList | None, reduced: bool, limit: int | None
) -> Iterator[Finding]:
    """Check masks against their images, and say which labels they hold."""
    first = pairs[0][1]
    coding = Coding(palette_is_labels="segmentationclass" in first.as_posix().lower())
    if listed is not None and listed.colours and read_headers([first])[0].mode in ("RGB", "RGBA", "P"):
        coding = Coding(listed.colours)
    values = listed.values if listed is not None else ()
    chosen = [mask for _, mask in _spread(pairs, limit)]
    try:
        check_pairs([picture for picture, _ in pairs], [mask for _, mask in pairs], coding)
        counts = count_labels(chosen, coding)
        trained = as_trained(np.arange(256), reduced)
        there = trained[(counts.sum(axis=0) > 0) & (trained != IGNORED)]
        known = 150 if reduced else int(there.max(initial=0)) + 1
        classes = listed.names if listed is not None else tuple(map(str, range(known)))
        report = judge_labels(
            counts,
            chosen,
            classes,
            reduce_zero_label=reduced,
            label_map={value: label for label, value in enumerate(values) if value != label},
            of_all=len(pairs),
        )
    except DataError as fault:
        yield error(name, str(fault), "the message says how; training would stop here too")
        return
    for text in report.warnings if len(report.present) > 1 and not reduced else ():
        yield warning(name, text, "nothing, if the classes are named so that these are left out")
    if len(report.present) == 1:
        text = f"one label alone, {report.present[0]}: every pixel is it, and nothing is learned"
        yield error(name, text, "label what is something else too")
    shares = counts.sum(axis=0) / counts.sum()
    held = some((f"{label} ({100 * shares[label]:.3g} %)" for label in np.flatnonzero(shares)), 12)
    yield ok(name, f"{len(pairs)} images, each with its mask; {len(chosen)} masks were read, with the labels {held}")
