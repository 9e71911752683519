"""The docstrings, as a standard tool renders them."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest


def rendered_modules(repository: Path) -> list[str]:
    """Those that make api renders."""
    line = re.search(r"^API\s*=\s*davit \$\(addprefix davit\.,([\w ]+)\)", (repository / "Makefile").read_text(), re.M)
    assert line is not None
    return ["davit", *(f"davit.{name}" for name in line[1].split())]


@pytest.mark.long
def test_the_docstrings_render_without_warnings(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("pdoc", reason="needs pdoc: make setup")
    line = re.search(r"^PDOC\s*=\s*(.+)", (repository / "Makefile").read_text(), re.M)
    assert line is not None
    words = [sys.executable, *shlex.split(line[1]), "--docformat", "google", "-o", str(tmp_path)]
    words += rendered_modules(repository)
    done = subprocess.run(words, cwd=repository, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr.lower(), done.stderr
    page = (tmp_path / "davit" / "visualize.html").read_text()
    assert ("class_evidence" in page and "exact decomposition" in page) or "map_HW" in page
    assert len(list(tmp_path.rglob("*.html"))) > 30


def test_every_part_of_the_package_is_rendered(repository: Path) -> None:
    """Packages by name; openmmlab needs packages that not everyone has."""
    packages = {path.parent.name for path in (repository / "davit").glob("*/__init__.py")} - {"openmmlab", "kernels"}
    assert {f"davit.{name}" for name in packages} <= set(rendered_modules(repository))


def test_what_is_public_is_documented(repository: Path) -> None:
    """Modules, and the classes and functions in them without a leading underscore."""
    bare = []
    for path in sorted((repository / "davit").rglob("*.py")):
        tree = ast.parse(path.read_text())
        for node in tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                if ast.get_docstring(node) is None:
                    bare.append(f"{path.relative_to(repository)}: {node.name}")
        assert ast.get_docstring(tree) is not None, path
    assert bare == []
