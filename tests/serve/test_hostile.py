"""Send the service what it should not get: it answers with a sentence, stays up, and keeps nothing."""

import contextlib
import io
import socket
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs FastAPI: make setup")
pytest.importorskip("uvicorn", reason="needs uvicorn: make setup")
pytest.importorskip("prometheus_client", reason="needs prometheus-client: make setup")

import davit
from davit.serve.engine import Classifier
from tests.serve.conftest import Running, Slow, png


@pytest.fixture(scope="module")
def service(checkpoint: Path, running: Any) -> Iterator[Running]:
    with running(Classifier(davit.load(checkpoint), 10**6), headers=1, max_megabytes=1, max_files=4) as service:
        yield service


LOGS = ("asyncio", "uvicorn.error", "davit.serve.service")


def is_well(service: Running) -> bool:
    """Whether an image is answered and nothing is left of what came before."""
    return service.post(png()).status_code == 200 and service.is_idle()


def exchange(port: int, data: bytes, seconds: float = 20) -> bytes:
    """Send bytes and read all that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        with contextlib.suppress(OSError):  # it has refused already
            connection.sendall(data)
        answer = b""
        with contextlib.suppress(ConnectionError):
            while more := connection.recv(65536):
                answer += more
        return answer


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def request(port: int, *lines: str, body: bytes = b"", path: str = "/predict", host: str = "") -> bytes:
    head = [f"POST {path} HTTP/1.1", f"Host: {host or f'127.0.0.1:{port}'}", "Connection: close", *lines, "", ""]
    return "\r\n".join(head).encode("latin-1") + body


# --- images ---


def claimed_png(side: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def claimed_jpeg(side: int) -> bytes:
    data = png(0, 16, 16, "JPEG")
    place = data.index(b"\xff\xc0") + 5
    return data[:place] + struct.pack(">HH", side, side) + data[place + 4 :]


def claimed_bmp(side: int) -> bytes:
    return b"BM" + struct.pack("<IHHI", 1000, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, *[0] * 6)


def claimed_array(side: int) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros((1, 1, 3), np.uint8))
    return stream.getvalue().replace(b"(1, 1, 3)", f"({side}, {side}, 3)".encode())


def pickled_array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return stream.getvalue()


PICTURES = {
    "a PNG that claims 60000 x 60000": claimed_png(60_000),
    "a PNG that claims 2000 x 2000": claimed_png(2000),
    "a JPEG that claims 60000 x 60000": claimed_jpeg(60_000),
    "a BMP that claims 60000 x 60000": claimed_bmp(60_000),
    "an array that claims 60000 x 60000": claimed_array(60_000),
    "an array of objects": pickled_array(),
    "a truncated PNG": png()[:2000],
    "a truncated JPEG": png(kind="JPEG")[:900],
    "a strip": png(0, 1, 60_000),
    "a drawing": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "a page": b"<html>",
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "zeros": bytes(1000),
    "one byte": b"\xff",
    "an object of JSON": b'{"image": "data:image/png;base64,AAAA"}',
}


@pytest.mark.parametrize("name", PICTURES)
def test_what_is_no_picture(service: Running, name: str) -> None:
    data = PICTURES[name]
    form = [("files", ("x.png", data))]
    octets = {"content-type": "application/octet-stream"}
    for reply in (
        service.post(data),
        service.post(data, **octets),
        service.client.post("/predict", files=form),
        service.post(data, "/embed"),
    ):
        assert reply.status_code == 422 and len(reply.json()["detail"]) > 10, reply.text
    assert is_well(service)


def test_nothing_lies_on_the_disk(service: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is there an open file that has no name any more."""
    import tempfile

    opened: list[str] = []
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda *_, **__: opened.append("a file"))
    large = png(0, 560, 560)
    assert 2**19 < len(large) < 2**20
    assert service.client.post("/predict", files=[("files", ("x.png", large))]).status_code == 200
    assert opened == []


# --- bodies ---


