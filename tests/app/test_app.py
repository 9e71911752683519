"""Check what the page answers, without a browser, and the mistakes of its command line."""

import importlib
import importlib.util
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import davit
from davit.app import Answer, ClassifierReader, DrawnReader
from davit.app import __main__ as command
from davit.app.page import answer_file, as_rows, build_page, maps_html, results_of, scores_html, serve
from davit.data import load_rgb
from davit.visualize.figure import Map, MapRow

needs_gradio = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="needs Gradio: make setup")


def picture(folder: Path, name: str = "noise.png") -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name)
    return folder / name


def test_a_classifiers_answer(reader: ClassifierReader, checkpoint: Path, tmp_path: Path) -> None:
    file = picture(tmp_path)
    answer = answer_file(reader, str(file))
    assert isinstance(answer, Answer)
    truth = davit.load(checkpoint).predict(file)
    assert [(one["class"], one["score"]) for one in answer.found] == [
        (guess.name, pytest.approx(guess.probability)) for guess in truth.guesses
    ]
    assert answer.caption == f"evidence for {truth.name}"
    assert np.asarray(answer.picture).std() > 5
    evidence, *stages = answer.maps
    assert [one.title for one in evidence.maps] == [f"evidence for {guess.name}" for guess in truth.guesses]
    assert stages and all(one.how.endswith(".") and one.image.width > 300 for row in answer.maps for one in row.maps)
    assert reader.title == "DaViT_nano, 3 classes"


class Finder:
    """Finds what it is told to, or fails."""

    classes = ("3", "7")
    score_threshold = 0.3

    def __init__(self, found: dict[str, Any]) -> None:
        self.found = found
        self.task = "detection" if "objects" in found else "segmentation"

    def predict(self, picture: Path) -> Any:
        image = load_rgb(picture)
        if image.width < 16:
            raise ValueError("the picture is too small.")
        if image.width > 100:
            raise RuntimeError("secret details")
        return SimpleNamespace(draw=lambda: image.rotate(90), to_json=lambda: self.found)


OBJECTS = {
    "objects": [
        {"class": name, "score": score, "box": [1.0, 2.0, 3.0, 4.0], "mask": {"size": [32, 32], "counts": "no"}}
        for name, score in (("3", 0.9), ("7", 0.6), ("7", 0.4))
    ]
}
SHARES = {"classes": {"sea": 0.8, "sky": 0.2}}


@pytest.mark.parametrize(
    "found, numbers",
    [
        (OBJECTS, [("3", 0.9), ("7", 0.6), ("7", 0.4)]),
        (SHARES, [("sea", 0.8), ("sky", 0.2)]),
        ({"objects": []}, []),
    ],
    ids=["detector", "segmentor", "nothing"],
)
def test_what_was_found_is_drawn(found: dict[str, Any], numbers: list[tuple[str, float]], tmp_path: Path) -> None:
    reader = DrawnReader("digits", Finder(found))
    answer = answer_file(reader, str(picture(tmp_path)))
    assert isinstance(answer, Answer)
    assert [(one["class"], one[reader.number]) for one in answer.found] == numbers
    assert answer.picture.size == (32, 32) and not answer.maps
    assert answer.how.endswith(".") and ("0.3" in answer.how) == ("objects" in found)


