"""Draw what a classifier looks at in images, or the curves of training runs."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from ..commands import run_cli
from ..data import BadImageError
from ..engine.curves import draw_curves
from ..engine.flags import given_flags
from ..parsing.results import as_json, put, require_writable_folder
from ..predict import Predictor
from ..predict.flags import ONE_BY_ONE, load_asked_for
from ..predict.pictures import distinct_names, find_pictures
from ..text import as_line, as_utf8, some
from .figure import draw_picture
from .flags import visualize_parser

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw; return exit status 0, 1 where some images could not be drawn, 2 for a mistake."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return run_cli(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> list[str]:
    """Draw, and list the images that could not be drawn."""
    args = visualize_parser().parse_args(arguments)
    if not args.runs and not args.pictures:
        raise ValueError("give an image and --checkpoint, or --runs with the folders of training runs.")
    if not args.runs:
        return _draw_pictures(args, given_flags(visualize_parser, arguments))
    if args.pictures:
        raise ValueError("give either images or --runs, not both.")
    out = Path(args.out or "curves.png")
    draw_curves([_summary(Path(run)) for run in args.runs], out)
    log.info("%d %s drawn in %s", len(args.runs), "runs" if len(args.runs) > 1 else "run", out)
    if args.json:
        put(as_json({"runs": list(map(as_utf8, args.runs)), "drawn": as_utf8(out)}))
    return []


def _draw_pictures(args: argparse.Namespace, given: set[str]) -> list[str]:
    if "-" in args.pictures:
        raise ValueError("images and lists on standard input are for predict.py: name files or folders here.")
    files = list(map(str, find_pictures(args.pictures)))
    if len(files) > 1 and args.out and Path(args.out).suffix:
        raise ValueError(f"--out {args.out} is one file, and there are {len(files)} images; name a folder.")
    require_writable_folder(Path(args.out).parent if Path(args.out).suffix else Path(args.out), "--out")
    predictor = load_asked_for(args, given, ONE_BY_ONE)
    wanted = _class_index(predictor, args.class_name)
    names = distinct_names([Path(file) for file in files])
    failed, drawn = [], []
    for file in files:
        out = _destination(names[Path(file)], args.out)
        try:
            found = draw_picture(predictor, file, out, wanted)
        except BadImageError as error:
            log.error("%s could not be read: %s", as_line(error.file), error.reason)
            failed.append(file)
        else:
            percent = 100 * found.probability
            log.info("%s: %s, %.1f %%; drawn in %s", as_line(file), as_line(found.name), percent, as_line(out))
            seen = {"file": as_utf8(file), "class": found.name, "index": found.index, "probability": found.probability}
            drawn.append({**seen, "drawn": as_utf8(out)})
    if args.json:
        put(as_json(drawn))
    return failed


def _destination(name: str, out: str) -> Path:
    if out and Path(out).suffix:
        return Path(out)
    folder = Path(out or ".")
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{name}-seen.png"


def _class_index(predictor: Predictor, wanted: str) -> int | None:
    names = predictor.class_names
    if not wanted:
        return None
    if wanted in names:
        return names.index(wanted)
    if wanted.isdigit() and int(wanted) < len(names):
        return int(wanted)
    near = [name for name in names if wanted.lower() in name.lower()]
    if len(near) == 1:
        return names.index(near[0])
    what = "not one" if near else "none"
    raise ValueError(f"--class {wanted!r} is {what} of the model's classes: {some(near or names, 10)}.")


def _summary(run: Path) -> Path:
    if not run.is_dir():
        return run
    if not (run / "summary.csv").is_file():
        raise ValueError(f"{run} is no folder of a run: it holds no summary.csv.")
    return run / "summary.csv"


if __name__ == "__main__":
    sys.exit(main())
