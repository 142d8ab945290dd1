"""`PrometheusClientCells`: keeps the values of prometheus_client's own metrics where all workers can read them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, WeakValueDictionary

from prometheus_client import Gauge

from fastapi_observe.internal import json
from fastapi_observe.internal.prometheus_client import (
    VALUE_METRICS,
    MetricHeader,
    can_replace_values,
    find_collector,
    gauge_values,
    get_value_class,
    label_pairs,
    list_collectors,
    metric_children,
    metric_header,
    read_without_lock,
    set_value_class,
    update_from_functions,
    value_slots,
)
from fastapi_observe.metrics.series import BoundedMetric
from fastapi_observe.metrics.shared.samples import describe_samples, encode_sample
from fastapi_observe.workers.worker import CellExemplar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client import CollectorRegistry
    from prometheus_client.samples import Exemplar as ClientExemplar

    from fastapi_observe.workers.worker import Worker


def is_prometheus_client_metric(collector: object) -> bool:
    """Return whether a collector is one of prometheus_client's own metrics with values."""
    return isinstance(collector, VALUE_METRICS) and not isinstance(collector, BoundedMetric)


class CellValue:
    """A value of a metric, with the interface of prometheus_client's `MutexValue`, whose cells may be in a file.

    `description` and `labels` are those for `Worker.allocate`. The second cell is the time when it was set, as
    `multiprocess_mode="mostrecent"` needs it; 0 if it never was.
    """

    __slots__ = ("__weakref__", "_exemplar", "_hidden", "_lock", "cells", "description", "gauge", "labels")

    def __init__(
        self, lock: threading.Lock, description: bytes, labels: tuple[str, ...], timestamp: float, *, gauge: bool
    ) -> None:
        self._lock = lock
        self.description = description
        self.labels = labels
        self.gauge = gauge
        self.cells: list[float] = [0.0, timestamp]
        self._exemplar: ClientExemplar | None = None
        self._hidden = 0.0

    def inc(self, amount: float) -> None:
        """Add `amount`."""
        with self._lock:
            self.cells[0] += amount

    def set(self, value: float, timestamp: float | None = None) -> None:
        """Set the value."""
        with self._lock:
            self.cells[0] = value
            self.cells[1] = timestamp or 1.0

    def get(self) -> float:
        """Return the value in this process."""
        return self.cells[0]

    def expose(self, exposed: bool) -> None:  # noqa: FBT001 - it sets one state
        """Expose the value, or no longer. Requires the lock."""
        if not exposed and self.cells[1]:
            self._hidden, self.cells[1] = self.cells[1], 0.0
        elif exposed and self._hidden:
            self._hidden, self.cells[1] = 0.0, self.cells[1] or self._hidden

    def detach(self) -> None:
        """Leave the cells to another value. Requires the lock."""
        self.cells = [*self.cells]

    def __del__(self) -> None:
        # A gauge that was removed is no longer exposed. Everything else stays in the total.
        if self.gauge:
            self.cells[1] = 0.0

    def set_exemplar(self, exemplar: ClientExemplar) -> None:
        """Set the exemplar."""
        self._exemplar = exemplar

    def get_exemplar(self) -> ClientExemplar | None:
        """Return the exemplar."""
        return self._exemplar

    def use_lock(self, lock: threading.Lock) -> None:
        """Use another lock, in the child of a fork."""
        self._lock = lock


