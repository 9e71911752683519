"""Read the command line of ``python -m davit.checkpoint``."""

from __future__ import annotations

from pathlib import Path

from ..choices import CHECKPOINT_LAYOUTS, EMA_CHOICES
from ..commands import command_name
from . import Parser
from .results import add_json, add_output


def checkpoint_parser() -> Parser:
    """Make the parser."""
    parser = Parser(
        prog=command_name("python -m davit.checkpoint"), description="Look into a checkpoint, or convert one."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    inspect = commands.add_parser("inspect", help="say what a checkpoint holds")
    inspect.add_argument("file", type=Path, metavar="FILE", help="a file, or a folder of shards")
    convert = commands.add_parser("convert", help="write the weights under the names of another layout")
    convert.add_argument("source", type=Path, metavar="SRC", help="a file, or a folder of shards")
    convert.add_argument(
        "destination",
        type=Path,
        metavar="DST",
        help=".safetensors, or .pth, .pth.tar, .pt, .bin for PyTorch's format",
    )
    convert.add_argument("--to", required=True, choices=CHECKPOINT_LAYOUTS, help="the layout (no default)")
    convert.add_argument("--force", action="store_true", help="replace DST if it exists")
    for command in (inspect, convert):
        command.add_argument(
            "--prefix",
            default="",
            help="take only the tensors whose names begin so: of a file with several models; default: all",
        )
        command.add_argument(
            "--ema",
            choices=EMA_CHOICES,
            default="auto",
            help="the running average of a training checkpoint: auto (default) takes it where there is one",
        )
        add_json(command.add_argument)
    add_output(inspect.add_argument)
    return parser
