from __future__ import annotations

import io
import os
import socket
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, features
from timm.utils.misc import natural_key as timms_key

from davit.data import DataError, load_rgb
from davit.data import listing as the_module
from davit.data.listing import format_of, left_out, list_folder, list_pictures, locate, natural_key, suffix_of, walk

FORMATS = ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000"] + ["AVIF"] * features.check("avif")
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write files of the same content below a folder of the test, and return the folder."""

    def write_files(*names: str | bytes, content: bytes = b"no image") -> Path:
        for name in names:
            file = os.path.join(os.fsencode(tmp_path), os.fsencode(name))  # noqa: PTH118
            os.makedirs(os.path.dirname(file), exist_ok=True)  # noqa: PTH103, PTH120
            with open(file, "wb") as stream:  # noqa: PTH123
                stream.write(content)
        return tmp_path

    return write_files


@pytest.fixture
def without_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    monkeypatch.setattr(the_module.importlib.util, "find_spec", lambda name: None)
    forget(monkeypatch)


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    for function in (the_module.readable_suffixes, the_module._is_readable):
        monkeypatch.setattr(the_module, function.__name__, function.__wrapped__)


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        *(("a.jpg", ".jpg"), ("b.JPG", ".jpg"), ("a.b.JpEg", ".jpeg"), ("a.7z", ".7z"), ("a.3gp", ".3gp")),
        *(("IMG", ""), ("IMG.1234", ""), ("1.2.840.10008", ""), ("photo.", ""), (".png", ""), ("a.jpg_large", "")),
        *(("a.jpg?w=300", ""), ("a.jpg ", ""), ("a.20261126T120000", ""), ("a.für", ""), ("a.jpg\n", "")),
    ],
)
def test_suffixes(name: str, suffix: str):
    assert suffix_of(name) == suffix


@pytest.mark.parametrize("form", FORMATS)
def test_a_picture_without_suffix_is_known_by_its_content(form: str, tmp_path: Path):
    file = tmp_path / "IMG.1234"
    Image.new("RGB", (9, 7), "red").save(file, form)
    assert format_of(file.read_bytes()[:32]) == form
    assert list_pictures(tmp_path).pictures == ["IMG.1234"]
    assert load_rgb(file).size == (9, 7)


@pytest.mark.parametrize("head", [b"", b"BM is no image, it is a text", b"P5", b"RIFF1234WAVE", b"\xff\xd8", b"II*"])
def test_other_content(head: bytes):
    assert format_of(head) is None


def test_every_format_has_a_beginning_and_those_of_pillow_are_read():
    assert {form for form, _ in the_module._BEGINNINGS} == set(the_module.SUFFIXES.values())
    assert {suffix for suffix in the_module.readable_suffixes() if suffix not in (".heic", ".heif", ".hif")} == {
        suffix for suffix, form in the_module.SUFFIXES.items() if form in (*FORMATS, "NPY")
    }


def test_what_is_left_out_is_counted_by_suffix(write: Callable[..., Path], without_heif: None):
    """Case 5: images without suffix count, HEIC does not without its package; hidden files are nobody's loss."""
    png = tmp_png()
    root = write("x/a.PNG", "x/IMG_1", "y/IMG_2", content=png)
    write("x/IMG_1.HEIC", "y/b.heic", content=bytes(100))
    write("x/a.txt", "README", "x/b.jpg~")
    write(".DS_Store", "x/._a.PNG", "Thumbs.db", "x/desktop.ini", "__MACOSX/x/b.png", ".cache/a.png", "@eaDir/t.jpg")
    write("y/phone", content=HEIC)
    found = list_pictures(root)
    assert found.pictures == ["x/a.PNG", "x/IMG_1", "y/IMG_2"]
    assert found.left_out == {".heic": 2, ".txt": 1, "without suffix": 1, ".jpg~": 1, ".heic without suffix": 1}
    sentence = left_out(found.left_out)
    assert sentence.startswith("6 ")
    assert "2 .heic" in sentence
    assert "davit-torch[heif]" in sentence
    assert list_pictures(root, deep=False).pictures == []
    assert left_out(Counter()) == ""
    assert "pip" not in left_out({".txt": 1})


def test_more_kinds_than_a_sentence_holds_are_counted():
    sentence = left_out({f".a{number}": number for number in range(1, 11)})
    assert sentence.startswith("55 ")
    assert "10 of 4" in sentence


def test_heic_is_listed_where_its_package_is_installed(
    write: Callable[..., Path], without_heif: None, monkeypatch: pytest.MonkeyPatch
):
    root = write("a.HEIC", "b.heif", "c.hif", "phone", content=HEIC)
    assert list_pictures(root).pictures == []
    monkeypatch.setattr(the_module.importlib.util, "find_spec", lambda name: name == "pillow_heif" or None)
    assert list_pictures(root).pictures == ["a.HEIC", "b.heif", "c.hif", "phone"]
    assert not list_pictures(root).left_out


