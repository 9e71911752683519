"""Every command as people's hands know it: help, defaults, near names, what goes to standard output."""

import argparse
import csv
import importlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

import davit
from davit import cli
from davit.cli import COMMANDS, Group
from davit.commands import DISK_FULL, RESUME, run_cli
from davit.detect import flags as detect_flags
from davit.parsing import Parser
from davit.parsing.results import as_columns, give, json_alone, put, require_writable, require_writable_folder

ROOT = Path(davit.__file__).parents[1]
WORDS = [
    (name, *inner)
    for name, entry in COMMANDS.items()
    for inner in ([(word,) for word in entry.commands] if isinstance(entry, Group) else [()])
]
SCRIPTS = ("train.py", "validate.py", "predict.py")
TOOLS = [
    f"{library}/tools/{name}.py"
    for library in ("mmdet", "mmseg")
    for name in ("train", "test", "image_demo", "get_flops")
]

#: What each command prints: (on standard output, has --json, has --output FILE).
PRINTS = {
    "train": ("nothing: the log; a document of the run", True, False),
    "validate": ("a table of accuracies", True, True),
    "predict": ("a table of classes", True, True),
    "probe": ("a table of classifiers", True, True),
    "embed": ("the nearest images", True, True),
    "robustness": ("a table of sets", True, True),
    "visualize": ("nothing: images", True, False),
    "app": ("nothing: a page", False, False),
    "serve": ("nothing: a service", False, False),
    "doctor": ("a line for each finding", True, True),
    "checkpoint inspect": ("what is in a file", True, True),
    "checkpoint convert": ("what was written", True, False),
    "export": ("what was written", True, False),
    "hub export": ("what was written", True, False),
    "hub push": ("what was uploaded", True, False),
    "complexity": ("a table of parts", True, True),
    "data digits": ("the folder", True, False),
    "data scenes": ("the folder", True, False),
    "data split": ("the folder", True, False),
    "data stats": ("flags of train.py", True, True),
    "det train": ("nothing: the log; a document of the run", True, False),
    "det test": ("a table of measures", True, True),
    "det demo": ("nothing: images and predictions.json", True, False),
    "det flops": ("a line for each config", True, True),
}


def parser_of(words: tuple[str, ...]) -> argparse.ArgumentParser:
    entry = COMMANDS[words[0]]
    command = entry.commands[words[1]] if isinstance(entry, Group) else entry
    module, _, name = command.parser.partition(":")
    made = getattr(importlib.import_module(f"davit.{module}"), name)()
    assert isinstance(made, argparse.ArgumentParser)
    return made


