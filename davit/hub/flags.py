"""Read the command line of `davit hub`."""

from __future__ import annotations

import argparse
from typing import Any

from ..commands import command_name
from ..engine.flags import CHECKPOINT, add_class_map, export_flags
from ..parsing import Parser
from ..parsing.results import add_json

ARCHITECTURES = ("auto", "timm", "davit")


def hub_parser() -> Parser:
    """Make the parser of ``python -m davit.hub``."""
    parser = Parser(
        prog=command_name("python -m davit.hub"),
        description="Write a model in timm's format, for the Hugging Face hub, or upload it.",
        epilog="Exit status: 0 done, 2 a mistake in the flags or the checkpoint, no login or no network, 3 "
        "the exported model computes something else, so nothing was written.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shared: list[Any] = [export_flags(), _card_flags()]
    add = commands.add_parser(
        "export", parents=shared, help="write a folder with model.safetensors, config.json and a card"
    )
    add.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT)
    add.add_argument("folder", metavar="DIR", help="folder to write")
    add.add_argument("--force", action="store_true", help="replace an earlier export")
    add = commands.add_parser("push", parents=shared, help="upload the same to the hub in one commit")
    add.add_argument(
        "checkpoint", metavar="CHECKPOINT", help=f"{CHECKPOINT}; a folder of `hub export` is uploaded as it is"
    )
    add.add_argument("repository", metavar="OWNER/NAME", help="repository of the hub to upload to")
    add.add_argument("--dry-run", action="store_true", help="show the files, their sizes and the card; upload nothing")
    add.add_argument("--private", action="store_true", help="if the repository is new, make it private")
    add.add_argument("--revision", default="", metavar="BRANCH", help="upload to this branch (default: main)")
    add.add_argument("--message", default="", metavar="TEXT", help="message of the commit (default: what is uploaded)")
    for command in commands.choices.values():
        add_json(command.add_argument)
    return parser


def _card_flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument_group("card").add_argument
    add("--name", default="", metavar="TEXT", help="title of the card (default: the folder's or repository's name)")
    add(
        "--license",
        default="",
        metavar="ID",
        help="licence of the weights: mit, apache-2.0, cc-by-4.0 ... (default: unknown)",
    )
    add("--data", default="", metavar="TEXT|@FILE", help="text, or file with it: what the model was trained on")
    add("--description", default="", metavar="TEXT|@FILE", help="text, or file with it: what the model is for")
    add_class_map(add)
    add(
        "--architecture",
        choices=ARCHITECTURES,
        default="auto",
        help="name a DaViT as timm's port, which runs without davit, or as davit's own (default: auto, timm's if its "
        "port can run it)",
    )
    return parser
