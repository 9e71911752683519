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
        description="Write the features of images into a file: one row for each image, and the names of the files.",
        parents=[running_flags(), picture_flags(workers=2)],
        epilog="Exit status: 0 done, 1 some images could not be read (they are named) or an error of this program, "
        "2 a mistake in the flags, the checkpoint or the folder.",
    )
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT|MODEL", help="a checkpoint, or a model's name for its published weights")
    add(
        "folder",
        metavar="FOLDER",
        help="a folder with all images below it, an image, or '-' for an image or a list of paths on standard input",
    )
    add("out", metavar="OUT", help=f"file to write; its name ends in {' or '.join(SUFFIXES)}")
    add = parser.add_argument_group("model").add_argument
    add(
        "--model",
        "-m",
        default=None,
        metavar="NAME",
        help="the model that the checkpoint belongs to (default: as the checkpoint says)",
    )
    add("--pretrained", action="store_true", help="use published weights, as a model's name alone does too")
    add = parser.add_argument_group("neighbours and results").add_argument
    add(
        "--neighbours",
        "--neighbors",
        action="append",
        default=[],
        metavar="IMAGE",
        help="print and draw the images that are most similar to this one; may be given several times",
    )
    add("--count", **number("count"), default=10, help="similar images to print for each --neighbours")
    add("--sheet", default="", metavar="FILE", help="file of their drawing (default: OUT-neighbours.png)")
    add_json(add)
    add_output(add)
    return parser
