from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, ImageDraw

from davit import fonts

CAT = "猫"


def make_font(file: Path, text: str) -> Path:
    """Write a font in which each character of a text is a square."""
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((100, 800), (900, 800), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square = pen.glyph()
    names = [f"uni{ord(sign):04X}" for sign in text]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names])
    builder.setupCharacterMap({ord(sign): name for sign, name in zip(text, names, strict=True)})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), **dict.fromkeys(names, square)})
    builder.setupHorizontalMetrics(dict.fromkeys(builder.font.getGlyphOrder(), (1000, 100)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Squares of Tests", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(file)
    return file


@pytest.fixture
def squares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A font with a cat, as the only one besides matplotlib's own."""
    file = make_font(tmp_path / "Squares-Regular.ttf", f" {CAT}0123456789.")
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    (tmp_path / "LastResort.ttf").write_bytes(file.read_bytes())
    _only(monkeypatch, [*map(str, tmp_path.iterdir())])
    yield file
    _forget()


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    _only(monkeypatch, [])
    yield
    _forget()


def _only(monkeypatch: pytest.MonkeyPatch, files: list[str]) -> None:
    monkeypatch.setattr("matplotlib.font_manager.findSystemFonts", lambda: files)
    _forget()


def _forget() -> None:
    for function in (fonts._fonts, fonts._characters, fonts._hint):
        function.cache_clear()


def test_a_font_that_has_the_characters_is_found(squares: Path):
    assert fonts.font_for(CAT) == squares
    assert fonts.drawable(f"{CAT} 1", 3) == f"{CAT} 1"
    assert fonts.font_for("Katze, γάτα, кошка, قط") == fonts._fonts()[0]
    assert fonts.drawable("犬", 3) == "3"
    assert fonts.drawable("a\nb\udce9", 3) == r"a\x0ab\xe9"
    assert fonts.font_for("e\u0301\ufe0f\u200d") is not None  # a composed é; what joins characters needs no glyph


def test_without_a_font_the_index_is_drawn_and_said_once(bare: None, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        assert [fonts.drawable(name, index) for index, name in enumerate((CAT, "犬", "dog"))] == ["0", "1", "dog"]
    (record,) = caplog.records
    assert isinstance(record.args, tuple) and (record.args[0], record.args[-1]) == ("Cjk", "fonts-noto-cjk")


def test_a_line_keeps_the_characters_that_can_be_drawn(bare: None):
    assert fonts.legible(f"{CAT}_Straße 1.jpg") == "?_Straße 1.jpg"
    assert fonts.legible("Straße\n") == r"Straße\x0a"


def test_pillow_draws_with_it(squares: Path):
    page = Image.new("L", (40, 40), "white")
    ImageDraw.Draw(page).text((2, 2), CAT, fill="black", font=fonts.pillow_font(CAT, 20))
    assert (np.asarray(page) == 0).sum() == pytest.approx(16 * 16, rel=0.1)
    assert fonts.pillow_font("dog", 13).getbbox("dog") == fonts.pillow_font("dog", 13.0).getbbox("dog")


def test_matplotlib_draws_with_it_and_without_formulas(squares: Path, recwarn: pytest.WarningsRecorder):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = []
    for text in (CAT, "$x$ {"):
        with fonts.matplotlib_fonts([text]):
            figure = Figure(figsize=(1, 1), dpi=100)
            canvas = FigureCanvasAgg(figure)
            figure.text(0.2, 0.4, text, fontsize=30)
        canvas.draw()
        drawn.append((np.asarray(canvas.buffer_rgba())[..., 0] < 128).sum())
    assert drawn[0] == pytest.approx((0.8 * 30 / 72 * 100) ** 2, rel=0.1)
    assert not [one for one in recwarn if "Glyph" in str(one.message) or "findfont" in str(one.message)]


def test_a_text_is_cut_to_a_width() -> None:
    for text in ("Straße", "W" * 40, "i" * 40, ""):
        for width in (0, 30, 100, 1000):
            cut = fonts.fitted(text, 12, width)
            length = fonts.pillow_font(cut, 12).getlength(cut)
            assert length <= width or cut in ("…", "")
            assert cut == text or (cut.endswith("…") and text.startswith(cut[:-1]))
            assert cut != text or fonts.pillow_font(text, 12).getlength(text) <= width