def test_errors_are_sentences(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reader = DrawnReader("digits", Finder(OBJECTS))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    Image.new("RGB", (200, 8)).save(tmp_path / "large.png")
    answers = {name: answer_file(reader, str(tmp_path / f"{name}.png")) for name in ("broken", "small", "large")}
    assert all(isinstance(text, str) and text.startswith(f"{name}.png") for name, text in answers.items())
    assert str(answers["small"]).endswith("the picture is too small.")
    assert "secret" not in str(answers["large"]) and "secret details" in caplog.text
    assert answer_file(reader, None) == ""


# --- the command ---


@needs_gradio
@pytest.mark.parametrize(
    "words, why",
    [
        ([], "--checkpoint"),
        (["--checkpoint", "nowhere.pth"], "nowhere.pth"),
        (["--checkpoint", "FILE", "--port", "PORT"], "--port 0"),
        (["--config", "config.py"], "--config"),
        (["--checkpoint", "FILE", "--port", "0", "--also-at", "http://lab/"], "--also-at"),
    ],
)
def test_mistakes(checkpoint: Path, words: list[str], why: str, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for place, word in enumerate(words):
            words[place] = {"FILE": str(checkpoint), "PORT": str(taken.getsockname()[1])}.get(word, word)
        assert command.main(words, block=False) == 2
    assert why in caplog.text


@pytest.mark.parametrize(("flag", "value"), [("--max-megabytes", "0"), ("--port", "99999"), ("--score-thr", "nan")])
def test_numbers_that_make_no_sense(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leave:
        command.main(["--checkpoint", "x.pth", flag, value], block=False)
    shown = capsys.readouterr().err
    assert leave.value.code == 2 and flag in shown and value in shown


def test_without_gradio(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert command.main(["--checkpoint", "x.pth"], block=False) == 2
    assert "davit-torch[app]" in caplog.text


@needs_gradio
def test_a_detector_is_loaded_by_its_config(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    made = []

    def predictor(config: str, checkpoint: str, device: str, score_threshold: float) -> Finder:
        made.append((config, checkpoint, score_threshold, device))
        return Finder(OBJECTS)

    monkeypatch.setitem(sys.modules, "davit.openmmlab.predictor", SimpleNamespace(Predictor=predictor))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "davit.openmmlab", SimpleNamespace(predictor=None, __path__=[]))  # type: ignore[arg-type]
    served = []
    monkeypatch.setattr(command, "serve", lambda page, *_, **__: served.append(page))
    words = ["--config", "some/maskrcnn.py", "--checkpoint", "det.pth", "--score-thr", "0.5", "--device", "cpu"]
    assert command.main(words, block=False) == 0
    assert made == [("some/maskrcnn.py", "det.pth", 0.5, "cpu")]
    assert "maskrcnn" in str(served[0].get_config_file())
    monkeypatch.setitem(sys.modules, "davit.openmmlab.predictor", None)
    assert command.main(words, block=False) == 2
    assert "davit-torch[openmmlab]" in caplog.text


@needs_gradio
def test_a_page_reports_nothing_to_anyone_and_warns_of_other_machines(
    reader: ClassifierReader, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    page = build_page(reader)
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert not importlib.import_module("gradio.analytics").analytics_enabled()
    with caplog.at_level(logging.INFO):
        address = serve(page, "0.0.0.0", 0, 1, block=False, folder=tmp_path)
    page.close(verbose=False)
    (warning,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert "0.0.0.0" in warning.getMessage() and address in caplog.text


@needs_gradio
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.long)])
def test_pictures_are_gone_when_the_page_is_told_to_stop(number: signal.Signals, serving: Any, tmp_path: Path) -> None:
    dropped = picture(tmp_path)
    with serving(tmp_path) as (process, address):
        httpx = importlib.import_module("httpx")  # comes with Gradio
        answer = httpx.post(f"{address}gradio_api/upload", files={"files": dropped.read_bytes()})
        (kept,) = map(Path, answer.json())
        assert kept.read_bytes() == dropped.read_bytes() and kept.is_relative_to(tmp_path)
        process.send_signal(number)
        assert process.wait(60) == 0
    assert sorted(tmp_path.iterdir()) == [dropped]


def test_results_of_several_pictures(reader: ClassifierReader, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    files = [str(picture(tmp_path, "a.png")), str(tmp_path / "broken.png")]
    results = results_of(reader, files)
    assert [result["file"] for result in results] == ["a.png", "broken.png"]
    assert {one["class"] for one in results[0]["classes"]} == set(reader.classes) and "error" in results[1]
    rows = as_rows(results, "score")
    assert [(row["file"], row["rank"]) for row in rows] == [
        ("a.png", 1),
        ("a.png", 2),
        ("a.png", 3),
        ("broken.png", ""),
    ]
    assert rows[0]["score"] == max(one["score"] for one in reader.find(Path(files[0]))) and rows[3]["error"]


def test_results_of_a_detector_have_each_object_with_its_box(tmp_path: Path) -> None:
    finder = Finder(OBJECTS)
    reader = DrawnReader("digits", finder)
    results = results_of(reader, [str(picture(tmp_path))])
    assert results == [{"file": "noise.png", **OBJECTS}]
    rows = as_rows(results, reader.number)
    assert [(row["rank"], row["class"], row["score"]) for row in rows] == [(1, "3", 0.9), (2, "7", 0.6), (3, "7", 0.4)]
    assert [rows[0][side] for side in ("x1", "y1", "x2", "y2")] == [1, 2, 3, 4] and "mask" not in rows[0]
    finder.found = {"objects": []}
    (nothing,) = as_rows(results_of(reader, [str(picture(tmp_path))]), reader.number)
    assert nothing["file"] == "noise.png" and not nothing["error"] and nothing["class"] == ""


def test_a_file_is_asked_about_once_where_its_answer_is_known(tmp_path: Path) -> None:
    files = [str(picture(tmp_path, name)) for name in ("a.png", "b.png")]
    reader = DrawnReader("sea", Finder(SHARES))
    first, second = results_of(reader, files, [{"class": "known", "share": 1.0}])
    assert first["classes"] == [{"class": "known", "share": 1.0}] and second["classes"][0]["class"] == "sea"
    assert "error" in results_of(reader, files[:1], "cannot be read")[0]


def test_the_bars_of_a_detector_are_of_the_best_object_of_each_class() -> None:
    text = scores_html(OBJECTS["objects"], "score")
    assert text.count("<li>") == 2 and "90.0%" in text and "60.0%" in text and "40.0%" not in text


def test_names_of_classes_are_text_and_scores_stay_within_their_bars() -> None:
    names = {"<img src=x onerror=alert(1)>": 1.5, "b&b": 0.25, "c": -1.0}
    text = scores_html([{"class": name, "share": value} for name, value in names.items()], "share")
    assert "<img" not in text and "&lt;img" in text and "b&amp;b" in text
    assert [f"width: {share:.2f}%" in text for share in (100, 25, 0)] == [True] * 3
    assert scores_html([], "score") == ""


def test_each_map_has_its_title_its_sentence_and_a_text_for_who_does_not_see_it() -> None:
    maps = (Map('evidence for "<b>"', "Orange speaks for it.", Image.new("RGB", (4, 4), "red")),)
    text = maps_html([MapRow("evidence", maps), MapRow("stage 1: 4 x 4 positions", maps)])
    assert text.count("<figure>") == text.count("Orange speaks for it.") == 2 and "<b>&quot;" not in text
    assert text.count('alt="evidence for &quot;&lt;b&gt;&quot;"') == 2 and "Stage 1: 4 x 4 positions" in text
