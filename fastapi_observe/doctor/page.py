"""Checks of the metrics of a running app: what it has exported, dropped, and recorded as overflow."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Final

from prometheus_client.parser import text_string_to_metric_families

from fastapi_observe.doctor.app import (
    check_dropped_lines,
    check_export_counts,
    check_missing_spans,
    check_open,
    degraded_workers,
    separate_workers,
    sharing_workers,
)
from fastapi_observe.doctor.check import Check
from fastapi_observe.doctor.lines import join_first
from fastapi_observe.formats.metric_names import PROMETHEUS, SEMCONV

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client.samples import Sample

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
WORKERS: Final = "fastapi_observe_workers"
OPEN_REQUESTS: Final = (PROMETHEUS.in_progress, SEMCONV.in_progress)
OPEN_WEBSOCKETS: Final = "websocket_connections_active"
INFO: Final = "fastapi_observe_info"
SINGLE: Final = (INFO, DEGRADED, WORKERS, OPEN_WEBSOCKETS, *OPEN_REQUESTS)
REQUESTS: Final = (PROMETHEUS.requests, SEMCONV.requests)
"""The count of requests, by either naming of the metrics."""
NO_ROUTE: Final = {PROMETHEUS.unmatched, SEMCONV.unmatched}
"""Requests without a route, such as those of `doctor` itself."""
MAX_SIGNALS: Final = 5
"""Signals that are checked: fastapi-observe has no more."""
MAX_NAME_LENGTH: Final = 60
"""Characters of a label value that are shown."""
MAX_COUNT: Final = 1e15


class MetricsPage:
    """The metrics that the checks need, from the lines of a response."""

    def __init__(self, lines: Iterable[str]) -> None:
        """Parse the lines. Raises `ValueError` if one that is needed is not in the text format."""
        wanted = tuple(f"{name}{end}" for name in (*READ, OVERFLOW_TOTAL, *SINGLE, *REQUESTS) for end in "{ ")
        text = "\n".join(line for line in lines if line.startswith(wanted))
        self.counts: dict[str, Counter[str]] = {}
        self.overflown: set[str] = set()
        self.values: Counter[str] = Counter()
        self.requests = self.unmatched = 0
        try:
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    self._add(sample)
        except LookupError as error:  # the parser raises it for `{a="b", ="c"}`
            raise ValueError("they are not in the text format") from error

    def _add(self, sample: Sample) -> None:
        if sample.name in READ:
            signal = self.counts.setdefault(sample.labels.get("signal", "")[:MAX_NAME_LENGTH], Counter())
            signal[READ[sample.name]] += _to_count(sample)
        elif sample.name == OVERFLOW_TOTAL and sample.value:
            self.overflown.add(sample.labels.get("metric", "")[:MAX_NAME_LENGTH])
        elif sample.name in SINGLE:
            self.values[sample.name] += _to_count(sample)
        elif sample.name in REQUESTS and sample.value:
            if sample.labels.get("endpoint", sample.labels.get("http_route", "")) in NO_ROUTE:
                self.unmatched += _to_count(sample)
            else:
                self.requests += _to_count(sample)

    def check_cardinality(self, url: str) -> Iterator[Check]:
        """Report metrics with more label sets or values than allowed."""
        if self.overflown:
            found = f"new label values are recorded as __overflow__: {join_first(sorted(self.overflown))}"
            yield Check(
                "cardinality", "look", found, f"run python -m fastapi_observe cardinality {url} to see the label"
            )

    def check_counts(self) -> Iterator[Check]:
        """Report what was exported and dropped, whether workers share, what is open, and an app without requests."""
        if INFO not in self.values:
            yield Check("metrics", "look", "they are not those of fastapi-observe", "see what serves this path")
            return
        for signal, counts in islice(sorted(self.counts.items()), MAX_SIGNALS):
            if signal in LINE_SIGNALS:
                yield from check_dropped_lines(signal, counts["dropped"])
            elif signal == "traces" and self.requests and not any(counts.values()):
                yield check_missing_spans(self.requests)
            else:
                yield check_export_counts(
                    signal, counts["exported"], counts["queued"], counts["dropped"], counts["failed"]
                )
        if (more := len(self.counts) - MAX_SIGNALS) > 0:
            yield Check("export", "look", f"{more} more signals: not those of fastapi-observe", "see /metrics")
        if not self.counts.keys() - {*LINE_SIGNALS}:  # the metrics are the same whether that is intended or not
            found = "fastapi-observe exports nothing: intended with tracing off or a tracer provider of your own, "
            yield Check("export", "ok", found + "else set OTEL_EXPORTER_OTLP_ENDPOINT")
        yield from self._check_workers()
        yield from self._check_open()
        if self.unmatched and not self.requests:
            found = f"no request has matched a route yet; {self.unmatched} matched none (endpoint unmatched)"
            step = "compare their paths with the routes of the app; an earlier doctor --url may be among them"
            yield Check("requests", "look", found, step)
        elif not self.requests:
            step = "send a request; /metrics and what exclude_paths names are not counted"
            yield Check("requests", "look", "no request was measured yet", step)

    def _check_workers(self) -> Iterator[Check]:
        if self.values[DEGRADED]:
            yield degraded_workers()
        elif WORKERS in self.values and not self.values[WORKERS]:
            yield separate_workers("", "unset OBSERVE_MULTIPROCESS, or remove multiprocess from install")
        else:
            yield sharing_workers(self.values[WORKERS])

    def _check_open(self) -> Iterator[Check]:
        requests = [self.values[name] for name in OPEN_REQUESTS if name in self.values]
        if requests:
            yield check_open(sum(requests), self.values[OPEN_WEBSOCKETS])


def _to_count(sample: Sample) -> int:
    # A gauge of several workers can be below 0 for a moment.
    if not -MAX_COUNT < sample.value < MAX_COUNT:
        raise ValueError(f"{sample.name} is {sample.value:g}")
    return max(int(sample.value), 0)
