"""Count what the service does, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_PICTURES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Hold the numbers of one service.

    Args:
        waiting: counts the images that are taken and not answered.
        held: counts the bytes of bodies in memory.
        is_ready: tells whether the model is warm.
    """

    def __init__(
        self, model: str, waiting: Callable[[], float], held: Callable[[], float], is_ready: Callable[[], bool]
    ) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        Gauge("davit_model", "the model that is served", ["name"], registry=registry).labels(model).set(1)
        self.requests = Counter("davit_requests", "answers, by path and status", ["path", "status"], registry=registry)
        self.seconds = Histogram(
            "davit_request_seconds", "from the headers to the answer", ["path"], buckets=_SECONDS, registry=registry
        )
        self.pictures = Counter("davit_pictures", "images answered", ["outcome"], registry=registry)
        self.decode_seconds = Histogram("davit_decode_seconds", "of an image", buckets=_SECONDS, registry=registry)
        self.batch_pictures = Histogram("davit_batch_pictures", "in a batch", buckets=_PICTURES, registry=registry)
        self.batch_seconds = Histogram("davit_batch_seconds", "of a batch", buckets=_SECONDS, registry=registry)
        Gauge("davit_waiting_pictures", "taken and not answered", registry=registry).set_function(waiting)
        Gauge("davit_held_bytes", "of requests in memory", registry=registry).set_function(held)
        Gauge("davit_ready", "1 when the model is warm", registry=registry).set_function(lambda: float(is_ready()))

    def text(self) -> bytes:
        """Write all in Prometheus's text format."""
        return generate_latest(self._registry)
