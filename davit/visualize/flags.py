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
        description="Draw what a classifier looks at in images, or the curves of training runs.",
        parents=[model_flags(), picture_flags()],
    )
    pictures = "files, or folders with all that is below them; none with --runs"
    parser.add_argument("pictures", nargs="*", metavar="IMAGE|FOLDER", help=pictures)
    add = parser.add_argument_group("figures").add_argument
    add("--runs", nargs="+", default=[], metavar="RUN", help="folders of runs, or their summary.csv: curves together")
    add("--out", default="", metavar="FILE|DIR", help="default: NAME-seen.png, or curves.png, in the current folder")
    add(
        "--class",
        dest="class_name",
        default="",
        metavar="CLASS",
        help="evidence for this class: its name or index; default: the most probable",
    )
    add_class_map(add)
    add_json(add)
    return parser
