"""Run a command by ``python -m davit NAME``, as the command `davit` does."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main(prog="python -m davit"))
