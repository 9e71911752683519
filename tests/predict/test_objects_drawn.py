"""Detections as they are drawn: names that can be read at any size, beside one another, in colours that differ."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from PIL import ImageDraw

from davit.predict.objects import Detections, Segmentation, _label_place, _shared, colour_of, font_size


def found(height: int, width: int, boxes: list[list[float]], labels: list[int]) -> Detections:
    names = tuple(f"class {number}" for number in range(max(labels, default=0) + 1))
    scores = np.linspace(0.9, 0.5, len(boxes), dtype=np.float32)
    grey = np.full((height, width, 3), 128, np.uint8)
    return Detections(grey, np.array(boxes, np.float32), scores, np.array(labels), None, names)


@pytest.mark.parametrize("side", [64, 256, 1000, 4000])
def test_names_are_read_at_every_size(side: int) -> None:
    """A name fills a row of its colour, at least a 75th of the image high and 12 pixels."""
    box = [0.3 * side, 0.3 * side, 0.8 * side, 0.8 * side]
    drawn = np.asarray(found(side, side, [box], [4]).draw())
    times = len(drawn) // side
    column = drawn[: int(times * 0.3 * side), int(times * 0.3 * side) + 1]
    rows = int((column == colour_of(4)).all(1).sum())
    assert rows >= max(12, len(drawn) / 75) - 2
    assert font_size(4000, 4000) >= 4 * 12 and font_size(256, 256) == 12


def test_names_of_a_box_at_the_edge_are_whole_and_do_not_hide_one_another() -> None:
    size, text = (400, 300), (0, 0, 100, 12)
    taken: list[tuple[float, float, float, float]] = []
    for box in ([350, 0, 400, 40], [0, 0, 400, 300], [0, 0, 400, 300], [0, 0, 400, 300]):
        place = _label_place(box, text, 2, size, taken)
        assert place[0] >= 0 and place[1] >= 0 and place[2] <= size[0] and place[3] <= size[1]
        taken.append(place)
    assert not any(_shared(one, other) for one, other in combinations(taken, 2))


def test_names_in_a_crowd_find_free_places_near_their_boxes() -> None:
    draw, size, text = np.random.default_rng(0), (512, 512), (0, 0, 70, 9)
    taken: list[tuple[float, float, float, float]] = []
    for x, y in draw.uniform(100, 400, (30, 2)).tolist():
        place = _label_place([x, y, x + 30, y + 40], text, 2, size, taken)
        assert abs(place[0] + 37 - (x + 15)) < 80 and abs(place[1] + 6 - (y + 20)) < 110
        taken.append(place)
    hidden = sum(_shared(one, other) for one, other in combinations(taken, 2))
    assert hidden < 0.05 * 30 * 74 * 13, "of the area of all names"


def test_the_first_twenty_colours_differ() -> None:
    colours = np.array([colour_of(number) for number in range(20)], float)
    assert min(np.abs(one - other).sum() for one, other in combinations(colours, 2)) >= 60
    assert len({colour_of(number) for number in range(200)}) > 150


def test_nothing_found_is_the_picture() -> None:
    nothing = found(400, 400, [], [])
    assert (np.asarray(nothing.draw()) == 128).all()


LONG = "a name that is much longer than any small image is wide, with all that somebody wanted to say of it"


def test_a_name_that_is_wider_than_the_image_keeps_its_score(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, float]] = []
    bare = ImageDraw.ImageDraw.text

    def text(self: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, **options: Any) -> None:
        written.append((text, xy[0] + options["font"].getlength(text)))
        bare(self, xy, text, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    grey = np.full((64, 64, 3), 128, np.uint8)
    boxes, one = np.array([[9, 9, 30, 30]], np.float32), np.array([0.75], np.float32)
    drawn = Detections(grey, boxes, one, np.array([0]), None, (LONG,)).draw()
    ((name, right),) = written
    assert name.endswith("… 0.75") and name.startswith(LONG[:10]) and right <= drawn.width


def test_the_legend_names_what_it_leaves_out_and_stays_within_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    written: dict[str, float] = {}
    bare = ImageDraw.ImageDraw.text

    def text(self: ImageDraw.ImageDraw, xy: tuple[float, float], text: str, **options: Any) -> None:
        written[text] = xy[0] + options["font"].getlength(text)
        bare(self, xy, text, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    labels = np.arange(64 * 64).reshape(64, 64) // 140  # 30 classes
    names = (LONG, *(f"class {number}" for number in range(1, 30)))
    palette = tuple(colour_of(number) for number in range(30))
    drawn = Segmentation(np.zeros((64, 64, 3), np.uint8), labels, names, palette).draw()
    assert len(written) == 13 and "18" in list(written)[-1]
    assert any(name.endswith("…") for name in written) and max(written.values()) <= drawn.width
