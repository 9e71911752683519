from __future__ import annotations

import errno
import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
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
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0"))
        + chunk(b"IEND", b"")
    )


def _truncated(kind: str) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, kind)
    return stream.getvalue()[: len(stream.getvalue()) // 2]


BAD = {
    "empty": (b"", "empty file"),
    "text": (b"this is not a picture\n" * 50, "not a picture"),
    "html": (b"<!DOCTYPE html><html>404</html>", "not a picture"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "not a picture"),
    "bomb": (_png_header(30_000, 30_000), "decompression bomb"),
    "small bomb": (_png_header(10_000, 10_000), "decompression bomb"),  # Pillow only warns of this one
    "no pixels": (_png_header(100, 100), "damaged"),
    "half a JPEG": (_truncated("JPEG"), "truncated"),
    "half a PNG": (_truncated("PNG"), "damaged"),
    "half a TIFF": (_truncated("TIFF"), "."),
    "half a WebP": (_truncated("WEBP"), "."),
    "half a BMP": (_truncated("BMP"), "."),
    "half a GIF": (_truncated("GIF"), "."),
}


@pytest.mark.parametrize("kind", BAD)
def test_unreadable_files_are_named_with_their_reason(kind: str, tmp_path: Path):
    data, reason = BAD[kind]
    file = tmp_path / "picture.jpg"
    file.write_bytes(data)
    with pytest.raises(BadImageError, match=reason) as caught:
        load_rgb(file)
    assert str(file) in str(caught.value)
    assert caught.value.file == str(file)
    assert "--skip-bad-images" in str(caught.value)
    with pytest.raises(BadImageError, match=reason):
        load_rgb(io.BytesIO(data), "member 7")


@pytest.mark.parametrize("cut", [2, 10, 200, 1000, 3000])
def test_a_jpeg_cut_anywhere_is_unreadable(cut: int, tmp_path: Path):
    file = tmp_path / "cut.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file)
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(BadImageError):
        load_rgb(file)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_a_missing_file_and_a_folder_are_bad_pictures(tmp_path: Path):
    with pytest.raises(BadImageError, match="no such file"):
        load_rgb(tmp_path / "gone.png")
    with pytest.raises(BadImageError, match="directory"):
        load_rgb(tmp_path)


def test_a_failing_machine_is_not_a_bad_picture(monkeypatch: pytest.MonkeyPatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(OSError, match=r"Input/output error: 'disk/a\.png'"):
        load_rgb("disk/a.png")


def test_the_error_survives_pickling():
    error = BadImageError.of("a/b.jpg", "empty file")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.file, again.reason) == (
        BadImageError,
        str(error),
        "a/b.jpg",
        "empty file",
    )


# What can be read is read right


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "ppm", "gif"])
def test_plain_colour(suffix: str, tmp_path: Path):
    image = Image.fromarray(smooth())
    image.save(tmp_path / f"a.{suffix}", **({"quality": 95} if suffix in ("jpg", "webp") else {}))
    tolerance = {"jpg": 12, "webp": 12, "gif": 60}.get(suffix, 0)
    assert np.abs(pixels(load_rgb(tmp_path / f"a.{suffix}")) - smooth()).max() <= tolerance


@pytest.mark.parametrize("mode", ["CMYK", "YCCK"])
def test_four_colour_jpeg(mode: str, tmp_path: Path):
    file = tmp_path / "a.jpg"
    Image.fromarray(smooth()).convert("CMYK").save(file, quality=98, subsampling=0)
    if mode == "YCCK":
        file.write_bytes(_as_ycck(smooth()))
    with Image.open(file) as image:
        assert image.mode == "CMYK"
    assert np.abs(pixels(load_rgb(file)) - smooth()).max() <= 25


def _as_ycck(rgb: np.ndarray) -> bytearray:
    """An Adobe YCCK JPEG: a four-channel JPEG whose Adobe marker says transform 2.

    Adobe stores inverted CMYK (0 is full ink). YCCK holds the YCbCr of its complement, the ink, and K
    as it is (libjpeg's documentation, "Special color spaces"; here without black ink, so 255).
    """
    ycc = np.asarray(Image.fromarray(255 - rgb).convert("YCbCr"))
    stored = np.dstack([ycc, np.full(ycc.shape[:2], 255, np.uint8)])
    stream = io.BytesIO()
    # Pillow inverts what it saves as CMYK, so that the stored values are the ones above.
    Image.fromarray(255 - stored, "CMYK").save(stream, "JPEG", quality=98, subsampling=0)
    data = bytearray(stream.getvalue())
    marker = data.index(b"Adobe")
    data[marker + 11] = 2  # APP14: "Adobe", version (2), flags (2 + 2), transform (1)
    return data


