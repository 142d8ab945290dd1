"""What the metrics signal counts of operations: queries, calls, background tasks, the user's own work, and pools."""

from __future__ import annotations

from bisect import bisect_left
from functools import partial
from math import nan
from typing import TYPE_CHECKING, Any, Final

from fastapi_observe.metrics.budget import OVERFLOW
from fastapi_observe.metrics.series import Counter, Gauge, Histogram

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
"""Label sets whose series are found without asking prometheus_client."""

Cells = tuple[list[float], list[float], list[float]]
"""Cells of a counter, cells of a histogram, the histogram's bounds."""


class OperationMetrics:
    """The families about operations; all labels are names that the code gives, each family is bounded."""

    def __init__(self, catalogue: MetricFactory, lock: AbstractContextManager[Any], faults: InternalErrors) -> None:
        self._lock = lock
        self._faults = faults
        self._own = catalogue.create_internal
        self._make_work()
        self._make_database()
        self._make_pools()
        self._make_external()
        self._waits: dict[str, tuple[list[float], list[float]]] = {}
        self._event_cells: dict[tuple[str, str], list[float]] = {}
        self._families: dict[str, tuple[Counter, Histogram]] = {
            "background": (self._tasks, self._task_duration),
            "operation": (self._operations, self._operation_duration),
            "database": (self._queries, self._query_duration),
            "external": (self._calls, self._call_duration),
        }
        self._kept: dict[str, dict[tuple[str, ...], Cells]] = {kind: {} for kind in self._families}

    def _make_work(self) -> None:
        own = self._own
        labels = ("endpoint", "outcome")
        self._tasks = own(Counter, "background_tasks_total", "Background tasks that have ended.", labels)
        self._task_duration = own(
            Histogram, "background_task_duration_seconds", "Time of background tasks, in seconds.", labels
        )
        self._operations = own(Counter, "operations_total", "Pieces of work that have ended.", ("operation", "outcome"))
        self._operation_duration = own(
            Histogram, "operation_duration_seconds", "Time of pieces of work, in seconds.", ("operation",)
        )

    def _make_database(self) -> None:
        own = self._own
        labels = ("operation", "table")
        self._queries = own(Counter, "db_queries_total", "Database queries.", labels)
        self._query_duration = own(
            Histogram, "db_query_duration_seconds", "Time of queries, in seconds.", labels, buckets=QUERY_BUCKETS
        )
        self._query_errors = own(
            Counter, "db_query_errors_total", "Database queries that failed.", (*labels, "error_type")
        )
        self.repeated = own(
            Counter,
            "db_repeated_queries_total",
            "Statements that one request sent more often than `repeated_query_threshold` (N+1).",
            ("endpoint",),
        )

    def _make_pools(self) -> None:
        own = self._own
        self._pool = {
            "active": own(Gauge, "db_connections_active", "Connections in use.", ("pool",)),
            "idle": own(Gauge, "db_connections_idle", "Connections that wait in the pool.", ("pool",)),
            "max": own(Gauge, "db_connections_max", "Most connections there may be.", ("pool",)),
            "overflow": own(Gauge, "db_connections_overflow", "Connections beyond the pool's own size.", ("pool",)),
            "waiting": own(Gauge, "db_connections_waiting", "Callers that wait for a connection.", ("pool",)),
        }
        self._wait = own(
            Histogram,
            "db_connection_wait_seconds",
            "Time until the pool gave a connection, in seconds.",
            ("pool",),
            buckets=QUERY_BUCKETS,
        )
        self._events = own(
            Counter,
            "db_connection_events_total",
            "What happened on connections besides statements: begin, commit, rollback, ping.",
            ("pool", "event"),
        )

    def _make_external(self) -> None:
        own = self._own
        labels = ("service", "operation")
        self._calls = own(Counter, "external_requests_total", "Calls to other services.", (*labels, "outcome"))
        self._call_duration = own(
            Histogram, "external_request_duration_seconds", "Time of calls to other services, in seconds.", labels
        )

    def close(self, op: Operation) -> None:
        """Take the samples of an operation that has ended."""
        kind, labels, duration = op.kind, op.labels, op.duration
        kept = self._kept.get(kind)
        if kept is None:  # kinds of others are no metrics of ours
            return
        key: tuple[str, ...]
        if kind == "database":
            key = labels["operation"], labels["table"]
            if op.error_type is not None:
                self._query_errors.labels_or_raise(*key, op.error_type).inc()
        else:
            key = (*labels.values(), op.outcome)
        count, cells, bounds = kept.get(key) or self._keep(op, key)
        cell = bisect_left(bounds, duration)
        with self._lock:
            count[0] += 1
            cells[cell] += 1
            cells[-1] += duration

    def query(self, operation: str, table: str, duration: float, error_type: str | None = None) -> None:
        """Take the samples of a query; `duration` is in seconds."""
        self._queries.labels_or_raise(operation, table).inc()
        self._query_duration.labels_or_raise(operation, table).observe(duration)
        if error_type is not None:
            self._query_errors.labels_or_raise(operation, table, error_type).inc()

    def _keep(self, op: Operation, key: tuple[str, ...]) -> Cells:
        """Find the cells that operations with these labels and this outcome write."""
        counter, histogram = self._families[op.kind]
        values = {**op.labels, "outcome": op.outcome}
        child = counter.labels_or_raise(*(values[name] for name in counter.label_names()))
        spread = histogram.labels_or_raise(*(values[name] for name in histogram.label_names()))
        cells = child.cells, spread.cells, spread.bounds()
        refused = OVERFLOW in child.label_values() or OVERFLOW in spread.label_values()
        if not refused and len(self._kept[op.kind]) < MAX_CACHED_LABEL_SETS:
            self._kept[op.kind][key] = cells
        return cells

    def reset_cells(self) -> None:
        """Look for cells anew: they stand elsewhere now."""
        self._waits.clear()
        self._event_cells.clear()
        for kept in self._kept.values():
            kept.clear()

    # Pools

    def add_pool(self, name: str, read: Callable[[], PoolState]) -> Callable[[], None]:
        """Ask `read` at each scrape for what the pool `name` tells; the result takes the pool away again."""
        state = read()
        told = [(fact, self._pool[fact]) for fact in state._fields if getattr(state, fact) is not None]
        for fact, gauge in told:
            gauge.labels_or_raise(name).set_function(partial(self._read, read, fact))

        def remove() -> None:
            while told:
                told.pop()[1].remove(name)

        return remove

    def _read(self, read: Callable[[], PoolState], fact: str) -> float:
        """Return what a pool tells; NaN, as Prometheus writes what is not known, where it cannot."""
        try:
            return float(getattr(read(), fact))
        except Exception as exc:  # noqa: BLE001 - a pool that was closed must not spoil the scrape
            self._faults("pool", exc)
            return nan

    def set_connections(self, pool: str, values: dict[str, float | None]) -> None:
        """Set what a pool told; what is None stays as it is."""
        for name, value in values.items():
            if value is not None:
                self._pool[name].labels_or_raise(pool).set(value)

    def record_wait(self, pool: str, seconds: float) -> None:
        """Take the time until the pool gave a connection."""
        kept = self._waits.get(pool)
        if kept is None:
            child = self._wait.labels_or_raise(pool)
            kept = child.cells, child.bounds()
            if len(self._waits) < MAX_CACHED_LABEL_SETS:
                self._waits[pool] = kept
        cells, bounds = kept
        cell = bisect_left(bounds, seconds)
        with self._lock:
            cells[cell] += 1
            cells[-1] += seconds

    def record_event(self, pool: str, event: str) -> None:
        """Count what happened on a connection."""
        cells = self._event_cells.get((pool, event))
        if cells is None:
            cells = self._events.labels_or_raise(pool, event).cells
            if len(self._event_cells) < MAX_CACHED_LABEL_SETS:
                self._event_cells[pool, event] = cells
        with self._lock:
            cells[0] += 1
