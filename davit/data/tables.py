"""Read images that a table lists: a csv of files and labels, or a Parquet or Arrow table that holds the images."""

from __future__ import annotations

import codecs
import csv
import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..choices import MULTILABEL
from ..files import cache_file, write_atomically
from ..text import install_extra, some
from .errors import DataError
from .folder import SPLITS, names_of_split
from .label_sets import SEPARATOR, joined, taken_apart
from .listing import locate, readable_suffixes, suffix_of
from .ranges import FILE_OF_ITS_OWN, Ranges, RangeSource, load_ranges, save_ranges, stamp_of
from .source import ClassMap, Files, Texts, read_class_map

log = logging.getLogger(__name__)

_SEPARATOR = re.compile(r"sep=(.)", re.IGNORECASE)
_FORMAT = 1  # of a table's images in the cache
PICTURES = (
    *("path", "image", "file", "filename", "file_name", "filepath", "file_path", "image_path", "image_name", "img"),
    *("img_path", "picture", "images", "image_id", "id_code", "jpg", "png", "bytes", "image_bytes", "id"),
)
LABELS = (
    *("label", "labels", "class", "class_name", "cls", "target", "category", "class_id", "label_id", "fine_label"),
    *("label_name", "breed", "species", "diagnosis", "y"),
)
SEVERAL = ("tags", "classes", "categories", "targets", "attributes")  # columns of several labels
_ROWS_AT_ONCE = 64
_ON, _OFF = ("1", "1.0", "true"), ("0", "0.0", "false", "")  # of a column for each class


class CsvSource(Files):
    """Read the images that a csv lists with their classes, by name or by index.

    Relative paths are below the csv's folder, or another of `folders`: the first that has the first file. A first row
    of column names is recognised. Of a table with a column "split" the rows of the split are taken; else, where that
    is needed, those whose files lie in the split's folder.

    With `several` an image has any number of labels: in one cell, between semicolons, or in a column for each class
    that holds 0 or 1. An empty cell is no label. Rows of one image are put together.
    """

    def __init__(
        self,
        file: str | Path,
        split: str = ".",
        class_map: ClassMap = None,
        *,
        folders: Sequence[Path] = (),
        input_key: str | None = None,
        target_key: str | None = None,
        split_required: bool = False,
        several: bool = False,
    ) -> None:
        """Read the table, and look which of its files are there.

        Args:
            input_key, target_key: the columns of the paths and of the labels, where their names do not tell.
            split_required: it is an error if no column tells the split.

        Raises:
            DataError: the table cannot be read, a row lacks its path or label, or no file is there.
        """
        rows, class_names = _read_rows(
            Path(file), input_key, target_key, split, split_required, several=several, folders=folders
        )
        if several:
            rows = _put_together(Path(file), rows)
            if not class_names:
                _warn_of_separators(Path(file), rows)
            rows, class_names = _of_class_map(Path(file), rows, class_names, class_map)
        paths, labels = [path for path, _ in rows], [label for _, label in rows]
        self.folder = next((folder for folder in folders if locate(folder, paths[:1]).found), Path(file).parent)
        paths = _existing(Path(file), self.folder, paths)
        _check_repeats(
            Path(file), [(os.path.normpath(path), label) for path, label in zip(paths, labels, strict=True)]
        )
        super().__init__(str(file), paths, labels, class_map, class_names=class_names, several=several)


class SeveralLabelsError(DataError):
    """A table whose images have several labels each, or none, where one is wanted."""


def is_of_several(error: BaseException | None) -> bool:
    """Return whether an error, or one that it came from, says that images have several labels each, or none."""
    while error is not None and not isinstance(error, SeveralLabelsError):
        error = error.__cause__
    return error is not None


