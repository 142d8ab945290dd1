"""Counts of what was exported and dropped, as metrics: produced = exported + dropped + queued, at every moment."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client.metrics_core import Metric

DURATION_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bucket bounds of `fastapi_observe_export_duration_seconds`."""


class Durations:
    """A histogram of the duration of requests to the Collector, successful or not."""

    __slots__ = ("buckets", "total")

    def __init__(self) -> None:
        self.buckets = [0] * (len(DURATION_BUCKETS) + 1)
        self.total = 0.0

    def record(self, seconds: float) -> None:
        """Record one request. A negative duration, of a clock that was set back, counts as 0."""
        self.buckets[bisect_left(DURATION_BUCKETS, seconds)] += 1
        self.total += max(0.0, seconds)

    def cumulative(self) -> list[tuple[str, float]]:
        """Return the cumulative buckets as Prometheus expects them."""
        buckets, count = [], 0
        for bound, number in zip((*map(str, DURATION_BUCKETS), "+Inf"), self.buckets, strict=True):
            count += number
            buckets.append((bound, float(count)))
        return buckets


class Counts(NamedTuple):
    """Number of items of one signal in each state, read at one moment. None: not counted for this signal."""

    produced: int
    exported: int
    dropped: Mapping[str, int]
    queued: int
    queued_bytes: int | None = None
    failures: Mapping[str, int] | None = None
    durations: tuple[list[tuple[str, float]], float] | None = None
    last_success: float | None = None


class ExportCollector:
    """Prometheus collector of the counts of all signals: `logs`, `log_file`, `traces`, `otlp_logs`, `otlp_metrics`."""

    def __init__(self, signals: Iterable[tuple[str, Callable[[], Counts]]]) -> None:
        self._signals = [*signals]

    def describe(self) -> list[Metric]:
        """Return the families that `collect` yields, without samples."""
        return [*_families().values()]

    def collect(self) -> Iterator[Metric]:
        """Yield the families that have samples."""
        families = _families()
        for signal, read_counts in self._signals:
            counts = read_counts()
            families["produced"].add_metric([signal], counts.produced)
            families["exported"].add_metric([signal], counts.exported)
            for reason, number in counts.dropped.items():
                families["dropped"].add_metric([signal, reason], number)
            families["items"].add_metric([signal], counts.queued)
            if counts.queued_bytes is not None:
                families["bytes"].add_metric([signal], counts.queued_bytes)
            for reason, number in (counts.failures or {}).items():
                families["failures"].add_metric([signal, reason], number)
            if counts.durations is not None:
                families["seconds"].add_metric([signal], *counts.durations)
            if counts.last_success is not None:
                families["success"].add_metric([signal], counts.last_success)
        yield from (family for family in families.values() if family.samples)


def _families() -> dict[str, Any]:
    name = "fastapi_observe_"
    return {
        "produced": CounterMetricFamily(
            f"{name}produced", "Items to export: the sum of exported, dropped and queued items.", labels=["signal"]
        ),
        "exported": CounterMetricFamily(f"{name}exported", "Items exported.", labels=["signal"]),
        "dropped": CounterMetricFamily(f"{name}dropped", "Items dropped.", labels=["signal", "reason"]),
        "items": GaugeMetricFamily(f"{name}queue_items", "Items queued.", labels=["signal"]),
        "bytes": GaugeMetricFamily(f"{name}queue_bytes", "Encoded bytes queued.", labels=["signal"]),
        "failures": CounterMetricFamily(
            f"{name}export_failures", "Failed requests to the Collector.", labels=["signal", "reason"]
        ),
        "seconds": HistogramMetricFamily(
            f"{name}export_duration_seconds", "Duration of requests to the Collector.", labels=["signal"]
        ),
        "success": GaugeMetricFamily(
            f"{name}last_export_success_timestamp_seconds",
            "Time at which the Collector last accepted items.",
            labels=["signal"],
        ),
    }
