"""Turn files into pixels, in one way for every reader: 8-bit RGB, or as many bands as are asked for.

`load_picture`, with `load_rgb` for RGB alone and `load_stored` for values as they are in the file, is the only place
of the package that decodes. What is no readable image becomes a `BadImageError`.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from PIL.ExifTags import Base as ExifTag

from ..files import open_regular
from .errors import BadImageError, require
from .samples import (
    Array,
    UnfitPictureError,
    is_deep_colour,
    is_misread,
    lacks_bands,
    other_bands,
    raw_mode,
    read_array,
    read_deep_colour,
    read_tiff,
)

# Raster decoders only. Pillow's full list would let a file with an image's name start Ghostscript (EPS).
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "HEIF")

# Errors of opening and reading that belong to the one file; any other errno (EIO, EMFILE, ESTALE, ...) is the
# machine's. Pillow's own have none. EINVAL is a place before the file's begin, which a damaged file may point to.
FILE_ERRNOS = {
    None,
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG),
    *(errno.ENXIO, errno.ENODEV, errno.EINVAL, errno.EOVERFLOW, errno.EFBIG, errno.EILSEQ, errno.ENOTSUP),
}

# An image before decoding: a path, an open file, one that a library has opened already, or its values.
Stored: TypeAlias = str | Path | BinaryIO | Image.Image | NDArray[Any]

# A decoded image: of three bands Pillow's RGB, of another number an array (H, W, C) in units of 0 to 255, which is
# uint8 where the file stores 8 bits or fewer, else float32 and not rounded.
Pixels: TypeAlias = Image.Image | NDArray[Any]

# (width, height of the upright image, whether its decoder can scale) -> 1, 2, 4 or 8: decode at one over it.
Reduction = Callable[[int, int, bool], int]

# EXIF orientation -> what makes the image upright; 1 is upright (EXIF 2.3, tag 0x0112).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

SIDEWAYS = (5, 6, 7, 8)
_SCALABLE = ("JPEG", "MPO")  # decoders that leave out the fine frequencies

_WHITE_IS_ZERO, _SIGNED = 0, 2  # values of TIFF's tags
_GREY = np.array([19595, 38470, 7471]) / 65536  # what red, green and blue add to grey (ITU-R 601, as Pillow has it)
_AT_ONCE = 2**20  # values that are scaled at once
_SMALL_SHARE = 0.3  # of the range of 16 bits, which 14 bits and fewer stay below


@dataclass(frozen=True)
class Decoding:
    """Say what becomes of the values that a file stores.

    Attributes:
        bands: 3 for RGB; another number for arrays of so many bands. The one band of a coloured image is its grey.
        bit_depth: values stored with more than 8 bits, whole or real, are divided by 2^bit_depth - 1, and cut off at 0
            and 1. None divides by the range of the stored type, which for 16 bits is 65535.
        percentiles: instead of `bit_depth`, the two percentiles of each image, over all its bands, that become 0
            and 1.

    Images of 8 bits and fewer stay as they are, whatever `bit_depth` and `percentiles` say.
    """

    bands: int = 3
    bit_depth: int | None = None
    percentiles: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        require(self.bands >= 1, "in_chans", self.bands, "a number of bands, 1 or more")
        require(self.bit_depth is None or 1 <= self.bit_depth <= 32, "bit_depth", self.bit_depth, "1 to 32 bits")
        if self.percentiles is not None:
            given = tuple(map(float, self.percentiles))
            is_range = len(given) == 2 and 0 <= given[0] < given[1] <= 100
            require(is_range, "percentiles", list(given), "two numbers from 0 to 100, the smaller first")
            require(self.bit_depth is None, "bit_depth", self.bit_depth, "left out where `percentiles` are given")
            object.__setattr__(self, "percentiles", given)

    @classmethod
    def asked_for(cls, bands: int, *sources: Mapping[str, Any]) -> Decoding:
        """Take the rule of the first of `sources` that says one: flags, then what a checkpoint notes."""
        for source in sources:
            bit_depth, percentiles = source.get("bit_depth"), source.get("percentiles")
            if bit_depth is not None or percentiles:
                return cls(bands, bit_depth, percentiles or None)
        return cls(bands)

    def __str__(self) -> str:
        if self.percentiles is not None:
            return f"percentiles {self.percentiles[0]:g} to {self.percentiles[1]:g} of each image"
        return "the range of the stored type" if self.bit_depth is None else f"{self.bit_depth} bits"


RGB = Decoding()


def load_rgb(
    source: Stored, name: str | None = None, reduction: Reduction | None = None, decoding: Decoding = RGB
) -> Image.Image:
    """Read an image as `load_picture` does, as 8-bit RGB whatever the number of bands of `decoding`."""
    image = load_picture(source, name, reduction, replace(decoding, bands=3))
    assert isinstance(image, Image.Image)
    return image


def load_picture(
    source: Stored, name: str | None = None, reduction: Reduction | None = None, decoding: Decoding = RGB
) -> Pixels:
    """Read the image in `source`, upright; of an animation the first frame.

    `reduction` is asked once the size is known and before any pixel is decoded. A JPEG is then decoded at the
    fraction that it answers, or at the next larger one where its sides are no multiples; every other format at its
    full size.
    `name` stands for the file in errors; by default the path. Raises `BadImageError` for a file that is not a whole
    image of these bands, and `OSError` with the file's name when the machine failed rather than the file.
    """
    return _guarded(source, name, lambda: _decode(source, reduction, decoding))


def load_stored(source: Stored, name: str | None = None, bands: int | None = None) -> NDArray[Any]:
    """Read an image's values as the file stores them, upright: (H, W, C) of the file's own type.

    `bands` is the number expected, None whatever there is. A palette becomes its colours; and as 1 or 3 bands,
    transparency of 8 bits lies on white. Errors are those of `load_picture`.
    """
    return _guarded(source, name, lambda: _stored(source, bands))


def _guarded(source: Stored, name: str | None, read: Callable[[], Any]) -> Any:
    """Read, and make one error of all that a file can cause."""
    if name is None:
        name = str(source if isinstance(source, str | Path) else getattr(source, "name", "a stream"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return read()
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged input
        if isinstance(error, OSError) and error.errno not in FILE_ERRNOS:
            raise OSError(error.errno, error.strerror, name) from error
        raise BadImageError.of(name, reason_of(error, source)) from error


def _decode(source: Stored, reduction: Reduction | None, decoding: Decoding) -> Pixels:
    with _opened(source) as (opened, raw):
        if isinstance(opened, Image.Image):
            if reduction is not None:
                _reduce(opened, reduction)
            if decoding == RGB and not is_misread(opened, raw):
                return to_rgb(opened)
        return _values(opened, raw, source, decoding.bands).scaled(decoding)


def _stored(source: Stored, bands: int | None) -> NDArray[Any]:
    with _opened(source) as (opened, raw):
        return _values(opened, raw, source, bands).pixels


@contextlib.contextmanager
def _opened(source: Stored) -> Iterator[tuple[Image.Image | Array, str]]:
    """Open an image by Pillow, with its `raw_mode`, or read its values where Pillow does not know the format."""
    if isinstance(source, np.ndarray):
        yield Array(source), ""
    elif isinstance(source, Image.Image):
        yield source, ""
    else:
        is_path = isinstance(source, str | Path)
        with open_regular(source) if is_path else contextlib.nullcontext(source) as stream:  # type: ignore[arg-type]
            try:
                image = Image.open(stream, formats=readable_formats())
            except UnidentifiedImageError:
                if (array := read_array(stream)) is None:
                    raise
                yield array, ""
            else:
                with image:
                    yield image, raw_mode(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an opened image to 8-bit RGB, upright; the image itself where it is that already.

    Transparency is composited on white: that is the page such images are drawn for, while dropping alpha
    would show the colours hidden beneath it. Greyscale of more than 8 bits is scaled by the range of its
    type, not clipped.
    """
    image.load()
    orientation = orientation_of(image)
    if _is_deep_grey(image):
        scaled = _deep_grey(image).scaled(RGB)
        assert isinstance(scaled, Image.Image)
        return scaled
    if image.has_transparency_data:
        rgba = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        page = Image.new("RGBA", rgba.size, "white")
        rgb = Image.alpha_composite(page, rgba).convert("RGB")
    else:
        rgb = image if image.mode == "RGB" else image.convert("RGB")
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


