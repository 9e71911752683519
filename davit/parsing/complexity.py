"""Read the command line of ``python -m davit.complexity``."""

from __future__ import annotations

from ..commands import command_name
from ..limits import number
from . import ANY_MODEL, Parser
from .results import add_json, add_output


def complexity_parser() -> Parser:
    """Make the parser."""
    parser = Parser(
        prog=command_name("python -m davit.complexity"),
        description="Count the parameters and multiply-adds of a model, part by part.",
    )
    add = parser.add_argument_group("model").add_argument
    add("--model", default="DaViT_tiny", metavar="NAME", help=ANY_MODEL)
    add(
        "--input",
        **number("input"),
        metavar=("C", "H", "W"),
        help="bands, height and width in pixels (default: the model's)",
    )
    add("--num-classes", **number("num_classes"), help="number of classes (default: the model's)")
    add = parser.add_argument_group("results").add_argument
    add("--format", choices=("table", "json"), default="table", help="form in which the results are printed")
    add_json(add)
    add_output(add)
    return parser
