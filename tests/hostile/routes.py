"""Make the trials of the page and its API: routes, methods, hosts, origins, indexes, bodies, uploads."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from .attack import CANARY, Trial, kind

_REQUESTS = 25  # of a trial
_MEGABYTES = 1  # that the page takes

_PATHS = (
    *("/", "/config", "/info", "/gradio_api/info", "/gradio_api/queue/join", "/gradio_api/queue/data", "/theme.css"),
    *("/gradio_api/upload", "/gradio_api/file=/etc/passwd", "/gradio_api/file=../../etc/passwd", "/file=/etc/passwd"),
    *("/gradio_api/run/predict", "/gradio_api/call/show", "/gradio_api/api/0", "/gradio_api/proxy=http://127.0.0.1/"),
    *("/gradio_api/heartbeat/x", "/gradio_api/component_server", "/gradio_api/cancel", "/gradio_api/reset", "/login"),
    *("/gradio_api/startup-events", "/gradio_api/upload_progress?upload_id=x", "/monitoring", "/robots.txt", "/docs"),
    *(
        "/static/../../../../etc/passwd",
        "/static/%2e%2e/%2e%2e/etc/passwd",
        "/assets/../config",
        "//etc/passwd",
        "/%00",
    ),
    *("/gradio_api/stream/x/y/z", "/gradio_api/deep_link", "/svelte/x", "/custom_component/x/y/z", "/manifest.json"),
    *("/gradio_api/queue/status", "/gradio_api/openapi.json", "/openapi.json", "/token", "/app_id", "/dev/reload"),
)
_METHODS = ("GET", "GET", "POST", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "X", "get")
_INDEXES = ("0", "1", "-1", "999", "null", "1e9", '"x"', "[]", "true", "9" * 40, "0.5", "{}")


def _body(rng: random.Random) -> bytes:
    index, session = rng.choice(_INDEXES), rng.choice(('"s"', "1", "null", '"' + "x" * 3000 + '"'))
    file = rng.choice(
        ('"/etc/passwd"', '{"path": "/etc/passwd"}', '{"path": "http://127.0.0.1:1/"}', "null", "3", "[]")
    )
    join = f'{{"data": [{file}], "fn_index": {index}, "session_hash": {session}, "trigger_id": {index}}}'
    return rng.choice(
        (
            join.encode(),
            join.encode(),
            join.encode()[: rng.randrange(len(join))],
            b"",
            b"{}",
            b"[" * 5000,
            b"\xff\xfe" * 100,
            rng.randbytes(rng.randint(1, 2000)),
            b"{" * 100 + b'"a":' * 100,
            b"x" * rng.choice((300_000, 2_000_000)),
        )
    )


def _upload(rng: random.Random) -> tuple[bytes, str]:
    name = rng.choice(("a.png", "../../x.png", "/etc/x", "", "a\0b", "x" * 300, "a.html", "..", "日本.png", '"; x="'))
    data = rng.choice((b"x", b"", rng.randbytes(3000), b"<script>", b"x" * (_MEGABYTES << 20), b"x" * (3 << 20)))
    body = b'--b\r\nContent-Disposition: form-data; name="files"; filename="' + name.encode() + b'"\r\n\r\n' + data
    return body + rng.choice(
        (b"\r\n--b--\r\n", b"\r\n--b--\r\n", b"", b"\r\n--b\r\n")
    ), "multipart/form-data; boundary=b"


def _request(rng: random.Random, port: int) -> tuple[bytes, bool]:
    """Write a request; return also whether it says an address that is not the page's own."""
    path, method = rng.choice(_PATHS), rng.choice(_METHODS)
    own = f"127.0.0.1:{port}"
    hosts = [
        rng.choice((own, own, own, own, f"localhost:{port}", "evil.example.com", "", f"{own}.evil.example", own + "1"))
    ]
    if rng.random() < 0.05:
        hosts.append("evil.example.com")
    lines = [f"Host: {host}" for host in hosts]
    origin = rng.choice(
        (None, None, None, f"http://{own}", "http://evil.example.com", "null", f"https://{own}", "\x80")
    )
    if origin is not None:
        lines.append(f"Origin: {origin}")
    body = b""
    if method in ("POST", "PUT", "PATCH", "X") or rng.random() < 0.1:
        body, sort = _upload(rng) if "upload" in path or rng.random() < 0.3 else (_body(rng), "application/json")
        lines += [
            f"Content-Type: {sort}",
            f"Content-Length: {rng.choice((len(body),) * 6 + (len(body) * 2, 0, -1, 'x', '9' * 30))}",
        ]
    if rng.random() < 0.1:
        lines.append(
            rng.choice(
                (
                    "X: " + "y" * 70_000,
                    "Transfer-Encoding: chunked",
                    "Range: bytes=-1-",
                    "Cookie: a=\x01",
                    "Upgrade: websocket",
                    "Sec-Fetch-Site: cross-site",
                    "X-Forwarded-Host: evil",
                    ":",
                    "a" * 9000,
                )
            )
        )
    foreign = len(hosts) != 1 or hosts[0] not in (own, f"localhost:{port}")
    foreign |= origin not in (None, f"http://{own}", f"https://{own}")  # the second through a proxy
    text = f"{method} {path} HTTP/1.1\r\n" + "\r\n".join([*lines, "Connection: close", "", ""])
    return text.encode("latin-1", "replace") + body, foreign


