"""Say what a machine, a data folder or a config lacks for a run, and what to do about it."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from .. import recipes
from ..commands import command_name, run_cli
from ..data import DataError
from ..data.yolo import read_yolo
from ..limits import number
from ..text import without_controls
from .configs import examine_config
from .findings import LEVELS, Finding
from .folders import examine_folder
from .machine import examine_machine

_COLOURS = {"ok": "32", "warning": "33", "error": "31"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print all findings; return exit status 0, 1 where a finding is an error, 2 for a mistake."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return run_cli(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> list[Finding]:
    """Print all findings, and list those that are errors."""
    options = _parser().parse_args(arguments)
    findings = []
    for finding in _examine(options):
        findings.append(finding)
        if not options.json:
            _write(finding)
    good, doubtful, bad = ([finding for finding in findings if finding.level == level] for level in LEVELS)
    if options.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print(f"{len(good)} ok, {len(doubtful)} warnings, {len(bad)} errors")
    return bad


def _examine(options: argparse.Namespace) -> Iterator[Finding]:
    yield from examine_machine(Path(options.output))
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
    level = finding.level.ljust(7)
    if sys.stdout.isatty():
        level = f"\033[{_COLOURS[finding.level]}m{level}\033[0m"
    remedy = f"\n{'':22}-> {finding.remedy}" if finding.remedy else ""
    text = without_controls(finding.text).replace("\n", r"\x0a")
    print(f"{level} {finding.subject:13} {text}{without_controls(remedy)}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=command_name("python -m davit.doctor"), description=__doc__)
    parser.add_argument(
        "path",
        nargs="?",
        type=Path,
        metavar="DATASET_DIR|CONFIG",
        help="data that train.py or the tools of mmdet/ and mmseg/ take (a folder, a data.yaml, a table, a shard), a "
        "recipe (.yaml), or a config of mmdet/ or mmseg/ (.py)",
    )
    parser.add_argument("--all", action="store_true", help="open every picture, however many there are")
    parser.add_argument(
        "--sample",
        **number("sample"),
        default=2000,
        metavar="N",
        help="otherwise: no more of a split (default %(default)s)",
    )
    parser.add_argument("--output", default="output", metavar="DIR", help="where runs write, for the free disk")
    parser.add_argument("--json", action="store_true", help="print a JSON list in place of lines")
    return parser


if __name__ == "__main__":
    sys.exit(main())