@pytest.mark.parametrize(
    ("media", "body", "status"),
    [
        ("application/json", b'{"image": 1}', 415),
        ("application/json", b"", 415),
        ("application/json", b"[" * 100_000, 415),
        ("text/html", b"x", 415),
        ("image/svg+xml", b"<svg/>", 415),
        ("application/x-www-form-urlencoded", b"a=b", 415),
        ("image/png", b"", 400),
        ("application/octet-stream", b"", 400),
        ("multipart/form-data", b"x", 400),
        ("multipart/form-data; boundary=", b"x", 400),
        ("multipart/form-data; boundary=b", b"", 400),
        ("multipart/form-data; boundary=b", b"--b--\r\n", 400),
        ("multipart/form-data; boundary=b", b"nothing of the kind", 400),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\nx\r\n--b--\r\n", 400),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="topk"\r\n\r\n3\r\n--b--',
            400,
        ),
        (
            "multipart/form-data; boundary=b; charset=base64",
            b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nx\r\n--b--\r\n',
            422,
        ),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"x" * 900_000, 400),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"a: b\r\n" * 100_000, 400),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n' * 40 + b"--b--\r\n",
            400,
        ),
        ("multipart/form-data; boundary=" + "b" * 5000, b"x", 400),
        ("multipart/mixed; boundary=b", b"--b--\r\n", 415),
        ("", b"x", 415),
        ("\x01", b"x", 415),
        ("image/png, image/png", png(), 200),
    ],
)
def test_bodies(service: Running, media: str, body: bytes, status: int) -> None:
    lines = [f"Content-Type: {media}"] if media else []
    sent = request(service.port, *lines, f"Content-Length: {len(body)}", body=body)
    answer = exchange(service.port, sent)
    assert status_of(answer) in ({status} if media != "\x01" else {400, 415}), answer
    assert len(answer.partition(b"\r\n\r\n")[2]) > 10
    assert is_well(service)


@pytest.mark.parametrize(
    ("lines", "statuses"),
    [
        (["Content-Length: 99999999999999999999999999"], {400, 413}),
        (["Content-Length: 2000000"], {413}),
        (["Content-Length: -1"], {400}),
        (["Content-Length: x"], {400}),
        (["Content-Length: 1", "Content-Length: 2"], {400}),
        (["Content-Length: 1", "Transfer-Encoding: chunked"], {400, 413, 415, 422}),
        (["Transfer-Encoding: gzip"], {400, 501}),
        (["Content-Encoding: gzip", "Content-Length: 0"], {415}),
        (["Content-Length: 0", "X: " + "y" * 70_000], {400, 415}),
        (["Content-Length: 0", *(f"X{n}: {n}" for n in range(20_000))], {400, 415}),
        (["Content-Length: 0", "a" * 9000], {400}),
        (["Content-Length: 0", ":"], {400}),
        (["Content-Length: 0", "Cookie: \x00"], {400}),
        (["Content-Length: 0", "Upgrade: websocket", "Connection: Upgrade"], {400, 415}),
        (["Content-Length: 0", "Sec-Fetch-Site: cross-site"], {403}),
        (["Content-Length: 0", "Origin: null"], {403}),
        (["Content-Length: 0", "Origin: http://evil.example.com"], {403}),
        (["Content-Length: 0", "Host: 127.0.0.1"], {400}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_headers(service: Running, lines: list[str], statuses: set[int]) -> None:
    answer = exchange(service.port, request(service.port, *lines))
    assert status_of(answer) in statuses, answer[:300]
    assert len(answer.partition(b"\r\n\r\n")[2]) > 10
    assert is_well(service)


def test_another_host_is_refused_on_every_path(service: Running) -> None:
    port = service.port
    for host in ("evil.example.com", f"evil.example.com:{port}", "127.0.0.1", "127.0.0.1:9", "", f"127.0.0.1:{port}x"):
        for path in ("/", "/predict", "/metrics", "/health", "/docs", "/openapi.json", "/nothing"):
            reply = service.client.get(path, headers={"host": host})
            assert reply.status_code == 400, (host, path)
        assert service.post(png(), host=host).status_code == 400
    for host in (f"localhost:{port}", "lab.example.org"):
        headers = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
        assert service.post(png(), **headers).status_code == 200
    asked = {"origin": "http://evil.example.com", "access-control-request-method": "POST"}
    reply = service.client.options("/predict", headers=asked)
    assert reply.status_code == 403 and "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize(
    "path",
    [
        *("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/%00", "/docs/../../x", "/static/x"),
        *("/predict/", "/predict/x", "/PREDICT", "/redoc", "/.env", "/x" * 3000, "/?" + "a" * 8000, "/%ff%fe"),
        *("http://evil.example.com/", "/health?x=%00", "/docs/oauth2-redirect"),
    ],
    ids=lambda path: path[:30],
)
def test_paths(service: Running, path: str) -> None:
    line = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{service.port}\r\nConnection: close\r\n\r\n".encode()
    answer = exchange(service.port, line)
    assert status_of(answer) < 500 and b"root:" not in answer
    if not path.startswith(("/?", "/health")):
        assert status_of(answer) in (400, 404), answer[:200]
    assert is_well(service)


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "X", "get", "PROPFIND", "\x16\x03\x01"])
def test_methods(service: Running, method: str) -> None:
    line = f"{method} /predict HTTP/1.1\r\nHost: 127.0.0.1:{service.port}\r\nConnection: close\r\n\r\n"
    assert status_of(exchange(service.port, line.encode("latin-1"))) in (400, 405)
    assert is_well(service)


