"""Export a model to another runtime: ``python -m davit.export CHECKPOINT OUT``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from ..commands import run_cli
from ..engine.flags import given_flags
from ..engine.load_model import ModelOptions
from ..parsing.results import give
from ..text import as_utf8
from .flags import export_parser
from .options import ExportOptions, Int8Options
from .run import export

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Export; return exit status 0, 2 for a mistake, 3 where the export computes something else."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return run_cli(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> None:
    args, given = export_parser().parse_args(arguments), given_flags(export_parser, arguments)
    if args.pretrained and (args.checkpoint or not args.model):
        raise ValueError("`pretrained=True` is for the published weights of `model=NAME`, without a CHECKPOINT.")
    if not (args.pretrained or args.checkpoint):
        raise ValueError("give a CHECKPOINT and OUT, or `model=NAME`, `pretrained=True` and OUT.")
    names = ModelOptions.__dataclass_fields__
    options = ExportOptions(
        to=args.to,
        task="features" if args.features else "pyramid" if args.pyramid else "classification",
        model=args.model or None,
        model_options={name: value for name, value in vars(args).items() if name in given and name in names},
        config=args.config or None,
        raw=args.raw,
        preprocess="uint8" if args.preprocess else "none",
        layout=args.layout,
        fp16=args.fp16,
        fixed=args.fixed,
        batch=args.batch_size,
        opset=int(args.opset),
        check=not args.no_check,
        tolerance=args.tolerance,
        class_map=args.class_map or None,
        licence=args.license,
        int8=_int8(args, given),
        overwrite=args.overwrite,
    )
    exported = export(args.checkpoint, args.out, options)
    source = args.checkpoint or args.model
    document = {
        **{"source": as_utf8(source), "file": as_utf8(exported.path), "files": exported.files},
        **{"differences": list(exported.metadata.differences), "unchecked": exported.metadata.unchecked},
        **{"seconds": round(exported.seconds, 2), "report": str(exported)},
    }
    give(args, f"{source} -> {exported.path}\n{exported}", document)


def _int8(args: argparse.Namespace, given: set[str]) -> Int8Options | None:
    """Return how to quantize; None where it is not asked for."""
    if args.int8 is None:
        for name in ("max_drop", "calibration", "seed"):
            if name in given:
                log.warning("--%s is for --int8 DATA, and does nothing without it", name.replace("_", "-"))
        return None
    return Int8Options(args.int8, args.max_drop, args.calibration, args.seed)


if __name__ == "__main__":
    sys.exit(main())