def _read_rows(
    file: Path,
    input_key: str | None,
    target_key: str | None,
    split: str,
    split_required: bool,
    *,
    several: bool,
    folders: Sequence[Path],
) -> tuple[list[tuple[str, str]], list[str]]:
    """Read the (path, label) of each row of the split, and the names of the classes where columns name them.

    With `several` the label is that of `label_sets.joined`; with a column for each class, its labels are their places.
    """
    delimiter, table = read_cells(file)
    if not table:
        raise DataError(f"{file} is empty: a row for each image is needed, path,label")
    columns = [cell.strip() for cell in table[0][1]]
    class_columns: list[int] = []
    part: int | None = None
    is_plural = False  # the column's name says that there may be several

    def is_there(name: str) -> bool:
        return any(locate(folder, [name]).found for folder in (*folders, file.parent))

    if _is_header(columns, table, input_key, target_key, is_there):
        del table[0]
        picture = _column(file, columns, "input_key", input_key, PICTURES)
        part = next((at for at, name in enumerate(columns) if name.lower() == "split" and at != picture), None)
        filled = [(line, [cell.strip() for cell in row] + [""] * (len(columns) - len(row))) for line, row in table]
        usual = {*LABELS, *SEVERAL}.intersection(map(str.lower, columns))
        if several and not target_key and not usual:
            class_columns = _class_columns(file, columns, filled, {picture, part})
        if class_columns:
            label = class_columns[0]
        else:
            if not (several or target_key or usual):
                _refuse_class_columns(file, columns, filled, {picture, part})
            label = _column(file, columns, "target_key", target_key, (*LABELS, *SEVERAL), but=picture)
            is_plural = not target_key and columns[label].lower() in ("labels", *SEVERAL)
    else:
        filled = [(line, [cell.strip() for cell in row]) for line, row in table]
        picture = next((at for at, cell in enumerate(columns) if suffix_of(cell) in readable_suffixes()), 0)
        label = 1 - min(picture, 1)
    if part is None and split_required:
        filled = _rows_of_folder(file, filled, picture, split, folders)
    wanted = None if part is None or split == "." else names_of_split(split)
    if wanted and part is not None:
        of_split = [(line, cells) for line, cells in filled if cells[part].lower() in wanted]
        filled = of_split if of_split or split_required else filled
    rows: list[tuple[str, str]] = []
    between = SEPARATOR if delimiter != SEPARATOR else ","
    if not several:
        _refuse_several(file, [row[label] for _, row in filled if len(row) > label])
    for line, cells in filled:
        if len(cells) <= picture or not cells[picture] or "\0" in cells[picture]:
            raise DataError(f"{file}, line {line}: {delimiter.join(cells)!r} lacks a path")
        if not several and (len(cells) < 2 or not cells[label]):
            fault = SeveralLabelsError if is_plural else DataError
            raise fault(
                f"{file}, line {line}: {delimiter.join(cells)!r} has no label: give it one, or "
                f"`task={MULTILABEL}`, where an image may have none or several"
            )
        if class_columns:
            on = [str(place) for place, at in enumerate(class_columns) if cells[at].lower() in _ON]
            rows.append((cells[picture], joined(on)))
        elif several:
            cell = cells[label] if label < len(cells) else ""
            rows.append((cells[picture], joined(filter(None, (one.strip() for one in cell.split(between))))))
        else:
            rows.append((cells[picture], cells[label]))
    if not rows:
        raise DataError(f"{file} has no rows of split {split!r}" if table else f"{file} lists no image")
    return rows, [columns[at] for at in class_columns]


def _class_columns(
    file: Path, columns: Sequence[str], rows: Sequence[tuple[int, Sequence[str]]], others: Collection[int | None]
) -> list[int]:
    """Find the columns that hold 0 or 1 alone, each named as a class; what else is there is said.

    Raises:
        DataError: a column of 0 and 1 also holds -1, which may mean several things, or a name is there twice.
    """
    found, unused = [], []
    for at, name in enumerate(columns):
        if at in others or not name:
            continue
        held = {cells[at].lower() for _, cells in rows}
        if held <= {*_ON, *_OFF}:
            found.append(at)
        elif held <= {*_ON, *_OFF, "-1", "-1.0"}:
            raise DataError(
                f"{file}: the column {name!r} holds -1 beside 0 and 1: write 1 where the class is there, 0 or nothing "
                "where it is not, and leave out rows where it is not known"
            )
        else:
            unused.append(name)
    names = [columns[at] for at in found]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{file}: several columns are called {some(twice)}: each class has one")
    if found:
        log.info("%s: a column for each of %d classes: %s.", file, len(found), some(names))
    if found and unused:
        log.warning("%s: columns that hold other than 0 and 1 are no classes and not used: %s", file, some(unused))
    return found


