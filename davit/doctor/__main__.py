"""Say what a machine, a data folder or a config lacks for a run, and what to do about it."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from .. import recipes
from ..commands import run_cli
from ..data import DataError
from ..data.yolo import read_yolo
from ..parsing.results import as_json, put, require_writable, standard_output, write_result
from ..text import encodable, without_controls
from .configs import examine_config
from .findings import LEVELS, Finding
from .flags import doctor_parser
from .folders import examine_folder
from .machine import examine_machine

_COLOURS = {"ok": "32", "warning": "33", "error": "31"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print all findings; return exit status 0, 1 where a finding is an error, 2 for a mistake."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return run_cli(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> list[Finding]:
    """Print all findings, and list those that are errors."""
    options = doctor_parser().parse_args(arguments)
    if options.output and Path(options.output).is_dir():
        raise ValueError(f"--output {options.output} is a folder, and names a file; where runs write is --runs DIR.")
    require_writable(options.output)
    findings = []
    for finding in _examine(options):
        findings.append(finding)
        if not options.json:
            _write(finding)
    good, doubtful, bad = ([finding for finding in findings if finding.level == level] for level in LEVELS)
    counts = f"{len(good)} ok, {len(doubtful)} warnings, {len(bad)} errors"
    document = [asdict(finding) for finding in findings]
    put(as_json(document) if options.json else counts)
    if options.output:
        write_result(Path(options.output), "\n".join([*map(_line, findings), counts]), document, document)
    return bad


def _examine(options: argparse.Namespace) -> Iterator[Finding]:
    yield from examine_machine(Path(options.runs))
    if options.path is not None:
        limit = None if options.all else options.sample
        examine = examine_config if _is_config(options.path) else examine_folder
        yield from examine(options.path, limit)


def _is_config(path: Path) -> bool:
    """Tell a config or recipe from data; a .yaml may be YOLO's data.yaml."""
    if not path.exists():
        with suppress(ValueError):
            return recipes.find(path, "recipe", "mmdet", "mmseg").is_file()
    if path.suffix in (".yaml", ".yml"):
        try:
            return read_yolo(path) is None
        except DataError:
            return False
    return path.suffix == ".py"


def _write(finding: Finding) -> None:
    """Print a finding as soon as it is known."""
    stream = standard_output()
    level = finding.level.ljust(7)
    line = _line(finding)
    if stream.isatty():
        line = f"\033[{_COLOURS[finding.level]}m{level}\033[0m" + line.removeprefix(level)
    stream.write(encodable(f"{line}\n", stream.encoding))
    stream.flush()


def _line(finding: Finding) -> str:
    remedy = f"\n{'':22}-> {finding.remedy}" if finding.remedy else ""
    text = without_controls(finding.text).replace("\n", r"\x0a")
    return f"{finding.level:7} {finding.subject:13} {text}{without_controls(remedy)}"


if __name__ == "__main__":
    sys.exit(main())
