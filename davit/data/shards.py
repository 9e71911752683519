"""Read images inside tar files at random: WebDataset's shards, and folders of classes in a tar.

An index says where each image of a shard begins and how long it is. It is made in one pass over the headers and kept
for the next run. So an image has a position, as in a folder, which WebDataset's stream does not give: runs resume
exactly and evaluations count each image once. Nothing is ever unpacked.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import tarfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..choices import MULTILABEL
from ..files import cache_file
from ..text import some
from .errors import DataError
from .folder import SPLITS, names_of_split
from .label_sets import SEPARATOR, joined
from .listing import HEAD, is_hidden, kind_without_suffix, readable_suffixes, suffix_of
from .listing import left_out as said_left_out
from .ranges import Ranges, RangeSource, load_ranges, save_ranges, stamp_of
from .source import ClassMap, Texts
from .tables import SEVERAL

log = logging.getLogger(__name__)

_FORMAT = 2  # of an index in the cache
_LABELS = ("cls", "label", "json")  # members that hold a sample's class, the first of them counts
FIELDS = ("label", "cls", "class", "class_name", "class_id", "target", "category", "label_name")
_MOST_LABEL_BYTES = 1 << 20
_MOST_HEADER_BYTES = 1 << 20  # of the records for a long name; tarfile would read any size into memory
_LONGEST_NAME = 4096
_AFTER_END = 1 << 16  # bytes behind the end mark that are looked at; tar fills up to 10,240
_READERS = 8
_PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}


class ShardSource(RangeSource):
    """Read the images of one split from tar files, in the natural order of CLASS/NAME.

    An image's class stands in a member beside it, KEY.cls or KEY.json, as WebDataset has it; where no shard has such
    members, it is the folder in the tar in which the image lies. A label that is a whole number is a class index.
    """

    def __init__(
        self,
        shards: Sequence[str | Path],
        split: str = ".",
        class_map: ClassMap = None,
        *,
        input_key: str | None = None,
        target_key: str | None = None,
        split_required: bool = False,
        several: bool = False,
    ) -> None:
        """Index the shards, or take their kept indices.

        Args:
            split: where all images lie in folders named as splits, those of this one are taken.
            split_required: it is an error if they do not.
            input_key: endings of the members that are the images ("jpg", "input.png;input.jpg").
            target_key: ending of the members, or field of the .json members, that is the class.
            several: a label is a list in a .json member, or a text with semicolons or lines.

        Raises:
            DataError: a shard is no plain tar file, or the images have no class.
        """
        indices = index_shards([str(shard) for shard in shards], input_key, target_key, several)
        place = f"{shards[0]} and {len(shards) - 1} more shards" if len(shards) > 1 else str(shards[0])
        parts = [index.ranges for index in indices]
        names = [name for part in parts for name in part.names]
        labels: list[str | None] = [label or None for part in parts for label in part.labels]
        left_out = sum((Counter(index.left_out) for index in indices), Counter[str]())
        if not names:
            others = said_left_out(left_out)
            raise DataError(f"{place} holds no image that can be read{f' ({others})' if others else ''}")
        keep = _in_split(place, names, split, required=split_required)
        has_labels = any(labels[at] is not None for at in keep)
        if has_labels:
            cut = np.concatenate([part.starts + part.sizes > part.stamp[0] for part in parts])
            labelled = [at for at in keep if labels[at] is not None or cut[at]]  # a cut one is a bad image
            left_out["images without a label"] += len(keep) - len(labelled)
            keep = labelled
        else:
            if several:
                raise DataError(f"{place}: no image has a KEY.json or KEY.cls beside it, with its labels")
            labels = _folders_as_labels(place, parts, names, keep)
        _say(place, indices, left_out)
        super().__init__(place, parts, labels, class_map, keep=keep, indices=has_labels, several=several)


@dataclass
class ShardIndex:
    """What one shard holds.

    Attributes:
        left_out: what is not used, by ending or kind, and how many members.
        fault: how the file ends too early, "" where it is whole.
    """

    ranges: Ranges
    left_out: dict[str, int]
    fault: str


def index_shards(
    shards: Sequence[str], input_key: str | None = None, target_key: str | None = None, several: bool = False
) -> list[ShardIndex]:
    """Return the index of each shard: the kept one, or made again where the shard has changed or is new.

    Raises:
        DataError: a shard is no plain tar file.
    """
    begun = time.monotonic()
    made: list[str] = []
    unkept: list[str] = []

    def index(shard: str) -> ShardIndex:
        keys: tuple[object, ...] = (os.path.abspath(shard), stamp_of(shard), input_key, target_key)  # noqa: PTH100
        keys += (sorted(readable_suffixes()), *((MULTILABEL,) if several else ()))
        kept: Path | None = None
        with suppress(OSError):  # a home that cannot be written
            kept = cache_file("shards", _FORMAT, *keys)
        if kept is not None and (found := load_ranges(kept, shard)) is not None:
            return ShardIndex(found[0], found[1]["left_out"], found[1]["fault"])
        made.append(shard)
        index = _make(shard, input_key, target_key, several)
        if kept is not None:
            with suppress(OSError):
                save_ranges(kept, index.ranges, {"left_out": index.left_out, "fault": index.fault})
                return index
        unkept.append(shard)
        return index

    with ThreadPoolExecutor(_READERS) as pool:  # waiting for the disk or the network, not for the processor
        indices = list(pool.map(index, shards))
    if made:
        count = sum(len(index.ranges.starts) for index in indices)
        seconds = time.monotonic() - begun
        log.info("Indexed %d of %d shards (%d images) in %.1f s.", len(made), len(shards), count, seconds)
    if unkept:
        log.warning("The index could not be kept and is made at each start: set DAVIT_CACHE_DIR to a folder for it.")
    return indices


# --- one shard ---


def _make(shard: str, input_key: str | None, target_key: str | None, several: bool = False) -> ShardIndex:
    """Walk over the headers of a shard, and read its labels."""
    stamp = stamp_of(shard)
    left_out: Counter[str] = Counter()
    found: dict[str, tuple[str, int, int]] = {}  # by name: of members of one name the last counts, as for tar
    labels: dict[str, tuple[int, str]] = {}  # key of a sample -> (place among the endings, label)
    endings = (target_key, "json") if target_key else _LABELS
    asked = tuple(input_key.lower().replace(",", ";").split(";")) if input_key else ()
    walk = _Walk(shard, left_out)
    with open(shard, "rb", buffering=0) as raw, _Headers(raw) as stream:  # noqa: PTH123
        for name, start, size in walk.members(stream):
            last = _suffix(name).lower()
            both = (_split_key(name)[1], last[1:])
            if ending := next((ending for ending in both if ending in endings), ""):
                label = _label_in(_read_small(raw.fileno(), start, size), ending, target_key, several)
                if label is None:
                    left_out[last] += 1
                else:
                    key, place = name[: -len(ending) - 1], endings.index(ending)
                    if key not in labels or place <= labels[key][0]:
                        labels[key] = place, label
                continue
            suffix = suffix_of(name.rpartition("/")[2])
            if asked:
                kind = None if not {*both}.isdisjoint(asked) else last or "without suffix"
            elif suffix:
                kind = None if suffix in readable_suffixes() else suffix
            else:  # what stands there, not behind the member
                kind = kind_without_suffix(os.pread(raw.fileno(), min(size, HEAD), start))
            if kind is not None:
                left_out[kind] += 1
                continue
            left_out["replaced by a later one of the same name"] += name in found
            found[name] = name, start, size
    pictures = [*found.values()]
    if labels:
        pictures = _one_for_each_sample(shard, pictures, labels, left_out)
    keys = [_key_among(labels, name) for name, _, _ in pictures]
    ranges = Ranges(
        *(shard, shard, stamp),
        names=Texts(name for name, _, _ in pictures),
        labels=Texts("" if key is None else labels[key][1] for key in keys),
        starts=np.array([start for _, start, _ in pictures], dtype=np.int64),
        sizes=np.array([size for _, _, size in pictures], dtype=np.int64),
    )
    return ShardIndex(ranges, dict(left_out), walk.fault)


class _Headers(io.BufferedReader):
    """Read a tar file for its headers; a record of many bytes is damage, or meant to fill the memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


