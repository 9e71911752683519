"""Lists of classes as labelling tools write them."""

from pathlib import Path

import pytest

from davit.data import DataError
from davit.data.class_lists import find_class_list


@pytest.mark.parametrize(
    ("name", "text", "names", "colours", "values"),
    [
        ("_classes.csv", "Pixel Value, Class\n0, background\n1, a b\n", ("background", "a b"), (), ()),
        ("_classes.csv", "Pixel Value, Class\n0, background\n7, a\n", ("background", "a"), (), (0, 7)),
        ("class_dict.csv", "name,r,g,b\nsky,1,2,3\nroad,4,5,6\n", ("sky", "road"), ((1, 2, 3), (4, 5, 6)), ()),
        (
            "labelmap.txt",
            "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\n",
            ("background", "cat"),
            ((0, 0, 0), (128, 0, 0)),
            (),
        ),
        (
            "label_colors.txt",
            "64 128 64\tAnimal\n0 0 0\tVoid it\n",
            ("Animal", "Void it"),
            ((64, 128, 64), (0, 0, 0)),
            (),
        ),
        ("classes.txt", "\ufeffground\n\nHaus Tür\n", ("ground", "Haus Tür"), (), ()),
    ],
)
def test_lists(
    tmp_path: Path, name: str, text: str, names: tuple[str, ...], colours: tuple[object, ...], values: tuple[int, ...]
) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    found = find_class_list([tmp_path / "elsewhere", tmp_path])
    assert found is not None
    assert (found.file, found.names, found.colours, found.values) == (tmp_path / name, names, colours, values)


@pytest.mark.parametrize("text", ["name,r,g,b\nsky,1,2,300\n", "value,name\nx,sky\n", "a,b,c\n1,2,3\n"])
def test_a_damaged_list_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "_classes.csv").write_text(text)
    with pytest.raises(DataError, match=r"_classes\.csv"):
        find_class_list([tmp_path])


def test_no_list(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("\n")
    assert find_class_list([tmp_path]) is None
