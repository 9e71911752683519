"""Check that the figures hold what is published and what the code says, and that one command draws them all."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib

from davit import VARIANTS
from figures import accuracy, architecture, draw, speed, teaser
from figures.style import FOLDER, SETTINGS

NAMES = sorted(draw.FIGURES)


def figure_of(module: Any) -> Any:
    with matplotlib.rc_context(SETTINGS):
        return module.figure()


def test_every_figure_is_shown_in_a_document(repository: Path) -> None:
    documents = [*repository.glob("*.md"), *(repository / "docs").glob("*.md")]
    text = "".join(document.read_text() for document in documents)
    shown = [f"{name}.svg" for name in NAMES] + ["photograph.jpg"]
    assert [name for name in shown if f"figures/{name})" not in text] == []


def test_the_published_numbers(shared: Path) -> None:
    assert (FOLDER / "published.csv").read_text() == (shared / "spec" / "published.csv").read_text()


def test_the_points_are_the_published_numbers() -> None:
    with (FOLDER / "published.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    figure = figure_of(accuracy)
    for axes, task in zip(figure.axes, ("cls", "det", "seg"), strict=True):
        points = sorted(tuple(point) for line in axes.get_lines() for point in line.get_xydata())
        assert points == sorted((float(row["flops_G"]), float(row["value"])) for row in rows if row["task"] == task)
        assert {"tiny", "small", "base"} == {text.get_text() for text in axes.texts}
    labels = {text.get_text() for text in figure.axes[1].get_legend().get_texts()}
    assert labels == {f"{row['method']} {row['schedule']}" for row in rows if row["task"] == "det"}


def test_the_speeds_are_those_measured() -> None:
    measured = json.loads((FOLDER.parent / "benchmarks/results/throughput_cpu.json").read_text())["results"]
    rows = {row["name"]: row["images_per_second"] for table in reversed(measured.values()) for row in reversed(table)}
    (axes,) = figure_of(speed).axes
    points = {tuple(point) for line in axes.get_lines() for point in line.get_xydata()}
    shown = {"DaViT_tiny/float32/eager": 82.8, "davit_tiny/bfloat16/eager": 82.8, "convnext_tiny/float32/eager": 82.1}
    assert {(rows[name], top1) for name, top1 in shown.items()} <= points
    assert len(points) == 6


def test_the_architecture_is_that_of_the_code() -> None:
    variant = VARIANTS["DaViT_tiny"]
    words = " ".join(text.get_text() for axes in figure_of(architecture).axes for text in axes.texts)
    for dim, heads in zip(variant.embed_dims, variant.num_heads, strict=True):
        assert f"{dim} channels, {heads} groups" in words
    for side in (56, 28, 14, 7):
        assert f"{side} x {side}" in words
    assert words.count("1 pair") == variant.depths.count(1) and "3 pairs" in words


def test_the_teaser_shows_both_kinds_of_token() -> None:
    """On the left one position of 8 channels, on the right one channel of 36 positions, of two groups of 4."""
    (axes,) = figure_of(teaser).axes
    colours = [matplotlib.colors.to_hex(patch.get_facecolor()) for patch in axes.patches]
    assert colours.count("#d55e00") == 4 + 36 and colours.count("#e69f00") == 4
    assert min(colours.count("#0072b2"), colours.count("#56b4e9")) >= 18  # half of the 36 positions in front


def test_one_command_draws_all(repository: Path, tmp_path: Path) -> None:
    words = [sys.executable, str(repository / "figures" / "draw.py"), str(tmp_path)]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    assert sorted(path.stem for path in tmp_path.glob("*.svg")) == NAMES
    for name in NAMES:
        new, kept = (ElementTree.parse(folder / f"{name}.svg").getroot() for folder in (tmp_path, FOLDER))
        assert new.attrib["viewBox"] == kept.attrib["viewBox"], "run make figures"
