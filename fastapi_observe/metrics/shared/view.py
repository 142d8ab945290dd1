"""`MultiprocessView`: what one install exposes at `/metrics` when it has several worker processes."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

from prometheus_client import REGISTRY, CollectorRegistry

from fastapi_observe.internal import json
from fastapi_observe.internal.prometheus_client import uses_multiprocess_directory
from fastapi_observe.metrics.series import BoundedMetric
from fastapi_observe.metrics.shared.cells import SharedCells
from fastapi_observe.metrics.shared.collectors import (
    MergedFamilyText,
    MultiprocessRegistry,
    SampleCollector,
    StaticCollector,
    collectors_of,
)
from fastapi_observe.metrics.shared.merged import MergedFamilies, MergedFamily
from fastapi_observe.metrics.shared.prometheus_client import PrometheusClientCells, is_prometheus_client_metric
from fastapi_observe.metrics.shared.samples import ExemplarsBySeries, LocalSample, SampleFamily
from fastapi_observe.metrics.shared.scrape_time import ScrapeTimeCollectors, covers_all_workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.metrics.budget import SeriesLimiter
    from fastapi_observe.workers.worker import CellExemplar, Worker


class MultiprocessView:
    """The metrics of one install, and of the registries that it exposes, in one of several workers.

    The owner of a family of this package is the install. That of prometheus_client's metrics is
    `NAME/prometheus_client`, that of scrape-time collectors `NAME/scrape_time`. NAME is `default` for the default
    registry, which installs share, and the id of the install for its own registry.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - the parts of an install
        self,
        worker: Worker,
        install_id: str,
        limiter: SeriesLimiter,
        metrics: Callable[[], Iterable[BoundedMetric]],
        registries: Sequence[CollectorRegistry],
        internal_errors: InternalErrors,
    ) -> None:
        self.worker = worker
        self.cells = SharedCells(worker, limiter, install_id, metrics, internal_errors)
        self._internal_errors = internal_errors
        self._merged_families = MergedFamilies(limiter.constant_labels)
        self._local_series: list[BoundedMetric] = []
        self._local_families: dict[CollectorRegistry, dict[tuple[str, str], list[LocalSample]]] = {}
        self._registries = {registry: "default" if registry is REGISTRY else install_id for registry in registries}
        self._scrape_time = {
            registry: ScrapeTimeCollectors(worker, f"{name}/scrape_time", registry, internal_errors)
            for registry, name in self._registries.items()
        }
        self._prometheus_cells: PrometheusClientCells | None = None

    def open(self, values_at_fork: dict[int, float]) -> None:
        """Share the metrics of prometheus_client too, and publish values when another worker is scraped."""
        if not uses_multiprocess_directory():
            self._prometheus_cells = self.worker.shared_state.setdefault(
                "prometheus_client", PrometheusClientCells(self.worker)
            )
            for registry, name in self._registries.items():
                if type(registry) is CollectorRegistry:
                    self._prometheus_cells.open(registry, f"{name}/prometheus_client", values_at_fork)
        self.worker.scrape_callbacks.append(self._publish)

    def close(self) -> None:
        """Publish everything a last time. The caller then takes the cells back."""
        self._publish(False)  # noqa: FBT003 - a callback of the worker
        self.worker.scrape_callbacks.remove(self._publish)
        if self._prometheus_cells is not None:
            for registry in self._registries:
                if type(registry) is CollectorRegistry:
                    self._prometheus_cells.close(registry)

    def restore_prometheus_client(self) -> None:
        """Leave prometheus_client as it was, in the child of a fork, once for all installs of this process."""
        client = self.worker.shared_state.pop("prometheus_client", None)
        if client is not None:
            client.after_fork()

    def _publish(self, exemplars: bool) -> list[CellExemplar]:  # noqa: FBT001 - a callback of the worker
        found = self.cells.publish(exemplars)
        if self._prometheus_cells is not None:
            found.extend(self._prometheus_cells.publish(exemplars))
        for collectors in self._scrape_time.values():
            collectors.publish()
        return found

    def scrape(self, *, openmetrics: bool) -> list[MultiprocessRegistry]:
        """Read the values of all workers. Returns the registries with them."""
        self.worker.request_values(exemplars=openmetrics)
        mismatched = len(self._merged_families.mismatched)
        # A series that finds space meanwhile would otherwise be in the files and in `local`, or in neither.
        with self.worker.publish_lock:
            self._merged_families.update(*self.worker.read())
            self._local_series = [*self.cells.local_only]
            self._local_families = {registry: self._find_local_families(registry) for registry in self._registries}
        if len(self._merged_families.mismatched) > mismatched:
            self._internal_errors("workers.mismatch", ValueError("a worker has another metric of the same name"))
        exemplars: ExemplarsBySeries = {}
        for name, entries in self.worker.exemplars.items() if openmetrics else ():
            for offset, cell, exemplar in entries:
                exemplars.setdefault((name, offset), {})[cell] = exemplar
        return [
            MultiprocessRegistry(partial(self._collectors, registry, name, exemplars))
            for registry, name in self._registries.items()
        ]

    def _collectors(self, registry: CollectorRegistry, name: str, exemplars: ExemplarsBySeries) -> Iterator[Any]:
        """Yield the collectors of a registry, with the values of all workers."""
        families = self._merged_families.families
        collectors = collectors_of(registry)
        own = [each for each in collectors if isinstance(each, BoundedMetric)]
        names = {collector.family()[0] for collector in own}
        yield from (self._merged(collector, exemplars) for collector in own)
        yield from filter(covers_all_workers, collectors)
        # Another worker may have metrics of this package that this one has not made yet. They go to the first registry.
        if registry is next(iter(self._registries)):
            for (owner, family_name), family in families.items():
                if owner == self.cells.install_id and family_name not in names and isinstance(family, MergedFamily):
                    yield MergedFamilyText(family, exemplars, [])
        local = self._local_families[registry].copy()
        for (owner, family_name), family in families.items():
            if owner in {f"{name}/prometheus_client", f"{name}/scrape_time"} and isinstance(family, SampleFamily):
                yield SampleCollector(family, local.pop((owner, family_name), ()), exemplars)
        for samples in local.values():
            yield SampleCollector(SampleFamily(json.loads(samples[0].description)), samples, {})
        yield StaticCollector(self._scrape_time[registry].once)
        if self._prometheus_cells is None and os.path.isdir(os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")):  # noqa: PTH112
            yield from _multiprocess_directory_collectors(registry, collectors)

    def _merged(self, metric: BoundedMetric, exemplars: ExemplarsBySeries) -> Any:
        family = self._merged_families.families.get((self.cells.install_id, metric.family()[0]))
        local = [series for series in self._local_series if series.family() == metric.family()]
        return MergedFamilyText(family, exemplars, local) if isinstance(family, MergedFamily) else metric

    def _find_local_families(self, registry: CollectorRegistry) -> dict[tuple[str, str], list[LocalSample]]:
        """Return the samples that only this worker has, by owner and name of the family."""
        samples = [*self._scrape_time[registry].local_only]
        if self._prometheus_cells is not None:
            samples.extend(
                LocalSample(one.description, one.labels, *one.cells) for one in self._prometheus_cells.local_only
            )
        found: dict[tuple[str, str], list[LocalSample]] = {}
        for sample in samples:
            description = json.loads(sample.description)
            own = description["owner"].startswith(f"{self._registries[registry]}/")
            if own and sample.timestamp:  # pragma: no branch - else of another install
                found.setdefault((description["owner"], description["name"]), []).append(sample)
        return found


def _multiprocess_directory_collectors(registry: CollectorRegistry, collectors: Iterable[Any]) -> Iterator[Any]:
    """Yield prometheus_client's own collector of PROMETHEUS_MULTIPROC_DIR, in registries that have such metrics."""
    from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415 - only with that variable

    if registry is REGISTRY or any(is_prometheus_client_metric(collector) for collector in collectors):
        yield MultiProcessCollector(None)  # type: ignore[no-untyped-call]
