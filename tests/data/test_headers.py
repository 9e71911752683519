"""Headers of images: kind, size, faults, and what is remembered of them."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from davit.data import headers, load_rgb
from davit.data.headers import Header, is_misnamed, read_headers
from davit.files import cache_file

KINDS = [("jpg", "JPEG"), ("png", "PNG"), ("gif", "GIF"), ("webp", "WEBP"), ("bmp", "BMP"), ("tif", "TIFF")]
KINDS += [("ppm", "PPM"), ("jp2", "JPEG2000"), ("avif", "AVIF")]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DAVIT_CACHE_DIR", str(tmp_path / "cache"))


def noise(width: int = 30, height: int = 20) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files whose headers were read, in a list that grows."""
    seen: list[str] = []
    real = headers._read
    monkeypatch.setattr(headers, "_read", lambda path: (seen.append(path), real(path))[1])
    return seen


@pytest.mark.parametrize(("suffix", "kind"), KINDS)
def test_each_kind_whole_and_cut_off(tmp_path: Path, suffix: str, kind: str) -> None:
    """A file is faulty exactly where the decoder refuses it."""
    whole = tmp_path / f"whole.{suffix}"
    noise().save(whole)
    data = whole.read_bytes()
    cuts = [tmp_path / f"{count}.{suffix}" for count in (1, 2, 5, 16, 100, len(data) - 20, len(data) - 1, len(data))]
    for file in cuts:
        file.write_bytes(data[: len(data) - int(file.stem)])
    longer = tmp_path / f"longer.{suffix}"
    longer.write_bytes(data + b"\1" * 50)
    assert read_headers([whole]) == [Header(kind, 30, 20, "RGB" if kind != "GIF" else "P")]
    for file, header in zip((*cuts, longer), read_headers([*cuts, longer]), strict=True):
        assert bool(header.fault) == (not _can_be_decoded(file)), (file, header)


def _can_be_decoded(file: Path) -> bool:
    try:
        load_rgb(file)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_sizes_are_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    noise().save(tmp_path / f"a.{suffix}", exif=exif)
    (header,) = read_headers([tmp_path / f"a.{suffix}"])
    assert (header.width, header.height) == load_rgb(tmp_path / f"a.{suffix}").size
    assert header.turned == (orientation >= 5)


def test_what_is_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = {"empty": b"", "zeros": bytes(100), "page": b"\n <!DOCTYPE html><html>", "text": b"hello"}
    contents |= {"lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0"}
    for name, data in contents.items():
        (tmp_path / f"{name}.jpg").write_bytes(data)
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")
    noise().save(tmp_path / "good.png")
    names = [*contents, "folder", "link", "pipe", "gone"]
    found = dict(zip(names, read_headers([tmp_path / f"{name}.jpg" for name in names]), strict=True))
    assert all(header.fault and not header.kind for header in found.values())
    assert len({header.fault for header in found.values()}) >= 7
    assert "lfs pull" in found["lfs"].fault
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 599)
    assert "599" in read_headers([tmp_path / "good.png"])[0].fault
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_headers([tmp_path / "good.png"]) == [Header("PNG", 30, 20, "RGB")]
    assert read_headers([]) == []


def test_a_failing_disk_is_not_the_files_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise().save(tmp_path / "a.png")

    def fail(path: str, stream: Any) -> Header:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(headers, "_read_open", fail)
        assert "Input/output" in read_headers([tmp_path / "a.png"])[0].fault
    assert not read_headers([tmp_path / "a.png"])[0].fault


def test_names_that_say_another_kind(tmp_path: Path) -> None:
    names = {"a.jpg": "PNG", "b.jpeg": "JPEG", "c.PNG": "PNG", "d": "PNG", "e.bmp": "WEBP", "f.jfif": "JPEG"}
    for name, kind in names.items():
        noise().save(tmp_path / name, kind)
    files = [tmp_path / name for name in names]
    found = read_headers(files)
    assert [file.name for file, header in zip(files, found, strict=True) if is_misnamed(file, header)] == [
        "a.jpg",
        "e.bmp",
    ]
    said = headers.describe_misnamed(files, found)
    assert "2 of 6" in said and "a.jpg" in said and "PNG" in said
    assert not headers.describe_misnamed(files[1:2], found[1:2])


