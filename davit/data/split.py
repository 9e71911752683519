"""Split a folder of class folders, or a table of images, also of several labels each, into train/ and val/."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
import re
import shutil
import uuid
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..choices import CLASSIFICATION, MULTILABEL
from ..text import as_line, some
from .dataset import open_dataset
from .errors import DataError, require
from .find import find
from .folder import split_folder
from .label_sets import SEPARATOR
from .listing import is_hidden, natural_key, suffix_of
from .source import Files
from .tables import is_of_several, read_column

log = logging.getLogger(__name__)

TABLE = "labels.csv"  # of images with several labels
_WITHOUT = ""  # stands for no label, of which each split has its share too
_MOST_SWEEPS = 50


@dataclass(frozen=True)
class Parting:
    """Say which images were put where.

    Attributes:
        counts: of each split, the images of each class, by name.
        groups: how many groups of images were kept together; 0 where none were asked for.
        alike: files with the content of another one, which went where that one is.
        pictures: of each split, how many there are.
        contradicting: pairs of files with the same content and different labels, one of which must be wrong.
    """

    counts: Mapping[str, Mapping[str, int]]
    groups: int
    alike: int
    pictures: Mapping[str, int]
    contradicting: Sequence[tuple[str, str]] = ()

    def __str__(self) -> str:
        """Write a line for each split."""
        total = sum(self.pictures.values())
        lines = []
        for split, counts in self.counts.items():
            number = self.pictures[split]
            lines.append(
                f"{split}: {number:,} images ({number / total:.1%}) of {sum(map(bool, counts.values()))} classes, "
                f"{min(counts.values()):,} to {max(counts.values()):,} of each"
            )
        return "\n".join(lines)


def split_pictures(
    place: str | Path,
    out: str | Path,
    *,
    val: float = 0.2,
    test: float = 0.0,
    seed: int = 0,
    copy: bool = False,
    group_pattern: str | None = None,
    group_key: str | None = None,
    input_key: str | None = None,
    target_key: str | None = None,
    task: str = CLASSIFICATION,
) -> Parting:
    """Write OUT/train/CLASS/..., OUT/val/CLASS/... with a link to each image of a folder or a csv.

    Of images with several labels OUT/train/..., OUT/val/... and OUT/labels.csv are written, and each label gets its
    share of each split, as far as the other labels of its images let it. Else each class is split by itself. What an
    image's part is follows from the seed and the names of the files, not from the order in which they lie. Files of
    the same content go together, so that none is trained on and evaluated.

    Args:
        place: a folder with one folder per class, or a csv of files and labels.
        out: a folder that is not there yet, or empty.
        val, test: shares of each class; a class of two images or more has at least one in each split asked for, as
            far as they go, and one in training.
        copy: copy the files rather than link them.
        group_pattern: a regular expression: images for whose name below the folder it finds the same text (that of
            its first group, if it has one) are kept together, such as those of one patient.
        group_key: the same by a column of the csv.
        input_key, target_key: columns of the csv, where their names do not tell.
        task: "multilabel" for a csv whose images have several labels; also taken where labels cannot be but several.

    Raises:
        DataError: the images cannot be found, a class has one alone, or `out` is in use. A label of several that has
            one alone stays in training, which is warned of.
    """
    require(0 < val < 1, "val", val, "a share between 0 and 1")
    require(
        0 <= test < 1 - val, "test", test, f"a share from 0 to below {1 - val:g}, so that some is left to train on"
    )
    place, out = Path(place), Path(out)
    _check_out(place, out)
    source, labels, class_names = _listed(place, input_key, target_key, task)
    several = source.label_sets is not None
    groups = _groups(place, source, group_pattern, group_key)
    there = [index for index in range(len(source)) if os.path.isfile(source.path(index))]  # noqa: PTH113 (many)
    if len(there) < len(source):
        log.warning("%d images are not there, and are left out.", len(source) - len(there))
    names, files = [source.filename(index) for index in there], [source.path(index) for index in there]
    labels, groups = [labels[index] for index in there], groups and [groups[index] for index in there]
    together, alike = _keys(files, names, groups)
    contradicting = [(names[one], names[first]) for first, one in alike if set(labels[one]) != set(labels[first])]
    shares = {"val": val, **({"test": test} if test else {})}
    parts = _assign(labels, together, shares, seed, even_out=several)
    _check_parts(place, labels, parts, several)
    targets = _targets(names, [""] * len(names) if several else [label for (label,) in labels], parts)
    staged = out.with_name(f".{out.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        for file, target in zip(files, targets, strict=True):
            written = staged / target
            written.parent.mkdir(parents=True, exist_ok=True)
            if copy:
                shutil.copyfile(file, written)
            else:
                written.symlink_to(Path(file).absolute())
        if several:
            with (staged / TABLE).open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream:
                csv.writer(stream).writerows(_rows(targets, labels, class_names))
        if out.exists():
            out.rmdir()
        staged.rename(out)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    found = Counter((part, label) for part, own in zip(parts, labels, strict=True) for label in own)
    occurring = dict.fromkeys(label for own in labels for label in own)
    splits = ("train", *shares)
    counts = {split: {label: found[split, label] for label in occurring} for split in splits}
    pictures = Counter(parts)
    number = {split: pictures[split] for split in splits}
    return Parting(counts, len(set(groups)) if groups else 0, len(alike), number, contradicting)


def _listed(
    place: Path, input_key: str | None, target_key: str | None, task: str
) -> tuple[Files, list[tuple[str, ...]], list[str]]:
    """Find the images; return their source, the classes of each, and the names of all."""
    if place.is_dir() and (train := split_folder(place, "train")) is not None:
        if (val := split_folder(place, "validation")) is not None:
            raise DataError(f"{place} has {train.name}/ and {val.name}/ already: give it to train.py as it is")
        if find(place, "train", in_folders=task != MULTILABEL).kind == "folder":
            log.info("%s has %s/ and nothing to validate on: %s is split.", place, train.name, train)
            place = train
    kind = find(place, ".", in_folders=task != MULTILABEL).kind
    if kind not in ("folder", "csv"):
        raise DataError(f"{place} holds {kind} files; a folder of class folders or a csv is split")
    keys: dict[str, Any] = {"input_key": input_key, "target_key": target_key}
    try:
        dataset = open_dataset(place, ".", task=task, **keys)
    except DataError as error:
        if not is_of_several(error):
            raise
        log.info("%s: images have several labels, or none; they are split as for --task %s.", place, MULTILABEL)
        dataset = open_dataset(place, ".", task=MULTILABEL, **keys)
    source, class_names, targets = dataset.source, dataset.class_names, dataset.source.targets()
    assert isinstance(source, Files)
    if (sets := source.label_sets) is not None:
        labels = [tuple(class_names[index] for index in sets[picture]) for picture in range(len(sets))]
    else:
        assert targets is not None
        labels = [(class_names[target],) for target in targets]
    return source, labels, class_names


def _check_parts(place: Path, labels: Sequence[Sequence[str]], parts: Sequence[str], several: bool) -> None:
    """Look for classes without an image to evaluate on: an error, or of several labels a warning.

    Raises:
        DataError: there are some, or no image at all.
    """
    held = {label for own, part in zip(labels, parts, strict=True) if part == "val" for label in own}
    lacking = sorted({label for own in labels for label in own} - held, key=natural_key)
    if "val" not in parts or "train" not in parts:
        raise DataError(f"{place}: there are too few images (or groups of them) to train on some and evaluate others")
    if lacking and several:
        log.warning(
            "%d labels are in training alone and are not evaluated (%s), as too few images have them.",
            *(len(lacking), some(lacking)),
        )
    elif lacking:
        raise DataError(
            f"{place}: too few images (or groups of them) to train on some and evaluate on others in "
            f"{len(lacking)} of the classes, {some(lacking)}: add images, or remove the class"
        )


def _rows(
    targets: Sequence[str], labels: Sequence[Sequence[str]], class_names: Sequence[str]
) -> list[tuple[str, ...]]:
    """Write the table of images with several labels, so that it has the same classes when it is read.

    That is path,labels, or a column for each class where one has no image, or a name that cannot stand in a list.
    """
    used = {label for own in labels for label in own}
    if used and all(label.isascii() and label.isdigit() for label in used):
        read = [str(index) for index in range(max(map(int, used)) + 1)]
    else:
        read = sorted(used, key=natural_key)
    if read == list(class_names) and not any(SEPARATOR in name or name != name.strip() for name in used):
        rows = [(target, SEPARATOR.join(own)) for target, own in zip(targets, labels, strict=True)]
        return [("path", "labels"), *rows]
    columns = [
        (target, *("1" if name in own else "0" for name in class_names))
        for target, own in zip(targets, labels, strict=True)
    ]
    return [("path", *class_names), *columns]


def _check_out(place: Path, out: Path) -> None:
    inside, around = out.resolve(), (place if place.is_dir() else place.parent).resolve()
    if inside == around or (place.is_dir() and around in inside.parents):
        raise DataError(f"{out} lies in {place}, whose folders are classes: give a folder beside it")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is there and not empty: give another folder, or remove it")


def _groups(place: Path, source: Files, pattern: str | None, key: str | None) -> list[str] | None:
    """Return the group of each image, None where none is asked for."""
    if pattern is not None and key is not None:
        raise DataError(f"`group_key={key}` and `group_pattern={pattern}` both say which images belong together")
    if key is not None:
        if not place.is_file():
            raise DataError(f"`group_key={key}` is a column of a csv, and {place} is none")
        column = read_column(place, key)
        if len(column) != len(source) or not all(column):
            raise DataError(f"`group_key={key}`: that column of {place} lacks a value in some of its rows")
        return [column[row] for row in source.order]
    names = source.names()
    if pattern is None:
        return None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DataError(f"`group_pattern={pattern}` is no regular expression: {error}") from error
    matches = [compiled.search(name) for name in names]
    if other := [name for name, match in zip(names, matches, strict=True) if match is None]:
        raise DataError(
            f"`group_pattern={pattern}` finds nothing in {len(other)} of {len(names)} names: {some(other, 3)}"
        )
    return [(match[1] if compiled.groups else match[0]) or "" for match in matches if match is not None]


def _keys(
    files: Sequence[str], names: Sequence[str], groups: Sequence[str] | None
) -> tuple[list[str], list[tuple[int, int]]]:
    """Return for each image what all that stay together share: their group, and a content that they have in common.

    Also return, for each file with the content of an earlier one, the indices of that one and of itself.
    """
    parent = {f"g{group}": f"g{group}" for group in groups or ()} | {f"n{name}": f"n{name}" for name in names}

    def root(key: str) -> str:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    for name, group in zip(names, groups or (), strict=False):
        parent[root(f"n{name}")] = root(f"g{group}")
    sizes: defaultdict[int, list[int]] = defaultdict(list)
    for index, file in enumerate(files):
        sizes[os.path.getsize(file)].append(index)  # noqa: PTH202 (many of them)
    alike: list[tuple[int, int]] = []
    for same_size in sizes.values():
        if len(same_size) == 1:
            continue
        first_of: dict[bytes, int] = {}
        for index in same_size:
            first = first_of.setdefault(hashlib.blake2b(Path(files[index]).read_bytes()).digest(), index)
            if first != index:
                alike.append((first, index))
                parent[root(f"n{names[index]}")] = root(f"n{names[first]}")
    return [root(f"n{name}") for name in names], alike


def _assign(
    labels: Sequence[Sequence[str]],
    together: Sequence[str],
    shares: Mapping[str, float],
    seed: int,
    *,
    even_out: bool = False,
) -> list[str]:
    """Put each unit of images that stay together into a split.

    Units come in an order that the seed draws. One goes to the split that still lacks images of its classes, if it
    brings that nearer to the share asked for; what none lacks is for training. Then each class that a split has
    none of gives it the smallest unit that training can do without.

    Args:
        labels: the classes of each image.
        even_out: move units afterwards, as `_even_out` does.
    """
    labels = [own or (_WITHOUT,) for own in labels]
    sizes: dict[str, Counter[str]] = defaultdict(Counter)
    for own, key in zip(labels, together, strict=True):
        sizes[key].update(own)
    units_of = Counter(label for counts in sizes.values() for label in counts)
    totals = Counter(label for own in labels for label in own)
    left = dict(units_of)  # units of each class that may still become training
    wanted = {
        split: {
            label: max(1, round(share * total)) if units_of[label] > 1 + number else 0
            for label, total in totals.items()
        }
        for number, (split, share) in enumerate(shares.items())
    }
    lacking = {split: dict(wants) for split, wants in wanted.items()}
    part_of: dict[str, str] = {}
    order = sorted(sizes, key=lambda key: _drawn(seed, key))
    for key in order:
        counts = sizes[key]
        part_of[key] = "train"
        if all(left[label] > 1 for label in counts):
            gains = {
                split: sum(abs(lacks[label]) - abs(lacks[label] - count) for label, count in counts.items())
                for split, lacks in lacking.items()
            }
            best = max(gains, key=lambda split: gains[split])
            if gains[best] > 0:
                part_of[key] = best
        for label, count in counts.items():
            if part_of[key] != "train":
                lacking[part_of[key]][label] -= count
                left[label] -= 1
    for split, lacks in lacking.items():  # a class whose units hold much of another one
        present = {label for key, counts in sizes.items() if part_of[key] == split for label in counts}
        for label in totals:
            if lacks[label] > 0 and label not in present:
                here = [key for key, counts in sizes.items() if label in counts and part_of[key] == "train"]
                free = [key for key in here if all(left[one] > 1 for one in sizes[key])]
                if free:
                    moved = min(free, key=lambda key: sum(sizes[key].values()))
                    part_of[moved] = split
                    for one in sizes[moved]:
                        left[one] -= 1
    if even_out:
        number = Counter(together)
        evened = _Evened(part_of, sizes, number, wanted, {part: share * len(labels) for part, share in shares.items()})
        evened.settle(order)
    return [part_of[key] for key in together]


class _Evened:
    """Move units of images between splits for as long as that brings all labels nearer to their shares.

    First counts how many splits lack a label that they can have, then the sum over splits and labels of the squared
    distance from what is wanted, divided by that; the number of images counts as one more label.

    Args:
        part_of: the split of each unit, which is changed.
        sizes: of each unit, its images by label.
        pictures: of each unit, how many there are.
        wanted: of each split but training, the images by label; 0 of a label with too few units.
        wanted_pictures: of each split but training, how many there are to be.
    """

    def __init__(
        self,
        part_of: dict[str, str],
        sizes: Mapping[str, Counter[str]],
        pictures: Mapping[str, int],
        wanted: Mapping[str, Mapping[str, int]],
        wanted_pictures: Mapping[str, float],
    ) -> None:
        self.part_of, self.wanted = part_of, wanted
        self.sizes, self.pictures, self.wanted_pictures = sizes, pictures, wanted_pictures
        self.parts = ("train", *wanted)
        self.held: dict[str, Counter[str]] = {part: Counter() for part in self.parts}  # images by label
        self.units: dict[str, Counter[str]] = {part: Counter() for part in self.parts}
        self.number = Counter[str]()
        for key, part in part_of.items():
            self._count(key, part, 1)

    def _count(self, key: str, part: str, sign: int) -> None:
        for label, count in self.sizes[key].items():
            self.held[part][label] += sign * count
            self.units[part][label] += sign
        self.number[part] += sign * self.pictures[key]

    def _move(self, key: str, part: str) -> None:
        self._count(key, self.part_of[key], -1)
        self.part_of[key] = part
        self._count(key, part, 1)

    def _needs(self, part: str, label: str) -> bool:
        return part == "train" or self.wanted[part][label] > 0

    def _change(self, key: str, target: str) -> tuple[int, float]:
        """Say by how much the two numbers would change, if a unit went to another split."""
        source, absent, distance = self.part_of[key], 0, 0.0
        for label in self.sizes[key]:
            absent += self._needs(source, label) and self.units[source][label] == 1
            absent -= self._needs(target, label) and self.units[target][label] == 0
        for part, sign in ((source, -1), (target, 1)):
            if part == "train":
                continue
            for label, count in self.sizes[key].items():
                want = self.wanted[part][label]
                off = self.held[part][label] - want
                distance += ((off + sign * count) ** 2 - off**2) / max(1, want)
            want_all = self.wanted_pictures[part]
            off_all = self.number[part] - want_all
            distance += ((off_all + sign * self.pictures[key]) ** 2 - off_all**2) / max(1, want_all)
        return absent, distance

    def settle(self, order: Sequence[str]) -> None:
        """Move units one by one, and exchange two where a label is lacking, until nothing gets better."""
        for _ in range(_MOST_SWEEPS):
            moved = 0
            for key in order:
                others = [part for part in self.parts if part != self.part_of[key]]
                best = min(others, key=lambda part: self._change(key, part))
                if self._change(key, best) < (0, -1e-9):
                    self._move(key, best)
                    moved += 1
            if not moved and not self._exchange(order):
                return

    def _exchange(self, order: Sequence[str]) -> bool:
        """Exchange two units so that fewer labels are lacking; return whether there are such."""
        labels = dict.fromkeys(label for part in self.parts for label in self.held[part])
        for part in self.parts:
            for label in labels:
                if not self._needs(part, label) or self.units[part][label]:
                    continue
                for one in [key for key in order if label in self.sizes[key]]:
                    source = self.part_of[one]
                    first = self._change(one, part)[0]
                    self._move(one, part)
                    for other in order:
                        if (
                            other != one
                            and self.part_of[other] == part
                            and not self.sizes[other].keys().isdisjoint(self.sizes[one])
                        ):
                            if first + self._change(other, source)[0] < 0:
                                self._move(other, source)
                                return True
                    self._move(one, source)
        return False


def _drawn(seed: int, key: str) -> bytes:
    return hashlib.blake2b(f"{seed} {key}".encode("utf-8", "surrogateescape")).digest()


def _targets(names: Sequence[str], labels: Sequence[str], parts: Sequence[str]) -> list[str]:
    """Choose where each image goes: below the folder of its class, by its name there; names are used once.

    Args:
        labels: "" for no folder of a class.
    """
    targets: list[str] = []
    taken: set[str] = set()
    for name, label, part in zip(names, labels, parts, strict=True):
        if label and (is_hidden(f"{label}/") or label in (".", "..") or "/" in label):
            raise DataError(f"the class {as_line(label)!r} cannot be the name of a folder of images: rename it")
        flat = name.rpartition("/")[2]
        stem, suffix = flat[: len(flat) - len(suffix_of(flat))], suffix_of(flat)
        number = 1
        while (chosen := "/".join(filter(None, (part, label, flat)))) in taken:
            number += 1
            flat = f"{stem}-{number}{suffix}"
        taken.add(chosen)
        targets.append(chosen)
    return targets
