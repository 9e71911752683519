"""The documents against the tree: links, commands, paths and numbers. Commands are parsed here, not run."""

import argparse
import csv
import importlib
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.distributed import launch
from torch.distributed.run import get_args_parser

from davit import VARIANTS, create_model
from davit import commands as exits
from davit.complexity import complexity
from davit.engine.flags import VALIDATE_NO_LONGER, parse_with_config, train_parser, validate_parser
from davit.predict.flags import parse_predict

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDERS = ("", "docs", "benchmarks", "configs", "figures", "mmdet", "mmseg")
DOCUMENTS = sorted(path for folder in FOLDERS for path in (REPOSITORY / folder).glob("*.md"))
TRAINING = REPOSITORY / "docs" / "training.md"

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]\[]*\]\(\s*<?([^)\s>]+)")
SHELLS = ("shell", "bash", "sh", "console")


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def without_fences(text: str) -> str:
    return FENCE.sub("", text)


def test_the_documents_are_there() -> None:
    expected = {"README.md", "Introduction.md", "CHANGELOG.md", "CONTRIBUTING.md"}
    expected |= {f"docs/{name}.md" for name in ("changing", "training", "reproduce", "model_card")}
    assert expected <= {name_of(path) for path in DOCUMENTS}


# --- links ---


def anchors(document: str) -> set[str]:
    """The names that headings get, by GitHub's rule, and those given by hand."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", without_fences(document), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        name, again = slug, 0
        while name in found:
            again += 1
            name = f"{slug}-{again}"
        found.add(name)
    return found | set(re.findall(r"<a\s+(?:id|name)=[\"']([^\"']+)", document))


def dead_links(document: str, at: Path) -> list[str]:
    """Relative links of a text at a path that lead to no file, or to no heading."""
    dead = []
    for link in LINK.findall(re.sub(r"`[^`\n]*`", "", without_fences(document))):
        if re.match(r"[a-z][a-z+.-]*:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (at.parent / file).resolve() if file else at
        if not target.exists():
            dead.append(link)
        elif anchor:
            text = document if target == at else target.read_text(encoding="utf-8") if target.is_file() else ""
            if anchor not in anchors(text):
                dead.append(link)
    return dead


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_no_dead_links(path: Path) -> None:
    assert dead_links(path.read_text(encoding="utf-8"), path) == []


def test_a_dead_link_is_seen() -> None:
    text = "# One, two\n[a](#one-two) [b](#two) [c](docs/nowhere.md) [d](LICENSE) [e](https://x.org/y) [f](docs/#no)\n"
    assert dead_links(text, REPOSITORY / "README.md") == ["#two", "docs/nowhere.md", "docs/#no"]


# --- commands ---


class Command(NamedTuple):
    """One simple command of a shell block: its words, with neither variables in front nor redirections."""

    document: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.document}: {shlex.join(self.words)}"[:100]


def commands(document: str, name: str = "") -> Iterator[Command]:
    """The commands of a document's shell blocks."""
    for line in shell_lines(document):
        for words in _simple_commands(line):
            yield Command(name, tuple(words))


def shell_lines(document: str) -> Iterator[str]:
    """The lines of a document's shell blocks, continuation lines joined; in a console block those behind '$ '."""
    for language, block in FENCE.findall(document):
        if language in SHELLS:
            for line in re.sub(r"\\\n\s*", " ", block).splitlines():
                if language != "console" or line.startswith("$ "):
                    yield line.removeprefix("$ ") if language == "console" else line


