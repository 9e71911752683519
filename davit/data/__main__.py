"""Write an embedded data set: ``python -m davit.data digits|scenes [FOLDER]``."""

import sys
from argparse import ArgumentParser

from . import write_digits, write_scenes
from .digits import FORMS


def main() -> None:
    """Write the set that the command line names, and print its folder."""
    parser = ArgumentParser(prog="python -m davit.data", description="Write an embedded data set, unless it is there.")
    parser.add_argument("name", choices=("digits", "scenes"), help="digits: classes; scenes: detection and segmentation")
    parser.add_argument("folder", nargs="?", help="where to (default: data/NAME)")
    parser.add_argument("--as", dest="form", choices=FORMS, help="of the digits: the form (default: folder)")
    args = parser.parse_args()
    if args.form and args.name != "digits":
        parser.error(f"--as {args.form} is for digits")
    folder = write_digits(args.folder, args.form or "folder") if args.name == "digits" else write_scenes(args.folder)
    sys.stdout.write(f"{folder}\n")


if __name__ == "__main__":
    main()
