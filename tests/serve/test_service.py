"""What the service answers: the same as davit.load, whatever shares a batch; its limits, its pages, its numbers."""

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlparse

import httpx
import numpy as np
import pytest
import torch

pytest.importorskip("fastapi", reason="needs FastAPI: make setup")
pytest.importorskip("uvicorn", reason="needs uvicorn: make setup")
pytest.importorskip("prometheus_client", reason="needs prometheus-client: make setup")

import davit
from davit.serve.batching import Batcher
from davit.serve.engine import Classifier, Finder
from davit.serve.service import Bounds
from tests.serve.conftest import CLASSES, Running, Slow, png


@pytest.fixture(scope="module")
def predictor(checkpoint: Path) -> Any:
    return davit.load(checkpoint)


@pytest.fixture(scope="module")
def service(predictor: Any, running: Any) -> Iterator[Running]:
    with running(Classifier(predictor, 10**6), max_megabytes=1, max_files=8, max_batch=4) as service:
        yield service


def as_files(pictures: list[bytes]) -> list[Any]:
    return [("files", (f"{number}.png", data)) for number, data in enumerate(pictures)]


# --- answers ---


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_probabilities_are_those_of_load(service: Running, predictor: Any, count: int) -> None:
    pictures = [png(seed, 30 + seed, 50, "JPEG" if seed % 2 else "PNG") for seed in range(count)]
    reply = service.client.post("/predict", files=as_files(pictures), params={"topk": 3})
    assert reply.status_code == 200
    answer = reply.json()
    assert answer["model"] == "DaViT_nano"
    assert [result["file"] for result in answer["results"]] == [f"{number}.png" for number in range(count)]
    for result, picture in zip(answer["results"], pictures, strict=True):
        truth = predictor.predict(picture)
        assert [one["name"] for one in result["classes"]] == [guess.name for guess in truth.guesses]
        assert [one["index"] for one in result["classes"]] == [guess.index for guess in truth.guesses]
        found = [one["probability"] for one in result["classes"]]
        assert found == pytest.approx([guess.probability for guess in truth.guesses], abs=1e-6)
        assert 1 <= result["timing"]["batch"] <= 4


def test_requests_that_share_batches_get_their_own_answers(service: Running, predictor: Any) -> None:
    pictures = [png(seed) for seed in range(40)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda data: service.post(data).json()["results"][0], pictures))
    for answer, truth in zip(answers, predictor.predict(pictures), strict=True):
        assert answer["classes"][0]["name"] == truth.name
        assert answer["classes"][0]["probability"] == pytest.approx(truth.probability, abs=1e-6)
    assert max(answer["timing"]["batch"] for answer in answers) > 1


def test_features_are_those_of_load(service: Running, predictor: Any) -> None:
    pictures = [png(seed) for seed in range(3)]
    answer = service.client.post("/embed", files=as_files(pictures)).json()
    found = np.array([result["features"] for result in answer["results"]])
    assert np.allclose(found, predictor.embed(pictures).numpy(), rtol=1e-5, atol=1e-5)
    assert service.post(pictures[0], "/embed").json()["results"][0]["file"] is None


@pytest.mark.parametrize(("topk", "count"), [(1, 1), (2, 2), (3, 3), (1000, 3)])
def test_topk(service: Running, topk: int, count: int) -> None:
    by_query = service.post(png(), f"/predict?topk={topk}").json()
    by_field = service.client.post("/predict", files=as_files([png()]), data={"topk": str(topk)}).json()
    for answer in (by_query, by_field):
        assert len(answer["results"][0]["classes"]) == count


