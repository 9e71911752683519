"""Put lists, near names and numbers into messages and files."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any


def some(names: Iterable[object], limit: int = 8) -> str:
    """Join the first names for a message, and say how many more there are."""
    listed = [str(name) for name in names]
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


def nearest(name: object, known: Iterable[str], limit: int = 1, cutoff: float = 0.6) -> list[str]:
    """Find the names most like a wrong one, whatever their case; the best first.

    Args:
        cutoff: likeness from 0 (any name) to 1 (the same).
    """
    spelled = {one.lower(): one for one in known}
    return [spelled[one] for one in difflib.get_close_matches(str(name).lower(), spelled, n=limit, cutoff=cutoff)]


def did_you_mean(name: object, known: Iterable[str], limit: int = 2) -> str:
    """Begin a sentence with the names most like a wrong one; empty where none is like it."""
    near = nearest(name, known, limit)
    return f"did you mean {' or '.join(map(repr, near))}? " if near else ""


def without_nan(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None, in a nest of dictionaries and lists."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
