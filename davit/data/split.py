"""Part a folder of class folders, or a table of pictures, into train/ and val/."""

from __future__ import annotations

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

from ..text import as_line, some
from .dataset import open_dataset
from .errors import DataError, require
from .find import find
from .folder import split_folder
from .listing import is_hidden, suffix_of
from .source import Files
from .tables import read_column

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parting:
    """Say which pictures were put where.

    Attributes:
        counts: of each split, the pictures of each class, by name.
        groups: how many groups of pictures were kept together; 0 where none were asked for.
        alike: files with the content of another one, which went where that one is.
    """

    counts: Mapping[str, Mapping[str, int]]
    groups: int
    alike: int

    def __str__(self) -> str:
        """Write a line for each split."""
        total = sum(sum(counts.values()) for counts in self.counts.values())
        lines = []
        for split, counts in self.counts.items():
            number = sum(counts.values())
            lines.append(
                f"{split}: {number:,} pictures ({number / total:.1%}) of {sum(map(bool, counts.values()))} classes, "
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
) -> Parting:
    """Write OUT/train/CLASS/..., OUT/val/CLASS/... with a link to each picture of a folder or a csv.

    Each class is parted by itself. What a picture's part is follows from the seed and the names of the files, not from
    the order in which they lie. Files of the same content go together, so that none is trained on and evaluated.

    Args:
        place: a folder with one folder a class, or a csv of files and labels.
        out: a folder that is not there yet, or empty.
        val, test: shares of each class; a class of two pictures or more has at least one in each split asked for, as
            far as they go, and one in training.
        copy: copy the files rather than link them.
        group_pattern: a regular expression: pictures for whose name below the folder it finds the same text (that of
            its first group, if it has one) are kept together, such as those of one patient.
        group_key: the same by a column of the csv.
        input_key, target_key: columns of the csv, where their names do not tell.

    Raises:
        DataError: the pictures cannot be found, a class has one alone, or `out` is in use.
    """
    require(0 < val < 1, "val", val, "a share between 0 and 1")
    require(
        0 <= test < 1 - val, "test", test, f"a share from 0 to below {1 - val:g}, so that some is left to train on"
    )
    place, out = Path(place), Path(out)
    _check_out(place, out)
    source, labels = _listed(place, input_key, target_key)
    groups = _groups(place, source, group_pattern, group_key)
    there = [index for index in range(len(source)) if os.path.isfile(source.path(index))]  # noqa: PTH113 (many)
    if len(there) < len(source):
        log.warning("%d pictures are not there, and are left out.", len(source) - len(there))
    names, files = [source.filename(index) for index in there], [source.path(index) for index in there]
    labels, groups = [labels[index] for index in there], groups and [groups[index] for index in there]
    together, alike = _keys(files, names, groups)
    shares = {"val": val, **({"test": test} if test else {})}
    parts = _assign(labels, together, shares, seed)
    if lacking := sorted(set(labels) - {label for label, part in zip(labels, parts, strict=True) if part == "val"}):
        raise DataError(
            f"{place}: too few pictures (or groups of them) to train on some and evaluate on others in "
            f"{len(lacking)} of the classes, {some(lacking)}: add pictures, or remove the class"
        )
    staged = out.with_name(f".{out.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        for file, target in zip(files, _targets(names, labels, parts), strict=True):
            written = staged / target
            written.parent.mkdir(parents=True, exist_ok=True)
            if copy:
                shutil.copyfile(file, written)
            else:
                written.symlink_to(Path(file).absolute())
        if out.exists():
            out.rmdir()
        staged.rename(out)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    found = Counter(zip(parts, labels, strict=True))
    counts = {split: {label: found[split, label] for label in dict.fromkeys(labels)} for split in ("train", *shares)}
    return Parting(counts, len(set(groups)) if groups else 0, alike)


def _listed(place: Path, input_key: str | None, target_key: str | None) -> tuple[Files, list[str]]:
    """Find the pictures; return their source and the class of each."""
    if place.is_dir() and (train := split_folder(place, "train")) is not None:
        if (val := split_folder(place, "validation")) is not None:
            raise DataError(f"{place} has {train.name}/ and {val.name}/ already: give it to train.py as it is")
        log.info("%s has %s/ and nothing to validate on: %s is parted.", place, train.name, train)
        place = train
    kind = find(place, ".").kind
    if kind not in ("folder", "csv"):
        raise DataError(f"{place} holds {kind} files; a folder of class folders or a csv is parted")
    dataset = open_dataset(place, ".", input_key=input_key, target_key=target_key)
    source, class_names, targets = dataset.source, dataset.class_names, dataset.source.targets()
    assert isinstance(source, Files) and targets is not None
    return source, [class_names[target] for target in targets]


def _check_out(place: Path, out: Path) -> None:
    inside, around = out.resolve(), (place if place.is_dir() else place.parent).resolve()
    if inside == around or (place.is_dir() and around in inside.parents):
        raise DataError(f"{out} lies in {place}, whose folders are classes: give a folder beside it")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is there and not empty: give another folder, or remove it")


def _groups(place: Path, source: Files, pattern: str | None, key: str | None) -> list[str] | None:
    """Return the group of each picture, None where none is asked for."""
    if pattern is not None and key is not None:
        raise DataError(f"`group_key={key}` and `group_pattern={pattern}` both say which pictures belong together")
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


def _keys(files: Sequence[str], names: Sequence[str], groups: Sequence[str] | None) -> tuple[list[str], int]:
    """Return for each picture what all that stay together share: their group, and a content that they have in common.

    Also return how many files have the content of an earlier one.
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
    alike = 0
    for same_size in sizes.values():
        if len(same_size) == 1:
            continue
        first_of: dict[bytes, int] = {}
        for index in same_size:
            first = first_of.setdefault(hashlib.blake2b(Path(files[index]).read_bytes()).digest(), index)
            if first != index:
                alike += 1
                parent[root(f"n{names[index]}")] = root(f"n{names[first]}")
    return [root(f"n{name}") for name in names], alike


def _assign(labels: Sequence[str], together: Sequence[str], shares: Mapping[str, float], seed: int) -> list[str]:
    """Put each unit of pictures that stay together into a split.

    Units come in an order that the seed draws. One goes to the split that still lacks pictures of its classes, if it
    brings that nearer to the share asked for; what none lacks is for training. Then each class that a split has
    none of gives it the smallest unit that training can do without.
    """
    sizes: dict[str, Counter[str]] = defaultdict(Counter)
    for label, key in zip(labels, together, strict=True):
        sizes[key][label] += 1
    units_of = Counter(label for counts in sizes.values() for label in counts)
    totals = Counter(labels)
    left = dict(units_of)  # units of each class that may still become training
    lacking = {
        split: {
            label: max(1, round(share * total)) if units_of[label] > 1 + number else 0
            for label, total in totals.items()
        }
        for number, (split, share) in enumerate(shares.items())
    }
    part_of: dict[str, str] = {}
    for key in sorted(sizes, key=lambda key: _drawn(seed, key)):
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
    return [part_of[key] for key in together]


def _drawn(seed: int, key: str) -> bytes:
    return hashlib.blake2b(f"{seed} {key}".encode("utf-8", "surrogateescape")).digest()


def _targets(names: Sequence[str], labels: Sequence[str], parts: Sequence[str]) -> list[str]:
    """Choose where each picture goes: below the folder of its class, by its name there; names are used once."""
    targets: list[str] = []
    taken: set[str] = set()
    for name, label, part in zip(names, labels, parts, strict=True):
        if is_hidden(f"{label}/") or label in (".", "..") or "/" in label:
            raise DataError(f"the class {as_line(label)!r} cannot be the name of a folder of pictures: rename it")
        flat = name.rpartition("/")[2]
        stem, suffix = flat[: len(flat) - len(suffix_of(flat))], suffix_of(flat)
        number = 1
        while (chosen := f"{part}/{label}/{flat}") in taken:
            number += 1
            flat = f"{stem}-{number}{suffix}"
        taken.add(chosen)
        targets.append(chosen)
    return targets
