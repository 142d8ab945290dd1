"""Checks of the metrics of a running app: what it has exported, dropped, and recorded as overflow."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from prometheus_client.parser import text_string_to_metric_families

from fastapi_observe.doctor.app import check_dropped_lines, check_export_counts, degraded_workers
from fastapi_observe.doctor.check import Check
from fastapi_observe.formats.metric_names import PROMETHEUS, SEMCONV

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LINE_SIGNALS: Final = ("logs", "log_file")
"""Signals that `fastapi_observe_exported_total` has without an export."""
READ: Final = {
    "fastapi_observe_exported_total": "exported",
    "fastapi_observe_queue_items": "queued",
    "fastapi_observe_dropped_total": "dropped",
    "fastapi_observe_export_failures_total": "failed",
}
OVERFLOW_TOTAL: Final = "fastapi_observe_series_overflow_total"
DEGRADED: Final = "fastapi_observe_metrics_degraded"
REQUESTS: Final = (PROMETHEUS.requests, SEMCONV.requests)
"""The count of requests, by either naming of the metrics."""
NO_ROUTE: Final = {PROMETHEUS.unmatched, SEMCONV.unmatched}
"""Requests without a route, such as those of `doctor` itself."""


class MetricsPage:
    """The metrics that the checks need, from the lines of a response."""

    def __init__(self, lines: Iterable[str]) -> None:
        wanted = tuple(f"{name}{end}" for name in (*READ, OVERFLOW_TOTAL, DEGRADED, *REQUESTS) for end in "{ ")
        text = "\n".join(line for line in lines if line.startswith(wanted))
        self.counts: dict[str, Counter[str]] = {}
        self.overflown: set[str] = set()
        self.is_degraded = self.has_requests = False
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name in READ:
                    signal = self.counts.setdefault(sample.labels.get("signal", ""), Counter())
                    signal[READ[sample.name]] += int(sample.value)
                elif sample.name == OVERFLOW_TOTAL and sample.value:
                    self.overflown.add(sample.labels.get("metric", ""))
                elif sample.name == DEGRADED:
                    self.is_degraded = sample.value > 0
                elif sample.name in REQUESTS and sample.value:
                    endpoint = sample.labels.get("endpoint", sample.labels.get("http_route"))
                    self.has_requests = self.has_requests or endpoint not in NO_ROUTE

    def check_cardinality(self, url: str) -> Iterator[Check]:
        """Report metrics with more label sets or values than allowed."""
        if self.overflown:
            found = f"new label values are recorded as __overflow__: {', '.join(sorted(self.overflown))}"
            yield Check(
                "cardinality", "look", found, f"run python -m fastapi_observe cardinality {url} to see the label"
            )

    def check_counts(self) -> Iterator[Check]:
        """Report what was exported and dropped, workers that do not share, and an app without requests."""
        for signal, counts in sorted(self.counts.items()):
            if signal in LINE_SIGNALS:
                yield from check_dropped_lines(signal, counts["dropped"])
            else:
                yield check_export_counts(
                    signal, counts["exported"], counts["queued"], counts["dropped"], counts["failed"]
                )
        if not self.counts.keys() - {*LINE_SIGNALS}:
            step = "set OTEL_EXPORTER_OTLP_ENDPOINT, unless your own tracer provider exports; doctor MODULE:APP tells"
            yield Check("export", "look", "fastapi-observe exports nothing", step)
        if self.is_degraded:
            yield degraded_workers()
        if not self.has_requests:
            step = "send a request; /metrics and what exclude_paths names are not counted"
            yield Check("requests", "look", "no request was measured yet", step)
