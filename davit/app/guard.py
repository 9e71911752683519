"""Let the page answer none but its own visitors: by the address that they asked for, and by what they send.

`davit.addresses` says which addresses are the page's own, and why. What is uploaded is bounded by number and size, for
all together.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Container, Iterator
from pathlib import Path

from h11 import LocalProtocolError
from starlette.datastructures import Headers, QueryParams
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..addresses import READING, OwnAddresses

log = logging.getLogger(__name__)

KEPT_FILES = 128  # uploads, and images of answers; the oldest make room
KEPT_OF_LARGEST = 16  # bytes of all of them, as a multiple of the largest upload
_FRAME = 64 * 1024  # bytes of an upload beside the file
_QUESTION = 256 * 1024  # bytes of any other request
_STARTING = 32  # uploads at once
_PATIENCE = 30.0  # seconds for the next part of a body

_UPLOAD = "/gradio_api/upload"
_TAKEN = frozenset({_UPLOAD, "/gradio_api/queue/join", "/gradio_api/cancel", "/gradio_api/reset"})
_ANSWERS = "/gradio_api/queue/data"
_HIDDEN = re.compile(
    r"/(monitoring|gradio_api/(api|call|custom_component|deep_link|dev|openapi|profiling|proxy=|run|stream|vibe))",
    re.IGNORECASE,
)


class Guard:
    """Answer requests that are not the page's own, or too large, with a status of 4xx or 503; pass on all others.

    Args:
        own: the addresses of the page.
        folder: where uploads and images of answers are kept.
        largest: bytes of an upload.
        sessions: those that have asked for something, and may wait for answers.
    """

    def __init__(
        self, app: ASGIApp, own: OwnAddresses, folder: Path, largest: int, sessions: Container[str] = ()
    ) -> None:
        self._app = app
        self._own = own
        self._folder = folder
        self._largest = largest
        self._sessions = sessions
        self._arriving = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        if scope["type"] == "http":
            send = _unless_closed(send)
        refusal = self._refusal(scope)
        if refusal is not None:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await refusal(scope, receive, send)
        elif scope["type"] == "http" and scope["method"] not in READING:
            await self._take(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        refusal = self._own.refusal(headers.getlist("host"), headers.getlist("origin"))
        if refusal is not None:
            return PlainTextResponse(refusal[1], refusal[0])
        if scope["type"] == "websocket":
            return None
        path = scope["path"].rstrip("/")
        if scope["method"] in READING:
            is_unknown = (
                path == _ANSWERS and QueryParams(scope["query_string"]).get("session_hash") not in self._sessions
            )
            return PlainTextResponse("Not Found", 404) if is_unknown or _HIDDEN.match(path) else None
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return PlainTextResponse("another site may not ask this page", 403)
        if path not in _TAKEN:
            return PlainTextResponse("Not Found", 404)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > self._limit(path):
            return _too_large()
        return None

    def _limit(self, path: str) -> int:
        return self._largest + _FRAME if path == _UPLOAD else _QUESTION

    async def _take(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request with a body, and end it where the body is larger than was said."""
        path = scope["path"].rstrip("/")
        limit = self._limit(path)
        read = 0
        has_answered = is_whole = False

        async def receive_bounded() -> Message:
            nonlocal read, is_whole
            try:
                message = await asyncio.wait_for(receive(), None if is_whole else _PATIENCE)
            except asyncio.TimeoutError:
                raise _TooSlowError from None
            is_whole = not message.get("more_body", False)
            read += len(message.get("body", b""))
            if read > limit:
                raise _TooLargeError
            return message

        async def send_noted(message: Message) -> None:
            nonlocal has_answered
            has_answered = True
            await send(message)

        try:
            if path == _UPLOAD:
                with self._room() as has_room:
                    if not has_room:
                        busy = PlainTextResponse("too many uploads at once", 503)
                        await busy(scope, receive, send)
                        return
                    await self._app(scope, receive_bounded, send_noted)
            else:
                await self._app(scope, receive_bounded, send_noted)
        except _TooLargeError:
            if has_answered:
                raise
            await _too_large()(scope, receive, send)
        except _TooSlowError:
            if has_answered:
                raise
            await PlainTextResponse("the rest of the request did not come", 408)(scope, receive, send)

    @contextlib.contextmanager
    def _room(self) -> Iterator[bool]:
        """Make room for one more upload, and tell whether it may be taken."""
        if self._arriving >= _STARTING:
            yield False
            return
        self._arriving += 1
        try:
            room = self._largest * max(1, KEPT_OF_LARGEST - self._arriving)
            remove_oldest(self._folder, KEPT_FILES - self._arriving, room)
            yield True
        finally:
            self._arriving -= 1


def _unless_closed(send: Send) -> Send:
    """Send an answer, unless the server has closed the connection meanwhile, for bytes that are no further request."""

    async def sent(message: Message) -> None:
        with contextlib.suppress(LocalProtocolError):
            await send(message)

    return sent


class _TooLargeError(Exception):
    """A body is longer than it may be."""


class _TooSlowError(Exception):
    """A body is not sent to its end."""


def remove_oldest(folder: Path, files: int, size: int) -> None:
    """Remove the oldest files below a folder until so many of so many bytes are left, and folders that are empty."""
    found = []
    for place in folder.rglob("*"):
        with contextlib.suppress(OSError):  # removed meanwhile
            state = place.lstat()
            if not place.is_dir():
                found.append((state.st_mtime_ns, state.st_size, place))
    found.sort(reverse=True)
    for _, length, place in found:
        files -= 1
        size -= length
        if files < 0 or size < 0:
            with contextlib.suppress(OSError):
                place.unlink()
            with contextlib.suppress(OSError):  # others are in it
                place.parent.rmdir()


async def unknown(_: Request, error: Exception) -> Response:
    """Answer a request for what is not there, such as a function by an index that none has."""
    log.debug("a request for what is not there: %r", error)
    return PlainTextResponse("Not Found", 404)


async def malformed(_: Request, error: Exception) -> Response:
    """Answer a request whose content Gradio cannot make sense of."""
    log.debug("a request that makes no sense: %r", error)
    return PlainTextResponse("Bad Request", 400)


def _too_large() -> Response:
    return PlainTextResponse("larger than the page takes", 413)
