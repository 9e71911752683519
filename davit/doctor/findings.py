"""Define a finding: one line of a diagnosis."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

LEVELS = ("ok", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, and what was found.

    Attributes:
        level: one of `LEVELS`; with an error, a run fails.
        subject: what was looked at, in a word or two.
        text: what was found.
        remedy: what to do about it; empty for "ok".
    """

    level: str
    subject: str
    text: str
    remedy: str = ""

    def __post_init__(self) -> None:
        assert self.level in LEVELS and bool(self.remedy) == (self.level != "ok")


# ok(subject, text); warning and error also take the remedy
ok, warning, error = (partial(Finding, level) for level in LEVELS)