def leaves(parser: argparse.ArgumentParser, words: tuple[str, ...]) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """A parser, or those of its commands."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not below:
        yield " ".join(words), parser
    for action in below:
        for name, inner in action.choices.items():
            yield from leaves(inner, (*words, name))


LEAVES = dict(leaf for words in WORDS for leaf in leaves(parser_of(words), words))


def told(*words: str, at: Path) -> tuple[subprocess.CompletedProcess[str], float]:
    """Run a process; also the seconds of processor time that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    done = subprocess.run([sys.executable, *words], cwd=at, env=env, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_the_table_of_what_is_printed_has_every_command() -> None:
    assert {name for name in LEAVES if not name.startswith("seg")} == set(PRINTS)


@pytest.mark.parametrize("name", LEAVES)
def test_json_and_output_are_where_something_is_printed(name: str) -> None:
    _, has_json, has_output = PRINTS[name.replace("seg ", "det ")]
    flags = LEAVES[name]._option_string_actions
    assert ("--json" in flags) == has_json
    if "--output" in flags and name != "train":  # there it is timm's name of the folder of runs
        assert has_output and flags["--output"].metavar == "FILE"
    else:
        assert not has_output


@pytest.mark.parametrize("name", LEAVES)
def test_help_shows_every_default_and_groups_flags(name: str) -> None:
    parser = LEAVES[name]
    assert isinstance(parser, Parser)
    text = " ".join(parser.format_help().split())
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or not action.option_strings or action.nargs == 0:
            continue
        if action.default == argparse.SUPPRESS or action.required:
            continue
        shown = parser._get_formatter()._expand_help(action)
        assert shown.count("(default") == 1, f"{name} {action.option_strings}: {shown}"
        assert " ".join(shown.split()).replace(" ", "") in text.replace(" ", "")
    groups = {group.title: group._group_actions for group in parser._action_groups}
    loose = [action for action in groups["options"] if action.help != argparse.SUPPRESS]
    shown_flags = [action for action in parser._actions if action.option_strings]
    assert len(shown_flags) <= 20 or len(loose) <= 8, [action.dest for action in loose]


#: Flags that mean something else, or take something else, in some commands.
DIFFER = {
    *("--amp", "--auto-resume", "--batch-size", "--class-map", "--classes", "--config", "--dry-run", "--epochs"),
    *("--eval-metric", "--force", "--freeze", "--gpu-ids", "--hflip", "--img-size", "--initial-checkpoint", "--json"),
    *("--limit", "--lr", "--max-megabytes", "--model", "--no-aug", "--out", "--output", "--overwrite", "--pin-mem"),
    *("--pretrained", "--results-file", "--resume", "--runs", "--scale", "--seed", "--skip-bad-images", "--split"),
    *("--task", "--to"),
}


def test_a_flag_has_the_same_words_in_all_commands() -> None:
    """But for its default, and for those flags that are not the same."""
    words: dict[str, set[str]] = {}
    of_detectors = (detect_flags.detector_parser(), detect_flags.test_parser(), detect_flags.demo_parser())
    for parser in (*LEAVES.values(), *of_detectors):
        for action in parser._actions:
            for flag in action.option_strings:
                if action.help != argparse.SUPPRESS:
                    words.setdefault(flag, set()).add((action.help or "").partition(" (default")[0])
    assert {flag for flag, said in words.items() if len(said) > 1 and flag.startswith("--")} == DIFFER


def _mistyped() -> list[tuple[str, str, str]]:
    """For each command a long flag with a letter too many."""
    cases = []
    for name, parser in LEAVES.items():
        longest = max(
            (flag for action in parser._actions if action.help != argparse.SUPPRESS for flag in action.option_strings),
            key=len,
        )
        cases.append((name, longest, f"{longest[:4]}x{longest[4:]}"))
    return cases


@pytest.mark.parametrize(("name", "meant", "typed"), _mistyped())
def test_a_mistyped_flag_gets_the_nearest(
    name: str, meant: str, typed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leave:
        cli.main([*name.split(), typed, "1"])
    assert leave.value.code == 2
    said = capsys.readouterr()
    assert typed in said.err and meant in said.err.replace(typed, "") and said.out == ""


@pytest.mark.parametrize(
    ("words", "near"),
    [
        ("train --lrr 1", "--lr"),
        ("train --lrr=1", "--lr"),
        ("train DIR --batchsize 3", "--batch-size"),
        ("train DIR --batch_size 3", "--batch-size"),
        ("train DIR --learning-rate 1", "--lr"),
        ("predict --tpok 3", "--topk"),
        ("train DIR --topk 3", "davit predict"),
        ("predict IMAGE --freeze all", "davit train"),
        ("det test CONFIG FILE --auto-resume", "davit train"),
        ("train DIR --clip-mode nrom", "norm"),
        ("checkpoint inpsect FILE", "inspect"),
        ("checkpoint inspect FILE --perfix a", "--prefix"),
        ("data stats DIR --lmit 3", "--limit"),
        ("hub push A B --privat2", "--private"),
        ("trian", "train"),
        ("det trian", "train"),
        ("det train CONFIG --cfg-optoins a=1", "--cfg-options"),
    ],
)
def test_near_names(words: str, near: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = cli.main(words.split())
    except SystemExit as leave:
        status = int(leave.code or 0)
    assert status == 2
    assert near in capsys.readouterr().err.partition("error:")[2] or words.endswith("trian")


@pytest.mark.parametrize("words", ["train DIR --lr -1e30", "train DIR --mean -0.5 --mean -x", "predict -- --lrr"])
def test_numbers_and_what_follows_two_dashes_are_no_flags(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = parser_of((words.split()[0],))
    if "-- " in words:
        assert parser.parse_args(words.split()[1:]).data == ["--lrr"]
        return
    with pytest.raises(SystemExit):
        parser.parse_args(words.split()[1:])
    assert "-1e30:" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "taken"),
    [("validate FILE DIR", "DIR alone"), ("checkpoint inspect FILE DIR", "alone"), ("complexity DIR", "no word")],
)
def test_a_word_too_many_is_told_what_is_taken(words: str, taken: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        cli.main(words.split())
    said = capsys.readouterr().err
    assert leave.value.code == 2 and "DIR" in said and taken in said and "--help" in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(("more", "can_resume"), [({}, False), ({"when_full": RESUME}, True)])
def test_after_a_full_disk_only_a_training_is_resumed(
    more: dict[str, str], can_resume: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def work() -> None:
        with Path("/dev/full").open("w") as stream:
            stream.write("x")

    assert run_cli(work, **more) == DISK_FULL
    assert ("--auto-resume" in caplog.text) == can_resume


def test_a_folder_for_results_is_looked_at_before_the_work(tmp_path: Path) -> None:
    require_writable_folder(tmp_path / "new" / "newer", "--out")
    (tmp_path / "file").touch()
    for wrong in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ValueError) as caught:
            require_writable_folder(wrong, "--out")
        assert "--out" in str(caught.value) and str(tmp_path / "file") in str(caught.value)
    with mock.patch("os.access", return_value=False), pytest.raises(ValueError) as caught:
        require_writable_folder(tmp_path / "new" / "newer", "--out")
    assert f"into {tmp_path};" in str(caught.value)


def test_abbreviations_are_taken_as_before() -> None:
    assert parser_of(("train",)).parse_args(["DIR", "--weight-dec", "0.1", "-j4"]).weight_decay == 0.1


@pytest.mark.parametrize(
    "words", [*WORDS, ("data", "stats"), ("checkpoint", "inspect"), ("hub", "push")], ids=" ".join
)
def test_help_is_answered_without_torch(words: tuple[str, ...]) -> None:
    """And imports little: the parsers of all commands in one process."""
    script = f"""
import sys
from davit_command import main
try:
    main({[*words, "--help"]!r})
except SystemExit:
    pass
assert not {{"torch", "timm", "mmengine", "scipy", "pandas"}} & set(sys.modules)
"""
    done, seconds = told("-c", script, at=ROOT)
    assert done.returncode == 0, done.stderr
    assert seconds < 1


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_answer_help_and_mistakes_in_under_a_second(script: str, tmp_path: Path) -> None:
    done, seconds = told(str(ROOT / script), "--help", at=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: {script} ") and seconds < 1
    done, seconds = told(str(ROOT / script), "DIR", "--modle", "x", at=tmp_path)
    assert done.returncode == 2 and "--model" in done.stderr.partition("error:")[2] and seconds < 1


@pytest.mark.parametrize("script", TOOLS)
def test_tools_answer_help_and_mistakes_in_under_a_second(script: str, tmp_path: Path) -> None:
    done, seconds = told(str(ROOT / script), "--help", at=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith(f"usage: {Path(script).name} ") and seconds < 1
    done, seconds = told(str(ROOT / script), "CONFIG", "CHECKPOINT", "--clases", "x", at=tmp_path)
    assert done.returncode == 2 and "--classes" in done.stderr.partition("error:")[2] and seconds < 1


# ---- results ----


def run(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert cli.main([*map(str, words)]) in (0, 1)
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, and a checkpoint of a small model of random weights."""
    import torch

    folder = tmp_path_factory.mktemp("work")
    importlib.import_module("davit.data").write_digits(folder / "digits")
    model = davit.create_model("DaViT_nano", num_classes=10)
    torch.save({"state_dict": model.state_dict(), "arch": "DaViT_nano"}, folder / "nano.pth")
    return folder


def test_each_document_is_one_and_the_file_has_the_same(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nano, data = work / "nano.pth", work / "digits"
    picture = next(data.glob("val*/*/*"))
    small = ("--img-size", 32, "-j", 0, "-b", 64)
    commands = {
        "validate": (data, "--checkpoint", nano, *small),
        "predict": (picture, "--checkpoint", nano, "--img-size", 32),
        "embed": (nano, picture.parent, tmp_path / "f.npz", "--neighbours", picture, "--count", 2, *small),
        "doctor": (data,),
        "checkpoint inspect": (nano,),
        "complexity": ("--model", "DaViT_nano", "--input", 3, 32, 32),
    }
    for name, words in commands.items():
        file = tmp_path / f"{name}.json"
        text = run(capsys, *name.split(), *words, "--output", file)
        document = json.loads(run(capsys, *name.split(), *words, "--json"))
        assert text and not text.startswith(("{", "["))
        written = json.loads(file.read_text())
        one = written[0] if name == "validate" else written
        assert type(one) is type(document), name
        if isinstance(document, dict):
            assert set(document) == set(one), name
        table = tmp_path / f"{name}.csv"
        run(capsys, *name.split(), *words, "--output", table)
        with table.open(newline="") as stream:
            assert list(csv.DictReader(stream)), name


def test_what_a_library_prints_does_not_reach_a_programs_document(capsys: pytest.CaptureFixture[str]) -> None:
    with json_alone(True):
        print("from a library")
        with json_alone(True):
            put('{"a": 1}')
    print("after")
    said = capsys.readouterr()
    assert said.out == '{"a": 1}\nafter\n' and said.err == "from a library\n"


def test_a_file_is_written_by_its_suffix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, expected in {"a.txt": "text\n", "a.json": '{\n  "n": null\n}\n', "a.csv": "n\n1\n"}.items():
        args = argparse.Namespace(json=False, output=str(tmp_path / name))
        give(args, "text", {"n": float("nan")}, [{"n": 1}])
        assert (tmp_path / name).read_text() == expected
    assert capsys.readouterr().out == "text\n" * 3
    with pytest.raises(ValueError, match=r"\.csv"):
        give(argparse.Namespace(json=False, output=str(tmp_path / "b.csv")), "text", {})
    with pytest.raises(ValueError, match="--output"):
        require_writable(str(tmp_path))
    require_writable("")


def test_columns() -> None:
    assert as_columns([("a", "n"), ("bcd", "10"), ("e", "7")], left=1) == "a     n\nbcd  10\ne     7\n"


def test_a_doctors_output_that_is_a_folder_names_the_other_flag(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert cli.main(["doctor", "--output", str(tmp_path)]) == 2
    assert "--runs" in caplog.text
