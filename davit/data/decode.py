"""Open pictures: every readable kind becomes 8-bit RGB, everything else a `BadImageError`.

`load_rgb` and `to_rgb` are the only places of the package that turn a file into pixels.
"""

from __future__ import annotations

import errno
import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base as ExifTag

from .errors import BadImageError

# Raster decoders only. Pillow's full list would let a file with a picture's name start Ghostscript (EPS).
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")

# Errors of opening that belong to the one file; any other errno (EIO, EMFILE, ESTALE, ...) is the machine's.
# Pillow's own have none.
_FILE_ERRNOS = {None, errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP}

# A picture before decoding: a path, an open file, or one that a library has opened already.
Stored: TypeAlias = str | Path | BinaryIO | Image.Image

# (width, height of the upright picture, whether its decoder can scale) -> 1, 2, 4 or 8: decode at one over it.
Reduction = Callable[[int, int, bool], int]

# EXIF orientation -> what makes the picture upright; 1 is upright (EXIF 2.3, tag 0x0112).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_SIDEWAYS = (5, 6, 7, 8)
_SCALABLE = ("JPEG", "MPO")  # decoders that leave out the fine frequencies

_WHITE_IS_ZERO, _SIGNED = 0, 2  # values of TIFF's tags


def load_rgb(source: Stored, name: str | None = None, reduction: Reduction | None = None) -> Image.Image:
    """Read the picture in `source`, upright, as 8-bit RGB; of an animation the first frame.

    `reduction` is asked once the size is known and before any pixel is decoded. A JPEG is then decoded at the
    fraction that it answers, or at the next larger one where its sides are no multiples; every other format at its
    full size.
    `name` stands for the file in errors; by default the path. Raises `BadImageError` for a file that is
    not a whole picture, and `OSError` with the file's name when the machine failed rather than the file.
    """
    name = name or str(source if isinstance(source, str | Path) else getattr(source, "name", "a stream"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if isinstance(source, Image.Image):
                return to_rgb(source)
            with Image.open(source, formats=_formats()) as image:
                if reduction is not None:
                    _reduce(image, reduction)
                return to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly every type on damaged input
        if isinstance(error, OSError) and error.errno not in _FILE_ERRNOS:
            raise OSError(error.errno, error.strerror, name) from error
        raise BadImageError.of(name, _reason(error, source)) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an opened picture to 8-bit RGB, upright; the picture itself where it is that already.

    Transparency is composited on white: that is the page such pictures are drawn for, while dropping alpha
    would show the colours hidden beneath it. Greyscale of more than 8 bits is scaled by the range of its
    type, not clipped (see `_scale_grey`).
    """
    image.load()
    orientation = _orientation(image)
    if image.mode.startswith("I") or image.mode == "F":
        rgb = _scale_grey(image).convert("RGB")
    elif image.has_transparency_data:
        rgba = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        page = Image.new("RGBA", rgba.size, "white")
        rgb = Image.alpha_composite(page, rgba).convert("RGB")
    else:
        rgb = image if image.mode == "RGB" else image.convert("RGB")
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


@functools.cache
def _formats() -> list[str]:
    """List those of `_FORMATS` that the installed Pillow has (WebP, AVIF, JPEG 2000 are build options)."""
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTag.Orientation, 1))
    except Exception:  # a damaged EXIF block says nothing about the pixels, which are whole
        return 1


def _reduce(image: Image.Image, reduction: Reduction) -> None:
    width, height = image.size
    if _orientation(image) in _SIDEWAYS:
        width, height = height, width
    factor = reduction(width, height, image.format in _SCALABLE)
    if factor > 1 and image.format in _SCALABLE:
        image.draft(image.mode, (-(-image.width // factor), -(-image.height // factor)))


def _scale_grey(image: Image.Image) -> Image.Image:
    """Scale a 16-bit, 32-bit or float picture to 8-bit greyscale.

    Integers are scaled so that the range of the stored type (of TIFF's BitsPerSample and SampleFormat; 16 bit
    unsigned elsewhere) becomes 0..255. Floats have no range of their own: values within 0..1, 0..255 and
    0..65535 are taken for these scales, any other picture is stretched from its minimum to its maximum.
    """
    tags: Any = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    stored = np.asarray(image)
    if image.mode == "F":
        if not np.isfinite(stored).all():
            raise ValueError("float picture with NaN or infinite pixels")
        low, high = float(stored.min()), float(stored.max())
        if low >= 0 and high <= 65535:
            low, high = 0.0, next(scale for scale in (1.0, 255.0, 65535.0) if high <= scale)
    else:
        bits = int(tags.get(ExifTag.BitsPerSample, (16,))[0])
        signed = tags.get(ExifTag.SampleFormat, (1,))[0] == _SIGNED
        if bits == 32 and not signed:
            stored = stored.view(np.uint32)  # Pillow keeps unsigned 32-bit values in signed memory
        low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)
    share = (stored.astype(np.float64) - low) / (high - low or 1.0)
    if tags.get(ExifTag.PhotometricInterpretation) == _WHITE_IS_ZERO:
        share = 1.0 - share  # Pillow inverts such pictures only up to 8 bits
    if isinstance(transparent := image.info.get("transparency"), int):
        share = np.where(stored == transparent, 1.0, share)  # white, as in `to_rgb`
    return Image.fromarray(np.rint(share * 255).clip(0, 255).astype(np.uint8))


def _reason(error: Exception, source: Stored) -> str:
    """Say why a file could not be read, in words for its owner."""
    if isinstance(error, FileNotFoundError):
        return "no such file (a broken link?)"
    if isinstance(error, OSError) and error.errno is not None:
        return str(error.strerror)
    if isinstance(error, UnidentifiedImageError):
        assert not isinstance(source, Image.Image)
        size = Path(source).stat().st_size if isinstance(source, str | Path) else source.seek(0, os.SEEK_END)
        return "not a picture of a known format" if size else "empty file (0 bytes)"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"decompression bomb, over {Image.MAX_IMAGE_PIXELS} pixels"
    return f"damaged picture ({error})" if str(error) else f"damaged picture ({type(error).__name__})"