def as_shown(pixels: Pixels) -> Image.Image:
    """Make an image to look at: RGB as it is, of more bands the first three, of fewer the first as grey."""
    if isinstance(pixels, Image.Image):
        return pixels
    bands = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., [0, 0, 0]]
    return Image.fromarray(np.ascontiguousarray(np.rint(bands).clip(0, 255).astype(np.uint8)))


@functools.cache
def readable_formats() -> list[str]:
    """List those of `_FORMATS` that can be read here: WebP, AVIF, JPEG 2000 are build options, HEIF a package."""
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def orientation_of(image: Image.Image) -> int:
    """Return EXIF's orientation of an opened image; 1, upright, where there is none."""
    try:
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # which Pillow turns as it loads, and then drops the tag
            return int(image.tag_v2.get(ExifTag.Orientation, 1))
        return int(image.getexif().get(ExifTag.Orientation, 1))
    except Exception:  # a damaged EXIF block says nothing about the pixels, which are whole
        return 1


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return the width and the height that an opened image has once it is turned as EXIF says."""
    width, height = image.size
    is_turned = orientation_of(image) in SIDEWAYS and image.format != "TIFF"  # whose size Pillow gives upright
    return (height, width) if is_turned else (width, height)


def _reduce(image: Image.Image, reduction: Reduction) -> None:
    factor = reduction(*upright_size(image), image.format in _SCALABLE)
    if factor > 1 and image.format in _SCALABLE:
        image.draft(image.mode, (-(-image.width // factor), -(-image.height // factor)))


# ---- values of any type, and their way to 0..255 ----


@dataclass(frozen=True)
class _Values:
    """The values of an image, upright.

    Attributes:
        pixels: (H, W, C) of the stored type.
        limits: what is black and white; None leaves it to the type.
        opacity: (H, W, 1), 0 to 1, where there is transparency to be laid on white.
        is_inverted: white is zero.
    """

    pixels: NDArray[Any]
    limits: tuple[float, float] | None = None
    opacity: NDArray[np.float64] | None = None
    is_inverted: bool = False

    def upright(self, orientation: int) -> _Values:
        opacity = None if self.opacity is None else _turned(self.opacity, orientation)
        return replace(self, pixels=_turned(self.pixels, orientation), opacity=opacity)

    def scaled(self, decoding: Decoding) -> Pixels:
        """Scale to 0..255 and to the number of bands that is asked for."""
        eight = self.pixels
        if eight.dtype != np.uint8:
            low, high = self._range(decoding)
            rows, columns, bands = self.pixels.shape
            is_made_grey = decoding.bands == 1 and bands == 3
            shape = (rows, columns, 1 if is_made_grey else bands)
            eight = np.empty(shape, np.uint8 if decoding.bands == 3 else np.float32)
            several = max(1, _AT_ONCE // max(1, columns * bands))  # eight bytes a value: not for all of them at once
            for start in range(0, rows, several):
                here = slice(start, start + several)
                share = ((self.pixels[here].astype(np.float64) - low) / (high - low or 1.0)).clip(0, 1)
                if self.is_inverted:
                    share = 1.0 - share  # Pillow inverts such images only up to 8 bits
                if self.opacity is not None:
                    share = share * self.opacity[here] + (1.0 - self.opacity[here])
                if is_made_grey:
                    share = share @ _GREY[:, None]
                eight[here] = np.rint(share * 255) if decoding.bands == 3 else 255 * share
        if decoding.bands != 3:
            return eight
        if eight.shape[2] == 1:
            return Image.fromarray(eight[..., 0]).convert("RGB")
        return Image.fromarray(np.ascontiguousarray(eight))

    def _range(self, decoding: Decoding) -> tuple[float, float]:
        """Find what becomes 0 and 1.

        Real numbers, and integers of 64 bits, have no range of their own: values within 0..1, 0..255 and 0..65535 are
        taken for these scales, any other image is stretched from its minimum to its maximum.
        """
        pixels = self.pixels
        if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
            raise ValueError("float image with NaN or infinite pixels")
        if decoding.percentiles is not None:
            low, high = np.percentile(pixels, decoding.percentiles)
            return float(low), float(high)
        if decoding.bit_depth is not None:
            return 0.0, 2.0**decoding.bit_depth - 1
        if self.limits is not None:
            return self.limits
        if pixels.dtype.kind == "b":
            return 0.0, 1.0
        if pixels.dtype.kind in "ui" and pixels.dtype.itemsize <= 4:
            limits = np.iinfo(pixels.dtype)
            return float(limits.min), float(limits.max)
        low, high = float(pixels.min()), float(pixels.max())
        if low >= 0 and high <= 65535:
            return 0.0, next(scale for scale in (1.0, 255.0, 65535.0) if high <= scale)
        return low, high


def _values(opened: Image.Image | Array, raw: str, source: Stored, bands: int | None) -> _Values:
    """Read the values of an opened image, for so many bands; None for as many as it stores.

    Raises:
        UnfitPictureError: it has another number of bands.
    """
    if isinstance(opened, Array):
        return _of_array(opened, bands)
    image = opened
    can_reopen = not isinstance(source, Image.Image | np.ndarray)
    if can_reopen and (is_misread(image, raw) or lacks_bands(image, raw, bands)):
        return _of_array(read_tiff(source), bands)  # type: ignore[arg-type]
    if _is_deep_grey(image):
        image.load()
        values = _deep_grey(image)
    elif is_deep_colour(raw) and not (image.mode == "CMYK" and bands in (1, 3)):
        pixels = read_deep_colour(image, raw, source)  # type: ignore[arg-type]
        opacity = None
        if bands in (1, 3) and pixels.shape[2] in (2, 4):
            pixels, opacity = pixels[..., :-1], pixels[..., -1:] / 65535.0
        values = _Values(pixels, opacity=opacity).upright(orientation_of(image))
    else:
        return _Values(_eight_bits(image, bands))
    _check_bands(values.pixels, bands, image.mode)
    return values


def _of_array(array: Array, bands: int | None) -> _Values:
    if bands in (1, 3):
        is_grey = array.values.ndim == 2 or (bands == 1 and 3 not in array.values.shape)
        pixels = array.arranged((1 if is_grey else 3) if "S" not in array.axes else None)
    else:
        pixels = array.arranged(bands)
    _check_bands(pixels, bands)
    limits = (0.0, 2.0**array.bits - 1) if array.bits else None
    values = _Values(pixels, limits).upright(array.orientation)
    if bands == 1 and pixels.shape[2] == 3 and pixels.dtype == np.uint8:
        return replace(values, pixels=np.asarray(Image.fromarray(values.pixels).convert("L"))[..., None])
    return values


def _check_bands(pixels: NDArray[Any], bands: int | None, kind: str = "") -> None:
    found = pixels.shape[2]
    if bands is not None and found != bands and not (bands in (1, 3) and found in (1, 3)):
        raise UnfitPictureError(other_bands(found, bands, kind))


def _is_deep_grey(image: Image.Image) -> bool:
    return image.mode.startswith("I") or image.mode == "F"


def _deep_grey(image: Image.Image) -> _Values:
    """Take the values of a loaded greyscale image of 16 bits, 32 bits or real numbers.

    The range of integers is that of the stored type, by TIFF's BitsPerSample and SampleFormat; 16 bits unsigned
    elsewhere.
    """
    tags: Any = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    stored, limits = np.asarray(image), None
    if image.mode != "F":
        bits = int(tags.get(ExifTag.BitsPerSample, (16,))[0])
        signed = tags.get(ExifTag.SampleFormat, (1,))[0] == _SIGNED
        if bits == 32 and not signed:
            stored = stored.view(np.uint32)  # Pillow keeps unsigned 32-bit values in signed memory
        limits = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    opacity = None
    if isinstance(transparent := image.info.get("transparency"), int):
        opacity = (stored != transparent)[..., None].astype(np.float64)
    is_inverted = tags.get(ExifTag.PhotometricInterpretation) == _WHITE_IS_ZERO
    return _Values(stored[..., None], limits, opacity, is_inverted).upright(orientation_of(image))


def _eight_bits(image: Image.Image, bands: int | None) -> NDArray[np.uint8]:
    """Convert an opened image of at most 8 bits to (H, W, C), upright."""
    if bands == 3:
        return np.asarray(to_rgb(image))
    if bands == 1:
        return np.asarray(to_rgb(image).convert("L"))[..., None]
    image.load()  # which turns a TIFF
    orientation = orientation_of(image)
    mode = {"1": "L", "La": "LA", "RGBa": "RGBA", "RGBX": "RGB"}.get(image.mode, image.mode)
    if mode not in ("L", "LA", "RGB", "RGBA", "CMYK"):
        mode = "RGBA" if image.has_transparency_data else "RGB"
    if image.has_transparency_data and mode in ("L", "RGB") and bands == len(mode) + 1:
        mode += "A"  # a transparent colour, which then is a band
    plain = image if image.mode == mode else image.convert(mode)
    pixels = np.atleast_3d(np.asarray(plain))
    _check_bands(pixels, bands, image.mode)
    return _turned(pixels, orientation)


def _turned(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Make (H, W, C) upright."""
    if orientation not in _UPRIGHT:
        return pixels
    height, width, bands = pixels.shape
    places = Image.fromarray(np.arange(height * width, dtype=np.int32).reshape(height, width))
    return pixels.reshape(-1, bands)[np.asarray(places.transpose(_UPRIGHT[orientation]))]


