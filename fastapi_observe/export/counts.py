"""What became of everything that was to be exported: produced = exported + dropped + queued, at every moment."""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client.metrics_core import Metric

SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bucket bounds of `fastapi_observe_export_duration_seconds`."""


class Durations:
    """How long requests to the collector took, successful or not, by bucket."""

    __slots__ = ("buckets", "total")

    def __init__(self) -> None:
        self.buckets = [0] * (len(SECONDS) + 1)
        self.total = 0.0

    def note(self, seconds: float) -> None:
        """Count one request."""
        self.buckets[bisect_left(SECONDS, seconds)] += 1
        self.total += seconds

    def cumulative(self) -> list[tuple[str, float]]:
        """Return the buckets as Prometheus shows them."""
        shown, count = [], 0
        for bound, number in zip((*map(str, SECONDS), "+Inf"), self.buckets, strict=True):
            count += number
            shown.append((bound, float(count)))
        return shown


class Counts(NamedTuple):
    """Where the items of one signal are, all read in one moment."""

    produced: int
    exported: int
    dropped: Mapping[str, int]
    queued: int
    queued_bytes: int | None = None
    failures: Mapping[str, int] | None = None
    durations: tuple[list[tuple[str, float]], float] | None = None
    last_success: float | None = None


class CountsExports(Protocol):
    """Something that counts what it exports."""

    def counts(self) -> Counts:
        """Read every count."""


LineTally = tuple[int, "Mapping[str, int]", int]
"""Lines that were written, that were lost, by reason, and that wait, at one moment."""


class CountsLines(Protocol):
    """What the log signal (`Logs`) counts."""

    def tally(self) -> LineTally:
        """Count the lines for standard output."""

    def file_tally(self) -> LineTally | None:
        """Count the lines for the log file; None if there is none."""


class LogCounts:
    """Shows the counts of the log signal as those of an export: for standard output, or for the log file."""

    def __init__(self, tally: Callable[[], LineTally | None]) -> None:
        self._tally = tally

    def counts(self) -> Counts:
        """Read every count. A line is produced when it is written, dropped or queued."""
        written, dropped, queued = self._tally() or (0, {}, 0)
        return Counts(queued + written + sum(dropped.values()), written, dropped, queued)


class ExportCollector:
    """Shows in `/metrics` what was exported and lost, by signal: `traces`, `logs`, `log_file` and so on."""

    def __init__(self, signals: Iterable[tuple[str, CountsExports]]) -> None:
        self._signals = [*signals]

    def describe(self) -> list[Metric]:
        """Name what `collect` yields."""
        return [*_families().values()]

    def collect(self) -> Iterator[Metric]:
        """Read everything."""
        families = _families()
        for signal, counted in self._signals:
            counts = counted.counts()
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


def exported_signals(
    logs: CountsLines, provider: Any, pushes: Iterable[CountsExports]
) -> list[tuple[str, CountsExports]]:
    """Return what an install exports, by signal."""
    queue = getattr(provider, "queue", None)
    signals: list[tuple[str, CountsExports]] = [("logs", LogCounts(logs.tally))]
    if logs.file_tally() is not None:
        signals.append(("log_file", LogCounts(logs.file_tally)))
    if queue is not None:
        signals.append(("traces", queue))
    return [*signals, *(("otlp_metrics" if hasattr(push, "push") else "otlp_logs", push) for push in pushes)]


def _families() -> dict[str, Any]:
    name = "fastapi_observe_"
    return {
        "produced": CounterMetricFamily(
            f"{name}produced", "Items to be exported: all of exported, dropped and queued.", labels=["signal"]
        ),
        "exported": CounterMetricFamily(f"{name}exported", "Items that were taken.", labels=["signal"]),
        "dropped": CounterMetricFamily(f"{name}dropped", "Items that were lost.", labels=["signal", "reason"]),
        "items": GaugeMetricFamily(f"{name}queue_items", "Items that wait.", labels=["signal"]),
        "bytes": GaugeMetricFamily(f"{name}queue_bytes", "Encoded bytes that wait.", labels=["signal"]),
        "failures": CounterMetricFamily(
            f"{name}export_failures", "Requests to the collector that failed.", labels=["signal", "reason"]
        ),
        "seconds": HistogramMetricFamily(
            f"{name}export_duration_seconds", "Duration of requests to the collector.", labels=["signal"]
        ),
        "success": GaugeMetricFamily(
            f"{name}last_export_success_timestamp_seconds", "When the collector last took items.", labels=["signal"]
        ),
    }
