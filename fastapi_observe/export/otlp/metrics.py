"""`MetricEncoder`: Prometheus families as OTLP sums, gauges, histograms with exemplars, and summaries."""

from __future__ import annotations

import math
import sys
from time import time_ns
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from fastapi_observe.export.otlp.wire import DOUBLE, FIXED64, RequestEncoder, encode_string, length_prefixed

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.resources import Resource
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector
    from prometheus_client.samples import Exemplar, Sample

CUMULATIVE: Final = b"\x10\x02"  # aggregation_temporality
MONOTONIC: Final = b"\x18\x01"  # is_monotonic

GAUGE, SUM, HISTOGRAM, SUMMARY = b"\x2a", b"\x3a", b"\x4a", b"\x5a"
"""Tags of the fields of a Metric that hold its data."""


class TimedFamily(NamedTuple):
    """A metric family and the time at which it was read, in nanoseconds since the epoch."""

    metric: Metric
    at: int


class MetricEncoder(RequestEncoder):
    """Encodes metric families of this process, and requests of them.

    The start time of counters and histograms is their `_created` sample, else the time at which the encoder was made.
    If they were reset since, it is the time of that: `counters_reset_at` returns it in nanoseconds, 0 for never.
    """

    def __init__(self, resource: Callable[[], Resource], counters_reset_at: Callable[[], int] = int) -> None:
        super().__init__(resource)
        self._start = time_ns()
        self._counters_reset_at = counters_reset_at

    def encode(self, family: TimedFamily) -> tuple[None, bytes]:
        """Return a family as fields of ScopeMetrics, one Metric for each of its names. All families share one scope."""
        metric, at = family
        encoded = [self._points(metric, at)] if metric.type in {"histogram", "summary"} else self._numbers(metric, at)
        return None, b"".join(b"\x12" + length_prefixed(each) for each in encoded)

    def _numbers(self, metric: Metric, at: int) -> list[bytes]:
        """Encode counters as sums named like the family, everything else as gauges named like the samples."""
        points: dict[str, list[bytes]] = {}
        created = {_key(sample.labels): sample.value for sample in metric.samples if _is_created(metric, sample)}
        counter = metric.type == "counter"
        for sample in metric.samples:
            if _is_created(metric, sample):
                continue
            point = b"\x19" + FIXED64(at) + b"\x21" + DOUBLE(sample.value)
            if counter:
                point = (
                    b"\x11" + FIXED64(self._start_time(created, sample.labels)) + point + _exemplar(b"\x2a", sample, at)
                )
            point += self.attributes.encode(b"\x3a", sample.labels)
            points.setdefault(metric.name if counter else sample.name, []).append(b"\x0a" + length_prefixed(point))
        tag, kind = (SUM, CUMULATIVE + MONOTONIC) if counter else (GAUGE, b"")
        return [_metric(metric, name, tag, b"".join(data) + kind) for name, data in points.items()]

    def _points(self, metric: Metric, at: int) -> bytes:
        """Encode a histogram or a summary. The samples of one label set become one data point."""
        sets: dict[tuple[Any, ...], list[Sample]] = {}
        created: dict[tuple[Any, ...], float] = {}
        for sample in metric.samples:
            key = _key(sample.labels)
            if _is_created(metric, sample):
                created[key] = sample.value
            else:
                sets.setdefault(key, []).append(sample)
        summary = metric.type == "summary"
        body = b""
        for key, samples in sets.items():
            labels = dict(key)
            point = b"\x11" + FIXED64(self._start_time(created, labels)) + b"\x19" + FIXED64(at)
            point += _quantiles(metric, samples) if summary else _buckets(metric, samples, at)
            point += self.attributes.encode(b"\x3a" if summary else b"\x4a", labels)
            body += b"\x0a" + length_prefixed(point)
        return _metric(metric, metric.name, SUMMARY if summary else HISTOGRAM, body + (b"" if summary else CUMULATIVE))

    def _start_time(self, created: dict[tuple[Any, ...], float], labels: dict[str, str]) -> int:
        seconds = created.get(_key(labels))
        return max(self._start if seconds is None else int(seconds * 1e9), self._counters_reset_at())


def read_families(collector: Collector, names_read: set[str]) -> list[TimedFamily]:
    """Read the families of a collector, except those named in `names_read`. Adds their names to it.

    Leaves out what several processes have counted, which a sum over all processes would count once for each, and
    `target_info`, which is the resource.
    """
    multiprocess = sys.modules.get("prometheus_client.multiprocess")
    if multiprocess is not None and isinstance(collector, multiprocess.MultiProcessCollector):
        return []
    at = time_ns()
    families = [
        TimedFamily(metric, at)
        for metric in collector.collect()
        if metric.samples and metric.name not in {*names_read, "target"}
    ]
    names_read.update(family.metric.name for family in families)
    return families


def _key(labels: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(pair for pair in labels.items() if pair[0] not in {"le", "quantile"})


def _is_created(metric: Metric, sample: Sample) -> bool:
    return sample.name == f"{metric.name}_created"


def _metric(metric: Metric, name: str, tag: bytes, data: bytes) -> bytes:
    head = (
        b"\x0a" + length_prefixed(encode_string(name)) + b"\x12" + length_prefixed(encode_string(metric.documentation))
    )
    if metric.unit:
        head += b"\x1a" + length_prefixed(encode_string(metric.unit))
    return head + tag + length_prefixed(data)


def _buckets(metric: Metric, samples: list[Sample], at: int) -> bytes:
    """Encode count, sum, bounds and bucket counts. Prometheus buckets are cumulative, those of OTLP are not."""
    total, count, before = 0.0, 0, 0
    counts, bounds, exemplars = [], [], []
    for sample in samples:
        if sample.name == f"{metric.name}_bucket":
            bound, count = float(sample.labels["le"]), int(sample.value)
            counts.append(FIXED64(count - before))
            before = count
            if not math.isinf(bound):
                bounds.append(DOUBLE(bound))
            exemplars.append(_exemplar(b"\x42", sample, at))
        elif sample.name == f"{metric.name}_sum":
            total = sample.value
    packed = b"\x32" + length_prefixed(b"".join(counts)) + b"\x3a" + length_prefixed(b"".join(bounds))
    return b"\x21" + FIXED64(count) + b"\x29" + DOUBLE(total) + packed + b"".join(exemplars)


def _quantiles(metric: Metric, samples: list[Sample]) -> bytes:
    values = b""
    for sample in samples:
        if sample.name == f"{metric.name}_count":
            values += b"\x21" + FIXED64(int(sample.value))
        elif sample.name == f"{metric.name}_sum":
            values += b"\x29" + DOUBLE(sample.value)
        else:
            quantile = b"\x09" + DOUBLE(float(sample.labels["quantile"])) + b"\x11" + DOUBLE(sample.value)
            values += b"\x32" + length_prefixed(quantile)
    return values


def _exemplar(tag: bytes, sample: Sample, at: int) -> bytes:
    exemplar: Exemplar | None = sample.exemplar
    if exemplar is None:
        return b""
    time = at if exemplar.timestamp is None else int(float(exemplar.timestamp) * 1e9)
    body = b"\x11" + FIXED64(time) + b"\x19" + DOUBLE(exemplar.value)
    span_id, trace_id = exemplar.labels.get("span_id"), exemplar.labels.get("trace_id")
    if span_id and trace_id:
        body += b"\x22\x08" + bytes.fromhex(span_id) + b"\x2a\x10" + bytes.fromhex(trace_id)
    return tag + length_prefixed(body)
