"""Prepare data: write an embedded set, split a folder into train and val, measure the bands of images.

``python -m davit.data digits|scenes [FOLDER] [--as FORM]``, ``... split FOLDER OUT``, ``... stats DATASET_DIR``.
"""

import logging
import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

from ..choices import CLASSIFICATION, MULTILABEL, TASKS
from ..commands import command_name, run_cli
from ..files import write_bytes
from ..limits import number
from ..parsing import Parser
from ..parsing.data import add_bands, add_data_form, add_keys, add_split, add_workers
from ..parsing.results import add_json, give, put, require_writable
from ..text import as_line, as_utf8, some
from . import digits, scenes
from .errors import DataError

log = logging.getLogger(__name__)

_SETS = {"digits": (digits.write_digits, tuple(digits.FORMS)), "scenes": (scenes.write_scenes, scenes.FORMS)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return run_cli(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> None:
    args = data_parser().parse_args(arguments)
    args.run(args)


def data_parser() -> Parser:
    """Make the parser, without PyTorch."""
    prog = command_name("python -m davit.data")
    parser = Parser(prog=prog, description="Write a sample data set, or prepare one of your own.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (_, forms) in _SETS.items():
        of = "handwritten digits, to classify" if name == "digits" else "drawn scenes, for detection and segmentation"
        one = commands.add_parser(name, help=f"write a sample set of {of}")
        one.description = f"Write a sample set of {of}, unless it is there."
        one.add_argument("folder", nargs="?", metavar="FOLDER", help=f"folder to write (default: data/{name})")
        one.add_argument("--as", dest="form", default=forms[0], choices=forms, help="form to write it in")
        add_json(one.add_argument)
        one.set_defaults(run=_write, name=name)
    _add_split(commands.add_parser("split", help="split a folder of class folders, or a csv, into train/ and val/"))
    _add_stats(commands.add_parser("stats", help="measure the mean and std of the bands, for --mean and --std"))
    return parser


def _add_split(parser: ArgumentParser) -> None:
    parser.description = (
        "Write OUT/train and OUT/val, with a folder for each class and a link to each image. Each class is split "
        "separately. Files with the same content go into the same part. If images have several labels, OUT/labels.csv "
        "is written instead of class folders, and each label is split as evenly as possible."
    )
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="folder with one folder for each class, or a csv of files and labels")
    add("out", metavar="OUT", help="new folder to write")
    add("--val", **number("val"), default=0.2, help="share of each class's images for OUT/val, 0 to 1")
    add("--test", **number("test"), default=0.0, help="share of each class's images for OUT/test, 0 to 1")
    add("--seed", **number("seed"), default=0, help="seed of the choice of images")
    add("--copy", action="store_true", help="copy the images instead of writing symbolic links to them")
    add(
        "--group-pattern",
        metavar="REGEX",
        help="keep images together if this finds the same text in their paths below FOLDER, such as 'patient[0-9]+'",
    )
    add(
        "--group-key",
        metavar="NAME",
        help="keep images together if they have the same text in this column of the csv",
    )
    add_keys(add)
    add(
        "--task",
        default=CLASSIFICATION,
        choices=TASKS,
        help="classification: one class for each image; multilabel: any number of them, which OUT/labels.csv then has "
        "(default: as the labels are)",
    )
    add_json(add)
    parser.set_defaults(run=_split)


def _add_stats(parser: ArgumentParser) -> None:
    parser.description = (
        "Measure the mean and std of each band of the images, as they are before cropping and normalisation; print "
        "them as flags of train.py."
    )
    add = parser.add_argument
    add("data_dir", metavar="DATASET_DIR", help="data folder, table, tar shard, or pattern of files, as for train.py")
    add_split(add, "train")
    add_data_form(add)
    add_bands(add, 3)
    add("--limit", **number("limit"), help="measure only N images, drawn by --seed (default: all)")
    add("--seed", **number("seed"), default=0, help="seed of the choice of images")
    add_workers(add, None)
    add("--json", action="store_true", help="print one JSON document, the recipe, and nothing else")
    add(
        "--output",
        type=Path,
        metavar="FILE",
        help="also write the results to FILE: a recipe for train.py -c, as JSON if it ends in .json, else as YAML",
    )
    parser.set_defaults(run=_stats)


def _write(args: Namespace) -> None:
    write, _ = _SETS[args.name]
    folder = str(write(args.folder, args.form))
    give(args, folder, {"folder": as_utf8(folder), "form": args.form})


def _split(args: Namespace) -> None:
    from .split import split_pictures

    names = ("val", "test", "seed", "copy", "group_pattern", "group_key", "task")
    options = {name: getattr(args, name) for name in names}
    options |= {name: getattr(args, name) or None for name in ("input_key", "target_key")}
    found = split_pictures(args.folder, args.out, **options)
    for line in str(found).splitlines():
        log.info("%s", line)
    if found.groups:
        log.info("%s groups of images were kept together.", f"{found.groups:,}")
    if found.alike:
        have = "1 file has" if found.alike == 1 else f"{found.alike} files have"
        log.warning("%s the same content as another one, and went where that is.", have)
    if found.contradicting:
        pairs = some((f"{one} as {other}" for one, other in found.contradicting), 3)
        said = "%d of these with another label, so that one of the two is wrong: %s."
        log.warning(said, len(found.contradicting), pairs)
    document = {"folder": as_utf8(args.out), "groups": found.groups, "alike": found.alike, "report": str(found)}
    give(args, str(args.out), document)


def _stats(args: Namespace) -> None:
    from . import Decoding, open_dataset
    from .statistics import measure_bands
    from .tables import is_of_several

    require_writable(str(args.output or ""))
    decoding = Decoding.asked_for(args.in_chans, vars(args))
    names = ("class_map", "input_key", "target_key")
    options = {"dataset": args.dataset, **{name: getattr(args, name) or None for name in names}}
    try:
        dataset = open_dataset(args.data_dir, args.split, **options)
    except DataError as error:
        if not is_of_several(error):
            raise
        # the bands do not depend on labels
        dataset = open_dataset(args.data_dir, args.split, task=MULTILABEL, **options)
    cores = len(os.sched_getaffinity(0))
    workers = cores if args.workers is None else min(args.workers, cores)
    found = measure_bands(dataset, decoding, limit=args.limit, seed=args.seed, workers=workers)
    for line in str(found).splitlines():
        log.info("%s", line)
    if args.output is not None:
        about = f"Measured by `davit data stats` on split {args.split} of {as_line(args.data_dir)}."
        text = found.json() if args.output.suffix.lower() == ".json" else found.yaml(about)
        write_bytes(args.output, text.encode())
        log.info("%s is a recipe for train.py -c.", args.output)
    put(found.json() if args.json else found.flags())


if __name__ == "__main__":
    sys.exit(main())
