from __future__ import annotations

import errno
import io
import pickle
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageFile

from davit.data import BadImageError, load_rgb

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def smooth(width: int = 48, height: int = 32) -> np.ndarray:
    """A colour gradient, which JPEG keeps to within a few values."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


# What cannot be read


def _png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def _saved(kind: str, picture: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, kind)
    return stream.getvalue()


NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
JPEG = _saved("JPEG", NOISE)
BAD = {
    "empty": b"",
    "text": b"this is not an image\n" * 50,
    "html": b"<!DOCTYPE html><html>404</html>",
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    "bomb": _png_header(30_000, 30_000),
    "small bomb": _png_header(10_000, 10_000),  # Pillow only warns of this one
    "no pixels": _png_header(100, 100),
    "not finite": _saved("TIFF", np.array([[0.0, np.nan]], np.float32)),
    **{kind: _saved(kind, NOISE)[:1000] for kind in ("PNG", "TIFF", "WEBP", "BMP", "GIF")},
    **{f"JPEG cut at {end}": JPEG[:end] for end in (2, 10, 200, 1000, len(JPEG) // 2)},
}


@pytest.mark.parametrize("kind", BAD)
def test_unreadable_files_are_named_with_a_reason_and_a_remedy(kind: str, tmp_path: Path):
    file = tmp_path / "picture.jpg"
    file.write_bytes(BAD[kind])
    with pytest.raises(BadImageError, match="skip_bad_images=True") as caught:
        load_rgb(file)
    error = caught.value
    assert error.file == str(file) and str(file) in str(error)
    assert error.reason and error.reason in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (BadImageError, str(error), vars(error))
    with pytest.raises(BadImageError, match="member 7"):
        load_rgb(io.BytesIO(BAD[kind]), "member 7")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_reasons_tell_kinds_of_damage_apart():
    reasons = set()
    for kind in ("empty", "text", "bomb", "no pixels"):
        with pytest.raises(BadImageError) as caught:
            load_rgb(io.BytesIO(BAD[kind]))
        reasons.add(caught.value.reason)
    assert len(reasons) == 4


def test_a_missing_file_and_a_folder_are_bad_pictures_and_a_failing_machine_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for bad in (tmp_path / "gone.png", tmp_path):
        with pytest.raises(BadImageError, match=str(bad)):
            load_rgb(bad)

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Image, "open", fail)
    (tmp_path / "a.png").touch()
    with pytest.raises(OSError, match=r"a\.png") as caught:
        load_rgb(tmp_path / "a.png")
    assert caught.value.errno == errno.EIO


# What can be read is read right


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "ppm", "gif", "mpo"])
def test_a_picture_is_whole_and_needs_its_file_no_longer(suffix: str, tmp_path: Path):
    """It may be the opened one itself: then nothing but its pixels is left of that."""
    path = tmp_path / f"a.{suffix}"
    options = {"webp": {"quality": 95}, "jpg": {"quality": 95}, "mpo": {"quality": 95, "save_all": True}}
    Image.fromarray(smooth()).save(path, **options.get(suffix, {}))
    path.rename(tmp_path / "another.JPEG")  # the name does not matter
    before = len(list(Path("/proc/self/fd").iterdir()))
    image = load_rgb(tmp_path / "another.JPEG")
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    (tmp_path / "another.JPEG").unlink()
    assert np.abs(pixels(image) - smooth()).max() <= {"jpg": 12, "mpo": 12, "webp": 12, "gif": 60}.get(suffix, 0)
    assert (np.asarray(pickle.loads(pickle.dumps(image))) == np.asarray(image)).all()
    assert image.resize((7, 5)).size == (7, 5)


def palette(*colours: tuple[int, ...]) -> Image.Image:
    """One row, a pixel for each colour."""
    image = Image.new("P", (len(colours), 1))
    image.putpalette([value for colour in colours for value in colour])
    image.putdata(range(len(colours)))
    return image


def row(values: Any, dtype: Any = np.uint8) -> Image.Image:
    return Image.fromarray(np.array([values], dtype))


RGBA = row([(*RED, 255), (*BLUE, 0), (0, 0, 0, 51)])
ON_WHITE = [RED, WHITE, (204, 204, 204)]
GREY_16 = row([0, 256, 257, 1000, 32768, 65535], np.uint16)
READ_16 = [0, 1, 1, 4, 128, 255]
HALF = {"transparency": bytes([255, 0, 128])}
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
THEN_BLUE = {"save_all": True, "append_images": [row([BLUE])]}


@pytest.mark.parametrize(
    ("file", "image", "options", "expected"),
    [
        ("profile.png", row([RED]), {"icc_profile": PROFILE}, [RED]),
        ("four-colours.tif", row([RED, BLUE]).convert("CMYK"), {}, [RED, BLUE]),
        ("animation.gif", row([RED]), THEN_BLUE, [RED]),
        ("animation.webp", row([RED]), {"lossless": True, **THEN_BLUE}, [RED]),
        ("grey.png", row([0, 7, 255]), {}, [0, 7, 255]),
        ("bits.png", row([0, 255]).convert("1"), {}, [0, 255]),
        ("palette.png", palette(RED, BLUE), {}, [RED, BLUE]),
        ("entry.png", palette(RED, BLUE), {"transparency": 1}, [RED, WHITE]),
        ("entry.gif", palette(RED, BLUE), {"transparency": 1}, [RED, WHITE]),
        ("entries.png", palette(RED, BLUE, RED), HALF, [RED, WHITE, (255, 127, 127)]),
        ("alpha.png", RGBA, {}, ON_WHITE),
        ("alpha.tif", RGBA, {}, ON_WHITE),
        ("alpha.webp", RGBA, {"lossless": True}, ON_WHITE),
        ("grey-alpha.png", row([[10, 255], [10, 0]]), {}, [10, 255]),
        ("grey-key.png", row([7, 9]), {"transparency": 9}, [7, 255]),
        ("colour-key.png", row([RED, BLUE]), {"transparency": BLUE}, [RED, WHITE]),
        ("16-bit.png", GREY_16, {}, READ_16),
        ("16-bit.tif", GREY_16, {}, READ_16),
        ("16-bit.pgm", GREY_16, {}, READ_16),
        ("big-endian.tif", Image.frombytes("I;16B", (2, 1), b"\x80\0\xff\xff"), {}, [128, 255]),
        ("16-bit-key.png", row([0, 25700, 65535], np.uint16), {"transparency": 25700}, [0, 255, 255]),
        ("share.tif", row([0.0, 0.5, 1.0], np.float32), {}, [0, 128, 255]),
        ("8-bit-float.tif", row([0.0, 100.0, 255.0], np.float32), {}, [0, 100, 255]),
        ("16-bit-float.tif", row([0.0, 257.0, 65535.0], np.float32), {}, [0, 1, 255]),
        ("signed-float.tif", row([-2.0, 0.0, 2.0], np.float32), {}, [0, 128, 255]),
        ("flat-float.tif", row([7e6, 7e6, 7e6], np.float32), {}, [0, 0, 0]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_modes(file: str, image: Image.Image, options: dict[str, Any], expected: list[Any], tmp_path: Path):
    """Grey is grey, transparency lies on white, more than 8 bits are scaled, not clipped; the first frame counts."""
    image.save(tmp_path / file, **options)
    read = pixels(load_rgb(tmp_path / file))[0].tolist()
    assert read == [list(value) if isinstance(value, tuple) else [value] * 3 for value in expected]


@pytest.mark.parametrize(
    ("dtype", "photometric", "values", "expected"),
    [
        (np.int32, 1, [-(2**31), 0, 2**31 - 1], [0, 128, 255]),
        (np.uint32, 1, [0, 2**31, 2**32 - 1], [0, 128, 255]),
        (np.int16, 1, [-(2**15), 0, 2**15 - 1], [0, 128, 255]),
        (np.uint16, 0, [0, 65535], [255, 0]),  # white is zero
    ],
)
def test_integer_tiff_is_scaled_by_its_type(
    dtype: Any, photometric: int, values: list[int], expected: list[int], tmp_path: Path
):
    (tmp_path / "a.tif").write_bytes(_tiff(np.array([values], dtype), photometric))
    assert pixels(load_rgb(tmp_path / "a.tif"))[0, :, 0].tolist() == expected


def _tiff(values: np.ndarray, photometric: int) -> bytes:
    """A greyscale TIFF of any type, which Pillow reads but does not write."""
    height, width = values.shape
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    sample_format = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    bits = values.dtype.itemsize * 8
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1)]
    tags += [(278, height), (279, len(data)), (339, sample_format)]
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
    where = 8 + len(data)
    return b"II*\0" + struct.pack("<I", where) + data + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"


STORED = {  # what a camera held that way writes: the inverse of what makes the image upright
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}
SIDES = st.integers(1, 60)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@settings(deadline=None, max_examples=20, derandomize=True)
@given(SIDES, SIDES, st.sampled_from(sorted(STORED)), st.integers(0, 99))
def test_exif_orientation(kind: str, width: int, height: int, orientation: int, seed: int):
    upright = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(STORED[orientation](upright))).save(stream, kind, exif=exif, **options)
    assert np.abs(pixels(load_rgb(stream)) - upright).max() <= (8 if kind == "JPEG" else 0)
    if kind == "JPEG":  # its decoder can scale; the sides that it is asked by are the upright ones
        asked: list[tuple[int, int, bool]] = []
        load_rgb(stream, reduction=lambda *size: asked.append(size) or 4)
        assert asked == [(width, height, True)]
        reduced = load_rgb(stream, reduction=lambda *size: 4).size
        assert reduced == (width // 4, height // 4) or width % 4 or height % 4
        assert 4 * reduced[0] >= width and 4 * reduced[1] >= height
    else:
        assert load_rgb(stream, reduction=lambda *size: 4).size == (width, height)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_lose_the_picture(tmp_path: Path):
    Image.fromarray(smooth()).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", quality=98)
    assert np.abs(pixels(load_rgb(tmp_path / "a.jpg")) - smooth()).max() <= 12
