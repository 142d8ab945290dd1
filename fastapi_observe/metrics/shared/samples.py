"""Samples of metrics that are not ours, a record each: prometheus_client's own, and what collectors read at scrape."""

from __future__ import annotations

import os
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Exemplar

from fastapi_observe.internal.prometheus_client import format_float

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.samples import Sample

    from fastapi_observe.metrics.budget import ExemplarTuple
    from fastapi_observe.workers.files import ValueFileReader

Labels = tuple[tuple[str, str], ...]
Key = tuple[str, Labels]
"""Name and labels of a sample."""


ExemplarsBySeries = dict[tuple[str, int], dict[int, "ExemplarTuple"]]
"""ExemplarsBySeries by the name of whose they are and where its record begins, then by cell."""

LocalSample = tuple[tuple[str, ...], float, float]
"""A sample that one worker could not share: labels of its record, value, and when it was set."""


def record_labels(name: str, labels: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Return what stands in the files for a sample: its name, then the names and values of its labels."""
    return (_text(name), *(_text(part) for pair in labels for part in pair))


def _text(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def describe(  # noqa: PLR0913 - what a family is
    scope: str, name: str, kind: str, documentation: str, mode: str, *, unit: str = "", cumulated: bool = False
) -> dict[str, Any]:
    """Return what the others must know of a family; `mode` says how the samples of several workers become one."""
    return {
        "scope": scope,
        "name": name,
        "kind": "samples",
        "type": kind,
        "doc": _text(documentation),
        "unit": unit,
        "mode": mode,
        "fold": MERGE_MODES.get(mode, "drop"),
        "cumulated": cumulated,
    }


MERGE_MODES: Final = {"sum": "sum", "min": "min", "max": "max", "mostrecent": "latest"}
"""What is left of a worker that has ended, by mode; every other mode leaves nothing."""


class SampleFamily:
    """A family with the samples of all workers. Each record is a value, and when it was set (0: it is not there)."""

    width = 2

    def __init__(self, described: dict[str, Any]) -> None:
        self.name = str(described["name"])
        self.type = str(described["type"])
        self.documentation = str(described["doc"])
        self.unit = str(described["unit"])
        self.mode = str(described["mode"]).removeprefix("live")
        self.dropped = described["fold"] == "drop"
        self.cumulated = bool(described["cumulated"])
        self.records: dict[Key, list[tuple[ValueFileReader, int]]] = {}

    def add(self, labels: tuple[str, ...], reading: ValueFileReader, at: int) -> None:
        """Take note of a sample of one worker."""
        self.records.setdefault(_key(labels), []).append((reading, at))

    def metric(self, alone: Iterable[LocalSample], exemplars: ExemplarsBySeries) -> Metric:
        """Return the family as it is now; `alone` are samples of this worker only."""
        found: dict[Key, list[tuple[float, float, int]]] = defaultdict(list)
        kept: dict[Key, ExemplarTuple] = {}
        for key, refs in self.records.items():
            for reading, at in refs:
                if reading.values[at + 1] and (reading.living or not self.dropped):
                    found[key].append((reading.values[at], reading.values[at + 1], reading.pid))
                exemplar = exemplars.get((reading.name, at), {}).get(0) if exemplars else None
                if exemplar is not None and (key not in kept or kept[key][2] < exemplar[2]):
                    kept[key] = exemplar
        for record, value, stamp in alone:
            found[_key(record)].append((value, stamp, os.getpid()))
        metric = Metric(self.name, self.documentation, self.type, self.unit)
        if self.type == "histogram" and not self.cumulated:
            self._add_buckets(metric, found, kept)
            return metric
        for key, values in found.items():
            self._add(metric, key, values, _exemplar(kept.get(key)))
        metric.samples.sort(key=_group)
        return metric

    def _add(self, metric: Metric, key: Key, values: list[tuple[float, float, int]], exemplar: Exemplar | None) -> None:
        name, labels = key
        if self.mode in {"all", "pid"}:
            for value, _, pid in values:
                metric.add_sample(name, {**dict(labels), "pid": str(pid)}, value)
            return
        metric.add_sample(name, dict(labels), MODES[self.mode](values), None, exemplar)

    def _add_buckets(
        self, metric: Metric, found: dict[Key, list[tuple[float, float, int]]], kept: dict[Key, ExemplarTuple]
    ) -> None:
        """Cumulate buckets that hold each what is in it alone, as prometheus_client keeps them."""
        buckets: dict[Labels, list[tuple[float, float, Exemplar | None]]] = defaultdict(list)
        sums: dict[Labels, float] = {}
        for key, values in found.items():
            labels = key[1]
            total = sum(value for value, _, _ in values)
            le = dict(labels).get("le")
            if le is None:
                sums[labels] = total
            else:
                others = tuple(pair for pair in labels if pair[0] != "le")
                buckets[others].append((float(le), total, _exemplar(kept.get(key))))
        for labels, counts in buckets.items():
            count = 0.0
            counts.sort(key=lambda one: one[0])
            for bound, alone, exemplar in counts:
                count += alone
                metric.add_sample(
                    f"{self.name}_bucket", {**dict(labels), "le": format_float(bound)}, count, None, exemplar
                )
            metric.add_sample(f"{self.name}_count", dict(labels), count)
            if labels in sums and counts[0][0] >= 0:
                metric.add_sample(f"{self.name}_sum", dict(labels), sums[labels])


def _exemplar(kept: ExemplarTuple | None) -> Exemplar | None:
    return None if kept is None else Exemplar(*kept)


MODES: Final[dict[str, Any]] = {
    "sum": lambda values: sum(value for value, _, _ in values),
    "max": lambda values: max(value for value, _, _ in values),
    "min": lambda values: min(value for value, _, _ in values),
    "mostrecent": lambda values: max(values, key=lambda one: one[1])[0],
}


def _group(sample: Sample) -> list[tuple[str, str]]:
    """Return the labels of a series: OpenMetrics wants its samples together."""
    return sorted(pair for pair in sample.labels.items() if pair[0] not in {"le", "quantile"})


def _key(labels: tuple[str, ...]) -> Key:
    name, *parts = labels
    return name, tuple(zip(parts[::2], parts[1::2], strict=True))
