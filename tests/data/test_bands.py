"""Values of more than 8 bits, and images of other than three bands: how they are decoded and augmented."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from davit.data import BadImageError, Decoding, eval_transform, load_picture, load_rgb, save_images, train_transform
from davit.data.dataset import PictureDataset
from davit.data.decode import _UPRIGHT, as_shown, load_stored, used_range
from davit.data.folder import FolderSource
from davit.data.loader import Batch
from davit.data.samples import read_array
from davit.data.transforms import AUTO_AUGMENT
from davit.seeding import seeded

tifffile = pytest.importorskip("tifffile")

SMOOTH = np.dstack([*np.meshgrid(np.arange(0, 256, 4), np.arange(0, 256, 8)), np.full((32, 64), 99)])
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)  # 12 bits
NOISE = np.random.default_rng(0).integers(0, 65536, (7, 9, 4), dtype=np.uint16)


def deep_png(values: np.ndarray) -> bytes:
    """A PNG of 16 bits and 1 to 4 bands, which Pillow does not write."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, bands = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[bands], 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(values: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **options)
    return stream.getvalue()


def npy(values: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def read(data: bytes, bands: int = 3, **rule: Any) -> np.ndarray:
    return np.asarray(load_picture(io.BytesIO(data), decoding=Decoding(bands, **rule)))


# -- values of more than 8 bits


def test_twelve_bits_in_sixteen(tmp_path: Path):
    Image.fromarray(RAMP).save(tmp_path / "a.png")
    assert np.asarray(load_rgb(tmp_path / "a.png")).max() == 16
    grey = np.asarray(load_rgb(tmp_path / "a.png", decoding=Decoding(bit_depth=12)))[..., 0]
    assert (grey.max(), len(np.unique(grey))) == (255, 256)
    assert (grey == np.rint(RAMP / 4095 * 255)).all()
    cut = np.asarray(load_rgb(tmp_path / "a.png", decoding=Decoding(percentiles=(25, 75))))[..., 0]
    assert (cut[RAMP <= 1023] == 0).all() and (cut[RAMP >= 3072] == 255).all() and len(np.unique(cut)) == 256


@pytest.mark.parametrize(
    ("data", "values"),
    [
        (deep_png(NOISE[..., :3] >> 4), NOISE[..., :3] >> 4),
        (deep_png(NOISE[..., :1] >> 4), NOISE[..., [0, 0, 0]] >> 4),
        (tiff(NOISE[..., :3] >> 4, photometric="rgb"), NOISE[..., :3] >> 4),
        (tiff(NOISE[..., :3] >> 4, photometric="rgb", compression="zlib", byteorder=">"), NOISE[..., :3] >> 4),
        (
            tiff((NOISE[..., :3] >> 4).transpose(2, 0, 1), photometric="rgb", planarconfig="separate"),
            NOISE[..., :3] >> 4,
        ),
        (npy(NOISE[..., :3] >> 4), NOISE[..., :3] >> 4),
        (tiff((NOISE[..., 0] >> 4).astype(np.float32)), NOISE[..., [0, 0, 0]] >> 4),
        (tiff((NOISE[..., 0] >> 4).astype(np.int32)), NOISE[..., [0, 0, 0]] >> 4),
    ],
    ids=["rgb.png", "grey.png", "rgb.tif", "packed.tif", "planes.tif", "rgb.npy", "float.tif", "int32.tif"],
)
def test_a_bit_depth_scales_every_kind_of_more_than_8_bits(data: bytes, values: np.ndarray):
    assert (read(data, bit_depth=12) == np.rint(values / 4095 * 255)).all()
    is_grey = (values[..., 0] == values[..., 1]).all()
    low, high = np.percentile(values[..., 0] if is_grey else values, (10, 90))
    stretched = np.rint(((values - low) / (high - low)).clip(0, 1) * 255)
    assert (read(data, percentiles=(10, 90)) == stretched).all()


def test_pictures_of_8_bits_do_not_follow_a_rule(tmp_path: Path):
    eight = (NOISE[..., :3] >> 12).astype(np.uint8)
    Image.fromarray(eight).save(tmp_path / "a.png")
    for rule in ({"bit_depth": 4}, {"percentiles": (1, 99)}):
        assert (np.asarray(load_rgb(tmp_path / "a.png", decoding=Decoding(**rule))) == eight).all()


def test_planes_of_16_bits_are_read_right_without_a_rule():
    """Pillow reads each plane as if it had 8 bits."""
    planes = tiff(NOISE[..., :3].transpose(2, 0, 1), photometric="rgb", planarconfig="separate")
    assert (read(planes) == np.rint(NOISE[..., :3] / 65535 * 255)).all()


def test_transparency_of_16_bits_lies_on_white():
    opacity = NOISE[..., 3:] / 65535
    expected = np.rint(255 * ((NOISE[..., :3] / 4095).clip(0, 1) * opacity + 1 - opacity))
    assert (read(deep_png(NOISE), bit_depth=12) == expected).all()
    grey = NOISE[..., [0, 3]]
    expected = 255 * ((grey[..., :1] / 65535) * opacity + 1 - opacity)
    assert np.abs(read(deep_png(grey), bands=1, bit_depth=16) - expected).max() < 1e-4


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        *(({"bit_depth": 0}, "`bit_depth=0`"), ({"bit_depth": 33}, "`bit_depth=33`"), ({"bands": 0}, "`in_chans=0`")),
        *(({"percentiles": (99, 1)}, "99"), ({"percentiles": (0, 101)}, "101"), ({"percentiles": (1,)}, "1.0")),
        ({"percentiles": (1, 99), "bit_depth": 12}, "`bit_depth=12`"),
    ],
)
def test_wrong_rules(wrong: dict[str, Any], named: str):
    with pytest.raises(ValueError) as caught:
        Decoding(**wrong)
    assert named in str(caught.value)


