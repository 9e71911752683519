"""Tables of images: csv as people write them, Parquet and Arrow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from davit.data import BadImageError, DataError, open_dataset, tables
from tests.forms import as_csv, as_parquet, table_of

MakeFolder = Callable[..., Path]
Pictures = Callable[..., Path]


def test_a_csv_has_the_order_classes_and_pictures_of_the_folder(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder(classes=("bee", "ant", "crow"))
    table = as_csv(root, tmp_path / "csv")
    for split in ("train", "validation"):
        folder, ours = open_dataset(root, split), open_dataset(table, split)
        assert (ours.class_to_idx, ours.source.targets()) == (folder.class_to_idx, folder.source.targets())
        for index in range(len(folder)):
            assert np.array_equal(np.asarray(ours[index][0]), np.asarray(folder[index][0]))


@pytest.mark.parametrize(
    ("text", "options", "names", "targets"),
    [
        ("path,label\nx/1.png,ant\nx/2.png,bee\n", {}, ["x/1.png", "x/2.png"], [0, 1]),
        ("x/2.png,bee\nx/1.png,ant\n", {}, ["x/1.png", "x/2.png"], [0, 1]),
        ("label,image\nb,x/1.png\na,x/2.png\n", {}, ["x/2.png", "x/1.png"], [0, 1]),
        ("b,x/1.png\na,x/2.png\n", {}, ["x/2.png", "x/1.png"], [0, 1]),
        ("\ufefffile_name;class\r\nx/1.png;1\r\n\r\nx/2.png;0\r\n", {}, ["x/2.png", "x/1.png"], [0, 1]),
        ("x/1.png\t0\nx/2.png\t2.0\n", {}, ["x/1.png", "x/2.png"], [0, 2]),
        ('path,label\n"x/a, b.png","salt, pepper"\nx/1.png,oil\n', {}, ["x/1.png", "x/a, b.png"], [0, 1]),
        ("what,where\na,x/1.png\nb,x/2.png\n", {"input_key": "where"}, ["x/1.png", "x/2.png"], [0, 1]),
        ("n,f,k\n1,x/1.png,b\n2,x/2.png,a\n", {"input_key": "f", "target_key": "k"}, ["x/2.png", "x/1.png"], [0, 1]),
        ("path,label\nx\\1.png,a\nx\\2.png,b\n", {}, ["x/1.png", "x/2.png"], [0, 1]),
        ("path,label\n./x/1.png,a\nx/2.png,b\n", {}, ["./x/1.png", "x/2.png"], [0, 1]),
        ("path,label\nx/1.png,7\nx/2.png,3\n", {"class_map": {"3": 0, "7": 1}}, ["x/2.png", "x/1.png"], [0, 1]),
        ("path,label\nx/1.png,a\nx/2.png,b\n", {"class_map": {"b": 3}}, ["x/2.png"], [3]),
    ],
)  # fmt: skip
def test_csv_as_people_write_it(text, options, names, targets, pictures: Pictures) -> None:
    root = pictures("x/1.png", "x/2.png", "x/a, b.png")
    (root / "train.csv").write_text(text, encoding="utf-8", newline="")
    source = open_dataset(root, "train", **options).source
    assert [source.filename(index) for index in range(len(source))] == names
    assert source.targets() == targets
    for index in range(len(source)):
        source.open(index)


@pytest.mark.parametrize("folder", ["train", "images", ".", "lists"])
def test_where_relative_paths_begin(folder: str, pictures: Pictures) -> None:
    root = pictures(f"{folder}/1.png", f"{folder}/2.png")
    (root / "lists").mkdir(exist_ok=True)
    (root / "lists" / "train.csv").write_text("1.png,a\n2.png,b\n")
    dataset = open_dataset(root, "lists/train.csv") if folder in (".", "lists") else None
    (root / "train.csv").write_text("1.png,a\n2.png,b\n")
    dataset = dataset or open_dataset(root, "train", dataset="csv")
    assert dataset.read(1)[1] == 1


@pytest.mark.parametrize("header", ["id_code,diagnosis\n", "what,which\n", ""])
@pytest.mark.parametrize("folder", ["train_images", "images", "train", "."])
def test_names_without_a_suffix(header: str, folder: str, pictures: Pictures) -> None:
    root = pictures(f"{folder}/0a1b2c.png", f"{folder}/IMG.1234.png", f"{folder}/2.v2.png")
    (root / "train.csv").write_text(f"{header}0a1b2c,low\nIMG.1234,high\n2.v2,low\n")
    (root / "val.csv").write_text("id_code,diagnosis\n0a1b2c,low\n")
    dataset = open_dataset(root, "train", dataset="csv")
    assert dataset.filenames() == ["IMG.1234.png", "0a1b2c.png", "2.v2.png"]
    assert dataset.class_names == ["high", "low"]
    assert [dataset.read(index)[1] for index in range(3)] == [0, 1, 1]


def test_a_name_without_suffix_for_which_two_files_fit(pictures: Pictures, caplog: pytest.LogCaptureFixture) -> None:
    root = pictures("1.png", "1.jpg", "2.png", "3.png")
    (root / "train.csv").write_text("path,label\n1,a\n2,b\n3,a\n")
    assert "1.jpg" in {*open_dataset(root, "train").filenames(), *caplog.text.replace(",", " ").split()}
    assert "1 of 3" in caplog.text


def test_unicode_forms_are_put_right(pictures: Pictures) -> None:
    root = pictures("caf\u00e9/1.png", "u\u0308/2.png")
    (root / "train.csv").write_text("cafe\u0301/1.png,a\n\u00fc/2.png,b\n")
    dataset = open_dataset(root, "train")
    assert [dataset.read(index)[1] for index in range(2)] == [0, 1]


def test_absolute_paths_and_names_that_are_not_utf8(pictures: Pictures, tmp_path: Path) -> None:
    root = pictures("a/1.png", "a/2.png")
    (root / "a/2.png").rename(root / "a/caf\udce9.png")
    lines = [f"{root}/a/1.png,x", f"{root}/a/caf\udce9.png,y"]
    (tmp_path / "train.csv").write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    dataset = open_dataset(tmp_path, "train")
    assert [dataset.read(index)[1] for index in range(2)] == [0, 1]


def test_splits_of_one_table(pictures: Pictures) -> None:
    root = pictures("1.png", "2.png", "3.png")
    (root / "labels.csv").write_text("path,label,split\n1.png,a,train\n2.png,b,train\n3.png,a,Val\n")
    assert open_dataset(root, "train").filenames() == ["1.png", "2.png"]
    assert open_dataset(root / "labels.csv", "validation").filenames() == ["3.png"]
    assert len(open_dataset(root / "labels.csv", ".")) == 3
    with pytest.raises(DataError, match="test"):
        open_dataset(root, "test")
    (root / "train.csv").write_text("path,label,split\n1.png,a,train\n2.png,b,extra\n")
    assert open_dataset(root / "train.csv", "train").filenames() == ["1.png"]
    (root / "val.csv").write_text("path,label,split\n1.png,a,fold1\n2.png,b,fold2\n")
    assert len(open_dataset(root / "val.csv", "val")) == 2


@pytest.mark.parametrize(
    "text",
    ["", "path,label\n", "path,label\n1.png,\n", "path,label\n1.png\n", "x,y,z\n1.png,a,b\n", "path,label\nno.png,a\n",
     "path,label\n1.png,1234567890\n", "path,label\n1.png,-1\n", "path,label\n1.png,1.5\n", 'path,label\n"1.png,a\n'],
)  # fmt: skip
def test_a_table_that_cannot_be_used(text: str, pictures: Pictures) -> None:
    root = pictures("1.png")
    (root / "train.csv").write_text(text)
    with pytest.raises(DataError, match=r"train\.csv"):
        open_dataset(root, "train")
    with pytest.raises(DataError):
        open_dataset(root, "train", target_key="nonsense")


def test_files_that_are_not_there_are_counted_and_bad_pictures(
    pictures: Pictures, caplog: pytest.LogCaptureFixture
) -> None:
    root = pictures("1.png", "2.png")
    (root / "train.csv").write_text("1.png,a\n2.png,b\n3.png,a\n")
    dataset = open_dataset(root, "train")
    assert "1 of 3" in caplog.text and "3.png" in caplog.text
    with pytest.raises(BadImageError):
        dataset[dataset.filenames().index("3.png")]


@pytest.mark.parametrize(("second", "said"), [("b", True), ("a", True), (None, False)])
def test_a_picture_that_is_listed_twice(
    second: str | None, said: bool, pictures: Pictures, caplog: pytest.LogCaptureFixture
) -> None:
    root = pictures("1.png", "2.png")
    (root / "train.csv").write_text("1.png,a\n2.png,b\n" + (f"1.png,{second}\n" if second else ""))
    open_dataset(root, "train")
    assert ("1.png" in caplog.text) is said


# Parquet and Arrow


@pytest.fixture
def arrow() -> Any:
    pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    return pytest.importorskip("pyarrow")


def test_parquet_has_the_order_classes_and_pictures_of_the_folder(
    arrow: Any, make_folder: MakeFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_folder(classes=("bee", "ant", "crow"))
    table = as_parquet(root, tmp_path / "parquet")
    for split in ("train", "validation"):
        folder = open_dataset(root, split)
        for dataset in ("", "parquet", f"hfds/{table}"):
            ours = open_dataset(table, split, dataset=dataset)
            assert (ours.class_to_idx, ours.source.targets()) == (folder.class_to_idx, folder.source.targets())
            for index in range(len(folder)):
                assert np.array_equal(np.asarray(ours[index][0]), np.asarray(folder[index][0]))


@pytest.mark.parametrize("form", ["stream", "file"])
def test_arrow_files_are_read_where_they_lie(arrow: Any, form: str, make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder()
    folder, table = open_dataset(root, "train"), table_of(arrow, root, "train")
    (tmp_path / "out").mkdir()
    writer = arrow.ipc.new_stream if form == "stream" else arrow.ipc.new_file
    with writer(str(tmp_path / "out" / "train.arrow"), table.schema) as stream:
        stream.write_table(table, max_chunksize=7)
    source: Any = open_dataset(tmp_path / "out", "train").source
    assert source.targets() == folder.source.targets()
    assert {stored_in for _, stored_in, _ in source._files} == {str(tmp_path / "out" / "train.arrow")}
    for index in range(len(folder)):
        assert source.open(index)[0].read() == Path(folder.source.path(index)).read_bytes()


def test_columns_of_other_kinds(arrow: Any, pictures: Pictures, tmp_path: Path) -> None:
    """Bytes and text labels as pandas writes them, and paths beside the table."""
    root = pictures("1.png", "2.png")
    data = [(root / name).read_bytes() for name in ("1.png", "2.png")]
    for columns, options in (
        ({"jpg": data, "what": ["b", "a"]}, {}),
        ({"id": [5, 6], "blob": data, "what": ["b", "a"]}, {"target_key": "what"}),
        ({"path": ["1.png", "2.png"], "label": ["b", "a"]}, {}),
        ({"x": data, "y": [1.0, 0.0], "mask": data}, {"input_key": "x", "target_key": "y"}),
        ({"image": [{"bytes": None, "path": "1.png"}, {"bytes": data[1], "path": None}], "label": [1, 0]}, {}),
    ):
        arrow.parquet.write_table(arrow.table(columns), root / "train.parquet")
        dataset = open_dataset(root, "train", **options)
        targets = [dataset.read(index)[1] for index in range(2)]
        assert targets == [0, 1]


@pytest.mark.parametrize(
    "columns",
    [{"a": [1], "b": [2], "c": [3]}, {"image": [b"x"], "label": [None]}, {"image": [b"x"], "label": [[1, 2]]},
     {"image": [None], "label": [1]}, {"image": [1], "label": [1]}, {"image": [{"size": 1}], "label": [1]}],
)  # fmt: skip
def test_tables_that_cannot_be_used(arrow: Any, columns: dict[str, Any], tmp_path: Path) -> None:
    arrow.parquet.write_table(arrow.table(columns), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"train\.parquet"):
        open_dataset(tmp_path, "train")


def test_a_damaged_table_and_a_compressed_one(arrow: Any, make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder()
    (tmp_path / "train.parquet").write_bytes(b"PAR1" + b"\0" * 100)
    with pytest.raises(DataError):
        open_dataset(tmp_path / "train.parquet", "train")
    table = table_of(arrow, root, "train")
    options = arrow.ipc.IpcWriteOptions(compression="zstd")
    with arrow.ipc.new_stream(str(tmp_path / "train.arrow"), table.schema, options=options) as stream:
        stream.write_table(table)
    with pytest.raises(DataError):
        open_dataset(tmp_path / "train.arrow", "train")
    views = arrow.table({"image": arrow.array([b"x"], arrow.binary_view()), "label": [1]})
    with arrow.ipc.new_stream(str(tmp_path / "train.arrow"), views.schema) as stream:
        stream.write_table(views)
    with pytest.raises(DataError):
        open_dataset(tmp_path / "train.arrow", "train")
    arrow.parquet.write_table(views, tmp_path / "views.parquet")
    assert open_dataset(tmp_path / "views.parquet", ".").source.targets() == [1]
    arrow.parquet.write_table(views.slice(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(DataError, match=r"empty\.parquet"):
        open_dataset(tmp_path / "empty.parquet", ".")


def test_the_copy_is_made_once_and_again_when_the_table_changes_or_it_is_gone(
    arrow: Any, make_folder: MakeFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAVIT_CACHE_DIR", str(tmp_path / "cache"))
    made: list[str] = []
    make = tables._make
    monkeypatch.setattr(tables, "_make", lambda file, *rest: made.append(file) or make(file, *rest))
    table = as_parquet(make_folder(), tmp_path / "parquet")
    for wanted in (1, 1):
        open_dataset(table, "train")
        assert len(made) == wanted
    for copy in (tmp_path / "cache" / "tables").glob("*.pictures"):
        copy.write_bytes(copy.read_bytes()[:50])
    open_dataset(table, "train").read(3)
    assert len(made) == 2


def test_without_pyarrow_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="pip install"):
        open_dataset(tmp_path, "train")


def test_where_the_copy_cannot_be_kept(arrow: Any, make_folder: MakeFolder, tmp_path: Path, monkeypatch) -> None:
    table = as_parquet(make_folder(), tmp_path / "parquet")
    (tmp_path / "file").touch()
    monkeypatch.setenv("DAVIT_CACHE_DIR", str(tmp_path / "file" / "below"))
    with pytest.raises(DataError, match="DAVIT_CACHE_DIR"):
        open_dataset(table, "train")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("path\tlabel\nx/1.png\tant\nx/2.png\tbee\n", "utf-16"),
        ("sep=;\r\npath;label\r\nx/1.png;ant\r\nx/2.png;bee\r\n", "utf-8"),
    ],
)
def test_tables_as_excel_saves_them(text: str, encoding: str, pictures: Pictures) -> None:
    root = pictures("x/1.png", "x/2.png")
    (root / "train.csv").write_bytes(text.encode(encoding))
    ours = open_dataset(root, "train")
    assert (ours.class_to_idx, ours.source.targets()) == ({"ant": 0, "bee": 1}, [0, 1])


def test_a_picture_that_is_spelled_in_two_ways_is_listed_twice(
    pictures: Pictures, caplog: pytest.LogCaptureFixture
) -> None:
    root = pictures("x/1.png", "x/2.png")
    (root / "train.csv").write_text("x/1.png,ant\n./x/1.png,bee\nx/2.png,bee\n")
    assert len(open_dataset(root, "train")) == 3
    assert len(caplog.records) == 1


def test_the_folder_of_pictures_in_upper_case(pictures: Pictures) -> None:
    root = pictures("Images/1.png", "Images/2.png")
    (root / "train.csv").write_text("1.png,ant\n2.png,bee\n")
    assert open_dataset(root, "train").source.path(0) == str(root / "Images/1.png")
