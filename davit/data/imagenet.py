"""Put ImageNet's ids of classes into words."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from timm.data import ImageNetInfo

_WITH_ID = re.compile(r" \(n\d{8}\)$")


def readable_names(names: Sequence[str]) -> tuple[str, ...]:
    """Write n01440764 as "tench (n01440764)", where all names are such ids; of several words the first."""
    info = imagenet()
    known = set(info.label_names())
    if not names or not all(name in known for name in names):
        return tuple(names)
    return tuple(f"{info.label_name_to_description(name).partition(',')[0]} ({name})" for name in names)


def without_id(name: str) -> str:
    """Return the words alone of a name that `readable_names` wrote; any other name as it is."""
    return _WITH_ID.sub("", name)


@functools.cache
def imagenet() -> ImageNetInfo:
    """Return what timm knows of the 1,000 classes."""
    return ImageNetInfo("imagenet-1k")
