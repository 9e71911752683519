"""Put models behind the service: small ones, and some that wait until they are told."""

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from davit import create_model
from davit.addresses import OwnAddresses, open_port
from tests.conftest import randomise

KWARGS = {"embed_dims": [8, 16], "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
CLASSES = ["ant", "bee", "cat"]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = randomise(create_model("DaViT_nano", num_classes=3, **KWARGS), 0)
    file = tmp_path_factory.mktemp("checkpoint") / "model.pth.tar"
    args = {"model": "DaViT_nano", "img_size": 32, "model_kwargs": KWARGS}
    torch.save({"state_dict": model.state_dict(), "args": args, "class_names": CLASSES}, file)
    return file


def png(seed: int = 0, height: int = 40, width: int = 50, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


class Slow:
    """An engine whose model waits for `go`; an image is its length in bytes."""

    name, task, kinds, batches = "slow", "classification", ("predict",), True
    about: dict[str, Any] = {"classes": 1}  # noqa: RUF012

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.ran: list[list[int]] = []

    def prepare(self, data: bytes) -> int:
        return len(data)

    def run(self, kind: str, prepared: Sequence[int]) -> list[int]:
        assert self.go.wait(60)
        self.ran.append(list(prepared))
        return list(prepared)

    def answer(self, kind: str, output: int, topk: int) -> dict[str, Any]:
        return {"classes": {"length": output}}

    def sample(self) -> int:
        return 0


class Running:
    """A service that runs in a thread of this process."""

    def __init__(self, service: Any, port: int, server: Any) -> None:
        self.service, self.port, self.server = service, port, server
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60)

    def post(self, data: bytes = b"x", path: str = "/predict", **headers: str) -> httpx.Response:
        return self.client.post(path, content=data, headers={"content-type": "image/png", **headers})

    def metric(self, name: str) -> float:
        (value,) = re.findall(rf"^{re.escape(name)} (\S+)$", self.client.get("/metrics").text, re.MULTILINE)
        return float(value)

    def is_idle(self, seconds: float = 20) -> bool:
        """Wait until nothing is held, taken or coming."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            state = self.service
            if not (state._held.bytes or state._taken or state._coming or len(self.server.server_state.tasks) > 0):
                return True
            time.sleep(0.05)
        return False


@pytest.fixture(scope="session")
def running() -> Callable[..., AbstractContextManager[Running]]:
    """``with running(engine, headers=10, **bounds) as service``: also before it is ready, if `ready` is False."""
    from davit.serve.server import make_server
    from davit.serve.service import Bounds, Service

    @contextmanager
    def run(engine: Any, headers: float = 10, ready: bool = True, **bounds: Any) -> Iterator[Running]:
        with open_port("127.0.0.1", 0) as listener:
            port = listener.getsockname()[1]
            service = Service(engine, Bounds(**bounds), OwnAddresses("127.0.0.1", port, ["lab.example.org"]))
            server = make_server(service, headers)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
            thread.start()
            running = Running(service, port, server)
            until = time.monotonic() + 60
            while not (service.is_ready() if ready else server.started):
                assert thread.is_alive() and time.monotonic() < until
                time.sleep(0.01)
            with running.client:
                yield running
            server.should_exit = True
            thread.join(60)
            assert not thread.is_alive()

    return run


@pytest.fixture(scope="session")
def command(checkpoint: Path, repository: Path) -> Callable[..., AbstractContextManager[tuple[Any, int, list[str]]]]:
    """``with command(*flags) as (process, port, lines)``: the command in a process of its own, once it is ready."""

    @contextmanager
    def serve(*flags: str, at: Path | None = None) -> Iterator[tuple[Any, int, list[str]]]:
        words = ["-m", "davit.serve", str(checkpoint), "--port", "0", *flags]
        env = {**os.environ, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"}
        if at is not None:
            env["TMPDIR"] = str(at)
        more: dict[str, Any] = {"cwd": at, "env": env, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen([sys.executable, *words], **more) as process:
            lines: list[str] = []
            while not any("ready after" in line for line in lines):
                line = process.stderr.readline()
                assert line, f"the service did not start: {lines}"
                lines.append(line)
            (port,) = re.findall(r"http://127\.0\.0\.1:(\d+)", "".join(lines))
            reading = threading.Thread(target=lambda: lines.extend(process.stderr), daemon=True)  # or the pipe fills
            reading.start()
            try:
                yield process, int(port), lines
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(60)
                reading.join(10)

    return serve
