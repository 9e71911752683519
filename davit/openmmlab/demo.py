"""Run image_demo.py of mmdet/tools and mmseg/tools: draw what is found in pictures, and list it in a json."""

from __future__ import annotations

import json
import logging
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from ..commands import run_cli
from ..data import BadImageError
from ..files import write_bytes
from ..parsing.openmmlab import demo_parser
from ..parsing.results import as_json, json_alone, put
from ..predict.detector import ExportedDetector
from ..predict.pictures import distinct_names, find_pictures
from ..runtimes import is_exported
from ..text import as_line, some
from .config import faults_named, load_config
from .predictor import Predictor

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Draw and list what is in one picture or a folder of them; returns the exit status.

    A file that is no picture is named and passed over; the status at the end is then 2.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)

    def work() -> None:
        args = demo_parser().parse_args(argv)
        with json_alone(args.json), faults_named(args):
            _work(args)

    return run_cli(work)


def _work(args: Namespace) -> None:
    files = _pictures(args.picture)
    predictor: Predictor | ExportedDetector
    if is_exported(args.checkpoint):
        log.info("%s is exported, and says by itself what %s does; it runs on the CPU.", args.checkpoint, args.config)
        predictor = ExportedDetector(args.checkpoint, args.score_thr)
    else:
        cfg = load_config(args)
        with faults_named(args, building=True):
            predictor = Predictor(cfg, args.checkpoint, args.score_thr, args.device)
    folder = Path(args.out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    names = distinct_names(files)
    results, bad = {}, []
    for file in files:
        try:
            found = predictor.predict(file)
        except BadImageError as error:
            log.warning("%s: %s; passed over.", as_line(error.file), error.reason)
            bad.append(str(file))
            continue
        results[str(file)] = found.to_json()
        found.draw().save(folder / f"{names[file]}.png")
    write_bytes(folder / "predictions.json", json.dumps(results, indent=1).encode())
    if args.json:
        put(as_json(results))
    log.info("%d pictures drawn in %s, and listed in its predictions.json.", len(results), folder)
    if bad:
        raise ValueError(f"{len(bad)} of {len(files)} files could not be read as pictures: {some(bad, 3)}.")


def _pictures(place: str) -> list[Path]:
    if not Path(place).exists():
        raise ValueError(f"{place}: there is no such picture or folder.")
    return [Path(str(file)) for file in find_pictures([place])]