def _rows_of_folder(
    file: Path, rows: list[tuple[int, list[str]]], picture: int, split: str, folders: Sequence[Path]
) -> list[tuple[int, list[str]]]:
    """Take the rows whose files lie in the split's folder: as their paths begin, else as the files are there.

    Raises:
        DataError: nothing tells the split.
    """
    wanted = {name.lower() for name in names_of_split(split)}

    def beginning(cells: Sequence[str]) -> str:
        return cells[picture].replace("\\", "/").removeprefix("./").partition("/")[0].lower()

    if {beginning(cells) for _, cells in rows} & SPLITS:
        return [(line, cells) for line, cells in rows if beginning(cells) in wanted]
    paths = [cells[picture] for _, cells in rows]
    for folder in folders:
        if folder.name.lower() in wanted and (found := locate(folder, paths).found):
            return [(line, cells) for line, cells in rows if cells[picture] in found]
    raise DataError(
        f"{file}: neither its name, nor a column split, nor the folders of its files tell which rows are of split "
        f"{split!r}: give one file a split, such as {split}.csv, or name the split '.' to take all"
    )


def _put_together(file: Path, rows: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Give each image the labels of all its rows."""
    labels: dict[str, list[str]] = {}
    for path, label in rows:
        labels.setdefault(path, []).extend(taken_apart(label))
    if repeated := len(rows) - len(labels):
        log.info("%s: %d rows are of images that others list too; their labels are put together.", file, repeated)
    return [(path, joined(found)) for path, found in labels.items()]


def _warn_of_separators(file: Path, rows: Sequence[tuple[str, str]]) -> None:
    """Warn of labels that look like several with another sign between them: their parts are labels as well."""
    known = {label for _, text in rows for label in taken_apart(text)}
    for sign, said in (("|", "'|'"), (",", "','"), ("/", "'/'"), (" ", "spaces")):
        made = [one for one in known if sign in one and known.issuperset(map(str.strip, one.split(sign)))]
        if made:
            log.warning(
                "%s: %d labels hold %s between names that are labels too, such as %r: each is taken for one class; "
                "where it is several, write %r between them, in a table whose columns have commas between them",
                *(file, len(made), said, min(made), SEPARATOR),
            )


def _of_class_map(
    file: Path, rows: list[tuple[str, str]], class_names: list[str], class_map: ClassMap
) -> tuple[list[tuple[str, str]], list[str]]:
    """Leave out the columns of classes that a class map does not name, which is said."""
    if not class_names or not class_map:
        return rows, class_names
    known = read_class_map(class_map, file.parent)
    if left_out := [name for name in class_names if name not in known]:
        log.warning("%s: columns not in the class map are left out: %s", file, some(left_out))
    kept = {str(place) for place, name in enumerate(class_names) if name in known}
    return [(path, joined(one for one in taken_apart(label) if one in kept)) for path, label in rows], class_names


def _refuse_several(file: Path, labels: Iterable[str]) -> None:
    """Refuse labels with semicolons that are made of others, and warn of such that may be names.

    Raises:
        SeveralLabelsError: parts of these labels occur in others.
    """
    distinct = {*labels}
    several = [label for label in distinct if SEPARATOR in label]
    if not several:
        return
    parts = Counter(part.strip() for label in distinct for part in label.split(SEPARATOR))
    text = f"{file}: {len(several)} labels hold {SEPARATOR!r}, such as {min(several)!r}"
    if any(count > 1 and part for part, count in parts.items()):
        raise SeveralLabelsError(f"{text}, so images have several labels: `task={MULTILABEL}` reads them")
    log.warning("%s: taken for names of classes; --task %s takes each for several labels", text, MULTILABEL)


def _refuse_class_columns(
    file: Path, columns: Sequence[str], rows: Sequence[tuple[int, Sequence[str]]], others: Collection[int | None]
) -> None:
    """Refuse a table with a column of 0 and 1 for each class, of which rows have several, or none.

    Raises:
        SeveralLabelsError: it is one.
    """
    found = [
        at
        for at, name in enumerate(columns)
        if at not in others and name and {cells[at].lower() for _, cells in rows} <= {*_ON, *_OFF}
    ]
    if len(found) > 1 and any(sum(cells[at].lower() in _ON for at in found) != 1 for _, cells in rows):
        raise SeveralLabelsError(
            f"{file} has columns of 0 and 1 ({some(columns[at] for at in found)}), and rows with several of them, or "
            f"none: `task={MULTILABEL}` reads each as a class; a column of one label per image is named by "
            "`target_key=NAME`"
        )


def read_cells(file: Path) -> tuple[str, list[tuple[int, list[str]]]]:
    """Read a csv or tsv as people's programs write it; return its delimiter, and the number and cells of each line.

    Lines without any cell are left out. Bytes that are no UTF-8 stay as they are in names of files.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with file.open("rb") as raw:
            is_wide = raw.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as Excel saves "Unicode text"
        encoding, errors = ("utf-16", "strict") if is_wide else ("utf-8-sig", "surrogateescape")
        with file.open(encoding=encoding, errors=errors, newline="") as stream:
            first = stream.readline()
            if said := _SEPARATOR.fullmatch(first.strip()):  # Excel's own first line
                delimiter = said[1]
            else:
                delimiter = _delimiter(file, first)
                stream.seek(0)
            reader = csv.reader(stream, delimiter=delimiter, skipinitialspace=True)
            table = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except (csv.Error, UnicodeError) as error:
        raise DataError(f"{file} is no csv: {error}") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror})") from error
    return delimiter, table


