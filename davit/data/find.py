"""Find out where the images of a split come from, and open them."""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..choices import CLASSIFICATION, MULTILABEL
from ..text import some
from .errors import DataError
from .folder import SPLITS, FolderSource, find_split, names_of_split, split_folder
from .listing import list_folder, natural_key
from .shards import ShardSource
from .source import ClassMap, Source
from .tables import CsvSource, TableSource
from .timm_sets import NamedSource

_KIND_OF = {".tar": "wds", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".arrow": "parquet"}
_WEIGHTS = ".pth.tar"  # of a checkpoint, which is no tar
_OF_A_RUN = "args.yaml"
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")  # named, to be refused with the remedy
_KINDS = {"csv": "csv", "wds": "wds", "tar": "wds", "parquet": "parquet", "arrow": "parquet"}  # of --dataset
_FOLDER_NAMES = ("folder", "imagefolder", "image_folder")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_ELSEWHERE = re.compile(r"(^|/)(pipe:|[a-z][a-z0-9+.-]+:/)")  # as a path, which has lost a slash of s3://
_MOST_FILES = 1_000_000
# words of names of folders in which a csv's files may lie, beside those of its split: images, train_images, jpg
_BESIDE_TABLE = {"images", "image", "imgs", "img", "pictures", "photos", "jpg", "jpeg", "jpegs", "png", "data"}


@dataclass(frozen=True)
class Found:
    """Where the images of a split are.

    Attributes:
        kind: "folder", "csv", "parquet" or "wds".
        files: the folder, or the tables or shards.
        split_required: the names of the files do not tell the split, so what they hold must.
    """

    kind: str
    files: tuple[Path, ...]
    split_required: bool = False


def open_source(
    root: str | Path | None,
    split: str,
    *,
    dataset: str = "",
    class_map: ClassMap = None,
    dataset_download: bool = False,
    input_key: str | None = None,
    target_key: str | None = None,
    task: str = CLASSIFICATION,
    **options: Any,
) -> Source:
    """Open the images of a split, wherever they come from; the arguments are those of `open_dataset`."""
    keys = {key: value for key, value in (("input_key", input_key), ("target_key", target_key)) if value is not None}
    several = task == MULTILABEL
    prefix, slash, rest = dataset.partition("/")
    kind = _KINDS.get(prefix.lower())
    is_local_table = prefix.lower() == "hfds" and Path(rest).is_dir() and _tables_below(Path(rest))
    if is_local_table:
        kind = "parquet"
    elif kind is None and slash:
        if several:
            raise DataError(
                f"`task={MULTILABEL}` does not read `dataset={dataset}`: write its images and labels as a csv "
                "(path,labels) or as Parquet, and give that"
            )
        return NamedSource(dataset, root, split, class_map=class_map, download=dataset_download, **keys, **options)
    elif kind is None and dataset.lower() not in ("", *_FOLDER_NAMES):
        raise DataError(
            f"`dataset={dataset}` is unknown; leave it empty for what lies in the data folder, or give folder, csv, "
            "parquet, wds, torch/NAME or hfds/NAME"
        )
    if kind is None and dataset:
        kind = "folder"
    if root is None and not rest:
        raise DataError(
            "no data folder: give one with train/ and val/, one folder per class, or with tables or shards"
        )
    place = Path(rest) if is_local_table or root is None else Path(root, rest)
    found = find(place, split, kind, in_folders=not several)
    if several and found.kind == "folder":
        raise DataError(
            f"{place}: `task={MULTILABEL}` needs a table of labels, and there are folders alone: put labels.csv "
            "(path,labels; with ; between the labels of an image) beside train/ and val/, or train.csv and val.csv"
        )
    if dataset_download or options or (keys and found.kind == "folder"):
        asked = some(["dataset_download"] * dataset_download + sorted({**keys, **options}))
        where = "an image folder" if found.kind == "folder" else str(place)
        raise DataError(f"{where} takes no {asked}; only `dataset=torch/NAME` and hfds/NAME do")
    first = found.files[0]
    if found.kind == "folder":
        return FolderSource(first, class_map)
    if found.kind == "parquet":
        return TableSource(found.files, class_map, several=several, **keys)
    inner: dict[str, Any] = {**keys, "split": split, "several": several}
    if found.kind == "wds":
        return ShardSource(found.files, class_map=class_map, split_required=found.split_required, **inner)
    folders = [first.parent, *([Path(root)] if root is not None else [])]
    told = [split, *(sorted(_words(first.stem) & SPLITS) or SPLITS)] if split == "." else [split]
    beside = {name.lower() for one in told for name in names_of_split(one)} | _BESIDE_TABLE
    folders += [
        folder / name
        for folder in folders
        if folder.is_dir()
        for name in list_folder(folder).folders
        if name.lower() in beside or set(re.split(r"[^a-z]+", name.lower())) <= beside
    ]
    return CsvSource(first, class_map=class_map, folders=folders, split_required=found.split_required, **inner)