class _Walk:
    """Go through a tar file's members.

    Attributes:
        fault: known at the end: how the file ends too early, "" where it is whole.
    """

    def __init__(self, shard: str, left_out: Counter[str]) -> None:
        self.shard, self.left_out = shard, left_out
        self.fault = ""

    def members(self, stream: _Headers) -> Iterator[tuple[str, int, int]]:
        """Yield (name, start, size) of the files that may be read, the one that is cut off too; count the others."""
        for member in self._headers(stream):
            name = member.name.removeprefix("./")
            parts = name.split("/")
            if member.isdir() or is_hidden(name):
                continue  # hidden ones are left out, as in a folder
            if not member.isreg() or member.issparse():
                self.left_out["links, devices or sparse files"] += 1
            elif name.startswith("/") or ".." in parts or len(name) > _LONGEST_NAME:
                self.left_out["names that lead elsewhere"] += 1
            else:
                yield name, member.offset_data, member.size

    def _headers(self, stream: _Headers) -> Iterator[tarfile.TarInfo]:
        size = os.fstat(stream.fileno()).st_size
        before, last, offset, error = -1, "", 0, ""
        try:
            with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
                while (member := tar.next()) is not None:
                    tar.members = []  # type: ignore[attr-defined]  # it would keep a million of them
                    if member.size < 0 or member.offset_data <= before:
                        raise tarfile.ReadError("a header points backwards")
                    before, last = member.offset_data, member.name
                    yield member
                offset = tar.offset
        except (tarfile.TarError, ValueError, OverflowError, RecursionError) as raised:
            if before < 0:
                raise DataError(_why_no_tar(self.shard, str(raised))) from raised
            error = str(raised)
        if before >= 0 and not error:
            rest = os.pread(stream.fileno(), tarfile.BLOCKSIZE, offset)
            if not rest:
                self.fault = f"has no end mark after {last}, so it may be cut off"
            elif any(rest):
                self.fault = f"is damaged after {last}"
            elif any(os.pread(stream.fileno(), _AFTER_END, offset)):
                self.fault = (
                    f"continues after its end mark behind {last}: joined tars, which tar --ignore-zeros unpacks"
                )
        elif error:
            ended = size < before or "end of data" in error
            self.fault = f"ends within {last}, after {size} bytes" if ended else f"is damaged after {last} ({error})"


