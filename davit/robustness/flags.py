"""Read the command line of `davit robustness`."""

from __future__ import annotations

from ..commands import command_name
from ..engine.flags import model_flags, picture_flags
from ..limits import number
from ..parsing import Parser
from ..parsing.results import add_json, add_output
from ..text import some

FORMATS = ("csv", "json")
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
        "checkpoint", metavar="CHECKPOINT", help="a file of any known layout, or the name of a model of timm's"
    )
    folders = "folder with val/, imagenet-a/, imagenet-r/, sketch/, real.json ... or your data"
    made.add_argument("root", metavar="ROOT", help=folders)
    add = made.add_argument_group("sets and corruptions").add_argument
    add("--split", default="validation", help="name of the validation split (val is found too)")
    add("--sets", nargs="+", choices=SETS, metavar="SET", help=f"only these, and each must be there: {some(SETS)}")
    add("--leave-out", nargs="+", choices=SETS, default=[], metavar="SET", help="all but these")
    add(
        "--corruptions",
        nargs="+",
        choices=CORRUPTION_NAMES,
        metavar="NAME",
        help=f"default: {', '.join(CORRUPTION_NAMES)}",
    )
    add("--severities", **number("severities"), metavar="N", help="1 to 5; default: all")
    add("--limit", **number("limit"), metavar="N", help="corrupt N images, evenly from the whole; default: all")
    add("--seed", **number("seed"), default=0, help="of what is random in corruptions (default %(default)s)")
    add = made.add_argument_group("results").add_argument
    add("--samples", default="", metavar="FILE", help="draw one image under each corruption")
    add_json(add)
    form = "csv or JSON, written after each set and corruption"
    add_output(add, "--results-file", dest="results_file", form=form)
    add("--results-format", choices=FORMATS, help="default: by the suffix of FILE, else csv")
    add = made.add_argument_group("running").add_argument
    add("--skip-bad-images", action="store_true", help="skip and list unreadable images instead of stopping")
    add("--channels-last", action="store_true", help="channels-last memory format")
    add("--pin-mem", action="store_true", help="page-locked host memory")
    return made