# ---- how much of their range images use ----


@dataclass(frozen=True)
class UsedRange:
    """What part of its range a set of images of more than 8 bits uses.

    Attributes:
        pictures: whole numbers of more than 8 bits, among those that were looked at.
        bits: of their type.
        low, high: their smallest and their largest value.
    """

    pictures: int
    bits: int
    low: int
    high: int

    @property
    def share(self) -> float:
        """The largest value over the largest that the type can hold."""
        return self.high / (2**self.bits - 1)

    @property
    def bit_depth(self) -> int:
        """The number of bits that the largest value needs, for `Decoding`."""
        return max(1, self.high.bit_length())

    @property
    def is_small(self) -> bool:
        """Tell whether images scaled by the range of their type are nearly black."""
        return self.share < _SMALL_SHARE

    def __str__(self) -> str:
        return f"{self.pictures:,} images of {self.bits} bits hold values of {self.low:,} to {self.high:,}"


def used_range(files: Sequence[str | Path]) -> UsedRange | None:
    """Find which values images of more than 8 bits hold; None where none of the files is one.

    Only such images are decoded. Files that cannot be read, signed numbers and real ones do not count.
    """
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        found = [one for one in pool.map(_extremes, files) if one is not None]
    if not found:
        return None
    bits, low, high = zip(*found, strict=True)
    return UsedRange(len(found), max(bits), min(low), max(high))


