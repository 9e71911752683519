"""Measure the bands of a data set: the mean and the std that --mean and --std take, extremes and percentiles."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..limits import NUMBERS
from ..seeding import derive_seeds
from ..text import some
from .dataset import PictureDataset
from .decode import Decoding, Pixels
from .errors import require
from .loader import EvalLoader
from .source import Source

log = logging.getLogger(__name__)

PERCENTILES = (1, 50, 99)

_BINS = 4096  # from 0 to 1, in which percentiles are found
_AT_ONCE = 16  # images that a worker hands over together
_SAID_EVERY = 10.0  # seconds
_DARK = 0.3  # of the range: values of 14 bits in 16 stay below
_MOMENTS = 5  # in front of an image's bins: pixels, mean, sum of squares about it, smallest, largest
_LEAST_STD = NUMBERS["std"].least


@dataclass(frozen=True)
class BandStatistics:
    """Say which values the bands of decoded images have, before they are normalised: shares of 0 to 1.

    Attributes:
        decoding: with which the images were read.
        pictures, pixels: how many were measured; each pixel counts once, whatever the size of its image.
        listed: images that the data set has, of which a sample may have been taken.
        smallest, largest: sizes of images, (width, height).
        mean, std: of each band over all pixels; the std is that of all of them (numpy's ``ddof=0``).
        low, high: extremes of each band.
        percentiles: of each band, by the percentage, to 1/4095 of the range.
        bad: reasons of the images that could not be read, by file.
    """

    decoding: Decoding
    pictures: int
    pixels: int
    listed: int
    smallest: tuple[int, int]
    largest: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    percentiles: dict[int, tuple[float, ...]]
    bad: dict[str, str]

    @property
    def constant(self) -> list[int]:
        """The bands that have one value in all images; their std is given as 1, as 0 divides nothing."""
        return [band for band, std in enumerate(self.std) if std < _LEAST_STD]

    def recipe(self) -> dict[str, Any]:
        """Return the flags of train.py, by name, that read and normalise such images."""
        decoding = self.decoding
        scaling: dict[str, Any] = {} if decoding.bit_depth is None else {"bit_depth": decoding.bit_depth}
        if decoding.percentiles is not None:
            scaling = {"percentiles": list(decoding.percentiles)}
        std = [1.0 if band in self.constant else value for band, value in enumerate(self.std)]
        bands = {} if decoding.bands == 3 else {"in_chans": decoding.bands}
        return {**bands, **scaling, "mean": _rounded(self.mean), "std": _rounded(std)}

    def flags(self) -> str:
        """Write the recipe as words of a command line."""
        words = []
        for name, value in self.recipe().items():
            values = value if isinstance(value, list) else [value]
            words += [f"--{name.replace('_', '-')}", *(_plain(one) for one in values)]
        return " ".join(words)

    def yaml(self, about: str) -> str:
        """Write the recipe as a file for ``-c``, with what was measured as comments."""
        lines = [f"# {line}" for line in (about, *str(self).splitlines())]
        for name, value in self.recipe().items():
            text = f"[{', '.join(map(_plain, value))}]" if isinstance(value, list) else _plain(value)
            lines.append(f"{name}: {text}")
        return "\n".join(lines) + "\n"

    def json(self) -> str:
        """Write the recipe as JSON, which ``-c`` takes too."""
        return json.dumps(self.recipe(), indent=1) + "\n"

    def __str__(self) -> str:
        """Write a table with a line for each band."""
        (width, height), (most_width, most_height) = self.smallest, self.largest
        sizes = f"{width} x {height}" if self.smallest == self.largest else f"{width} x {height} to "
        sizes += "" if self.smallest == self.largest else f"{most_width} x {most_height}"
        count = f"{self.pictures:,}" + (f" of {self.listed:,}" if self.listed != self.pictures else "")
        names = [f"p{percentage}" for percentage in self.percentiles]
        columns = ["mean", "std", "min", *names, "max"]
        lines = [
            f"{count} images of {sizes} pixels, measured at these sizes, before any crop: {self.pixels:,} pixels a "
            "band.",
            f"Values are shares of 0 to 1; more than 8 bits are scaled by {self.decoding}.",
            "band " + "".join(f"{name:>11}" for name in columns),
        ]
        rows = zip(self.mean, self.std, self.low, *self.percentiles.values(), self.high, strict=True)
        lines += [f"{band:>4} " + "".join(f"{value:>11.6f}" for value in row) for band, row in enumerate(rows)]
        return "\n".join(lines)


def measure_bands(
    dataset: PictureDataset,
    decoding: Decoding,
    *,
    limit: int | None = None,
    seed: int = 0,
    workers: int = 0,
) -> BandStatistics:
    """Measure the images of a data set as training decodes them, at their own size.

    The result does not depend on `workers`, to the last bit. Constant bands, values that use little of their range,
    and images that cannot be read are warned of.

    Args:
        limit: measure so many images, drawn by `seed`; None for all.

    Raises:
        DataError: no image can be read; the message has the reason of the first.
    """
    require(limit is None or limit >= 1, "limit", limit, "a number of images, 1 or more")
    listed, source = len(dataset), dataset.source
    if limit is not None and limit < listed:
        draw = np.random.default_rng(derive_seeds(seed)[0])
        source = _Sample(source, np.sort(draw.choice(listed, limit, replace=False)))
    measured = PictureDataset(source, _measure, decoding=decoding)
    loader = EvalLoader(measured, batch_size=_AT_ONCE, workers=workers, skip_bad_images=True)
    total: NDArray[np.float64] | None = None
    sizes: list[tuple[int, int]] = []
    done, said = 0, time.monotonic()
    try:
        for batch in loader.batches():
            for picture in batch.images.numpy():  # (C, _MOMENTS + _BINS + 2)
                facts, (width, height) = picture[:, :-2], picture[0, -2:]
                sizes.append((int(width), int(height)))
                total = facts if total is None else _together(total, facts)
            done += len(batch.indices)
            if time.monotonic() - said >= _SAID_EVERY:
                said = time.monotonic()
                log.info("Measured %s of %s images.", f"{done:,}", f"{len(source):,}")
    finally:
        loader.close()
    assert total is not None  # else the loader has raised
    pixels, mean, squares, low, high = total[:, :_MOMENTS].T
    found = BandStatistics(
        decoding=decoding,
        pictures=len(sizes),
        pixels=int(pixels[0]),
        listed=listed,
        smallest=min(sizes, key=lambda size: size[0] * size[1]),
        largest=max(sizes, key=lambda size: size[0] * size[1]),
        mean=tuple(mean.tolist()),
        std=tuple(np.sqrt(squares / pixels).tolist()),
        low=tuple(low.tolist()),
        high=tuple(high.tolist()),
        percentiles={one: _percentile(total[:, _MOMENTS:], one) for one in PERCENTILES},
        bad=dict(loader.bad_images),
    )
    _warn(found)
    return found


class _Sample:
    """Show some of the images of a source."""

    def __init__(self, source: Source, positions: NDArray[np.int64]) -> None:
        self.source, self.positions = source, positions
        self.class_to_idx = source.class_to_idx

    def __len__(self) -> int:
        return len(self.positions)

    def filename(self, index: int) -> str:
        return self.source.filename(int(self.positions[index]))

    def names(self) -> Sequence[str]:
        names = self.source.names()
        return [names[position] for position in self.positions]

    def path(self, index: int) -> str:
        return self.source.path(int(self.positions[index]))

    def targets(self) -> Sequence[int] | None:
        targets = self.source.targets()
        return None if targets is None else [targets[position] for position in self.positions]

    def open(self, index: int) -> tuple[Any, int]:
        return self.source.open(int(self.positions[index]))


def _measure(picture: Pixels) -> Tensor:
    """Return (C, moments, bins, width and height) of an image in float64."""
    pixels_HWC = np.asarray(picture) if isinstance(picture, Image.Image) else picture
    height, width, bands = pixels_HWC.shape
    facts = np.zeros((bands, _MOMENTS + _BINS + 2))
    for band, row in enumerate(facts):
        values = pixels_HWC[..., band].ravel()
        if values.dtype == np.uint8:  # 256 levels, whose counts are exact
            levels, counts = np.arange(256) / 255, np.bincount(values, minlength=256)
            mean, there = (counts @ levels) / values.size, levels[counts > 0]
            row[:_MOMENTS] = values.size, mean, counts @ np.square(levels - mean), there[0], there[-1]
        else:
            levels, counts = values.astype(np.float64) / 255, None
            mean = levels.mean()
            row[:_MOMENTS] = values.size, mean, np.square(levels - mean).sum(), levels.min(), levels.max()
        places = np.rint(levels.clip(0, 1) * (_BINS - 1)).astype(np.int64)
        row[_MOMENTS : _MOMENTS + _BINS] = np.bincount(places, weights=counts, minlength=_BINS)
        row[-2:] = width, height
    return torch.from_numpy(facts)


def _together(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Add the moments and bins of two sets of pixels (Chan, Golub and LeVeque 1979), which loses no digits."""
    count = one[:, 0] + other[:, 0]
    apart = other[:, 1] - one[:, 1]
    both = one + other
    both[:, 1] = one[:, 1] + apart * (other[:, 0] / count)
    both[:, 2] += np.square(apart) * (one[:, 0] * other[:, 0] / count)
    both[:, 3] = np.minimum(one[:, 3], other[:, 3])
    both[:, 4] = np.maximum(one[:, 4], other[:, 4])
    return both


def _percentile(bins: NDArray[np.float64], percentage: int) -> tuple[float, ...]:
    """Find the lowest value that at least so many of the pixels of each band do not exceed."""
    below = np.cumsum(bins, axis=1)
    places = (below < percentage / 100 * below[:, -1:]).sum(axis=1)
    return tuple((places / (_BINS - 1)).tolist())


def _warn(found: BandStatistics) -> None:
    if found.constant:
        log.warning(
            "%s %s the same value in all images and %s nothing; the std is given as 1.",
            f"Band{'s' if len(found.constant) > 1 else ''} {some(found.constant)}",
            *(("have", "tell") if len(found.constant) > 1 else ("has", "tells")),
        )
    scaling = found.decoding
    if max(found.high) < _DARK and scaling.bit_depth is None and scaling.percentiles is None:
        log.warning(
            "No value is above %.2g of the range: images whose bits are fewer than those of their type (12 in 16) "
            "need --bit-depth; `davit doctor` tells which.",
            max(found.high),
        )
    if found.bad:
        log.warning(
            "%d images could not be read and are left out: %s",
            len(found.bad),
            some((f"{file} ({reason})" for file, reason in found.bad.items()), 3),
        )


def _rounded(values: Sequence[float]) -> list[float]:
    return [float(_plain(value)) for value in values]


def _plain(value: float) -> str:
    """Write a number with eight digits and without an exponent, which YAML would take for a word."""
    return str(value) if isinstance(value, int) else format(Decimal(f"{value:.8g}"), "f")
