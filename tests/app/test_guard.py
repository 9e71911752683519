"""Check whom the page answers and what it keeps, on a page that runs."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="needs Gradio: make setup")

import asyncio

import httpx

from davit.addresses import OwnAddresses
from davit.app import ClassifierReader
from davit.app.guard import KEPT_FILES, KEPT_OF_LARGEST, Guard, remove_oldest
from davit.app.page import build_page, serve

LARGEST = 1  # MB
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where uploads are kept."""
    folder = tmp_path_factory.mktemp("uploads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        yield folder


@pytest.fixture(scope="module")
def page(reader: ClassifierReader, folder: Path) -> Iterator[httpx.Client]:
    page = build_page(reader)
    address = serve(page, "127.0.0.1", 0, LARGEST, block=False, folder=folder, also_at=["lab.example.org"])
    with httpx.Client(base_url=address, timeout=30) as client:
        yield client
    page.close(verbose=False)


def kept(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


def upload(page: httpx.Client, data: bytes = b"content", name: str = "a.png", **headers: str) -> httpx.Response:
    return page.post("/gradio_api/upload", files={"files": (name, data)}, headers=headers)


# --- whose ---


@pytest.mark.parametrize(
    "host", ["evil.example.com", "evil.example.com:PORT", "127.0.0.1", "127.0.0.1:9", "10.0.0.5:PORT"]
)
def test_another_host_is_refused_on_every_route(page: httpx.Client, folder: Path, host: str) -> None:
    headers = {"host": host.replace("PORT", str(page.base_url.port))}
    before = kept(folder)
    for path in (
        "/",
        "/config",
        "/theme.css",
        "/gradio_api/info",
        "/gradio_api/queue/data?session_hash=a",
        "/nothing",
    ):
        assert 400 <= page.get(path, headers=headers).status_code < 500, path
    asked = {**headers, "origin": f"http://{headers['host']}", "access-control-request-method": "POST"}
    assert 400 <= page.options("/gradio_api/upload", headers=asked).status_code < 500
    assert 400 <= upload(page, **headers).status_code < 500
    assert kept(folder) == before


@pytest.mark.parametrize(
    "origin", ["http://evil.example.com", "null", "http://localhost:9", "file://", "http://localhost"]
)
def test_another_origin_is_refused_and_nothing_stored(page: httpx.Client, folder: Path, origin: str) -> None:
    before = kept(folder)
    question = {"fn_index": 0, "data": [None], "session_hash": "a"}
    for answer in (
        upload(page, origin=origin),
        page.post("/gradio_api/queue/join", json=question, headers={"origin": origin}),
        page.get("/config", headers={"origin": origin}),
    ):
        assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers
    assert upload(page, **{"sec-fetch-site": "cross-site"}).status_code == 403
    assert kept(folder) == before


def test_the_pages_own_origin_is_served(page: httpx.Client, tmp_path: Path) -> None:
    """A whole visit: the page, an upload, the question and its answer."""
    port = page.base_url.port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", "lab.example.org"):
        headers = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
        assert page.get("/", headers=headers).status_code == 200
        assert page.get("/config", headers=headers).json()["title"] == "DaViT"
        pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "noise.png")
        (file,) = upload(page, (tmp_path / "noise.png").read_bytes(), "noise.png", **headers).json()
        data = [[{"path": file, "meta": {"_type": "gradio.FileData"}}]]
        question = {"fn_index": 0, "data": data, "session_hash": host}
        assert page.post("/gradio_api/queue/join", json=question, headers=headers).status_code == 200
        answers = page.get("/gradio_api/queue/data", params={"session_hash": host}, headers=headers).text
        done = next(line for line in answers.splitlines() if "process_completed" in line)
        assert json.loads(done.removeprefix("data: "))["output"]["data"][6]["value"].count("<li>") == 3


# --- what ---


@pytest.mark.parametrize("index", [999, -1, 3, "one", None, 0.5, 10**30, [], {}], ids=repr)
def test_indexes_that_none_has(page: httpx.Client, index: Any) -> None:
    question = {"fn_index": index, "data": [None], "session_hash": "b"}
    assert 400 <= page.post("/gradio_api/queue/join", json=question).status_code < 500


@pytest.mark.parametrize(
    "body", [b"", b"x", b"[]", b"5", b'{"fn_index": 1e999}', b"\xff", b"[" * 5000, b"{}" + b" " * 999999]
)
def test_malformed_questions(page: httpx.Client, body: bytes) -> None:
    for path in ("queue/join", "cancel", "reset"):
        assert 400 <= page.post(f"/gradio_api/{path}", content=body, headers=JSON).status_code < 500


@pytest.mark.parametrize(
    "path",
    [
        *("/nothing", "/-1", "/999", "/%00", "/a/b/c", "/assets/nothing", "/static/%00", "/docs", "/monitoring/x"),
        *(
            f"/gradio_api/{path}"
            for path in (
                *("nothing", "file=/etc/passwd", "file=nothing", "file=%00", "proxy=http://127.0.0.1", "queue/data"),
                *("queue/data?session_hash=none", "call/show/1", "custom_component/999/a/b/c", "stream/a/b/1/x.ts"),
                *("upload_progress", "heartbeat", "vibe-code", "openapi.json", "deep_link?session_hash=x"),
            )
        ),
    ],
)
def test_unknown_routes(page: httpx.Client, path: str) -> None:
    assert 400 <= page.get(path).status_code < 500


@pytest.mark.parametrize(
    "path", ["run/show", "api/show", "call/show", "process_recording", "vibe-edit", "component_server"]
)
def test_only_what_the_page_needs_may_be_posted(page: httpx.Client, path: str) -> None:
    assert page.post(f"/gradio_api/{path}", json={"data": []}).status_code == 404
    assert page.request("DELETE", f"/gradio_api/{path}").status_code == 404


def test_a_large_upload_is_refused_however_it_is_sent(page: httpx.Client, folder: Path) -> None:
    size = sum(file.stat().st_size for file in kept(folder))
    large = bytes(LARGEST * 2**20 + 1)
    half = large[: len(large) * 3 // 4]
    assert upload(page, large).status_code == 413
    two = [("files", ("a.png", half)), ("files", ("b.png", half))]
    assert page.post("/gradio_api/upload", files=two).status_code == 413

    def chunks() -> Iterator[bytes]:
        yield b'--x\r\ncontent-disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        for _ in range(40):
            yield bytes(2**16)
        yield b"\r\n--x--\r\n"

    kind = {"content-type": "multipart/form-data; boundary=x"}
    assert page.post("/gradio_api/upload", content=chunks(), headers=kind).status_code == 413
    assert sum(file.stat().st_size for file in kept(folder)) <= size + 2 * LARGEST * 2**20


def test_uploads_are_bounded_in_number_and_size(page: httpx.Client, folder: Path) -> None:
    for number in range(KEPT_FILES + 20):
        assert upload(page, str(number).encode()).status_code == 200
    assert len(kept(folder)) <= KEPT_FILES
    assert len(list(folder.rglob("*"))) <= 2 * KEPT_FILES + 10  # empty folders are gone too
    for number in range(KEPT_OF_LARGEST + 5):
        (last,) = upload(page, bytes([number]) * (LARGEST * 2**20 - 100)).json()
    assert sum(file.stat().st_size for file in kept(folder)) <= KEPT_OF_LARGEST * LARGEST * 2**20
    assert Path(last).is_file()


def test_the_oldest_files_make_room(tmp_path: Path) -> None:
    for number in range(6):
        file = tmp_path / str(number) / "file"
        file.parent.mkdir()
        file.write_bytes(bytes(10))
        os.utime(file, (number, number))
    remove_oldest(tmp_path, 4, 1000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3", "4", "5"]
    remove_oldest(tmp_path, 4, 25)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["4", "5"]


def test_sockets_and_crowds_are_refused(tmp_path: Path) -> None:
    """What neither Gradio nor httpx does: a WebSocket of another site, and more uploads at once than are taken."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        waiting.append(scope["type"])
        await forever.wait()

    async def ask(kind: str, headers: dict[str, str]) -> list[Any]:
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": kind, "path": "/gradio_api/upload", "method": "POST", "headers": raw, "query_string": b""}
        task = asyncio.ensure_future(guard(scope, nothing, send))
        tasks.append(task)
        await asyncio.sleep(0)
        return sent

    async def nothing() -> Any:
        return {"type": "http.disconnect"}

    async def trial() -> None:
        own = {"host": "localhost:1"}
        (closed,) = await ask("websocket", {"host": "evil:1"})
        assert closed["type"] == "websocket.close"
        assert await ask("websocket", {**own, "origin": "http://evil"}) == [closed]
        assert await ask("websocket", {**own, "origin": "http://localhost:1"}) == []
        for _ in range(32):
            assert await ask("http", own) == []
        assert (await ask("http", own))[0]["status"] == 503
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert waiting.count("http") == 32

    waiting: list[str] = []
    tasks: list[Any] = []
    forever = asyncio.Event()
    guard = Guard(app, OwnAddresses("localhost", 1), tmp_path, 100)
    asyncio.run(trial())
