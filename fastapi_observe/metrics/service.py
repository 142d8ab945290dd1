"""The metrics signal, and what users call: `MetricsService`."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final, Literal

from prometheus_client import REGISTRY, CollectorRegistry

from fastapi_observe.metrics.budget import LimitsCollector, SeriesLimiter
from fastapi_observe.metrics.catalogue import BusinessMetrics, MetricFactory
from fastapi_observe.metrics.closures import check_functions, make_info
from fastapi_observe.metrics.exposition import InternalCollector, collectors_of, prefers_openmetrics, render
from fastapi_observe.metrics.operations import OperationMetrics
from fastapi_observe.metrics.scrapes import ScrapeRenderer
from fastapi_observe.metrics.series import Counter, Gauge, Histogram
from fastapi_observe.metrics.shared.sharing import MetricSharing
from fastapi_observe.records.exceptions import status_label
from fastapi_observe.records.guard import CALLER_ERRORS, fail_safe, return_no_op
from fastapi_observe.records.request import known_method
from fastapi_observe.records.signal import no_op

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.metrics.exposition import ScrapeResponse
    from fastapi_observe.metrics.objectives import ObjectiveCounts, ObjectiveSpec
    from fastapi_observe.records.operation import Operation
    from fastapi_observe.records.pool import PoolState
    from fastapi_observe.records.request import RequestRecord
    from fastapi_observe.records.websocket import WebSocketRecord
    from fastapi_observe.settings.model import ObserveSettings

SIZE_BUCKETS: Final = tuple(100.0 * 10**power for power in range(8))
CONNECTION_BUCKETS: Final = (0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
"""Bucket bounds: bytes, seconds."""


class HttpSeries:
    """The cells and exemplars that a request with one method, endpoint and status code writes."""

    __slots__ = ("count", "count_exemplars", "duration", "duration_exemplars", "request_size", "response_size")

    def __init__(self, count: Counter, duration: Histogram, sizes: tuple[Histogram, Histogram] | None) -> None:
        self.count = count.cells
        self.count_exemplars = count.exemplars
        self.duration = duration.cells
        self.duration_exemplars = duration.exemplars
        self.request_size: list[float] = sizes[0].cells if sizes else []
        self.response_size: list[float] = sizes[1].cells if sizes else []


class MetricsService:
    """Takes the measurements of one install and shows them; `business` counts what the business does.

    `registry` is `settings.registry`, or one of our own. All labels are bounded: `endpoint` is a route template,
    `method` a known one or `_OTHER`, `status_code` is 100 to 599 or `_other`, every other label has at most
    `settings.max_values_per_label` values, and each metric at most `settings.max_series_per_metric` label sets.
    `redact` takes
    out of a label value what a warning must not tell.
    """

    def __init__(self, settings: ObserveSettings, faults: InternalErrors, redact: Callable[[str], str] = str) -> None:
        self.registry: CollectorRegistry = settings.registry or CollectorRegistry()
        self._shared = settings.registry is not None
        show_default = settings.include_default_registry and self.registry is not REGISTRY
        self._faults = faults
        bounds = settings.max_series_per_metric, settings.max_series_per_process, settings.max_values_per_label
        self._budget = SeriesLimiter(*bounds, redact)
        self._catalogue = MetricFactory(self.registry, self._budget)
        self.business = BusinessMetrics(self._catalogue)
        self._exemplars = settings.exemplars
        self._repeat_limit = settings.repeated_query_threshold
        self._sizes = settings.size_histograms
        self._closures = check_functions(settings.instrumentator_functions)
        self._lock = self._budget.lock
        self._http: dict[tuple[str, str, int], HttpSeries] = {}
        self.scrapes = ScrapeRenderer(self._render)
        registries = (self.registry, REGISTRY) if show_default else (self.registry,)
        self.sharing = MetricSharing(registries, self._catalogue, faults, self._forget_cells, self.scrapes.after_fork)
        try:
            self._make_http(
                settings.duration_buckets, [slo.threshold for slo in settings.slos if slo.kind == "latency"]
            )
            self._make_websocket()
            self._operations = OperationMetrics(self._catalogue, self._lock, faults)
            self.register_collector(InternalCollector(self._budget, faults))
            self.register_collector(LimitsCollector(self._budget))
            self.register_collector(self.sharing.about)
        except ValueError:  # the user's registry is left as it was
            self.close()
            raise

    # The metrics

    def _make_http(self, buckets: tuple[float, ...], thresholds: Iterable[float]) -> None:
        own = self._catalogue.create_internal
        route = ("method", "endpoint")
        self._requests = own(Counter, "http_requests_total", "HTTP requests.", (*route, "status_code"))
        self._duration = own(
            Histogram,
            "http_request_duration_seconds",
            "Time from the first byte of the request to the last of the response, in seconds.",
            route,
            buckets=sorted({*buckets, *thresholds}),
        )
        self._bounds = self._duration.bounds()
        if self._sizes:
            self._request_size = own(
                Histogram, "http_request_size_bytes", "Received body bytes.", route, buckets=SIZE_BUCKETS
            )
            self._response_size = own(
                Histogram, "http_response_size_bytes", "Sent body bytes.", route, buckets=SIZE_BUCKETS
            )
        self._active = own(Gauge, "http_requests_in_progress", "HTTP requests that have no complete response yet.")
        self._errors = own(Counter, "http_request_errors_total", "HTTP requests that failed.", (*route, "error_type"))
        self._ttfb = own(
            Histogram,
            "http_time_to_first_byte_seconds",
            "Time to the first body byte of streamed responses, in seconds.",
            route,
            buckets=buckets,
        )
        self._validation = own(
            Counter,
            "request_validation_errors_total",
            "Fields that were refused with 422.",
            ("endpoint", "field", "error_type"),
        )

    def _make_websocket(self) -> None:
        own = self._catalogue.create_internal
        self._connections = own(Gauge, "websocket_connections_active", "Open WebSocket connections.", ("endpoint",))
        self._messages = own(
            Counter, "websocket_messages_total", "WebSocket messages, received and sent.", ("endpoint", "direction")
        )
        self._connection_duration = own(
            Histogram,
            "websocket_connection_duration_seconds",
            "Time from the handshake to the close, in seconds.",
            ("endpoint", "close_code"),
            buckets=CONNECTION_BUCKETS,
        )

    # The signal

    def on_request_start(self, ex: RequestRecord) -> None:
        """Count a request as in progress."""
        if not ex.websocket:
            with self._lock:
                self._active.cells[0] += 1

    def on_request_end(self, ex: RequestRecord) -> None:
        """Take the samples of a request, or of a WebSocket connection."""
        if ex.websocket:
            self._close_websocket(ex)  # type: ignore[arg-type]  # `websocket` says so
            return
        try:
            kept = self._http.get((ex.method, ex.endpoint, ex.status_code)) or self._keep(ex)
        except Exception:
            with self._lock:
                self._active.cells[0] -= 1
            raise
        duration = ex.duration
        cell = bisect_left(self._bounds, duration)
        received, sent = ex.request_size, ex.response_size
        with self._lock:
            self._active.cells[0] -= 1
            kept.count[0] += 1
            cells = kept.duration
            cells[cell] += 1
            cells[-1] += duration
            if self._sizes:
                cells = kept.request_size
                if received:
                    cells[bisect_left(SIZE_BUCKETS, received)] += 1
                    cells[-1] += received
                else:
                    cells[0] += 1
                cells = kept.response_size
                cells[bisect_left(SIZE_BUCKETS, sent)] += 1
                cells[-1] += sent
        if ex.sampled and self._exemplars:
            ids = {"trace_id": ex.trace_id, "span_id": ex.span_id}
            ended = ex.started_ns / 1e9 + duration
            kept.count_exemplars[0] = (ids, 1.0, ended)
            kept.duration_exemplars[cell] = (ids, duration, ended)
        if ex.error_type is not None or ex.ttfb is not None or ex.validation_errors or ex.work is not None:
            self._close_unusual(ex)
        if self._closures:
            self._call_closures(ex)

    def _keep(self, ex: RequestRecord) -> HttpSeries:
        key = (ex.method, ex.endpoint, ex.status_code)
        series = self._series(*key)
        # What finds no place here still counts, in the overflow series.
        if len(self._http) < self._budget.per_metric:
            self._http[key] = series
        return series

    def _series(self, method: str, endpoint: str, status_code: int) -> HttpSeries:
        sizes = None
        if self._sizes:
            sizes = (
                self._request_size.labels_or_raise(method, endpoint),
                self._response_size.labels_or_raise(method, endpoint),
            )
        count = self._requests.labels_or_raise(method, endpoint, status_label(status_code))
        return HttpSeries(count, self._duration.labels_or_raise(method, endpoint), sizes)

    def _close_unusual(self, ex: RequestRecord) -> None:
        if ex.error_type is not None:
            self._errors.labels_or_raise(ex.method, ex.endpoint, ex.error_type).inc()
        if ex.ttfb is not None:
            self._ttfb.labels_or_raise(ex.method, ex.endpoint).observe(ex.ttfb)
        for field, error_type in ex.validation_errors or ():
            self._validation.labels_or_raise(ex.endpoint, field, error_type).inc()
        if ex.work is not None:
            for _ in ex.work.repeated(self._repeat_limit):
                self._operations.repeated.labels_or_raise(ex.endpoint).inc()

    def on_response_start(self, ex: RequestRecord) -> None:
        """Count an accepted WebSocket connection; nothing to do for the response of a request."""
        if ex.websocket:
            self.accept_websocket(ex)  # type: ignore[arg-type]  # `websocket` says so

    def accept_websocket(self, ex: WebSocketRecord) -> None:
        """Count a connection as open, and its messages from now on."""
        received = self._messages.labels_or_raise(ex.endpoint, "received").inc
        sent = self._messages.labels_or_raise(ex.endpoint, "sent").inc
        self._connections.labels_or_raise(ex.endpoint).inc()
        ex.count_received, ex.count_sent = received, sent

    def _close_websocket(self, ex: WebSocketRecord) -> None:
        # Only what was counted as open may be counted as closed.
        if ex.count_received is not None:
            ex.count_received = ex.count_sent = None
            self._connections.labels_or_raise(ex.endpoint).dec()
        self._connection_duration.labels_or_raise(ex.endpoint, ex.close_code).observe(ex.duration)

    @no_op
    def on_operation_start(self, op: Operation) -> None:
        """Do nothing: an operation is counted when it ends."""

    def on_operation_end(self, op: Operation) -> None:
        """Take the samples of a piece of work."""
        self._operations.close(op)

    def close(self) -> None:
        """Take everything out of a registry that the user gave; one of our own stays readable."""
        while self._shared and self._catalogue.registered:
            self.registry.unregister(self._catalogue.registered.pop())

    def _call_closures(self, ex: RequestRecord) -> None:
        info = make_info(ex)
        for closure in self._closures:
            try:
                closure(info)
            except Exception as exc:  # noqa: BLE001 - a user's closure raises what it likes
                self._faults("instrumentation", exc)

    # What users call

    @fail_safe("metrics.call", return_no_op, CALLER_ERRORS)
    def counter(self, name: str, help: str, labels: Sequence[str] = ()) -> Counter:  # noqa: A002 - Prometheus' word
        """Return the counter of this name, made now or before.

        Raises ValueError for an invalid or reserved name, and when it exists with another type or other labels.
        """
        return self._catalogue.get(Counter, name, help, labels)

    @fail_safe("metrics.call", return_no_op, CALLER_ERRORS)
    def gauge(
        self,
        name: str,
        help: str,  # noqa: A002 - Prometheus' word
        labels: Sequence[str] = (),
        *,
        mode: Literal["sum", "max", "min", "pid"] = "sum",
    ) -> Gauge:
        """Return the gauge of this name, as `counter` does.

        `mode` is what several worker processes show: `sum`, `max` or `min` of those that live, or `pid`, each with its
        pid as a label; the first call decides.
        """
        return self._catalogue.get(Gauge, name, help, labels, mode=mode)

    @fail_safe("metrics.call", return_no_op, CALLER_ERRORS)
    def histogram(
        self,
        name: str,
        help: str,  # noqa: A002 - Prometheus' word
        labels: Sequence[str] = (),
        buckets: Sequence[float] | None = None,
    ) -> Histogram:
        """Return the histogram of this name, as `counter` does; `buckets` are upper bounds, ascending."""
        return self._catalogue.get(Histogram, name, help, labels, buckets)

    @fail_safe("metrics.call", passes=CALLER_ERRORS)
    def record_http_request(  # noqa: PLR0913, PLR0917 - what a request is
        self,
        method: str,
        endpoint: str,
        status_code: int,
        duration: float,
        request_size: int | None = None,
        response_size: int | None = None,
    ) -> None:
        """Take the samples of a request that did not come through the door.

        `endpoint` is a route template, never a concrete path; `duration` is in seconds, sizes are in bytes.
        """
        method = known_method(method)
        self._requests.labels_or_raise(method, endpoint, status_label(status_code)).inc()
        self._duration.labels_or_raise(method, endpoint).observe(duration)
        if self._sizes and request_size is not None:
            self._request_size.labels_or_raise(method, endpoint).observe(request_size)
        if self._sizes and response_size is not None:
            self._response_size.labels_or_raise(method, endpoint).observe(response_size)

    @fail_safe("metrics.call", passes=CALLER_ERRORS)
    def record_database_query(self, operation: str, table: str, duration: float, error_type: str | None = None) -> None:
        """Take the samples of a query; `duration` is in seconds, `error_type` the class of what it raised."""
        self._operations.query(operation, table, duration, error_type)

    @fail_safe("metrics.call", passes=CALLER_ERRORS)
    def set_database_connections(
        self,
        *,
        pool: str = "default",
        active: float | None = None,
        idle: float | None = None,
        max: float | None = None,  # noqa: A002 - the metric's word
        waiting: float | None = None,
    ) -> None:
        """Set the state of a connection pool; what is None stays as it is."""
        values = {"active": active, "idle": idle, "max": max, "waiting": waiting}
        self._operations.set_connections(pool, values)

    def count_objectives(self, wanted: Sequence[ObjectiveSpec]) -> ObjectiveCounts:
        """Begin the series of objectives at 0 and return what counts for them; call it before the first request."""
        from fastapi_observe.metrics.objectives import ObjectiveCounts  # noqa: PLC0415 - only who promises something

        return ObjectiveCounts(self._requests, self._duration, self.sharing, wanted)

    def add_pool(self, name: str, read: Callable[[], PoolState]) -> Callable[[], None]:
        """Show a pool of connections, read at each scrape; call the result to show it no more."""
        return self._operations.add_pool(name, read)

    def record_connection_wait(self, pool: str, seconds: float) -> None:
        """Take the time until `pool` gave a connection, in seconds."""
        self._operations.record_wait(pool, seconds)

    def record_connection_event(self, pool: str, event: str) -> None:
        """Count what happened on a connection besides statements: `begin`, `commit`, `rollback` or `ping`."""
        self._operations.record_event(pool, event)

    @fail_safe("metrics.call")
    def update_system_metrics(self) -> None:
        """Take a reading of the system now; each scrape takes one by itself."""
        for reader in collectors_of(self.registry):
            if hasattr(reader, "update"):
                reader.update()

    def register_collector(self, collector: Any) -> None:
        """Show a collector that reads its values at scrape; one with `update` takes part in `update_system_metrics`."""
        self._catalogue.register(collector)

    def render(self, accept: str, accept_encoding: str) -> ScrapeResponse:
        """Return headers and body for `/metrics`; it takes milliseconds, so call it in a worker thread."""
        return self.scrapes(accept, accept_encoding)

    def _render(self, accept: str, accept_encoding: str) -> ScrapeResponse:
        registries = self.sharing.registries(openmetrics=prefers_openmetrics(accept))
        return render(registries, accept, accept_encoding, self._faults)

    def _forget_cells(self) -> None:
        """Look for cells anew: they stand elsewhere now."""
        self._http.clear()
        self._operations.reset_cells()
