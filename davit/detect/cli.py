"""Run `davit det train`, `test` and `demo`: by transformers' detectors, or by a config of MMDetection."""

from __future__ import annotations

import importlib
import logging
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..commands import RESUME, USER_ERROR, command_name, log_of_rank, run_cli
from ..parsing import Parser, openmmlab
from ..parsing.results import give, json_alone, require_writable
from ..text import as_line, install_extra
from .heads import HEADS, is_detector

log = logging.getLogger(__name__)

_HEAD = "--head"
_HEADS = " or ".join(f"{_HEAD} {head}" for head in HEADS)
_OF_RUNS = f"For a run of `davit det train {_HEAD}` give {{}} instead, without CONFIG."
_DATA_FILES = (".json", ".yaml", ".yml")


def train_parser(words: Sequence[str] = ()) -> Parser:
    """Make the parser that these words of `davit det train` are for."""
    from . import flags

    if _names_head(words) or (words and _data_in(words[0])):
        return flags.detector_parser()
    parser = openmmlab.train_parser()
    return _also_without_config(
        parser,
        f"To train without MMDetection, give DATA and {_HEADS} instead of CONFIG; add --help to list their flags.",
    )


def test_parser(words: Sequence[str] = ()) -> Parser:
    """Make the parser that these words of `davit det test` are for."""
    from . import flags

    if _names_run(words):
        return flags.test_parser()
    return _also_without_config(openmmlab.test_parser(), _OF_RUNS.format("RUN [DATA]"))


def demo_parser(words: Sequence[str] = ()) -> Parser:
    """Make the parser that these words of `davit det demo` are for."""
    from . import flags

    if _names_run(words):
        return flags.demo_parser()
    return _also_without_config(openmmlab.demo_parser(), _OF_RUNS.format("IMAGE RUN"))


def _also_without_config(parser: Parser, said: str) -> Parser:
    parser.epilog = f"{said} {parser.epilog}"
    return parser


def train_main(argv: Sequence[str] | None = None) -> int:
    """Train by --head, else by a config of MMDetection; returns the exit status."""
    words = _words(argv)
    if _names_head(words):
        return _by_transformers(train, words)
    if words and (data := _data_in(words[0])):
        sys.stderr.write(
            f"{command_name()}: {as_line(data)} holds data, and no config. Give {_HEADS} to train on it without "
            f"MMDetection, or a config and --data-root {as_line(data)}.\n"
        )
        return USER_ERROR
    return _by_openmmlab("openmmlab.cli:train_main", words)


def test_main(argv: Sequence[str] | None = None) -> int:
    """Evaluate a detector of --head, else by a config of MMDetection; returns the exit status."""
    words = _words(argv)
    if _names_run(words):
        return _by_transformers(test, words)
    return _by_openmmlab("openmmlab.cli:test_main", words)


def demo_main(argv: Sequence[str] | None = None) -> int:
    """Draw what a detector of --head finds, else one of MMDetection; returns the exit status."""
    words = _words(argv)
    if _names_run(words):
        return _by_transformers(demo, words)
    return _by_openmmlab("openmmlab.demo:main", words)


def _words(argv: Sequence[str] | None) -> list[str]:
    return sys.argv[1:] if argv is None else list(argv)


def _names_head(words: Sequence[str]) -> bool:
    return any(word == _HEAD or word.startswith(f"{_HEAD}=") for word in words)


def _names_run(words: Sequence[str]) -> bool:
    return any(map(is_detector, words))


def _data_in(word: str) -> str:
    """Return the word if it names data: a folder, or a file as COCO and YOLO have it; "" otherwise."""
    path = Path(word)
    return word if path.is_dir() or (path.suffix.lower() in _DATA_FILES and path.is_file()) else ""


def _by_openmmlab(place: str, words: list[str]) -> int:
    module, _, name = place.partition(":")
    try:
        found = importlib.import_module(f"..{module}", __package__)
    except ModuleNotFoundError as error:
        if (missing := (error.name or "davit").partition(".")[0]) == "davit":
            raise
        sys.stderr.write(
            f"{command_name()} by a config needs {missing}, which is not installed: {install_extra('openmmlab')}; "
            f"{_HEADS} trains without it.\n"
        )
        return USER_ERROR
    status: int = getattr(found, name)(words)
    return status


def _by_transformers(work: Callable[[list[str]], int], words: list[str]) -> int:
    try:
        importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        missing = (error.name or "transformers").partition(".")[0]
        sys.stderr.write(f"{command_name()} needs {missing}, which is not installed: {install_extra('detect')}\n")
        return USER_ERROR
    return work(words)


