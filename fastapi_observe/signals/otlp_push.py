"""OTLP logs and metrics as options: their queues to the collector, and the clock by which metrics are sent."""

from __future__ import annotations

import threading
from time import monotonic
from typing import TYPE_CHECKING, Final

from fastapi_observe.signals.export_lifetime import at_fork
from fastapi_observe.signals.export_queue import ExportQueue
from fastapi_observe.signals.otlp_logs import LogEncoder
from fastapi_observe.signals.otlp_metrics import MetricEncoder, read
from fastapi_observe.signals.provider import limits_of, make_resource, make_transport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.sdk.resources import Resource
    from prometheus_client.metrics_core import Metric

    from fastapi_observe.records.faults import Faults
    from fastapi_observe.settings import ObserveSettings
    from fastapi_observe.signals.export_counts import Counts

TRACES_PATH: Final = "/v1/traces"


def url_of(settings: ObserveSettings, signal: str) -> str | None:
    """Return where `signal` (`logs`, `metrics`) is sent; None: nowhere. gRPC has one address for every signal."""
    endpoint = settings.otlp_endpoint
    if endpoint is None or settings.otlp_protocol == "grpc":
        return endpoint
    base, mark, query = endpoint.partition("?")
    return f"{base.removesuffix('/').removesuffix(TRACES_PATH).removesuffix('/')}/v1/{signal}{mark}{query}"


def resource_of(settings: ObserveSettings, provider: object) -> Callable[[], Resource]:
    """Return how to read the resource: that of the tracer provider, else one made of the settings."""
    if hasattr(provider, "resource"):
        return lambda: provider.resource
    made = make_resource(settings)
    return lambda: made


def make_log_queue(settings: ObserveSettings, resource: Callable[[], Resource], faults: Faults) -> ExportQueue | None:
    """Return the queue that takes JSON lines (`put(line)`); None where `otlp_logs` is off or there is no endpoint."""
    url = url_of(settings, "logs")
    if not settings.otlp_logs or url is None:
        return None
    transport = make_transport(settings, url, "logs")
    return ExportQueue("log lines", LogEncoder(resource), transport, limits_of(settings), faults)


def make_metrics_push(
    settings: ObserveSettings,
    resource: Callable[[], Resource],
    families: Callable[[], Iterable[Metric]],
    faults: Faults,
) -> MetricsPush | None:
    """Return what sends `families()`; None where `otlp_metrics` is off or there is no endpoint."""
    url = url_of(settings, "metrics")
    if not settings.otlp_metrics or url is None:
        return None
    transport = make_transport(settings, url, "metrics")
    queue = ExportQueue("metrics", MetricEncoder(resource), transport, limits_of(settings), faults)
    return MetricsPush(queue, families, settings.otlp_metrics_interval, faults)


class MetricsPush:
    """Reads all metrics every `interval` seconds, once it was started, and puts them into a queue.

    A forked child sends nothing until it starts its own.
    """

    def __init__(
        self, queue: ExportQueue, families: Callable[[], Iterable[Metric]], interval: float, faults: Faults
    ) -> None:
        self.queue = queue
        self._families = families
        self._interval = interval
        self._faults = faults
        self._renew()
        at_fork(self, MetricsPush._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, in this process; again does nothing."""
        with self._lock:
            if self._thread is None and not self._ended.is_set():
                self._thread = threading.Thread(target=self._run, name="fastapi-observe-metrics", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        due = monotonic() + self._interval
        while not self._ended.wait(max(0.0, due - monotonic())):
            self.push()
            due = max(due + self._interval, monotonic())

    def push(self) -> None:
        """Read all metrics and put them into the queue, now."""
        try:
            for family in read(self._families()):
                self.queue.put(family)
        except Exception as exc:  # noqa: BLE001 - a user's collector raises what it likes
            self._faults("metrics.push", exc)

    def counts(self) -> Counts:
        """Read every count of the queue, in families."""
        return self.queue.counts()

    def flush(self, timeout: float) -> bool:
        """Send the metrics as they are now, for at most `timeout` seconds, if this process sends any."""
        if self._thread is not None:
            self.push()
        return self.queue.flush(timeout)

    def close(self, timeout: float | None = None) -> None:
        """Send the metrics a last time and end. A second call does nothing."""
        if not self._ended.is_set():
            self._ended.set()
            if self._thread is not None:
                self.push()
            self.queue.close(timeout)
