"""Read the command line of the service."""

from __future__ import annotations

import argparse

from ..commands import command_name
from ..engine.flags import add_class_map, add_temperature, model_flags, picture_flags
from ..limits import number
from ..parsing import Parser, add_address
from ..parsing.openmmlab import add_detector_config, add_score_threshold


def serve_parser() -> argparse.ArgumentParser:
    """Make the parser of ``python -m davit.serve``."""
    parser = Parser(
        prog=command_name("python -m davit.serve"),
        usage="%(prog)s MODEL [flags]",
        parents=[model_flags(checkpoint=False), picture_flags(workers=None)],
        description="Serve a model by HTTP: send images by POST to /predict or /embed, and get JSON; /docs lists all. "
        "There is no password and no TLS: put a proxy in front that has them.",
        epilog="Exit status: 0 ended by SIGTERM or SIGINT, 1 an error of this program, 2 a mistake in the flags or "
        "the model.",
    )
    parser.add_argument(
        "checkpoint",
        nargs="?",
        default="",
        metavar="MODEL",
        help="a checkpoint, a run's folder, hf-hub:OWNER/NAME, or an exported model (default: published weights of "
        "--model)",
    )
    add = parser.add_argument_group("answers").add_argument
    add_class_map(add)
    add_temperature(add)
    add_detector_config(add)
    add_score_threshold(add, default=None)
    add = parser.add_argument_group("service").add_argument
    add_address(add, 8000)
    add("--threads", **number("threads"), help="threads that compute (default: as many as this process may use)")
    add("--max-batch", **number("max_batch"), default=8, help="most images in a batch")
    add(
        "--max-delay",
        **number("max_delay"),
        default=5.0,
        help="milliseconds that an image waits for others to fill its batch",
    )
    add("--max-megabytes", **number("max_megabytes"), default=20, help="refuse requests of more megabytes (413)")
    add("--max-megapixels", **number("max_megapixels"), default=50.0, help="refuse images of more megapixels")
    add("--max-files", **number("max_files"), default=16, help="refuse requests of more images")
    add("--max-queue", **number("max_queue"), default=256, help="refuse requests while N images wait (429)")
    add("--timeout", **number("timeout"), default=30.0, help="seconds until a request that waits is refused (504)")
    return parser