def _delimiter(file: Path, first: str) -> str:
    if file.suffix.lower() == ".tsv":
        return "\t"
    begin = re.match(r"[^,;\t]*", first)
    path = begin[0] if begin else ""
    if first[len(path) : len(path) + 1] in {",", ";", "\t"} and suffix_of(path.strip()) in readable_suffixes():
        return first[len(path)]  # a,b;c is a path and two labels
    return max(",;\t", key=first.count)


def read_column(file: Path, name: str) -> list[str]:
    """Read a named column of a csv, a value for each row.

    Raises:
        DataError: the table cannot be read, or its first row does not name this column.
    """
    _, table = read_cells(file)
    columns = [cell.strip() for cell in table[0][1]] if table else []
    at = _column(file, columns, "group_key", name, ())
    return [row[at].strip() if at < len(row) else "" for _, row in table[1:]]


def _is_header(
    columns: Sequence[str],
    table: Sequence[tuple[int, Sequence[str]]],
    input_key: str | None,
    target_key: str | None,
    is_there: Callable[[str], bool],
) -> bool:
    """Tell whether the first row names the columns: by their usual names, or as no cell of it names an image."""
    if {input_key, target_key}.intersection(columns) or {*PICTURES, *LABELS}.intersection(map(str.lower, columns)):
        return True
    names_picture = [any(suffix_of(cell) in readable_suffixes() for cell in row) for _, row in table[:2]]
    if not any(names_picture):  # names without a suffix
        names_picture = [any(is_there(cell.strip()) for cell in row if cell.strip()) for _, row in table[:2]]
    return names_picture == [False, True]


def _column(
    file: Path | str,
    columns: Sequence[str],
    flag: str,
    asked: str | None,
    usual: Sequence[str],
    but: int | None = None,
) -> int:
    """Find a column by the name asked for, else by its usual names, else as the other one of two."""
    if asked:
        if asked not in columns:
            raise DataError(f"{file} has no column `{flag}={asked}`; it has {some(columns)}")
        return list(columns).index(asked)
    lower = [name.lower() for name in columns]
    found = [lower.index(name) for name in usual if name in lower and lower.index(name) != but]
    if found:
        return found[0]
    if len(columns) == 2:
        return 0 if but is None else 1 - but
    hint = f"; columns of 0 and 1 for each class are read with `task={MULTILABEL}`" if flag == "target_key" else ""
    raise DataError(f"{file} has the columns {some(columns)}: say which one by `{flag}=NAME`{hint}")


