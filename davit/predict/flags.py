"""The command line of predict.py: every flag of the original's inference.py with its default, and what came since."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from ..checkpoint.read import EMA_CHOICES
from ..engine.flags import KeyValues, validate_parser
from .report import FORMATS, TOPK_IDS

NO_LONGER = {"num_gpu": "one process uses one device; start several on parts of the pictures, each with its --device"}
_ORIGINAL_CLASSES = 1000


def parse_predict(argv: Sequence[str] | None) -> tuple[argparse.Namespace, set[str]]:
    """The arguments, and the names of those that were given.

    Some defaults are the original's and are not used unless given, so that their value does not tell.
    """
    return predict_parser().parse_args(argv), given_of(predict_parser, argv)


def given_of(make_parser: Callable[[], argparse.ArgumentParser], argv: Sequence[str] | None) -> set[str]:
    """The names of the arguments that a command line gives."""
    asked = make_parser()
    for action in asked._actions:
        action.default = argparse.SUPPRESS
    return set(vars(asked.parse_args(argv)))


def evaluation_flags(args: argparse.Namespace, given: set[str]) -> argparse.Namespace:
    """The flags of validate.py that say how the model is built and how pictures are prepared, as asked for here."""
    flags = validate_parser().parse_args([])
    for name in vars(flags):
        if name in given:
            setattr(flags, name, getattr(args, name))
    return flags


def predict_parser() -> argparse.ArgumentParser:
    """The flags of predict.py."""
    parser = argparse.ArgumentParser(
        description="Say what is in pictures.",
        epilog="Exit status: 0 done, 1 some pictures could not be read (they are named) or an error of this program, "
        "2 a mistake in the flags, the checkpoint or the folder.",
    )
    add = parser.add_argument
    add(
        "data",
        nargs="+",
        metavar="PICTURE|FOLDER|-",
        help="picture files; folders, with all that is below them; '-': a picture's bytes, or a list of paths, one a "
        "line or separated by NUL, on standard input",
    )
    add("--format", choices=FORMATS, default="table", help="how to print; default: %(default)s")
    add("--topk", type=int, default=5, help="classes to name for each picture (default 5)")
    add("--class-map", default="", metavar="FILE|DIR", help="class names, one a line, or a data folder that has them")
    add(
        "--output_dir",
        "--output-dir",
        default="./",
        metavar="DIR",
        help=f"also write {TOPK_IDS} there, as the original did: a row a picture, its name and its class indices",
    )
    add_model(parser)
    add_pictures(parser)
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    """The flags that say which model, and how it runs."""
    add = parser.add_argument_group("model").add_argument
    add(
        "--model",
        "-m",
        default="dpn92",
        help="a DaViT variant or any model of timm's; default: the checkpoint's own, else %(default)s, the original's",
    )
    add("--checkpoint", default="", metavar="FILE", help="weights of any known layout; without: published ones")
    add("--pretrained", action="store_true", help="published weights (what no --checkpoint means too)")
    add("--ema", choices=EMA_CHOICES, default="auto", help="averaged weights: auto takes them where there are any")
    add("--num-classes", type=int, default=_ORIGINAL_CLASSES, help="default: the checkpoint's, else the model's")
    add("--gp", metavar="POOL", help="global pooling: avg, max, avgmax")
    add("--model-kwargs", nargs="+", default={}, action=KeyValues, metavar="KEY=VALUE", help="to the constructor")
    add("--no-test-pool", action="store_true", help="pool larger maps as a whole, as in training")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:N")
    add("--amp", action="store_true", help="mixed precision")
    add(
        "--amp-dtype",
        choices=("bf16", "fp16", "bfloat16", "float16"),
        help="default: fp16 on CUDA; else bf16, or float32 where the CPU has no instructions for it",
    )
    add("--num-gpu", type=int, default=1, help=argparse.SUPPRESS)


def add_pictures(parser: argparse.ArgumentParser) -> None:
    """The flags that say how pictures are prepared and taken together."""
    add = parser.add_argument_group("pictures").add_argument
    add("--img-size", type=int, help="side in pixels; default: the checkpoint's, else the model's")
    add("--input-size", type=int, nargs=3, metavar=("C", "H", "W"), help="instead of --img-size")
    add("--crop-pct", type=float, help="share of the side that the centre crop keeps")
    add("--crop-mode", choices=("center", "squash", "border"), help="how a picture that is not square is cropped")
    add("--mean", type=float, nargs="+", help="mean of each colour")
    add("--std", type=float, nargs="+", help="standard deviation of each colour")
    add("--interpolation", default="", help="resampling; default: the checkpoint's, else the model's")
    add("-b", "--batch-size", type=int, default=256, help="pictures at once (on a CPU never more than 32)")
    add("-j", "--workers", type=int, default=2, help="loader processes, for more than 64 pictures")
    add("--log-freq", type=int, default=10, help="batches between two lines of the log, where there is no bar")
