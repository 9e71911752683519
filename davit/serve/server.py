"""Run the service by uvicorn, with what that leaves open: clients that are slow, and the end by a signal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .service import Service

log = logging.getLogger(__name__)

_HEADERS = 16 * 1024  # bytes
_IDLE = 5  # seconds between two requests of a connection
_GRACE = 5.0  # seconds beyond what the service itself gives a request


def serve(service: Service, listener: socket.socket) -> None:
    """Answer requests until SIGTERM or SIGINT: those at work are answered, new ones refused; a second SIGINT ends it.

    Raises:
        Exception: what the model raised at its first image.
    """
    make_server(service).run(sockets=[listener])
    if service.fault is not None:
        raise service.fault


def make_server(service: Service, headers: float = 10.0) -> uvicorn.Server:
    """Put a service behind uvicorn; signals count only if it runs in the main thread.

    Args:
        headers: seconds in which those of a request must have arrived.
    """
    bounds = service.bounds
    for name in ("uvicorn.error", "uvicorn.asgi"):
        logging.getLogger(name).setLevel(logging.ERROR)  # below that it tells of each malformed request
    config = uvicorn.Config(
        service.app,
        http=_protocol(headers, bounds.receiving + _GRACE, most_connections()),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=math.ceil(bounds.timeout + 2 * _GRACE),
        h11_max_incomplete_event_size=_HEADERS,
    )
    return _Server(config, service)


class _Server(uvicorn.Server):
    """End with the service's fault, and by a signal without raising it again, which would be the exit status."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._service.fault is not None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def most_connections() -> int:
    """Decide how many connections may be open: of each some 64 KB wait to be read, and it is a file."""
    try:
        import resource
    except ImportError:  # Windows
        return 512
    return min(1024, max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))


def usable_processors() -> int:
    """Count the processors that this process may use: those that it is bound to, and a container's share of time."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        count = min(count, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max"
        pass
    return count


def _protocol(headers: float, seconds: float, most: int) -> type[H11Protocol]:
    """Make a protocol whose connections end when a request does not arrive in time, or an answer is not read.

    Args:
        headers: seconds for the headers of a request.
        seconds: for a body, from its headers on, and for the reading of an answer.
        most: connections; more are told so and closed.
    """

    class Bounded(H11Protocol):
        _timer: asyncio.TimerHandle | None = None
        _awaited: Any = None  # the state of the client in which the timer was set

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > most:
                self._refuse(503, b"too many connections")
            else:
                self._expect()

        def data_received(self, data: bytes) -> None:
            if not self.transport.is_closing():
                super().data_received(data)
                self._expect()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._expect()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            super().connection_lost(exc)
            self._unset_keepalive_if_required()

        def pause_writing(self) -> None:
            super().pause_writing()
            self.loop.call_later(seconds, self._end_if_unread)

        def timeout_keep_alive_handler(self) -> None:
            if self.transport.get_write_buffer_size():
                self.transport.abort()
            super().timeout_keep_alive_handler()

        def shutdown(self) -> None:
            super().shutdown()
            if self.conn.their_state is h11.SEND_BODY:
                self.loop.call_later(_GRACE, self._end_if_arriving)

        def _expect(self) -> None:
            """Bound the time of what the client is to do next."""
            state = self.conn.their_state
            if state is self._awaited or self.transport.is_closing():
                return
            self._stop()
            self._awaited = state
            if state is h11.IDLE:
                self._timer = self.loop.call_later(headers, self._late)
            elif state is h11.SEND_BODY:
                self._timer = self.loop.call_later(seconds, self._late)

        def _stop(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _late(self) -> None:
            if self.conn.our_state is h11.IDLE:
                self._refuse(408, b"the request did not arrive in time")
            else:
                self.transport.abort()

        def _end_if_unread(self) -> None:
            if self.flow.write_paused:
                self.transport.abort()

        def _end_if_arriving(self) -> None:
            if self.conn.their_state is h11.SEND_BODY:
                self.transport.abort()

        def _refuse(self, status: int, sentence: bytes) -> None:
            lines = b"HTTP/1.1 %d \r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n"
            self.transport.write(lines % (status, len(sentence)) + b"connection: close\r\n\r\n" + sentence)
            self.transport.close()

    return Bounded
