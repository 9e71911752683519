"""Read the command line of `davit robustness`."""

from __future__ import annotations

from ..commands import command_name
from ..engine.flags import (
    add_channels_last,
    add_pin_mem,
    add_results_format,
    model_flags,
    picture_flags,
)
from ..limits import number
from ..parsing import Parser
from ..parsing.data import add_skip_bad_images, add_split
from ..parsing.results import add_json, add_output
from ..text import some

SETS = ("val", "real", "v2", "a", "r", "sketch", "c")
CORRUPTION_NAMES = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog"),
    *("brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)


def robustness_parser() -> Parser:
    """Make the parser of ``python -m davit.robustness``."""
    made = Parser(
        prog=command_name("python -m davit.robustness"),
        usage="%(prog)s CHECKPOINT ROOT [flags]",
        parents=[model_flags(checkpoint=False), picture_flags()],
        description="Evaluate a classifier on ImageNet's variants, as far as their folders are in ROOT, and on the "
        f"validation images corrupted in {len(CORRUPTION_NAMES)} ways at 5 severities (ImageNet-C). A model of "
        "other classes is evaluated on its own validation images, as they are and corrupted.",
        epilog="Exit status: 0 done, 1 some sets could not be evaluated (the results say which) or an error of this "
        "program, 2 a mistake in the flags, the checkpoint or the data.",
    )
    made.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a checkpoint, or a model's name for its published weights"
    )
    folders = "folder with val/, imagenet-a/, imagenet-r/, sketch/, real.json ..., or a data set of your own"
    made.add_argument("root", metavar="ROOT", help=folders)
    add = made.add_argument_group("sets and corruptions").add_argument
    add_split(add)
    sets = f"evaluate only these sets, which must all be there: {some(SETS)} (default: those that are there)"
    add("--sets", nargs="+", choices=SETS, metavar="SET", help=sets)
    add("--leave-out", nargs="+", choices=SETS, default=[], metavar="SET", help="do not evaluate these sets")
    add(
        "--corruptions",
        nargs="+",
        choices=CORRUPTION_NAMES,
        metavar="NAME",
        help=f"corruptions to apply: {', '.join(CORRUPTION_NAMES)} (default: all)",
    )
    add("--severities", **number("severities"), help="severities of the corruptions, 1 to 5 (default: all)")
    add("--limit", **number("limit"), help="corrupt only N images, taken evenly from the whole (default: all)")
    add("--seed", **number("seed"), default=0, help="seed of the random numbers in corruptions")
    add = made.add_argument_group("results").add_argument
    add("--samples", default="", metavar="FILE", help="write a drawing of one image under each corruption")
    add_json(add)
    form = "as csv or JSON (--results-format), after each set and corruption"
    add_output(add, "--results-file", dest="results_file", form=form)
    add_results_format(add)
    add_channels_last(made.add_argument_group("model").add_argument)
    add = made.add_argument_group("images").add_argument
    add_skip_bad_images(add)
    add_pin_mem(add)
    return made