def _check_repeats(file: Path, rows: Sequence[tuple[str, str]]) -> None:
    """Warn of images that are listed more than once, and of those under two labels."""
    repeated = [path for path, count in Counter(path for path, _ in rows).items() if count > 1]
    if not repeated:
        return
    distinct = Counter(path for path, _ in {*rows})
    if torn := [path for path in repeated if distinct[path] > 1]:
        log.warning("%s: %d images have more than one label: %s", file, len(torn), some(torn))
    else:
        log.warning("%s: %d images are listed more than once: %s", file, len(repeated), some(repeated))


def _existing(file: Path, folder: Path, paths: list[str]) -> list[str]:
    """Write paths as the files are spelled here.

    Raises:
        DataError: no file is there. Some that are not are a warning; each is a bad image once it is read.
    """
    located = locate(folder, paths)
    if not located.found:
        path, reason = next(iter(located.missing.items()))
        raise DataError(
            f"{file}: none of its {len(paths)} files is there ({path}: {reason}); relative paths are below the folder "
            "of the csv or the data folder"
        )
    if located.missing:
        named = [f"{path}: {reason}" for path, reason in located.missing.items()]
        log.warning("%s: %d of %d files are not there (%s).", file, len(named), len(paths), some(named, 3))
    return [located.found.get(path, path) for path in paths]


# --- Parquet and Arrow ---


class TableSource(RangeSource):
    """Read the images of Parquet or Arrow files, as Hugging Face's `datasets` and pandas write them.

    A column holds the images' bytes, or {bytes, path}; another the classes, by index or name. The classes' names
    come from what `datasets` writes into the file. Parquet can be read in blocks alone, so its images are copied
    once into the cache; Arrow files are read where they lie.
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        class_map: ClassMap = None,
        *,
        input_key: str | None = None,
        target_key: str | None = None,
        several: bool = False,
    ) -> None:
        """Index the files, or take their kept indices.

        Args:
            input_key, target_key: the columns of the images and of the labels, where their names do not tell.
            several: the labels are lists, or texts with semicolons.

        Raises:
            DataError: pyarrow is not installed, a file is damaged, or its columns are others.
        """
        tables = [_table(str(file), input_key, target_key, several) for file in files]
        parts, class_names = [part for part, _ in tables], tables[0][1]
        if differing := [part.file for part, names in tables if names != class_names]:
            raise DataError(f"{files[0]} and {differing[0]} name other classes: use files of one data set")
        place = f"{files[0]} and {len(files) - 1} more files" if len(files) > 1 else str(files[0])
        labels = [label for part in parts for label in part.labels]
        super().__init__(place, parts, labels, class_map, class_names=class_names, several=several)


def _table(file: str, input_key: str | None, target_key: str | None, several: bool) -> tuple[Ranges, list[str]]:
    """Return the images of one file and the names of its classes, kept or made again."""
    stamp = stamp_of(file)
    remedy = "set DAVIT_CACHE_DIR to a folder for it"
    keys = (input_key, target_key, *((MULTILABEL,) if several else ()))
    try:
        kept = cache_file("tables", _FORMAT, os.path.abspath(file), stamp, *keys)  # noqa: PTH100
    except OSError as error:
        raise DataError(f"{file}: its index cannot be kept ({error}); {remedy}") from error
    try:
        if (found := load_ranges(kept, file)) is None:
            begun = time.monotonic()
            copy = kept.with_suffix(".pictures")
            ranges, class_names = _make(file, stamp, copy, input_key, target_key, several)
            save_ranges(kept, ranges, {"class_names": class_names})
            size = f"{ranges.stamp[0] / 1e6:.1f} MB copied to {copy}" if ranges.stored_in != file else "read in place"
            seconds = time.monotonic() - begun
            log.info("Indexed %s (%d images, %s) in %.1f s.", file, len(ranges.starts), size, seconds)
            return ranges, class_names
    except PermissionError as error:
        raise DataError(f"{file}: its index cannot be kept ({error}); {remedy}") from error
    return found[0], found[1]["class_names"]


def _make(
    file: str, stamp: tuple[int, int], copy: Path, input_key: str | None, target_key: str | None, several: bool
) -> tuple[Ranges, list[str]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(f"{file} needs a package that is not installed: {install_extra('parquet')}") from error
    try:
        if Path(file).suffix.lower() == ".arrow":
            mapped = pyarrow.memory_map(file)
            whole = mapped.read_buffer()
            mapped.seek(0)
            stream = _arrow_reader(pyarrow, mapped)
            schema, batches = stream.schema, iter(stream)
        else:
            whole = None
            table = pyarrow.parquet.ParquetFile(file)
            schema, batches = table.schema_arrow, None
        features = _features(schema)
        picture = _picture_column(file, schema, features, input_key)
        label = _label_column(file, schema, features, target_key, picture)
        if batches is None:
            batches = table.iter_batches(batch_size=_ROWS_AT_ONCE, columns=[picture, label])
        rows = _Rows(file, (picture, label), several)
        ranges = _copied(rows, batches, copy) if whole is None else _in_place(rows, batches, whole, stamp)
    except pyarrow.ArrowException as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    return ranges, [str(name) for name in _of_each(features.get(label, {})).get("names") or []]


def _arrow_reader(pyarrow: Any, mapped: Any) -> Any:
    """Open either form of an Arrow file; `datasets` writes streams."""
    if mapped.read(6) == b"ARROW1":
        file = pyarrow.ipc.open_file(mapped)
        return pyarrow.RecordBatchReader.from_batches(
            file.schema, (file.get_batch(number) for number in range(file.num_record_batches))
        )
    mapped.seek(0)
    return pyarrow.ipc.open_stream(mapped)


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """Read what `datasets` notes of each column; nothing where another program wrote the file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return {name: about for name, about in features.items() if isinstance(about, dict)}