def test_of_several_labels_all_above_their_threshold_are_named(tmp_path: Path, running: Any) -> None:
    """More than the five that a model of one class names."""
    torch.manual_seed(0)
    model = davit.create_model(
        "DaViT_nano", num_classes=8, embed_dims=(8, 16), depths=(1, 1), num_heads=(1, 2), window_size=4
    )
    sizes = {"embed_dims": [8, 16], "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
    noted = {"model": "DaViT_nano", "model_kwargs": sizes, "img_size": 32, "task": "multilabel"}
    names = [f"class {index}" for index in range(8)]
    torch.save({"state_dict": model.state_dict(), "args": noted, "class_names": names}, tmp_path / "m.pth")
    several = davit.load(tmp_path / "m.pth", threshold=0.01)
    with running(Classifier(several, 10**6)) as service:
        (found,) = service.post(png()).json()["results"]
        (first,) = service.post(png(), "/predict?topk=2").json()["results"]
    assert [one["name"] for one in found["classes"]] == [one.name for one in several.predict(png()).guesses]
    assert len(found["classes"]) == 8 and len(first["classes"]) == 2


@pytest.mark.parametrize("topk", ["0", "-1", "1.5", "x", "", "1e9", "9" * 30, "nan"])
def test_topk_that_makes_no_sense(service: Running, topk: str) -> None:
    by_query = service.post(png(), f"/predict?topk={topk}")
    by_field = service.client.post("/predict", files=as_files([png()]), data={"topk": topk})
    for reply in (by_query, by_field):
        assert reply.status_code == 422 and "topk" in reply.json()["detail"]


def test_one_picture_of_several_that_cannot_be_read(service: Running) -> None:
    answer = service.client.post("/predict", files=as_files([png(), b"no image", png(1)]))
    results = answer.json()["results"]
    assert answer.status_code == 200 and ["error" in result for result in results] == [False, True, False]
    reply = service.client.post("/predict", files=as_files([b"no image", b""]))
    assert reply.status_code == 422 and "0.png" in reply.json()["detail"] and "1.png" in reply.json()["detail"]


def test_names_of_files_are_one_line(service: Running) -> None:
    for name in ("a\x1b[31m.png", "../../etc/passwd", "x" * 3000, "日本.png"):
        (result,) = service.client.post("/predict", files=[("files", (name, png()))]).json()["results"]
        assert result["file"].isprintable() and len(result["file"]) <= 250


@pytest.mark.parametrize("words", [[], ["--preprocess"], ["--features"], ["--features", "--preprocess"]], ids=" ".join)
def test_an_exported_model_is_served(
    running: Any, predictor: Any, checkpoint: Path, tmp_path: Path, words: list[str]
) -> None:
    pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: make setup")
    pytest.importorskip("onnxscript", reason="needs onnxscript: make setup")
    from davit.export.__main__ import main as export

    assert export([str(checkpoint), str(tmp_path / "model.onnx"), "--to", "onnx", *words]) == 0
    engine = Classifier(davit.load(tmp_path / "model.onnx"), 10**6)
    assert engine.kinds == (("embed",) if "--features" in words else ("predict",))
    pictures = [png(seed) for seed in range(3)]
    with running(engine) as service:
        if "--features" in words:
            results = service.client.post("/embed", files=as_files(pictures)).json()["results"]
            found = np.array([result["features"] for result in results])
            assert np.allclose(found, predictor.embed(pictures).numpy(), rtol=1e-4, atol=1e-4)
            return
        results = service.client.post("/predict", files=as_files(pictures)).json()["results"]
        for result, truth in zip(results, predictor.predict(pictures), strict=True):
            assert result["classes"][0]["name"] == truth.name
            assert result["classes"][0]["probability"] == pytest.approx(truth.probability, abs=1e-5)


# --- health, metrics, pages ---


def test_health_and_metrics(service: Running) -> None:
    assert service.client.get("/health").json() == {
        "status": "ready",
        "model": "DaViT_nano",
        "task": "classification",
        "classes": len(CLASSES),
        "input_size": [3, 32, 32],
    }
    name = 'davit_requests_total{path="/predict",status="200"}'
    service.post(png())
    before = service.metric(name), service.metric("davit_batch_pictures_sum")
    assert service.post(png()).status_code == 200
    assert service.metric(name) == before[0] + 1
    assert service.metric("davit_batch_pictures_sum") == before[1] + 1
    assert service.metric("davit_ready") == 1 and service.metric("davit_held_bytes") == 0
    for number in range(20):
        service.client.get(f"/nowhere/{number}")
    text = service.client.get("/metrics").text
    assert "nowhere" not in text and 'path="other",status="404"' in text


def test_head_and_options(service: Running) -> None:
    for path in ("/", "/docs", "/openapi.json", "/health", "/metrics"):
        reply = service.client.head(path)
        assert reply.status_code == 200 and reply.content == b"" and int(reply.headers["content-length"]) > 0
        assert "GET" in service.client.options(path).headers["allow"]
        assert service.client.post(path).status_code == 405
    assert service.client.options("/predict").headers["allow"] == "POST"
    for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH"):
        assert service.client.request(method, "/predict").status_code == 405


def test_pages_ask_no_other_machine(service: Running) -> None:
    schema = service.client.get("/openapi.json").json()
    assert {"/predict", "/embed", "/health", "/metrics"} == set(schema["paths"])
    for path in ("/", "/docs"):
        text = service.client.get(path).text
        places = re.findall(r"(?:href|src|action)=\"([^\"#]+)", text) + re.findall(r"url\(([^)]+)", text)
        assert places and not [place for place in places if urlparse(place).netloc] and "<script" not in text
        for place in set(re.findall(r"href=\"([^\"#]+)", text)):
            assert service.client.get(f"/{place}").status_code == 200
    page = service.client.get("/docs").text
    for name in set(re.findall(r'href="#(\w+)"', page)):
        assert f'id="{name}"' in page


def test_a_model_without_classes_only_embeds(running: Any, tmp_path: Path) -> None:
    model = davit.create_model("DaViT_nano", num_classes=0, embed_dims=[8, 16], depths=[1, 1], num_heads=[1, 2])
    kwargs = {"embed_dims": [8, 16], "depths": [1, 1], "num_heads": [1, 2], "num_classes": 0}
    args = {"model": "DaViT_nano", "img_size": 32, "model_kwargs": kwargs}
    torch.save({"state_dict": model.state_dict(), "args": args}, tmp_path / "backbone.pth")
    engine = Classifier(davit.load(tmp_path / "backbone.pth"), 10**6)
    assert engine.kinds == ("embed",) and engine.task == "features"
    with running(engine) as service:
        assert len(service.post(png(), "/embed").json()["results"][0]["features"]) == 16
        assert service.post(png()).status_code == 404


def test_weights_that_are_damaged(running: Any, predictor: Any, checkpoint: Path) -> None:
    broken = davit.load(checkpoint)
    with torch.no_grad():
        next(broken.model.parameters()).fill_(float("nan"))
    with running(Classifier(broken, 10**6)) as service:
        for path in ("/predict", "/embed"):
            reply = service.post(png(), path)
            assert reply.status_code == 500 and "finite" in reply.json()["detail"]


def test_a_detector_is_asked_picture_by_picture(running: Any) -> None:
    asked = []

    def predict(data: bytes) -> Any:
        asked.append(data)
        return SimpleNamespace(to_json=lambda: {"objects": [{"class": "7", "score": 0.5, "box": [0, 0, 1, 1]}]})

    engine = Finder("digits", SimpleNamespace(predict=predict, classes=("7",), task="detection"), 10**4)
    with running(engine) as service:
        pictures = [png(0), png(1)]
        results = service.client.post("/predict", files=as_files(pictures)).json()["results"]
        assert [result["objects"][0]["class"] for result in results] == ["7", "7"] and asked[1:] == pictures
        assert service.post(png(0, 200, 200)).status_code == 422 and len(asked) == 3
        assert service.post(png(), "/embed").status_code == 404
        assert "/embed" not in service.client.get("/openapi.json").json()["paths"]


# --- batches ---


def test_a_batch_waits_only_for_what_is_on_its_way() -> None:
    async def trial(is_coming: bool, delay: float) -> tuple[float, list[int]]:
        engine = Slow()
        batcher = Batcher(engine, 4, delay, is_more_coming=lambda: is_coming)
        batcher.start()
        loop = asyncio.get_running_loop()
        begun = loop.time()
        done = await asyncio.gather(*(batcher.submit("predict", length) for length in (1, 2)))
        took = loop.time() - begun
        batcher.close()
        assert not batcher.is_alive()
        return took, [one.output for one in done]

    took, outputs = asyncio.run(trial(False, 30.0))
    assert took < 15 and outputs == [1, 2]
    took, outputs = asyncio.run(trial(True, 0.2))
    assert 0.19 < took < 15 and outputs == [1, 2]


def test_a_batch_holds_one_sort_of_pictures_in_order() -> None:
    class Sized(Slow):
        def run(self, kind: str, prepared: Any) -> Any:
            assert len({tuple(one.shape) for one in prepared}) == 1
            return super().run(kind, [int(one.flatten()[0]) for one in prepared])

    async def trial() -> None:
        engine = Sized()
        engine.go.clear()
        batcher = Batcher(engine, 3, 0.0)  # type: ignore[arg-type]
        batcher.start()
        sides = [1, 2, 1, 2, 1, 1, 2]
        futures = [batcher.submit("predict", torch.full((side, side), n)) for n, side in enumerate(sides)]
        futures[4].cancel()
        await asyncio.sleep(0.1)
        engine.go.set()
        kept = [future for n, future in enumerate(futures) if n != 4]
        assert [done.output for done in await asyncio.gather(*kept)] == [0, 1, 2, 3, 5, 6]
        assert all(len(batch) <= 3 and batch == sorted(batch) for batch in engine.ran)
        assert not any(4 in batch for batch in engine.ran)
        batcher.close()

    asyncio.run(trial())


def test_a_program_of_one_picture_is_run_picture_by_picture() -> None:
    class Single(Slow):
        def run(self, kind: str, prepared: Any) -> Any:
            if len(prepared) != 1 or prepared[0] < 0:
                raise ValueError("it was exported for 1 image")
            return prepared

    async def trial() -> None:
        batcher = Batcher(Single(), 4, 0.05)
        batcher.start()
        done = await asyncio.gather(*(batcher.submit("predict", length) for length in (1, 2, 3)))
        assert [one.output for one in done] == [1, 2, 3]
        with pytest.raises(ValueError, match="exported"):
            await batcher.submit("predict", -1)
        batcher.close()

    asyncio.run(trial())


# --- limits ---


def test_a_full_queue_refuses_and_recovers(running: Any) -> None:
    engine = Slow()
    with running(engine, max_queue=4, max_files=4, max_batch=1) as service:
        engine.go.clear()
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(service.post, b"x" * (n + 1)) for n in range(4)]
            while service.metric("davit_waiting_pictures") < 4:
                pass
            reply = service.post()
            assert reply.status_code == 429 and int(reply.headers["retry-after"]) >= 1 and reply.json()["detail"]
            assert service.client.get("/health").status_code == 200
            engine.go.set()
            lengths = [one.result().json()["results"][0]["classes"]["length"] for one in waiting]
        assert lengths == [1, 2, 3, 4]
        assert service.post().status_code == 200
        assert service.is_idle()


