"""Read the values that a file stores where Pillow cannot: arrays of NumPy, TIFFs of many bands, colours of 16 bits."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, TiffImagePlugin
from PIL.ExifTags import Base as ExifTag

from ..files import open_regular
from ..text import install_extra

_NPY, _TIFF = b"\x93NUMPY", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_HEAD = 12  # bytes that tell the kinds above

_MOST = 4  # values of an array, as a multiple of the pixels that Pillow opens
_UNKNOWN = "Q"  # tifffile's letter for an axis of which the file says nothing


class UnfitPictureError(ValueError):
    """A file that is sound, and not what is to be read: the message says how, as the reason of a `BadImageError`."""


@dataclass(frozen=True)
class Array:
    """Values as a file stores them.

    Attributes:
        values: of two or three axes.
        axes: for each axis Y (rows), X (columns), S (bands) or `_UNKNOWN`; empty where nothing is known.
        orientation: EXIF's.
        bits: of an unsigned value, where they are fewer than its type has; else 0.
    """

    values: NDArray[Any]
    axes: str = ""
    orientation: int = 1
    bits: int = 0

    def upright_size(self) -> tuple[int, int, int]:
        """Return the width, the height and the bands of the upright image."""
        height, width, bands = self.arranged(None).shape
        return (height, width, bands) if self.orientation in (5, 6, 7, 8) else (width, height, bands)

    def arranged(self, bands: int | None) -> NDArray[Any]:
        """Return the values as (H, W, C), for `bands` bands; None takes the number that the file has.

        Raises:
            UnfitPictureError: the shape has no such number of bands, or does not tell which axis they are on.
        """
        values, shape = self.values, self.values.shape
        if values.ndim == 2:
            values = values[:, :, None]
        elif values.ndim != 3 or 0 in shape:
            raise UnfitPictureError(f"an array of shape {shape}; an image has rows, columns and bands")
        elif "S" in self.axes:
            values = np.moveaxis(values, self.axes.index("S"), 2)
        else:
            fits = [axis for axis in (0, 2) if (shape[axis] == bands if bands else shape[axis] < min(shape[1], 64))]
            if bands is None and len(fits) == 2:
                fits = [axis for axis in fits if shape[axis] == min(shape)]
            if len(fits) != 1:
                wanted = "a number of bands" if bands is None else f"{bands} bands"
                problem = "has none" if not fits else "may mean two things"
                few = min(shape[0], shape[2])
                offer = "" if fits or few == bands or few >= 64 else f"; `in_chans={few}` reads it"
                raise UnfitPictureError(
                    f"an array of shape {shape}, which {problem} with {wanted}; (rows, columns, bands) is understood, "
                    f"and (bands, rows, columns){offer}"
                )
            values = np.moveaxis(values, fits[0], 2)
        if bands is not None and values.shape[2] != bands:
            raise UnfitPictureError(other_bands(values.shape[2], bands))
        return values


def other_bands(found: int, wanted: int, kind: str = "") -> str:
    """Say that an image has another number of bands than is to be read."""
    of_kind = f" ({kind})" if kind else ""
    return (
        f"{found} band{'s' if found > 1 else ''}{of_kind}, where {wanted} {'are' if wanted > 1 else 'is'} read; "
        f"`in_chans={found}` reads {'them all' if found > 1 else 'it'}"
    )


def read_array(source: str | Path | BinaryIO, header_only: bool = False) -> Array | None:
    """Read a file of NumPy's (.npy), or a TIFF by tifffile; None for a file that is neither, by its content.

    With `header_only` the values are zeros that take no memory, of the shape and type that the header says.

    Raises:
        UnfitPictureError: a package is missing, or the array is no image.
    """
    with _stream(source) as stream:
        head = stream.read(_HEAD)
        stream.seek(0)
        if head.startswith(_NPY):
            return Array(_read_npy(stream, header_only))
        if head.startswith(_TIFF):
            return _read_tiff(stream, header_only)
        if head[4:8] == b"ftyp" and head[8:12] in _HEIF:
            raise UnfitPictureError(f"a HEIC image, which pillow-heif reads: {install_extra('heif')}")
        if head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"avis"):
            raise UnfitPictureError("an AVIF image, which Pillow 11.3 and later read: pip install -U pillow")
    return None


def read_tiff(source: str | Path | BinaryIO) -> Array:
    """Read the first image of a TIFF by tifffile, with all its bands.

    Raises:
        UnfitPictureError: tifffile, or what unpacks this kind of TIFF, is not installed.
    """
    with _stream(source) as stream:
        stream.seek(0)
        return _read_tiff(stream)


@contextlib.contextmanager
def _stream(source: str | Path | BinaryIO) -> Iterator[BinaryIO]:
    if isinstance(source, str | Path):
        with open_regular(source) as stream:
            yield stream
    else:
        source.seek(0)
        yield source


def _read_npy(stream: BinaryIO, header_only: bool = False) -> NDArray[Any]:
    version = npy.read_magic(stream)
    shape, _, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(stream)
    if dtype.hasobject or dtype.kind not in "buif":
        raise UnfitPictureError(f"an array of {dtype}; whole or real numbers are read")
    _check_size(shape)
    if header_only:
        return np.broadcast_to(np.zeros((), dtype), shape)
    data = stream.read()
    count = int(np.prod(shape, dtype=np.int64))
    if len(data) < count * dtype.itemsize:
        raise ValueError("the file ends before its array")
    stream.seek(0)
    return np.asarray(npy.read_array(stream, allow_pickle=False))


def _read_tiff(stream: BinaryIO, header_only: bool = False) -> Array:
    try:
        import tifffile
    except ImportError as error:
        raise UnfitPictureError(
            "a TIFF of many bands, or of colours of more than 8 bits, which tifffile reads: " + install_extra("bands")
        ) from error
    with tifffile.TiffFile(stream) as file:
        page: Any = file.pages[0]
        series = file.series[0]
        whole = series if len(series.shape) <= 3 and not page.is_reduced else page
        if "S" in page.axes and len(page.shape) == 3:
            whole = page  # of several images in one file the first
        _check_size(whole.shape)
        try:
            values = np.broadcast_to(np.zeros((), whole.dtype), whole.shape) if header_only else whole.asarray()
        except ValueError as error:
            if "imagecodecs" in str(error):
                reason = f"a TIFF whose compression needs imagecodecs ({error}): {install_extra('bands')}"
                raise UnfitPictureError(reason) from error
            raise
        tag = page.tags.get(int(ExifTag.Orientation))
        axes = str(whole.axes) if "S" in whole.axes else ""
        bits = page.bitspersample if values.dtype.kind == "u" and page.bitspersample < 8 * values.itemsize else 0
        return Array(np.asarray(values), axes, int(tag.value) if tag is not None else 1, bits)


def _check_size(shape: tuple[int, ...]) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and int(np.prod(shape, dtype=np.float64)) > _MOST * limit:
        raise Image.DecompressionBombError(f"an array of shape {shape}")


# ---- colours of 16 bits, of which Pillow keeps the upper 8 ----

# raw modes of Pillow's -> those that read the other byte of each value
_OTHER_BYTE = {
    f"{mode};16{order}": f"{mode};16{other}"
    for mode in ("RGB", "RGBA", "CMYK", "RGBX")
    for order, other in (("B", "L"), ("L", "B"), ("N", "B"))
}


def raw_mode(image: Image.Image) -> str:
    """Return how Pillow unpacks an image that was just opened; "" for formats and images where that says nothing.

    It is to be asked before anything else, as reading a PNG's EXIF decodes the image.
    """
    if not isinstance(image, PngImagePlugin.PngImageFile | TiffImagePlugin.TiffImageFile) or not image.tile:
        return ""
    args = image.tile[0].args
    return str(args[0] if isinstance(args, tuple) else args)


def is_misread(image: Image.Image, raw: str) -> bool:
    """Tell whether Pillow opens a TIFF wrongly: colours of 16 bits, each on a plane of its own and not packed."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    bits = image.tag_v2.get(ExifTag.BitsPerSample, (8,))
    return len(bits) > 1 and max(bits) > 8 and raw in ("R", "C")