def test_only_changed_files_are_read_again(tmp_path: Path, reads: list[str]) -> None:
    files = [tmp_path / "p" / name for name in ("a.png", "b.png", "deeper/c.jpg", "caf\udce9.png")]
    (tmp_path / "p/deeper").mkdir(parents=True)
    for file in files:
        noise().save(file)
    first = read_headers(files)
    assert sorted(reads) == sorted(map(str, files))
    assert read_headers(files[::-1]) == first[::-1] and len(reads) == 4
    noise(31, 21).save(files[1])
    assert read_headers(files)[1].width == 31 and len(reads) == 5
    state = files[0].stat()
    os.utime(files[0], ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    read_headers(files[:2])  # of the same folder: what is known of the others is kept
    files[0].write_bytes(b"no image")
    assert read_headers(files)[0].fault and read_headers(files)[0].fault
    noise().save(files[0])
    assert read_headers(files)[0] == first[0]


def test_files_of_a_folder_that_are_gone_are_forgotten(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for file in files[:2]:
        noise().save(file)
    read_headers(files[:2])
    files[0].unlink()
    noise().save(files[2])
    read_headers(files[2:])
    assert sorted(json.loads(cache_file("headers", 1, str(tmp_path)).read_bytes())) == ["b.png", "c.png"]


@pytest.mark.parametrize(
    "damage",
    [b"", b'{"a.png": [1', b"[1, 2]", b'{"a.png": 3}', b'{"a.png": [1, 2, 3]}', b"[" * 100_000, b"\xff\xfe"],
)
def test_a_damaged_memory_is_none(tmp_path: Path, damage: bytes, reads: list[str]) -> None:
    noise().save(tmp_path / "a.png")
    cache_file("headers", 1, str(tmp_path)).write_bytes(damage)
    for _ in range(2):
        assert read_headers([tmp_path / "a.png"]) == [Header("PNG", 30, 20, "RGB")]
    assert len(reads) == 1


def test_without_a_place_to_remember_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, reads: list[str]
) -> None:
    noise().save(tmp_path / "a.png")
    monkeypatch.setattr(headers, "write_bytes", _no_space)
    monkeypatch.setattr(headers, "_SAID_FROM", 0.0)
    caplog.set_level("INFO")
    assert not read_headers([tmp_path / "a.png"])[0].fault
    assert [record.name for record in caplog.records] == ["davit.data.headers"] * 2  # not kept; how long it took
    monkeypatch.setattr(headers, "cache_file", _no_space)
    assert not read_headers([tmp_path / "a.png"])[0].fault
    assert len(reads) == 2


def _no_space(*args: object) -> Path:
    raise OSError(28, "No space left on device")


def test_an_end_that_a_camera_wrote_more_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found without decoding: thousands of images of one phone would take minutes."""
    noise().save(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes((tmp_path / "a.jpg").read_bytes() + bytes(3000))
    looked_at: list[object] = []
    decode: Callable[..., Any] = lambda file: looked_at.append(file)  # noqa: E731
    monkeypatch.setattr(headers, "load_rgb", decode)
    assert read_headers([tmp_path / "b.jpg"])[0].kind == "JPEG" and not looked_at


def test_arrays_and_tiffs_of_many_bands_have_headers(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    bands = np.zeros((20, 30, 6), dtype=np.uint16)
    np.save(tmp_path / "a.npy", bands)
    tifffile.imwrite(tmp_path / "b.tif", bands, planarconfig="contig", photometric="minisblack")
    np.save(tmp_path / "c.npy", np.zeros(5))
    array, tiff, line = read_headers([tmp_path / name for name in ("a.npy", "b.tif", "c.npy")])
    assert [(one.kind, one.width, one.height, one.fault) for one in (array, tiff)] == [
        ("NPY", 30, 20, ""),
        ("TIFF", 30, 20, ""),
    ]
    assert line.fault