def test_a_request_that_takes_too_long(running: Any, caplog: pytest.LogCaptureFixture) -> None:
    engine = Slow()
    with running(engine, timeout=1.5) as service:  # room for the last request on a loaded machine
        engine.go.clear()
        assert service.post().status_code == 504
        assert service.post().status_code == 504  # waits behind the first, and is then taken out
        engine.go.set()
        assert service.is_idle()
        assert service.post(b"xyz").json()["results"][0]["classes"] == {"length": 3}
        assert engine.ran[-2:] == [[1], [3]] and service.is_idle()
    assert "ERROR" not in caplog.text


def test_a_client_that_leaves_is_not_worked_for(running: Any) -> None:
    engine = Slow()
    with running(engine, max_batch=1) as service:
        engine.go.clear()
        first = threading.Thread(target=service.post)
        first.start()
        while service.metric("davit_waiting_pictures") < 1:
            pass
        with pytest.raises(httpx.ReadTimeout), httpx.Client(timeout=0.3) as client:
            url, kind = f"http://127.0.0.1:{service.port}/predict", {"content-type": "image/png"}
            client.post(url, content=b"x" * 7, headers=kind)
        while service.metric("davit_waiting_pictures") > 1:
            pass
        engine.go.set()
        first.join()
        assert service.is_idle() and [7] not in engine.ran