# --- clients that are slow, or leave ---


def cut_off(port: int, number: int) -> None:
    """Begin a request, and leave: after its headers, in its body, or when it is complete."""
    body = png(number)
    whole = request(port, "Content-Type: image/png", f"Content-Length: {len(body)}", body=body)
    length = (len(whole) // 2, 40, len(whole) - 1, len(whole))[number % 4]
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.sendall(whole[:length])
    if number % 2:  # a reset rather than an end
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_hundreds_of_requests_cut_off(service: Running, caplog: pytest.LogCaptureFixture) -> None:
    assert is_well(service)
    files = service.metric("process_open_fds")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: cut_off(service.port, number), range(300)))
    assert is_well(service)
    until = time.monotonic() + 20
    while service.metric("process_open_fds") > files + 2 and time.monotonic() < until:
        time.sleep(0.1)
    assert service.metric("process_open_fds") <= files + 2
    assert service.metric("davit_held_bytes") == service.metric("davit_waiting_pictures") == 0
    assert [
        record for record in caplog.records if record.name in ("asyncio", "uvicorn.error", "davit.serve.service")
    ] == []


def test_headers_and_bodies_that_never_end(running: Any) -> None:
    with running(Slow(), headers=0.3, receiving=0.3) as service:
        for beginning in (b"", b"POST /predict HTTP/1.1\r\nHost"):
            assert status_of(exchange(service.port, beginning)) == 408
        sent = request(service.port, "Content-Type: image/png", "Content-Length: 1000", body=b"x")
        assert status_of(exchange(service.port, sent)) == 408
        form = "Content-Type: multipart/form-data; boundary=b"
        sent = request(service.port, form, "Transfer-Encoding: chunked", body=b"3\r\n--b\r\n")
        assert status_of(exchange(service.port, sent)) == 408
        assert service.is_idle() and service.post().status_code == 200


def test_connections_are_bounded(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("davit.serve.server.most_connections", lambda: 5)
    with running(Slow()) as service, contextlib.ExitStack() as stack:
        service.client.close()
        time.sleep(0.2)
        for _ in range(5):
            stack.enter_context(socket.create_connection(("127.0.0.1", service.port)))
        time.sleep(0.2)
        assert status_of(exchange(service.port, b"")) == 503


def test_an_answer_that_is_not_read(running: Any) -> None:
    class Long(Slow):
        def answer(self, kind: str, output: int, topk: int) -> dict[str, Any]:
            return {"classes": "x" * 20_000_000}

    with running(Long(), receiving=-4.5) as service:  # half a second for the reading of an answer
        service.service.bounds = service.service.bounds.__class__()
        with socket.create_connection(("127.0.0.1", service.port)) as connection:
            connection.sendall(request(service.port, "Content-Type: image/png", "Content-Length: 1", body=b"x"))
            assert service.is_idle(30)
            assert connection.recv(100)


@pytest.mark.parametrize("times", [3])
def test_pipelined_requests_are_answered_in_order(service: Running, times: int) -> None:
    body = png()
    one = request(service.port, "Content-Type: image/png", f"Content-Length: {len(body)}", body=body)
    keep = one.replace(b"Connection: close\r\n", b"")
    answer = exchange(service.port, keep * (times - 1) + one)
    assert answer.count(b"HTTP/1.1 200") == times
    assert is_well(service)
