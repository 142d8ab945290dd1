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

BURSTS: Final = (200, 100)
"""Traces that a worker may tail-sample at once because of errors and because of other reasons; both together are
refilled at `tail_samples_per_second`.
"""

MAX_SEEN: Final = 10_000
"""Pairs of endpoint and status class that are remembered; when they are more, none of them is the first any longer."""

FAILED_OUTCOMES: Final = frozenset({"server_error", "cancelled", "incomplete_response", "error", "timeout"})
"""Outcomes of requests and jobs that are errors of this service. Errors of the client are not."""


class TailSampler:
    """Decides at the end of a request whether its trace is exported although the head sampler did not choose it.

    `slow_requests` maps endpoints to their own thresholds in seconds (those of their objectives); `slow_request` is the
    threshold of all others.
    A trace is refused if there is a reason for it, but the allowance is spent.
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
        self._allowances = [float(burst) for burst in BURSTS]
        self.pending_total = PendingTotal()
        self._refilled_at = clock()
        self.sampled: dict[str, int] = {reason: 0 for reason in REASONS if reason in wanted}
        self.refused = dict(self.sampled)

    def decide(self, record: RequestRecord) -> str | None:
        """Return the reason for which the trace of a request is exported; None if it is not. Counts the answer.

        Two threads that ask at the same moment may both get the last place of the allowance.
        """
        reason = self._reason(record)
        return None if reason is None else self._take(reason, record)

    def decide_late_failure(self, record: RequestRecord) -> str | None:
        """Return the reason for which a request is exported whose background task failed. Counts as `decide`."""
        return self._take("errors", record) if self._errors else None

    def decide_part(self, trace_reason: str, record: RequestRecord) -> str | None:
        """Return the reason for which a request is exported of whose trace an earlier part was. Counts as `decide`."""
        return self._take(trace_reason, record, reserved=False)

    def _take(self, reason: str, record: RequestRecord, *, reserved: bool = True) -> str | None:
        """Take a place of the allowance: failures take `reserved` ones. Returns None if there is none."""
        now = self._clock()
        # A route that is always slow must not take the traces of failures, nor the other way round. Half of the refill
        # is for each; what one has no room for is for the other.
        refill = (now - self._refilled_at) * self._per_second
        rooms = [burst - left for burst, left in zip(BURSTS, self._allowances, strict=True)]
        for at in (0, 1):
            share = max(refill / 2, refill - rooms[1 - at])
            self._allowances[at] += min(rooms[at], share)
        self._refilled_at = now
        taken = 0 if reserved and reason == "errors" else 1
        if self._allowances[taken] < 1:
            self.refused[reason] += 1
            return None
        self._allowances[taken] -= 1
        self.sampled[reason] += 1
        self._seen.add((record.endpoint, record.status_code // 100))
        return reason

    def _reason(self, record: RequestRecord) -> str | None:
        if self._errors and record.outcome in FAILED_OUTCOMES:
            return "errors"
        if self._slow and not record.websocket:
            seconds = record.duration if record.ttfb is None else record.ttfb
            if seconds > self.slow_requests.get(record.endpoint, self._slow_request):
                return "slow"
        if self._repeated and record.work is not None and record.work.repeated(self._repeat_limit):
            return "repeated_queries"
        if (
            self._first
            and (record.endpoint, record.status_code // 100) not in self._seen
            and len(self._seen) < MAX_SEEN
        ):
            return "first"
        return None

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
                "Traces with a reason for tail sampling that exceeded tail_samples_per_second.",
                self.refused,
            ),
        ):
            family = CounterMetricFamily(f"fastapi_observe_traces_{name}", text, labels=["reason"])
            for reason, count in counts.items():
                family.add_metric([reason], count)
            yield family
