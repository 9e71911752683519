"""Read the command line of `davit doctor`."""

from __future__ import annotations

from pathlib import Path

from ..commands import command_name
from ..limits import number
from ..parsing import Parser
from ..parsing.results import add_json, add_output


def doctor_parser() -> Parser:
    """Make the parser of ``python -m davit.doctor``."""
    parser = Parser(
        prog=command_name("python -m davit.doctor"),
        description="Say what a machine, a data folder or a config lacks for a run, and what to do about it.",
    )
    parser.add_argument(
        "path",
        nargs="?",
        type=Path,
        metavar="DATASET_DIR|CONFIG",
        help="data that train.py or the tools of mmdet/ and mmseg/ take (a folder, a data.yaml, a table, a shard), a "
        "recipe (.yaml), or a config of mmdet/ or mmseg/ (.py)",
    )
    parser.add_argument("--all", action="store_true", help="open every image, however many there are")
    parser.add_argument(
        "--sample",
        **number("sample"),
        default=2000,
        metavar="N",
        help="otherwise: no more of a split (default %(default)s)",
    )
    parser.add_argument("--runs", default="output", metavar="DIR", help="where runs write, for the free disk")
    add_json(parser.add_argument)
    add_output(parser.add_argument)
    return parser
