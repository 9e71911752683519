"""Check what classes are called: by the checkpoint, a file, a folder, or ImageNet's words."""

from pathlib import Path

import pytest

from davit.data import DataError
from davit.predict.names import class_names
from tests.predict.conftest import noise


@pytest.mark.parametrize(
    ("noted", "names"),
    [
        (["ant", "bee"], ("ant", "bee")),
        (None, ("class 0", "class 1")),
        (["one"], ("class 0", "class 1")),
        (["n02124075", "n02123159"], ("Egyptian cat (n02124075)", "tiger cat (n02123159)")),
        (["n02124075", "mine"], ("n02124075", "mine")),
    ],
)
def test_names_of_the_training(noted: list[str] | None, names: tuple[str, ...]) -> None:
    assert class_names(2, noted=noted) == names


def test_imagenets_words() -> None:
    names = class_names(1000)
    assert len(names) == 1000
    assert names[285] == "Egyptian cat (n02124075)" and names[282] == "tiger cat (n02123159)"


def test_a_class_map(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "names.txt"
    file.write_text("wasp\nfly\n")
    assert class_names(2, noted=["ant", "bee"], source=file) == ("wasp", "fly")
    assert not caplog.records
    assert class_names(3, source=file) == ("wasp", "fly", "class 2")
    assert "index 2" in caplog.text and "names.txt" in caplog.text
    with pytest.raises(DataError, match=r"names\.txt"):
        class_names(1, source=file)


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_folders_of_a_data_set(tmp_path: Path, split: str) -> None:
    for name in ("10", "9", "bee"):
        (tmp_path / split / name).mkdir(parents=True)
        noise(0).save(tmp_path / split / name / "0.png")
    assert class_names(3, source=tmp_path) == ("9", "10", "bee")
    with pytest.raises(DataError, match=r"3 .* 4"):
        class_names(4, source=tmp_path)


def test_sources_that_cannot_be_used(tmp_path: Path) -> None:
    for source in (tmp_path, tmp_path / "missing.txt"):
        with pytest.raises(DataError, match=source.name):
            class_names(2, source=source)
