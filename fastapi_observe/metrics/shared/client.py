"""prometheus_client's own metrics, made before or after: in a worker their values stand where all workers see them."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import orjson
from prometheus_client import values as stock
from prometheus_client.metrics import Counter, Gauge, Histogram, MetricWrapperBase, Summary

from fastapi_observe.internal.prometheus_client import format_float
from fastapi_observe.metrics.series import BoundedMetric
from fastapi_observe.metrics.shared.samples import describe, record_labels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from prometheus_client import CollectorRegistry
    from prometheus_client.samples import Exemplar

    from fastapi_observe.workers.worker import Exemplars, Worker

SHARED = (Counter, Gauge, Histogram, Summary)
"""What has values; prometheus_client's Info and Enum keep something else, of this process."""


def is_prometheus_client_metric(collector: object) -> bool:
    """Tell whether a collector is one of prometheus_client's own metrics with values."""
    return isinstance(collector, SHARED) and not isinstance(collector, BoundedMetric)


def honours_directory() -> bool:
    """Tell whether PROMETHEUS_MULTIPROC_DIR was set: then prometheus_client shares its values itself."""
    return bool(getattr(stock.ValueClass, "_multiprocess", False))


class CellValue:
    """A number of a metric, as prometheus_client's `MutexValue`, whose cell may stand where all workers see it."""

    __slots__ = ("__weakref__", "_exemplar", "_lock", "cells", "family", "labels")

    def __init__(self, lock: threading.Lock, family: bytes, labels: tuple[str, ...], stamp: float) -> None:
        self._lock = lock
        self.family = family
        self.labels = labels
        self.cells: list[float] = [0.0, stamp]
        self._exemplar: Exemplar | None = None

    def inc(self, amount: float) -> None:
        """Add `amount`."""
        with self._lock:
            self.cells[0] += amount

    def set(self, value: float, timestamp: float | None = None) -> None:
        """Set the number."""
        with self._lock:
            self.cells[0] = value
            self.cells[1] = timestamp or 1.0

    def get(self) -> float:
        """Return the number as this process has it."""
        return self.cells[0]

    def __del__(self) -> None:
        # A gauge that was removed is shown no longer; what was counted stays in the total.
        if b'"type":"gauge"' in self.family:
            self.cells[1] = 0.0

    def set_exemplar(self, exemplar: Exemplar) -> None:
        """Keep an exemplar."""
        self._exemplar = exemplar

    def get_exemplar(self) -> Exemplar | None:
        """Return the exemplar."""
        return self._exemplar


