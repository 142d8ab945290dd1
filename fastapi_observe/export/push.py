"""OTLP logs and metrics as options: their queues to the collector, and the clock by which metrics are sent."""

from __future__ import annotations

import threading
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final, Protocol

from fastapi_observe.export.otlp.logs import LogEncoder
from fastapi_observe.export.otlp.metrics import MetricEncoder, read_families
from fastapi_observe.export.queue import ExportQueue
from fastapi_observe.export.setup import make_resource, make_transport, queue_limits, with_instance_id
from fastapi_observe.internal.forks import register_at_fork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.sdk.resources import Resource
    from prometheus_client.registry import Collector

    from fastapi_observe.export.counts import Counts
    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.settings.model import ObserveSettings


class LogLineSource(Protocol):
    """Who writes lines (`Logs`)."""

    push: Callable[[bytes], None] | None


class MetricSource(Protocol):
    """Who has the metrics (`Sharing`)."""

    def of_this_process(self) -> Iterable[Collector]:
        """Return what shows the values of this process alone."""

    def counters_reset_at(self) -> int:
        """Return when counters were last set to zero, in nanoseconds; 0: they never were."""


def open_queues(
    settings: ObserveSettings,
    provider: Any,
    metrics: MetricSource,
    logs: LogLineSource,
    faults: InternalErrors,
) -> list[ExportQueue | MetricExportLoop]:
    """Return what sends lines and metrics; each has `flush(timeout)` and `close()`.

    Each worker process sends its own, under an instance id of its own: who receives them adds them up.
    """
    resource = ProcessResource(settings, provider)
    lines = make_log_queue(settings, resource, faults)
    numbers = make_metrics_push(settings, resource, metrics.of_this_process, faults, metrics.counters_reset_at)
    if lines is not None:
        logs.push = lines.put
    return [push for push in (lines, numbers) if push is not None]


TRACES_PATH: Final = "/v1/traces"


def signal_url(settings: ObserveSettings, signal: str) -> str | None:
    """Return where `signal` (`logs`, `metrics`) is sent; None: nowhere. gRPC has one address for every signal."""
    endpoint = settings.otlp_endpoint
    if endpoint is None or settings.otlp_protocol == "grpc":
        return endpoint
    base, mark, query = endpoint.partition("?")
    return f"{base.removesuffix('/').removesuffix(TRACES_PATH).removesuffix('/')}/v1/{signal}{mark}{query}"


class ProcessResource:
    """Reads who this process is: the resource of the tracer provider, else one made of the settings.

    It names the instance even where the provider's does not: each process writes streams of its own.
    """

    def __init__(self, settings: ObserveSettings, provider: Any) -> None:
        self._settings = settings
        self._provider = provider
        self._forget()
        register_at_fork(self, ProcessResource._forget)

    def _forget(self) -> None:
        self._kept: tuple[Resource | None, Resource] | None = None

    def __call__(self) -> Resource:
        """Return the same object as long as nothing changes."""
        found: Resource | None = getattr(self._provider, "resource", None)
        if self._kept is None or self._kept[0] is not found:
            self._kept = found, make_resource(self._settings) if found is None else with_instance_id(found)
        return self._kept[1]


def make_log_queue(
    settings: ObserveSettings, resource: Callable[[], Resource], faults: InternalErrors
) -> ExportQueue | None:
    """Return the queue that takes JSON lines (`put(line)`); None where `otlp_logs` is off or there is no endpoint."""
    url = signal_url(settings, "logs")
    if not settings.otlp_logs or url is None:
        return None
    transport = make_transport(settings, url, "logs")
    return ExportQueue("log lines", LogEncoder(resource), transport, queue_limits(settings), faults)


def make_metrics_push(
    settings: ObserveSettings,
    resource: Callable[[], Resource],
    collectors: Callable[[], Iterable[Collector]],
    faults: InternalErrors,
    counters_reset_at: Callable[[], int] = int,
) -> MetricExportLoop | None:
    """Return what sends what `collectors()` read; None where `otlp_metrics` is off or there is no endpoint.

    `zeroed` returns when counters were last set to zero, in nanoseconds.
    """
    url = signal_url(settings, "metrics")
    if not settings.otlp_metrics or url is None:
        return None
    transport = make_transport(settings, url, "metrics")
    queue = ExportQueue(
        "metrics", MetricEncoder(resource, counters_reset_at), transport, queue_limits(settings), faults
    )
    return MetricExportLoop(queue, collectors, settings.otlp_metrics_interval, faults)


class MetricExportLoop:
    """Reads all metrics of this process every `interval` seconds, once it was started, and puts them into a queue.

    A forked child sends nothing until it starts its own.
    """

    def __init__(
        self, queue: ExportQueue, collectors: Callable[[], Iterable[Collector]], interval: float, faults: InternalErrors
    ) -> None:
        self.queue = queue
        self._collectors = collectors
        self._interval = interval
        self._faults = faults
        self._renew()
        register_at_fork(self, MetricExportLoop._renew)

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._closed = False
        self._paused = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, in this process; again does nothing."""
        with self._lock:
            if self._thread is None and not self._closed:
                paused = self._paused = threading.Event()
                self._thread = threading.Thread(
                    target=self._run, args=(paused,), name="fastapi-observe-metrics", daemon=True
                )
                self._thread.start()

    def pause(self) -> None:
        """Read nothing until the next start: a worker that leaves the others sets its counters to zero."""
        self._paused.set()
        self._thread = None

    def _run(self, paused: threading.Event) -> None:
        due = monotonic() + self._interval
        while not paused.wait(max(0.0, due - monotonic())):
            self.push()
            due = max(due + self._interval, monotonic())

    def push(self) -> None:
        """Read all metrics and put them into the queue, now; a collector that raises is left out and counted."""
        paused, taken = self._paused, set[str]()
        for collector in self._collectors():
            sleep(0)  # gives the interpreter to the event loop
            try:
                for family in read_families(collector, taken):
                    if not paused.is_set():  # else it may have been read after it was set to zero
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
        if not self._closed:
            self._closed = True
            if self._thread is not None:
                self.push()
            self.pause()
            self.queue.close(timeout)
