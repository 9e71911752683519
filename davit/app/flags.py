"""Read the command line of `davit app`."""

from __future__ import annotations

from ..commands import command_name
from ..engine.flags import add_class_map, model_flags, picture_flags
from ..limits import number
from ..parsing import Parser, add_address
from ..parsing.openmmlab import add_detector_config, add_score_threshold


def app_parser() -> Parser:
    """Make the parser of ``python -m davit.app``."""
    parser = Parser(
        prog=command_name("python -m davit.app"),
        description="Serve a web page. Drop an image there to see what the model finds in it.",
        parents=[model_flags(), picture_flags()],
    )
    add = parser.add_argument_group("answers").add_argument
    add_detector_config(add)
    add_score_threshold(add)
    add_class_map(add)
    add = parser.add_argument_group("page").add_argument
    add_address(add, 7860)
    add("--max-megabytes", **number("max_megabytes"), default=20, help="refuse files of more megabytes")
    return parser
