"""Show a data set under one corruption at several severities, each image always corrupted in the same way."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from torchvision.transforms import Compose

from ..data import PictureDataset
from ..data.dataset import Transform
from ..seeding import derive_seeds
from .corruptions import CORRUPTIONS, corrupt

_ORDER = tuple(CORRUPTIONS)


class CorruptedDataset(PictureDataset):
    """Some images of a data set, all at the first severity, then all at the next.

    An image is resized and cropped as its data set's transform does, corrupted at 8 bits, and normalised. What is
    random depends on the seed, the corruption, the severity and the image's name: not on the other images, the
    processes or their number.
    """

    def __init__(
        self, dataset: PictureDataset, positions: Sequence[int], corruption: str, severities: Sequence[int], seed: int
    ) -> None:
        """Take images at positions of a data set whose transform is an `eval_transform` for RGB."""
        super().__init__(dataset.source, dataset.transform, decoding=dataset.decoding, mapped=dataset.mapped)
        self.positions = positions
        self.corruption = corruption
        self.severities = tuple(severities)
        self.seed = seed
        self._crop, self._ending = split_transform(dataset.transform)

    def __len__(self) -> int:
        return len(self.positions) * len(self.severities)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        place, at = divmod(index, len(self.positions))
        position = self.positions[at]
        image, target = self.read(position, getattr(self.transform, "check", None))
        return self._ending(self.corrupted(self._crop(image), position, self.severities[place])), target

    def corrupted(self, image: Image.Image, position: int, severity: int) -> Image.Image:
        """Corrupt the image at a position of the data set, which is cropped."""
        name = hashlib.blake2b(self.filename(position).encode("utf-8", "surrogateescape"), digest_size=7).digest()
        key = (self.seed, _ORDER.index(self.corruption), severity, int.from_bytes(name, "little"))
        return corrupt(image, self.corruption, severity, np.random.default_rng(derive_seeds(*key)[1]))

    def cropped(self, position: int) -> Image.Image:
        """Return an image as the model sees it, not corrupted."""
        image, _ = self.read(position, getattr(self.transform, "check", None))
        return self._crop(image)


def split_transform(transform: Any) -> tuple[Any, Transform]:
    """Split a transform of `eval_transform` into what crops an image, and what makes a tensor of it."""
    *steps, ending = transform.transforms
    return Compose(steps), ending


def spread(count: int, limit: int | None) -> list[int]:
    """List the positions of `limit` of `count` images, evenly spread; all where there are no more."""
    if limit is None or limit >= count:
        return list(range(count))
    return [position * count // limit for position in range(limit)]
