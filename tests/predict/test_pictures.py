from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from davit.predict.pictures import distinct_names


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["d/a.jpg", "d/b.png"], ["a", "b"]),
        (["d/a.jpg", "d/a.png"], ["a.jpg", "a.png"]),
        (["d/a.jpg", "d/A.jpg"], ["a.jpg-2", "A.jpg"]),  # the order is that of code points
        (["d/a.jpg", "e/a.jpg", "e/b.jpg"], ["d-a.jpg", "e-a.jpg", "e-b.jpg"]),
        (["a/b-c.png", "a-b/c.png", "c.png"], ["a-b-c.png", "a-b-c.png-2", "c.png"]),
        (["/d/1/a.png", "/d/2/a.png"], ["1-a.png", "2-a.png"]),
        (["IMG.1", "IMG.2"], ["IMG.1", "IMG.2"]),
        (["../a/x.png", "x.png"], ["..-a-x.png", "x.png"]),
        (["/d/x.png", "x.png"], ["d-x.png", "x.png"]),
    ],
)
def test_outputs_never_share_a_name(files: list[str], names: list[str]):
    paths = list(map(Path, files))
    found = distinct_names(paths)
    assert [found[path] for path in paths] == names
    assert distinct_names(paths[::-1]) == found


def test_names_that_a_file_system_may_take_for_one():
    files = [Path(unicodedata.normalize(form, "é.png")) for form in ("NFC", "NFD")] + [Path("É.PNG")]
    names = distinct_names(files)
    assert len({unicodedata.normalize("NFC", name).casefold() for name in names.values()}) == 3


def test_names_below_a_folder_keep_its_subfolders():
    root = Path("/data/val")
    files = [root / "town/a.png", root / "city/a.png", Path("/elsewhere/b.png")]
    assert list(distinct_names(files, root).values()) == ["city/a", "town/a", "b"]
    files.append(root / "city/a.jpg")
    assert set(distinct_names(files, root).values()) == {"town/a.png", "city/a.png", "city/a.jpg", "b.png"}


def test_long_names_fit_a_file_system(tmp_path: Path):
    files = [Path("é" * 120 + f"{number}.png") for number in range(3)] + [Path("a/" * 150 + "x.png"), Path("x.png")]
    names = distinct_names(files)
    assert len(set(names.values())) == 5
    for name in names.values():
        (tmp_path / f"{name}-seen.png").touch()
        assert len(os.fsencode(name)) <= 210
