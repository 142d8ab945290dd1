"""`SampleFamily`: a metric that is not from this package, as samples with two cells each, of all workers.

These are prometheus_client's own metrics, and what collectors return at scrape time.
"""

from __future__ import annotations

import os
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prometheus_client.metrics_core import Metric

from fastapi_observe.internal.prometheus_client import format_float, make_exemplar

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.samples import Exemplar, Sample

    from fastapi_observe.internal.prometheus_client import ExemplarTuple
    from fastapi_observe.workers.files import ValueFileReader

Labels = tuple[tuple[str, str], ...]
SampleKey = tuple[str, Labels]
"""Name and labels of a sample."""


ExemplarsBySeries = dict[tuple[str, int], dict[int, "ExemplarTuple"]]
"""Exemplars by worker name and offset of the series, then by index of the cell."""


class LocalSample(NamedTuple):
    """A sample that found no space in the files: the arguments of `Worker.allocate`, value, and when it was set."""

    description: bytes
    labels: tuple[str, ...]
    value: float
    timestamp: float


class WorkerValue(NamedTuple):
    """The value of a sample in one worker, the time when it was set, and the pid."""

    value: float
    timestamp: float
    pid: int


class Bucket(NamedTuple):
    """A histogram bucket: upper bound, observations in it alone, exemplar."""

    bound: float
    observations: float
    exemplar: Exemplar | None


def encode_sample(name: str, labels: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """Return a sample in the form of label values, as files have them: its name, then names and values of its labels.

    The samples of a family that is not from this package may have different labels, so the files name them.
    """
    return (_encodable(name), *(_encodable(part) for pair in labels for part in pair))


def _encodable(text: str) -> str:
    """Escape lone surrogates, which cannot be written as UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def describe_samples(  # noqa: PLR0913 - the parts of a family
    owner: str, name: str, kind: str, documentation: str, mode: str, *, unit: str = "", cumulative: bool = False
) -> dict[str, Any]:
    """Return what other workers need to expose a family.

    `owner` is a registry, so that two registries may have metrics of one name. `mode` is how the samples of several
    workers are merged: one of prometheus_client's multiprocess modes, or `pid`.
    `cumulative` is whether each bucket includes the lower ones, as collectors return them.
    """
    return {
        "owner": owner,
        "name": name,
        "kind": "samples",
        "type": kind,
        "doc": _encodable(documentation),
        "unit": unit,
        "mode": mode,
        "archive_mode": ARCHIVE_MODES.get(mode, "drop"),
        "cumulative": cumulative,
    }


ARCHIVE_MODES: Final = {"sum": "sum", "min": "min", "max": "max", "mostrecent": "latest"}
"""What the archive keeps of a worker that has ended, by mode. Every other mode keeps nothing."""


class SampleFamily:
    """A family with the samples of all workers. The cells are the value, and the time when it was set (0: never)."""

    width = 2
    """Number of cells of a series, as in `MergedFamily`."""

    def __init__(self, description: dict[str, Any]) -> None:
        self.name = str(description["name"])
        self.type = str(description["type"])
        self.documentation = str(description["doc"])
        self.unit = str(description["unit"])
        # prometheus_client's modes such as `livesum` leave ended workers out; the rest of the name says how to merge.
        self.mode = str(description["mode"]).removeprefix("live")
        self.live_only = description["archive_mode"] == "drop"
        self.cumulative = bool(description["cumulative"])
        # Places of the cells of each sample: readers of the files, with the offset in them.
        self.refs: dict[SampleKey, list[tuple[ValueFileReader, int]]] = {}

    def add(self, labels: tuple[str, ...], reader: ValueFileReader, offset: int) -> None:
        """Add a sample of one worker."""
        self.refs.setdefault(_decode_sample(labels), []).append((reader, offset))

    def metric(self, local: Iterable[LocalSample], exemplars: ExemplarsBySeries) -> Metric:
        """Return the family with its present values. `local` are samples that only this worker has."""
        values: dict[SampleKey, list[WorkerValue]] = defaultdict(list)
        latest: dict[SampleKey, ExemplarTuple] = {}
        for key, refs in self.refs.items():
            for reader, offset in refs:
                timestamp = reader.values[offset + 1]
                if timestamp and (reader.live or not self.live_only):
                    values[key].append(WorkerValue(reader.values[offset], timestamp, reader.pid))
                exemplar = exemplars.get((reader.name, offset), {}).get(0) if exemplars else None
                if exemplar is not None and (key not in latest or latest[key][2] < exemplar[2]):
                    latest[key] = exemplar
        for sample in local:
            values[_decode_sample(sample.labels)].append(WorkerValue(sample.value, sample.timestamp, os.getpid()))
        metric = Metric(self.name, self.documentation, self.type, self.unit)
        if self.type == "histogram" and not self.cumulative:
            self._add_buckets(metric, values, latest)
            return metric
        for key, of_workers in values.items():
            self._add(metric, key, of_workers, make_exemplar(latest.get(key)))
        metric.samples.sort(key=_series_labels)
        return metric

    def _add(self, metric: Metric, key: SampleKey, values: list[WorkerValue], exemplar: Exemplar | None) -> None:
        name, labels = key
        if self.mode in {"all", "pid"}:
            for one in values:
                metric.add_sample(name, {**dict(labels), "pid": str(one.pid)}, one.value)
            return
        metric.add_sample(name, dict(labels), MODES[self.mode](values), None, exemplar)

    def _add_buckets(
        self, metric: Metric, values: dict[SampleKey, list[WorkerValue]], exemplars: dict[SampleKey, ExemplarTuple]
    ) -> None:
        """Add cumulative buckets. prometheus_client keeps each bucket alone."""
        buckets: dict[Labels, list[Bucket]] = defaultdict(list)
        sums: dict[Labels, float] = {}
        for key, of_workers in values.items():
            labels = key[1]
            total = sum([one.value for one in of_workers])
            bound = dict(labels).get("le")
            if bound is None:
                sums[labels] = total
            else:
                others = tuple(pair for pair in labels if pair[0] != "le")
                buckets[others].append(Bucket(float(bound), total, make_exemplar(exemplars.get(key))))
        for labels, of_series in buckets.items():
            count = 0.0
            of_series.sort(key=lambda bucket: bucket.bound)
            for bucket in of_series:
                count += bucket.observations
                with_bound = {**dict(labels), "le": format_float(bucket.bound)}
                metric.add_sample(f"{self.name}_bucket", with_bound, count, None, bucket.exemplar)
            metric.add_sample(f"{self.name}_count", dict(labels), count)
            # As prometheus_client: with negative bounds the sum is not a counter, and is left out.
            if labels in sums and of_series[0].bound >= 0:
                metric.add_sample(f"{self.name}_sum", dict(labels), sums[labels])


MODES: Final[dict[str, Any]] = {
    "sum": lambda values: sum([one.value for one in values]),
    "max": lambda values: max(one.value for one in values),
    "min": lambda values: min(one.value for one in values),
    "mostrecent": lambda values: max(values, key=lambda one: one.timestamp).value,
}
"""How the values of several workers become one. Modes `all` and `pid` keep them apart."""


def _series_labels(sample: Sample) -> list[tuple[str, str]]:
    """Return the labels that identify a series: OpenMetrics requires its samples to be together."""
    return sorted(pair for pair in sample.labels.items() if pair[0] not in {"le", "quantile"})


def _decode_sample(labels: tuple[str, ...]) -> SampleKey:
    name, *parts = labels
    return name, tuple(zip(parts[::2], parts[1::2], strict=True))
