"""Read the command line of `davit visualize`."""

from __future__ import annotations

from ..commands import command_name
from ..engine.flags import add_class_map, model_flags, picture_flags
from ..parsing import Parser
from ..parsing.results import add_json


def visualize_parser() -> Parser:
    """Make the parser of ``python -m davit.visualize``."""
    parser = Parser(
        prog=command_name("python -m davit.visualize"),
        description="Draw where a classifier sees the evidence for its classes, and its attention. With --runs, draw "
        "the curves of training runs.",
        parents=[model_flags(), picture_flags()],
    )
    pictures = "image files, or folders with all images below them; none with --runs"
    parser.add_argument("pictures", nargs="*", metavar="IMAGE|FOLDER", help=pictures)
    add = parser.add_argument_group("figures").add_argument
    add(
        "--runs",
        nargs="+",
        default=[],
        metavar="RUN",
        help="draw the curves of these runs together: folders of runs, or their summary.csv",
    )
    add(
        "--out",
        default="",
        metavar="FILE|DIR",
        help="file or folder to write (default: NAME-seen.png or curves.png in the current folder)",
    )
    add(
        "--class",
        dest="class_name",
        default="",
        metavar="CLASS",
        help="draw the evidence for this class, by its name or index (default: the most probable class)",
    )
    add_class_map(add)
    add_json(add)
    return parser
