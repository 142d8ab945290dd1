"""`ScrapeTimeCollectors`: collectors that read their values at scrape time, published by each worker on request."""

from __future__ import annotations

from time import sleep
from typing import TYPE_CHECKING, Final

from prometheus_client.metrics import MetricWrapperBase

from fastapi_observe.internal import json
from fastapi_observe.metrics.catalogue import OWN_PREFIX
from fastapi_observe.metrics.series import YIELD_SLEEP, BoundedMetric
from fastapi_observe.metrics.shared.collectors import collectors_of
from fastapi_observe.metrics.shared.prometheus_client import is_prometheus_client_metric
from fastapi_observe.metrics.shared.samples import LocalSample, describe_samples, encode_sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.workers.worker import Worker

HOST_METRICS: Final = frozenset({"memory_usage_bytes", "cpu_usage_percent", "disk_usage_bytes"})
"""Metrics with the same value in each process of a host."""

SUFFIXES_MERGED_BY_MAX: Final = ("_timestamp_seconds", "_degraded", "fastapi_observe_series", "fastapi_observe_workers")
"""Suffixes of this package's gauges of which the largest is exposed, instead of the sum."""


def multiprocess_mode(name: str, kind: str) -> str:
    """Return how the values of several workers are exposed: `once`, `sum`, `max`, or `pid` (each with its pid).

    A collector of the user may describe its process or the whole world, so its values are never added up.
    """
    if kind in {"info", "stateset", "unknown"} or name in HOST_METRICS or name.startswith("python_info"):
        return "once"
    if not name.startswith(OWN_PREFIX):
        return "pid"
    return "max" if kind == "gauge" and name.endswith(SUFFIXES_MERGED_BY_MAX) else "sum"


def is_scrape_time(collector: object) -> bool:
    """Return whether a collector has its values at scrape time only, and for this process only."""
    return (
        not isinstance(collector, BoundedMetric)
        and not is_prometheus_client_metric(collector)
        and not covers_all_workers(collector)
    )


def covers_all_workers(collector: object) -> bool:
    """Return whether a collector of this package reads what all workers have counted."""
    return getattr(collector, "covers_all_workers", False) is True


class ScrapeTimeCollectors:
    """The scrape-time collectors of one registry. `once` are families that this process exposes for all."""

    def __init__(
        self, worker: Worker, owner: str, registry: CollectorRegistry, internal_errors: InternalErrors
    ) -> None:
        self.once: Sequence[Metric] = ()
        self.local_only: list[LocalSample] = []
        self._worker = worker
        self._owner = owner
        self._registry = registry
        self._internal_errors = internal_errors
        self._descriptions: dict[str, bytes] = {}
        self._cells: dict[tuple[bytes, tuple[str, ...]], list[float]] = {}

    def publish(self) -> None:
        """Read all collectors, and write their samples to the files of this worker."""
        once: list[Metric] = []
        self.local_only = []
        published: set[tuple[bytes, tuple[str, ...]]] = set()
        for collector in collectors_of(self._registry):
            if not is_scrape_time(collector):
                continue
            sleep(YIELD_SLEEP)  # lets the event loop have the GIL, as in `BoundedMetric.render`
            try:
                for family in collector.collect():
                    if (
                        isinstance(collector, MetricWrapperBase)
                        or multiprocess_mode(family.name, family.type) == "once"
                    ):
                        once.append(family)
                    else:
                        self._write(family, published)
            except Exception as exc:  # noqa: BLE001 - a collector of the user may raise anything
                self._internal_errors("collect", exc)
        # A sample that is no longer there must not be exposed: the second cell says so.
        for key in self._cells.keys() - published:
            self._cells[key][1] = 0.0
        self.once = once

    def _write(self, family: Metric, published: set[tuple[bytes, tuple[str, ...]]]) -> None:
        description = self._descriptions.get(family.name)
        if description is None:
            mode = multiprocess_mode(family.name, family.type)
            described = describe_samples(
                self._owner, family.name, family.type, family.documentation, mode, unit=family.unit, cumulative=True
            )
            description = self._descriptions[family.name] = json.dumps(described)
        created = f"{family.name}_created"
        for sample in family.samples:
            if sample.name == created:
                continue
            key = description, encode_sample(sample.name, sample.labels.items())
            cells = self._cells.get(key) or self._worker.allocate(*key, [0.0, 0.0])
            if cells is None:
                self.local_only.append(LocalSample(*key, sample.value, 1.0))
            else:
                published.add(key)
                self._cells[key] = cells
                cells[0], cells[1] = sample.value, 1.0  # no time: all that matters is that it is not 0
