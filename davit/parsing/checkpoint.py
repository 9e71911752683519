"""Read the command line of ``python -m davit.checkpoint``."""

from __future__ import annotations

from pathlib import Path

from ..choices import CHECKPOINT_LAYOUTS, EMA_CHOICES
from ..commands import command_name
from . import Parser
from .results import add_json, add_output

_FILE = "checkpoint: a file of any known layout, a run's folder, or a folder of shards"


def checkpoint_parser() -> Parser:
    """Make the parser."""
    parser = Parser(
        prog=command_name("python -m davit.checkpoint"), description="Show what a checkpoint holds, or convert it."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    inspect = commands.add_parser("inspect", help="show what a checkpoint holds")
    inspect.add_argument("file", type=Path, metavar="FILE", help=_FILE)
    convert = commands.add_parser("convert", help="write the weights with the names of another layout")
    convert.add_argument("source", type=Path, metavar="SRC", help=_FILE)
    convert.add_argument(
        "destination",
        type=Path,
        metavar="DST",
        help="file to write: .safetensors, or .pth, .pth.tar, .pt or .bin in PyTorch's format",
    )
    convert.add_argument("--to", required=True, choices=CHECKPOINT_LAYOUTS, help="layout of the names to write")
    convert.add_argument("--force", action="store_true", help="replace DST if it exists")
    for command in (inspect, convert):
        command.add_argument(
            "--prefix",
            default="",
            metavar="TEXT",
            help="take only the tensors whose names start with TEXT, of a file with several models (default: all)",
        )
        command.add_argument(
            "--ema",
            choices=EMA_CHOICES,
            default="auto",
            help="use the EMA of the weights: if the checkpoint has one (auto), always, or never",
        )
        add_json(command.add_argument)
    add_output(inspect.add_argument)
    return parser