def test_the_first_source_with_a_rule_is_followed():
    noted = {"bit_depth": 12, "percentiles": None}
    assert Decoding.asked_for(3, {"bit_depth": None}, noted) == Decoding(bit_depth=12)
    assert Decoding.asked_for(3, {"percentiles": [1, 99]}, noted) == Decoding(percentiles=(1, 99))
    assert Decoding.asked_for(4, {}, {}) == Decoding(4)
    assert len({str(one) for one in (Decoding(), Decoding(bit_depth=12), Decoding(percentiles=(1, 99)))}) == 3


def test_the_range_that_pictures_use(tmp_path: Path):
    (tmp_path / "grey.png").write_bytes(deep_png(RAMP[..., None]))
    (tmp_path / "colour.png").write_bytes(deep_png((NOISE[..., :3] >> 5) + 7))
    (tmp_path / "grey.tif").write_bytes(tiff(RAMP + 5))
    (tmp_path / "bands.npy").write_bytes(npy(NOISE >> 6))
    (tmp_path / "real.tif").write_bytes(tiff(RAMP.astype(np.float32)))
    (tmp_path / "signed.tif").write_bytes(tiff(RAMP.astype(np.int16) - 9))
    (tmp_path / "broken.png").write_bytes(deep_png(RAMP[..., None])[:60])
    Image.fromarray(RAMP.astype(np.uint8)).save(tmp_path / "eight.png")
    names = ("grey.png", "colour.png", "grey.tif", "bands.npy", "real.tif", "signed.tif", "broken.png", "eight.png")
    found = used_range([tmp_path / name for name in names])
    assert found is not None
    assert (found.pictures, found.bits, found.low, found.high) == (4, 16, 0, 4100)
    assert (found.bit_depth, found.is_small, round(found.share, 3)) == (13, True, 0.063)
    assert "4,100" in str(found)
    assert used_range([tmp_path / "eight.png", tmp_path / "real.tif"]) is None
    (tmp_path / "whole.png").write_bytes(deep_png(NOISE[..., :1]))
    whole = used_range([tmp_path / "whole.png"])
    assert whole is not None and not whole.is_small and whole.bit_depth == 16


# -- other numbers of bands

