"""The table of numbers: every numeric flag of every command is in it, and what is outside is refused by name."""

import argparse
import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from davit.limits import (
    MOST_SIDE,
    MOST_YAML,
    NUMBERS,
    Limits,
    check_model_kwargs,
    check_numbers,
    number,
    read_yaml,
    short,
    why_unbounded,
)

COMMANDS = {
    "train": ("davit.engine.train", "main"),
    "validate": ("davit.engine.validate", "main"),
    "predict": ("davit.predict.cli", "main"),
    "visualize": ("davit.visualize.__main__", "main"),
    "doctor": ("davit.doctor.__main__", "main"),
    "complexity": ("davit.complexity", "main"),
    "app": ("davit.app.__main__", "main"),
    "serve": ("davit.serve.__main__", "main"),
    "probe": ("davit.probe.__main__", "main"),
    "embed": ("davit.embed.__main__", "main"),
    "checkpoint": ("davit.checkpoint.__main__", "main"),
    "robustness": ("davit.robustness.__main__", "main"),
    "export": ("davit.export.__main__", "main"),
    "nonfinite": ("davit.engine.nonfinite", "main"),
    "det train": ("davit.detect.cli", "train"),
    "det test": ("davit.detect.cli", "test"),
    "det demo": ("davit.detect.cli", "demo"),
    "mm train": ("davit.openmmlab.cli", "train_main"),
    "mm test": ("davit.openmmlab.cli", "test_main"),
    "mm get_flops": ("davit.openmmlab.flops", "main"),
    "mm image_demo": ("davit.openmmlab.demo", "main"),
}
VALUES = ("0", "-1", "1", "1e30", "1e12", "-inf", "inf", "nan", "1e309", "0.5", "-0.5", "1000000000000", "", "x")


class _CaughtError(Exception):
    pass


def parser_of(command: str) -> argparse.ArgumentParser:
    """Return the parser that a command's main makes."""
    module, name = COMMANDS[command]
    if command.startswith("mm"):
        pytest.importorskip("mmdet")
    main = getattr(importlib.import_module(module), name)
    caught: list[argparse.ArgumentParser] = []

    def catch(parser: argparse.ArgumentParser, *_: Any) -> None:
        caught.append(parser)
        raise _CaughtError

    with mock.patch.object(argparse.ArgumentParser, "parse_args", catch), pytest.raises(_CaughtError):
        main(["x"])
    return caught[0]


