"""Metrics of operations: queries, external calls, background tasks, user operations, and connection pools."""

from __future__ import annotations

from bisect import bisect_left
from functools import partial
from math import nan
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.metrics.series import Counter, Gauge, Histogram
from fastapi_observe.workers.files import OVERFLOW

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.metrics.catalogue import MetricFactory
    from fastapi_observe.records.operation import Operation
    from fastapi_observe.records.pool import PoolState

QUERY_BUCKETS: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Bucket bounds in seconds."""

MAX_CACHED_LABEL_SETS: Final = 1024
"""Label sets of one kind of operation whose cells are cached."""

OperationCells = tuple[list[float], list[float], list[float]]
"""Cells of a counter, cells of a histogram, bounds of that histogram."""


class OperationMetrics:
    """Records operations and connection pools. All label values are names from code; every family is limited."""

    def __init__(
        self, factory: MetricFactory, lock: AbstractContextManager[Any], internal_errors: InternalErrors
    ) -> None:
        self._lock = lock
        self._internal_errors = internal_errors
        self._create = factory.create_internal
        self._create_tasks_and_operations()
        self._create_database()
        self._create_pools()
        self._create_external()
        self._wait_cells: dict[str, tuple[list[float], list[float]]] = {}
        self._event_cells: dict[tuple[str, str], list[float]] = {}
        self._families: dict[str, tuple[Counter, Histogram]] = {
            "background": (self._tasks, self._task_duration),
            "operation": (self._operations, self._operation_duration),
            "database": (self._queries, self._query_duration),
            "external": (self._calls, self._call_duration),
        }
        self._cells: dict[str, dict[tuple[str, ...], OperationCells]] = {kind: {} for kind in self._families}

    def _create_tasks_and_operations(self) -> None:
        create = self._create
        labels = ("endpoint", "outcome")
        self._tasks = create(Counter, "background_tasks_total", "Background tasks ended.", labels)
        self._task_duration = create(
            Histogram, "background_task_duration_seconds", "Duration of background tasks, in seconds.", labels
        )
        self._operations = create(Counter, "operations_total", "Operations ended.", ("operation", "outcome"))
        self._operation_duration = create(
            Histogram, "operation_duration_seconds", "Duration of operations, in seconds.", ("operation",)
        )

    def _create_database(self) -> None:
        create = self._create
        labels = ("operation", "table")
        self._queries = create(Counter, "db_queries_total", "Database queries.", labels)
        self._query_duration = create(
            Histogram,
            "db_query_duration_seconds",
            "Duration of database queries, in seconds.",
            labels,
            buckets=QUERY_BUCKETS,
        )
        self._query_errors = create(
            Counter, "db_query_errors_total", "Database queries that failed.", (*labels, "error_type")
        )
        self.repeated = create(
            Counter,
            "db_repeated_queries_total",
            "Statements that one request executed more often than `repeated_query_threshold` (N+1).",
            ("endpoint",),
        )

    def _create_pools(self) -> None:
        create = self._create
        self._pool = {
            "active": create(Gauge, "db_connections_active", "Connections in use.", ("pool",)),
            "idle": create(Gauge, "db_connections_idle", "Idle connections in the pool.", ("pool",)),
            "max": create(Gauge, "db_connections_max", "Maximum number of connections.", ("pool",)),
            "overflow": create(Gauge, "db_connections_overflow", "Connections beyond the size of the pool.", ("pool",)),
            "waiting": create(Gauge, "db_connections_waiting", "Callers waiting for a connection.", ("pool",)),
        }
        self._wait = create(
            Histogram,
            "db_connection_wait_seconds",
            "Time until the pool hands out a connection, in seconds.",
            ("pool",),
            buckets=QUERY_BUCKETS,
        )
        self._events = create(
            Counter,
            "db_connection_events_total",
            "Events of connections other than statements: begin, commit, rollback, ping.",
            ("pool", "event"),
        )

    def _create_external(self) -> None:
        create = self._create
        labels = ("service", "operation")
        self._calls = create(Counter, "external_requests_total", "Calls to other services.", (*labels, "outcome"))
        self._call_duration = create(
            Histogram, "external_request_duration_seconds", "Duration of calls to other services, in seconds.", labels
        )

    def record_operation(self, operation: Operation) -> None:
        """Record an operation that has ended."""
        kind, labels, duration = operation.kind, operation.labels, operation.duration
        cached = self._cells.get(kind)
        if cached is None:  # a kind without metrics
            return
        key: tuple[str, ...]
        if kind == "database":
            key = labels["operation"], labels["table"]
            if operation.error_type is not None:
                self._query_errors.labels_or_raise(*key, operation.error_type).inc()
        else:
            key = (*labels.values(), operation.outcome)
        count, cells, bounds = cached.get(key) or self._find_cells(operation, key)
        cell = bisect_left(bounds, duration)
        with self._lock:
            count[0] += 1
            cells[cell] += 1
            cells[-1] += duration

    def record_query(self, operation: str, table: str, duration: float, error_type: str | None = None) -> None:
        """Record a query; `duration` is in seconds."""
        self._queries.labels_or_raise(operation, table).inc()
        self._query_duration.labels_or_raise(operation, table).observe(duration)
        if error_type is not None:
            self._query_errors.labels_or_raise(operation, table, error_type).inc()

    def _find_cells(self, operation: Operation, key: tuple[str, ...]) -> OperationCells:
        """Return the cells of operations with these labels and this outcome.

        Cells of the overflow series are not cached: there may be room for the label set later.
        """
        counter, histogram = self._families[operation.kind]
        values = {**operation.labels, "outcome": operation.outcome}
        count = counter.labels_or_raise(*(values[name] for name in counter.label_names()))
        duration = histogram.labels_or_raise(*(values[name] for name in histogram.label_names()))
        cells = count.cells, duration.cells, duration.bounds()
        is_overflow = OVERFLOW in count.label_values() or OVERFLOW in duration.label_values()
        if not is_overflow and len(self._cells[operation.kind]) < MAX_CACHED_LABEL_SETS:
            self._cells[operation.kind][key] = cells
        return cells

    def reset_cells(self) -> None:
        """Empty the caches of cells, after the cells of series have been replaced."""
        self._wait_cells.clear()
        self._event_cells.clear()
        for cached in self._cells.values():
            cached.clear()

    # Pools

    def add_pool(self, name: str, read: Callable[[], PoolState]) -> Callable[[], None]:
        """Call `read` at each scrape for the state of the pool `name`. Returns a function that reverts this."""
        state = read()
        gauges = [(field, self._pool[field]) for field in state._fields if getattr(state, field) is not None]
        for field, gauge in gauges:
            gauge.labels_or_raise(name).set_function(partial(self._read_pool, read, field))

        def undo() -> None:
            while gauges:
                gauges.pop()[1].remove(name)

        return undo

    def _read_pool(self, read: Callable[[], PoolState], field: str) -> float:
        """Return one value of a pool, or NaN (Prometheus' unknown value) if it cannot be read."""
        try:
            return float(getattr(read(), field))
        except Exception as exc:  # noqa: BLE001 - a closed pool must not break the scrape
            self._internal_errors("pool", exc)
            return nan

    def set_connections(self, pool: str, values: dict[str, float | None]) -> None:
        """Set the state of a pool. Values that are None are left unchanged."""
        for name, value in values.items():
            if value is not None:
                self._pool[name].labels_or_raise(pool).set(value)

    def record_connection_wait(self, pool: str, seconds: float) -> None:
        """Record the time until the pool handed out a connection, in seconds."""
        cached = self._wait_cells.get(pool)
        if cached is None:
            child = self._wait.labels_or_raise(pool)
            cached = child.cells, child.bounds()
            if len(self._wait_cells) < MAX_CACHED_LABEL_SETS:
                self._wait_cells[pool] = cached
        cells, bounds = cached
        cell = bisect_left(bounds, seconds)
        with self._lock:
            cells[cell] += 1
            cells[-1] += seconds

    def record_connection_event(self, pool: str, event: str) -> None:
        """Count an event of a connection: `begin`, `commit`, `timeout` and others."""
        cells = self._event_cells.get((pool, event))
        if cells is None:
            cells = self._events.labels_or_raise(pool, event).cells
            if len(self._event_cells) < MAX_CACHED_LABEL_SETS:
                self._event_cells[pool, event] = cells
        with self._lock:
            cells[0] += 1
