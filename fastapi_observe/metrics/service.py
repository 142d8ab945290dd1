"""`MetricsService`: the metrics signal, which counts requests and jobs, and the metrics API for users."""

from __future__ import annotations

import logging
from bisect import bisect_left
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Literal

from prometheus_client import REGISTRY, CollectorRegistry

from fastapi_observe.formats.metric_names import (
    SEMCONV_LABELS,
    choose_metric_names,
    semconv_labels,
    semconv_route,
)
from fastapi_observe.metrics.budget import LimitsCollector, SeriesLimiter
from fastapi_observe.metrics.catalogue import BusinessMetrics, MetricFactory
from fastapi_observe.metrics.closures import make_info
from fastapi_observe.metrics.exposition import HiddenFamilyWarning, InternalCollector, prefers_openmetrics, render
from fastapi_observe.metrics.operations import OperationMetrics
from fastapi_observe.metrics.scrapes import ScrapeRenderer
from fastapi_observe.metrics.series import Counter, Gauge, Histogram, to_label_value
from fastapi_observe.metrics.shared.collectors import LabeledCollector, collectors_of
from fastapi_observe.metrics.shared.sharing import MetricSharing
from fastapi_observe.records.exceptions import status_label
from fastapi_observe.records.guard import CALLER_ERRORS, fail_safe, return_no_op
from fastapi_observe.records.request import known_method
from fastapi_observe.records.signal import no_op
from fastapi_observe.settings.objectives import find_thresholds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.metrics.exposition import ScrapeResponse
    from fastapi_observe.metrics.objectives import ObjectiveCounts, ObjectiveSpec
    from fastapi_observe.metrics.users_metrics import UsersMetric
    from fastapi_observe.records.job import JobRecord
    from fastapi_observe.records.operation import Operation
    from fastapi_observe.records.request import RequestRecord
    from fastapi_observe.records.websocket import WebSocketRecord
    from fastapi_observe.settings.model import ObserveSettings

SIZE_BUCKETS: Final = tuple(100.0 * 10**power for power in range(8))
"""Bucket bounds in bytes."""

_INTEGER_SIZES: Final = tuple(map(int, SIZE_BUCKETS))
"""The same bounds for sizes, which are compared with integers in half the time."""

_SIZE_SUM: Final = len(SIZE_BUCKETS) + 1
"""Cell of the sum, after that of the last bucket, which has no bound."""

JOB_BUCKETS: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)
"""Bucket bounds in seconds."""