class PrometheusClientCells:
    """Shares the values of registries with the other workers, until the last install that exposes them is closed.

    prometheus_client makes each value with `values.ValueClass`, which is replaced meanwhile. A metric without labels
    has its values before it is registered, so `registry.register` is wrapped too.
    """

    def __init__(self, worker: Worker) -> None:
        self.values: WeakSet[CellValue] = WeakSet()
        self._gauges: WeakValueDictionary[tuple[bytes, tuple[str, ...]], CellValue] = WeakValueDictionary()
        self.local_only: list[CellValue] = []
        self._worker = worker
        self._lock = threading.Lock()
        self._owners: dict[CollectorRegistry, str] = {}
        self._use_counts: dict[CollectorRegistry, int] = {}
        self._original: Callable[..., Any] = get_value_class()
        self._descriptions: dict[tuple[str, str], bytes] = {}

    def open(self, registry: CollectorRegistry, owner: str, values_at_fork: dict[int, float]) -> None:
        """Share the values of a registry. `values_at_fork` are subtracted: they were counted by the parent."""
        if not can_replace_values():
            return
        self._use_counts[registry] = self._use_counts.get(registry, 0) + 1
        if self._use_counts[registry] > 1:
            return
        if not self._owners:
            self._original = get_value_class()
            set_value_class(self._make)
        self._owners[registry] = owner
        original = registry.register

        def register(collector: Any) -> None:
            original(collector)
            if is_prometheus_client_metric(collector):
                self._move(collector, owner, {})

        registry.register = register  # type: ignore[method-assign]
        for collector in list_collectors(registry):
            if is_prometheus_client_metric(collector):
                self._move(collector, owner, values_at_fork)

    def close(self, registry: CollectorRegistry) -> None:
        """End one use of a registry. The last one leaves prometheus_client as it was."""
        if registry not in self._use_counts:
            return
        self._use_counts[registry] -= 1
        if self._use_counts[registry]:
            return
        del self._use_counts[registry], self._owners[registry]
        del registry.register
        if not self._owners:
            set_value_class(self._original)
            self._move_to_memory()

    def _move_to_memory(self) -> None:
        # The values stay `CellValue`s, with cells in the memory of this process.
        with self._lock:
            for value in self.values:
                value.cells = [value.cells[0] if value.gauge else 0.0, value.cells[1]]
            self.values.clear()
            self._gauges.clear()
            self.local_only.clear()

    def after_fork(self) -> None:
        """Close everything in the child of a fork, where the lock may be held by a thread that does not exist."""
        self._lock = threading.Lock()
        for value in self.values:
            value.use_lock(self._lock)
        for registry in list(self._use_counts):
            self._use_counts[registry] = 1
            self.close(registry)

    # Making values

    def _make(  # noqa: PLR0913, PLR0917 - prometheus_client calls it with these arguments
        self,
        typ: str,
        metric_name: str,
        name: str,
        labelnames: Any,
        labelvalues: Any,
        help_text: str,
        **options: Any,
    ) -> Any:
        """Make a value. Those of metrics that are not registered yet are prometheus_client's own, moved later."""
        if labelvalues:
            for registry, owner in self._owners.items():
                metric = find_collector(registry, metric_name)
                if metric is not None:
                    header = metric_header(metric)._replace(multiprocess_mode=options.get("multiprocess_mode", ""))
                    return self._make_cells(owner, header, name, [*zip(labelnames, labelvalues, strict=True)])
        return self._original(typ, metric_name, name, labelnames, labelvalues, help_text, **options)

    def _make_cells(
        self, owner: str, header: MetricHeader, sample: str, labels: list[tuple[str, str]], initial: float = 0.0
    ) -> CellValue:
        kind, name, documentation, unit, mode = header
        key = (owner, name)
        if key not in self._descriptions:
            self._descriptions[key] = json.dumps(
                describe_samples(owner, name, kind, documentation, mode or "sum", unit=unit)
            )
        # Only `mostrecent` asks when a value was set; the others are exposed from the beginning.
        never_set = mode.removeprefix("live") == "mostrecent" and not initial
        description, encoded = self._descriptions[key], encode_sample(sample, labels)
        value = CellValue(self._lock, description, encoded, 0.0 if never_set else 1.0, gauge=kind == "gauge")
        value.cells[0] = initial
        with self._lock:
            if value.gauge:
                self._replace_removed(value)
            self.values.add(value)
            self._bind(value)
        return value

    def _replace_removed(self, value: CellValue) -> None:
        """Take the cells from a gauge of the same labels that was removed, but is still held by the app."""
        key = (value.description, value.labels)
        removed = self._gauges.get(key)
        if removed is not None:
            removed.detach()
            self.values.discard(removed)
            self.local_only = [each for each in self.local_only if each is not removed]
        self._gauges[key] = value

    def _bind(self, value: CellValue) -> None:
        cells = self._worker.allocate(value.description, value.labels, [0.0, 0.0])
        if cells is None:
            self.local_only.append(value)
            return
        cells[0] = value.cells[0] if value.gauge else cells[0] + value.cells[0]
        cells[1] = value.cells[1]
        value.cells = cells

    def _move(self, metric: Any, owner: str, values_at_fork: dict[int, float]) -> None:
        """Replace the values that a metric has already."""
        for child in metric_children(metric):
            for slot in value_slots(child):
                before = slot.container[slot.key]
                if isinstance(before, CellValue) and before in self.values:
                    continue
                initial = before.get() - values_at_fork.get(id(before), 0.0)
                labels = [*label_pairs(child), *slot.extra_labels]
                after = self._make_cells(owner, metric_header(metric), slot.sample_name, labels, initial)
                exemplar = before.get_exemplar()
                if exemplar is not None:
                    after.set_exemplar(exemplar)
                slot.container[slot.key] = after

    # Publishing values

    def publish(self, exemplars: bool) -> list[CellExemplar]:  # noqa: FBT001 - a callback of the worker
        """Write the values of functions to the cells, and hide removed gauges. Returns the exemplars, if wanted."""
        with self._lock:
            waiting, self.local_only = self.local_only, []
            for value in waiting:
                self._bind(value)
            held = list(self._gauges.values())
        registered: set[object] = set()
        for registry in list(self._owners):
            for metric in list_collectors(registry):
                if isinstance(metric, Gauge) and not isinstance(metric, BoundedMetric):
                    update_from_functions(metric)
                    registered.update(gauge_values(metric))
        with self._lock:
            for value in held:
                value.expose(value in registered)
        if not exemplars:
            return []
        found: list[CellExemplar] = []
        for value in list(self.values):
            exemplar = value.get_exemplar()
            if exemplar is not None and value not in self.local_only:
                offset = self._worker.cell_offset(value.description, value.labels)
                timestamp = float(exemplar.timestamp or 0.0)
                found.append(CellExemplar(offset, 0, (dict(exemplar.labels), exemplar.value, timestamp)))
        return found


def read_values_at_fork(registries: Iterable[Any]) -> dict[int, float]:
    """Return the values of counters in the child of a fork, by identity. They were counted by the parent."""
    if not can_replace_values():
        return {}
    return {
        id(slot.container[slot.key]): read_without_lock(slot.container[slot.key])
        for registry in registries
        for metric in list_collectors(registry)
        if is_prometheus_client_metric(metric) and not isinstance(metric, Gauge)
        for child in metric_children(metric)
        for slot in value_slots(child)
    }
