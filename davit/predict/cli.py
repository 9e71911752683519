"""What predict.py does: pictures are found, classified and told of; those that could not be read are named."""

from __future__ import annotations

import argparse
import io
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from ..commands import OK, SOME_FAILED, run_cli
from ..engine.build import usable_workers
from ..engine.flags import say_no_longer
from ..engine.progress import Progress
from .flags import NO_LONGER, evaluation_flags, parse_predict
from .pictures import Picture, find_pictures
from .predictor import Predictor, load_from
from .report import write_topk_ids, writer
from .result import Failure, Prediction

log = logging.getLogger(__name__)

_PROGRESS_FROM = 16  # pictures


def main(argv: Sequence[str] | None = None) -> int:
    """Run predict.py; returns its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    failed: list[Failure] = []
    try:
        status = run_cli(lambda: failed.extend(_main(argv)))
    except BrokenPipeError:  # whoever reads has had enough, as `head` has
        sys.stderr.close()  # else the interpreter complains of the pipe once more
        return OK
    return SOME_FAILED if status == OK and failed else status


def _main(argv: Sequence[str] | None) -> list[Failure]:
    """The pictures that could not be read."""
    args, given = parse_predict(argv)
    say_no_longer(NO_LONGER, given)
    _check(args, given)
    pictures = find_pictures(args.data, sys.stdin.buffer.read() if "-" in args.data else None)
    predictor = load_from(
        evaluation_flags(args, given),
        *(args.checkpoint or None, args.model if "model" in given or not args.checkpoint else None),
        device=args.device,
        names=args.class_map or None,
    )
    predictions, failures = _predict(predictor, pictures, args, keep="output_dir" in given)
    if "output_dir" in given:
        log.info("wrote %s", write_topk_ids(Path(args.output_dir), predictions))
    for failure in failures:
        log.error("%s could not be read: %s", failure.file, failure.reason)
    if failures:
        log.error("%d of %d pictures could not be read", len(failures), len(pictures))
    return failures


def _check(args: argparse.Namespace, given: set[str]) -> None:
    """What argparse cannot see; raises `ValueError` before anything takes time."""
    for name in ("topk", "batch_size", "log_freq", "num_classes"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)} is not a number of 1 or more.")
    if args.pretrained and args.checkpoint:
        raise ValueError(f"--pretrained and --checkpoint {args.checkpoint} exclude each other; give one of them.")
    if args.input_size and args.input_size[0] != 3:
        raise ValueError(f"--input-size {args.input_size}: pictures are read as RGB, so C must be 3.")
    if "output_dir" in given and Path(args.output_dir).exists() and not Path(args.output_dir).is_dir():
        raise ValueError(f"--output_dir {args.output_dir} is a file; name a folder.")


def _predict(
    predictor: Predictor, pictures: Sequence[Picture], args: argparse.Namespace, keep: bool
) -> tuple[list[Prediction], list[Failure]]:
    """Print all results; returns the predictions, where they are to be kept, and the failures."""
    predictions: list[Prediction] = []
    failures: list[Failure] = []
    topk = min(args.topk, len(predictor.class_names))
    # a bar and a table on one terminal would run into each other: the table waits
    waits = len(pictures) >= _PROGRESS_FROM and sys.stdout.isatty() and sys.stderr.isatty()
    stream = io.StringIO() if waits else sys.stdout
    out = writer(args.format, stream, topk, width=shutil.get_terminal_size().columns)
    results = predictor.predict_each(pictures, topk, batch_size=args.batch_size, workers=usable_workers(args.workers))
    interval = args.log_freq * args.batch_size
    progress = Progress(
        *(len(pictures), "pictures"),
        images_per_step=1,
        interval=interval,
        enabled=len(pictures) >= _PROGRESS_FROM,
    )
    with progress:
        for result in results:
            out.add(result)
            progress.update()
            if isinstance(result, Failure):
                failures.append(result)
            elif keep:
                predictions.append(result)
    out.close()
    if isinstance(stream, io.StringIO):
        sys.stdout.write(stream.getvalue())
    sys.stdout.flush()
    return predictions, failures
