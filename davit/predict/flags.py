"""Read the command line of predict.py: every flag of the original's inference.py with its default, and newer ones."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..choices import FORMATS, TOPK_IDS
from ..commands import command_name
from ..engine.flags import add_class_map, model_asked_for, model_flags, picture_flags, say_no_longer
from ..limits import number
from ..parsing import Parser
from ..parsing.results import add_output

if TYPE_CHECKING:
    from .predictor import Predictor

NO_LONGER = {"num_gpu": "one process uses one device; start several on parts of the images, each with its --device"}

ONE_BY_ONE = {
    **NO_LONGER,
    "batch_size": "here images go through the model one by one",
    "workers": "here images are read one by one, by this process",
    "log_freq": "here each image has its own answer, and there are no batches to count",
}


def predict_parser() -> argparse.ArgumentParser:
    """Make the parser of predict.py.

    Some defaults are the original's and are not used unless given, so `given_flags` says which were.
    """
    parser = Parser(
        prog=command_name(),
        usage="%(prog)s IMAGE|FOLDER|- [...] [flags]",
        parents=[model_flags(num_classes=1000), picture_flags(workers=2)],
        description="Name the most probable classes of images. On a CPU at most 32 images are computed at once; "
        "--workers are started for more than 64 images.",
        epilog="Exit status: 0 done, 1 some images could not be read (they are named) or an error of this program, "
        "2 a mistake in the flags, the checkpoint or the folder.",
    )
    parser.add_argument(
        "data",
        nargs="+",
        metavar="IMAGE|FOLDER|-",
        help="image files; folders with all images below them; '-' for an image or a list of paths (one on a line, "
        "or with NUL between them) on standard input",
    )
    add = parser.add_argument_group("results").add_argument
    add("--format", choices=FORMATS, default="table", help="form in which the results are printed")
    add(
        "--topk",
        **number("topk"),
        default=5,
        help="classes to name for each image; multilabel: at most N of those that reach --threshold (default: 5; "
        "multilabel: all of those)",
    )
    add_class_map(add)
    add("--json", action="store_true", help="the same as --format json: one JSON document and nothing else")
    add_output(add, form="as .csv, .json or .jsonl, by its suffix, else as a table")
    add(
        "--output_dir",
        "--output-dir",
        default="./",
        metavar="DIR",
        help=f"also write {TOPK_IDS} into DIR, as the original did: a row for each image with its name and class "
        "indices (default: do not write it)",
    )
    return parser


def load_asked_for(args: argparse.Namespace, given: set[str], without_effect: Mapping[str, str]) -> Predictor:
    """Load what a command line asks for with `model_flags`, `picture_flags` and --class-map.

    Args:
        given: the names of the flags that were given, as `given_flags` finds them.
        without_effect: flags that do nothing in this command, each with what happens instead: logged where given.
    """
    from ..engine.load_model import ModelOptions  # loads PyTorch, which the parser does without
    from .predictor import load_with

    say_no_longer(without_effect, given)
    model = model_asked_for(args, given)
    options = ModelOptions.from_values({name: value for name, value in vars(args).items() if name in given})
    return load_with(options, args.checkpoint or None, model, device=args.device, names=args.class_map or None)
