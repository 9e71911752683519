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
from ..engine.flags import given_flags
from ..predict.flags import ONE_BY_ONE, load_asked_for
from ..text import install_extra
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
    if args.config:
        if not args.checkpoint:
            raise ValueError("--config needs the --checkpoint of the detector or segmentor.")
        try:
            from ..openmmlab.predictor import Predictor

            finder = Predictor(args.config, args.checkpoint, args.score_thr, device=args.device)
        except ImportError as error:
            raise ValueError(f"--config needs OpenMMLab's packages ({error}): {install_extra('openmmlab')}") from error
        return DrawnReader(Path(args.config).stem, finder)
    if not args.checkpoint and "model" not in given:
        raise ValueError("give the --checkpoint of a classifier, or --model for published weights.")
    return ClassifierReader(load_asked_for(args, given, ONE_BY_ONE))


def _end_as_by_ctrl_c() -> None:
    """Remove dropped images also when the page is killed, or its terminal is closed (without nohup)."""
    for ending in {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:  # Windows has no SIGHUP
        if signal.getsignal(ending) is not signal.SIG_IGN:
            signal.signal(ending, signal.default_int_handler)


if __name__ == "__main__":
    sys.exit(main())
