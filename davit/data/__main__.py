"""Write an embedded data set: ``python -m davit.data digits|scenes [FOLDER] [--as FORM]``."""

import logging
import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from ..commands import command_name, run_cli
from ..text import without_controls
from . import digits, scenes, write_digits, write_scenes

_SETS = {"digits": (write_digits, tuple(digits.FORMS)), "scenes": (write_scenes, scenes.FORMS)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the set that the command line names, and print its folder; return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return run_cli(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> None:
    prog = command_name("python -m davit.data")
    parser = ArgumentParser(prog=prog, description="Write an embedded data set, unless it is there.")
    parser.add_argument("name", choices=_SETS, help="digits: classes; scenes: detection and segmentation")
    parser.add_argument("folder", nargs="?", help="where to (default: data/NAME)")
    listed = "; ".join(f"of {name} {', '.join(forms)}" for name, (_, forms) in _SETS.items())
    parser.add_argument("--as", dest="form", metavar="FORM", help=f"{listed}; default: the first")
    args = parser.parse_args(arguments)
    write, forms = _SETS[args.name]
    if args.form and args.form not in forms:
        parser.error(f"--as {args.form} is not one of {', '.join(forms)}, which {args.name} have")
    sys.stdout.write(without_controls(f"{write(args.folder, args.form or forms[0])}\n"))


if __name__ == "__main__":
    sys.exit(main())
