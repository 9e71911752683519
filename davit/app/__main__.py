"""Serve a page on which one drops an image and sees what a model finds in it."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..commands import run_cli
from ..engine.flags import given_flags, model_asked_for, say_no_longer
from ..loading import load_by_flags
from ..predict import Predictor
from ..predict.flags import ONE_BY_ONE
from .flags import app_parser
from .page import build_page, gradio, serve
from .readers import ClassifierReader, DrawnReader, Reader


def main(arguments: Sequence[str] | None = None, block: bool = True) -> int:
    """Serve the page; return exit status 0 when it was ended, 2 for a mistake."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    return run_cli(lambda: _main(arguments, block))


def _main(arguments: Sequence[str] | None, block: bool) -> None:
    args = app_parser().parse_args(arguments)
    if block:
        _end_as_by_ctrl_c()
    with tempfile.TemporaryDirectory(prefix="davit-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # images that are dropped; gone when the page ends
        gradio()
        reader = _reader(args, given_flags(app_parser, arguments))
        where = {"folder": Path(folder), "also_at": args.also_at}
        serve(build_page(reader), args.host, args.port, args.max_megabytes, block, **where)


def _reader(args: argparse.Namespace, given: set[str]) -> Reader:
    say_no_longer(ONE_BY_ONE, given)
    name, loaded = load_by_flags(args, given, None if args.config else model_asked_for(args, given))
    return ClassifierReader(loaded) if isinstance(loaded, Predictor) else DrawnReader(name, loaded)


def _end_as_by_ctrl_c() -> None:
    """Remove dropped images also when the page is killed, or its terminal is closed (without nohup)."""
    for ending in {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:  # Windows has no SIGHUP
        if signal.getsignal(ending) is not signal.SIG_IGN:
            signal.signal(ending, signal.default_int_handler)


if __name__ == "__main__":
    sys.exit(main())
