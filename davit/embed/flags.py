"""Read the command line of `davit embed`."""

from __future__ import annotations

from ..commands import command_name
from ..engine.flags import picture_flags, running_flags
from ..limits import number
from ..parsing import Parser
from ..parsing.results import add_json, add_output

SUFFIXES = (".npz", ".parquet")  # of files of features


def embed_parser() -> Parser:
    """Make the parser of ``python -m davit.embed``."""
    parser = Parser(
        prog=command_name("python -m davit.embed"),
        usage="%(prog)s CHECKPOINT|MODEL FOLDER OUT.npz|OUT.parquet [flags]",
        description="Write the features of images to a file, a row per image, with the names of the files in order.",
        parents=[running_flags(), picture_flags(workers=2)],
        epilog="Exit status: 0 done, 1 some images could not be read (they are named) or an error of this program, "
        "2 a mistake in the flags, the checkpoint or the folder.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT|MODEL", help="a checkpoint, or a model's name for its published weights")
    add("folder", metavar="FOLDER", help="a folder, with all that is below it; an image; or -, as for predict.py")
    add("out", metavar="OUT", help=f"the file to write, which ends in {' or '.join(SUFFIXES)}")
    add = parser.add_argument_group("which model").add_argument
    add(
        "--model",
        "-m",
        default=None,
        metavar="NAME",
        help="the model that the checkpoint is of, where it does not tell; default: what it says",
    )
    add("--pretrained", action="store_true", help="published weights (what a model's name means too)")
    add = parser.add_argument_group("neighbours and results").add_argument
    add(
        "--neighbours",
        "--neighbors",
        action="append",
        default=[],
        metavar="IMAGE",
        help="print and draw the images most like this one; may be given several times",
    )
    add("--count", **number("count"), default=10, help="how many of them (default %(default)s)")
    add("--sheet", default="", metavar="FILE", help="where they are drawn; default: OUT-neighbours.png")
    add_json(add)
    add_output(add, form="the neighbours; .json, .csv, or else the text as it is printed")
    return parser
