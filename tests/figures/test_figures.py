"""The figures are those that their scripts draw, and hold what is published."""

import csv
import re
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from davit import VARIANTS
from figures import accuracy, draw
from figures.style import FOLDER

NAMES = sorted(draw.FIGURES)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("figures")
    draw.main(folder / "new")
    return folder / "new"


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_is_what_its_script_draws(drawn: Path, name: str, repository: Path) -> None:
    pinned = re.search(r"^matplotlib==(\S+)", (repository / "requirements.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    if version("matplotlib") != pinned[1]:
        pytest.skip(f"the figures were drawn by matplotlib {pinned[1]}")
    new, kept = (folder / f"{name}.svg" for folder in (drawn, FOLDER))
    assert new.read_bytes() == kept.read_bytes(), "run make figures"


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_holds_something(drawn: Path, name: str) -> None:
    text = (drawn / f"{name}.svg").read_text()
    assert text.count("<path") > 50
    assert len(set(re.findall(r"#[0-9a-f]{6}", text))) >= 4


def test_every_figure_is_shown_in_a_document(repository: Path) -> None:
    text = "".join(
        (repository / name).read_text() for name in ("README.md", "Introduction.md", "docs/architecture.md")
    )
    assert [name for name in NAMES if f"figures/{name}.svg)" not in text] == []


def test_the_published_numbers(shared: Path) -> None:
    assert (FOLDER / "published.csv").read_text() == (shared / "spec" / "published.csv").read_text()


def test_the_lines_are_the_published_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    kept = []
    monkeypatch.setattr(accuracy, "save", lambda figure, name, folder: kept.append(figure))
    accuracy.draw(tmp_path)
    lines = {tuple(map(tuple, line.get_xydata())) for axes in kept[0].axes for line in axes.get_lines()}
    points = {point for line in lines for point in line}
    with (FOLDER / "published.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert points == {(float(row["flops_G"]), float(row["value"])) for row in rows}
    assert len(lines) == 6 and all(len(line) == 3 for line in lines)


def test_the_architecture_is_that_of_the_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from figures import architecture

    kept = []
    monkeypatch.setattr(architecture, "save", lambda figure, name, folder: kept.append(figure))
    architecture.draw(tmp_path)
    words = " ".join(text.get_text() for text in kept[0].axes[0].texts)
    for dim, heads in zip(VARIANTS["DaViT_tiny"].embed_dims, VARIANTS["DaViT_tiny"].num_heads, strict=True):
        assert f"{dim} channels, {heads} groups" in words
    assert "56 x 56" in words and "7 x 7" in words and "3 pairs" in words


def test_as_a_command(repository: Path, tmp_path: Path) -> None:
    import subprocess

    words = [sys.executable, str(repository / "figures" / "draw.py"), str(tmp_path)]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    assert sorted(path.stem for path in tmp_path.glob("*.svg")) == NAMES
