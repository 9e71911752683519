"""Answer requests: what is asked for, in which order things are checked, and what comes back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from ..addresses import OwnAddresses
from ..data import BadImageError
from ..limits import NUMBERS
from .batching import Batcher, Done
from .body import Held, Refusal, Upload, read_pictures, require_pictures
from .engine import Engine
from .gate import Gate
from .metrics import Metrics
from .pages import docs_page, front_page
from .schema import BODY, Embedded, Fault, Health, Predicted

log = logging.getLogger(__name__)

_HELD_OF_LARGEST = 16  # bytes of all requests, as a multiple of the largest
_TOPK = "classes to name, 5 where it is not given; of several labels all above their threshold; also a field"
_GONE = 499  # nginx's number for a client that has left; nobody reads it
_HTML = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'"}


@dataclass(frozen=True)
class Bounds:
    """Say how much the service takes.

    Attributes:
        max_batch: images that go through the model at once.
        max_delay: milliseconds that an image waits for others to share its batch.
        max_megabytes: of a request.
        max_megapixels: of an image.
        max_files: of a request.
        max_queue: images that are taken and not answered.
        timeout: seconds until a request is given up.
        receiving: seconds in which a request must have arrived.
        threads: of PyTorch; None leaves them.
        decoders: threads that decode images.
    """

    max_batch: int = 8
    max_delay: float = 5.0
    max_megabytes: int = 20
    max_megapixels: float = 50.0
    max_files: int = 16
    max_queue: int = 256
    timeout: float = 30.0
    receiving: float = 60.0
    threads: int | None = None
    decoders: int = 2

    def __post_init__(self) -> None:
        if self.max_files > self.max_queue:
            raise ValueError(f"`max_files={self.max_files}` is more than the `max_queue={self.max_queue}` images.")

    @property
    def most_pixels(self) -> int:
        """Pixels of an image."""
        return int(1e6 * self.max_megapixels)

    @property
    def largest(self) -> int:
        """Bytes of a request."""
        return self.max_megabytes * 2**20


@dataclass(frozen=True)
class _Outcome:
    """What became of one image: an answer, or a status and why."""

    answer: dict[str, Any]
    decoded: float = 0.0
    done: Done | None = None
    status: int = 200


class Service:
    """A model behind HTTP: `app` is the ASGI application.

    Args:
        own: the addresses that it is asked at.
    """

    def __init__(self, engine: Engine, bounds: Bounds, own: OwnAddresses) -> None:
        self.engine = engine
        self.bounds = bounds
        self.fault: BaseException | None = None
        self._is_warm = False
        self._taken = 0  # images that are not answered
        self._coming = 0  # of them, those not yet before the model
        self._seconds = 0.0  # of the model for an image, lately
        self._held = Held(_HELD_OF_LARGEST * bounds.largest)
        self._decoders = ThreadPoolExecutor(bounds.decoders, "decode")
        self._ahead: asyncio.Semaphore  # decoded images take memory too
        self.metrics = Metrics(engine.name, lambda: self._taken, lambda: self._held.bytes, self.is_ready)
        self._batcher = Batcher(
            engine,
            bounds.max_batch,
            bounds.max_delay / 1000,
            threads=bounds.threads,
            is_more_coming=lambda: self._coming > 0,
            observe=self._observe,
        )
        self.app = self._routes(own)

    def is_ready(self) -> bool:
        """Tell whether the model is warm and its thread runs."""
        return self._is_warm and self._batcher.is_alive()

    # ---- routes ----

    def _routes(self, own: OwnAddresses) -> FastAPI:
        app = FastAPI(
            title=f"{self.engine.name}, by DaViT",
            description="Send images, get JSON. Errors are a JSON object whose `detail` is a sentence.",
            docs_url=None,  # the usual pages fetch their scripts from others
            redoc_url=None,
            redirect_slashes=False,
            lifespan=self._life,
            middleware=[Middleware(Gate, own=own, metrics=self.metrics)],
        )
        app.add_exception_handler(Refusal, _refused)
        app.add_exception_handler(HTTPException, _unknown)
        app.add_exception_handler(RequestValidationError, _invalid)
        faults: dict[int | str, dict[str, Any]] = {
            status: {"model": Fault, "description": why}
            for status, why in (
                (400, "an empty or malformed body"),
                (413, "too many bytes or files"),
                (415, "not a type that images have"),
                (422, "none of the images can be read, or a parameter makes no sense"),
                (429, "the queue is full; Retry-After says when to try again"),
                (503, "the model is not ready"),
                (504, "no answer in time"),
            )
        }
        if "predict" in self.engine.kinds:

            @app.post("/predict", responses={200: {"model": Predicted}, **faults}, openapi_extra=BODY)
            async def predict(
                request: Request,
                topk: int | None = Query(None, ge=1, le=int(NUMBERS["topk"].most), description=_TOPK),
            ) -> Response:
                """Say what is in images."""
                return await self._answer("predict", request, topk)

        if "embed" in self.engine.kinds:

            @app.post("/embed", responses={200: {"model": Embedded}, **faults}, openapi_extra=BODY)
            async def embed(request: Request) -> Response:
                """Give the features of images: what the model hands to its last layer."""
                return await self._answer("embed", request, None)

        @app.get("/health", responses={200: {"model": Health}, 503: {"model": Health}})
        async def health() -> Response:
            """Tell whether the model is ready; 503 while it warms up."""
            return self._health()

        @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
        async def metrics() -> Response:
            """Give counts and times in Prometheus's text format."""
            return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

        @app.get("/", include_in_schema=False)
        async def front() -> Response:
            return HTMLResponse(front_page(self.engine), headers=_HTML)

        @app.get("/docs", include_in_schema=False)
        async def docs() -> Response:
            return HTMLResponse(docs_page(app.openapi()), headers=_HTML)

        return app

    @contextlib.asynccontextmanager
    async def _life(self, _: FastAPI) -> AsyncIterator[None]:
        if self.bounds.threads is not None:
            torch.set_num_threads(self.bounds.threads)
        self._ahead = asyncio.Semaphore(2 * self.bounds.max_batch + self.bounds.decoders)
        self._batcher.start()
        warming = asyncio.create_task(self._warm())
        try:
            yield
        finally:
            warming.cancel()
            await asyncio.to_thread(self._batcher.close)
            self._decoders.shutdown(wait=False, cancel_futures=True)

    async def _warm(self) -> None:
        """Run the model on the smallest and the largest batch, so that no request pays for the first time."""
        begun = time.monotonic()
        try:
            sample = await asyncio.get_running_loop().run_in_executor(self._decoders, self.engine.sample)
            for kind in self.engine.kinds:
                await self._batcher.submit(kind, sample)
                if self.engine.batches:
                    self._coming += 1  # so that they share a batch
                    several = [self._batcher.submit(kind, sample) for _ in range(self.bounds.max_batch)]
                    self._coming -= 1
                    await asyncio.gather(*several)
        except Exception as error:
            self.fault = error
            log.error("the model fails at its first image: %s", error)
            return
        self._is_warm = True
        log.info("ready after %.1f s", time.monotonic() - begun)

    def _health(self) -> Response:
        about = {"model": self.engine.name, "task": self.engine.task, **self.engine.about}
        if self.is_ready():
            return JSONResponse({"status": "ready", **about})
        status = "warming up" if self.fault is None and self._batcher.is_alive() else "failed"
        return JSONResponse({"status": status, **about}, 503, headers={"retry-after": "1"})

    # ---- a request for images ----

    async def _answer(self, kind: str, request: Request, topk: int | None) -> Response:
        begun = time.monotonic()
        self._require_room(1)
        media = require_pictures(request.headers, self.bounds.largest)
        upload = Upload()
        try:
            self._coming += 1
            try:
                await self._read(request, media, upload)
            finally:
                self._coming -= 1
            if "topk" in upload.fields:
                topk = _topk(upload.fields["topk"])
            count = len(upload.files)
            self._require_room(count)
            self._taken += count
            try:
                outcomes = await self._outcomes(kind, request, [data for _, data in upload.files], topk, begun)
            finally:
                self._taken -= count
        except ClientDisconnect:
            return Response(status_code=_GONE)
        finally:
            self._held.give(upload.size)
        return self._response([name for name, _ in upload.files], outcomes, time.monotonic() - begun)

    def _require_room(self, pictures: int) -> None:
        if not self.is_ready():
            raise Refusal(503, "the model is not ready: see /health", 1)
        if self._taken + pictures > self.bounds.max_queue:
            seconds = math.ceil(self._taken * self._seconds)
            sentence = f"{self._taken} images are waiting, and at most {self.bounds.max_queue} may: try again later"
            raise Refusal(429, sentence, min(60, max(1, seconds)))

    async def _read(self, request: Request, media: str, upload: Upload) -> None:
        reading = read_pictures(
            request,
            media,
            upload,
            largest=self.bounds.largest,
            most_files=self.bounds.max_files,
            held=self._held,
        )
        try:
            await asyncio.wait_for(reading, self.bounds.receiving)
        except asyncio.TimeoutError as error:
            raise Refusal(408, f"the request did not arrive within {self.bounds.receiving:g} s") from error

    async def _outcomes(
        self, kind: str, request: Request, files: Sequence[bytes], topk: int | None, begun: float
    ) -> list[_Outcome]:
        """Work on all images of a request at once, unless the client leaves or the time is over."""
        work = asyncio.create_task(self._outcomes_of(kind, files, topk))
        leaving = asyncio.create_task(_disconnected(request))
        try:
            left = max(0.0, begun + self.bounds.timeout - time.monotonic())
            await asyncio.wait((work, leaving), timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            if leaving.done():
                raise ClientDisconnect
            raise Refusal(504, f"no answer within {self.bounds.timeout:g} s: try again, with fewer images", 1)
        finally:
            leaving.cancel()
            work.cancel()
            await asyncio.wait((work, leaving))

    async def _outcomes_of(self, kind: str, files: Sequence[bytes], topk: int | None) -> list[_Outcome]:
        return await asyncio.gather(*(self._outcome(kind, data, topk) for data in files))

    async def _outcome(self, kind: str, data: bytes, topk: int | None) -> _Outcome:
        begun = time.monotonic()
        self._coming += 1
        is_coming = True
        try:
            async with self._ahead:
                loop = asyncio.get_running_loop()
                begun = time.monotonic()
                prepared = await loop.run_in_executor(self._decoders, self.engine.prepare, data)
                decoded = time.monotonic() - begun
                self.metrics.decode_seconds.observe(decoded)
                future = self._batcher.submit(kind, prepared)
                self._coming -= 1
                is_coming = False
                done = await future
            return _Outcome(dict(self.engine.answer(kind, done.output, topk)), decoded, done)
        except BadImageError as error:
            return _Outcome({"error": f"{error.reason or error}"}, status=422)
        except Exception as error:
            log.exception("an image could not be answered")
            sentence = str(error) if isinstance(error, ValueError) else "an error of this program: its log says which"
            return _Outcome({"error": sentence}, status=500)
        finally:
            self._coming -= is_coming

    def _response(self, names: Sequence[str | None], outcomes: Sequence[_Outcome], seconds: float) -> Response:
        results = []
        for name, outcome in zip(names, outcomes, strict=True):
            self.metrics.pictures.labels("answered" if outcome.status == 200 else "unreadable").inc()
            result: dict[str, Any] = {"file": name, **outcome.answer}
            if (done := outcome.done) is not None:
                result["timing"] = {
                    "decode_ms": _ms(outcome.decoded),
                    "wait_ms": _ms(done.waited),
                    "model_ms": _ms(done.took),
                    "batch": done.batch,
                }
            results.append(result)
        if all(outcome.status != 200 for outcome in outcomes):
            status = max(outcome.status for outcome in outcomes)
            why = [f"{name or 'the image'}: {one.answer['error']}" for name, one in zip(names, outcomes, strict=True)]
            return JSONResponse({"detail": "; ".join(why[:3])}, status)
        return JSONResponse({"model": self.engine.name, "results": results, "total_ms": _ms(seconds)})

    def _observe(self, pictures: int, seconds: float) -> None:
        """Note a batch, in the model's thread."""
        self.metrics.batch_pictures.observe(pictures)
        self.metrics.batch_seconds.observe(seconds)
        self._seconds = 0.9 * self._seconds + 0.1 * seconds / pictures if self._seconds else seconds / pictures


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _topk(text: str) -> int:
    limits = NUMBERS["topk"]
    if not text.isdecimal() or len(text) > 9 or not limits.has(int(text)):
        raise Refusal(422, f"topk must be {limits}")
    return int(text)


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)


# ---- errors, each a sentence ----


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return JSONResponse({"detail": error.sentence}, error.status, headers=error.headers)


async def _unknown(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentences = {404: "there is nothing here: /docs says what there is", 405: "this path is not asked in this way"}
    sentence = sentences.get(error.status_code, str(error.detail))
    return JSONResponse({"detail": sentence}, error.status_code, headers=error.headers)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return JSONResponse({"detail": f"{first['loc'][-1]}: {first['msg']}"}, 422)
