"""Tail sampling: which requests are exported because of how they ended, and how many of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client.metrics_core import CounterMetricFamily

from fastapi_observe.internal.clock import monotonic
from fastapi_observe.traces.pending import PendingTotal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from prometheus_client.metrics_core import Metric

    from fastapi_observe.records.request import RequestRecord

REASONS: Final = ("errors", "slow", "repeated_queries", "first")
"""Why a trace may be tail-sampled. Of several reasons, the first one in this order is reported."""

BURSTS: Final = {"errors": 200, "slow": 100, "repeated_queries": 100, "first": 100}
"""Traces that a worker may tail-sample at once for each reason: its allowance."""

MAX_SEEN: Final = 10_000
"""Pairs of endpoint and status class that are remembered; when they are more, none of them is the first any longer."""

FAILED_OUTCOMES: Final = frozenset({"server_error", "cancelled", "incomplete_response", "error", "timeout"})
"""Outcomes of requests and jobs that are errors of this service. Errors of the client are not."""


class TailSampler:
    """Decides at the end of a request whether its trace is exported although the head sampler did not choose it.

    `slow_requests` maps endpoints to their own thresholds in seconds (those of their objectives); `slow_request` is the
    threshold of all others.
    A trace is refused if there is a reason for it, but the allowance of that reason is spent. All allowances together
    are refilled at `per_second`, in equal parts; those that are full leave their part to the others.
    """

    def __init__(
        self,
        reasons: Iterable[str],
        *,
        per_second: float,
        slow_request: float,
        repeat_limit: int,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        wanted = frozenset(reasons)
        self._errors = "errors" in wanted
        self._slow = "slow" in wanted
        self._first = "first" in wanted
        self._repeated = "repeated_queries" in wanted
        self._per_second = per_second
        self._slow_request = slow_request
        self.slow_requests: Mapping[str, float] = {}
        self._repeat_limit = repeat_limit
        self._clock = clock
        self._seen: set[tuple[str, int]] = set()
        self.pending_total = PendingTotal()
        self._refilled_at = clock()
        self.sampled: dict[str, int] = {reason: 0 for reason in REASONS if reason in wanted}
        self.refused = dict(self.sampled)
        self._allowances = {reason: float(BURSTS[reason]) for reason in self.sampled}

    def decide(self, record: RequestRecord) -> str | None:
        """Return the reason for which the trace of a request is exported; None if it is not. Counts the decision.

        Two threads that decide at the same moment may both get the last place of an allowance.
        """
        # One function, and without calls for a request that has no reason: it runs at the end of nearly every request.
        if self._errors and record.outcome in FAILED_OUTCOMES:
            reason = "errors"
        elif self._slow and (record.duration > self._slow_request or self.slow_requests) and self._is_slow(record):
            reason = "slow"
        elif self._repeated and record.work is not None and record.work.repeated(self._repeat_limit):
            reason = "repeated_queries"
        elif self._first and (record.endpoint, record.status_code // 100) not in self._seen and self._is_first(record):
            reason = "first"
        else:
            return None
        return self._sample(reason, record)

    def decide_late_failure(self, record: RequestRecord) -> str | None:
        """Return the reason for which a request is exported whose background task failed. Counts as `decide`."""
        return self._sample("errors", record) if self._errors else None

    def decide_part(self, trace_reason: str, record: RequestRecord) -> str | None:
        """Return the reason for which a request is exported of whose trace an earlier part was. Counts as `decide`.

        Half of the allowance is not for it: callers choose the trace of a request.
        """
        if self._take(trace_reason, min_places=BURSTS[trace_reason] // 2):
            return self._count(trace_reason, record)
        self.refused[trace_reason] += 1
        return None

    def _sample(self, reason: str, record: RequestRecord) -> str | None:
        if self._take(reason):
            return self._count(reason, record)
        # In an outage each route has the trace of a failure, also one that fails less often than the others.
        if self._is_first(record) and self._take("first"):
            return self._count("first", record)
        self.refused[reason] += 1
        return None

    def _count(self, reason: str, record: RequestRecord) -> str:
        self.sampled[reason] += 1
        self._seen.add((record.endpoint, record.status_code // 100))
        return reason

    def _take(self, reason: str, *, min_places: int = 1) -> bool:
        """Take a place of an allowance if it has at least `min_places`. Returns whether it had."""
        self._refill()
        if self._allowances[reason] < min_places:
            return False
        self._allowances[reason] -= 1
        return True

    def _refill(self) -> None:
        now = self._clock()
        places = (now - self._refilled_at) * self._per_second
        self._refilled_at = now
        allowances = self._allowances
        while places > 0 and (open_ := [reason for reason, left in allowances.items() if left < BURSTS[reason]]):
            part, places = places / len(open_), 0
            for reason in open_:
                filled = allowances[reason] + part
                allowances[reason] = min(BURSTS[reason], filled)
                places += max(0, filled - BURSTS[reason])

    def _is_slow(self, record: RequestRecord) -> bool:
        if record.websocket:
            return False
        seconds = record.duration if record.ttfb is None else record.ttfb
        return seconds > self.slow_requests.get(record.endpoint, self._slow_request)

    def _is_first(self, record: RequestRecord) -> bool:
        return (
            self._first
            and (record.endpoint, record.status_code // 100) not in self._seen
            and len(self._seen) < MAX_SEEN
        )

    # As a collector of prometheus_client

    def describe(self) -> list[Metric]:
        """Return the metrics that `collect` yields."""
        return [*self.collect()]

    def collect(self) -> Iterator[Metric]:
        """Yield the numbers of traces that were tail-sampled and refused, by reason."""
        for name, text, counts in (
            ("tail_sampled", "Traces exported because of how their request ended.", self.sampled),
            (
                "tail_refused",
                "Traces with a reason for tail sampling whose allowance was spent.",
                self.refused,
            ),
        ):
            family = CounterMetricFamily(f"fastapi_observe_traces_{name}", text, labels=["reason"])
            for reason, count in counts.items():
                family.add_metric([reason], count)
            yield family