class PrometheusClientCells:
    """Shares the values of registries with the other workers, until the last install that shows them is closed.

    prometheus_client makes every number with its `values.ValueClass`; ours stands there meanwhile. A metric without
    labels has its numbers before it is in a registry, so `register` is watched too.
    """

    def __init__(self, worker: Worker) -> None:
        self.values: WeakSet[CellValue] = WeakSet()
        self.alone: list[CellValue] = []
        self._worker = worker
        self._lock = threading.Lock()
        self._scopes: dict[CollectorRegistry, str] = {}
        self._uses: dict[CollectorRegistry, int] = {}
        self._before: Callable[..., Any] = stock.ValueClass
        self._described: dict[tuple[str, str], bytes] = {}

    def open(self, registry: CollectorRegistry, scope: str, inherited: dict[int, float]) -> None:
        """Share the values of a registry, without what they had been `inherited` with, by identity."""
        self._uses[registry] = self._uses.get(registry, 0) + 1
        if self._uses[registry] > 1:
            return
        if not self._scopes:
            self._before = stock.ValueClass
            stock.ValueClass = self._make
        self._scopes[registry] = scope
        original = registry.register

        def register(collector: Any) -> None:
            original(collector)
            if is_prometheus_client_metric(collector):
                self._move(collector, scope, {})

        registry.register = register  # type: ignore[method-assign]
        for collector in list(registry._collector_to_names):  # noqa: SLF001 - as `collectors` in exposition.py
            if is_prometheus_client_metric(collector):
                self._move(collector, scope, inherited)

    def close(self, registry: CollectorRegistry) -> None:
        """Give up one use of a registry; the last one leaves prometheus_client as it was."""
        self._uses[registry] -= 1
        if self._uses[registry]:
            return
        del self._uses[registry], self._scopes[registry]
        del registry.register
        if not self._scopes:
            stock.ValueClass = self._before
            self.detach()

    def detach(self) -> None:
        """Take every number back into this process: gauges as they are, the rest from zero."""
        with self._lock:
            for value in self.values:
                gauge = b'"type":"gauge"' in value.family
                value.cells = [value.cells[0] if gauge else 0.0, value.cells[1]]
            self.values.clear()
            self.alone.clear()

    def after_fork(self) -> None:
        """Do the same in a forked child, where nobody holds the lock."""
        self._lock = threading.Lock()
        for value in self.values:
            value._lock = self._lock  # noqa: SLF001 - they are ours
        for registry in list(self._uses):
            self._uses[registry] = 1
            self.close(registry)

    def rebind(self) -> None:
        """Go on in the new files of the worker, which hold what the ones before did; again does nothing."""
        with self._lock:
            alone = {id(value) for value in self.alone}
            for value in list(self.values):
                if id(value) not in alone:
                    before = list(value.cells)
                    cells = self._worker.allocate(value.family, value.labels, [0.0, 0.0])
                    if cells is None:  # one that was new while the files were made
                        value.cells = before
                        self.alone.append(value)
                    else:
                        cells[0], cells[1] = before
                        value.cells = cells

    # Making

    def _make(  # noqa: PLR0913, PLR0917 - as prometheus_client calls it
        self,
        typ: str,
        metric_name: str,
        name: str,
        labelnames: Any,
        labelvalues: Any,
        help_text: str,
        **options: Any,
    ) -> Any:
        if labelvalues:
            for registry, scope in self._scopes.items():
                if metric_name in registry._names_to_collectors:  # noqa: SLF001 - as above
                    pairs = [*zip(labelnames, labelvalues, strict=True)]
                    return self._value(
                        scope, (typ, metric_name, help_text, options.get("multiprocess_mode", "")), name, pairs
                    )
        return self._before(typ, metric_name, name, labelnames, labelvalues, help_text, **options)

    def _value(
        self,
        scope: str,
        family: tuple[str, str, str, str],
        name: str,
        labels: list[tuple[str, str]],
        initial: float = 0.0,
    ) -> CellValue:
        typ, metric_name, documentation, mode = family
        key = (scope, metric_name)
        if key not in self._described:
            unit = self._unit(scope, metric_name)
            self._described[key] = orjson.dumps(
                describe(scope, metric_name, typ, documentation, mode or "sum", unit=unit)
            )
        recent = mode.removeprefix("live") == "mostrecent"
        value = CellValue(
            self._lock, self._described[key], record_labels(name, labels), 0.0 if recent and not initial else 1.0
        )
        value.cells[0] = initial
        with self._lock:
            self.values.add(value)
            self._bind(value)
        return value

    def _unit(self, scope: str, metric_name: str) -> str:
        registry = next(one for one, name in self._scopes.items() if name == scope)
        return str(getattr(registry._names_to_collectors.get(metric_name), "_unit", ""))  # noqa: SLF001 - as above

    def _bind(self, value: CellValue) -> None:
        cells = self._worker.allocate(value.family, value.labels, [0.0, 0.0])
        if cells is None:
            self.alone.append(value)
            return
        if b'"type":"gauge"' in value.family:
            cells[0] = value.cells[0]
        else:
            cells[0] += value.cells[0]
        cells[1] = value.cells[1]
        value.cells = cells

    def _move(self, metric: Any, scope: str, inherited: dict[int, float]) -> None:
        """Put numbers that were made before into the files."""
        for child in _children(metric):
            family = (metric._type, metric._name, metric._documentation, _mode(metric))  # noqa: SLF001
            labels = [*zip(child._labelnames, child._labelvalues, strict=False)]  # noqa: SLF001
            for place, at, name, more in _numbers(child):
                before = place[at]
                if not isinstance(before, CellValue) or before not in self.values:
                    after = self._value(
                        scope, family, name, [*labels, *more], before.get() - inherited.get(id(before), 0.0)
                    )
                    exemplar = before.get_exemplar()
                    if exemplar is not None:
                        after.set_exemplar(exemplar)
                    place[at] = after

    # Reading

    def publish_exemplars(self, exemplars: bool) -> Exemplars:  # noqa: FBT001 - as runtime calls it
        """Ask the functions of gauges; return the exemplars if they are wanted."""
        with self._lock:
            waiting, self.alone = self.alone, []
            for value in waiting:
                self._bind(value)
        for registry in list(self._scopes):
            for metric in list(registry._collector_to_names):  # noqa: SLF001 - as above
                if isinstance(metric, Gauge) and not isinstance(metric, BoundedMetric):
                    _read_functions(metric)
        if not exemplars:
            return []
        found: Exemplars = []
        for value in list(self.values):
            kept = value.get_exemplar()
            if kept is not None and value not in self.alone:
                at = self._worker.cell_offset(value.family, value.labels)
                found.append((at, 0, dict(kept.labels), kept.value, float(kept.timestamp or 0.0)))
        return found


def values_at_fork(registries: Iterable[Any]) -> dict[int, float]:
    """Return what counters had when this process was forked: it is the parent's, not counted here.

    Read without the locks, which another thread of the parent may have held.
    """
    return {
        id(place[at]): getattr(place[at], "_value", 0.0)
        for registry in registries
        for metric in list(getattr(registry, "_collector_to_names", ()))
        if is_prometheus_client_metric(metric) and not isinstance(metric, Gauge)
        for child in _children(metric)
        for place, at, _, _ in _numbers(child)
    }


def _children(metric: Any) -> list[Any]:
    return list(metric._metrics.values()) if metric._labelnames else [metric]  # noqa: SLF001 - there is no other way


def _mode(metric: MetricWrapperBase) -> str:
    return str(getattr(metric, "_multiprocess_mode", ""))


def _numbers(child: Any) -> Iterator[tuple[Any, Any, str, list[tuple[str, str]]]]:
    """Yield where a metric keeps its numbers: container, key, name of the sample, further labels."""
    names = {"counter": {"_value": "_total"}, "gauge": {"_value": ""}}
    ends = names.get(child._type, {"_count": "_count", "_sum": "_sum"})  # noqa: SLF001 - whose metrics they are
    for attribute, end in ends.items():
        if attribute in vars(child):
            yield vars(child), attribute, child._name + end, []  # noqa: SLF001
    for at, bound in enumerate(getattr(child, "_upper_bounds", ())):
        yield child._buckets, at, f"{child._name}_bucket", [("le", format_float(bound))]  # noqa: SLF001


def _read_functions(metric: Any) -> None:
    for child in _children(metric):
        if "_child_samples" in vars(child):  # set_function
            with suppress(Exception):  # a user's function raises what it likes; the value stays as it was
                for sample in child._child_samples():  # noqa: SLF001
                    child._value.set(float(sample.value))  # noqa: SLF001
