"""`SharedCells`: moves the metrics of one install into the files of its worker; and metrics about the workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

from fastapi_observe.internal import json
from fastapi_observe.metrics.series import BoundedMetric, Counter, Gauge, Histogram

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from prometheus_client.metrics_core import Metric

    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.metrics.budget import SeriesLimiter
    from fastapi_observe.workers.worker import CellExemplar, Worker


def describe_metric(install_id: str, metric: BoundedMetric) -> dict[str, Any]:
    """Return what other workers need to expose a metric, even if they have none of that name.

    `owner` is the install, so that two installs may have metrics of one name. `mode` is how the values of live workers
    are merged, `archive_mode` what the archive does with those of an ended one.
    """
    name, _ = metric.family()
    gauge = isinstance(metric, Gauge)
    return {
        "owner": install_id,
        "name": name,
        "kind": metric.kind,
        "doc": metric.documentation(),
        "labels": metric.label_names(),
        "bounds": [str(bound) for bound in metric.bounds()] if isinstance(metric, Histogram) else None,
        "mode": metric.mode if isinstance(metric, Gauge) else "sum",
        "archive_mode": "drop" if gauge else "sum",
    }


class MovedCells(NamedTuple):
    """Cells that a series had before, their values when it was moved, and the series."""

    cells: list[float]
    moved_values: list[float]
    series: BoundedMetric


class SharedCells:
    """The metrics of one install in a worker. `install_id` is the same in all workers.

    Series that find no space keep their values in this process, in `local_only`, until there is space. A gauge has a
    second cell: 1 if it is exposed, 0 if it was removed.
    """

    def __init__(
        self,
        worker: Worker,
        limiter: SeriesLimiter,
        install_id: str,
        metrics: Callable[[], Iterable[BoundedMetric]],
        internal_errors: InternalErrors,
    ) -> None:
        self.worker = worker
        self.install_id = install_id
        self.local_only: list[BoundedMetric] = []
        self._metrics = metrics
        self._internal_errors = internal_errors
        self._lock = limiter.lock
        self._descriptions: dict[tuple[str, str], bytes] = {}
        self._moved: list[MovedCells] = []

    def move_all(self) -> None:
        """Move all series into the files."""
        with self._lock:
            self.local_only.extend(series for series in self.series() if not self._move(series))

    def series(self) -> Iterator[BoundedMetric]:
        """Yield everything that has cells."""
        return metric_series(self._metrics())

    def bind(self, series: BoundedMetric) -> None:
        """Give a new series its cells in the file. The caller holds the lock of the limiter."""
        cells = self._allocate(series, [float(cell) for cell in series.cells])
        if cells is None:
            self.local_only.append(series)
        else:
            series.cells = cells

    def _move(self, series: BoundedMetric) -> bool:
        # Threads increment without a lock. One that has read `series.cells` before this line adds to the old cells
        # after it, so those are remembered, and `move_pending` adds the difference.
        before = series.cells
        values = [float(cell) for cell in before]
        cells = self._allocate(series, values)
        if cells is None:
            return False
        series.cells = cells
        if not isinstance(series, Gauge):
            self._moved.append(MovedCells(before, values, series))
        return True

    def _allocate(self, series: BoundedMetric, values: list[float]) -> list[float] | None:
        gauge = isinstance(series, Gauge)
        cells = self.worker.allocate(self.description(series), series.label_values(), [0.0] * (len(values) + gauge))
        if cells is None:
            return None
        # The cells may exist: a series that was removed keeps its total, and is made again.
        for index, value in enumerate(values):
            cells[index] = value if gauge else cells[index] + value
        if gauge:
            cells[1] = 1.0
        return cells

    def description(self, series: BoundedMetric) -> bytes:
        """Return the description of the family of a series, as JSON."""
        key = (series.family()[0], series.kind)
        described = self._descriptions.get(key)
        if described is None:
            described = self._descriptions[key] = json.dumps(describe_metric(self.install_id, series))
        return described

    def release(self, series: BoundedMetric) -> None:
        """Hide a gauge that was removed. Counters and histograms stay in the total."""
        if series in self.local_only:
            self.local_only.remove(series)
        if isinstance(series, Gauge) and len(series.cells) > 1:
            series.cells[1] = 0.0

    def move_pending(self) -> None:
        """Add what threads have added to old cells, and try again to find space for `local_only`."""
        with self._lock:
            for before, moved_values, series in self._moved:
                for index, value in enumerate(before):
                    if value != moved_values[index]:
                        series.cells[index] += value - moved_values[index]
                        moved_values[index] = value
            self.local_only = [series for series in self.local_only if not self._move(series)]

    def publish(self, exemplars: bool) -> list[CellExemplar]:  # noqa: FBT001 - a callback of the worker
        """Write the values of functions to the cells. Returns the exemplars, if wanted."""
        self.move_pending()
        for metric in list(self._metrics()):
            if isinstance(metric, Gauge):
                for series in metric_series([metric]):
                    self._read_function(series)
        return self._exemplars() if exemplars else []

    def _read_function(self, series: Any) -> None:
        if series.function is not None:
            try:
                series.cells[0] = series.value()
            except Exception as exc:  # noqa: BLE001 - a function of the user may raise anything
                self._internal_errors("collect", exc)

    def _exemplars(self) -> list[CellExemplar]:
        from fastapi_observe.workers.worker import CellExemplar  # noqa: PLC0415 - not needed in a single process

        found: list[CellExemplar] = []
        for series in self.series():
            if series.exemplars and series not in self.local_only:
                offset = self.worker.cell_offset(self.description(series), series.label_values())
                found.extend(CellExemplar(offset, cell, each) for cell, each in series.exemplars.copy().items())
        return found


def metric_series(metrics: Iterable[BoundedMetric]) -> Iterator[BoundedMetric]:
    """Yield the series of metrics: everything that has cells."""
    for metric in metrics:
        if metric.cells:
            yield metric
        else:
            yield from list(metric.children().values())


def move_to_memory(series: Iterable[BoundedMetric]) -> None:
    """Give series cells in the memory of this process. Gauges keep their value, everything else starts at zero."""
    for each in series:
        # Counts are integers in a single process, which are exposed without `.0`. A histogram's last cell is its sum.
        each.cells = [each.cells[0]] if isinstance(each, Gauge) else [0] * (len(each.cells) - 1) + [0.0]
        if isinstance(each, Counter):
            each.cells[0] = 0


class WorkersCollector:
    """Metrics about the workers of this server. Exposes nothing in a single process."""

    def __init__(self) -> None:
        self.worker: Worker | None = None
        self.cannot_join = self.is_off = False

    def describe(self) -> list[Metric]:
        """Return the families without reading values, for `registry.register`."""
        return list(self._families())

    @property
    def is_degraded(self) -> bool:
        """Whether some metrics are reported by this worker process only."""
        return self.cannot_join or (self.worker is not None and self.worker.degraded)

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        if self.worker is not None or self.cannot_join or self.is_off:
            yield from self._families()

    def _families(self) -> Sequence[Metric]:
        return (
            GaugeMetricFamily(
                "fastapi_observe_metrics_degraded",
                "1 if some metrics are reported by one worker process only, for lack of a directory or of space.",
                value=float(self.is_degraded),
            ),
            CounterMetricFamily(
                "fastapi_observe_worker_files_unreadable",
                "Files of worker processes with invalid contents, which were skipped.",
                value=0 if self.worker is None else self.worker.unreadable,
            ),
            GaugeMetricFamily(
                "fastapi_observe_workers",
                "Worker processes whose metrics are added up; 0 if multiprocess is off.",
                value=int(not self.is_off) if self.worker is None else self.worker.live_workers,
            ),
        )
