"""Write an embedded data set: ``python -m davit.data digits|scenes [FOLDER]``."""

import sys
from argparse import ArgumentParser

from . import write_digits, write_scenes

_SETS = {"digits": write_digits, "scenes": write_scenes}


def main() -> None:
    """Write the set that the command line names, and print its folder."""
    parser = ArgumentParser(prog="python -m davit.data", description="Write an embedded data set, unless it is there.")
    parser.add_argument("name", choices=_SETS, help="digits: an image folder; scenes: detection and segmentation")
    parser.add_argument("folder", nargs="?", help="where to (default: data/NAME)")
    args = parser.parse_args()
    sys.stdout.write(f"{_SETS[args.name](args.folder)}\n")


if __name__ == "__main__":
    main()