EIGHT = (NOISE >> 8).astype(np.uint8)
REAL = (NOISE / 65535).astype(np.float32)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (deep_png(NOISE), NOISE / 65535 * 255),
        (deep_png(NOISE[..., :2]), NOISE[..., :2] / 65535 * 255),
        (tiff(EIGHT, photometric="rgb", extrasamples=["unassalpha"]), EIGHT),
        (tiff(EIGHT, photometric="rgb", extrasamples=["assocalpha"]), EIGHT),
        (tiff(EIGHT, photometric="rgb", extrasamples=["unspecified"]), EIGHT),
        (tiff(EIGHT, photometric="minisblack", planarconfig="contig"), EIGHT),
        (tiff(EIGHT.transpose(2, 0, 1), photometric="minisblack", planarconfig="separate"), EIGHT),
        (tiff(EIGHT.transpose(2, 0, 1), photometric="minisblack"), EIGHT),
        (tiff(NOISE, photometric="minisblack", planarconfig="contig", compression="zlib"), NOISE / 65535 * 255),
        (tiff(REAL, photometric="minisblack", planarconfig="contig"), REAL * 255),
        (tiff(np.dstack([NOISE, NOISE[..., :2]])), np.dstack([NOISE, NOISE[..., :2]]) / 65535 * 255),
        (npy(EIGHT), EIGHT),
        (npy(EIGHT.transpose(2, 0, 1)), EIGHT),
        (npy(REAL), REAL * 255),
        (npy(EIGHT.astype(np.int64)), EIGHT),
        (npy(EIGHT[..., :1] > 99), 255 * (EIGHT[..., :1] > 99)),
        (npy(EIGHT[..., 0]), EIGHT[..., :1]),
    ],
    ids=lambda value: "",
)
def test_bands_are_those_of_the_file(data: bytes, expected: np.ndarray):
    """In units of 0..255, in the order of the file; of 8 bits as they are, of more not rounded."""
    found = read(data, bands=expected.shape[2])
    assert found.shape == expected.shape and found.dtype in (np.uint8, np.float32)
    assert np.abs(found - expected).max() < 1e-3
    stored = load_stored(io.BytesIO(data), bands=expected.shape[2])
    assert stored.shape == expected.shape
    if expected.dtype == np.uint8 and stored.dtype == np.uint8:
        assert (stored == expected).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_bands_of_pillows_modes(mode: str, tmp_path: Path):
    picture = Image.fromarray(EIGHT[..., :3]).convert("RGBA" if mode in ("LA", "RGBA") else "RGB")
    if mode in ("LA", "RGBA"):
        picture.putalpha(Image.fromarray(EIGHT[..., 3]))
    picture = picture.convert(mode)
    file = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    picture.save(file)
    shown = picture.convert("RGB") if mode == "P" else picture.convert("L") if mode == "1" else picture
    bands = len(shown.getbands())
    expected = np.atleast_3d(np.asarray(shown))
    assert (np.asarray(load_stored(file)) == expected).all()
    if bands not in (1, 3):
        assert (np.asarray(load_picture(file, decoding=Decoding(bands))) == expected).all()
    grey = np.asarray(load_picture(file, decoding=Decoding(1)))
    assert (grey[..., 0] == np.asarray(load_rgb(file).convert("L"))).all()
    for wrong in {2, 4, 5} - {bands}:
        with pytest.raises(BadImageError) as caught:
            load_picture(file, decoding=Decoding(wrong))
        assert str(wrong) in caught.value.reason and "tifffile" not in caught.value.reason


def test_a_transparent_colour_is_a_fourth_band(tmp_path: Path):
    Image.fromarray(EIGHT[..., :3]).save(tmp_path / "a.png", transparency=tuple(EIGHT[0, 0, :3].tolist()))
    found = np.asarray(load_picture(tmp_path / "a.png", decoding=Decoding(4)))
    assert (found[..., :3] == EIGHT[..., :3]).all() and found[0, 0, 3] == 0 and found[1, 1, 3] == 255


