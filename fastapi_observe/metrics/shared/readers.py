"""Collectors that read their values at scrape: each worker writes what its own say, when a scrape asks for it."""

from __future__ import annotations

from time import sleep
from typing import TYPE_CHECKING, Any, Final

import orjson
from prometheus_client.metrics import MetricWrapperBase

from fastapi_observe.metrics.series import YIELD_SLEEP, BoundedMetric
from fastapi_observe.metrics.shared.client import is_prometheus_client_metric
from fastapi_observe.metrics.shared.samples import describe, record_labels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prometheus_client.metrics_core import Metric

    from fastapi_observe.internal.errors import InternalErrors
    from fastapi_observe.workers.worker import Worker

OWN_PREFIX: Final = "fastapi_observe"

HOST_METRICS: Final = frozenset({"memory_usage_bytes", "cpu_usage_percent", "disk_usage_bytes"})
"""The same from whichever process it is read."""

MAX_MERGED_SUFFIXES: Final = ("_timestamp_seconds", "_degraded", "fastapi_observe_series", "fastapi_observe_workers")
"""Endings of gauges of ours that are not added up."""


def merge_mode(name: str, kind: str) -> str:
    """Return how a family of several workers is shown: `once`, `sum`, `max`, or `pid`, each process for itself.

    What another's collector reads may be the process's or the whole world's: it is not added up.
    """
    if kind in {"info", "stateset", "unknown"} or name in HOST_METRICS or name.startswith("python_info"):
        return "once"
    if not name.startswith(OWN_PREFIX):
        return "pid"
    return "max" if kind == "gauge" and name.endswith(MAX_MERGED_SUFFIXES) else "sum"


def is_scrape_time(collector: object) -> bool:
    """Tell whether a collector is read at scrape only, by each worker for itself."""
    return (
        not isinstance(collector, BoundedMetric)
        and not is_prometheus_client_metric(collector)
        and not covers_all_workers(collector)
    )


def covers_all_workers(collector: object) -> bool:
    """Tell whether a collector of ours shows what all workers have counted, whoever is asked."""
    return getattr(collector, "covers_all_workers", False) is True


class ScrapeTimeCollectors:
    """The collectors of one registry that are read at scrape; `once` is what this process alone shows of them.

    `alone` are samples that found no space: description of the family, record labels, value.
    """

    def __init__(
        self, worker: Worker, scope: str, collectors: Callable[[], Iterable[Any]], faults: InternalErrors
    ) -> None:
        self.once: list[Metric] = []
        self.alone: list[tuple[bytes, tuple[str, ...], float]] = []
        self._worker = worker
        self._scope = scope
        self._collectors = collectors
        self._faults = faults
        self._described: dict[str, tuple[bytes, str]] = {}
        self._cells: dict[tuple[bytes, tuple[str, ...]], list[float]] = {}

    def publish_values(self) -> None:
        """Read everything, into the files of this worker."""
        once: list[Metric] = []
        self.alone = []
        seen: set[tuple[bytes, tuple[str, ...]]] = set()
        for collector in self._collectors():
            if not is_scrape_time(collector):
                continue
            sleep(YIELD_SLEEP)  # as in `text_of`
            try:
                for family in collector.collect():
                    if isinstance(collector, MetricWrapperBase) or merge_mode(family.name, family.type) == "once":
                        once.append(family)
                    else:
                        self._write(family, seen)
            except Exception as exc:  # noqa: BLE001 - a user's collector raises what it likes
                self._faults("collect", exc)
        for key in self._cells.keys() - seen:
            self._cells[key][1] = 0.0
        self.once = once

    def rebind(self) -> None:
        """Go on in the new files of the worker."""
        found = {key: self._worker.allocate(*key, [0.0, 0.0]) for key in self._cells}
        self._cells = {key: cells for key, cells in found.items() if cells is not None}

    def _write(self, family: Metric, seen: set[tuple[bytes, tuple[str, ...]]]) -> None:
        found = self._described.get(family.name)
        if found is None:
            mode = merge_mode(family.name, family.type)
            described = describe(
                self._scope, family.name, family.type, family.documentation, mode, unit=family.unit, cumulated=True
            )
            found = self._described[family.name] = orjson.dumps(described), f"{family.name}_created"
        described_as, created = found
        for sample in family.samples:
            if sample.name == created:
                continue
            key = described_as, record_labels(sample.name, sample.labels.items())
            cells = self._cells.get(key) or self._worker.allocate(*key, [0.0, 0.0])
            if cells is None:
                self.alone.append((*key, sample.value))
            else:
                seen.add(key)
                self._cells[key] = cells
                cells[0], cells[1] = sample.value, 1.0
