"""Run predict.py: find images, classify them, print the results, and name those that could not be read."""

from __future__ import annotations

import io
import logging
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..commands import OK, run_cli
from ..engine.build import usable_workers
from ..engine.flags import given_flags
from ..engine.progress import Progress
from ..parsing.results import put, require_writable, require_writable_folder, standard_output
from ..text import as_line
from .flags import NO_LONGER, load_asked_for, predict_parser
from .pictures import find_pictures
from .report import write_file, write_results, write_topk_ids
from .result import Failure, Prediction

log = logging.getLogger(__name__)

_PROGRESS_FROM = 16  # images


def main(argv: Sequence[str] | None = None) -> int:
    """Run predict.py and return its exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return run_cli(lambda: _main(argv))
    except BrokenPipeError:  # the reader has left, as `head` does
        sys.stderr.close()  # else the interpreter complains of the pipe once more
        return OK


def _main(argv: Sequence[str] | None) -> list[Failure]:
    """Return the images that could not be read."""
    args, given = predict_parser().parse_args(argv), given_flags(predict_parser, argv)
    folder = Path(args.output_dir) if "output_dir" in given else None
    if folder is not None:
        require_writable_folder(folder, "--output_dir")
    require_writable(args.output)
    pictures = find_pictures(args.data, sys.stdin.buffer.read() if "-" in args.data else None)
    predictor = load_asked_for(args, given, NO_LONGER)
    topk = min(args.topk, len(predictor.class_names)) if predictor.thresholds is None or "topk" in given else None
    results = predictor.predict_each(pictures, topk, batch_size=args.batch_size, workers=usable_workers(args.workers))
    form = "json" if args.json else args.format
    predictions: list[Prediction] = []
    kept: list[Prediction | Failure] = []
    failures: list[Failure] = []
    is_many = len(pictures) >= _PROGRESS_FROM
    interval = args.log_freq * args.batch_size or len(pictures)

    def watched() -> Iterator[Prediction | Failure]:
        with Progress(len(pictures), "images", images_per_step=1, interval=interval, enabled=is_many) as progress:
            for result in results:
                if args.output:
                    kept.append(result)
                yield result
                progress.update()
                if isinstance(result, Failure):
                    failures.append(result)
                elif folder is not None:
                    predictions.append(result)

    # a bar and a table on one terminal would run into each other: the table waits
    stream = io.StringIO() if is_many and standard_output().isatty() and sys.stderr.isatty() else standard_output()
    is_multilabel = predictor.thresholds is not None
    columns = None if is_multilabel else topk
    write_results(watched(), form, stream, columns, width=shutil.get_terminal_size().columns)
    if isinstance(stream, io.StringIO):
        put(stream.getvalue())
    if args.output:
        write_file(Path(args.output), kept, columns)
        log.info("wrote %s", as_line(args.output))
    if folder is not None:
        log.info("wrote %s", write_topk_ids(folder, predictions))
    for failure in failures:
        log.error("%s could not be read: %s", as_line(failure.file), failure.reason)
    if failures:
        log.error("%d of %d images could not be read", len(failures), len(pictures))
    return failures
