"""The Dockerfile without Docker: what each of its lines names is there, and works."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs FastAPI: make setup")
pytest.importorskip("uvicorn", reason="needs uvicorn: make setup")
pytest.importorskip("prometheus_client", reason="needs prometheus-client: make setup")

from davit.cli import COMMANDS
from davit.serve.flags import serve_parser


@pytest.fixture(scope="module")
def instructions(repository: Path) -> list[tuple[str, str]]:
    """The instructions and their words."""
    text = (repository / "docs/deploy/Dockerfile").read_text()
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def words_of(instructions: list[tuple[str, str]], name: str) -> list[str]:
    return [words for given, words in instructions if given == name]


def test_what_is_copied_is_there_and_all_that_a_build_needs(
    instructions: list[tuple[str, str]], repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = []
    for words in words_of(instructions, "COPY"):
        *sources, target = [word for word in words.split() if not word.startswith("--")]
        if "--from=" not in words and "${" not in words:
            assert all((repository / source).exists() for source in sources), words
            assert target == "./" or sources == [target]
            copied += sources
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    monkeypatch.chdir(repository)
    spec = importlib.util.spec_from_file_location("its_setup", "setup.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert {*module.CONFIGS, "davit", "davit_command.py", "setup.py", "pyproject.toml", "README.md"} <= {*copied}


def test_a_run_is_served_by_a_user_without_rights(instructions: list[tuple[str, str]], tmp_path: Path) -> None:
    (argument,) = words_of(instructions, "ARG")
    name = argument.partition("=")[0]
    (checkpoint,) = [words for words in words_of(instructions, "COPY") if "${" in words]
    mode, source, target = checkpoint.split()
    assert source.startswith(f"${{{name}}}/") and mode == "--chmod=0644"
    pattern = source.partition("/")[2]
    for left in ("model_best.pth.tar", "model_best.pth.tar.temperature.json", "last.pth.tar"):
        (tmp_path / left).touch()
    assert [file.name for file in sorted(tmp_path.glob(pattern))] == [
        "model_best.pth.tar",
        "model_best.pth.tar.temperature.json",
    ]
    program, command, *flags = json.loads(words_of(instructions, "ENTRYPOINT")[0])
    assert program == "davit" and command in COMMANDS
    args = serve_parser().parse_args([*flags, "--also-at", "localhost:9000"])
    assert args.checkpoint == target.rstrip("/") and args.host == "0.0.0.0"
    assert words_of(instructions, "EXPOSE") == [str(args.port)]
    assert words_of(instructions, "USER") not in ([], ["root"])


def test_the_health_check_tells_a_service_from_none(
    instructions: list[tuple[str, str]], command: Any, tmp_path: Path
) -> None:
    (check,) = words_of(instructions, "HEALTHCHECK")
    (port,) = words_of(instructions, "EXPOSE")
    program, *words = json.loads(check[check.index("[") :])
    assert program == "python"

    def status(at: int) -> int:
        asked = [re.sub(rf":{port}\b", f":{at}", word) for word in words]
        return subprocess.run([sys.executable, *asked], stderr=subprocess.DEVNULL, timeout=60).returncode

    with command(at=tmp_path) as (_, at, _):
        assert status(at) == 0
    assert status(at) != 0
