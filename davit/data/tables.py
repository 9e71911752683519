"""Read pictures that a table lists: a csv of files and labels, or a Parquet or Arrow table that holds the pictures."""

from __future__ import annotations

import codecs
import csv
import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import cache_file, write_atomically
from ..text import install_extra, some
from .errors import DataError
from .folder import names_of_split
from .listing import locate, readable_suffixes, suffix_of
from .ranges import FILE_OF_ITS_OWN, Ranges, RangeSource, load_ranges, save_ranges, stamp_of
from .source import ClassMap, Files, Texts

log = logging.getLogger(__name__)

_SEPARATOR = re.compile(r"sep=(.)", re.IGNORECASE)
_FORMAT = 1  # of a table's pictures in the cache
PICTURES = (
    *("path", "image", "file", "filename", "file_name", "filepath", "file_path", "image_path", "image_name", "img"),
    *("img_path", "picture", "images", "image_id", "id_code", "jpg", "png", "bytes", "image_bytes", "id"),
)
LABELS = (
    *("label", "labels", "class", "class_name", "cls", "target", "category", "class_id", "label_id", "fine_label"),
    *("label_name", "breed", "species", "diagnosis", "y"),
)
_ROWS_AT_ONCE = 64


class CsvSource(Files):
    """Read the pictures that a csv lists with their classes, by name or by index.

    Relative paths are below the csv's folder, or another of `folders`: the first that has the first file. A first row
    of column names is recognised. Of a table with a column "split" the rows of the split are taken.
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
    ) -> None:
        """Read the table, and look which of its files are there.

        Args:
            input_key, target_key: the columns of the paths and of the labels, where their names do not tell.
            split_required: it is an error if no column tells the split.

        Raises:
            DataError: the table cannot be read, a row lacks its path or label, or no file is there.
        """

        def is_there(name: str) -> bool:
            return any(locate(folder, [name]).found for folder in (*folders, Path(file).parent))

        rows = _read_rows(Path(file), input_key, target_key, split, split_required, is_there)
        paths, labels = [path for path, _ in rows], [label for _, label in rows]
        self.folder = next((folder for folder in folders if locate(folder, paths[:1]).found), Path(file).parent)
        paths = _existing(Path(file), self.folder, paths)
        _check_repeats(
            Path(file), [(os.path.normpath(path), label) for path, label in zip(paths, labels, strict=True)]
        )
        super().__init__(str(file), paths, labels, class_map)


def _read_rows(
    file: Path,
    input_key: str | None,
    target_key: str | None,
    split: str,
    split_required: bool,
    is_there: Callable[[str], bool],
) -> list[tuple[str, str]]:
    """Read the (path, label) of each row of the split; `is_there` tells whether a cell names a file."""
    delimiter, table = read_cells(file)
    if not table:
        raise DataError(f"{file} is empty: a row for each picture is needed, path,label")
    columns = [cell.strip() for cell in table[0][1]]
    if _is_header(columns, table, input_key, target_key, is_there):
        del table[0]
        picture = _column(file, columns, "input_key", input_key, PICTURES)
        label = _column(file, columns, "target_key", target_key, LABELS, but=picture)
        part = next((at for at, name in enumerate(columns) if name.lower() == "split"), None)
    else:
        picture = next((at for at, cell in enumerate(columns) if suffix_of(cell) in readable_suffixes()), 0)
        label, part = 1 - min(picture, 1), None
    if part is None and split_required:
        raise DataError(
            f"{file}: neither its name nor a column split tells which rows are of split {split!r}: give one file a "
            f"split, such as {split}.csv, or name the split '.' to take all"
        )
    wanted = None if part is None or split == "." else names_of_split(split)
    filled = [(line, [cell.strip() for cell in row] + [""] * (len(columns) - len(row))) for line, row in table]
    if wanted and part is not None:
        of_split = [(line, cells) for line, cells in filled if cells[part].lower() in wanted]
        filled = of_split if of_split or split_required else filled
    rows: list[tuple[str, str]] = []
    for line, cells in filled:
        if len(cells) < 2 or not cells[picture] or not cells[label] or "\0" in cells[picture]:
            raise DataError(f"{file}, line {line}: {delimiter.join(cells)!r} lacks a path or a label")
        rows.append((cells[picture], cells[label]))
    if not rows:
        raise DataError(f"{file} has no rows of split {split!r}" if table else f"{file} lists no picture")
    return rows


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
    return "\t" if file.suffix.lower() == ".tsv" else max(",;\t", key=first.count)


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
    """Tell whether the first row names the columns: by their usual names, or as no cell of it names a picture."""
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
    raise DataError(f"{file} has the columns {some(columns)}: say which one by `{flag}=NAME`")


def _check_repeats(file: Path, rows: Sequence[tuple[str, str]]) -> None:
    """Warn of pictures that are listed more than once, and of those under two labels."""
    repeated = [path for path, count in Counter(path for path, _ in rows).items() if count > 1]
    if not repeated:
        return
    distinct = Counter(path for path, _ in {*rows})
    if torn := [path for path in repeated if distinct[path] > 1]:
        log.warning("%s: %d pictures have more than one label: %s", file, len(torn), some(torn))
    else:
        log.warning("%s: %d pictures are listed more than once: %s", file, len(repeated), some(repeated))


def _existing(file: Path, folder: Path, paths: list[str]) -> list[str]:
    """Write paths as the files are spelled here.

    Raises:
        DataError: no file is there. Some that are not are a warning; each is a bad picture once it is read.
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
    """Read the pictures of Parquet or Arrow files, as Hugging Face's `datasets` and pandas write them.

    A column holds the pictures' bytes, or {bytes, path}; another the classes, by index or name. The classes' names
    come from what `datasets` writes into the file. Parquet can be read in blocks alone, so its pictures are copied
    once into the cache; Arrow files are read where they lie.
    """

    def __init__(
        self,
        files: Sequence[str | Path],
        class_map: ClassMap = None,
        *,
        input_key: str | None = None,
        target_key: str | None = None,
    ) -> None:
        """Index the files, or take their kept indices.

        Args:
            input_key, target_key: the columns of the pictures and of the labels, where their names do not tell.

        Raises:
            DataError: pyarrow is not installed, a file is damaged, or its columns are others.
        """
        tables = [_table(str(file), input_key, target_key) for file in files]
        parts, class_names = [part for part, _ in tables], tables[0][1]
        if differing := [part.file for part, names in tables if names != class_names]:
            raise DataError(f"{files[0]} and {differing[0]} name other classes: use files of one data set")
        place = f"{files[0]} and {len(files) - 1} more files" if len(files) > 1 else str(files[0])
        labels = [label for part in parts for label in part.labels]
        super().__init__(place, parts, labels, class_map, class_names=class_names)