def _why_no_tar(shard: str, reason: str) -> str:
    with open(shard, "rb") as stream:  # noqa: PTH123
        begin = stream.read(6)
    for mark, kind in _PACKED.items():
        if begin.startswith(mark):
            return f"{shard} is packed with {kind}, where nothing can be read but from the start: unpack it to a .tar"
    return f"{shard} is not a tar file ({reason}): fetch it again, or remove it"


def _split_key(name: str) -> tuple[str, str]:
    """Split a member's name into a sample's key and the ending, as WebDataset does: at the name's first dot."""
    folder, slash, file = name.rpartition("/")
    key, _, ending = file.partition(".")
    return folder + slash + key, ending.lower()


def _suffix(name: str) -> str:
    """Return the last suffix of a member's name, with its dot; "" where it has none."""
    stem, dot, ending = name.rpartition(".")
    return dot + ending if stem and "/" not in ending and not stem.endswith("/") else ""


def _key_among(labels: Mapping[str, Any], name: str) -> str | None:
    """Find the key of an image's label: the name up to its last dot, or else to its first one."""
    keys = (name.removesuffix(_suffix(name)), _split_key(name)[0])
    return next((key for key in keys if key in labels), None)


def _one_for_each_sample(
    shard: str, pictures: list[tuple[str, int, int]], labels: Mapping[str, Any], left_out: Counter[str]
) -> list[tuple[str, int, int]]:
    """Leave the further images of a sample out: KEY.jpg counts beside KEY.mask.png.

    Raises:
        DataError: a sample has two that may be meant.
    """
    samples: dict[str, list[tuple[str, int, int]]] = {}
    for picture in pictures:
        key = _key_among(labels, picture[0])
        samples.setdefault(picture[0] if key is None else key, []).append(picture)
    chosen = []
    for key, several in samples.items():
        plain = [picture for picture in several if picture[0].removesuffix(_suffix(picture[0])) == key]
        if len(plain) > 1:  # what a network computed of the image, most often
            plain = [picture for picture in plain if not picture[0].lower().endswith(".npy")] or plain
        if len(several) > 1 and len(plain) != 1:
            found = [name.removeprefix(f"{key}.") for name, _, _ in several]
            raise DataError(
                f"{shard}: the sample {key} has several images: choose by `input_key={found[0]}`, of {found}"
            )
        chosen.append(several[0] if len(several) == 1 else plain[0])
        for name, _, _ in several:
            if name != chosen[-1][0]:
                left_out[f"further .{_split_key(name)[1]}"] += 1
    return chosen


