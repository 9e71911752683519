"""Read the command line of ``python -m davit.complexity``."""

from __future__ import annotations

from ..commands import command_name
from ..limits import number
from . import Parser
from .results import add_json, add_output


def complexity_parser() -> Parser:
    """Make the parser."""
    parser = Parser(
        prog=command_name("python -m davit.complexity"), description="Count what a model costs, part by part."
    )
    add = parser.add_argument_group("model").add_argument
    add("--model", default="DaViT_tiny", help="a variant of DaViT, or any model that timm knows")
    add("--input", **number("input"), metavar=("C", "H", "W"), help="default: the model's own input size")
    add("--num-classes", **number("num_classes"), help="width of the head; default: the model's own")
    add = parser.add_argument_group("results").add_argument
    add("--format", choices=("table", "json"), default="table", help="how to print")
    add_json(add)
    add_output(add)
    return parser
