"""One picture, one decoding: every reader is asked for every kind of file."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

pytest.importorskip("mmseg")
pytest.importorskip("tifffile")


def test_every_reader_gives_the_same_pixels(script: Callable[[str], ModuleType], tmp_path: Path) -> None:
    """For every kind of file that this machine can write, in colours and in other numbers of bands."""
    decoding = script("decoding")
    rows = decoding.compare(tmp_path, lambda _: None)
    assert len(rows) >= 16 and {row[1] for row in rows} == {"3", "1", "2", "4", "6"}
    wrong = {row[0]: cells for row in rows if (cells := [cell for cell in row[2:] if cell not in ("equal", "")])}
    assert not wrong and all(len(row) == 2 + len(decoding.READERS) for row in rows)


def test_our_loading_transform_gives_mmcvs_pixels_of_a_jpeg(script: Callable[[str], ModuleType]) -> None:
    found = script("decoding").time_against_mmcv(rounds=1, count=1)
    assert found["farthest"] == 0 and found["mmcv"] > 0 and found["ours"] > 0