def _read_small(descriptor: int, start: int, size: int) -> bytes:
    """Read a label's bytes; none where they are too many or the file ends before."""
    data = os.pread(descriptor, size, start) if size <= _MOST_LABEL_BYTES else b""
    return data if len(data) == size else b""


def _label_in(data: bytes, ending: str, target_key: str | None, several: bool = False) -> str | None:
    """Read the class in a label's bytes, or the classes, joined; None where there is none."""
    try:
        text = data.decode("utf-8-sig")
        if ending != "json":
            value: Any = text
        else:
            fields = json.loads(text)
            names = (target_key,) if target_key else (*FIELDS, *(("labels", *SEVERAL) if several else ()))
            value = (
                next((fields[name] for name in names if name in fields), None) if isinstance(fields, dict) else None
            )
    except (ValueError, TypeError, RecursionError):
        return None
    if not several:
        return _as_label(value)
    many = re.split(rf"[{SEPARATOR}\r\n]", value) if isinstance(value, str) else value
    many = many if isinstance(many, list) else [many]
    labels = [_as_label(one) for one in many if not isinstance(one, str) or one.strip()]
    return None if None in labels else joined(filter(None, labels))


def _as_label(value: Any) -> str | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int):
        return None
    label = str(value).strip()
    return label if label and label.isprintable() else None


# --- all shards ---


def _folders_as_labels(
    place: str, parts: Sequence[Ranges], names: Sequence[str], keep: Sequence[int]
) -> list[str | None]:
    """Give each image the folder in which it lies as its label."""
    stems = np.repeat([Path(part.file).stem for part in parts], [len(part.starts) for part in parts])
    labels: list[str | None] = [None] * len(names)
    folder_of: dict[str, str] = {}
    flat = []
    for at in keep:
        folders = names[at].split("/")[:-1]
        if len(folders) > 1 and (folders[0] == stems[at] or folders[0].lower() in SPLITS):
            del folders[0]
        if not folders:
            flat.append(names[at])
            continue
        labels[at] = label = folders[-1]
        folder = "/".join(folders)
        if folder_of.setdefault(label, folder) != folder:
            raise DataError(f"{place}: two folders are named as class {label!r}: {folder_of[label]} and {folder}")
    if flat:
        raise DataError(
            f"{place}: {len(flat)} of {len(keep)} images have no class ({some(flat, 3)}): a shard has KEY.cls or "
            "KEY.json beside each, or one folder per class; `target_key=NAME` names another suffix, or a field of it"
        )
    return labels


def _in_split(place: str, names: Sequence[str], split: str, required: bool) -> Sequence[int]:
    """List the places of the split's images, where all lie in folders named as splits; else of all.

    Raises:
        DataError: there are none, or no such folders though `required`.
    """
    wanted = [name.lower() for name in names_of_split(split)]
    known = {*SPLITS, *wanted}
    folders = [name.lower().split("/")[:-1] for name in names]
    for depth in (0, 1):  # within one folder that holds all, too
        found = {parts[depth] if len(parts) > depth else "" for parts in folders}
        if found <= known and split != ".":
            keep = [at for at, parts in enumerate(folders) if parts[depth] in wanted]
            if not keep:
                raise DataError(f"{place} holds no images of split {split!r}, only of {some(sorted(found))}")
            return keep
        if len(found) > 1:
            break
    if required:
        raise DataError(
            f"{place}: neither its name nor its folders tell which images are of split {split!r}: call the files "
            f"{split}.tar or {split}-000000.tar, or name the split '.' to take all"
        )
    return range(len(names))


def _say(place: str, indices: Sequence[ShardIndex], left_out: Mapping[str, int]) -> None:
    """Say what is not used, and which shards are damaged."""
    if others := said_left_out({kind: count for kind, count in left_out.items() if count}):
        log.warning("%s: %s", place, others)
    for index in indices:
        if index.fault:
            log.warning("%s %s. Images may be missing: fetch it again.", index.ranges.file, index.fault)
