"""Hold rules of the house that ruff cannot: one model, safe pickles, an image of the imports, docstrings."""

import re
import subprocess
import sys
from pathlib import Path

import networkx as nx
import pytest

from figures import rooms


def files(repository: Path, *patterns: str) -> list[Path]:
    """The repository's own files, without environments and what commands write."""
    foreign = {"data", "output", "build", "outputs"}
    return [
        path
        for entry in sorted(repository.iterdir())
        if not entry.name.startswith(".") and entry.name not in foreign
        for pattern in patterns
        for path in ([entry] if entry.match(pattern) else entry.rglob(pattern))
    ]


def test_one_davit(repository: Path) -> None:
    davit = re.compile(r"^class DaViT\b", re.MULTILINE)
    found = [path for path in files(repository, "*.py") if davit.search(path.read_text())]
    assert found == [repository / "davit" / "model.py"]


def test_pickles_are_opened_with_weights_only(repository: Path) -> None:
    """torch.load does so unless it is told otherwise."""
    assert [path for path in files(repository / "davit", "*.py") if "weights_only=False" in path.read_text()] == []


def test_nothing_of_the_shared_pictures_is_copied(repository: Path, shared: Path) -> None:
    """Their licences do not let them into the project."""
    originals = {path.read_bytes() for path in (shared / "data").rglob("*") if path.is_file()}
    pictures = files(repository, "*.jpg", "*.jpeg", "*.JPEG", "*.png")
    assert [path for path in pictures if path.read_bytes() in originals] == []


def test_the_picture_of_the_rooms_is_that_of_the_imports(repository: Path) -> None:
    """After a new import between rooms: make figures."""
    names = set(re.findall(r'id="((?:room|arrow)-[\w-]+)"', (repository / "figures" / "rooms.svg").read_text()))
    graph = rooms.imports()
    arrows = {f"arrow-{start}-{end}" for start, end in nx.transitive_reduction(graph).edges}
    assert names == arrows | {f"room-{room}" for room in graph}


@pytest.mark.long
def test_the_docstrings_render_without_warnings(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("pdoc", reason="needs pdoc: make setup")
    words = ["make", "-o", "setup", "api", f"VENV={sys.prefix}", f"API_DIR={tmp_path}"]
    done = subprocess.run(words, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr.lower(), done.stderr
    assert (tmp_path / "davit" / "engine.html").is_file()
