"""Run image_demo.py of mmdet/tools and mmseg/tools: draw what is found in images, and list it in a json."""

from __future__ import annotations

import logging
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from ..commands import run_cli
from ..parsing.openmmlab import demo_parser
from ..parsing.results import json_alone
from ..predict.detector import ExportedDetector
from ..predict.drawn import draw_all, require_place
from ..runtimes import is_exported
from .config import faults_named, load_config
from .predictor import Predictor

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw and list what is in one image or a folder of them; returns the exit status.

    A file that is no image is named and passed over; the status at the end is then 2.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)

    def work() -> None:
        args = demo_parser().parse_args(argv)
        with json_alone(args.json), faults_named(args):
            _work(args)

    return run_cli(work)


def _work(args: Namespace) -> None:
    require_place(args.picture)
    predictor: Predictor | ExportedDetector
    if is_exported(args.checkpoint):
        log.info("%s is exported, and says by itself what %s does; it runs on the CPU.", args.checkpoint, args.config)
        predictor = ExportedDetector(args.checkpoint, args.score_thr)
    else:
        cfg = load_config(args)
        with faults_named(args, building=True):
            predictor = Predictor(cfg, args.checkpoint, args.score_thr, args.device)
    draw_all(args.picture, predictor, Path(args.out_dir), is_json=args.json)