def test_too_many_bytes_and_files(service: Running) -> None:
    large = bytes(2**20 + 1)
    assert service.post(large).status_code == 413

    def chunks() -> Iterator[bytes]:
        for _ in range(40):
            yield bytes(2**16)

    kind = {"content-type": "image/png"}
    assert service.client.post("/predict", content=chunks(), headers=kind).status_code == 413
    assert service.client.post("/predict", files=as_files([large])).status_code == 413
    assert service.client.post("/predict", files=as_files([png(0, 4, 4)] * 9)).status_code == 413
    assert service.client.post("/predict", files=as_files([png(0, 4, 4)] * 8)).status_code == 200
    assert service.is_idle()


def test_all_bodies_together_are_bounded(running: Any) -> None:
    engine = Slow()
    with running(engine, max_megabytes=1, max_batch=1) as service:
        engine.go.clear()
        body = bytes(2**20)
        with ThreadPoolExecutor(20) as pool:
            waiting = [pool.submit(service.post, body) for _ in range(16)]
            while service.service._held.bytes < 16 * 2**20:
                pass
            assert service.post().status_code == 429
            engine.go.set()
            assert {one.result().status_code for one in waiting} == {200}
        assert service.is_idle()


def test_before_the_model_is_warm(running: Any) -> None:
    engine = Slow()
    engine.go.clear()
    with running(engine, ready=False) as service:
        reply = service.client.get("/health")
        assert reply.status_code == 503 and reply.json()["status"] == "warming up" and "retry-after" in reply.headers
        assert service.post().status_code == 503
        engine.go.set()
        while service.client.get("/health").status_code != 200:
            pass
        assert service.post().status_code == 200
        assert [len(batch) for batch in engine.ran[:2]] == [1, 8]


def test_a_fault_of_the_model_is_no_secret_told(running: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Faulty(Slow):
        def run(self, kind: str, prepared: Any) -> Any:
            if 0 not in prepared:
                raise RuntimeError("secret")
            return prepared

    with running(Faulty()) as service:
        reply = service.post()
        assert reply.status_code == 500 and "secret" not in reply.text and "secret" in caplog.text
        assert service.client.get("/health").status_code == 200


def test_bounds_that_contradict() -> None:
    with pytest.raises(ValueError, match="max_files"):
        Bounds(max_files=5, max_queue=4)


def test_two_large_pictures_are_decoded_in_turn(predictor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("davit.serve.engine._LARGE", 100)
    engine = Classifier(predictor, 10**6)
    at_once = 0
    most = 0
    lock = threading.Lock()

    def transform(pixels: Any) -> Any:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        threading.Event().wait(0.02)
        with lock:
            at_once -= 1
        return predictor.transform(pixels)

    engine._predictor = SimpleNamespace(transform=transform, decoding=predictor.decoding)  # type: ignore[assignment]
    prepare: Callable[[bytes], Any] = engine.prepare
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(prepare, [png()] * 6))) == 6
    assert most == 1