@pytest.mark.parametrize(
    ("data", "bands", "said"),
    [
        (npy(np.zeros((4, 9, 4), np.uint8)), 4, "(4, 9, 4)"),
        *((npy(np.zeros((16, 16, 5), np.uint8)), 3, "in_chans=5"), (npy(np.zeros((7, 9, 8))), 3, "in_chans=7")),
        *((npy(np.zeros(5)), 3, "(5,)"), (npy(np.zeros((2, 5, 6))), 4, "(2, 5, 6)")),
        *((npy(np.zeros((5, 6), complex)), 1, "complex"), (npy(EIGHT)[:150], 4, "ends"), (npy(EIGHT), 3, "4")),
        (tiff(NOISE, photometric="minisblack", planarconfig="contig"), 3, "in_chans=4"),
        (tiff(np.dstack([NOISE, NOISE]), photometric="minisblack", planarconfig="contig"), 4, "in_chans=8"),
        (b"\0\0\0\x18ftypheix\0\0\0\0mif1heix", 3, ""),
        (b"\0\0\0\x18ftypavif\0\0\0\0mif1avif", 3, ""),
    ],
    ids=lambda value: "",
)
def test_unfit_files_are_named_with_what_they_are(data: bytes, bands: int, said: str):
    with pytest.raises(BadImageError) as caught:
        load_picture(io.BytesIO(data), "a file", decoding=Decoding(bands))
    assert caught.value.file == "a file" and said in caught.value.reason


def test_hostile_arrays_are_refused(monkeypatch: pytest.MonkeyPatch):
    """One with objects would run what it holds; one that claims to be huge would take all memory."""
    objects = io.BytesIO()
    np.save(objects, np.array([[print]], object), allow_pickle=True)
    head = npy(np.zeros((1, 1), np.uint8)).replace(b"(1, 1)", b"(9999999, 9999999)", 1)
    for data in (objects.getvalue(), head):
        with pytest.raises(BadImageError):
            load_picture(io.BytesIO(data), decoding=Decoding(4))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for data in (npy(NOISE), tiff(NOISE, photometric="minisblack", planarconfig="contig")):
        with pytest.raises(BadImageError, match="10"):
            load_picture(io.BytesIO(data), decoding=Decoding(4))


