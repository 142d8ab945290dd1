"""`MetricSharing`: moves the metrics of one install into the files of a worker, and back."""

from __future__ import annotations

from time import time_ns
from typing import TYPE_CHECKING, NamedTuple

from fastapi_observe.metrics.series import BoundedMetric
from fastapi_observe.metrics.shared.cells import WorkersCollector, metric_series, move_to_memory
from fastapi_observe.metrics.shared.collectors import collectors_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from prometheus_client import CollectorRegistry

    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.metrics.catalogue import MetricFactory
    from fastapi_observe.metrics.shared.view import MultiprocessView
    from fastapi_observe.workers.files import ValueFileReader
    from fastapi_observe.workers.worker import Worker


class SharedValues(NamedTuple):
    """Values of all workers: id of this install, readers of the files, series that only this worker has."""

    install_id: str
    readers: list[ValueFileReader]
    local_only: list[BoundedMetric]


class MetricSharing:
    """Shares the metrics of one install with other processes, from `share` to `unshare`.

    `forget_cells` is called whenever series get other cells: it drops what the signal has cached of the old ones.
    `reset_locks` is called in the child of a fork.
    """

    def __init__(
        self,
        registries: Sequence[CollectorRegistry],
        factory: MetricFactory,
        internal_errors: InternalErrors,
        forget_cells: Callable[[], None],
        reset_locks: Callable[[], None],
    ) -> None:
        self.workers_collector = WorkersCollector()
        self._registries = registries
        self._factory = factory
        self._limiter = factory.limiter
        self._internal_errors = internal_errors
        self._forget_cells = forget_cells
        self._reset_locks = reset_locks
        self._view: MultiprocessView | None = None
        self._values_at_fork: dict[int, float] = {}  # of prometheus_client's counters, which the parent reports
        self._reset_at = 0

    def registries(self, *, openmetrics: bool) -> Sequence[Any]:
        """Return the registries to expose, with the values of all workers if there are several."""
        view = self._view
        return self._registries if view is None else view.scrape(openmetrics=openmetrics)

    def local_collectors(self) -> list[Any]:
        """Return the collectors of all registries, with the values of this process alone."""
        found = [collector for registry in self._registries for collector in collectors_of(registry)]
        return [
            collector for collector in found if getattr(collector, "inner", collector) is not self.workers_collector
        ]

    def counters_reset_at(self) -> int:
        """Return when the counters of this process were last set to zero, in Unix nanoseconds; 0 if never."""
        return self._reset_at

    def share(self, worker: Worker, install_id: str) -> None:
        """Move all values into the files of a worker. `install_id` is the same in the other workers."""
        from fastapi_observe.metrics.shared.view import MultiprocessView  # noqa: PLC0415 - not needed in one process

        view = MultiprocessView(
            worker, install_id, self._limiter, self._metrics, self._registries, self._internal_errors
        )
        with self._limiter.lock:
            self._limiter.store = view.cells  # gives new series their cells from now on
            view.cells.move_all()
            self._forget_cells()
        view.open(self._values_at_fork)
        self.workers_collector.worker, self.workers_collector.cannot_join = worker, False
        self._view = view

    def read(self) -> SharedValues | None:
        """Return the values of all workers; None in a single process."""
        view = self._view
        if view is None:
            return None
        # A series that finds space meanwhile would otherwise be in both lists, or in none.
        with view.worker.publish_lock:
            return SharedValues(view.cells.install_id, view.worker.read()[1], [*view.cells.local_only])

    def unshare(self) -> None:
        """Keep values in this process again. Counters start at zero: what was counted stays in the files."""
        view, self._view = self._view, None
        if view is not None:
            view.close()
            self._take_back()

    def mark_degraded(self) -> None:
        """Expose that this is one of several workers, and reports only its own values."""
        self.workers_collector.cannot_join = True

    def mark_off(self) -> None:
        """Expose that this may be one of several workers, whose values are not shared on purpose."""
        self.workers_collector.is_off = True

    def after_fork(self) -> None:
        """Start at zero in the child of a fork."""
        from fastapi_observe.metrics.shared.prometheus_client import read_values_at_fork  # noqa: PLC0415 - as above

        # Another thread of the parent may have held these locks. It does not exist here.
        self._limiter.lock._at_fork_reinit()  # type: ignore[attr-defined]  # noqa: SLF001 - as the threading module
        self._reset_locks()
        view, self._view = self._view, None
        if view is not None:
            view.restore_prometheus_client()
        self._take_back()
        self._values_at_fork = read_values_at_fork(self._registries)

    def _take_back(self) -> None:
        with self._limiter.lock:
            self._reset_at = time_ns()
            self._limiter.store = self.workers_collector.worker = None
            move_to_memory(metric_series(self._metrics()))
            self._forget_cells()

    def _metrics(self) -> list[BoundedMetric]:
        return [metric for metric in self._factory.registered if isinstance(metric, BoundedMetric)]