def _of_each(feature: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what `datasets` notes of one label, where a row has a list of them."""
    inner = feature.get("feature")
    return inner if isinstance(inner, dict) else feature


def _picture_column(file: str, schema: Any, features: Mapping[str, Mapping[str, Any]], asked: str | None) -> str:
    if not asked:
        images = [name for name in schema.names if features.get(name, {}).get("_type") == "Image"]
        held = [name for name in schema.names if str(schema.field(name).type).startswith(("binary", "large_binary"))]
        held += [name for name in schema.names if str(schema.field(name).type).startswith("struct<bytes: ")]
        for found in (images, held):
            if len(found) == 1:
                return str(found[0])
    return str(schema.names[_column(file, schema.names, "input_key", asked, PICTURES)])


def _label_column(
    file: str, schema: Any, features: Mapping[str, Mapping[str, Any]], asked: str | None, picture: str
) -> str:
    names = [name for name in schema.names if _of_each(features.get(name, {})).get("_type") == "ClassLabel"]
    if not asked and len(names) == 1:
        return str(names[0])
    return str(
        schema.names[
            _column(file, schema.names, "target_key", asked, (*LABELS, *SEVERAL), schema.names.index(picture))
        ]
    )


class _Rows:
    """Gather the images of a table batch by batch.

    Args:
        columns: of the images and of the labels.
        several: a label is a list, or a text with semicolons.
    """

    def __init__(self, file: str, columns: tuple[str, str], several: bool = False) -> None:
        self.file, self.columns, self.several = file, columns, several
        self.names: list[str] = []
        self.labels: list[str] = []
        self.starts: list[int] = []
        self.sizes: list[int] = []

    def take(self, batch: Any, place: Callable[[Any], Sequence[tuple[int, int]]]) -> None:
        """Add the rows of a batch; `place` finds their bytes, or puts them somewhere, and returns (start, size)s."""
        pictures, labels = (batch.column(name) for name in self.columns)
        begun, rows = len(self.names), range(len(batch))
        paths: list[str | None] = [None] * len(batch)
        if str(pictures.type).startswith("struct"):  # {bytes, path}, as datasets writes them
            fields = {pictures.type.field(at).name: part for at, part in enumerate(pictures.flatten())}
            if not fields.keys() & {"bytes", "path"}:
                raise DataError(f"{self.file}: its column {self.columns[0]!r} has {some(fields)}, not bytes or path")
            paths = fields["path"].to_pylist() if "path" in fields else paths
            pictures = fields.get("bytes", fields.get("path"))
        elif "string" in str(pictures.type):
            paths, pictures = pictures.to_pylist(), None
        elif "binary" not in str(pictures.type):
            wanted = "of bytes, of {bytes, path} or of paths"
            raise DataError(f"{self.file}: its column {self.columns[0]!r} is {pictures.type}, not {wanted}")
        held = [False] * len(batch) if pictures is None else pictures.is_valid().to_pylist()
        if lost := [begun + at for at in rows if not held[at] and not paths[at]]:
            raise DataError(f"{self.file}, row {lost[0]}: no image")
        self.names += [paths[at] or f"{begun + at:08d}" for at in rows]
        self.labels += [self._label(begun + at, value) for at, value in enumerate(labels.to_pylist())]
        places = place(pictures) if any(held) else [(0, FILE_OF_ITS_OWN)] * len(batch)
        self.starts += [start for start, _ in places]
        self.sizes += [size if held[at] else FILE_OF_ITS_OWN for at, (_, size) in enumerate(places)]

    def ranges(self, stored_in: str, stamp: tuple[int, int]) -> Ranges:
        starts, sizes = (np.array(values, dtype=np.int64) for values in (self.starts, self.sizes))
        return Ranges(self.file, stored_in, stamp, Texts(self.names), Texts(self.labels), starts, sizes)

    def _label(self, row: int, value: Any) -> str:
        if self.several:
            many = value.split(SEPARATOR) if isinstance(value, str) else value
            many = [] if many is None else many if isinstance(many, list) else [many]
            return joined(self._one(row, one) for one in many if not isinstance(one, str) or one.strip())
        if isinstance(value, list):
            raise SeveralLabelsError(
                f"{self.file}, row {row}: its label {value!r} is a list: `task={MULTILABEL}` reads several"
            )
        return self._one(row, value)

    def _one(self, row: int, value: Any) -> str:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise DataError(f"{self.file}, row {row}: its label {value!r} is not one class")
        return str(value).strip()


def _copied(rows: _Rows, batches: Iterable[Any], copy: Path) -> Ranges:
    """Write the images' bytes one after the other into `copy`."""

    def write(stream: Any) -> None:
        def append(pictures: Any) -> list[tuple[int, int]]:
            return [(stream.tell(), stream.write(data or b"")) for data in pictures.to_pylist()]

        for batch in batches:
            rows.take(batch, append)

    write_atomically(copy, write)
    return rows.ranges(str(copy), stamp_of(copy))


def _in_place(rows: _Rows, batches: Iterable[Any], whole: Any, stamp: tuple[int, int]) -> Ranges:
    """Find the images' bytes in an Arrow file, uncompressed; `whole` is the file mapped into memory."""

    def find(pictures: Any) -> list[tuple[int, int]]:
        if "view" in str(pictures.type):
            raise DataError(f"{rows.file} holds {pictures.type}: write it as binary, or as Parquet")
        _, ends, data = pictures.buffers()
        first = 0 if data is None else data.address - whole.address
        if not 0 <= first <= whole.size:
            raise DataError(f"{rows.file} is compressed: write it without compression, or as Parquet")
        width = np.int64 if str(pictures.type).startswith("large") else np.int32
        bounds = np.frombuffer(ends, dtype=width)[pictures.offset : pictures.offset + len(pictures) + 1].astype(
            np.int64
        )
        return list(zip((first + bounds[:-1]).tolist(), np.diff(bounds).tolist(), strict=True))

    for batch in batches:
        rows.take(batch, find)
    return rows.ranges(rows.file, stamp)
