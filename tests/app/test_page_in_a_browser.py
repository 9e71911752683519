"""Check the page in headless Chromium: a picture, a broken file, one that is too large; and what it asks of others."""

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pytest
from PIL import Image

import davit

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium"),
    *(
        pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"needs {name}: make setup")
        for name in ("playwright", "gradio")
    ),
]
PATIENCE = 60_000  # ms


@pytest.fixture(scope="module")
def address(serving: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("server")) as (_, address):
        yield address


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[tuple[Any, set[str]]]:
    """The open page, and the hosts that it asked for anything."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page()
        hosts: set[str] = set()
        tab.on("request", lambda request: hosts.add(urlparse(request.url).hostname or ""))
        tab.goto(address)
        tab.wait_for_selector("#file", timeout=PATIENCE)
        yield tab, hosts
        browser.close()


def drop(tab: Any, file: Path) -> None:
    """Put a file in the place of the one before."""
    if clear := tab.query_selector('#file button[aria-label="Clear"]'):
        clear.click()
        tab.wait_for_selector("#file input[type=file]", state="attached", timeout=PATIENCE)
    tab.set_input_files("#file input[type=file]", str(file))


def test_a_picture_is_classified_and_shown(page: tuple[Any, set[str]], checkpoint: Path, tmp_path: Path) -> None:
    tab, hosts = page
    pixels = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    drop(tab, tmp_path / "noise.png")
    tab.wait_for_selector("#detail img", timeout=PATIENCE)
    truth = davit.load(checkpoint).predict(tmp_path / "noise.png")
    text = tab.inner_text("#scores")
    assert text.split()[1] == truth.name
    assert f"{truth.probability:.0%}" in text
    tab.wait_for_function("document.querySelector('#detail img').naturalWidth > 1000", timeout=PATIENCE)
    assert tab.evaluate("document.querySelector('#picture img').naturalWidth") >= 320
    assert hosts - {""} == {"127.0.0.1"}, "the page asks others for something"
    assert tab.query_selector('button[aria-label="Share"]') is None


def test_several_pictures_stay_in_view_and_are_downloaded(page: tuple[Any, set[str]], tmp_path: Path) -> None:
    tab, _ = page
    for name, colour in (("red.png", "red"), ("blue.png", "blue")):
        Image.new("RGB", (40, 40), colour).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"this is no picture")
    if clear := tab.query_selector('#file button[aria-label="Clear"]'):
        clear.click()
        tab.wait_for_selector("#file input[type=file]", state="attached", timeout=PATIENCE)
    tab.set_input_files("#file input[type=file]", [str(tmp_path / f"{n}.png") for n in ("red", "blue", "broken")])
    tab.wait_for_function("document.querySelector('#table')?.innerText.includes('broken.png')", timeout=PATIENCE)
    tab.wait_for_selector("#detail img", timeout=PATIENCE)
    assert "red.png" in tab.inner_text("#picture") and "red.png" in tab.inner_text("#given")
    assert tab.inner_text("#how").strip().endswith(".")
    with tab.expect_download() as waiting:
        tab.click("#json")
    found = json.loads(Path(waiting.value.path()).read_text())
    assert [one["file"] for one in found] == ["red.png", "blue.png", "broken.png"] and "error" in found[2]
    for width, is_beside in ((1280, True), (420, False)):
        tab.set_viewport_size({"width": width, "height": 700})
        tab.evaluate("document.querySelector('#detail').scrollIntoView({block: 'end'})")
        bottom = tab.evaluate("document.querySelector('#given').getBoundingClientRect().bottom")
        assert (bottom > 100) == is_beside, "the picture stays in view beside the maps"
    tab.set_viewport_size({"width": 1280, "height": 720})


def test_a_broken_file_is_answered_with_a_sentence(page: tuple[Any, set[str]], tmp_path: Path) -> None:
    tab, _ = page
    (tmp_path / "broken.png").write_bytes(b"this is no picture")
    drop(tab, tmp_path / "broken.png")
    tab.wait_for_function("document.querySelector('#message textarea')?.value", timeout=PATIENCE)
    assert "broken.png" in tab.input_value("#message textarea")
    assert tab.query_selector("#picture img") is None
    Image.new("RGB", (40, 40), "red").save(tmp_path / "red.png")
    drop(tab, tmp_path / "red.png")
    tab.wait_for_selector("#picture img", timeout=PATIENCE)
    tab.wait_for_selector("#message textarea", state="hidden", timeout=PATIENCE)


def test_a_file_that_is_too_large(page: tuple[Any, set[str]], tmp_path: Path) -> None:
    tab, _ = page
    (tmp_path / "large.png").write_bytes(bytes(2 * 1024 * 1024))
    drop(tab, tmp_path / "large.png")
    tab.wait_for_function("document.body.innerText.includes('exceed the maximum allowed size')", timeout=PATIENCE)
    assert "large.png" in tab.inner_text("body")
