"""Evaluate a classifier on ImageNet's variants and on corrupted images."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from ..commands import run_cli
from .run import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate; return exit status 0, 1 where some sets could not be evaluated, 2 for a mistake."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return run_cli(lambda: run(arguments))


if __name__ == "__main__":
    sys.exit(main())