def test_grey_one_bit_and_palette(tmp_path: Path):
    grey = Image.fromarray(smooth()[..., 0])
    grey.save(tmp_path / "grey.png")
    assert (pixels(load_rgb(tmp_path / "grey.png")) == smooth()[..., :1]).all()
    grey.convert("1", dither=Image.Dither.NONE).save(tmp_path / "bits.png")
    assert (pixels(load_rgb(tmp_path / "bits.png")) == 255 * (smooth()[..., :1] >= 128)).all()
    flat = Image.new("P", (2, 1))
    flat.putpalette([*RED, *BLUE])
    flat.putpixel((1, 0), 1)
    flat.save(tmp_path / "palette.png")
    assert [tuple(p) for p in pixels(load_rgb(tmp_path / "palette.png"))[0]] == [RED, BLUE]


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_palette_with_a_transparent_entry_lies_on_white(suffix: str, tmp_path: Path):
    flat = Image.new("P", (2, 1))
    flat.putpalette([*RED, *BLUE])
    flat.putpixel((1, 0), 1)
    flat.save(tmp_path / f"a.{suffix}", transparency=1)
    assert [tuple(p) for p in pixels(load_rgb(tmp_path / f"a.{suffix}"))[0]] == [RED, WHITE]


def test_palette_with_many_transparencies(tmp_path: Path):
    flat = Image.new("P", (3, 1))
    flat.putpalette([*RED, *BLUE, *RED])
    flat.putdata([0, 1, 2])
    flat.save(tmp_path / "a.png", transparency=bytes([255, 0, 128]))
    assert [tuple(p) for p in pixels(load_rgb(tmp_path / "a.png"))[0]] == [RED, WHITE, (255, 127, 127)]


@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_alpha_lies_on_white(suffix: str, tmp_path: Path):
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0] = [(*RED, 255), (*BLUE, 0), (0, 0, 0, 51)]
    Image.fromarray(rgba).save(tmp_path / f"a.{suffix}", **({"lossless": True} if suffix == "webp" else {}))
    assert [tuple(p) for p in pixels(load_rgb(tmp_path / f"a.{suffix}"))[0]] == [RED, WHITE, (204, 204, 204)]


def test_grey_with_alpha_and_colour_keys(tmp_path: Path):
    Image.fromarray(np.array([[[10, 255], [10, 0]]], np.uint8), "LA").save(tmp_path / "la.png")
    assert pixels(load_rgb(tmp_path / "la.png"))[0, :, 0].tolist() == [10, 255]
    Image.fromarray(np.array([[7, 9]], np.uint8)).save(tmp_path / "key.png", transparency=9)
    assert pixels(load_rgb(tmp_path / "key.png"))[0, :, 0].tolist() == [7, 255]
    Image.fromarray(np.array([[RED, BLUE]], np.uint8)).save(tmp_path / "rgb.png", transparency=BLUE)
    assert [tuple(p) for p in pixels(load_rgb(tmp_path / "rgb.png"))[0]] == [RED, WHITE]


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm", "big-endian.tif"])
def test_sixteen_bit_grey_is_scaled_not_clipped(name: str, tmp_path: Path):
    values = np.array([[0, 256, 257, 1000, 32768, 65535]], np.uint16)
    if name.startswith("big"):
        Image.frombytes("I;16B", (6, 1), values.astype(">u2").tobytes()).save(tmp_path / name)
    else:
        Image.fromarray(values).save(tmp_path / name)
    read = pixels(load_rgb(tmp_path / name))
    assert read[0, :, 0].tolist() == [0, 1, 1, 4, 128, 255]
    assert (read == read[..., :1]).all()


