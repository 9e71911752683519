"""Names of a source, one by one and all at once."""

import os

import numpy as np
import pytest

from davit.data.source import Files, Renumbered, Texts

NAMES = [
    ["a.png", "b/c.png", "x" * 300],
    ["é.png", "日本/語.png", "a", "🦊.jpg"],
    ["a", "", "b"],
    ["", "é", ""],
    [os.fsdecode(b"\xe9.png"), "é", "a"],
    [os.fsdecode(b"a\xc3"), os.fsdecode(b"\xa9b")],  # together they would be UTF-8
    ["é", os.fsdecode(b"\xa9b"), "c"],
    [],
]


@pytest.mark.parametrize("names", NAMES)
def test_all_names_at_once_are_those_one_by_one(names: list[str]) -> None:
    texts = Texts(names)
    assert list(texts) == [texts[index] for index in range(len(texts))] == names
    assert list(Texts.of(texts.joined, texts.ends)) == names


def test_sources_list_the_names_that_they_give_one_by_one(tmp_path: "os.PathLike[str]") -> None:
    names = [f"{label}/{number}é.png" for number in range(12) for label in "ba"]
    files = Files(str(tmp_path), names, [name[0] for name in names], indices=False)
    for source in (files, Renumbered(files, {"b": 0, "a": 1})):
        assert list(source.names()) == [source.filename(index) for index in range(len(source))]
    assert np.array_equal(files.targets(), [0] * 12 + [1] * 12)
