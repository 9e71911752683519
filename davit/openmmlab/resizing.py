"""Let images become no larger in MMDetection and MMSegmentation than in the rest of this package.

Importing this module puts functions that ask `davit.data.limits` in the place of mmcv's that resize, by which all
transforms of mmcv, mmdet and mmseg do it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import mmcv
import mmcv.image
import mmcv.transforms
from mmcv.image import geometric
from numpy.typing import NDArray

from ..data import BadImageError
from ..data.limits import require_room
from ..data.samples import UnfitPictureError
from ..text import as_line

_imresize = geometric.imresize


def imresize(img: NDArray[Any], size: tuple[int, int], *rest: Any, **more: Any) -> Any:
    """Resize to a width and height as mmcv does.

    Raises:
        UnfitPictureError: that is too large for an image of this size, or without pixels.
    """
    before = (img.shape[1], img.shape[0])
    require_room(before, size, asked=before)
    return _imresize(img, size, *rest, **more)


def imrescale(
    img: NDArray[Any],
    scale: float | tuple[int, int],
    return_scale: bool = False,
    interpolation: str = "bilinear",
    backend: str | None = None,
) -> Any:
    """Resize by a factor, or to fit into a width and height in any order, as mmcv does.

    Raises:
        UnfitPictureError: what comes of it is too large for what is asked, or without pixels.
    """
    before = (img.shape[1], img.shape[0])
    size, factor = geometric.rescale_size(before, scale, return_scale=True)
    require_room(before, size, asked=scale if isinstance(scale, tuple) else before)
    resized = _imresize(img, size, interpolation=interpolation, backend=backend)
    return (resized, factor) if return_scale else resized


def _naming(resize: Callable[[Any, dict[str, Any]], None]) -> Callable[[Any, dict[str, Any]], None]:
    """Let a transform name the image that it cannot resize."""

    @functools.wraps(resize)
    def named(self: Any, results: dict[str, Any]) -> None:
        try:
            resize(self, results)
        except UnfitPictureError as error:
            file, reason = str(results.get("img_path") or "an image"), str(error)
            message = f"{as_line(file)}: {reason}. Take it out of the data set, or resize to another scale."
            raise BadImageError(message, file=file, reason=reason) from error

    return named


def install_resizing() -> None:
    """Put the functions in the place of mmcv's, once."""
    if geometric.imresize is imresize:
        return
    for module in (mmcv, mmcv.image, geometric):
        module.imresize, module.imrescale = imresize, imrescale
    mmcv.transforms.Resize._resize_img = _naming(mmcv.transforms.Resize._resize_img)


install_resizing()
