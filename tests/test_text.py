from __future__ import annotations

import io
import logging
import os

import pytest

from davit.commands import USER_ERROR, run_cli
from davit.text import as_line, as_utf8, encodable, in_bytes, original, some, without_controls

NAMES = [
    *(b"ok.png", b"caf\xe9.png", b"new\nline.png", b"\x1b[31mred.png", b"tab\t.png", b"cr\r.png", b"del\x7f.png"),
    *(b"a\\b.png", b"a\\xe9.png", b"\\", b"\\x", b"\\\\xff\xff\\n", b"'\".png", b"\xff" * 9),
    *map(str.encode, ("日本語.png", "\u202egnp.jpg", "a\u2028b", "می\u200cخواهم", "👩\u200d🔬", "\x85", "é")),
]


@pytest.mark.parametrize("code", NAMES)
def test_a_name_comes_back_from_a_line_and_from_csv(code: bytes):
    name = os.fsdecode(code)
    for text in (as_line(name), as_utf8(name)):
        assert os.fsencode(original(text)) == code
        assert text.encode()  # strictly UTF-8
        assert "\r" not in text
    assert len(as_line(name).splitlines()) == 1
    assert "\x1b" not in as_line(name)
    assert as_utf8("new\nline\t") == "new\nline\t"


def test_readable_names_stay_as_they_are():
    for name in ("日本語.png", "می\u200cخواهم", "a\\b.png", "x y'\".png"):
        assert as_line(name) == as_utf8(name) == name
    assert as_line("caf\udce9") == as_utf8("caf\udce9") == r"caf\xe9"
    assert some(["a\n", "b"]) == r"a\x0a, b"
    assert as_line("\ud800") == r"\xed\xa0\x80"  # no file is called so, and a checkpoint's class may be


def test_sizes():
    assert [in_bytes(size) for size in (0, 1234, 99_999, 5_190_000)] == ["0.0 kB", "1.2 kB", "100.0 kB", "5.19 MB"]


def test_what_an_encoding_lacks():
    assert encodable("aé日", "latin-1") == "aé" + r"\xe6\x97\xa5"
    assert encodable("aé日", None) == "aé日"


def test_the_log_cannot_drive_a_terminal(monkeypatch: pytest.MonkeyPatch):
    stream = io.StringIO()
    monkeypatch.setattr(logging.root, "handlers", [logging.StreamHandler(stream)])

    def fail() -> None:
        raise ValueError("first\nsecond \x1b[2J\udce9")

    assert run_cli(fail) == run_cli(fail) == USER_ERROR
    assert stream.getvalue() == "first\nsecond \\x1b[2J\\xe9\n" * 2
    assert without_controls("a\tb\n") == "a\tb\n"
