"""Let detectors and segmentors take images of any number of bands, with a mean and a std for each."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import ImgDataPreprocessor

log = logging.getLogger(__name__)

_LOADER = "LoadImageFromFile"
_OF_RGB = ("PhotoMetricDistortion", "YOLOXHSVRandomAug", "RGB2Gray", "CLAHE")  # transforms that take colours alone

_mmengines_init, _mmengines_forward = ImgDataPreprocessor.__init__, ImgDataPreprocessor.forward


def _init(self: Any, mean: Any = None, std: Any = None, *args: Any, **kwargs: Any) -> None:
    """Do what mmengine does, which takes means of 1 or 3 values, for any number of them."""
    bands = len(mean) if isinstance(mean, Sequence) else 0
    if bands in (0, 1, 3) or std is None:
        _mmengines_init(self, mean, std, *args, **kwargs)
        return
    if len(std) != bands:
        raise ValueError(f"data_preprocessor has {bands} means and {len(std)} stds (mean, std): give as many.")
    _mmengines_init(self, None, None, *args, **kwargs)
    self._enable_normalize = True
    for name, values in (("mean", mean), ("std", std)):
        self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1), False)


def _forward(self: Any, data: dict[str, Any], training: bool = False) -> Any:
    """Do what mmengine does, and leave the order of bands alone where there are not three."""
    asked = self._channel_conversion
    self._channel_conversion = asked and data["inputs"][0].shape[-3] == 3
    try:
        return _mmengines_forward(self, data, training)
    finally:
        self._channel_conversion = asked


def install_bands() -> None:
    """Give mmengine's preprocessor, and with it mmdet's and mmseg's, a mean and std for each of any bands."""
    ImgDataPreprocessor.__init__, ImgDataPreprocessor.forward = _init, _forward


install_bands()


def follow_bands(cfg: Config) -> None:
    """Let a config's images have as many bands as the backbone takes (``in_chans``), in all of its pipelines.

    Transforms of colours are left out for other than three bands, which is logged.

    Raises:
        ValueError: the preprocessor has means for another number of bands.
    """
    backbone = cfg.model.get("backbone") or {}
    bands = int(backbone.get("in_chans", backbone.get("in_channels", 3)) or 3)
    for step in _steps(cfg._cfg_dict):
        if _name(step) == _LOADER and (bands != 3 or step.get("color_type") == "unchanged"):
            step.setdefault("bands", bands)
    if bands == 3:
        return
    left_out = _leave_out_colours(cfg._cfg_dict)
    if left_out:
        log.warning("Images have %d bands: %s left out, for colours alone.", bands, " and ".join(sorted(left_out)))
    preprocessor = cfg.model.get("data_preprocessor") or {}
    for name in ("mean", "std"):
        values = preprocessor.get(name)
        if isinstance(values, Sequence) and len(values) not in (1, bands):
            numbers = ",".join(["..."] * bands)
            raise ValueError(
                f"model.data_preprocessor.{name} has {len(values)} values for images of {bands} bands "
                f"(model.backbone.in_chans): pass --cfg-options model.data_preprocessor.{name}=[{numbers}], or "
                "set both mean and std to None."
            )


def _name(step: Any) -> str:
    """Return the name of a transform without its library, whether the config names it or holds its class."""
    kind = step.get("type", "")
    return kind.rpartition(".")[2] if isinstance(kind, str) else str(getattr(kind, "__name__", ""))


def _steps(part: Any) -> Iterator[Any]:
    """Find all dictionaries with a type inside a config."""
    if isinstance(part, dict):
        if "type" in part:
            yield part
        part = list(part.values())
    if isinstance(part, list | tuple):
        for inner in part:
            yield from _steps(inner)


def _leave_out_colours(part: Any) -> set[str]:
    """Take the transforms of colours out of all lists of a config; return their names."""
    found: set[str] = set()
    if isinstance(part, list):
        names = {_name(step) for step in part if isinstance(step, dict)} & {*_OF_RGB}
        part[:] = [step for step in part if not (isinstance(step, dict) and _name(step) in _OF_RGB)]
        found |= names
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list | tuple) else ():
        found |= _leave_out_colours(inner)
    return found
