"""Run the command `davit`: one name for training, evaluation, prediction and all other tools.

A command is a line of `COMMANDS`. Its module is imported when it is called, so that help and mistakes are answered
before PyTorch is loaded.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .commands import OK, USER_ERROR, called_as
from .parsing import Parser
from .parsing.results import json_alone
from .text import did_you_mean, install_extra


@dataclass(frozen=True)
class Command:
    """Say where a command is.

    Attributes:
        main: "MODULE:FUNCTION" below `davit`, called with the words of the command line; it returns the exit status.
        help: one line.
        parser: "MODULE:FUNCTION" that makes its parser, without PyTorch: the words are checked before the import.
        extra: which extra of the package brings what the module imports; "" for what is always there.
        by_words: the words choose among several parsers, so that they are the argument of `parser`.
    """

    main: str
    help: str
    parser: str
    extra: str = ""
    by_words: bool = False


@dataclass(frozen=True)
class Group:
    """Hold commands under one more word."""

    help: str
    commands: Mapping[str, Command]


def _openmmlab(what: str) -> dict[str, Command]:
    return {
        name: Command(f"openmmlab.{main}", about, f"parsing.openmmlab:{name}_parser", "openmmlab")
        for name, main, about in (
            ("train", "cli:train_main", f"train a {what}"),
            ("test", "cli:test_main", f"evaluate a {what}"),
            ("demo", "demo:main", "draw what it finds in images"),
            ("flops", "flops:main", "count parameters and FLOPs"),
        )
    }


COMMANDS: dict[str, Command | Group] = {
    "train": Command(
        "engine.train:main", "train on a data folder; without one, on handwritten digits", "engine.flags:train_parser"
    ),
    "validate": Command(
        "engine.validate:main", "evaluate checkpoints or published models", "engine.flags:validate_parser"
    ),
    "predict": Command("predict.cli:main", "name the classes of images", "predict.flags:predict_parser"),
    "probe": Command(
        "probe.__main__:main",
        "compare the features of frozen models by simple classifiers",
        "probe.flags:probe_parser",
    ),
    "embed": Command(
        "embed.__main__:main", "write the features of images, or find similar images", "embed.flags:embed_parser"
    ),
    "robustness": Command(
        "robustness.__main__:main",
        "evaluate on ImageNet's variants and on corrupted images",
        "robustness.flags:robustness_parser",
    ),
    "visualize": Command(
        "visualize.__main__:main",
        "draw where a model sees evidence, or the curves of runs",
        "visualize.flags:visualize_parser",
    ),
    "app": Command("app.__main__:main", "serve a web page where you drop images", "app.flags:app_parser"),
    "serve": Command("serve.__main__:main", "serve a model by HTTP", "serve.flags:serve_parser", "serve"),
    "doctor": Command(
        "doctor.__main__:main", "check a machine, a data set or a config before a run", "doctor.flags:doctor_parser"
    ),
    "checkpoint": Command(
        "checkpoint.__main__:main",
        "show what a checkpoint holds, or convert it",
        "parsing.checkpoint:checkpoint_parser",
    ),
    "export": Command(
        "export.__main__:main",
        "write a model for another runtime: ONNX, OpenVINO, ExecuTorch ...",
        "export.flags:export_parser",
    ),
    "hub": Command("hub.__main__:main", "write a model in timm's format, or upload it", "hub.flags:hub_parser"),
    "complexity": Command(
        "complexity:main", "count parameters and FLOPs, part by part", "parsing.complexity:complexity_parser"
    ),
    "data": Command(
        "data.__main__:main",
        "split a folder into train and val, measure its bands, write a sample set",
        "data.__main__:data_parser",
    ),
    "det": Group(
        "detectors, by transformers or MMDetection: train, test, demo, flops",
        {
            **_openmmlab("detector"),
            **{
                name: Command(f"detect.cli:{name}_main", about, f"detect.cli:{name}_parser", by_words=True)
                for name, about in (
                    ("train", "train a detector: DATA --head dfine, or a config"),
                    ("test", "evaluate a detector"),
                    ("demo", "draw what it finds in images"),
                )
            },
        },
    ),
    "seg": Group("segmentors, by MMSegmentation: train, test, demo, flops", _openmmlab("segmentor")),
}


def main(arguments: Sequence[str] | None = None, prog: str = "davit") -> int:
    """Run a command, and return its exit status; 2 for a name that is none.

    Args:
        arguments: its name and its words; by default those of the process.
        prog: what usage lines call this program.
    """
    # Before torch is loaded: threads that spin while they wait, beside a loader process on few cores, make both
    # many times slower (docs/training.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    words = sys.argv[1:] if arguments is None else list(arguments)
    if words[:1] == ["--version"]:
        sys.stdout.write(f"davit {importlib.import_module('davit').__version__}\n")
        return OK
    return _dispatch(COMMANDS, words, prog, "DaViT, an image backbone: train it, evaluate it, use it.")


def _dispatch(table: Mapping[str, Command | Group], words: list[str], prog: str, about: str) -> int:
    name = words[0] if words else ""
    if name in ("", "-h", "--help"):
        (sys.stdout if name else sys.stderr).write(_help(table, prog, about))
        return OK if name else USER_ERROR
    found = table.get(name)
    if found is None:
        choices = ", ".join(table)
        sys.stderr.write(f"{prog}: {name!r} is no command: {did_you_mean(name, table)}The commands are {choices}.\n")
        return USER_ERROR
    prog = f"{prog} {name}"
    if isinstance(found, Group):
        return _dispatch(found.commands, words[1:], prog, f"{found.help[0].upper()}{found.help[1:]}.")
    return _run(found, words[1:], prog)


def _help(table: Mapping[str, Command | Group], prog: str, about: str) -> str:
    width = max(map(len, table))
    lines = [f"  {name:{width}}  {entry.help}" for name, entry in table.items()]
    return "\n".join(
        [f"usage: {prog} COMMAND [...]", "", about, "", *lines, "", f"{prog} COMMAND --help lists the flags of one.\n"]
    )


def _run(command: Command, words: list[str], prog: str | None) -> int:
    with called_as(prog), _without_what_nobody_can_act_on():
        try:
            make = _resolve(command.parser)
            parser = make(words) if command.by_words else make()
            if isinstance(parser, Parser):
                parser.elsewhere = _commands_with
            args = parser.parse_args(words)
            run = _resolve(command.main)
        except ModuleNotFoundError as error:
            missing = (error.name or "davit").partition(".")[0]
            if not command.extra or missing == "davit":
                raise
            remedy = install_extra(command.extra)
            called = prog or Path(sys.argv[0]).name
            sys.stderr.write(f"{called} needs {missing}, which is not installed: {remedy}\n")
            return USER_ERROR
        importlib.import_module(".registry", __package__)  # the variants are timm's, as after `import davit`
        with json_alone(getattr(args, "json", False)):
            status: int = run(words)
        return status


def _commands_with(flag: str) -> list[str]:
    """Name the commands of one word that have a flag."""
    one_word = {name: entry for name, entry in COMMANDS.items() if isinstance(entry, Command)}
    parsers = {name: _resolve(entry.parser)() for name, entry in one_word.items() if not entry.by_words}
    return [f"davit {name}" for name, parser in parsers.items() if flag in parser._option_string_actions]


def run_script(name: str) -> int:
    """Run a command by the words of this process, as train.py, validate.py and predict.py do."""
    command = COMMANDS[name]
    assert isinstance(command, Command)
    return _run_words(command)


def run_tool(name: str) -> int:
    """Run a command that works by a config by the words of this process, as mmdet/tools and mmseg/tools do."""
    return _run_words(_openmmlab("detector or segmentor")[name])


def _run_words(command: Command) -> int:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    return _run(command, sys.argv[1:], None)


@contextmanager
def _without_what_nobody_can_act_on() -> Iterator[None]:
    """Hide warnings of other libraries about their own code, unless PYTHONWARNINGS or -W asks for warnings."""
    if sys.warnoptions:
        yield
        return
    pytree = logging.getLogger("torch.utils._pytree")  # which logs what torchao, once imported, does in the old way
    pytree.addFilter(_is_for_the_user)
    try:
        with warnings.catch_warnings():
            for kind in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", kind)
            warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.utils\._pytree|accelerate")
            yield
    finally:
        pytree.removeFilter(_is_for_the_user)


def _is_for_the_user(record: logging.LogRecord) -> bool:
    return "deprecated" not in record.getMessage()


def _resolve(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(f".{module}", __package__), name)