def train(words: list[str]) -> int:
    """Train by the flags of `detector_parser`; returns the exit status."""
    from ..engine.distributed import close_world, init_world
    from ..engine.flags import fit_decay, given_flags, parse_with_config, say_unused
    from ..engine.train import run
    from .flags import DetectorFlags, detector_parser
    from .task import Detection

    log_of_rank()

    def main() -> None:
        args = DetectorFlags(**vars(parse_with_config(detector_parser(), words)))
        if args.data_dir is None:
            raise ValueError("no data are named: give a folder, a COCO json or YOLO's data.yaml.")
        if args.data_dir.endswith(".py") or not Path(args.data_dir).exists():
            raise ValueError(
                f"{args.data_dir} is no folder or file with data. If it is a config of MMDetection, leave {_HEAD} "
                f"{args.head} out."
            )
        say_unused(args)
        fit_decay(args, given_flags(detector_parser, words))
        world = init_world(args.device)
        try:
            with json_alone(args.json):
                run(args, world, Detection())
        finally:
            close_world()

    return run_cli(main, when_full=RESUME)


def test(words: list[str]) -> int:
    """Evaluate by the flags of `test_parser`; returns the exit status."""
    from .flags import test_parser

    log_of_rank()

    def main() -> None:
        args = test_parser().parse_args(words)
        with json_alone(args.json):
            _evaluate(args)

    return run_cli(main)


def _evaluate(args: Namespace) -> None:
    from ..data import EvalLoader
    from ..engine.build import usable_workers
    from ..engine.distributed import close_world, init_world
    from ..engine.evaluate import Evaluation, evaluate
    from ..engine.memory import within_memory
    from ..engine.precision import precision_from
    from .augment import ForEvaluation
    from .data import Reading, open_split
    from .evaluate import BoxScores, require_coco, write_results
    from .flags import DetectorFlags
    from .model import check_side, load_detector

    require_writable(args.output)
    if args.format_only and not args.out:
        raise ValueError("--format-only writes results: give --out FILE.json.")
    if not args.format_only:
        require_coco()
    world = init_world(args.device)
    try:
        loaded = load_detector(args.checkpoint, world.device)
        data = args.data_dir or loaded.data_dir
        if data is None:
            raise ValueError(f"{loaded.origin} does not say on which data: give a data folder.")
        side = args.img_size or loaded.side
        check_side(side)
        reading = Reading(args.data_check, args.skip_bad_images)
        dataset = open_split(data, args.split, loaded.class_names, world, reading, labelled=not args.format_only)
        dataset.transform = ForEvaluation(side)  # type: ignore[assignment]
        loader = EvalLoader(
            dataset,
            batch_size=args.batch_size,
            rank=world.rank,
            world_size=world.size,
            workers=usable_workers(args.workers),
            pin_memory=world.device.type == "cuda",
            skip_bad_images=args.skip_bad_images,
        )
        precision = precision_from(DetectorFlags(**vars(args)), world.device, world.everywhere)
        scores: list[BoxScores] = []

        def work() -> Evaluation:
            scores[:] = [BoxScores(dataset, world.device, compare=not args.format_only)]
            return evaluate(
                loaded.detector,
                loader,
                world=world,
                autocast=precision.autocast,
                scores=scores[0],
                log_freq=50,
            )

        found = within_memory(loader, work)
        loader.close()
        if world.is_main:
            log.info("%s: %d images of %s, %d px.", loaded.origin, found.count, args.split, side)
            if args.out:
                write_results(args.out, scores[0].results)
                log.info("%d detections in %s.", len(scores[0].results), args.out)
            if found.measures is not None:
                _say(found.measures, args)
    finally:
        close_world()


def _say(measures: Any, args: Namespace) -> None:
    figures = measures.percent()
    for name, value in measures.of_class.items():
        log.info("  %-24s AP %.2f %%", as_line(name), 100 * value)
    text = "".join(f"{name:12} {value:6.2f} %\n" for name, value in figures.items())
    document = {**figures, "classes": {name: 100 * value for name, value in measures.of_class.items()}}
    give(args, text, document, [{"measure": name, "percent": value} for name, value in figures.items()])


def demo(words: list[str]) -> int:
    """Draw by the flags of `demo_parser`; returns the exit status."""
    from .flags import demo_parser

    logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)

    def main() -> None:
        args = demo_parser().parse_args(words)
        with json_alone(args.json):
            _draw(args)

    return run_cli(main)


def _draw(args: Namespace) -> None:
    from ..predict.drawn import draw_all
    from .predictor import Predictor

    draw_all(
        args.picture, Predictor(args.checkpoint, args.score_thr, args.device), Path(args.out_dir), is_json=args.json
    )
