"""Write a model in timm's format for the Hugging Face hub, or upload it: ``python -m davit.hub export|push``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from ..commands import command_name, run_cli
from ..engine.flags import export_flags, given_flags
from ..engine.load_model import ModelOptions
from ..text import without_controls
from .export import ARCHITECTURES, DIFFERENT, ExportOptions, export
from .push import PushOptions, push


def main(arguments: Sequence[str] | None = None) -> int:
    """Export or upload; return exit status 0, 2 for a mistake, 3 where the written model computes something else."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return run_cli(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> None:
    args, given = _parser().parse_args(arguments), given_flags(_parser, arguments)
    options = ExportOptions(
        model=args.model or None,
        model_options=ModelOptions.from_values(
            {"no_test_pool": True, **{name: value for name, value in vars(args).items() if name in given}}
        ),
        architecture=args.architecture,
        class_map=args.class_map or None,
        name=args.name or None,
        license=args.license,
        data=_text(args.data),
        description=_text(args.description),
    )
    if args.command == "export":
        exported = export(args.checkpoint, args.folder, options, force=args.force)
        sys.stdout.write(without_controls(f"{args.checkpoint} -> {exported.folder}\n{exported}\n"))
        return
    pushing = PushOptions(args.private, args.revision, args.message, args.dry_run)
    pushed = push(args.checkpoint, args.repository, options, pushing)
    lines = [f"{name}  {size:,} bytes" for name, size in pushed.files.items()]
    where = f"uploaded to {pushed.url}" if pushed.url else f"would go to {pushed.repository}; nothing was uploaded"
    shown = f"\n{pushed.card}" if args.dry_run else ""
    sys.stdout.write(without_controls("\n".join([*lines, where]) + "\n" + shown))


def _text(value: str) -> str:
    """Return a text of a flag, or that of the file that it names as @FILE."""
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{value}: a text file is expected behind @ ({error}).") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=command_name("python -m davit.hub"),
        description=__doc__,
        epilog=f"Exit status: 0 done, 2 a mistake in the flags or the checkpoint, no login or no network, {DIFFERENT} "
        "the exported model computes something else, and nothing was written.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shared = [export_flags(), _card_flags()]
    add = commands.add_parser("export", parents=shared, help="write model.safetensors, config.json and a card")
    add.add_argument("checkpoint", metavar="CHECKPOINT", help="a file, a run's folder, hf-hub:... or local-dir:...")
    add.add_argument("folder", metavar="DIR")
    add.add_argument("--force", action="store_true", help="replace an earlier export")
    add = commands.add_parser("push", parents=shared, help="upload the same to the hub, in one commit")
    add.add_argument("checkpoint", metavar="CHECKPOINT", help="as for export; the folder of an export as it is")
    add.add_argument("repository", metavar="OWNER/NAME")
    add.add_argument("--dry-run", action="store_true", help="show the files, their sizes and the card; upload nothing")
    add.add_argument("--private", action="store_true", help="make a new repository private")
    add.add_argument("--revision", default="", metavar="BRANCH", help="upload to this branch (default main)")
    add.add_argument("--message", default="", metavar="TEXT", help="of the commit")
    return parser


def _card_flags() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    add = parser.add_argument_group("card").add_argument
    add("--name", default="", metavar="TEXT", help="title of the card; default: the name of the folder or repository")
    add("--license", default="", metavar="ID", help="such as mit, apache-2.0, cc-by-4.0; default: unknown")
    add("--data", default="", metavar="TEXT|@FILE", help="what the model was trained on")
    add("--description", default="", metavar="TEXT|@FILE", help="what the model is for")
    add("--class-map", default="", metavar="FILE|DIR", help="class names, one a line, or a data folder that has them")
    add(
        "--architecture",
        choices=ARCHITECTURES,
        default="auto",
        help="of a DaViT: timm's port, so that davit is not needed; or davit's own (default: timm's where it can)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
