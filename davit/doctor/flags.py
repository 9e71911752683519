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
        description="Check this machine, a data set or a config before a run, and say what to do about each problem.",
    )
    parser.add_argument(
        "path",
        nargs="?",
        type=Path,
        metavar="DATASET_DIR|CONFIG",
        help="a data set (folder, table, tar shard, or YOLO's data.yaml), a recipe (.yaml), or a config of mmdet/ or "
        "mmseg/ (.py) (default: check this machine)",
    )
    parser.add_argument("--all", action="store_true", help="open every image of the data set")
    parser.add_argument(
        "--sample",
        **number("sample"),
        default=2000,
        help="without --all: open at most N images of each split",
    )
    parser.add_argument(
        "--runs", default="output", metavar="DIR", help="folder of runs, whose free disk space is checked"
    )
    add_json(parser.add_argument)
    add_output(parser.add_argument)
    return parser