def test_sixteen_bit_grey_with_a_colour_key(tmp_path: Path):
    Image.fromarray(np.array([[0, 25700, 65535]], np.uint16)).save(tmp_path / "a.png", transparency=25700)
    assert pixels(load_rgb(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        (np.int32, [-(2**31), 0, 2**31 - 1]),
        (np.uint32, [0, 2**31, 2**32 - 1]),
        (np.int16, [-(2**15), 0, 2**15 - 1]),
    ],
)
def test_integer_tiff_is_scaled_by_its_type(dtype: type, values: list[int], tmp_path: Path):
    (tmp_path / "a.tif").write_bytes(_tiff(np.array([values], dtype)))
    assert pixels(load_rgb(tmp_path / "a.tif"))[0, :, 0].tolist() == [0, 128, 255]


def _tiff(values: np.ndarray, photometric: int = 1) -> bytes:
    """A greyscale TIFF of any type, which Pillow reads but does not write."""
    height, width = values.shape
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    sample_format = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    bits = values.dtype.itemsize * 8
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1)]
    tags += [(278, height), (279, len(data)), (339, sample_format)]
    entries = b"".join(
        struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags
    )
    where = 8 + len(data)
    return b"II*\0" + struct.pack("<I", where) + data + struct.pack("<H", len(tags)) + entries + b"\0\0\0\0"


def test_inverted_sixteen_bit_tiff(tmp_path: Path):
    (tmp_path / "a.tif").write_bytes(_tiff(np.array([[0, 65535]], np.uint16), photometric=0))
    assert pixels(load_rgb(tmp_path / "a.tif"))[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.0, 255.0], [0, 100, 255]),
        ([0.0, 257.0, 65535.0], [0, 1, 255]),
        ([-2.0, 0.0, 2.0], [0, 128, 255]),
        ([7e6, 7e6, 7e6], [0, 0, 0]),
    ],
)
def test_float_tiff(values: list[float], expected: list[int], tmp_path: Path):
    Image.fromarray(np.array([values], np.float32)).save(tmp_path / "a.tif")
    assert pixels(load_rgb(tmp_path / "a.tif"))[0, :, 0].tolist() == expected


def test_float_tiff_that_is_not_finite_is_bad(tmp_path: Path):
    Image.fromarray(np.array([[0.0, np.nan]], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(BadImageError, match="NaN"):
        load_rgb(tmp_path / "a.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_orientation(orientation: int, suffix: str, tmp_path: Path):
    upright = smooth()
    # The stored picture is what a camera held that way writes: the inverse of what makes it upright.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 98} if suffix in ("jpg", "webp") else {}
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"a.{suffix}", exif=exif, **options)
    assert np.abs(pixels(load_rgb(tmp_path / f"a.{suffix}")) - upright).max() <= (12 if options else 0)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_does_not_lose_the_picture(tmp_path: Path):
    Image.fromarray(smooth()).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", quality=98)
    assert np.abs(pixels(load_rgb(tmp_path / "a.jpg")) - smooth()).max() <= 12


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_animation_gives_its_first_frame(suffix: str, tmp_path: Path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options)
    assert (pixels(load_rgb(tmp_path / f"a.{suffix}")) == RED).all()


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "ppm", "gif", "mpo"])
def test_a_picture_needs_its_file_no_longer(suffix: str, tmp_path: Path):
    """It may be the opened one itself: then nothing but its pixels is left of that."""
    paths = [tmp_path / f"{number}.{suffix}" for number in range(3)]
    for path in paths:
        Image.fromarray(smooth()).save(path, **({"save_all": True} if suffix == "mpo" else {}))
    before = len(list(Path("/proc/self/fd").iterdir()))
    images = [load_rgb(path) for path in paths]
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    for path in paths:
        path.unlink()
    assert all((pixels(image) == pixels(images[0])).all() for image in images)
    assert (np.asarray(pickle.loads(pickle.dumps(images[0]))) == np.asarray(images[0])).all()
    assert images[0].resize((7, 5)).size == (7, 5)


def test_a_picture_under_another_name(tmp_path: Path):
    Image.fromarray(smooth()).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.JPEG")
    assert (pixels(load_rgb(tmp_path / "a.JPEG")) == smooth()).all()


def test_colour_profile_is_no_obstacle(tmp_path: Path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(smooth()).save(tmp_path / "a.png", icc_profile=profile)
    assert (pixels(load_rgb(tmp_path / "a.png")) == smooth()).all()
