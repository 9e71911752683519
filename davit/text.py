"""Put lists, near names and numbers into messages and files, and names of any kind where text is expected.

A file's name is bytes. Python holds those that are no UTF-8 as lone surrogates, which no file and few terminals take;
others hold a newline, or signs that move a terminal's cursor. `as_line` and `as_utf8` write such bytes as \\xe9, and
`original` gives the name back.
"""

from __future__ import annotations

import difflib
import importlib
import math
import os
import re
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any


def as_line(name: object) -> str:
    r"""Write a name so that it fills one line, whatever it holds, and cannot drive a terminal.

    Bytes that are no UTF-8, control characters, line ends and signs that change the direction of writing become \xe9;
    a backslash is doubled only in a name that holds \x then. `original` undoes it.
    """
    return _escape(str(name), _is_control)


def as_utf8(name: object) -> str:
    r"""Write a name as text that is UTF-8, for csv: as `as_line`, but of control characters only \r is replaced."""
    return _escape(str(name), lambda sign: sign == "\r" or unicodedata.category(sign) == "Cs")


def original(text: str) -> str:
    r"""Return the name that `as_line` or `as_utf8` wrote: the path that `open` takes."""
    if "\\x" not in text:
        return text
    return os.fsdecode(_ESCAPED.sub(lambda match: bytes.fromhex(match[1].decode()) if match[1] else b"\\", _raw(text)))


# categories of signs: control, format (the directions of writing among them), surrogate, line and paragraph separator
_UNPRINTABLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JOINERS = "\u200c\u200d"  # of Persian, of Indian scripts and of emoji: of category Cf, and part of words
_ESCAPED = re.compile(rb"\\(?:x([0-9a-f]{2})|\\)")


def _is_control(sign: str) -> bool:
    return unicodedata.category(sign) in _UNPRINTABLE and sign not in _JOINERS


def _escape(name: str, is_hidden: Callable[[str], bool]) -> str:
    if "\\x" not in name and (name.isprintable() or not any(map(is_hidden, name))):
        return name
    escaped = (r"\\" if sign == "\\" else _as_bytes(sign) if is_hidden(sign) else sign for sign in name)
    return "".join(escaped)


def _as_bytes(sign: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in _raw(sign))


def _raw(text: str) -> bytes:
    """Encode as file names are; a surrogate that stands for no byte, which no file has, as its own code."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def encodable(text: str, encoding: str | None) -> str:
    r"""Write what an encoding lacks as the bytes of its UTF-8, \xe9; None stands for UTF-8."""
    encoding = encoding or "utf-8"
    return text if fits(text, encoding) else "".join(s if fits(s, encoding) else _as_bytes(s) for s in text)


def fits(text: str, encoding: str) -> bool:
    """Tell whether an encoding has all signs of a text; an unknown encoding has none."""
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def without_controls(text: str) -> str:
    r"""Write control characters other than line ends and tabs as \x1b, in text for a terminal."""
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(sign: str) -> str:
    return _as_bytes(sign) if sign not in "\n\t" and _is_control(sign) else sign


def some(names: Iterable[object], limit: int = 8) -> str:
    """Join the first names for a message, and say how many more there are."""
    listed = [as_line(name) for name in names]
    more = f" and {len(listed) - limit} more" if len(listed) > limit else ""
    return ", ".join(listed[:limit]) + more


def in_bytes(size: int) -> str:
    """Write a file's size as people say it: in MB, or in kB where it is small."""
    return f"{size / 1e6:.2f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"


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


def is_number(word: str) -> bool:
    """Tell whether a text is a number as Python writes them."""
    try:
        float(word)
    except ValueError:
        return False
    return True


def install_extra(name: str) -> str:
    """Give the command that installs what one of the package's extras (pyproject.toml) needs."""
    return f"pip install 'davit-torch[{name}]'"


def without_nan(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by None, in a nest of dictionaries and lists."""
    if isinstance(value, dict):
        return {key: without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def lazily(package: str, **homes: Sequence[str]) -> Callable[[str], Any]:
    """Make a package's ``__getattr__``, which imports what the package offers when it is asked for.

    So the package's parsers are imported without PyTorch.

    Args:
        homes: of each of its modules, the names that it brings.
    """
    modules = {name: module for module, names in homes.items() for name in names}

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(f"{package}.{modules[name]}"), name)
        setattr(sys.modules[package], name, found)  # so that this function is asked only once
        return found

    return get
