"""Read the command line of `davit hub`."""

from __future__ import annotations

import argparse
from typing import Any

from ..commands import command_name
from ..engine.flags import add_class_map, export_flags
from ..parsing import Parser
from ..parsing.results import add_json

ARCHITECTURES = ("auto", "timm", "davit")


def hub_parser() -> Parser:
    """Make the parser of ``python -m davit.hub``."""
    parser = Parser(
        prog=command_name("python -m davit.hub"),
        description="Write a model in timm's format for the Hugging Face hub, or upload it.",
        epilog="Exit status: 0 done, 2 a mistake in the flags or the checkpoint, no login or no network, 3 "
        "the exported model computes something else, and nothing was written.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shared: list[Any] = [export_flags(), _card_flags()]
    add = commands.add_parser("export", parents=shared, help="write model.safetensors, config.json and a card")
    add.add_argument("checkpoint", metavar="CHECKPOINT", help="a file, a run's folder, hf-hub:... or local-dir:...")
    add.add_argument("folder", metavar="DIR", help="the folder to write")
    add.add_argument("--force", action="store_true", help="replace an earlier export")
    add = commands.add_parser("push", parents=shared, help="upload the same to the hub, in one commit")
    add.add_argument("checkpoint", metavar="CHECKPOINT", help="as for export; the folder of an export as it is")
    add.add_argument("repository", metavar="OWNER/NAME", help="where to")
    add.add_argument("--dry-run", action="store_true", help="show the files, their sizes and the card; upload nothing")
    add.add_argument("--private", action="store_true", help="make a new repository private")
    add.add_argument("--revision", default="", metavar="BRANCH", help="upload to this branch (default main)")
    add.add_argument("--message", default="", metavar="TEXT", help="of the commit; default: what is uploaded")
    for command in commands.choices.values():
        add_json(command.add_argument)
    return parser


def _card_flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument_group("card").add_argument
    add("--name", default="", metavar="TEXT", help="title of the card; default: the name of the folder or repository")
    add("--license", default="", metavar="ID", help="such as mit, apache-2.0, cc-by-4.0; default: unknown")
    add("--data", default="", metavar="TEXT|@FILE", help="what the model was trained on")
    add("--description", default="", metavar="TEXT|@FILE", help="what the model is for")
    add_class_map(add)
    add(
        "--architecture",
        choices=ARCHITECTURES,
        default="auto",
        help="of a DaViT: timm's port, so that davit is not needed; or davit's own (default: timm's where it can)",
    )
    return parser
