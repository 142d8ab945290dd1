"""Cells that all workers of a server see: binds the metrics of one install to the files of its worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import orjson
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

from fastapi_observe.metrics.series import BoundedMetric, Counter, Gauge, Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from prometheus_client.metrics_core import Metric

    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.metrics.budget import SeriesLimiter
    from fastapi_observe.workers.worker import Exemplars, Worker


def metric_kind(metric: BoundedMetric) -> str:
    """Return what a metric is called in the files."""
    return "gauge" if isinstance(metric, Gauge) else "histogram" if isinstance(metric, Histogram) else "counter"


def describe(scope: str, metric: BoundedMetric) -> dict[str, Any]:
    """Return what the others must know of a metric to show it, even if they have none of that name."""
    name, _ = metric.family()
    gauge = isinstance(metric, Gauge)
    return {
        "scope": scope,
        "name": name,
        "kind": metric_kind(metric),
        "doc": metric.documentation(),
        "labels": metric.label_names(),
        "bounds": [str(bound) for bound in metric.bounds()] if isinstance(metric, Histogram) else None,
        "mode": metric.mode if isinstance(metric, Gauge) else "sum",
        "fold": "drop" if gauge else "sum",
    }


class SharedCells:
    """The metrics of one install in a worker.

    What finds no space keeps its values in this process and is shown by it alone, until there is space.
    """

    def __init__(
        self,
        worker: Worker,
        budget: SeriesLimiter,
        scope: str,
        metrics: Callable[[], Iterable[BoundedMetric]],
        faults: InternalErrors,
    ) -> None:
        self.worker = worker
        self.scope = scope
        self.local_only: list[BoundedMetric] = []
        self._metrics = metrics
        self._faults = faults
        self._lock = budget.lock
        self._described: dict[tuple[str, str], bytes] = {}
        self._late: list[tuple[list[float], list[float], BoundedMetric]] = []

    def bind_all(self) -> None:
        """Move what has been counted so far, each number once: what a thread adds meanwhile follows at `settle`."""
        with self._lock:
            self.local_only.extend(child for child in self.children() if not self._move(child))

    def children(self) -> Iterator[BoundedMetric]:
        """Yield whatever has cells."""
        return metric_series(self._metrics())

    def bind(self, child: BoundedMetric) -> None:
        """Give a new series its cells in the file."""
        cells = self._allocate(child, [float(cell) for cell in child.cells])
        if cells is None:
            self.local_only.append(child)
        else:
            child.cells = cells

    def _move(self, child: BoundedMetric) -> bool:
        before = child.cells
        values = [float(cell) for cell in before]
        cells = self._allocate(child, values)
        if cells is None:
            return False
        child.cells = cells
        if not isinstance(child, Gauge):
            self._late.append((before, values, child))
        return True

    def rebind(self) -> None:
        """Go on in the new files of the worker, which hold what the ones before did."""
        with self._lock:
            self._take_late()
            known = len(self._late)
            alone = {id(child) for child in self.local_only}
            for child in self.children():
                if id(child) not in alone:
                    self._rebind(child)
            if len(self._late) > known:  # the ones before are of files that nobody remembers any more
                del self._late[:known]

    def _rebind(self, child: BoundedMetric) -> None:
        before = child.cells
        values = [float(cell) for cell in before]
        cells = self.worker.allocate(self.described(child), child.label_values(), [0.0] * len(values))
        if cells is None:  # a series that was new while the files were made
            child.cells = values[:1] if isinstance(child, Gauge) else values
            self.local_only.append(child)
            return
        if cells is before:  # made there already
            return
        for at, value in enumerate(values):
            cells[at] = value
        child.cells = cells
        if not isinstance(child, Gauge):
            self._late.append((before, values, child))

    def _allocate(self, child: BoundedMetric, values: list[float]) -> list[float] | None:
        """Return cells that hold the values of a child; a gauge has a second one, that says it is there."""
        gauge = isinstance(child, Gauge)
        size = len(values)
        cells = self.worker.allocate(self.described(child), child.label_values(), [0.0] * (size + gauge))
        if cells is None:
            return None
        for at, value in enumerate(values):
            cells[at] = value if gauge else cells[at] + value
        if gauge:
            cells[1] = 1.0
        return cells

    def described(self, child: BoundedMetric) -> bytes:
        """Return what describes the family of a child, as JSON."""
        key = (child.family()[0], metric_kind(child))
        found = self._described.get(key)
        if found is None:
            found = self._described[key] = orjson.dumps(describe(self.scope, child))
        return found

    def release(self, child: BoundedMetric) -> None:
        """Show a gauge that was removed no longer; what was counted stays in the total."""
        if child in self.local_only:
            self.local_only.remove(child)
        if isinstance(child, Gauge) and len(child.cells) > 1:
            child.cells[1] = 0.0

    def move_pending(self) -> None:
        """Move what threads have added to old cells, and try again to find space for what has none."""
        with self._lock:
            self._take_late()
            self.local_only = [child for child in self.local_only if not self._move(child)]

    def _take_late(self) -> None:
        for before, seen, child in self._late:
            for at, value in enumerate(before):
                if value != seen[at]:
                    child.cells[at] += value - seen[at]
                    seen[at] = value

    def publish_exemplars(self, exemplars: bool) -> Exemplars:  # noqa: FBT001 - as runtime calls it
        """Read what is only read at scrape; return the exemplars if they are wanted."""
        self.move_pending()
        for metric in list(self._metrics()):
            if isinstance(metric, Gauge):
                for child in [metric] if metric.cells else list(metric.children().values()):
                    self._read_function(child)
        return self._exemplars() if exemplars else []

    def _read_function(self, child: Gauge) -> None:
        if child.function is not None:
            try:
                child.cells[0] = child.value()
            except Exception as exc:  # noqa: BLE001 - a user's function raises what it likes
                self._faults("collect", exc)

    def _exemplars(self) -> Exemplars:
        found: Exemplars = []
        for child in self.children():
            if child.exemplars and child not in self.local_only:
                at = self.worker.cell_offset(self.described(child), child.label_values())
                found.extend((at, cell, *kept) for cell, kept in child.exemplars.copy().items())
        return found


def metric_series(metrics: Iterable[BoundedMetric]) -> Iterator[BoundedMetric]:
    """Yield whatever has cells."""
    for metric in metrics:
        if metric.cells:
            yield metric
        else:
            yield from list(metric.children().values())


def detach(children: Iterable[BoundedMetric]) -> None:
    """Give series cells of this process; what is no gauge begins at zero."""
    for child in children:
        child.cells = [child.cells[0]] if isinstance(child, Gauge) else [0] * (len(child.cells) - 1) + [0.0]
        if isinstance(child, Counter):
            child.cells[0] = 0


class WorkersCollector:
    """What the metrics of many workers say about themselves; nothing in a single process."""

    def __init__(self) -> None:
        self.worker: Worker | None = None
        self.apart = False

    def describe(self) -> list[Metric]:
        """Name what `collect` yields."""
        return list(self._families())

    def collect(self) -> Iterator[Metric]:
        """Read everything."""
        if self.worker is not None or self.apart:
            yield from self._families()

    def _families(self) -> Sequence[Metric]:
        degraded = self.apart or (self.worker is not None and self.worker.degraded)
        return (
            GaugeMetricFamily(
                "fastapi_observe_metrics_degraded",
                "1 when worker processes are counted apart, in whole or for lack of space in part.",
                value=float(degraded),
            ),
            CounterMetricFamily(
                "fastapi_observe_worker_files_unreadable",
                "Files of workers that made no sense and were left out.",
                value=0 if self.worker is None else self.worker.unreadable,
            ),
            GaugeMetricFamily(
                "fastapi_observe_workers",
                "Worker processes that are counted together.",
                value=1 if self.worker is None else self.worker.live_workers,
            ),
        )
