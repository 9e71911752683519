"""Serve a model by HTTP."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..addresses import OwnAddresses, is_loopback, open_port
from ..commands import run_cli
from ..engine.flags import given_flags
from ..text import install_extra
from .flags import serve_parser

if TYPE_CHECKING:
    from .engine import Engine

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal ends it; return exit status 0 then, and 2 for a mistake."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return run_cli(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> None:
    args, given = serve_parser().parse_args(arguments), given_flags(serve_parser, arguments)
    try:
        from .server import serve, usable_processors
        from .service import Bounds, Service
    except ModuleNotFoundError as error:
        if (error.name or "davit").startswith("davit"):
            raise
        raise ValueError(
            f"the service needs {error.name}, which is not installed: {install_extra('serve')}"
        ) from error
    import torch

    processors = usable_processors()
    threads = args.threads or min(processors, torch.get_num_threads())
    bounds = Bounds(
        **{name: getattr(args, name) for name in vars(args) if name.startswith("max_")},
        timeout=args.timeout,
        threads=threads,
        decoders=min(4, processors),
    )
    torch.set_num_threads(threads)  # before the model is loaded: a runtime may take as many
    with open_port(args.host, args.port) as listener:  # before the model is loaded, which may take long
        port = int(listener.getsockname()[1])
        own = OwnAddresses(args.host, port, args.also_at)
        service = Service(load_engine(args, given, bounds.most_pixels), bounds, own)
        if not is_loopback(args.host):
            log.warning("%s can be reached by other machines, and the service asks nobody for a password", args.host)
        host = f"[{args.host}]" if ":" in args.host else args.host
        log.info("%s is at http://%s:%d (Ctrl-C ends it)", service.engine.name, host, port)
        serve(service, listener)
    log.info("ended")


def load_engine(args: argparse.Namespace, given: set[str], most_pixels: int) -> Engine:
    """Load what a command line asks for.

    Args:
        given: the names of the flags that were given, as `given_flags` finds them.
        most_pixels: of an image.

    Raises:
        ValueError: no model is named, or the model and the flags do not fit one another.
    """
    from ..loading import load_by_flags
    from ..predict import Predictor
    from .engine import Classifier, Finder

    if not (args.config or args.checkpoint or "model" in given):
        raise ValueError("no model is named: give MODEL, or --model NAME for published weights.")
    name, loaded = load_by_flags(args, given, args.model if "model" in given else None)
    if isinstance(loaded, Predictor):
        return Classifier(loaded, most_pixels)
    return Finder(name, loaded, most_pixels)


if __name__ == "__main__":
    sys.exit(main())
