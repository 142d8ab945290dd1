"""`/metrics` of many workers: what one install shows when any of them is asked."""

from __future__ import annotations

import functools
import os
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson
from prometheus_client import REGISTRY, CollectorRegistry

from fastapi_observe.metrics.series import BoundedMetric
from fastapi_observe.metrics.shared.cells import SharedCells
from fastapi_observe.metrics.shared.client import PrometheusClientCells, honours_directory, is_prometheus_client_metric
from fastapi_observe.metrics.shared.merged import FamilyIndex, MergedFamily
from fastapi_observe.metrics.shared.readers import ScrapeTimeCollectors, covers_all_workers
from fastapi_observe.metrics.shared.samples import ExemplarsBySeries, LocalSample, SampleFamily
from fastapi_observe.metrics.shared.shown import (
    MergedFamilyText,
    MultiprocessRegistry,
    SampleCollector,
    StaticCollector,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.metrics.budget import SeriesLimiter
    from fastapi_observe.workers.worker import Exemplars, Worker

    LocalSamples = dict[tuple[str, str], tuple[Any, Sequence[LocalSample]]]


class MultiprocessView:
    """The metrics of one install among the workers: its own are shared from here on, and those of its registries."""

    def __init__(  # noqa: PLR0913, PLR0917 - what an install shows
        self,
        worker: Worker,
        scope: str,
        budget: SeriesLimiter,
        metrics: Callable[[], Iterable[BoundedMetric]],
        registries: Sequence[CollectorRegistry],
        faults: InternalErrors,
        collectors: Callable[[Any], list[Any]],
    ) -> None:
        self.worker = worker
        self.cells = SharedCells(worker, budget, scope, metrics, faults)
        self._faults = faults
        self._collectors = collectors
        self._index = FamilyIndex()
        self._alone: list[BoundedMetric] = []
        self._alone_samples: dict[CollectorRegistry, LocalSamples] = {}
        self._registries = {registry: "default" if registry is REGISTRY else scope for registry in registries}
        self._readers = {
            registry: ScrapeTimeCollectors(worker, f"{name}/read", functools.partial(collectors, registry), faults)
            for registry, name in self._registries.items()
        }
        self._client: PrometheusClientCells | None = None

    def open(self, inherited: dict[int, float]) -> None:
        """Share prometheus_client's metrics too, and answer the others; `inherited` is what a fork brought along."""
        if not honours_directory():
            self._client = self.worker.shared_state.setdefault("client", PrometheusClientCells(self.worker))
            for registry, name in self._registries.items():
                if type(registry) is CollectorRegistry:
                    self._client.open(registry, f"{name}/client", inherited)
        self.worker.scrape_callbacks.append(self._answer)

    def close(self) -> None:
        """Read everything a last time; the caller then takes the cells back."""
        self._answer(False)  # noqa: FBT003 - as the worker calls it
        self.worker.scrape_callbacks.remove(self._answer)
        if self._client is not None:
            for registry in self._registries:
                if type(registry) is CollectorRegistry:
                    self._client.close(registry)

    def rebind(self) -> None:
        """Go on in the new files of the worker, but for our own cells."""
        if self._client is not None:
            self._client.rebind()
        for readers in self._readers.values():
            readers.rebind()

    def forget_client(self) -> None:
        """Leave prometheus_client as it was, in a forked child, once for all installs of this process."""
        client = self.worker.shared_state.pop("client", None)
        if client is not None:
            client.forked()

    def _answer(self, exemplars: bool) -> Exemplars:  # noqa: FBT001 - as runtime calls it
        found: Exemplars = []
        for part in (self.cells, self._client):
            if part is not None:
                found.extend(part.publish_exemplars(exemplars))
        for readers in self._readers.values():
            readers.publish_values()
        return found

    def scrape(self, *, openmetrics: bool) -> list[MultiprocessRegistry]:
        """Read what all workers have counted; return the registries with it."""
        self.worker.request_values(exemplars=openmetrics)
        before = len(self._index.strange)
        with self.worker.publish_lock:  # else what finds space at last would be here and there, or nowhere
            self._index.update(*self.worker.read())
            self._alone = [*self.cells.local_only]
            self._alone_samples = {registry: self._without_space(registry) for registry in self._registries}
        if len(self._index.strange) > before:
            self._faults("workers.shape", ValueError("a worker has another metric of the same name"))
        exemplars: ExemplarsBySeries = {}
        for name, entries in self.worker.exemplars.items() if openmetrics else ():
            for at, cell, labels, value, timestamp in entries:
                exemplars.setdefault((name, at), {})[cell] = (labels, value, timestamp)
        return [
            MultiprocessRegistry(partial(self.shown, registry, name, exemplars))
            for registry, name in self._registries.items()
        ]

    def shown(self, registry: CollectorRegistry, name: str, exemplars: ExemplarsBySeries) -> Iterator[Any]:
        """Yield what a registry shows: our own families, prometheus_client's, and what collectors read."""
        families = self._index.families
        own = [each for each in self._collectors(registry) if isinstance(each, BoundedMetric)]
        shown = {collector.family()[0] for collector in own}
        yield from (self._merged(collector, exemplars) for collector in own)
        yield from filter(covers_all_workers, self._collectors(registry))
        if registry is next(iter(self._registries)):  # ours stand in the first one; another worker may have made more
            for (scope, family_name), family in families.items():
                if scope == self.cells.scope and family_name not in shown and isinstance(family, MergedFamily):
                    yield MergedFamilyText(family, exemplars, [])
        alone = self._alone_samples[registry].copy()
        for (scope, family_name), family in families.items():
            if scope in {f"{name}/client", f"{name}/read"} and isinstance(family, SampleFamily):
                yield SampleCollector(family, alone.pop((scope, family_name), (None, ()))[1], exemplars)
        for described, samples in alone.values():
            yield SampleCollector(SampleFamily(described), samples, {})
        yield StaticCollector(self._readers[registry].once)
        if self._client is None and os.path.isdir(os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")):  # noqa: PTH112
            yield from self._of_directory(registry)

    def _merged(self, metric: BoundedMetric, exemplars: ExemplarsBySeries) -> Any:
        family = self._index.families.get((self.cells.scope, metric.family()[0]))
        alone = [child for child in self._alone if child.family() == metric.family()]
        return MergedFamilyText(family, exemplars, alone) if isinstance(family, MergedFamily) else metric

    def _without_space(self, registry: CollectorRegistry) -> LocalSamples:
        """Return what found no space and is shown by this worker only: description and samples, by scope and name."""
        found: dict[tuple[str, str], tuple[Any, list[LocalSample]]] = {}
        unshared = [(family, (labels, value, 1.0)) for family, labels, value in self._readers[registry].alone]
        values = [] if self._client is None else self._client.alone
        unshared.extend((one.family, (one.labels, one.cells[0], one.cells[1])) for one in values)
        for family, sample in unshared:
            described = orjson.loads(family)
            mine = described["scope"].startswith(f"{self._registries[registry]}/")
            if mine and sample[2]:  # pragma: no branch - another install's, with values of its own
                key = described["scope"], described["name"]
                found.setdefault(key, (described, []))[1].append(sample)
        return dict(found)

    def _of_directory(self, registry: CollectorRegistry) -> Iterator[Any]:
        """Yield what prometheus_client's own multiprocess mode shows, in the registry that has such metrics."""
        from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415 - only where it was wanted

        if registry is REGISTRY or any(
            is_prometheus_client_metric(collector) for collector in self._collectors(registry)
        ):
            yield MultiProcessCollector(None)  # type: ignore[no-untyped-call]