def test_pipes_and_sockets_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Opening a pipe would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket.jpg")
        found = list_pictures(tmp_path)
    assert found.pictures == []
    assert found.left_out.total() == 4


def test_links(write: Callable[..., Path]):
    """A file by a link counts; a link to nothing is kept by its suffix, and opening it says what is wrong."""
    root = write("elsewhere/a.png", content=tmp_png())
    folder = root / "folder"
    folder.mkdir()
    (folder / "file.png").symlink_to(root / "elsewhere" / "a.png")
    (folder / "bare").symlink_to(root / "elsewhere" / "a.png")
    (folder / "sub").symlink_to(root / "elsewhere")
    (folder / "gone.png").symlink_to(root / "nothing")
    (folder / "circle.jpg").symlink_to(folder / "circle.jpg")
    (folder / "gone").symlink_to(root / "nothing")
    found = list_pictures(folder)
    assert found.pictures == ["bare", "circle.jpg", "file.png", "gone.png", "sub/a.png"]
    assert found.left_out.total() == 1


def test_circles_of_links_end(write: Callable[..., Path]):
    root = write("a/1.png", "b/2.png")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "over").symlink_to(root / "b")
    (root / "b" / "back").symlink_to(root / "a")
    assert sorted(Path(name).name for name in list_pictures(root).pictures) == ["1.png", "2.png"]
    assert next(iter(walk(root, "b")))[0] == "b"


def test_a_folder_that_cannot_be_listed(write: Callable[..., Path]):
    root = write("a.png")
    for wrong in (root / "nowhere", root / "a.png"):
        with pytest.raises(DataError):
            list_folder(wrong)


def test_the_order_is_timms_and_names_may_hold_any_sign(write: Callable[..., Path]):
    names = ["img10.png", "img2.png", "IMG3.png", "a\n.png", "ü.png", "b'\".png"]
    root = write(*names)
    assert list_pictures(root).pictures == sorted(names, key=lambda name: (timms_key(name), name))
    assert natural_key("²1") < natural_key("²2")  # timm's fails: ² is a digit without a number
    write(b"caf\xe9.png", "²1.png")
    assert {b"caf\xe9.png", os.fsencode("²1.png")} < set(map(os.fsencode, list_pictures(root).pictures))


def test_a_file_that_may_not_be_opened_is_counted(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch):
    root = write("bare", content=tmp_png())

    def refuse(*_: object) -> None:
        raise PermissionError

    for name in ("open", "read"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, refuse)
            found = list_pictures(root)
        assert (found.pictures, found.left_out.total()) == ([], 1)


# Named files


@pytest.mark.parametrize(
    ("on_disk", "name"),
    [
        ("train/a.jpg", "train\\a.jpg"),
        ("train/a.jpg", ".\\train\\a.jpg"),
        (unicodedata.normalize("NFD", "café/é.jpg"), "café/é.jpg"),
        ("café/é.jpg", unicodedata.normalize("NFD", "café/é.jpg")),
        (unicodedata.normalize("NFD", "é.jpg"), "é.JPG"),
        ("a.jpg", "a.JPG"),
        ("train/b.JPEG", "train\\b.jpeg"),
    ],
)
def test_names_of_other_platforms_are_found(on_disk: str, name: str, write: Callable[..., Path]):
    root = write(on_disk)
    located = locate(root, [name, "no.jpg", name])
    assert (root / located.found[name]).samefile(root / on_disk)
    assert list(located.respelled.values()) == [[name]]
    assert list(located.missing) == ["no.jpg"]


def test_an_exact_name_comes_first(write: Callable[..., Path]):
    """Windows' archives unpacked elsewhere have names with backslashes in them."""
    names = ["train\\a.jpg", "train/a.jpg", "a.JPG", "a.jpg", "é.png", unicodedata.normalize("NFD", "é.png")]
    root = write(*names)
    for absolute in (False, True):
        asked = [str(root / name) if absolute else name for name in names]
        located = locate(root, asked)
        assert located.found == dict(zip(asked, asked, strict=True))
        assert not located.respelled
        assert not located.missing
    assert locate(root, ["train/../a.jpg", "./train//a.jpg"]).missing == {}


@pytest.mark.parametrize(
    "name",
    ["b.JPG", "A.png", "nowhere/a.png", "nowhere\\a.png", "C:\\data\\a.png", "", "a\0.png", "\0/a.png", "/no.png"],
)
def test_what_is_not_found_has_a_reason(name: str, write: Callable[..., Path]):
    """Of several that fit none is taken: they may be two images."""
    root = write("b.jpg", "b.Jpg", "a.png")
    located = locate(root, [name])
    assert located.missing[name]
    assert not located.found


def tmp_png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    return stream.getvalue()