def _simple_commands(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    words: list[str] = []
    redirected = False
    for word in [*lexer, ";"]:
        if word in (";", "&&", "||", "|", "&"):
            while words and re.match(r"[A-Za-z_]\w*=", words[0]):
                words.pop(0)
            if words:
                yield words
            words, redirected = [], False
        elif set(word) <= set("<>&"):
            redirected = True
        elif not redirected and word != "...":
            words.append(word)


COMMANDS = [command for path in DOCUMENTS for command in commands(path.read_text(encoding="utf-8"), name_of(path))]


class Parsed(BaseException):
    """Raised in place of running a command whose words its parser has accepted."""


def check(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Let a command's own parser read it; returns what it is a command of, or '' for none of ours.

    Raises:
        SystemExit: the parser refuses the words.
        ValueError: a recipe is missing or refused.
    """
    if not words:
        return ""
    program, rest = Path(words[0]).name, list(words[1:])
    if program == "torchrun":
        return _launched(get_args_parser().parse_args(rest), monkeypatch)
    if program == "launch.sh":
        return check(["python", *rest], monkeypatch)
    if words[0] in ("./train.py", "./validate.py", "./predict.py"):
        program, rest = "python", [*words]
    if not re.fullmatch(r"python[\d.]*", program):
        return ""
    while rest and re.fullmatch(r"-[uBOIs]+", rest[0]):
        rest.pop(0)
    if not rest:
        return ""
    if rest[0] == "-m":
        return _module(rest[1], rest[2:], monkeypatch)
    if rest[0].startswith("-"):
        return ""
    script = rest[0].removeprefix("./").removeprefix("../")  # mmdet/tools may have a train.py of its own
    if script == "train.py":
        parse_with_config(train_parser(), rest[1:])
    elif script == "validate.py":
        parse_with_config(validate_parser(), rest[1:])
    elif script == "predict.py":
        parse_predict(rest[1:])
    else:
        places = [REPOSITORY / folder / script for folder in FOLDERS]
        assert any(place.exists() for place in places), f"{script} does not exist"
        return ""
    return script


def _launched(options: argparse.Namespace, monkeypatch: pytest.MonkeyPatch) -> str:
    return check(["python", options.training_script, *options.training_script_args], monkeypatch)


def _module(module: str, rest: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    if module == "torch.distributed.launch":
        return _launched(launch.parse_args(rest), monkeypatch)
    if module == "torch.distributed.run":
        return _launched(get_args_parser().parse_args(rest), monkeypatch)
    if module.split(".")[0] != "davit":
        return ""
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        parse(parser, *args, **kwargs)  # type: ignore[call-overload]
        raise Parsed

    found = importlib.import_module(module)
    if hasattr(found, "__path__"):
        found = importlib.import_module(f"{module}.__main__")
    main: Callable[[], object] = found.main
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [module, *rest])
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
        with pytest.raises(Parsed):
            main()
    return module


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_commands_are_accepted(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    try:
        check(command.words, monkeypatch)
    except SystemExit as refusal:
        pytest.fail(f"{command.document}: refused (status {refusal.code}): {shlex.join(command.words)}")


def test_the_commands_of_the_manual_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    found = {check(command.words, monkeypatch) for command in COMMANDS if command.document == "docs/training.md"}
    assert {"train.py", "validate.py", "davit.checkpoint", "davit.engine.nonfinite"} <= found


@pytest.mark.parametrize(
    "line",
    [
        "python train.py DIR --modle DaViT_tiny",
        "A=1 tools/launch.sh train.py DIR --model DaViT_tiny --no-such-flag",
        "torchrun --nproc_per_node=8 validate.py DIR --lr 1e-3",
        "torchrun --nproc-per-nod=8 --no-such-flag train.py DIR",
        "python -u -m torch.distributed.launch --nproc_per_node=8 train.py DIR --sched",
        "python -m davit.checkpoint convert a.pth b.pth --to nowhere",
        "python -m davit.complexity --model DaViT_tiny --input 3 224",
        "cd somewhere && python validate.py DIR --results-format xml > out.txt 2>&1",
    ],
)
def test_a_wrong_command_is_seen(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(SystemExit):
        for command in commands(f"```shell\n{line}\n```\n"):
            check(command.words, monkeypatch)


def test_a_missing_recipe_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(ValueError, match="does not exist"):
        check(["python", "train.py", "DIR", "-c", "configs/nowhere.yaml"], monkeypatch)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    asked = {word for c in COMMANDS if c.words[0] == "make" for word in c.words[1:] if re.fullmatch(r"[a-z-]+", word)}
    assert asked
    assert asked <= targets


def test_every_flag_the_manual_names_exists() -> None:
    parsers = [train_parser(), validate_parser(), get_args_parser()]
    known = {option for parser in parsers for action in parser._actions for option in action.option_strings}
    text = without_fences(TRAINING.read_text(encoding="utf-8"))
    named = {flag for span in re.findall(r"`([^`\n]+)`", text) for flag in re.findall(r"(?<!\S)--[\w-]+", span)}
    assert len(named) > 30
    assert named - known - {"--help"} == set()


# --- what the documents say of the code ---


def cells(path: Path) -> Iterator[list[str]]:
    """The rows of all tables of a document."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_paths_in_changing_exist() -> None:
    text = (REPOSITORY / "docs" / "changing.md").read_text(encoding="utf-8")
    paths = [
        span
        for span in re.findall(r"`([^`\n]+)`", text)
        if re.fullmatch(r"[\w./-]+", span) and ("/" in span or re.search(r"\.\w+$", span) or span == "Makefile")
    ]
    assert len(paths) > 50
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []


def test_the_example_of_another_attention_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (REPOSITORY / "docs" / "changing.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {"__name__": "example"}
    exec(example, names)
    assert capsys.readouterr().out.strip() == "torch.Size([2, 1000])"
    state = names["model"].state_dict()
    assert sum(name.endswith("gamma") for name in state) == 3 * 4
    names["model"](torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None for p in names["model"].parameters())


def test_every_module_has_a_line_in_changing() -> None:
    """Those that only serve others need none."""
    text = (REPOSITORY / "docs" / "changing.md").read_text(encoding="utf-8")
    helpers = {"data/device.py", "data/errors.py", "seeding.py", "text.py", "files.py"}
    modules = {
        path.relative_to(REPOSITORY / "davit").as_posix()
        for folder in ("", "data", "engine", "checkpoint", "predict", "doctor", "visualize", "app")
        for path in (REPOSITORY / "davit" / folder).glob("*.py")
        if path.name != "__init__.py"
    }
    assert {name for name in modules if f"`davit/{name}`" not in text} <= helpers


def test_exit_statuses_are_those_of_the_code() -> None:
    named = {int(row[0]) for row in cells(TRAINING) if row[0].isdigit()}
    codes = (exits.OK, exits.USER_ERROR, exits.NONFINITE, exits.DISK_FULL, exits.INTERRUPTED)
    assert named == {*codes, 1}


def test_flags_without_a_meaning_are_those_of_the_code() -> None:
    section = TRAINING.read_text(encoding="utf-8").partition("\n## Flags that have no meaning today")[2]
    listed = {flag.replace("-", "_") for flag in re.findall(r"^\| `--([\w-]+)`", section, re.MULTILINE)}
    assert listed == {*VALIDATE_NO_LONGER}


def test_the_introductions_table_of_variants() -> None:
    rows = {row[0]: row[1:] for row in cells(REPOSITORY / "Introduction.md") if row[0] in VARIANTS}
    assert len(rows) == 5
    for name, (dims, depths, heads, window, size, parameters) in rows.items():
        variant = VARIANTS[name]
        for written, stated in ((dims, variant.embed_dims), (depths, variant.depths), (heads, variant.num_heads)):
            assert tuple(map(int, written.split())) == stated, name
        assert (int(window), int(size)) == (variant.window_size, variant.image_size), name
        with torch.device("meta"):
            model = create_model(name)
        assert f"{sum(p.numel() for p in model.parameters()):,}" == parameters, name


def test_the_introductions_cost_of_a_pair() -> None:
    """36 P C + (4 P C² + 2 P N C) + (4 P C² + 2 P C D) + 16 P C² + 20 P C, on maps that windows tile."""
    C, D, window = 32, 16, 4
    model = create_model(
        "DaViT_tiny",
        **{"embed_dims": (C,), "depths": (1,), "num_heads": (C // D,), "window_size": window, "num_classes": 0},
    )
    counted = complexity(model, (3, 64, 96)).parts
    P, N = 16 * 24, window**2
    formula = 36 * P * C + 8 * P * C * C + 2 * P * N * C + 2 * P * C * D + 16 * P * C * C + 20 * P * C
    assert sum(part.flops for part in counted if part.stage and part.name != "patch embedding") == formula


def test_published_numbers_are_the_published_ones(shared: Path) -> None:
    rows = [set(row) for row in cells(REPOSITORY / "docs" / "reproduce.md")]
    with (shared / "spec" / "published.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            wanted = {row[name] for name in ("method", "variant", "params_M", "flops_G", "value", "value2")}
            wanted |= {row["schedule"]} if row["task"] != "cls" else {row["resolution"]}
            assert any(wanted - {""} <= found for found in rows), f"missing or other: {row}"


# --- what must not be in them ---


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_no_place_of_this_machine_and_no_registry(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    places = re.findall(r"(?<![\w./:-])/(?:work|home|root|tmp|Users)(?:/[\w.-]+)*", text)
    assert places == []
    hosts = re.findall(r"\w+://([\w.-]+)", text)
    registries = ("pypi", "pythonhosted", "artifactory", "nexus", "devpi", "registry", "mirror", "proxy")
    assert [host for host in hosts if any(word in host.lower() for word in registries)] == []
    assert re.findall(r"--(?:extra-)?index-url|--trusted-host|\b(?!127\.|0\.)(?:\d{1,3}\.){3}\d{1,3}:\d+", text) == []