def test_without_the_packages(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(BadImageError, match=r"davit-torch\[bands\]"):
        read(tiff(NOISE, photometric="minisblack", planarconfig="contig"), bands=4)


def _as_turned(values: np.ndarray, orientation: int) -> np.ndarray:
    bands = [Image.fromarray(np.ascontiguousarray(values[..., band])) for band in range(values.shape[2])]
    return np.dstack([np.asarray(b.transpose(_UPRIGHT[orientation]) if orientation > 1 else b) for b in bands])


@pytest.mark.parametrize("orientation", [1, *_UPRIGHT])
def test_arrays_are_turned_as_pictures_are(orientation: int, tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(EIGHT).save(tmp_path / "a.png", exif=exif)
    upright = load_rgb(tmp_path / "a.png")
    found = np.asarray(load_picture(tmp_path / "a.png", decoding=Decoding(4)))
    assert found.shape[1::-1] == upright.size
    expected = Image.fromarray(EIGHT)
    if orientation > 1:
        expected = expected.transpose(_UPRIGHT[orientation])
    assert (found == np.asarray(expected)).all()
    Image.fromarray(EIGHT).save(tmp_path / "a.tif", exif=exif)
    assert (np.asarray(load_picture(tmp_path / "a.tif", decoding=Decoding(4))) == expected).all()
    assert load_rgb(tmp_path / "a.tif").size == upright.size
    Image.fromarray(EIGHT[..., 0]).save(tmp_path / "grey.tif", exif=exif)
    assert (np.asarray(load_rgb(tmp_path / "grey.tif")) == np.asarray(expected)[..., :1]).all()
    packed = tmp_path / "packed.tif"
    Image.fromarray(EIGHT).save(packed, exif=exif, compression="tiff_lzw")
    assert (np.asarray(load_picture(packed, decoding=Decoding(4))) == expected).all()
    asked: list[tuple[int, int, bool]] = []
    load_rgb(tmp_path / "a.tif", reduction=lambda *size: asked.append(size) or 1)
    assert asked == [(*upright.size, False)]
    deep = tiff(NOISE[..., :3], photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    assert (read(deep, bit_depth=16) == np.rint(_as_turned(NOISE[..., :3], orientation) / 65535 * 255)).all()
    turned = tiff(EIGHT, photometric="minisblack", planarconfig="contig", extratags=[(274, 3, 1, orientation, True)])
    assert (read(turned, bands=4) == found).all()


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (npy(EIGHT), (9, 7, 4)),
        (npy(EIGHT.transpose(2, 0, 1)), (9, 7, 4)),
        (npy(EIGHT[..., 0]), (9, 7, 1)),
        (tiff(EIGHT, photometric="minisblack", planarconfig="contig"), (9, 7, 4)),
        (tiff(EIGHT, photometric="rgb", extratags=[(274, 3, 1, 6, True)]), (7, 9, 4)),
        (tiff(NOISE.transpose(2, 0, 1)), (9, 7, 4)),
    ],
    ids=lambda value: "",
)
def test_headers_of_arrays(data: bytes, size: tuple[int, int, int]):
    """Width, height and bands, without reading the values."""
    found = read_array(io.BytesIO(data), header_only=True)
    assert found is not None and found.upright_size() == size and not found.values.any()
    assert read_array(io.BytesIO(b"neither")) is None


def test_heic_where_its_package_is(tmp_path: Path):
    heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = heif.from_pillow(Image.fromarray(SMOOTH.astype(np.uint8)))
    picture.save(tmp_path / "a.jpg", quality=95, exif=exif.tobytes(), format="HEIF")
    image = load_rgb(tmp_path / "a.jpg")
    assert image.size == (32, 64)
    assert np.abs(np.asarray(image).astype(int) - np.rot90(SMOOTH, -1)).mean() < 6


def test_avif_is_turned(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    try:
        Image.fromarray(SMOOTH.astype(np.uint8)).save(tmp_path / "a.avif", quality=95, exif=exif)
    except (OSError, KeyError, ValueError):
        pytest.skip("this Pillow does not write AVIF")
    image = load_rgb(tmp_path / "a.avif")
    assert image.size == (32, 64)
    assert np.abs(np.asarray(image).astype(int) - np.rot90(SMOOTH, -1)).mean() < 6


def test_what_is_shown_of_bands():
    assert (np.asarray(as_shown(EIGHT)) == EIGHT[..., :3]).all()
    assert (np.asarray(as_shown(EIGHT[..., :2])) == EIGHT[..., [0, 0, 0]]).all()
    assert (np.asarray(as_shown(np.float32(EIGHT) + 0.3)) == EIGHT[..., :3]).all()
    picture = Image.new("RGB", (3, 2))
    assert as_shown(picture) is picture


# -- transforms


def both_ways(bands: int, **options: Any) -> tuple[Any, Any]:
    """The transform of three bands, and that of another number of them with the same settings."""
    three = {"mean": (0.2, 0.3, 0.4), "std": (0.5, 0.6, 0.7)}
    other = {"mean": (0.2, 0.3, 0.4, 0.1)[:bands], "std": (0.5, 0.6, 0.7, 0.8)[:bands]}
    build = options.pop("build")
    size = options.pop("size")
    return build(img_size=size, **three, **options), build(img_size=(bands, *size), **other, **options)


@pytest.mark.parametrize("bands", [1, 2, 4])
@pytest.mark.parametrize(
    "options",
    [
        {"build": eval_transform, "size": (16, 20), "crop_mode": "center"},
        {"build": eval_transform, "size": (16, 16), "crop_mode": "squash", "interpolation": "bilinear"},
        {"build": eval_transform, "size": (16, 16), "crop_mode": "border", "crop_pct": 1.0},
        {"build": train_transform, "size": (16, 16), "no_aug": True},
        {"build": train_transform, "size": (16, 20), "aa": None, "color_jitter": None, "reprob": 0.0, "vflip": 0.5},
    ],
    ids=["center", "squash", "border", "no_aug", "augmented"],
)
def test_each_band_is_transformed_as_a_colour_is(bands: int, options: dict[str, Any]):
    """With the same random numbers, to the last bit."""
    picture = np.random.default_rng(1).integers(0, 256, (40, 29, 4), dtype=np.uint8)
    three, other = both_ways(bands, **options)
    for seed in range(5):
        with seeded(seed):
            expected = three(Image.fromarray(picture[..., :3]))
        with seeded(seed):
            found = other(np.ascontiguousarray(picture[..., :bands]))
        assert found.shape[0] == bands and found.dtype == torch.float32
        assert torch.equal(found[:3], expected[:bands])


def test_real_values_keep_their_precision_and_the_source_its_values():
    values = np.full((20, 20, 1), 100.25, np.float32)
    found = eval_transform(img_size=(1, 16, 16), mean=(0.0,), std=(1.0,))(values)
    torch.testing.assert_close(found, torch.full((1, 16, 16), 100.25 / 255))
    assert (values == 100.25).all()


def test_bands_are_erased():
    transform = train_transform(img_size=(4, 16, 16), mean=(0.0,) * 4, std=(1.0,) * 4, reprob=1.0, remode="const")
    with seeded(0):
        found = transform(np.full((20, 20, 4), 255, np.uint8))
    assert ((found == 0).any(0) == (found == 0).all(0)).all() and 0 < (found == 0).float().mean() < 0.5


def test_what_changes_colours_is_left_out_or_refused(caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "davit")
    four: dict[str, Any] = {"img_size": (4, 16, 16), "mean": (0.5,) * 4, "std": (0.5,) * 4}
    train_transform(**four)
    assert len(caplog.records) == 1
    train_transform(**four, aa="none", color_jitter=0.0)
    assert len(caplog.records) == 1
    for wrong in ({"aa": "augmix-m5-w4"}, {"color_jitter": 0.1}, {"aug_splits": 3, "aa": None}):
        (name, value), *_ = wrong.items()
        with pytest.raises(ValueError) as caught:
            train_transform(**four, **wrong)
        assert f"`{name}={value!r}`" in str(caught.value)
    assert AUTO_AUGMENT in str(train_transform.__kwdefaults__["aa"])
    for name in ("mean", "std"):
        with pytest.raises(ValueError, match=f"`{name}="):
            train_transform(**{**four, name: (0.5,) * 3})


def test_a_data_set_of_bands(tmp_path: Path):
    (tmp_path / "a").mkdir()
    for number, data in enumerate((npy(NOISE), deep_png(NOISE), tiff(NOISE, photometric="minisblack"))):
        (tmp_path / "a" / f"{number}.{('npy', 'png', 'tif')[number]}").write_bytes(data)
    dataset = PictureDataset(FolderSource(tmp_path), decoding=Decoding(4))
    first, *others = (np.asarray(dataset[index][0]) for index in range(len(dataset)))
    assert len(others) == 2 and all(np.array_equal(first, other) for other in others)
    large = np.random.default_rng(0).integers(0, 255, (400, 600), dtype=np.uint8)
    (tmp_path / "grey" / "b").mkdir(parents=True)
    Image.fromarray(large).save(tmp_path / "grey" / "b" / "a.jpg")
    one = {"img_size": (1, 32, 32), "mean": (0.0,), "std": (1.0,), "reprob": 0.0, "scale": (0.9, 1.0)}
    dataset = PictureDataset(FolderSource(tmp_path / "grey"), train_transform(**one), decoding=Decoding(1))
    with seeded(0):
        assert dataset[0][0].shape == (1, 32, 32)  # of a JPEG decoded at a fraction


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_a_batch_of_any_bands_is_drawn(bands: int, tmp_path: Path):
    batch = Batch(torch.rand(2, bands, 8, 8), torch.zeros(2), torch.zeros(2))
    save_images(batch, tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size == (16, 8)
