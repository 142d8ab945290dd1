"""Samples of metrics that are not ours, a record each: prometheus_client's own, and what collectors read at scrape."""

from __future__ import annotations

import os
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

from prometheus_client.metrics_core import Metric

from fastapi_observe.signals.series import go_float

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.samples import Sample

    from fastapi_observe.signals.cells import Reading

Labels = tuple[tuple[str, str], ...]
Key = tuple[str, Labels]
"""Name and labels of a sample."""


Alone = tuple[tuple[str, ...], float, float]
"""A sample that one worker could not share: labels of its record, value, and when it was set."""


def record_labels(name: str, labels: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Return what stands in the files for a sample: its name, then the names and values of its labels."""
    return (_text(name), *(_text(part) for pair in labels for part in pair))


def _text(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def describe(  # noqa: PLR0913 - what a family is
    scope: str, name: str, kind: str, documentation: str, mode: str, *, cumulated: bool = False
) -> dict[str, Any]:
    """Return what the others must know of a family; `mode` says how the samples of several workers become one."""
    return {
        "scope": scope,
        "name": name,
        "kind": "samples",
        "type": kind,
        "doc": _text(documentation),
        "mode": mode,
        "fold": FOLDS.get(mode, "drop"),
        "cumulated": cumulated,
    }


FOLDS: Final = {"sum": "sum", "min": "min", "max": "max", "mostrecent": "latest"}
"""What is left of a worker that has ended, by mode; every other mode leaves nothing."""


class Samples:
    """A family with the samples of all workers. Each record is a value, and when it was set (0: it is not there)."""

    def __init__(self, described: dict[str, Any]) -> None:
        self.name = str(described["name"])
        self.type = str(described["type"])
        self.documentation = str(described["doc"])
        self.mode = str(described["mode"]).removeprefix("live")
        self.dropped = described["fold"] == "drop"
        self.cumulated = bool(described["cumulated"])
        self.records: dict[tuple[str, ...], list[tuple[Reading, int]]] = {}

    def add(self, labels: tuple[str, ...], reading: Reading, at: int) -> None:
        """Take note of a sample of one worker."""
        self.records.setdefault(labels, []).append((reading, at))

    def metric(self, alone: Iterable[Alone]) -> Metric:
        """Return the family as it is now; `alone` are samples of this worker only."""
        found: dict[Key, list[tuple[float, float, int]]] = defaultdict(list)
        for record, refs in self.records.items():
            for reading, at in refs:
                if reading.values[at + 1] and (reading.living or not self.dropped):
                    found[_key(record)].append((reading.values[at], reading.values[at + 1], reading.pid))
        for record, value, stamp in alone:
            found[_key(record)].append((value, stamp, os.getpid()))
        metric = Metric(self.name, self.documentation, self.type)
        if self.type == "histogram" and not self.cumulated:
            self._add_buckets(metric, found)
            return metric
        for (name, labels), values in found.items():
            self._add(metric, name, labels, values)
        metric.samples.sort(key=_group)
        return metric

    def _add(self, metric: Metric, name: str, labels: Labels, values: list[tuple[float, float, int]]) -> None:
        if self.mode in {"all", "pid"}:
            for value, _, pid in values:
                metric.add_sample(name, {**dict(labels), "pid": str(pid)}, value)
            return
        metric.add_sample(name, dict(labels), MODES[self.mode](values))

    def _add_buckets(self, metric: Metric, found: dict[Key, list[tuple[float, float, int]]]) -> None:
        """Cumulate buckets that hold each what is in it alone, as prometheus_client keeps them."""
        buckets: dict[Labels, dict[float, float]] = defaultdict(dict)
        sums: dict[Labels, float] = {}
        for (_, labels), values in found.items():
            total = sum(value for value, _, _ in values)
            le = dict(labels).get("le")
            if le is None:
                sums[labels] = total
            else:
                buckets[tuple(pair for pair in labels if pair[0] != "le")][float(le)] = total
        for labels, counts in buckets.items():
            count = 0.0
            for bound, alone in sorted(counts.items()):
                count += alone
                metric.add_sample(f"{self.name}_bucket", {**dict(labels), "le": go_float(bound)}, count)
            metric.add_sample(f"{self.name}_count", dict(labels), count)
            if labels in sums and min(counts) >= 0:
                metric.add_sample(f"{self.name}_sum", dict(labels), sums[labels])


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
