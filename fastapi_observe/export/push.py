"""Export of log lines and metrics over OTLP, if enabled: their queues, and the loop that reads the metrics."""

from __future__ import annotations

import threading
from time import sleep
from typing import TYPE_CHECKING, Any, NamedTuple

from fastapi_observe.export.otlp.logs import LogEncoder
from fastapi_observe.export.otlp.metrics import MetricEncoder, read_families
from fastapi_observe.export.queue import ExportQueue
from fastapi_observe.export.setup import make_resource, make_transport, queue_limits, with_instance_id
from fastapi_observe.internal.clock import monotonic
from fastapi_observe.internal.forks import register_at_fork, start_thread
from fastapi_observe.settings.model import TRACES_PATH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.sdk.resources import Resource
    from prometheus_client.registry import Collector

    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.settings.model import ObserveSettings


class PushQueues(NamedTuple):
    """The exports of an app besides traces. Each is None where it is not enabled."""

    logs: ExportQueue | None
    metrics: MetricExportLoop | None


def open_queues(
    settings: ObserveSettings,
    provider: Any,
    collectors: Callable[[], Iterable[Collector]],
    counters_reset_at: Callable[[], int],
    internal_errors: InternalErrors,
) -> PushQueues:
    """Return the queues that the settings enable.

    Each worker process exports its own log lines and metrics, under its own instance id. `collectors` returns the
    Prometheus collectors of this process alone.
    """
    resource = ProcessResource(settings, provider)
    return PushQueues(
        logs=make_log_queue(settings, resource, internal_errors),
        metrics=make_metric_loop(settings, resource, collectors, internal_errors, counters_reset_at),
    )


def signal_url(settings: ObserveSettings, signal: str) -> str | None:
    """Return the URL for `signal` (`logs`, `metrics`), or None without an endpoint. gRPC uses one for all signals."""
    endpoint = settings.otlp_endpoint
    if endpoint is None or settings.otlp_protocol == "grpc":
        return endpoint
    # `otlp_endpoint` may be the URL for traces, as OTEL_EXPORTER_OTLP_TRACES_ENDPOINT is.
    base, mark, query = endpoint.partition("?")
    return f"{base.removesuffix('/').removesuffix(TRACES_PATH).removesuffix('/')}/v1/{signal}{mark}{query}"


class ProcessResource:
    """Returns the resource of this process: the tracer provider's, or one made of the settings.

    It has an instance id even where the provider's has none, because each process writes its own streams.
    """

    def __init__(self, settings: ObserveSettings, provider: Any) -> None:
        self._settings = settings
        self._provider = provider
        self._reset_after_fork()
        register_at_fork(self, ProcessResource._reset_after_fork)

    def _reset_after_fork(self) -> None:
        self._cached: tuple[Resource | None, Resource] | None = None

    def __call__(self) -> Resource:
        """Return the same object as long as the provider's resource is the same: encoders cache its bytes."""
        source: Resource | None = getattr(self._provider, "resource", None)
        if self._cached is None or self._cached[0] is not source:
            self._cached = source, make_resource(self._settings) if source is None else with_instance_id(source)
        return self._cached[1]


def make_log_queue(
    settings: ObserveSettings, resource: Callable[[], Resource], internal_errors: InternalErrors
) -> ExportQueue | None:
    """Return the queue of JSON log lines (`put(line)`), or None if `otlp_logs` is off or there is no endpoint."""
    url = signal_url(settings, "logs")
    if not settings.otlp_logs or url is None:
        return None
    transport = make_transport(settings, url, "logs")
    return ExportQueue("log lines", LogEncoder(resource), transport, queue_limits(settings), internal_errors)


def make_metric_loop(
    settings: ObserveSettings,
    resource: Callable[[], Resource],
    collectors: Callable[[], Iterable[Collector]],
    internal_errors: InternalErrors,
    counters_reset_at: Callable[[], int] = int,
) -> MetricExportLoop | None:
    """Return the export of what `collectors()` read, or None if `otlp_metrics` is off or there is no endpoint.

    `counters_reset_at` returns when counters were last set to zero, in nanoseconds since the epoch; 0 for never, which
    is what the default `int` returns.
    """
    url = signal_url(settings, "metrics")
    if not settings.otlp_metrics or url is None:
        return None
    transport = make_transport(settings, url, "metrics")
    encoder = MetricEncoder(resource, counters_reset_at)
    queue = ExportQueue("metrics", encoder, transport, queue_limits(settings), internal_errors)
    return MetricExportLoop(queue, collectors, settings.otlp_metrics_interval, internal_errors)


class MetricExportLoop:
    """Reads all metrics of this process every `interval` seconds while it is started, and queues them.

    A forked child exports nothing until it calls `start` itself.
    """

    def __init__(
        self,
        queue: ExportQueue,
        collectors: Callable[[], Iterable[Collector]],
        interval: float,
        internal_errors: InternalErrors,
    ) -> None:
        self.queue = queue
        self._collectors = collectors
        self._interval = interval
        self._internal_errors = internal_errors
        self._reset_after_fork()
        register_at_fork(self, MetricExportLoop._reset_after_fork)

    def _reset_after_fork(self) -> None:
        self._lock = threading.Lock()  # a thread that does not exist in the child may have held the old one
        self._closed = False
        self._paused = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread in this process. Idempotent."""
        with self._lock:
            if self._thread is None and not self._closed:
                paused = self._paused = threading.Event()  # each thread has its own: an old one may not have ended yet
                consequence = "No metrics are exported."
                self._thread = start_thread(self._run, "fastapi-observe-metrics", consequence, (paused,))

    def pause(self) -> None:
        """Read nothing until the next `start`: a worker process that leaves its group sets its counters to zero."""
        self._paused.set()
        self._thread = None

    def _run(self, paused: threading.Event) -> None:
        due = monotonic() + self._interval
        while not paused.wait(max(0.0, due - monotonic())):
            self.push()
            due = max(due + self._interval, monotonic())

    def push(self) -> None:
        """Read and queue all metrics now. A collector that raises is skipped and counted."""
        paused, names_read = self._paused, set[str]()
        for collector in self._collectors():
            sleep(0)  # releases the GIL: the event loop may be waiting for it
            try:
                for family in read_families(collector, names_read):
                    if not paused.is_set():  # else it may have been read after the counters were set to zero
                        self.queue.put(family)
            except Exception as exc:  # noqa: BLE001 - a user's collector may raise anything
                self._internal_errors("metrics.push", exc)

    def flush(self, timeout: float) -> bool:
        """Export the metrics as they are now, within `timeout` seconds, if this process was started."""
        if self._thread is not None:
            self.push()
        return self.queue.flush(timeout)

    def close(self, timeout: float | None = None) -> None:
        """Export the metrics a last time and end the thread. Idempotent."""
        if not self._closed:
            self._closed = True
            if self._thread is not None:
                self.push()
            self.pause()
            self.queue.close(timeout)
