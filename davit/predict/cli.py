"""Run predict.py: find pictures, classify them, print the results, and name those that could not be read."""

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
from .flags import NO_LONGER, load_asked_for, parse_predict
from .pictures import Picture, find_pictures
from .predictor import Predictor
from .report import write_topk_ids, writer
from .result import Failure, Prediction

log = logging.getLogger(__name__)

_PROGRESS_FROM = 16  # pictures


def main(argv: Sequence[str] | None = None) -> int:
    """Run predict.py and return its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    failed: list[Failure] = []
    try:
        status = run_cli(lambda: failed.extend(_main(argv)))
    except BrokenPipeError:  # the reader has left, as `head` does
        sys.stderr.close()  # else the interpreter complains of the pipe once more
        return OK
    return SOME_FAILED if status == OK and failed else status


def _main(argv: Sequence[str] | None) -> list[Failure]:
    """Return the pictures that could not be read."""
    args, given = parse_predict(argv)
    say_no_longer(NO_LONGER, given)
    if args.pretrained and args.checkpoint:
        raise ValueError(f"--pretrained and --checkpoint {args.checkpoint} exclude each other; give one of them.")
    folder = Path(args.output_dir) if "output_dir" in given else None
    if folder is not None and folder.exists() and not folder.is_dir():
        raise ValueError(f"--output_dir {folder} is a file; name a folder.")
    pictures = find_pictures(args.data, sys.stdin.buffer.read() if "-" in args.data else None)
    predictions, failures = _predict(load_asked_for(args, given), pictures, args, keep=folder is not None)
    if folder is not None:
        log.info("wrote %s", write_topk_ids(folder, predictions))
    for failure in failures:
        log.error("%s could not be read: %s", failure.file, failure.reason)
    if failures:
        log.error("%d of %d pictures could not be read", len(failures), len(pictures))
    return failures


def _predict(
    predictor: Predictor, pictures: Sequence[Picture], args: argparse.Namespace, keep: bool
) -> tuple[list[Prediction], list[Failure]]:
    """Print all results; return the predictions, if they are to be kept, and the failures."""
    predictions: list[Prediction] = []
    failures: list[Failure] = []
    topk = min(args.topk, len(predictor.class_names))
    is_many = len(pictures) >= _PROGRESS_FROM
    # a bar and a table on one terminal would run into each other: the table waits
    stream = io.StringIO() if is_many and sys.stdout.isatty() and sys.stderr.isatty() else sys.stdout
    out = writer(args.format, stream, topk, width=shutil.get_terminal_size().columns)
    results = predictor.predict_each(pictures, topk, batch_size=args.batch_size, workers=usable_workers(args.workers))
    interval = args.log_freq * args.batch_size or len(pictures)
    progress = Progress(len(pictures), "pictures", images_per_step=1, interval=interval, enabled=is_many)
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
