"""Read the command line of the service."""

from __future__ import annotations

import argparse

from ..commands import command_name
from ..engine.flags import add_class_map, model_flags, picture_flags
from ..limits import number
from ..parsing import Parser


def serve_parser() -> argparse.ArgumentParser:
    """Make the parser of ``python -m davit.serve``."""
    parser = Parser(
        prog=command_name("python -m davit.serve"),
        usage="%(prog)s MODEL [flags]",
        parents=[model_flags(checkpoint=False), picture_flags(workers=None)],
        description="Serve a model by HTTP: POST /predict and /embed with images, JSON comes back; /docs says more. "
        "It asks nobody for a password and speaks no TLS: put a proxy before it that does.",
        epilog="Exit status: 0 ended by SIGTERM or SIGINT, 1 an error of this program, 2 a mistake in the flags or "
        "the model.",
    )
    parser.add_argument(
        "checkpoint",
        nargs="?",
        default="",
        metavar="MODEL",
        help="what davit.load takes: a checkpoint, the folder of a run, hf-hub:OWNER/NAME, an exported file; without, "
        "the published weights of --model",
    )
    add = parser.add_argument_group("answers").add_argument
    add_class_map(add)
    add("--temperature", **number("temperature"), metavar="T", help="divide logits by it; default: the checkpoint's")
    add("--config", default="", metavar="FILE", help="of a detector or segmentor: a file, or the name of one of ours")
    add("--score-thr", **number("score_thr"), help="least score of a detection (default 0.3)")
    add = parser.add_argument_group("service").add_argument
    add("--host", default="127.0.0.1", help="default: this machine alone; 0.0.0.0 lets others in, without a password")
    add("--port", **number("port"), default=8000, help="0 takes a free one, which the log tells (default %(default)s)")
    add(
        "--also-at",
        action="append",
        default=[],
        metavar="NAME[:PORT]",
        help="another address by which it is reached, through a proxy or a tunnel; may be given several times",
    )
    add("--threads", **number("threads"), help="of PyTorch; default: the processors that this process may use")
    add("--max-batch", **number("max_batch"), default=8, help="images in one batch (default %(default)s)")
    add(
        "--max-delay",
        **number("max_delay"),
        default=5.0,
        help="milliseconds that an image waits for others that are on their way (default %(default)g)",
    )
    add("--max-megabytes", **number("max_megabytes"), default=20, help="of a request (default %(default)s)")
    add("--max-megapixels", **number("max_megapixels"), default=50.0, help="of an image (default %(default)g)")
    add("--max-files", **number("max_files"), default=16, help="of a request (default %(default)s)")
    add("--max-queue", **number("max_queue"), default=256, help="images taken at once (default %(default)s)")
    add("--timeout", **number("timeout"), default=30.0, help="seconds until a request gets 504 (default %(default)g)")
    return parser