CONNECTION_BUCKETS: Final = (0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
"""Bucket bounds in seconds."""


class HttpSeries:
    """The cells and exemplars that requests with one method, endpoint and status code write.

    `count` is None where the histogram of durations counts the requests: the cell is then written and never read.
    """

    __slots__ = ("count", "count_exemplars", "duration", "duration_exemplars", "request_size", "response_size")

    def __init__(self, count: Counter | None, duration: Histogram, sizes: tuple[Histogram, Histogram] | None) -> None:
        self.count = [0.0] if count is None else count.cells
        self.count_exemplars = {} if count is None else count.exemplars
        self.duration = duration.cells
        self.duration_exemplars = duration.exemplars
        self.request_size: list[float] = sizes[0].cells if sizes else []
        self.response_size: list[float] = sizes[1].cells if sizes else []


class MetricsService:
    """Records the metrics of one install and renders them. `business` has counters that many apps need.

    `registry` is `settings.registry`, or a new one. All labels are limited: `endpoint` is a route template, `method` a
    known one or `_OTHER`, `status_code` is 100 to 599 or `_other`; every other label has at most
    `settings.max_values_per_label` values, and each metric at most `settings.max_series_per_metric` label sets.
    `redact` removes secrets from a label value that a warning quotes.
    """

    def __init__(
        self, settings: ObserveSettings, internal_errors: InternalErrors, redact: Callable[[str], str] = str
    ) -> None:
        self.registry: CollectorRegistry = CollectorRegistry() if settings.registry is None else settings.registry
        self._registry_is_users = settings.registry is not None
        include_default = settings.include_default_registry and self.registry is not REGISTRY
        self._internal_errors = internal_errors
        self._limiter = SeriesLimiter(
            settings.max_series_per_metric,
            settings.max_series_per_process,
            settings.max_values_per_label,
            redact,
            settings.constant_labels,
        )
        self._factory = MetricFactory(self.registry, self._limiter)
        self.business = BusinessMetrics(self._factory)
        self._exemplars = settings.exemplars
        self._repeat_limit = settings.repeated_query_threshold
        self._sizes = settings.size_histograms
        # The instrumentator's factories return None for a metric that already exists.
        self._functions = tuple(each for each in settings.instrumentator_functions if each is not None)
        self._lock = self._limiter.lock
        self._jobs: tuple[Counter, Histogram] | None = None
        self._jobs_taken = False
        self._jobs_lock = Lock()
        self._request_labels = settings.metric_labels
        self._names = choose_metric_names(settings)
        self._http: dict[tuple[str, str, int], HttpSeries] = {}
        # With metric_labels, and with semantic conventions, the dict above stays empty: other requests need no check.
        self._http_labeled: dict[tuple[Any, ...], HttpSeries] = {}
        self.scrapes = ScrapeRenderer(self._render)
        self._warn_hidden = HiddenFamilyWarning()
        self._registries = (self.registry, REGISTRY) if include_default else (self.registry,)
        self.sharing = MetricSharing(
            self._registries, self._factory, internal_errors, self._reset_cells, self.scrapes.after_fork
        )
        try:
            self._create_http(settings.duration_buckets, find_thresholds(settings.slos))
            self._create_websocket()
            self.operations = OperationMetrics(self._factory, self._lock, internal_errors)
            self.register_collector(InternalCollector(self._limiter, internal_errors))
            self.register_collector(LimitsCollector(self._limiter))
            self.register_collector(self.sharing.workers_collector)
        except ValueError:  # a name is taken: leave the user's registry as it was
            self.close()
            raise

    def _create_http(self, buckets: tuple[float, ...], thresholds: Iterable[float]) -> None:
        create = self._factory.create_internal
        fields = self._request_labels
        route = ("method", "endpoint", *fields)
        names = self._names
        self._requests: Counter | None = None
        self._errors: Counter | None = None
        if names.has_counter:
            self._requests = create(
                Counter, names.requests, "HTTP requests.", ("method", "endpoint", "status_code", *fields)
            )
            self._errors = create(
                Counter, names.errors, "HTTP requests that failed.", ("method", "endpoint", "error_type", *fields)
            )
        of_duration = route if names.has_counter else (*SEMCONV_LABELS, *fields)
        self._duration = create(
            Histogram,
            names.duration,
            "Time from the first byte of the request to the last byte of the response, in seconds.",
            of_duration,
            buckets=sorted({*buckets, *thresholds}),
        )
        self._bounds = self._duration.bounds()
        if self._sizes:
            self._request_size = create(
                Histogram, names.request_size, "Request body size, in bytes.", of_duration, buckets=SIZE_BUCKETS
            )
            self._response_size = create(
                Histogram, names.response_size, "Response body size, in bytes.", of_duration, buckets=SIZE_BUCKETS
            )
        self._active = create(Gauge, names.in_progress, "HTTP requests without a complete response.")
        self._blocked = create(
            Counter,
            "event_loop_blocked_seconds_total",
            "Time that code without await blocked the event loop for longer than blocked_loop_threshold, in seconds.",
            ("endpoint",),
        )
        self._ttfb = create(
            Histogram,
            "http_time_to_first_byte_seconds",
            "Time to the first body byte of streamed responses, in seconds.",
            route,
            buckets=buckets,
        )
        self._validation = create(
            Counter,
            "request_validation_errors_total",
            "Fields rejected by request validation (422).",
            ("endpoint", "field", "error_type"),
        )

    def _create_websocket(self) -> None:
        create = self._factory.create_internal
        self._connections = create(Gauge, "websocket_connections_active", "Open WebSocket connections.", ("endpoint",))
        self._messages = create(
            Counter, "websocket_messages_total", "WebSocket messages received and sent.", ("endpoint", "direction")
        )
        self._connection_duration = create(
            Histogram,
            "websocket_connection_duration_seconds",
            "Time from the handshake to the close of a connection, in seconds.",
            ("endpoint", "close_code"),
            buckets=CONNECTION_BUCKETS,
        )

    def _job_metrics(self) -> tuple[Counter, Histogram] | None:
        """Return the metrics of jobs, made for the first one: an app without jobs may have a `jobs_total` of its own.

        If it has one and jobs too, the jobs are not counted, and a warning says so.
        """
        with self._jobs_lock:
            if self._jobs is None and not self._jobs_taken:
                create = self._factory.create_internal
                try:
                    self._jobs = (
                        create(Counter, "jobs_total", "Jobs that have ended.", ("job", "outcome")),
                        create(
                            Histogram,
                            "job_duration_seconds",
                            "Duration of jobs, in seconds.",
                            ("job",),
                            buckets=JOB_BUCKETS,
                        ),
                    )
                except ValueError as exc:
                    self._jobs_taken = True
                    logging.getLogger("fastapi_observe").warning(
                        "Jobs (observe.job) are not counted, because another metric has the name: %s. Rename it.", exc
                    )
            return self._jobs

    # The signal

    def on_request_start(self, record: RequestRecord) -> None:
        """Count a request as in progress."""
        if not record.websocket:
            with self._lock:
                self._active.cells[0] += 1

    def on_request_end(self, record: RequestRecord) -> None:
        """Record a request or a WebSocket connection."""
        if record.websocket:
            self._record_websocket_end(record)  # type: ignore[arg-type]  # true of WebSocketRecord only
            return
        try:
            series = self._http.get((record.method, record.endpoint, record.status_code)) or self._find_series(record)
        except Exception:
            with self._lock:
                self._active.cells[0] -= 1
            raise
        duration = record.duration
        cell = bisect_left(self._bounds, duration)
        received, sent = record.request_size, record.response_size
        with self._lock:
            self._active.cells[0] -= 1
            series.count[0] += 1
            cells = series.duration
            cells[cell] += 1
            cells[len(self._bounds)] += duration
            if self._sizes:
                cells = series.request_size
                if received:
                    cells[bisect_left(_INTEGER_SIZES, received)] += 1
                    cells[_SIZE_SUM] += received
                else:
                    cells[0] += 1
                cells = series.response_size
                cells[bisect_left(_INTEGER_SIZES, sent)] += 1
                cells[_SIZE_SUM] += sent
        if record.sampled and self._exemplars:
            ids = {"trace_id": record.trace_id, "span_id": record.span_id}
            ended = record.started_ns / 1e9 + duration
            series.count_exemplars[0] = (ids, 1.0, ended)
            series.duration_exemplars[cell] = (ids, duration, ended)
        if (
            record.error_type is not None
            or record.ttfb is not None
            or record.validation_errors
            or record.work is not None
        ):
            self._record_optional(record)
        if self._functions:
            self._call_functions(record)

    def _find_series(self, record: RequestRecord) -> HttpSeries:
        if self._request_labels or not self._names.has_counter:
            return self._find_labeled_series(record)
        key = (record.method, record.endpoint, record.status_code)
        series = self._create_series(*key)
        if len(self._http) < self._limiter.per_metric:
            self._http[key] = series
        return series

    def _find_labeled_series(self, record: RequestRecord) -> HttpSeries:
        """Return the series of a request that has further labels. One that a limit has replaced is not cached."""
        values = self._label_values(record)
        if not self._names.has_counter:
            values = (*semconv_labels(record), *values)
        key = (record.method, record.endpoint, record.status_code, *values)
        series = self._http_labeled.get(key)
        if series is None:
            overflows = sum(self._limiter.overflows.values())
            series = self._create_series(record.method, record.endpoint, record.status_code, values)
            is_own = sum(self._limiter.overflows.values()) == overflows
            if is_own and len(self._http_labeled) < self._limiter.per_metric:
                self._http_labeled[key] = series
        return series

    def _label_values(self, record: RequestRecord) -> tuple[str, ...]:
        """Return the values of `metric_labels`; empty where the request has not set the field."""
        if not self._request_labels:
            return ()
        fields = {} if record.current.fields is None else record.current.fields.fields
        return tuple([to_label_value(fields.get(name, "")) for name in self._request_labels])

    def _create_series(self, method: str, endpoint: str, status_code: int, values: tuple[str, ...] = ()) -> HttpSeries:
        labels, count = (method, endpoint, *values), None
        if self._requests is None:
            labels = (method, semconv_route(endpoint), status_label(status_code), *values)
        else:
            count = self._requests.labels_or_raise(method, endpoint, status_label(status_code), *values)
        sizes = None
        if self._sizes:
            sizes = self._request_size.labels_or_raise(*labels), self._response_size.labels_or_raise(*labels)
        return HttpSeries(count, self._duration.labels_or_raise(*labels), sizes)

    def _record_optional(self, record: RequestRecord) -> None:
        if record.error_type is not None and self._errors is not None:
            values = self._label_values(record)
            self._errors.labels_or_raise(record.method, record.endpoint, record.error_type, *values).inc()
        if record.ttfb is not None:
            self._ttfb.labels_or_raise(record.method, record.endpoint, *self._label_values(record)).observe(record.ttfb)
        for field, error_type in record.validation_errors or ():
            self._validation.labels_or_raise(record.endpoint, field, error_type).inc()
        if record.work is not None:
            for _ in record.work.repeated(self._repeat_limit):
                self.operations.repeated.labels_or_raise(record.endpoint).inc()

    def on_response_start(self, record: RequestRecord) -> None:
        """Count an accepted WebSocket connection. Does nothing for an HTTP response."""
        if record.websocket:
            self.accept_websocket(record)  # type: ignore[arg-type]  # true of WebSocketRecord only

    def accept_websocket(self, record: WebSocketRecord) -> None:
        """Count a connection as open, and its messages from now on."""
        received = self._messages.labels_or_raise(record.endpoint, "received").inc
        sent = self._messages.labels_or_raise(record.endpoint, "sent").inc
        self._connections.labels_or_raise(record.endpoint).inc()
        record.count_received, record.count_sent = received, sent

    def _record_websocket_end(self, record: WebSocketRecord) -> None:
        # A connection that was never accepted was not counted as open.
        if record.count_received is not None:
            record.count_received = record.count_sent = None
            self._connections.labels_or_raise(record.endpoint).dec()
        self._connection_duration.labels_or_raise(record.endpoint, record.close_code).observe(record.duration)

    @no_op
    def on_job_start(self, record: JobRecord) -> None:
        """Do nothing; a job is recorded when it ends."""

    def on_job_end(self, record: JobRecord) -> None:
        """Record a job."""
        metrics = self._job_metrics()
        if metrics is not None:
            sampled = self._exemplars and record.sampled
            exemplar = {"trace_id": record.trace_id, "span_id": record.span_id} if sampled else None
            metrics[0].labels_or_raise(record.endpoint, record.outcome).inc()
            metrics[1].labels_or_raise(record.endpoint).observe(record.duration, exemplar)
        if record.work is not None:
            for _ in record.work.repeated(self._repeat_limit):
                self.operations.repeated.labels_or_raise(record.endpoint).inc()

    @no_op
    def on_operation_start(self, operation: Operation) -> None:
        """Do nothing; an operation is recorded when it ends."""

    def on_operation_end(self, operation: Operation) -> None:
        """Record an operation."""
        self.operations.record_operation(operation)

    def close(self) -> None:
        """Unregister all metrics from a registry passed by the user. An own registry stays readable."""
        while self._registry_is_users and self._factory.registered:
            self.registry.unregister(self._factory.registered.pop())

    def _call_functions(self, record: RequestRecord) -> None:
        info = make_info(record)
        for function in self._functions:
            try:
                function(info)
            except Exception as exc:  # noqa: BLE001 - a function of the user
                self._internal_errors("instrumentation", exc)

    # For users

    def record_blocked_loop(self, endpoint: str, seconds: float) -> None:
        """Count the time that a request of `endpoint` blocked the event loop."""
        self._blocked.labels(endpoint).inc(seconds)

    @property
    def requests_in_progress(self) -> int:
        """HTTP requests of this process without a complete response."""
        return int(self._active.cells[0])

    @property
    def open_websockets(self) -> int:
        """Open WebSocket connections of this process."""
        return sum(int(series.cells[0]) for series in [*self._connections.children().values()])

    @fail_safe("metrics.call", return_no_op, CALLER_ERRORS)
    def counter(self, name: str, help: str, labels: Sequence[str] = ()) -> Counter:  # noqa: A002 - Prometheus' word
        """Return the counter of this name, which is created by the first call.

        Raises ValueError if the name is invalid or reserved, and if it exists with another type or other labels.
        """
        return self._factory.get(Counter, name, help, labels)

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

        `mode` is how the values of several worker processes are merged: `sum`, `max` or `min` of the live ones, or
        `pid`: each worker's own value, labeled with its process id. The first call decides.
        """
        return self._factory.get(Gauge, name, help, labels, mode=mode)

    @fail_safe("metrics.call", return_no_op, CALLER_ERRORS)
    def histogram(
        self,
        name: str,
        help: str,  # noqa: A002 - Prometheus' word
        labels: Sequence[str] = (),
        buckets: Sequence[float] | None = None,
    ) -> Histogram:
        """Return the histogram of this name, as `counter` does. `buckets` are upper bounds, ascending."""
        return self._factory.get(Histogram, name, help, labels, buckets)

    @fail_safe("metrics.call", reraise=CALLER_ERRORS)
    def record_http_request(  # noqa: PLR0913, PLR0917 - the facts of a request
        self,
        method: str,
        endpoint: str,
        status_code: int,
        duration: float,
        request_size: int | None = None,
        response_size: int | None = None,
    ) -> None:
        """Record a request that the middleware did not see.

        `endpoint` is a route template, never a concrete path. `duration` is in seconds, sizes are in bytes.
        """
        method = known_method(method)
        unset = ("",) * len(self._request_labels)
        labels = (method, endpoint, *unset)
        if self._requests is None:
            error_type = status_label(status_code) if status_code >= 500 else ""  # noqa: PLR2004 - 5xx
            labels = (method, semconv_route(endpoint), status_label(status_code), "", "", error_type, *unset)
        else:
            self._requests.labels_or_raise(method, endpoint, status_label(status_code), *unset).inc()
        self._duration.labels_or_raise(*labels).observe(duration)
        if self._sizes and request_size is not None:
            self._request_size.labels_or_raise(*labels).observe(request_size)
        if self._sizes and response_size is not None:
            self._response_size.labels_or_raise(*labels).observe(response_size)

    @fail_safe("metrics.call", reraise=CALLER_ERRORS)
    def record_database_query(self, operation: str, table: str, duration: float, error_type: str | None = None) -> None:
        """Record a query. `duration` is in seconds, `error_type` the class of the exception it raised."""
        self.operations.record_query(operation, table, duration, error_type)

    @fail_safe("metrics.call", reraise=CALLER_ERRORS)
    def set_database_connections(
        self,
        *,
        pool: str = "default",
        active: float | None = None,
        idle: float | None = None,
        max: float | None = None,  # noqa: A002 - as in the metric
        waiting: float | None = None,
    ) -> None:
        """Set the state of a connection pool. Values that are None are left unchanged."""
        values = {"active": active, "idle": idle, "max": max, "waiting": waiting}
        self.operations.set_connections(pool, values)

    def users_metrics(self) -> list[UsersMetric]:
        """Return the metrics of the registries that are not of this package: of `counter`, `gauge`, `histogram`, plain.

        Without those whose name this package has too.
        """
        from fastapi_observe.metrics.users_metrics import list_users_metrics  # noqa: PLC0415 - for commands

        found = list_users_metrics(self._registries, self._factory.is_internal)
        return [metric for metric in found if not self.is_reserved(metric.name)]

    def is_reserved(self, name: str) -> bool:
        """Return whether a name of a metric belongs to this package."""
        return self._factory.is_reserved(name)

    def count_objectives(self, specs: Sequence[ObjectiveSpec]) -> ObjectiveCounts:
        """Start the series of objectives at 0 and return their counts. Call it before the first request."""
        from fastapi_observe.metrics.objectives import ObjectiveCounts  # noqa: PLC0415 - only apps with objectives

        return ObjectiveCounts(self._requests, self._duration, self.sharing, specs)

    @fail_safe("metrics.call")
    def update_system_metrics(self) -> None:
        """Read the system now, so that CPU usage is measured from here to the next scrape. A scrape reads it anyway."""
        for collector in collectors_of(self.registry):
            if hasattr(collector, "update"):
                collector.update()

    def register_collector(self, collector: Any) -> None:
        """Add a collector. If it has `update`, `update_system_metrics` calls that."""
        constant = self._limiter.constant_labels
        self._factory.register(LabeledCollector(collector, constant) if constant else collector)

    def render(self, accept: str, accept_encoding: str) -> ScrapeResponse:
        """Return headers and body of a scrape response. Blocks for milliseconds, so call it in a worker thread."""
        return self.scrapes(accept, accept_encoding)

    def _render(self, accept: str, accept_encoding: str) -> ScrapeResponse:
        registries = self.sharing.registries(openmetrics=prefers_openmetrics(accept))
        return render(registries, accept, accept_encoding, self._internal_errors, self._warn_hidden)

    def _reset_cells(self) -> None:
        """Empty the caches of cells, after the cells of series have been replaced."""
        self._http.clear()
        self._http_labeled.clear()
        self.operations.reset_cells()