def _all_actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _all_actions(inner)
        yield action


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_numeric_flag_has_both_its_ends(command: str) -> None:
    for action in _all_actions(parser_of(command)):
        if not isinstance(action.type, Limits):
            own = ("backend", "frozen_part", "micro_batch", "sizes", "epochs")
            assert action.type in (None, Path) or action.type.__name__ in own, action  # type: ignore[union-attr]
            default = action.default
            assert not _is_number(default) or action.nargs == 0 or action.type.__name__ in own, action  # type: ignore[union-attr]
            assert not (isinstance(default, list) and any(map(_is_number, default))), action
            continue
        name = "numpy_seed" if command.startswith("mm") and action.dest == "seed" else action.dest
        assert action.type is NUMBERS[name]  # the same limits in each command
        assert action.nargs == action.type.nargs
        assert math.isfinite(action.type.least) and math.isfinite(action.type.most)
        if action.default not in (None, [], argparse.SUPPRESS):
            assert action.type.why_not(action.default) is None, action


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("value", VALUES)
def test_a_number_is_taken_or_its_flag_and_value_are_named(
    command: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = parser_of(command)
    positionals = {"mm train": ["c"], "mm test": ["c", "p"], "mm get_flops": ["c"], "mm image_demo": ["p", "c", "k"]}
    positionals |= {"det test": ["r"], "det demo": ["p", "r"]}
    arguments = {"predict": ["x"], "embed": ["c", "f", "o"], "export": ["o"], "robustness": ["c", "r"]}
    first = {**arguments, "nonfinite": ["f", "--checkpoint", "c"], **positionals}.get(command, [])
    for action in [one for one in parser._actions if isinstance(one.type, Limits)]:
        count = action.nargs if isinstance(action.nargs, int) else 1
        flag = action.option_strings[-1]
        words = [f"{flag}={value}"] if action.nargs is None else [flag, *[value] * count]
        try:
            taken = getattr(parser.parse_args([*first, *words]), action.dest)
        except SystemExit as leave:
            assert leave.code == 2
            said = capsys.readouterr().err
            assert flag in said
        else:
            assert isinstance(action.type, Limits)
            assert action.type.why_not(taken) is None


def test_both_ends_belong_and_what_is_beyond_does_not() -> None:
    for limits in NUMBERS.values():
        step = 1 if limits.whole else 1e-9
        assert limits.has(limits.least) and limits.has(limits.most)
        assert not limits.has(limits.most + step * max(1, abs(limits.most)))
        assert limits.has(limits.least - step * max(1, abs(limits.least))) is (limits.zero and limits.least == 1)
        for text in ("nan", "inf", "-inf", "1e400", "", "x", "0x1", "9" * 5000):
            with pytest.raises(argparse.ArgumentTypeError):
                limits(text)
    assert Limits(0.5, 2, zero=True).has(0)
    assert not Limits(0, 2).has(True) and not Limits(0, 2).has("1") and not Limits(0, 2, whole=True).has(1.0)


@pytest.mark.parametrize(
    ("values", "is_right"),
    [
        ({"scale": [0.1, 1.0]}, True),
        ({"scale": [1.0, 0.1]}, False),
        ({"scale": [0.1]}, False),
        ({"ratio": [0.5, math.inf]}, False),
        ({"percentiles": (2, 98)}, True),
        ({"percentiles": (98, 98)}, False),
        ({"cutmix_minmax": [0.5, 0.5]}, False),
        ({"lr_noise": [0.4]}, True),
        ({"lr_noise": [0.9, 0.4]}, False),
        ({"lr_noise": [0.1, 0.2, 0.3]}, False),
        ({"opt_betas": [0.9]}, False),
        ({"opt_betas": [0.9, 0.95, 0.99]}, True),
        ({"decay_milestones": [30, 60]}, True),
        ({"decay_milestones": [60, 30]}, False),
        ({"input_size": [3, MOST_SIDE, MOST_SIDE]}, True),
        ({"input_size": [3, MOST_SIDE, MOST_SIDE + 1]}, False),
        ({"input_size": [4097, 1, 1]}, False),
        ({"input_size": 3}, False),
        ({"shape": [800, 1333]}, True),
        ({"shape": [1, 2, 3]}, False),
        ({"mean": [0.5, "0.5"]}, False),
        ({"std": [0.5, 0]}, False),
        ({"img_size": [16]}, False),
        ({"img_size": 2**70}, False),
        ({"num_classes": "10"}, False),
        ({"num_classes": None, "mean": [], "unknown": math.nan}, True),
    ],
)
def test_values_and_lists_as_a_whole(values: dict[str, Any], is_right: bool) -> None:
    if is_right:
        check_numbers(values)
        return
    with pytest.raises(ValueError) as error:
        check_numbers(values, "c.pth")
    assert "c.pth" in str(error.value) and next(iter(values)) in str(error.value)


def test_a_flag_with_a_list_is_checked_as_a_whole(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", **number("scale"), default=[0.08, 1.0])
    assert parser.parse_args(["--scale", "0.1", "0.2"]).scale == [0.1, 0.2]
    with pytest.raises(SystemExit):
        parser.parse_args(["--scale", "0.2", "0.1"])
    assert "--scale" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kwargs", "is_right"),
    [
        ({}, True),
        ({"embed_dims": [96, 192], "mlp_ratio": 4.0, "qkv_bias": True, "norm_layer": print, "act": None}, True),
        ({"mlp_ratio": math.inf}, False),
        ({"embed_dims": [10**6]}, False),
        ({"depths": [500, 500]}, False),
        ({"in_chans": []}, False),
        ({"num_classes": "2"}, False),
        ({"anything": 2**40}, False),
        ({"anything": {"deep": [math.nan]}}, False),
        ([1], False),
        ({1: 2}, False),
        ({"anything": ["x"] * 20_000}, False),
    ],
)
def test_arguments_of_a_model(kwargs: Any, is_right: bool) -> None:
    if is_right:
        check_model_kwargs(kwargs)
    else:
        with pytest.raises(ValueError, match="model_kwargs"):
            check_model_kwargs(kwargs)


def _doubled(levels: int) -> str:
    return "\n".join(["a0: &a0 [x, x]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, levels))])


def _merged(levels: int) -> str:
    rows = ["a0: &a0 {k: 1, j: 2}"]
    rows += [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, levels)]
    return "\n".join(rows)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 3000 + "]" * 3000,
        "[" * 20 + "]" * 20,
        "a: " + "9" * 5000,
        "a: " + "9" * 100,
        "a: 2026-99-99",
        "a: !!binary x",
        "? [a]\n: 1",
        "a: [1",
        "!!python/object/apply:os.getcwd []",
        "&a [*a]",
        _doubled(40),
        _merged(12),
        "a: " + "x" * 5000,
        "# " + "x" * MOST_YAML,
        "\0",
    ],
    ids=range(15),
)
def test_yaml_without_end_or_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        read_yaml(text)


def test_yaml_as_people_write_it() -> None:
    assert read_yaml("a: &x {b: 1}\nc: {<<: *x, d: [.5, null]}") == {"a": {"b": 1}, "c": {"b": 1, "d": [0.5, None]}}
    assert why_unbounded({"a": [1, 2.5, "x", None, (True,)]}) is None


def test_values_of_any_size_are_short_in_messages() -> None:
    nest: Any = "x"
    for _ in range(60):
        nest = [nest, nest]
    for value in (nest, 10**5000, "x" * 10**6, {"a" * 1000: nest}, list(range(10**5))):
        assert len(short(value)) < 300
    assert (short([1, "a"]), short({"a": None})) == ("[1, 'a']", "{'a': None}")
