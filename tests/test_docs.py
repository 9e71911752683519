"""Hold the documents against the tree: links, paths, commands (parsed, not run) and numbers."""

import argparse
import csv
import importlib
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from torch.distributed import launch
from torch.distributed.run import get_args_parser

from davit import VARIANTS, cli, create_model, recipes
from davit.cli import COMMANDS
from davit.engine.flags import parse_with_config, train_parser, validate_parser
from davit.predict.flags import predict_parser

REPOSITORY = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "mmdet/*.md", "mmseg/*.md", "benchmarks/**/*.md")
    for path in REPOSITORY.glob(pattern)
)

FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
SHELLS = ("shell", "sh", "bash", "console")
OTHERS = ("python", "text", "json", "bibtex", "dockerfile")  # what else a block may hold: no commands
LINK = re.compile(r"\[[^\]\[]*\]\(\s*<?([^)\s>]+)")
OUR_NAME = re.compile(r"`(davit(?!\.openmmlab)(?:\.\w+)+)(?:\([^`]*)?`")  # openmmlab takes seconds to import
OUR_PATH = re.compile(r"`((?:benchmarks|configs|davit|docs|figures|tests|tools)/[\w./-]+)`")


_EXAMPLE = r"`(\w+\.py)`(?:[^\n]|\n(?!\n))*\n\n```python\n(.*?)^```"


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def examples(document: str) -> dict[str, str]:
    """The files that a document tells its reader to write: a Python block behind a paragraph that names one.py.

    A script of the repository is none of them.
    """
    text = (REPOSITORY / document).read_text(encoding="utf-8")
    found = dict(re.findall(_EXAMPLE, text, re.M | re.S))
    return {name: block for name, block in found.items() if not (REPOSITORY / name).exists()}


# --- links and paths ---


def anchors(document: str) -> set[str]:
    """The names that GitHub gives to headings."""
    count: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", FENCE.sub("", document), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found.add(f"{slug}-{count[slug]}" if count[slug] else slug)
        count[slug] += 1
    return found