def lacks_bands(image: Image.Image, raw: str, bands: int | None) -> bool:
    """Tell whether Pillow opens a TIFF with other bands than `bands`, or with fewer than it has where that is None."""
    if bands in (1, 3) or not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    there = len(image.getbands())
    if bands is None:
        return there < image.tag_v2.get(ExifTag.SamplesPerPixel, 1)
    return there != bands or raw.startswith("RGBa")  # which Pillow divides by its alpha


def is_deep_colour(raw: str) -> bool:
    """Tell whether an image of this raw mode stores several bands of 16 bits."""
    return raw == "LA;16B" or raw in _OTHER_BYTE


def read_deep_colour(image: Image.Image, raw: str, source: str | Path | BinaryIO) -> NDArray[np.uint16]:
    """Read the colours of 16 bits of an opened image, as (H, W, C), by decoding the two bytes of a value apart.

    Args:
        image: as it was opened; it is decoded here.
        raw: its `raw_mode`.
        source: where it is stored, to be opened again.
    """
    with _stream(source) as stream:
        data = stream.read()
    with Image.open(io.BytesIO(data), formats=[image.format or ""]) as again:
        if raw == "LA;16B":  # four bytes a pixel, read as they are
            _set_raw_mode(again, "RGBA")
            bytes_HWB = np.asarray(again)
            high, low = bytes_HWB[..., 0::2], bytes_HWB[..., 1::2]
        else:
            _set_raw_mode(again, _OTHER_BYTE[raw])
            high, low = np.asarray(image), np.asarray(again)
    return (high.astype(np.uint16) << 8) | low


def _set_raw_mode(image: Any, raw: str) -> None:
    image.tile = [
        tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw) for tile in image.tile
    ]
