"""Load images in MMDetection and MMSegmentation as the rest of this package does: one decoder for all readers.

Importing this module puts `LoadImageFromFile` in the place of mmcv's transform of that name, in every config.
"""

from __future__ import annotations

import functools
import io
import logging
from collections.abc import Sequence
from typing import Any

import cv2
import mmcv
import mmcv.transforms
import numpy as np
from mmengine import fileio
from mmengine.registry import TRANSFORMS
from numpy.typing import NDArray
from PIL import Image

from ..data import BadImageError, DataError, Decoding, load_picture
from ..data.decode import Stored, as_shown, load_stored

log = logging.getLogger(__name__)

_BANDS = {"color": 3, "grayscale": 1, "unchanged": None}
_CV2_TYPES = (np.uint8, np.uint16, np.float32)  # that the transforms of mmcv take


class LoadImageFromFile(mmcv.transforms.LoadImageFromFile):
    """Load an image by `davit.data.decode`: upright, whatever its format, and with transparency on white.

    `img` is BGR of 8 bits (H, W, 3); with ``bands`` other than 3, or a ``color_type`` other than color, the bands in
    the order of the file, (H, W, C), or (H, W) where there is one.

    Args:
        color_type: "color", "grayscale", or "unchanged": the values as the file stores them, such as 0 to 65535 for
            16 bits. The other two scale values of more than 8 bits to 0..255.
        bands: how many are read. The tools of this project set it to the ``in_chans`` of the model's backbone.
        bit_depth, percentiles: what becomes 0 and 255 of values of more than 8 bits, as in `Decoding`; also with
            "unchanged".
        to_float32, ignore_empty, backend_args, file_client_args: as mmcv has them.
        imdecode_backend: without effect, as the content of a file says how it is decoded.

    Raises:
        ValueError: a wrong argument.
    """

    def __init__(
        self,
        to_float32: bool = False,
        color_type: str = "color",
        imdecode_backend: str = "cv2",
        file_client_args: dict[str, Any] | None = None,
        ignore_empty: bool = False,
        *,
        backend_args: dict[str, Any] | None = None,
        bands: int | None = None,
        bit_depth: int | None = None,
        percentiles: Sequence[float] | None = None,
    ) -> None:
        super().__init__(
            to_float32, color_type, imdecode_backend, file_client_args, ignore_empty, backend_args=backend_args
        )
        if color_type not in _BANDS:
            raise ValueError(
                f"LoadImageFromFile(color_type={color_type!r}) is not one of {', '.join(_BANDS)}; images are always "
                "turned upright, as EXIF says."
            )
        if color_type == "grayscale" and bands not in (None, 1):
            raise ValueError(f"LoadImageFromFile(color_type='grayscale') reads one band, and the model takes {bands}.")
        if imdecode_backend not in ("cv2", None):
            _say_backend(imdecode_backend)
        self.bands = bands or _BANDS[color_type]
        self.decoding = Decoding.asked_for(self.bands or 3, {"bit_depth": bit_depth, "percentiles": percentiles})
        self.as_stored = color_type == "unchanged" and self.decoding == Decoding(self.decoding.bands)

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Set ``img``, ``img_shape`` and ``ori_shape`` (height and width of the upright image) by ``img_path``.

        Raises:
            DataError: the file is no such image; with ``ignore_empty`` None comes back.
        """
        file = str(results["img_path"])
        try:
            img = self.read(self._fetch(file), file)
        except BadImageError as error:
            if self.ignore_empty:
                return None
            raise DataError(
                f"{error.file}: {error.reason}. Repair the file, or take it out of the data set."
            ) from error
        except OSError:
            if self.ignore_empty:
                return None
            raise
        results["img"] = img.astype(np.float32) if self.to_float32 else img
        results["img_shape"] = results["ori_shape"] = img.shape[:2]
        return results

    def _fetch(self, file: str) -> Stored:
        """Return what to decode: the path itself, or the bytes that a storage backend has under it."""
        if self.file_client_args is not None:
            return io.BytesIO(fileio.FileClient.infer_client(self.file_client_args, file).get(file))
        if self.backend_args is not None or "://" in file:
            return io.BytesIO(fileio.get(file, backend_args=self.backend_args))
        return file

    def read(self, stored: Stored, name: str | None = None) -> NDArray[Any]:
        """Decode an image as ``img``.

        Raises:
            BadImageError: it cannot be read, or has another number of bands.
        """
        if self.as_stored:
            pixels = load_stored(stored, name, self.bands)
            if pixels.dtype not in _CV2_TYPES:
                pixels = pixels.astype(np.uint8 if pixels.dtype == bool else np.float32)
        else:
            decoding = self.decoding
            if self.bands is None:  # unchanged but for the scale
                decoding = self._with_bands(load_stored(stored, name).shape[2])
            pixels = np.asarray(load_picture(stored, name, decoding=decoding))
        if pixels.shape[2] == 3:
            return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))
        return np.ascontiguousarray(pixels if pixels.shape[2] > 1 else pixels[..., 0])

    def _with_bands(self, bands: int) -> Decoding:
        return Decoding(bands, self.decoding.bit_depth, self.decoding.percentiles)

    def shown(self, stored: Stored, name: str | None = None) -> Image.Image:
        """Decode an image to be looked at: in colours, or of other bands the first three, or the first as grey."""
        bands = self.bands or load_stored(stored, name).shape[2]
        return as_shown(load_picture(stored, name, decoding=self._with_bands(bands)))


def loader_of(dataset: Any) -> LoadImageFromFile:
    """Return the step by which a built data set loads its images, to load them in the same way elsewhere."""
    steps = dataset.pipeline.transforms
    return next((step for step in steps if isinstance(step, LoadImageFromFile)), LoadImageFromFile())


@functools.cache  # once a process
def _say_backend(name: str) -> None:
    log.warning("imdecode_backend=%r has no effect: the content of a file says how it is decoded.", name)


def install_loading() -> None:
    """Put `LoadImageFromFile` in the place of mmcv's, by name and by class, in all configs read from now on."""
    TRANSFORMS.register_module(name="LoadImageFromFile", module=LoadImageFromFile, force=True)
    for module in (mmcv, mmcv.transforms, mmcv.transforms.loading):
        module.LoadImageFromFile = LoadImageFromFile


install_loading()