def find(place: Path, split: str, kind: str | None = None, in_folders: bool = True) -> Found:
    """Find the folder, tables or shards of a split.

    Args:
        place: a folder, a file, or a pattern of files: * and ? as a shell has them, {train,val}, {000000..000008}.
        split: a name, with its synonyms; "." for all of `place`; or a file or pattern below it.
        kind: of `Found`; None finds out. A folder for the split is preferred to files beside it.
        in_folders: folders below that of the split are taken for classes.

    Raises:
        DataError: there is no such split, or more than one kind; the message says what is there.
    """
    if _ELSEWHERE.search(str(place)) and not place.exists():
        raise DataError(f"{place} is not a local file: fetch the shards first, as they are read at random")
    if not place.exists() and _is_pattern(str(place)):
        return _choose(place, expand(str(place)), split, kind)
    if place.is_file() and _kind(place):
        return _choose(place, [place], split, kind)
    if (place / _OF_A_RUN).is_file() and (weights := sorted(file.name for file in place.glob(f"*{_WEIGHTS}"))):
        raise DataError(f"{place} is the folder of a run ({some(weights, 3)}): give the folder of the images")
    if place.is_dir() and kind != "folder":
        below = place / split
        if _is_pattern(split) or (_kind(below) and below.is_file()):
            return _of_one_kind(below, expand(str(below)), kind)
        if (found := _in_folder(place, split, kind, in_folders)) is not None:
            return found
        if kind is not None:  # asked for
            raise DataError(f"{place} has no files of split {split!r} that end in {_suffixes(kind)}")
    elif kind not in (None, "folder"):
        raise DataError(
            f"{place} is not there: give a file that ends in {_suffixes(kind)}, a folder or a pattern of them"
        )
    return Found("folder", (find_split(place, split),))


def expand(pattern: str) -> list[Path]:
    """List the files of a pattern in natural order.

    Raises:
        DataError: no file is there, or one that a brace names is not.
    """
    files: list[str] = []
    for text in _braces(pattern):
        matching = glob.glob(text) if glob.has_magic(text) and not Path(text).exists() else [text]  # noqa: PTH207
        files += matching
    if gone := [file for file in files if not Path(file).is_file()]:
        raise DataError(f"{len(gone)} of the {len(files)} files of {pattern} are not there: {some(gone)}")
    if not files:
        raise DataError(f"no file is like {pattern}")
    return sorted((Path(file) for file in dict.fromkeys(files)), key=lambda file: natural_key(str(file)))


def _braces(text: str) -> list[str]:
    """Write out {a,b} and {00..12}, the inner ones first."""
    match = _BRACES.search(text)
    if match is None:
        return [text]
    if bounds := _RANGE.fullmatch(match[1]):
        low, high = sorted((int(bounds[1]), int(bounds[2])))
        if high - low >= _MOST_FILES:
            raise DataError(f"{text} stands for {high - low + 1} files; at most {_MOST_FILES} are read")
        width = len(bounds[1]) if bounds[1].startswith("0") else 0
        choices: Iterable[str] = (f"{number:0{width}d}" for number in range(low, high + 1))
    else:
        choices = match[1].split(",")
    written = (_braces(f"{text[: match.start()]}{choice}{text[match.end() :]}") for choice in choices)
    return list(itertools.islice(itertools.chain.from_iterable(written), _MOST_FILES))


