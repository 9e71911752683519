"""Stand before all routes: whose requests are answered, what each way of asking means, and what is counted."""

from __future__ import annotations

import time

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..addresses import READING, OwnAddresses
from .metrics import Metrics

_READ = frozenset({"/", "/docs", "/openapi.json", "/health", "/metrics"})
_SENT = frozenset({"/predict", "/embed"})


class Gate:
    """Refuse requests of other sites, answer OPTIONS, let HEAD be GET, and count.

    Args:
        own: the addresses of the service.
    """

    def __init__(self, app: ASGIApp, own: OwnAddresses, metrics: Metrics) -> None:
        self._app = app
        self._own = own
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.monotonic()
        path = scope["path"] if scope["path"] in _READ | _SENT else "other"
        status = 0

        async def send_noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            early = self._early(scope, path)
            if early is not None:
                await early(scope, receive, send_noted)
            else:
                await self._app({**scope, "method": _as_get(scope, path)}, receive, send_noted)
        finally:
            self._metrics.requests.labels(path, status or 500).inc()
            self._metrics.seconds.labels(path).observe(time.monotonic() - begun)

    def _early(self, scope: Scope, path: str) -> Response | None:
        headers = Headers(scope=scope)
        refusal = self._own.refusal(headers.getlist("host"), headers.getlist("origin"))
        if refusal is None and scope["method"] not in READING:
            if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                refusal = 403, "another site may not ask this server"
        if refusal is not None:
            return JSONResponse({"detail": refusal[1]}, refusal[0])
        if scope["method"] == "OPTIONS" and path != "other":
            return Response(status_code=204, headers={"allow": "GET, HEAD" if path in _READ else "POST"})
        return None


def _as_get(scope: Scope, path: str) -> str:
    """Let HEAD be answered as GET is; the server leaves out the body."""
    return "GET" if scope["method"] == "HEAD" and path in _READ else str(scope["method"])
