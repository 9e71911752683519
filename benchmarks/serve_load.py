"""Load the service with many clients at once: ``python benchmarks/serve_load.py``.

Three services, each a process of ``python -m davit.serve`` with the same weights, take turns, round by round, so that
what slows the machine for a while slows all of them:

- `service`: as it is by default, with batches and the kernels of `davit.accelerate`
- `no batches`: the same with ``--max-batch 1``
- `plain`: plain PyTorch behind the same server: ``--max-batch 1 --model-kwargs accelerate=False``

A client sends one image, waits for its answer, and sends the next, over a connection that it keeps. Clients are
coroutines of this process, on the same processors as the services. Memory is the service's own, by /metrics.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measure import RESULTS, environment, table, write_report

from davit import create_model
from davit.parsing import Parser, RawHelp

SERVICES = {
    "service": [],
    "no batches": ["--max-batch", "1"],
    "plain": ["--max-batch", "1", "--model-kwargs", "accelerate=False"],
}
REFERENCE = "plain"


@dataclass
class Served:
    """One service and what was measured of it."""

    name: str
    port: int
    rates: list[float] = field(default_factory=list)  # pictures a second, of each round
    seconds: list[float] = field(default_factory=list)  # of each request
    errors: int = 0
    memory: list[float] = field(default_factory=list)  # bytes, after each round
    batches: float = 0.0  # pictures in one, on average


def make_picture(seed: int, width: int, height: int) -> bytes:
    """Make a JPEG with structure at all scales."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for octave in range(1, 8):
        small = Image.fromarray(rng.integers(0, 256, (2**octave, 2**octave, 3), dtype=np.uint8))
        total += np.asarray(small.resize((width, height), Image.Resampling.BICUBIC), float) / octave
    stream = io.BytesIO()
    Image.fromarray((total / total.max() * 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
    return stream.getvalue()


async def client(port: int, pictures: list[bytes], left: list[int], served: Served) -> None:
    """Ask until nothing is left to ask; count what is no answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while left[0] > 0:
            left[0] -= 1
            body = pictures[left[0] % len(pictures)]
            head = f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: image/jpeg\r\n"
            begun = time.perf_counter()
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", answer, re.IGNORECASE)
            assert length is not None
            reply = json.loads(await reader.readexactly(int(length[1])))
            served.seconds.append(time.perf_counter() - begun)
            served.errors += not (answer.startswith(b"HTTP/1.1 200 ") and len(reply["results"][0]["classes"]) == 5)
    except (OSError, asyncio.IncompleteReadError):
        served.errors += 1
    finally:
        writer.close()


async def load(served: Served, pictures: list[bytes], clients: int, requests: int) -> None:
    """Let all clients ask for a round."""
    left, begun = [requests], time.perf_counter()
    await asyncio.gather(*(client(served.port, pictures, left, served) for _ in range(clients)))
    served.rates.append(requests / (time.perf_counter() - begun))


def metrics(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as reply:
        lines = reply.read().decode().splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


@contextlib.contextmanager
def serving(checkpoint: Path, name: str, threads: int) -> Iterator[Served]:
    """Start a service, wait until it is ready, and end it as a process manager does."""
    words = ["-m", "davit.serve", str(checkpoint), "--port", "0", "--threads", str(threads), *SERVICES[name]]
    root = str(Path(__file__).resolve().parents[1])
    env = {"OMP_WAIT_POLICY": "passive", **os.environ, "PYTHONPATH": root}  # as the command `davit` has it
    with subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True, env=env) as process:
        said = ""
        while "ready after" not in said:
            assert process.stderr is not None
            line = process.stderr.readline()
            if not line:
                raise RuntimeError(f"{name} did not start: {said}")
            said += line
        port = re.findall(r"http://127\.0\.0\.1:(\d+)", said)[0]
        print(f"{name}: ready at port {port}", file=sys.stderr)
        try:
            yield Served(name, int(port))
        finally:
            process.terminate()
            status = process.wait(60)
            print(f"{name}: ended with status {status}", file=sys.stderr)


def measure(args: argparse.Namespace, checkpoint: Path) -> list[Served]:
    width, height = args.picture
    pictures = [make_picture(seed, width, height) for seed in range(32)]
    with contextlib.ExitStack() as stack:
        services = [stack.enter_context(serving(checkpoint, name, args.threads)) for name in SERVICES]
        for number in range(args.rounds + 1):
            for served in services:
                asyncio.run(load(served, pictures, args.clients, args.requests))
                if number == 0:  # it does not count: memory is taken and caches fill
                    served.rates.clear(), served.seconds.clear()
                served.memory.append(metrics(served.port)["process_resident_memory_bytes"])
            if number:
                rates = ", ".join(f"{one.name} {one.rates[-1]:.1f}" for one in services)
                print(f"round {number} of {args.rounds}: {rates} pictures/s", file=sys.stderr)
        for served in services:
            found = metrics(served.port)
            served.batches = found["davit_batch_pictures_sum"] / found["davit_batch_pictures_count"]
    return services


def report(args: argparse.Namespace, services: list[Served]) -> list[list[str]]:
    (reference,) = (one for one in services if one.name == REFERENCE)
    rows = []
    for one in services:
        ratios = [a / b for a, b in zip(one.rates, reference.rates, strict=True)]
        p50, p99 = np.quantile(one.seconds, [0.5, 0.99])
        rows.append(
            [
                f"`{one.name}`",
                f"{statistics.median(one.rates):.1f}",
                f"{statistics.median(ratios):.2f}",
                f"{min(ratios):.2f} to {max(ratios):.2f}",
                f"{1e3 * p50:.0f}",
                f"{1e3 * p99:.0f}",
                f"{one.batches:.1f}",
                f"{len(one.seconds)}",
                f"{one.errors}",
                f"{one.memory[0] / 2**20:.0f}",
                f"{one.memory[-1] / 2**20:.0f}",
            ]
        )
    return rows


HEADER = [
    *("service", "pictures/s", "ratio", "of the rounds", "p50, ms", "p99, ms", "pictures in a batch", "requests"),
    *("errors", "MiB before", "MiB after"),
]


def size(text: str) -> tuple[int, int]:
    width, height = map(int, text.split("x"))
    return width, height


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=RawHelp)
    add = parser.add_argument
    add("--models", nargs="+", default=["DaViT_tiny", "DaViT_nano"], help="models to serve, with random weights")
    add("--img-size", type=int, nargs="+", default=[224, 64], help="side of the images of each model in pixels")
    add("--clients", type=int, default=64, help="clients that send at the same time")
    add("--requests", type=int, nargs="+", default=[256, 1024], help="requests of a round, for each model")
    add("--rounds", type=int, default=5, help="measurements of each case, taken in turns")
    add("--threads", type=int, default=len(os.sched_getaffinity(0)), help="threads of PyTorch in each service")
    add("--picture", type=size, default=(500, 375), metavar="WxH", help="width and height of the JPEGs that are sent")
    add("--name", default="serve", help="the results are written into NAME.json and NAME.md")
    args = parser.parse_args()
    before = environment()["load"]
    sections: list[tuple[str, str]] = []
    data: dict[str, Any] = {}
    all_requests = args.requests
    for model, side, requests in zip(args.models, args.img_size, all_requests, strict=True):
        args.requests = requests
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "model.pth.tar"
            weights = create_model(model, num_classes=1000).state_dict()
            torch.save({"state_dict": weights, "args": {"model": model, "img_size": side}}, checkpoint)
            services = measure(args, checkpoint)
        sections.append((f"{model}, {side} pixels", table(HEADER, report(args, services))))
        data[model] = {one.name: {**vars(one), "seconds": [round(s, 4) for s in one.seconds]} for one in services}
    width, height = args.picture
    about = (
        f"{args.clients} clients at once, each with one picture ({width} x {height}, JPEG) at a time over a "
        f"connection that it keeps; {args.rounds} rounds by turns, after one that does not count. "
        f"{args.threads} threads of PyTorch; clients run on the same processors. The ratio is that of a round's "
        f"pictures/s to `{REFERENCE}`'s in the same round: plain PyTorch behind the same server, picture by picture. "
        f"`no batches` is ours with --max-batch 1. MiB are the resident memory of the service after the round that "
        f"does not count, and at the end. Load average before: {', '.join(map(str, before))}."
    )
    path = write_report(args.name, "The service under load", [("", about), *sections], data, RESULTS)
    print(path.read_text())


if __name__ == "__main__":
    main()