def _is_pattern(text: str) -> bool:
    return glob.has_magic(text) or any("," in found or ".." in found for found in _BRACES.findall(text))


def _suffixes(kind: str | None) -> str:
    return " or ".join(suffix for suffix, of in _KIND_OF.items() if of == kind)


def _kind(file: Path) -> str | None:
    name = file.name.lower()
    if name.endswith(_WEIGHTS):
        return None
    return "wds" if name.endswith(_PACKED) else _KIND_OF.get(file.suffix.lower())


def _files_in(folder: Path, kind: str | None) -> list[Path]:
    """List the tables and shards directly in a folder, hidden ones left out."""
    if not folder.is_dir():
        return []
    files = [file for file in folder.iterdir() if not file.name.startswith(".") and _kind(file) and file.is_file()]
    return sorted((file for file in files if kind in (None, _kind(file))), key=lambda file: natural_key(file.name))


def _has_folders(folder: Path) -> bool:
    return any(entry.is_dir() and not entry.name.startswith(".") for entry in folder.iterdir())


def _tables_below(folder: Path) -> bool:
    return any(any(folder.glob(f"{below}*{suffix}")) for below in ("", "*/") for suffix in (".parquet", ".arrow"))


def _in_folder(root: Path, split: str, kind: str | None, in_folders: bool) -> Found | None:
    """Find tables or shards in a data folder: in the split's own, else beside it; None where class folders are."""
    own = [root] if split == "." else [root / name for name in names_of_split(split) if (root / name).is_dir()]
    if not own and (alike := split_folder(root, split)) is not None:
        own = [alike]
    for folder in own:
        if kind is None and in_folders and _has_folders(folder):
            return None  # classes
        if files := _files_in(folder, kind):
            return _of_one_kind(folder, files, kind)
    files = _files_in(root, kind) or _files_in(root / "data", kind)  # data/: as datasets' own are laid out
    is_named = any(_words(file.stem).intersection(names_of_split(split)) for file in files)
    if not files or split == "." or (kind is None and in_folders and not is_named and _classes_beside(root)):
        return None
    return _choose(root, files, split, kind)


def _classes_beside(root: Path) -> bool:
    """Tell whether folders of other splits are there, so that a table beside them is not what is meant."""
    return any(place.name.lower() in SPLITS and place.is_dir() and _has_folders(place) for place in root.iterdir())


def _choose(place: Path, files: Sequence[Path], split: str, kind: str | None) -> Found:
    """Take the files whose names tell the split, or all where none tells any."""
    if split == ".":
        return _of_one_kind(place, files, kind)
    wanted = {name.lower() for name in names_of_split(split)}
    several = len({file.parent for file in files}) > 1
    words_of = {file: _words(file.stem) | ({file.parent.name.lower()} if several else set()) for file in files}
    if mine := [file for file in files if words_of[file] & wanted]:
        tables = [file for file in mine if file.stem.lower() in wanted and {_kind(one) for one in mine} == {"csv"}]
        return _of_one_kind(place, tables or mine, kind)
    if told := sorted({word for words in words_of.values() for word in words} & SPLITS):
        raise DataError(f"{place} has no split {split!r}, but {some(told)}; name the split '.' to take all files")
    found = _of_one_kind(place, files, kind)
    return Found(found.kind, found.files, split_required=True)


def _words(stem: str) -> set[str]:
    words = re.split(r"[^a-z0-9]+", stem.lower())
    return {*words, *(word.rstrip("0123456789") for word in words)} - {""}


def _of_one_kind(place: Path, files: Sequence[Path], kind: str | None) -> Found:
    kinds = {_kind(file) or "" for file in files}
    if kind is not None:
        kinds = {kind}
        files = [file for file in files if _kind(file) == kind]
    if len(kinds) > 1 or not files or "" in kinds:
        raise DataError(
            f"{place} stands for {some(file.name for file in files)}: choose by `dataset=`csv, parquet or wds"
        )
    if kinds == {"csv"} and len(files) > 1:
        raise DataError(
            f"{place} has several tables ({some(file.name for file in files)}): name the split as one of them"
        )
    return Found(kinds.pop(), tuple(files))
