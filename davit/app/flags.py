"""Read the command line of `davit app`."""

from __future__ import annotations

from ..commands import command_name
from ..engine.flags import add_class_map, model_flags, picture_flags
from ..limits import number
from ..parsing import Parser


def app_parser() -> Parser:
    """Make the parser of ``python -m davit.app``."""
    parser = Parser(
        prog=command_name("python -m davit.app"),
        description="Serve a page on which one drops images and sees what a model finds in them.",
        parents=[model_flags(), picture_flags()],
    )
    add = parser.add_argument_group("answers").add_argument
    add("--config", default="", metavar="FILE", help="of a detector or segmentor: a file, or the name of one of ours")
    add("--score-thr", **number("score_thr"), default=0.3, help="least score of a detection (default %(default)s)")
    add_class_map(add)
    add = parser.add_argument_group("page").add_argument
    add("--host", default="127.0.0.1", help="default: this machine alone; 0.0.0.0 lets others in, without a password")
    add("--port", **number("port"), default=7860, help="0 takes a free one (default %(default)s)")
    add(
        "--also-at",
        action="append",
        default=[],
        metavar="NAME[:PORT]",
        help="another address by which browsers reach it, through a proxy or a tunnel; may be given several times",
    )
    add("--max-megabytes", **number("max_megabytes"), default=20, help="the largest file taken (default %(default)s)")
    return parser
