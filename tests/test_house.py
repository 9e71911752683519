"""Rules of the house that a test can hold: one model, tested arguments, no prints, files opened safely."""

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from davit import DaViT, DaViTPyramid
from davit.model import DualAttentionStages

REPOSITORY = Path(__file__).resolve().parents[1]
SKIPPED = {".git", ".venv", "build", "dist", "outputs", "node_modules", "__pycache__"}
UNSAFE_ON_PURPOSE = {
    "tests/checkpoint/test_checkpoint_read.py": "proves that its malicious pickle would run",
    "tests/kernels/test_standing.py": "opens the model that it has just saved whole",
}
DATA_SUFFIXES = {".jpg", ".jpeg", ".JPEG", ".png"}


def files(*suffixes: str, under: Path = REPOSITORY) -> list[Path]:
    found = []
    for path in under.iterdir():
        if path.name in SKIPPED or path.name.startswith("."):
            continue
        if path.is_dir():
            found += files(*suffixes, under=path)
        elif path.suffix in suffixes:
            found.append(path)
    return sorted(found)


Node = TypeVar("Node", bound=ast.AST)


def nodes(path: Path, kind: type[Node]) -> Iterator[Node]:
    return (node for node in ast.walk(ast.parse(path.read_text(), str(path))) if isinstance(node, kind))


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the dotted name of what is called."""
    for node in nodes(path, ast.Call):
        yield ast.unparse(node.func), node


def where(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(REPOSITORY)}:{getattr(node, 'lineno', '?')}"


PYTHON = files(".py")
PACKAGE = files(".py", under=REPOSITORY / "davit")


def test_one_davit():
    found = [where(path, node) for path in PYTHON for node in nodes(path, ast.ClassDef) if node.name == "DaViT"]
    assert [place.split(":")[0] for place in found] == ["davit/model.py"], f"a second class named DaViT: {found}"


# --- arguments ---


def argument_tests(file: str) -> dict[str, set[str]]:
    """Names in test_argument_NAME..., with the test's own parameters."""
    functions = nodes(REPOSITORY / "tests" / file, ast.FunctionDef)
    return {
        function.name.removeprefix("test_argument_"): {argument.arg for argument in function.args.args}
        for function in functions
        if function.name.startswith("test_argument_")
    }


def arguments(cls: type) -> list[str]:
    """Its own keywords, and those of the stages under it."""
    signatures = (inspect.signature(one).parameters for one in (cls, DualAttentionStages))
    return list({name: None for found in signatures for name, p in found.items() if p.kind is not p.VAR_KEYWORD})


@pytest.mark.parametrize("argument", arguments(DaViT))
def test_every_argument_of_the_classifier_has_a_test(argument):
    assert argument in argument_tests("test_model.py"), f"write test_argument_{argument} in tests/test_model.py"


@pytest.mark.parametrize("argument", arguments(DaViTPyramid))
def test_every_argument_of_the_pyramid_has_a_test(argument):
    """Its own in test_pyramid.py; the stages' in test_model.py, for both classes (fixture ``either``)."""
    if argument in arguments(DaViT):
        assert "either" in argument_tests("test_model.py")[argument], f"test_argument_{argument} tests one class"
    else:
        assert argument in argument_tests("test_pyramid.py"), f"write test_argument_{argument} in test_pyramid.py"


def test_no_argument_test_without_its_argument():
    known = {*arguments(DaViT), *arguments(DaViTPyramid)}
    for file in ("test_model.py", "test_pyramid.py"):
        stray = [name for name in argument_tests(file) if not any(name.startswith(argument) for argument in known)]
        assert stray == []


# --- prints, size, safety ---


def test_the_model_never_prints():
    assert "print(" not in (REPOSITORY / "davit" / "model.py").read_text()


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_the_package_never_prints(path):
    """A command writes to sys.stdout in its main."""
    assert [where(path, call) for name, call in calls(path) if name == "print"] == []


def test_pickles_are_opened_with_weights_only():
    unsafe = set()
    for path in PYTHON:
        for name, call in calls(path):
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            if name == "torch.load" and keywords.get("weights_only") != "True":
                unsafe.add(str(path.relative_to(REPOSITORY)))
        for node in nodes(path, ast.ImportFrom):
            assert not (node.module == "torch" and "load" in {alias.name for alias in node.names}), where(path, node)
    assert unsafe == set(UNSAFE_ON_PURPOSE)


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_the_package_runs_nothing_from_files(path):
    forbidden = {
        *("yaml.load", "yaml.full_load", "yaml.unsafe_load", "yaml.load_all"),
        *("pickle.load", "pickle.loads", "os.system", "eval", "exec", "joblib.load"),
    }
    assert [where(path, call) for name, call in calls(path) if name in forbidden] == []
    shells = [
        where(path, call)
        for name, call in calls(path)
        if name.startswith("subprocess.") and any(keyword.arg == "shell" for keyword in call.keywords)
    ]
    assert shells == []


def test_yaml_is_read_safely_everywhere():
    unsafe = {"yaml.load", "yaml.full_load", "yaml.unsafe_load"}
    assert [where(path, call) for path in PYTHON for name, call in calls(path) if name in unsafe] == []


def test_nothing_of_the_shared_pictures_is_copied(shared):
    """Their licences do not let them into the project."""
    sizes: dict[int, list[Path]] = {}
    for path in files(*DATA_SUFFIXES):
        sizes.setdefault(path.stat().st_size, []).append(path)
    copied = [
        str(path)
        for original in (shared / "data").rglob("*")
        if original.is_file()
        for path in sizes.get(original.stat().st_size, [])
        if path.read_bytes() == original.read_bytes()
    ]
    assert copied == []
