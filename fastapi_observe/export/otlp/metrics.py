"""Prometheus metrics as OTLP: cumulative sums, gauges, histograms with their exemplars, and summaries."""

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

CUMULATIVE: Final = b"\x10\x02"
MONOTONIC: Final = b"\x18\x01"

GAUGE, SUM, HISTOGRAM, SUMMARY = b"\x2a", b"\x3a", b"\x4a", b"\x5a"
"""The fields of a Metric that hold its data."""


class TimedFamily(NamedTuple):
    """A family of samples, as it was read at `at`, in nanoseconds."""

    metric: Metric
    at: int


class MetricEncoder(RequestEncoder):
    """Encodes families of this process.

    Counters and histograms began when this was made, or when they say (`_created`); if they were set to zero since,
    they began then: `zeroed` returns when that was, in nanoseconds.
    """

    def __init__(self, resource: Callable[[], Resource], zeroed: Callable[[], int] = int) -> None:
        super().__init__(resource)
        self._start = time_ns()
        self._zeroed = zeroed

    def encode(self, family: TimedFamily) -> tuple[None, bytes]:
        """Return a family as fields of ScopeMetrics: one Metric for each of its names."""
        metric, at = family
        shown = [self._points(metric, at)] if metric.type in {"histogram", "summary"} else self._numbers(metric, at)
        return None, b"".join(b"\x12" + length_prefixed(one) for one in shown)

    def _numbers(self, metric: Metric, at: int) -> list[bytes]:
        """Encode counters as sums under the family's name, all else as gauges under the samples' names."""
        points: dict[str, list[bytes]] = {}
        created = {_key(sample.labels): sample.value for sample in metric.samples if _is_created(metric, sample)}
        counter = metric.type == "counter"
        for sample in metric.samples:
            if _is_created(metric, sample):
                continue
            point = b"\x19" + FIXED64(at) + b"\x21" + DOUBLE(sample.value)
            if counter:
                point = b"\x11" + FIXED64(self._began(created, sample.labels)) + point + _exemplar(b"\x2a", sample, at)
            point += self.attributes.encode(b"\x3a", sample.labels)
            points.setdefault(metric.name if counter else sample.name, []).append(b"\x0a" + length_prefixed(point))
        tag, kind = (SUM, CUMULATIVE + MONOTONIC) if counter else (GAUGE, b"")
        return [_metric(metric, name, tag, b"".join(data) + kind) for name, data in points.items()]

    def _points(self, metric: Metric, at: int) -> bytes:
        """Encode a histogram or a summary: the samples of one label set are one point."""
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
            point = b"\x11" + FIXED64(self._began(created, labels)) + b"\x19" + FIXED64(at)
            point += _quantiles(metric, samples) if summary else _buckets(metric, samples, at)
            point += self.attributes.encode(b"\x3a" if summary else b"\x4a", labels)
            body += b"\x0a" + length_prefixed(point)
        return _metric(metric, metric.name, SUMMARY if summary else HISTOGRAM, body + (b"" if summary else CUMULATIVE))

    def _began(self, created: dict[tuple[Any, ...], float], labels: dict[str, str]) -> int:
        seconds = created.get(_key(labels))
        return max(self._start if seconds is None else int(seconds * 1e9), self._zeroed())


def read_families(collector: Collector, taken: set[str]) -> list[TimedFamily]:
    """Read the families of a collector now, but those whose names are `taken`; note the names.

    What several processes have counted is left out, and so is what the resource says (`target_info`): one who adds up
    the streams of all processes would count it once for each.
    """
    multiprocess = sys.modules.get("prometheus_client.multiprocess")
    if multiprocess is not None and isinstance(collector, multiprocess.MultiProcessCollector):
        return []
    at = time_ns()
    found = [TimedFamily(one, at) for one in collector.collect() if one.samples and one.name not in {*taken, "target"}]
    taken.update(family.metric.name for family in found)
    return found


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
    """Encode count, sum, bounds and counts; Prometheus' buckets hold what is in lower ones too."""
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
    found: Exemplar | None = sample.exemplar
    if found is None:
        return b""
    time = at if found.timestamp is None else int(float(found.timestamp) * 1e9)
    body = b"\x11" + FIXED64(time) + b"\x19" + DOUBLE(found.value)
    span_id, trace_id = found.labels.get("span_id"), found.labels.get("trace_id")
    if span_id and trace_id:
        body += b"\x22\x08" + bytes.fromhex(span_id) + b"\x2a\x10" + bytes.fromhex(trace_id)
    return tag + length_prefixed(body)