def ask(port: int, request: bytes, seconds: float = 100) -> tuple[int | None, bytes]:
    """Send bytes; return the status and the answer's beginning, None where the server closes without an answer."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        with contextlib.suppress(OSError):  # it has refused already
            connection.sendall(request)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while len(answer) < 200_000 and (more := connection.recv(65536)):
                answer += more
                if b"text/event-stream" in answer[:2000]:
                    break
    first = answer.split(b"\r\n", 1)[0].split(b" ")
    return (int(first[1]) if len(first) > 1 and first[1].isdigit() else None), answer


def _import_page(lab: Path) -> None:
    import davit.app.page

    os.environ["GRADIO_TEMP_DIR"] = str(lab.parent / "scratch-routes" / "uploads")  # Gradio reads it here, once
    davit.app.page.gradio()


@kind("routes", 0.015, _import_page)
def routes(rng: random.Random, lab: Path) -> Iterator[Trial]:
    """Send the page 25 odd requests: none is answered by 5xx, none of a foreign address by 2xx, and it stays up."""
    while True:
        seed = rng.randrange(2**32)

        def work(seed: int = seed) -> int:
            return _ask_a_page(random.Random(seed), lab)

        yield Trial(f"{_REQUESTS} requests, seed {seed}", work, (0,), seconds=120, megabytes=1500)


def _ask_a_page(rng: random.Random, lab: Path) -> int:
    import davit
    from davit.app import ClassifierReader
    from davit.app.page import build_page, gradio, serve

    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    uploads = Path("uploads").absolute()
    uploads.mkdir()
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    gradio()
    page = build_page(ClassifierReader(davit.load(lab / "model.pth.tar")))
    address = serve(page, "127.0.0.1", 0, _MEGABYTES, block=False, folder=uploads)
    port = int(address.rstrip("/").rpartition(":")[2])
    faults = []
    for _ in range(_REQUESTS):
        request, foreign = _request(rng, port)
        try:
            status, answer = ask(port, request)
        except TimeoutError:
            faults.append(f"no answer to {request[:200]!r}")
            continue
        if status is not None and status >= 500 and status not in (501, 503):
            faults.append(f"{status} for {request[:300]!r}")
        if foreign and status is not None and status < 400:
            faults.append(f"{status} for a foreign address: {request[:300]!r}")
        if b"root:x:0:0" in answer:
            faults.append(f"a file was read by {request[:200]!r}")
    status, _ = ask(port, f"GET /config HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
    if status != 200:
        faults.append(f"the page answers {status} afterwards")
    kept = [file for file in uploads.rglob("*") if file.is_file()]
    if sum(file.stat().st_size for file in kept) > 16 * (_MEGABYTES << 20):
        faults.append(f"{len(kept)} uploads are kept")
    if any(file.name == CANARY for file in kept):
        faults.append("a canary")
    for fault in faults:
        sys.stdout.write(f"{json.dumps(fault)}\n")
    return 1 if faults else 0
