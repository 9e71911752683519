"""Define a finding: one line of a diagnosis."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

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


def ok(subject: str, text: str) -> Finding:
    """Make a finding of what is as it should be."""
    return Finding("ok", subject, text)


def warning(subject: str, text: str, remedy: str) -> Finding:
    """Make a finding of what may go wrong, with the remedy."""
    return Finding("warning", subject, text, remedy)


def error(subject: str, text: str, remedy: str) -> Finding:
    """Make a finding of what makes a run fail, with the remedy."""
    return Finding("error", subject, text, remedy)


def worst(findings: Iterable[Finding]) -> str:
    """Find the worst level of all; "ok" for none."""
    return max((finding.level for finding in findings), key=LEVELS.index, default="ok")
