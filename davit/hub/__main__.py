"""Write a model in timm's format for the Hugging Face hub, or upload it: ``python -m davit.hub export|push``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from ..commands import run_cli
from ..engine.flags import given_flags
from ..engine.load_model import ModelOptions
from ..parsing.results import give
from ..text import as_utf8
from .export import ExportOptions, export
from .flags import hub_parser
from .push import PushOptions, push


def main(arguments: Sequence[str] | None = None) -> int:
    """Export or upload; return exit status 0, 2 for a mistake, 3 where the written model computes something else."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return run_cli(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> None:
    args, given = hub_parser().parse_args(arguments), given_flags(hub_parser, arguments)
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
        document = {
            **{"source": as_utf8(args.checkpoint), "folder": as_utf8(exported.folder), "files": dict(exported.files)},
            **{"architecture": exported.architecture, "needs_davit": exported.needs_davit},
            **{"difference": exported.difference},
        }
        give(args, f"{args.checkpoint} -> {exported.folder}\n{exported}", document)
        return
    pushing = PushOptions(args.private, args.revision, args.message, args.dry_run)
    pushed = push(args.checkpoint, args.repository, options, pushing)
    lines = [f"{name}  {size:,} bytes" for name, size in pushed.files.items()]
    where = f"uploaded to {pushed.url}" if pushed.url else f"would go to {pushed.repository}; nothing was uploaded"
    shown = f"\n{pushed.card}" if args.dry_run else ""
    document = {
        **{"repository": pushed.repository, "url": pushed.url or None, "files": dict(pushed.files)},
        "card": pushed.card if args.dry_run else None,
    }
    give(args, "\n".join([*lines, where]) + "\n" + shown, document)


def _text(value: str) -> str:
    """Return a text of a flag, or that of the file that it names as @FILE."""
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{value}: a text file is expected behind @ ({error}).") from error


if __name__ == "__main__":
    sys.exit(main())