def _extremes(file: str | Path) -> tuple[int, int, int] | None:
    """Return the bits of an image's type, its smallest and its largest value; None for one that does not count."""

    def read() -> tuple[int, int, int] | None:
        with _opened(file) as (opened, raw):
            if isinstance(opened, Image.Image):
                if not (_is_deep_grey(opened) or is_deep_colour(raw) or is_misread(opened, raw)):
                    return None
            values = _values(opened, raw, file, None)
        pixels = values.pixels
        if pixels.dtype.kind not in "ui" or pixels.dtype.itemsize == 1 or (values.limits and values.limits[0] < 0):
            return None
        if pixels.dtype.kind == "i" and int(pixels.min()) < 0:
            return None
        bits = int(values.limits[1] + 1).bit_length() - 1 if values.limits else 8 * pixels.dtype.itemsize
        return min(bits, 32), int(pixels.min()), int(pixels.max())

    try:
        return _guarded(file, None, read)
    except (BadImageError, OSError):
        return None


def reason_of(error: Exception, source: Stored) -> str:
    """Say why a file could not be read, in words for its owner."""
    if isinstance(error, FileNotFoundError):
        return "no such file (a broken link?)"
    if isinstance(error, OSError) and error.errno is not None:
        return str(error.strerror)
    if isinstance(error, UnfitPictureError):
        return str(error)
    if isinstance(error, MemoryError):
        return "decoding it takes more memory than there is"
    if isinstance(error, UnidentifiedImageError):
        assert not isinstance(source, Image.Image | np.ndarray)
        size = Path(source).stat().st_size if isinstance(source, str | Path) else source.seek(0, os.SEEK_END)
        return "not an image of a known format" if size else "empty file (0 bytes)"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"decompression bomb, over {Image.MAX_IMAGE_PIXELS} pixels"
    return f"damaged image ({error})" if str(error) else f"damaged image ({type(error).__name__})"
