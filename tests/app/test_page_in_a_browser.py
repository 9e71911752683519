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


def drop(tab: Any, files: list[Path]) -> None:
    if clear := tab.query_selector('#file button[aria-label="Clear"]'):
        clear.click()
        tab.wait_for_selector("#file input[type=file]", state="attached", timeout=PATIENCE)
        for left in ("#scores li", "#message [role=alert]"):  # nobody drops the next file before the page is empty
            tab.wait_for_selector(left, state="hidden", timeout=PATIENCE)
    tab.set_input_files("#file input[type=file]", list(map(str, files)))


def coloured(folder: Path, *colours: str) -> list[Path]:
    files = [folder / f"{colour}.png" for colour in colours]
    for file in files:
        Image.new("RGB", (40, 40), file.stem).save(file)
    return files


def widths_of(tab: Any) -> tuple[int, int]:
    """Of all that is on the page, and of the window."""
    whole, window = tab.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    return whole, window


def test_a_picture_is_classified_and_shown(page: tuple[Any, set[str]], checkpoint: Path, tmp_path: Path) -> None:
    tab, hosts = page
    pixels = np.random.default_rng(1).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    drop(tab, [tmp_path / "noise.png"])
    tab.wait_for_selector("#maps img", timeout=PATIENCE)
    truth = davit.load(checkpoint).predict(tmp_path / "noise.png")
    first = tab.inner_text("#scores li:first-child").split()
    assert first == [truth.name, f"{truth.probability:.1%}"]
    bar, whole = (tab.evaluate(f"document.querySelector('#scores {one}').offsetWidth") for one in (".bar", "ol"))
    assert bar == pytest.approx(truth.probability * whole, abs=2), "the bar is as long as the score"
    assert tab.evaluate("document.querySelector('#picture img').naturalWidth") >= 320
    assert hosts - {""} == {"127.0.0.1"}, "the page asks others for something"
    assert tab.query_selector('button[aria-label="Share"]') is None


def test_each_map_can_be_read(page: tuple[Any, set[str]]) -> None:
    """A title and a sentence for each, in letters that are large enough, at both widths."""
    tab, _ = page
    for width, columns in ((1280, 3), (420, 2)):
        tab.set_viewport_size({"width": width, "height": 800})
        captions = tab.query_selector_all("#maps figure")
        assert captions and all(one.inner_text().strip().endswith(".") for one in captions)
        sizes = tab.evaluate(
            "[...document.querySelectorAll('figcaption')].map(e => parseFloat(getComputedStyle(e).fontSize))"
        )
        assert min(sizes) >= 12
        left = tab.evaluate(
            "[...document.querySelectorAll('#maps figure')].map(e => Math.round(e.getBoundingClientRect().x))"
        )
        assert len(set(left)) == columns
        whole, window = widths_of(tab)
        assert whole <= window, "the page scrolls sideways"
    tab.set_viewport_size({"width": 1280, "height": 720})
    assert tab.evaluate("[...document.querySelectorAll('#maps img, #picture img, #given img')].every(e => e.alt)")


def test_several_pictures_stay_in_view_and_are_downloaded(page: tuple[Any, set[str]], tmp_path: Path) -> None:
    tab, _ = page
    (tmp_path / "broken.png").write_bytes(b"this is no picture")
    drop(tab, [*coloured(tmp_path, "red", "blue"), tmp_path / "broken.png"])
    tab.wait_for_function("document.querySelector('#table')?.innerText.includes('broken.png')", timeout=PATIENCE)
    tab.wait_for_selector("#maps img", timeout=PATIENCE)
    assert "red.png" in tab.inner_text("#picture") and "red.png" in tab.inner_text("#given")
    assert tab.inner_text("#how").strip().endswith(".")
    with tab.expect_download() as waiting:
        tab.click("#json")
    found = json.loads(Path(waiting.value.path()).read_text())
    assert [one["file"] for one in found] == ["red.png", "blue.png", "broken.png"] and "error" in found[2]
    for width, is_beside in ((1280, True), (420, False)):
        tab.set_viewport_size({"width": width, "height": 700})
        tab.evaluate("document.querySelector('#maps').scrollIntoView({block: 'end'})")
        bottom = tab.evaluate("document.querySelector('#given').getBoundingClientRect().bottom")
        assert (bottom > 100) == is_beside, "the picture stays in view beside the maps"
        whole, window = widths_of(tab)
        assert whole <= window, "the page scrolls sideways"
    tab.set_viewport_size({"width": 1280, "height": 720})


def test_a_row_of_the_table_shows_its_picture(page: tuple[Any, set[str]]) -> None:
    tab, _ = page
    tab.evaluate("scrollTo(0, 0)")
    tab.click('#table [role=gridcell][data-row="1"][data-col="1"]')
    tab.wait_for_function("document.querySelector('#picture').innerText.includes('blue.png')", timeout=PATIENCE)
    assert "blue.png" in tab.input_value("#which input")
    tab.click('#table [role=gridcell][data-row="2"][data-col="0"]')
    tab.wait_for_selector('#message [role="alert"]', timeout=PATIENCE)
    assert "broken.png" in tab.inner_text("#message")


