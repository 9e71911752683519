"""Draw sheets of images: each in its place, with text of any kind below it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from davit.visualize.sheet import Shown, draw_sheet, render_sheet


def picture(value: int) -> Image.Image:
    return Image.fromarray(np.full((4, 6, 3), value, np.uint8))


def test_each_picture_is_in_its_row(tmp_path: Path) -> None:
    picture(50).save(tmp_path / "a.png")
    (tmp_path / "broken.png").write_bytes(b"")
    others = [Shown(picture(10 * number), (f"{number}",)) for number in range(13)]
    rows = [
        (Shown(tmp_path / "a.png", ("a" * 60,)), others),
        (Shown(picture(200)), [Shown(tmp_path / "broken.png", ("$x",))]),
    ]
    figure = render_sheet(rows, "title")
    values = [int(axes.images[0].get_array().max()) if axes.images else None for axes in figure.axes]
    assert values == [50, *(10 * number for number in range(13)), 200, None]
    places = [axes.get_position(original=True) for axes in figure.axes]
    lefts, tops = sorted({round(one.x0, 6) for one in places}), sorted({-round(one.y1, 6) for one in places})
    columns = [lefts.index(round(one.x0, 6)) for one in places]
    lines = [tops.index(-round(one.y1, 6)) for one in places]
    assert columns == [0, *range(1, 11), 1, 2, 3, 0, 1] and lines == [0] * 11 + [1] * 3 + [2, 2]
    labels = [axes.get_xlabel() for axes in figure.axes]
    assert labels[1:14] == [str(number) for number in range(13)] and len(labels[0]) < 30
    draw_sheet(rows, tmp_path / "sheet.jpg", "title")
    with Image.open(tmp_path / "sheet.jpg") as drawn:
        assert drawn.format == "JPEG"


def test_names_of_any_signs_and_no_pictures(tmp_path: Path) -> None:
    row = (Shown(picture(1), ("日本$_\x1b[2J", "caf\udce9")), [])
    draw_sheet([row], tmp_path / "sheet.png")
    for rows, name in (([], "sheet.png"), ([row], "sheet.doc")):
        with pytest.raises(ValueError, match=name):
            draw_sheet(rows, tmp_path / name)
    assert [file.name for file in tmp_path.iterdir()] == ["sheet.png"]