def _table(file: str, input_key: str | None, target_key: str | None) -> tuple[Ranges, list[str]]:
    """Return the pictures of one file and the names of its classes, kept or made anew."""
    stamp = stamp_of(file)
    remedy = "set DAVIT_CACHE_DIR to a folder for it"
    try:
        kept = cache_file("tables", _FORMAT, os.path.abspath(file), stamp, input_key, target_key)  # noqa: PTH100
    except OSError as error:
        raise DataError(f"{file}: its index cannot be kept ({error}); {remedy}") from error
    try:
        if (found := load_ranges(kept, file)) is None:
            begun = time.monotonic()
            copy = kept.with_suffix(".pictures")
            ranges, class_names = _make(file, stamp, copy, input_key, target_key)
            save_ranges(kept, ranges, {"class_names": class_names})
            size = f"{ranges.stamp[0] / 1e6:.1f} MB copied to {copy}" if ranges.stored_in != file else "read in place"
            seconds = time.monotonic() - begun
            log.info("Indexed %s (%d pictures, %s) in %.1f s.", file, len(ranges.starts), size, seconds)
            return ranges, class_names
    except PermissionError as error:
        raise DataError(f"{file}: its index cannot be kept ({error}); {remedy}") from error
    return found[0], found[1]["class_names"]


def _make(
    file: str, stamp: tuple[int, int], copy: Path, input_key: str | None, target_key: str | None
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
        rows = _Rows(file, (picture, label))
        ranges = _copied(rows, batches, copy) if whole is None else _in_place(rows, batches, whole, stamp)
    except pyarrow.ArrowException as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    return ranges, [str(name) for name in features.get(label, {}).get("names") or []]


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
    names = [name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"]
    if not asked and len(names) == 1:
        return str(names[0])
    return str(schema.names[_column(file, schema.names, "target_key", asked, LABELS, schema.names.index(picture))])


class _Rows:
    """Gather the pictures of a table batch by batch.

    Args:
        columns: of the pictures and of the labels.
    """

    def __init__(self, file: str, columns: tuple[str, str]) -> None:
        self.file, self.columns = file, columns
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
            raise DataError(f"{self.file}, row {lost[0]}: no picture")
        self.names += [paths[at] or f"{begun + at:08d}" for at in rows]
        self.labels += [self._label(begun + at, value) for at, value in enumerate(labels.to_pylist())]
        places = place(pictures) if any(held) else [(0, FILE_OF_ITS_OWN)] * len(batch)
        self.starts += [start for start, _ in places]
        self.sizes += [size if held[at] else FILE_OF_ITS_OWN for at, (_, size) in enumerate(places)]

    def ranges(self, stored_in: str, stamp: tuple[int, int]) -> Ranges:
        starts, sizes = (np.array(values, dtype=np.int64) for values in (self.starts, self.sizes))
        return Ranges(self.file, stored_in, stamp, Texts(self.names), Texts(self.labels), starts, sizes)

    def _label(self, row: int, value: Any) -> str:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
            raise DataError(f"{self.file}, row {row}: its label {value!r} is not one class")
        return str(value).strip()


def _copied(rows: _Rows, batches: Iterable[Any], copy: Path) -> Ranges:
    """Write the pictures' bytes one after the other into `copy`."""

    def write(stream: Any) -> None:
        def append(pictures: Any) -> list[tuple[int, int]]:
            return [(stream.tell(), stream.write(data or b"")) for data in pictures.to_pylist()]

        for batch in batches:
            rows.take(batch, append)

    write_atomically(copy, write)
    return rows.ranges(str(copy), stamp_of(copy))


def _in_place(rows: _Rows, batches: Iterable[Any], whole: Any, stamp: tuple[int, int]) -> Ranges:
    """Find the pictures' bytes in an Arrow file, uncompressed; `whole` is the file mapped into memory."""

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
