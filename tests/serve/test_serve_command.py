"""The command: its mistakes, its port, its end by a signal; and in the long test, ten thousand clients that leave."""

import http.client
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs FastAPI: make setup")
pytest.importorskip("uvicorn", reason="needs uvicorn: make setup")
pytest.importorskip("prometheus_client", reason="needs prometheus-client: make setup")

from davit.serve import __main__ as module
from davit.serve.flags import serve_parser
from davit.serve.server import usable_processors
from tests.serve.conftest import png
from tests.serve.test_hostile import cut_off, request, status_of


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "MODEL"),
        (["nowhere.pth"], "nowhere.pth"),
        (["FILE", "--port", "PORT"], "--port 0"),
        (["FILE", "--host", "nowhere.invalid"], "nowhere.invalid"),
        (["FILE", "--also-at", "http://lab/"], "--also-at"),
        (["FILE", "--max-files", "500"], "--max-files 500"),
        (["--config", "config.py"], "--config"),
        (["FILE", "--score-thr", "0.5"], "score_threshold"),
    ],
)
def test_mistakes(checkpoint: Path, words: list[str], why: str, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        known = {"FILE": str(checkpoint), "PORT": str(taken.getsockname()[1])}
        given = [known.get(word, word) for word in words]
        assert module.main([*given, *([] if "--port" in given else ["--port", "0"])]) == 2
    assert why in caplog.text


def test_without_the_packages(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for name in [name for name in sys.modules if name.startswith("davit.serve.serv")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert module.main(["x.pth"]) == 2
    assert "davit-torch[serve]" in caplog.text


def test_a_model_that_fails_at_once_ends_the_command(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def run(*_: Any) -> Any:
        raise ValueError("these weights do not fit")

    monkeypatch.setattr("davit.serve.engine.Classifier.run", run)
    assert module.main([str(checkpoint), "--port", "0"]) == 2
    assert "do not fit" in caplog.text


def test_options_reach_the_model(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("x\ny\nz\n")
    words = [str(checkpoint), "--img-size", "48", "--temperature", "2", "--class-map", str(tmp_path / "names.txt")]
    args = serve_parser().parse_args(words)
    engine = module.load_engine(args, {"img_size", "temperature", "class_map"}, 10**6)
    assert engine.about["input_size"] == (3, 48, 48)
    predictor = engine._predictor  # type: ignore[attr-defined]
    assert predictor.temperature == 2 and predictor.class_names == ("x", "y", "z")


def test_a_detector_is_loaded_by_its_config(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    made = []

    def predictor(config: str, checkpoint: str, device: str, score_threshold: float) -> Any:
        made.append((config, checkpoint, score_threshold, device))
        return SimpleNamespace(classes=("7",), task="segmentation")

    fake: Any = SimpleNamespace(Predictor=predictor)
    monkeypatch.setitem(sys.modules, "davit.openmmlab.predictor", fake)
    package: Any = SimpleNamespace(predictor=None, __path__=[])
    monkeypatch.setitem(sys.modules, "davit.openmmlab", package)
    words = ["det.pth", "--config", "some/upernet.py", "--score-thr", "0.5", "--device", "cpu"]
    engine = module.load_engine(serve_parser().parse_args(words), {"config", "score_thr", "device"}, 10**6)
    assert made == [("some/upernet.py", "det.pth", 0.5, "cpu")]
    assert engine.name == "upernet" and engine.task == "segmentation" and not engine.batches
    monkeypatch.setitem(sys.modules, "davit.openmmlab.predictor", None)
    assert module.main([*words, "--port", "0"]) == 2
    assert "davit-torch[openmmlab]" in caplog.text


def test_processors() -> None:
    assert usable_processors() >= 1


def ask(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/predict", png(), {"content-type": "image/png"})
    return connection.getresponse().status


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_when_what_it_works_on_is_answered(command: Any, number: int, tmp_path: Path) -> None:
    with command("--max-batch", "2", at=tmp_path) as (process, port, lines):
        assert ask(port) == 200
        idle = socket.create_connection(("127.0.0.1", port))
        never = socket.create_connection(("127.0.0.1", port))
        never.sendall(request(port, "Content-Type: image/png", "Content-Length: 1000", body=b"x"))
        body = png()
        half = request(port, "Content-Type: image/png", f"Content-Length: {len(body)}", body=body[: len(body) // 2])
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(half)
            time.sleep(0.5)
            process.send_signal(number)
            until = time.monotonic() + 30
            while time.monotonic() < until:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=5).close()
                except ConnectionRefusedError:
                    break
                time.sleep(0.05)
            else:
                pytest.fail("new connections are still taken")
            connection.sendall(body[len(body) // 2 :])
            assert status_of(connection.recv(65536)) == 200
        assert process.wait(30) == 0
        for one in (idle, never):
            one.close()
    said = "".join(lines)
    assert "Traceback" not in said and "ended" in said
    assert all(len(line) < 200 for line in said.splitlines())
    assert list(tmp_path.iterdir()) == []  # no image on the disk


@pytest.mark.long
def test_ten_thousand_requests_cut_off_leave_no_trace(command: Any) -> None:
    with command() as (process, port, lines):

        def metrics() -> dict[str, float]:
            """Ask until there is room for one more connection, and nothing is left of the others."""
            for _ in range(300):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                connection.request("GET", "/metrics")
                reply = connection.getresponse()
                text = reply.read().decode()
                connection.close()
                if reply.status == 200:
                    said = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
                    found = {name: float(value) for name, _, value in said}
                    if found["davit_held_bytes"] == found["davit_waiting_pictures"] == 0:
                        return found
                time.sleep(0.5)
            pytest.fail("requests of clients that left are still held")

        def cut(first: int, last: int) -> None:
            with ThreadPoolExecutor(16) as pool:
                list(pool.map(lambda number: cut_off(port, number), range(first, last)))

        cut(0, 5000)  # memory is kept once it was used
        before = metrics()
        cut(5000, 15_000)
        after = metrics()
        assert ask(port) == 200
        assert after["process_open_fds"] <= before["process_open_fds"] + 2
        grown = after["process_resident_memory_bytes"] - before["process_resident_memory_bytes"]
        assert grown < 50e6, f"{grown / 1e6:.0f} MB"
        assert process.poll() is None
    assert len(lines) < 10, lines