def test_a_title_covers_no_image_and_a_long_name_is_wrapped(page: tuple[Any, set[str]], tmp_path: Path) -> None:
    tab, _ = page
    long = tmp_path / f"{'a long name of a photograph ' * 5}.png"
    Image.new("RGB", (40, 40), "green").save(long)
    drop(tab, [long])
    for width in (1280, 420):
        tab.set_viewport_size({"width": width, "height": 800})
        tab.wait_for_function(
            "document.querySelector('#picture')?.innerText.includes('a long name')", timeout=PATIENCE
        )
        tab.wait_for_selector("#picture img", timeout=PATIENCE)
        for place in ("#given", "#picture"):
            title, image = (
                tab.evaluate(f"document.querySelector('{place} {one}').getBoundingClientRect().toJSON()")
                for one in ("[data-testid=block-label]", "img")
            )
            assert title["bottom"] <= image["top"] + 1, place
        whole, window = widths_of(tab)
        assert whole <= window, "the page scrolls sideways"
    tab.set_viewport_size({"width": 1280, "height": 720})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_sentences_stand_out_from_the_page_in_light_and_dark(
    page: tuple[Any, set[str]], scheme: str, address: str, tmp_path: Path
) -> None:
    """The ratio of contrast that the WCAG ask for, 4.5, of captions, scores and the message."""
    tab, _ = page
    tab.emulate_media(color_scheme=scheme)
    tab.goto(address)
    tab.wait_for_selector("#file", timeout=PATIENCE)
    (tmp_path / "broken.png").write_bytes(b"this is no picture")
    ratio = """(place) => {
        const parts = (text) => text.match(/[\\d.]+/g).map(Number)
        const light = (c) => c.slice(0, 3).map((v) => v / 255)
            .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0)
        let e = document.querySelector(place), back = null
        const ink = light(parts(getComputedStyle(e).color))
        for (; e && !back; e = e.parentElement) {
            const c = parts(getComputedStyle(e).backgroundColor)
            if (c.length == 3 || c[3] > 0) back = light(c)
        }
        back = back ?? 1
        return (Math.max(ink, back) + 0.05) / (Math.min(ink, back) + 0.05)
    }"""
    drop(tab, coloured(tmp_path, "red"))
    tab.wait_for_selector("#maps img", timeout=PATIENCE)
    contrasts = {place: tab.evaluate(ratio, place) for place in ("#maps figcaption", "#scores li", "#maps summary")}
    drop(tab, [tmp_path / "broken.png"])
    tab.wait_for_selector('#message [role="alert"]', timeout=PATIENCE)
    contrasts["#message p"] = tab.evaluate(ratio, "#message p")
    assert min(contrasts.values()) >= 4.5, contrasts


def test_the_keyboard_reaches_everything_and_shows_where_it_is(page: tuple[Any, set[str]], tmp_path: Path) -> None:
    tab, _ = page
    drop(tab, coloured(tmp_path, "red", "blue"))
    tab.wait_for_selector("#maps img", timeout=PATIENCE)
    tab.evaluate("scrollTo(0, 0); document.activeElement.blur()")
    seen, plain = set(), []
    for _ in range(60):
        tab.keyboard.press("Tab")
        place, outline = tab.evaluate("""(() => {
            const e = document.activeElement, s = getComputedStyle(e)
            const inside = e.closest('#classes, #file, #which, #csv, #json, #table, #picture, #maps summary')
            const shown = s.outlineStyle + s.outlineWidth + s.boxShadow
            return [inside && (inside.id || inside.tagName.toLowerCase()), shown]
        })()""")
        seen.add(place)
        if place and outline == "none0pxnone":
            plain.append(place)
    assert {"classes", "file", "which", "csv", "json", "table", "picture", "summary"} <= seen
    assert not plain, "the focus is not to be seen there"


def test_a_broken_file_is_answered_with_a_sentence(page: tuple[Any, set[str]], tmp_path: Path) -> None:
    tab, _ = page
    (tmp_path / "broken.png").write_bytes(b"this is no picture")
    drop(tab, [tmp_path / "broken.png"])
    tab.wait_for_selector('#message [role="alert"]', timeout=PATIENCE)
    assert "broken.png" in tab.inner_text("#message")
    assert tab.query_selector("#picture img") is None and tab.query_selector("#scores li") is None
    drop(tab, coloured(tmp_path, "red"))
    tab.wait_for_selector("#picture img", timeout=PATIENCE)
    tab.wait_for_selector("#message [role=alert]", state="hidden", timeout=PATIENCE)


def test_a_file_that_is_too_large(page: tuple[Any, set[str]], tmp_path: Path) -> None:
    tab, _ = page
    (tmp_path / "large.png").write_bytes(bytes(2 * 1024 * 1024))
    drop(tab, [tmp_path / "large.png"])
    tab.wait_for_function("document.body.innerText.includes('exceed the maximum allowed size')", timeout=PATIENCE)
    assert "large.png" in tab.inner_text("body")
