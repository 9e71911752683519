"""What the page answers, without a browser; the mistakes of its command line."""

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
from davit.app.page import answer_file, gradio, is_loopback

needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="needs Gradio: pip install -r requirements-app.txt"
)


def picture(folder: Path, name: str = "noise.png") -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name)
    return folder / name


def test_a_classifiers_answer(reader: ClassifierReader, checkpoint: Path, tmp_path: Path) -> None:
    file = picture(tmp_path)
    answer = answer_file(reader, str(file))
    assert isinstance(answer, Answer)
    truth = davit.load(checkpoint).predict(file)
    assert list(answer.scores.items()) == [(guess.name, pytest.approx(guess.probability)) for guess in truth.guesses]
    assert answer.caption == f"evidence for {truth.name}"
    assert np.asarray(answer.picture).std() > 5
    assert answer.detail is not None and answer.detail.width > 1000
    assert reader.title == "DaViT_nano, 3 classes"


class Digits:
    """Finds two objects, or fails."""

    def predict(self, image: Image.Image) -> Any:
        if image.width < 16:
            raise ValueError("the picture is too small.")
        if image.width > 100:
            raise RuntimeError("secret details")
        found = {"objects": [{"class": "7", "score": 0.4}, {"class": "3", "score": 0.9}, {"class": "7", "score": 0.6}]}
        return SimpleNamespace(draw=lambda: image.rotate(90), to_json=lambda: found)


def test_a_detectors_answer(tmp_path: Path) -> None:
    answer = answer_file(DrawnReader("digits", Digits()), str(picture(tmp_path)))
    assert isinstance(answer, Answer)
    assert list(answer.scores.items()) == [("3", 0.9), ("7", 0.6)]
    assert answer.picture.size == (32, 32) and answer.detail is None


def test_a_segmentors_answer() -> None:
    found = SimpleNamespace(
        draw=lambda: Image.new("RGB", (8, 8)), to_json=lambda: {"classes": {"sky": 0.2, "sea": 0.8}}
    )
    answer = DrawnReader("regions", SimpleNamespace(predict=lambda _: found)).answer(Image.new("RGB", (8, 8)))
    assert list(answer.scores.items()) == [("sea", 0.8), ("sky", 0.2)]


def test_errors_are_sentences(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reader = DrawnReader("digits", Digits())
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert (
        answer_file(reader, str(tmp_path / "broken.png"))
        == "broken.png cannot be read: not a picture of a known format."
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "small.png")
    assert answer_file(reader, str(tmp_path / "small.png")) == "small.png: the picture is too small."
    Image.new("RGB", (200, 8)).save(tmp_path / "large.png")
    message = answer_file(reader, str(tmp_path / "large.png"))
    assert isinstance(message, str) and "an error of this program" in message and "secret" not in message
    assert "secret details" in caplog.text
    assert answer_file(reader, None) == ""


@pytest.mark.parametrize(
    "host, loopback",
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("example.org", False)],
)
def test_which_hosts_others_can_reach(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback


# --- the command ---


@needs_gradio
@pytest.mark.parametrize(
    "words, why",
    [
        ([], "give the --checkpoint"),
        (["--checkpoint", "nowhere.pth"], "nowhere.pth"),
        (["--checkpoint", "FILE", "--max-megabytes", "0"], "--max-megabytes 0"),
        (["--checkpoint", "FILE", "--port", "PORT"], "--port 0"),
        (["--checkpoint", "FILE", "--port", "99999"], "99999 cannot be served"),
        (["--config", "config.py"], "--config needs"),
    ],
)
def test_mistakes(checkpoint: Path, words: list[str], why: str, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for place, word in enumerate(words):
            words[place] = {"FILE": str(checkpoint), "PORT": str(taken.getsockname()[1])}.get(word, word)
        assert command.main(words, block=False) == 2
    assert why in caplog.text


def test_without_gradio(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert command.main(["--checkpoint", "x.pth"], block=False) == 2
    assert "pip install -r requirements-app.txt" in caplog.text


@needs_gradio
def test_a_detector_is_loaded_by_its_config(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def predictor(config: str, checkpoint: str, threshold: float, device: str) -> Digits:
        made.append((config, checkpoint, threshold, device))
        return Digits()

    monkeypatch.setitem(sys.modules, "davit.openmmlab.predictor", SimpleNamespace(Predictor=predictor))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "davit.openmmlab", SimpleNamespace(predictor=None, __path__=[]))  # type: ignore[arg-type]
    words = ["--config", "some/maskrcnn.py", "--checkpoint", "det.pth", "--score-thr", "0.5", "--device", "cpu"]
    reader = command._reader(command._parser().parse_args(words), {"config"})
    assert made == [("some/maskrcnn.py", "det.pth", 0.5, "cpu")]
    assert reader.title == "maskrcnn"
    monkeypatch.setitem(sys.modules, "davit.openmmlab.predictor", None)
    with pytest.raises(ValueError, match="OpenMMLab's packages"):
        command._reader(command._parser().parse_args(words), {"config"})


@needs_gradio
def test_nothing_is_reported_to_anyone() -> None:
    gradio()
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    analytics = importlib.import_module("gradio.analytics")
    assert not analytics.analytics_enabled()


@needs_gradio
def test_other_machines_are_warned_of(reader: ClassifierReader, caplog: pytest.LogCaptureFixture) -> None:
    from davit.app.page import build_page, serve

    page = build_page(reader)
    with caplog.at_level(logging.INFO):
        address = serve(page, "0.0.0.0", 0, 1, block=False)
    page.close(verbose=False)
    assert "asks nobody for a password" in caplog.text
    assert address in caplog.text


@needs_gradio
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
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
