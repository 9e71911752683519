"""Find fonts of this machine for names in any script; the index of a class stands for a name that none can draw."""

from __future__ import annotations

import functools
import logging
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .text import as_line

if TYPE_CHECKING:
    from PIL import ImageFont

log = logging.getLogger(__name__)

# Beginnings of file names of fonts that read well and hold much, tried first; and what is tried after the others.
_FIRST = ("dejavusans", "notosanscjk", "notosans", "sourcehansans", "wqy", "droidsansfallback", "arialunicode")
_LATER = ("bold", "black", "italic", "oblique", "mono", "serif", "light", "thin", "condensed", "display")
_NEVER = ("lastresort", "blank", "coloremoji")  # boxes or nothing for every character, or bitmaps of one size

_PACKAGES = {"CJK": "fonts-noto-cjk", "HIRAGANA": "fonts-noto-cjk", "KATAKANA": "fonts-noto-cjk"}
_PACKAGES |= {"HANGUL": "fonts-noto-cjk", "BOPOMOFO": "fonts-noto-cjk"}


def drawable(name: str, index: int) -> str:
    """Return a name as it can be drawn: itself, or its index, where no font here has its characters.

    The first such name is logged, with a font to install. Control characters are written as `davit.text.as_line` does.
    """
    name = as_line(name)
    if font_for(name) is not None:
        return name
    _hint(_script(name), "the index of the class stands for them")
    return str(index)


def legible(text: str) -> str:
    """Return a line as it can be drawn: with question marks, where no font here has all of its characters.

    The first such line is logged, as `drawable` does.
    """
    text = as_line(text)
    if font_for(text) is not None:
        return text
    _hint(_script(text), "a question mark stands for each of the others")
    known = _characters(_fonts()[0])
    return "".join(sign if sign.isspace() or ord(sign) in known else "?" for sign in text)


def font_for(text: str) -> Path | None:
    """Find the file of a font that has all characters of a text; None where there is none."""
    needed = _needed(text)
    return next((font for font in _fonts() if needed <= _characters(font)), None)


def pillow_font(text: str, size: float) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Open a font for Pillow that has the characters of a text: that of the figures where it has them."""
    from PIL import ImageFont

    font = _own_font() if text.isascii() else font_for(text)
    return ImageFont.load_default(size) if font is None else ImageFont.truetype(str(font), size)


def fitted(text: str, size: float, width: float) -> str:
    """Cut the end of a text that Pillow would draw wider than so many pixels."""
    font = pillow_font(text, size)
    if font.getlength(text) <= width:
        return text
    return next((cut for at in range(len(text), 0, -1) if font.getlength(cut := f"{text[:at]}…") <= width), "…")


@contextmanager
def matplotlib_fonts(texts: Iterable[str]) -> Iterator[None]:
    """Have matplotlib take the fonts that some texts need, for what is made within the context.

    Signs of formulas in the texts are drawn as they stand.
    """
    from matplotlib import font_manager, rc_context, rcParams

    families = list(rcParams["font.family"])
    for font in dict.fromkeys(filter(None, map(font_for, texts))):
        if font != _fonts()[0]:
            font_manager.fontManager.addfont(font)
            families.append(font_manager.FontProperties(fname=font).get_name())
    with rc_context({"font.family": families, "text.parse_math": False}):
        yield


@functools.cache
def _own_font() -> Path:
    """Return the font that comes with matplotlib."""
    from matplotlib import get_data_path

    return Path(get_data_path(), "fonts/ttf/DejaVuSans.ttf")


@functools.cache
def _fonts() -> tuple[Path, ...]:
    """List the fonts of this machine, matplotlib's own first, then the likeliest."""
    from matplotlib import font_manager

    found = {Path(file) for file in font_manager.findSystemFonts()}
    names = {file: file.stem.lower().replace("-", "").replace("_", "").replace(" ", "") for file in found}

    def rank(file: Path) -> tuple[int, int, str]:
        first = next((place for place, start in enumerate(_FIRST) if names[file].startswith(start)), len(_FIRST))
        return first, sum(style in names[file] for style in _LATER), str(file)

    usable = [file for file in found if not any(word in names[file] for word in _NEVER)]
    return _own_font(), *sorted(usable, key=rank)


@functools.cache
def _characters(font: Path) -> frozenset[int]:
    """List the characters that a font has; none of a file that cannot be scaled or read."""
    from matplotlib.ft2font import FT2Font

    try:
        face = FT2Font(str(font))
        return frozenset(face.get_charmap()) if face.units_per_EM else frozenset()
    except (OSError, RuntimeError, ValueError):
        return frozenset()


def _needed(text: str) -> frozenset[int]:
    """List the characters for which a font must have glyphs: not spaces, and nothing that only joins others."""
    composed = unicodedata.normalize("NFC", text)
    return frozenset(ord(sign) for sign in composed if not sign.isspace() and not _is_joining(sign))


def _is_joining(sign: str) -> bool:
    return unicodedata.category(sign) == "Cf" or "\ufe00" <= sign <= "\ufe0f"


def _script(name: str) -> str:
    """Name the script of the first character that the usual font lacks."""
    lacking = sorted(_needed(name) - _characters(_fonts()[0]))
    return unicodedata.name(chr(lacking[0]), "unknown").split()[0] if lacking else "mixed"


@functools.cache
def _hint(script: str, instead: str) -> None:
    log.warning(
        "no font of this machine has all characters of some names (script: %s): %s. "
        "Install one; on Debian and Ubuntu: apt install %s",
        script.capitalize(),
        instead,
        _PACKAGES.get(script, "fonts-noto-core fonts-noto-extra"),
    )
