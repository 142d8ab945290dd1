"""Moves the metrics of one install to where all workers see them, and back: `Sharing`."""

from __future__ import annotations

from time import time_ns
from typing import TYPE_CHECKING

from fastapi_observe.metrics.series import BoundedMetric
from fastapi_observe.metrics.shared.cells import WorkersCollector, detach, metric_series
from fastapi_observe.metrics.shared.shown import collectors_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from prometheus_client import CollectorRegistry

    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.metrics.catalogue import MetricFactory
    from fastapi_observe.metrics.shared.view import MultiprocessView
    from fastapi_observe.workers.files import ValueFileReader
    from fastapi_observe.workers.worker import Worker


class MetricSharing:
    """Whether the metrics of one install are shared with other processes; at first they are not.

    `forget` drops whatever remembers cells; `renew` makes the locks of scrapes anew in a forked child.
    """

    def __init__(
        self,
        registries: Sequence[CollectorRegistry],
        catalogue: MetricFactory,
        faults: InternalErrors,
        forget: Callable[[], None],
        reset_locks: Callable[[], None],
    ) -> None:
        self.about = WorkersCollector()
        self._registries = registries
        self._catalogue = catalogue
        self._budget = catalogue.budget
        self._faults = faults
        self._forget = forget
        self._renew = reset_locks
        self._view: MultiprocessView | None = None
        self._inherited: dict[int, float] = {}
        self._zeroed = 0

    def registries(self, *, openmetrics: bool) -> Sequence[Any]:
        """Return the registries to show, of all workers if there are others."""
        view = self._view
        return self._registries if view is None else view.scrape(openmetrics=openmetrics)

    def of_this_process(self) -> list[Any]:
        """Return the collectors that show what this process alone has counted, of all registries."""
        found = [collector for registry in self._registries for collector in collectors_of(registry)]
        return [collector for collector in found if collector is not self.about]

    def counters_reset_at(self) -> int:
        """Return when the counters of this process were last set to zero, in nanoseconds; 0: they never were."""
        return self._zeroed

    def share(self, worker: Worker, scope: str) -> None:
        """Put all values where the other workers see them; `scope` tells the installs of one process apart."""
        from fastapi_observe.metrics.shared.view import MultiprocessView  # noqa: PLC0415 - a single process needs none of it

        view = MultiprocessView(
            worker, scope, self._budget, self._metrics, self._registries, self._faults, collectors_of
        )
        with self._budget.lock:
            self._budget.store = view.cells
            view.cells.bind_all()
            self._forget()
        view.open(self._inherited)
        self.about.worker, self.about.apart = worker, False
        self._view = view
        worker.on_files_moved.append(self._rebind)
        self._rebind()  # the files may have moved meanwhile

    def _rebind(self) -> None:
        """Go on where the worker has its files now."""
        view = self._view
        if view is not None:  # pragma: no branch - while it is closed
            with self._budget.lock:
                view.cells.rebind()
                self._forget()
            view.rebind()

    def read(self) -> tuple[str, list[ValueFileReader], list[BoundedMetric]] | None:
        """Return our scope, what each worker has counted, and what we could not share; None: there are no others."""
        view = self._view
        if view is None:
            return None
        with view.worker.publish_lock:  # else what finds space at last would be here and there, or nowhere
            return view.cells.scope, view.worker.read()[1], [*view.cells.local_only]

    def unshare(self) -> None:
        """Take the values back into this process, counters from zero: what was counted stays with the workers."""
        view, self._view = self._view, None
        if view is not None:
            view.worker.on_files_moved.remove(self._rebind)
            view.close()
            self._take_back()

    def mark_degraded(self) -> None:
        """Show that this process is one of several, and counted apart."""
        self.about.apart = True

    def after_fork(self) -> None:
        """Begin at zero in a forked child, where nobody holds a lock."""
        from fastapi_observe.metrics.shared.client import values_at_fork  # noqa: PLC0415 - as above

        self._budget.lock._at_fork_reinit()  # type: ignore[attr-defined]  # noqa: SLF001 - as the threading module does
        self._renew()
        view, self._view = self._view, None
        if view is not None:
            view.forget_client()
        self._take_back()
        self._inherited = values_at_fork(self._registries)

    def _take_back(self) -> None:
        with self._budget.lock:
            self._zeroed = time_ns()
            self._budget.store = self.about.worker = None
            detach(metric_series(self._metrics()))
            self._forget()

    def _metrics(self) -> list[BoundedMetric]:
        return [metric for metric in self._catalogue.registered if isinstance(metric, BoundedMetric)]