def dead_links(document: str, at: Path) -> list[str]:
    """Relative links of a text at a path that lead to no file, or to no heading."""
    dead = []
    for link in LINK.findall(re.sub(r"`[^`\n]*`", "", FENCE.sub("", document))):
        if re.match(r"[a-z][a-z+.-]*:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (at.parent / file).resolve() if file else at
        text = document if target == at else target.read_text(encoding="utf-8") if target.is_file() and anchor else ""
        if not target.exists() or (anchor and anchor not in anchors(text)):
            dead.append(link)
    return dead


def test_the_readme_is_short_and_has_the_words_that_people_search_for() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    for word in ("fine-tune", "ONNX", "freeze", "embedding", "memory", "Docker", "hours", "checkpoint", "Slurm"):
        assert word in text, word


# what people type into a search field, and the page that has to come up: the word stands in a heading of it
SEARCHED = {
    "fine-tune": "docs/finetuning.md",
    "freeze": "docs/finetuning.md",
    "LoRA": "docs/finetuning.md",
    "ONNX": "docs/export.md",
    "embedding": "docs/embed.md",
    "memory": "docs/training.md",
    "resume": "docs/training.md",
    "EMA": "docs/training.md",
    "GPU": "docs/many_gpus.md",
    "Slurm": "docs/many_gpus.md",
    "torch.compile": "docs/many_gpus.md",
    "Docker": "docs/serve.md",
    "int8": "docs/deploy.md",
    "threshold": "docs/multilabel.md",
    "segment": "docs/segment.md",
    "D-FINE": "docs/detection.md",
    "mmdetection": "mmdet/README.md",
}


@pytest.mark.parametrize("word", SEARCHED)
def test_a_word_that_people_search_for_is_in_a_heading_of_its_page(word: str) -> None:
    text = FENCE.sub("", (REPOSITORY / SEARCHED[word]).read_text(encoding="utf-8"))
    assert word.lower() in "\n".join(re.findall(r"^#{1,6}\s+(.+)$", text, re.MULTILINE)).lower()


# sentences that newcomers had to read twice, and words that stand for a term of the field
RIDDLES = (
    *("nothing is lost", "has seen the whole", "pictures x %d processes", "channel groups respond to"),
    *("places add up to", "are hidden in turn", "does not end the batch", "bridged or not", "of more than 32 pixels"),
    *("a norm for each level", "anything unexplained", "get no gradient are found and named", "remembers its folder"),
    *("from the end of an epoch is taken", "laid out anew", "of other making", "are dealt to the ranks"),
    *("where they lose, oneDNN", "keys and values cancel", "is no batch.", "must be told of"),
)


def test_no_riddle_is_left_in_a_document_or_a_message() -> None:
    files = [path for path in DOCUMENTS if not name_of(path).startswith("benchmarks/results/")]
    files += list((REPOSITORY / "davit").rglob("*.py"))
    for path in files:
        text = " ".join(path.read_text(encoding="utf-8").replace('" "', "").split())
        assert [words for words in RIDDLES if words in text] == [], name_of(path)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_a_document_speaks_of_images(path: Path) -> None:
    """Outside of code, whose names are those of the program."""
    if path.name == "CHANGELOG.md" or name_of(path).startswith("benchmarks/"):
        return  # the one has its history, the others what a program printed
    text = re.sub(r"`[^`\n]*`|\]\([^)]*\)", "", FENCE.sub("", path.read_text(encoding="utf-8")))
    assert re.findall(r"\b[Pp]ictures?\b", text) == []
    assert [match for match in re.findall(r"(\w*) deviation", text) if match != "standard"] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_a_document_names_what_exists_and_no_place_of_one_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert dead_links(text, path) == []
    if path.name != "CHANGELOG.md":  # which names what is gone
        roots = (REPOSITORY, path.parent)
        assert [name for name in OUR_PATH.findall(text) if not any((root / name).exists() for root in roots)] == []
        for name in OUR_NAME.findall(text):
            pkgutil.resolve_name(name)
    assert re.findall(r"(?<![\w./:-])/(?:work|home|root|tmp|Users)(?:/[\w.-]+)*", text) == []
    assert re.findall(r"index-url|--trusted-host|\b(?!127\.|0\.)(?:\d{1,3}\.){3}\d{1,3}:\d+", text) == []
    assert re.findall(r"\w+://[\w.-]*(?:pypi|pythonhosted|artifactory|devpi|registry|mirror|proxy)", text) == []


def test_a_dead_link_is_seen() -> None:
    text = "# One, two\n[a](#one-two) [b](#two) [c](docs/nowhere.md) [d](LICENSE) [e](https://x.org/y) [f](docs/#no)\n"
    assert dead_links(text, REPOSITORY / "README.md") == ["#two", "docs/nowhere.md", "docs/#no"]


def test_the_site_has_every_page() -> None:
    site = yaml.safe_load((REPOSITORY / "docs/mkdocs.yml").read_text())

    def pages(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for part in entry.values() if isinstance(entry, dict) else entry:
                yield from pages(part)

    listed = list(pages(site["nav"]))
    tables = ("benchmarks/results/",)  # which pages link to
    assert sorted(listed) == sorted(name_of(path) for path in DOCUMENTS if not name_of(path).startswith(tables))


def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """MkDocs checks links and anchors of the site itself, and ends with 1 at the first warning (--strict)."""
    pytest.importorskip("material", reason="requirements-docs.txt is installed by `make docs`")
    words = [sys.executable, "-m", "mkdocs", "build", "-q", "--strict", "-f", "docs/mkdocs.yml", "-d", str(tmp_path)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    found = (tmp_path / "search" / "search_index.json").read_text()
    assert all(word in found for word in ("fine-tun", "ONNX", "freeze", "embedding", "memory", "Docker", "hours"))


# --- commands ---


class Line(NamedTuple):
    """One line of a shell block, its continuation lines joined to it, without a comment."""

    document: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}: {self.text}"[:100]


def lines(path: Path) -> Iterator[Line]:
    """The command lines of a document; in a console's block they follow a prompt."""
    for language, block in FENCE.findall(path.read_text(encoding="utf-8")):
        joined = re.sub(r"\\\n\s*", " ", block) if language in SHELLS else ""
        if language == "console":
            joined = "\n".join(re.findall(r"^ *\$ (.*)$", joined, re.MULTILINE))
        for line in joined.splitlines():
            if text := re.sub(r"(^\s*#|\s+#\s).*$", "", line).strip():
                yield Line(name_of(path), text)


LINES = list(dict.fromkeys(line for path in DOCUMENTS for line in lines(path)))


def simple_commands(line: str) -> Iterator[list[str]]:
    """The words of each command of a line, with neither variables in front nor redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    words: list[str] = []
    redirected = False
    for word in [*lexer, ";"]:
        if word in (";", "&&", "||", "|", "&"):
            if words:
                yield words
            words, redirected = [], False
        elif set(word) <= set("<>&"):
            redirected = True
        elif not redirected and (words or not re.match(r"[A-Za-z_]\w*=", word)):
            words.append(word)


class Parsed(BaseException):
    """Raised in place of running a command whose words its parser has accepted."""


def check(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a command's own parser read it; what is not ours passes; SystemExit or ValueError is a refusal."""
    program, rest = Path(words[0]).name, words[1:]
    if rest[:1] == ["-u"]:
        rest = rest[1:]
    if program == "torchrun" or rest[:2] == ["-m", "torch.distributed.launch"]:
        launched = get_args_parser().parse_args(rest) if program == "torchrun" else launch.parse_args(rest[2:])
        as_module = ["-m"] if getattr(launched, "module", False) else []
        check(["python", *as_module, launched.training_script, *launched.training_script_args], monkeypatch)
    elif program == "launch.sh":
        check(["python", *rest], monkeypatch)
    elif program == "davit":
        _command(rest, monkeypatch)
    elif not re.fullmatch(r"python[\d.]*", program) or not rest:
        return
    elif rest[:2] == ["-m", "davit"]:
        _command(rest[2:], monkeypatch)
    elif rest[0] == "-m" and rest[1].split(".")[0] == "davit":
        _module(rest[1], rest[2:], monkeypatch)
    elif rest[0] in ("train.py", "validate.py"):
        parse_with_config(train_parser() if rest[0] == "train.py" else validate_parser(), rest[1:])
    elif rest[0] == "predict.py":
        predict_parser().parse_args(rest[1:])
    elif not rest[0].startswith("-"):
        places = (Path(), REPOSITORY, REPOSITORY / "mmdet", REPOSITORY / "mmseg")
        assert any((place / rest[0]).exists() for place in places), f"no {rest[0]}"


def _command(rest: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `davit` read its words, and the command that they name read the rest."""
    entry: Any = None
    while rest and not rest[0].startswith("-") and not isinstance(entry, cli.Command):
        name, *rest = rest
        table = COMMANDS if entry is None else entry.commands
        if name not in table:
            raise ValueError(f"davit has no command {name}")
        entry = table[name]
    if isinstance(entry, cli.Command):
        module, _, function = entry.main.partition(":")
        if module in ("engine.train", "engine.validate"):
            parse_with_config(train_parser() if module == "engine.train" else validate_parser(), rest)
        elif module == "detect.cli" and not _names_a_config(rest):
            from davit.detect import flags

            makers = {"train_main": flags.detector_parser, "test_main": flags.test_parser}
            parse_with_config(makers.get(function, flags.demo_parser)(), rest)
        elif not entry.extra and module != "detect.cli":
            _parse(getattr(importlib.import_module(f"davit.{module}"), function), module, rest, monkeypatch)
        elif rest:
            make = cli._resolve(entry.parser)
            args = (make(rest) if entry.by_words else make()).parse_args(rest)
            if function == "train_main":
                from davit.openmmlab.config import read_config

                read_config(args.config)


def _names_a_config(words: list[str]) -> bool:
    """Tell a command of MMDetection's configs from one of `davit.detect`, whose runs are not there in a test."""
    if any(word.startswith("--head") for word in words):
        return False
    known = recipes.names_of("mmdet", "mmseg")
    return any(word in known or word.endswith(".py") or "::" in word for word in words[:2]) or words[:1] == ["nowhere"]


def _module(module: str, rest: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.import_module(module)
    if hasattr(found, "__path__"):
        found = importlib.import_module(f"{module}.__main__")
    _parse(found.main, module, rest, monkeypatch)


def _parse(main: Callable[[], object], module: str, rest: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a main read its words and stop there."""
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        parse(parser, *args, **kwargs)
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [module, *rest])
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
        with pytest.raises(Parsed):
            main()


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_a_block_says_what_it_holds(path: Path) -> None:
    """Commands in a block of another language, or behind another fence, would not be looked at."""
    text = path.read_text(encoding="utf-8")
    found = [language for language, _ in FENCE.findall(text)]
    assert {*found} <= {*SHELLS, *OTHERS}
    assert len(re.findall(r"^\s*(?:```|~~~)", text, re.MULTILINE)) == 2 * len(found)


def test_commands_of_each_kind_of_block_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "REPOSITORY", tmp_path)
    document = tmp_path / "a.md"
    document.write_text(
        "```sh\none 1 \\\n  2  # why\n```\n- a list\n  ```bash\n  #!/bin/sh\n  two $# \n  ```\n"
        "```console\n$ three\nanswer\n```\n```text\nfour\n```\n"
    )
    assert [line.text for line in lines(document)] == ["one 1  2", "two $#", "three"]


@pytest.mark.parametrize("line", LINES, ids=str)
def test_a_command_is_accepted(line: Line, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written = examples(line.document)
    for name, text in written.items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path if written else REPOSITORY)
    try:
        for words in simple_commands(line.text):
            check(words, monkeypatch)
    except SystemExit as refusal:
        pytest.fail(f"{line}: refused (status {refusal.code})")


@pytest.mark.parametrize(
    "line",
    [
        "python train.py DIR --modle DaViT_tiny",
        "python train.py DIR -c configs/nowhere.yaml",
        "A=1 tools/launch.sh train.py DIR --model DaViT_tiny --no-such-flag",
        "torchrun --nproc_per_node=8 validate.py DIR --lr 1e-3",
        "python -u -m torch.distributed.launch --nproc_per_node=8 train.py DIR --sched",
        "python -m davit.checkpoint convert a.pth b.pth --to nowhere",
        "davit trian DIR",
        "davit train DIR --modle DaViT_tiny",
        "davit train DIR -c nowhere",
        "davit det train nowhere",
        "davit doctor --no-such-flag",
        "torchrun --nproc_per_node=8 -m davit train DIR --sched",
        "cd somewhere && python validate.py DIR --results-format xml > out.txt 2>&1",
    ],
)
def test_a_wrong_command_is_seen(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises((SystemExit, ValueError)):
        for words in simple_commands(line):
            check(words, monkeypatch)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert {line.text.split()[1] for line in LINES if line.text.startswith("make ")} <= targets


# --- what the documents say of the code ---


def blocks(document: str) -> list[str]:
    """The Python blocks of a document."""
    found = FENCE.findall((REPOSITORY / document).read_text(encoding="utf-8"))
    return [textwrap.dedent(block) for language, block in found if language == "python"]


def test_the_configs_of_the_documents_say_what_they_change(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from davit.openmmlab.config import read_config

    monkeypatch.chdir(tmp_path)
    for name, text in {**examples("docs/detect.md"), **examples("docs/segment.md")}.items():
        Path(name).write_text(text)
    Path("any.py").write_text(blocks("mmdet/README.md")[0])
    detector, any_detector = read_config("mine.py"), read_config("any.py")
    assert detector.train_cfg.max_epochs == 24 and detector.model.backbone.variant == "DaViT_tiny"
    assert any_detector.model.backbone.type == "DaViT" and any_detector.model.neck.in_channels == [192, 384, 768]
    for name, coding in (
        ("small.py", {"label_map": {255: 1}}),
        ("cracks.py", {"colours": [[0, 0, 0], [255, 255, 255]]}),
    ):
        segmentor = read_config(name)
        heads = segmentor.model.decode_head, segmentor.model.auxiliary_head
        for loader in (segmentor.train_dataloader, segmentor.val_dataloader, segmentor.test_dataloader):
            classes = loader.dataset.metainfo["classes"]
            assert len(classes) == len(loader.dataset.metainfo["palette"]) == 2
            assert [head.num_classes for head in heads] == [len(classes)] * 2
            assert loader.dataset.type == "MaskFolders" and coding.items() <= dict(loader.dataset).items()


def test_the_slurm_job_starts_one_launcher_a_machine(tmp_path: Path) -> None:
    """With stand-ins for scontrol, srun (which runs the step of each machine) and Python (which prints its words)."""
    text = (REPOSITORY / "docs/many_gpus.md").read_text(encoding="utf-8")
    (job,) = re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)
    programs = {
        "scontrol": 'printf "%s\\n" node7 node8',
        "srun": 'for i in 0 1; do SLURM_NODEID=$i "$@"; done',
        "python": 'echo "$@"',
    }
    for name, script in programs.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "PYTHON": "python"}
    env |= {"SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "node[7-8]"}
    done = subprocess.run(
        ["bash", "-eu", "-c", job], cwd=REPOSITORY, env=env, capture_output=True, text=True, check=True
    )
    steps = [shlex.split(step) for step in done.stdout.splitlines()]
    for rank, step in enumerate(steps):
        launched = get_args_parser().parse_args(step[step.index("torch.distributed.run") + 1 :])
        assert (launched.node_rank, launched.nnodes, launched.nproc_per_node) == (rank, "2", "8")
        assert (launched.master_addr, launched.training_script) == ("node7", "train.py")
        parse_with_config(train_parser(), launched.training_script_args)
    assert len(steps) == 2


def cells(document: str) -> list[list[str]]:
    """The rows of all tables of a document."""
    rows = re.findall(r"^\|(.*)\|\s*$", (REPOSITORY / document).read_text(encoding="utf-8"), re.MULTILINE)
    return [[cell.strip() for cell in row.split("|")] for row in rows]


def test_the_example_of_another_attention_runs(capsys: pytest.CaptureFixture[str]) -> None:
    example = blocks("docs/changing.md")[0]
    names: dict[str, Any] = {"__name__": "example"}
    exec(example, names)
    assert capsys.readouterr().out.strip() == "torch.Size([2, 1000])"
    assert sum(name.endswith("gamma") for name in names["model"].state_dict()) == 3 * 4


def test_the_introductions_table_of_variants() -> None:
    rows = {row[0]: row[1:] for row in cells("Introduction.md") if row[0] in VARIANTS}
    assert len(rows) == 5
    for name, (*lists, window, size, parameters) in rows.items():
        variant = VARIANTS[name]
        stated = (variant.embed_dims, variant.depths, variant.num_heads)
        assert tuple(tuple(map(int, written.split())) for written in lists) == stated, name
        assert (int(window), int(size)) == (variant.window_size, variant.image_size), name
        with torch.device("meta"):
            model = create_model(name)
        assert f"{sum(p.numel() for p in model.parameters()):,}" == parameters, name


def test_published_numbers_are_the_published_ones(shared: Path) -> None:
    rows = [set(row) for row in cells("docs/reproduce.md")]
    with (shared / "spec" / "published.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            wanted = {row[name] for name in ("method", "variant", "params_M", "flops_G", "value", "value2")}
            wanted |= {row["schedule"]} if row["task"] != "cls" else {row["resolution"]}
            assert any(wanted - {""} <= found for found in rows), f"missing or other: {row}"
